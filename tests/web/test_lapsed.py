"""What was typed into a form outlives the session it was typed in."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from starlette.testclient import TestClient

from referrals.bootstrap import build_service, open_outbox
from referrals.samples import sample_case
from referrals.settings import RelaySettings, Security, Settings, WebSettings
from referrals.web.accounts import Accounts
from referrals.web.site import Role
from referrals.web.store import open_store
from tests.web.conftest import Clock, browsing, web_settings
from tests.web.provider import CLIENT, SECRET, Provider
from tests.web.signing import PASSWORD, add_account, csrf, post, said, sign_in
from tests.web.walking import Walker

AWAY = "You were away for too long, so you have to sign in again."
KEPT = "What you typed is kept."
TYPED = "zq typed before it lapsed"
Values = Mapping[str, Sequence[str] | str]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = web_settings(tmp_path, login="accounts").model_copy(
        update={"relay": RelaySettings(host="127.0.0.1", port=9, security=Security.NONE)}
    )
    add_account(made, role=Role.SENDER)
    add_account(made, "al")
    return made


@pytest.fixture
def browser(settings: Settings) -> Iterator[TestClient]:
    with browsing(settings) as opened:
        yield opened


@pytest.fixture
def walker(browser: TestClient, settings: Settings, clock: Clock) -> Walker:
    """Signed in, with a case that a supervisor may have to decide on, all filled in."""
    sign_in(browser)
    return walked(browser, settings)


def walked(browser: TestClient, settings: Settings) -> Walker:
    service = build_service(settings)
    raw = sample_case(service.directory, ["mediation", "victim-hardening"], service.today())
    walker = Walker.with_case(browser, raw)
    walker.cells["answers.mediation.court_proceedings"] = "yes"
    walker.to_check("mediation", "victim-hardening")
    return walker


def at_case(walker: Walker) -> tuple[str, Values]:
    return f"{walker.at}/case", {"incidents.1.what": TYPED}


def at_details(walker: Walker) -> tuple[str, Values]:
    return f"{walker.at}/details", {"people.victim.name": TYPED}


def at_choice(walker: Walker) -> tuple[str, Values]:
    return f"{walker.at}/choose", {"chosen": ["target-hardening"]}


def at_decision(walker: Walker) -> tuple[str, Values]:
    day = {"overrides.1.on-day": "24", "overrides.1.on-month": "11", "overrides.1.on-year": "2026"}
    reason = {"overrides.1.reason": TYPED, "overrides.1.authorised_by": "Inspector Example"}
    return f"{walker.at}/set-aside/MED-006", {**reason, **day}


def at_you(walker: Walker) -> tuple[str, Values]:
    journey = walker.at.rpartition("/")[2]
    return f"/you?next={journey}&back=check", {"referrer.name": TYPED, "referrer.email": "no"}


PAGES = [at_case, at_choice, at_details, at_decision, at_you]
Page = Callable[[Walker], tuple[str, Values]]


def filled(walker: Walker, page: Page, **more: str) -> tuple[str, dict[str, Sequence[str] | str]]:
    """The page's address and its form, as it stands in the browser while the session lapses."""
    path, typed = page(walker)
    form = walker.form(path)
    form.values.pop("action", None)
    return path, {**form.values, **typed, **more}


def kept(settings: Settings) -> list[tuple[str, ...]]:
    """All that the store keeps of what people typed."""
    with closing(sqlite3.connect(settings.outbox / "web.sqlite3")) as connection:
        return connection.execute(
            "SELECT kind, id, owner, body FROM document ORDER BY kind, id"
        ).fetchall()


def has_typed(walker: Walker, path: str, typed: Values) -> None:
    """The page of this address has it in its form."""
    form = walker.form(path)
    for name, values in typed.items():
        assert form.values[name] == ([values] if isinstance(values, str) else list(values))


@pytest.mark.parametrize("page", PAGES)
def test_what_is_sent_too_late_is_kept_and_found_after_signing_in(
    walker: Walker, browser: TestClient, settings: Settings, clock: Clock, page: Page
) -> None:
    path, form = filled(walker, page)
    cookie = browser.cookies["referrals"]
    clock.pass_by(minutes=31)

    answer = browser.post(path, data=form)
    assert answer.status_code == 303
    assert answer.text == ""
    assert "set-cookie" not in answer.headers
    assert browser.cookies["referrals"] == cookie
    sign_in_at = urlsplit(answer.headers["location"])
    assert sign_in_at.path == "/sign-in"
    assert parse_qs(sign_in_at.query) == {"kept": ["yes"], "next": [path]}
    assert browser.get(path).status_code == 303, "it opens nothing"

    asked = browser.get(answer.headers["location"])
    assert f"{AWAY} {KEPT}" in said(asked)
    for told in (TYPED, "jane", "SAMPLE"):
        assert told not in asked.text
    hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', asked.text))
    hidden = {name: value.replace("&amp;", "&") for name, value in hidden.items()}
    wrong = browser.post("/sign-in", data={**hidden, "name": "jane.smith", "password": "no"})
    assert f"{AWAY} {KEPT}" in said(wrong)
    right = browser.post("/sign-in", data={**hidden, "name": "jane.smith", "password": PASSWORD})
    assert (right.status_code, right.headers["location"]) == (303, path)
    assert browser.cookies["referrals"] != cookie

    has_typed(walker, path, page(walker)[1])
    with open_outbox(settings) as outbox:
        assert list(outbox.held()) == []


def test_it_says_so_too_when_it_was_the_longest_life_that_ended(
    walker: Walker, browser: TestClient, clock: Clock
) -> None:
    path, form = filled(walker, at_case)
    for _ in range(30):
        clock.pass_by(minutes=19)
        browser.get("/account")
    clock.pass_by(minutes=29)
    assert browser.get("/account").status_code == 200
    clock.pass_by(minutes=2)
    answer = browser.post(path, data=form)
    words = said(browser.get(answer.headers["location"]))
    assert f"It is 10 hours since you signed in, so you have to do so again. {KEPT}" in words


@pytest.mark.parametrize(
    ("page", "actions"),
    [
        (at_case, ["add-incident", "remove-incidents.1", "save", "continue"]),
        (at_details, ["add-consents.victim", "remove-consents.1", "incidents", "continue"]),
        (at_decision, ["put-back"]),
    ],
)
def test_only_what_was_typed_counts_and_nothing_that_a_button_does(
    walker: Walker, browser: TestClient, settings: Settings, clock: Clock, page: Page,
    actions: list[str],
) -> None:  # fmt: skip
    path, form = filled(walker, at_decision)
    walker.post(path, form)  # a rule that could be put back
    sent = [filled(walker, page, action=action) for action in actions]
    names = set(walker.form(sent[0][0]).values)
    clock.pass_by(minutes=31)
    for path, form in sent:
        answer = browser.post(path, data=form)
        assert (answer.status_code, answer.text) == (303, "")

    sign_in(browser)
    has_typed(walker, *page(walker))
    assert set(walker.form(path).values) == names, "no incident or record more or less"
    assert "Put the rule back" in walker.get(f"{walker.at}/set-aside/MED-006").text
    [journey] = [body for kind, _, _, body in kept(settings) if kind == "journey"]
    assert '"stage": "check"' in journey
    with open_outbox(settings) as outbox:
        assert list(outbox.held()) == []


def test_a_decision_that_was_kept_is_none_until_it_is_posted(
    walker: Walker, browser: TestClient, clock: Clock
) -> None:
    path, form = filled(walker, at_decision)
    clock.pass_by(minutes=31)
    browser.post(path, data=form)
    sign_in(browser)

    blocked = walker.get(f"{walker.at}/check").text
    assert f'href="{path}"' in blocked
    assert TYPED not in blocked
    assert browser.get(f"{walker.at}/preview/mediation").status_code == 303
    has_typed(walker, *at_decision(walker))
    assert "Put the rule back" not in walker.get(path).text

    walker.post(path, {**walker.form(path).values, "overrides.1.reason": "Another, well weighed."})
    walker.get(f"{walker.at}/preview/mediation")
    has_typed(walker, path, {"overrides.1.reason": "Another, well weighed."})


def test_an_amendment_that_was_kept_leaves_the_decision_as_it_is(
    walker: Walker, browser: TestClient, clock: Clock
) -> None:
    path, form = filled(walker, at_decision)
    walker.post(path, {**form, "overrides.1.reason": "The first, well weighed."})
    clock.pass_by(minutes=31)
    browser.post(path, data={**form, "csrf": csrf_of(walker, path, clock)})
    has_typed(walker, *at_decision(walker))
    assert "The first, well weighed." in said(walker.get(f"{walker.at}/preview/mediation"))
    walker.post(path, {"action": "put-back"})
    assert walker.form(path).values["overrides.1.reason"] == [""]


def csrf_of(walker: Walker, path: str, clock: Clock) -> str:
    """The token of a session that lapses, after which one has signed in again."""
    sign_in(walker.client)
    token = csrf(walker.get(path))
    clock.pass_by(minutes=31)
    sign_in(walker.client)
    return token


def test_ones_own_details_count_only_once_they_are_posted(
    walker: Walker, browser: TestClient, clock: Clock
) -> None:
    """They are in letters and reminders, where what is half typed has no place."""
    path, form = filled(walker, at_you)
    clock.pass_by(minutes=31)
    browser.post(path, data=form)
    sign_in(browser)
    assert TYPED not in walker.get(f"{walker.at}/check").text
    walker.post(path, {**walker.form(path).values, "referrer.email": "jo@example.com"})
    assert TYPED in walker.get(f"{walker.at}/check").text
    has_typed(walker, "/you", {"referrer.name": TYPED, "referrer.email": "jo@example.com"})


# What is not kept


def refused(browser: httpx2.Client, path: str, form: Mapping[str, object]) -> None:
    answer = browser.post(path, data=dict(form))
    assert answer.status_code == 401, said(answer)
    assert "what you just sent was not taken" in said(answer)
    assert TYPED not in answer.text


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("token", [None, "", "forged", "a stranger's"])
def test_without_the_forms_own_token_nothing_is_kept(
    walker: Walker,
    browser: TestClient,
    settings: Settings,
    clock: Clock,
    page: Page,
    token: str | None,
) -> None:
    path, form = filled(walker, page)
    clock.pass_by(minutes=31)
    form["csrf"] = csrf(browser.get("/sign-in")) if token == "a stranger's" else token or ""
    if token is None:
        del form["csrf"]
    before = kept(settings)
    refused(browser, path, form)
    assert kept(settings) == before


def test_the_token_alone_is_not_enough(
    walker: Walker, browser: TestClient, settings: Settings, clock: Clock
) -> None:
    path, form = filled(walker, at_case)
    clock.pass_by(minutes=31)
    assert browser.get(path).status_code == 303
    before = kept(settings)
    with browsing(settings) as another:
        refused(another, path, form)
        sign_in(another, "al")
        assert another.post(path, data=form).status_code == 403
    assert kept(settings) == before


def end_by_signing_out(browser: TestClient, settings: Settings, clock: Clock) -> None:
    post(browser, "/sign-out", form="/sign-out")


def end_by_signing_out_late(browser: TestClient, settings: Settings, clock: Clock) -> None:
    clock.pass_by(minutes=31)
    assert browser.get("/sign-out").headers["location"] == "/signed-out"


def end_by_disabling(browser: TestClient, settings: Settings, clock: Clock) -> None:
    with_accounts(settings, lambda accounts: accounts.set_disabled("jane.smith", True))


def end_by_disabling_late(browser: TestClient, settings: Settings, clock: Clock) -> None:
    clock.pass_by(minutes=31)
    assert browser.get("/").status_code == 303
    end_by_disabling(browser, settings, clock)
    with closing(sqlite3.connect(settings.outbox / "web.sqlite3")) as connection:
        assert connection.execute("SELECT count(*) FROM session").fetchone() == (0,)


def end_by_time(browser: TestClient, settings: Settings, clock: Clock) -> None:
    clock.pass_by(hours=24, minutes=30)


def with_accounts(settings: Settings, change: Callable[[Accounts], None]) -> None:
    store = open_store(settings)
    try:
        change(Accounts(store))
    finally:
        store.close()


@pytest.mark.parametrize(
    "end",
    [
        end_by_signing_out,
        end_by_signing_out_late,
        end_by_disabling,
        end_by_disabling_late,
        end_by_time,
    ],
)
def test_a_session_that_was_ended_keeps_nothing(
    walker: Walker,
    browser: TestClient,
    settings: Settings,
    clock: Clock,
    end: Callable[[TestClient, Settings, Clock], None],
) -> None:
    path, form = filled(walker, at_case)
    token = browser.cookies["referrals"]
    end(browser, settings, clock)
    browser.cookies.set("referrals", token, "127.0.0.1")
    clock.pass_by(minutes=31)
    before = kept(settings)
    refused(browser, path, form)
    assert kept(settings) == before


def test_a_disabled_account_keeps_nothing_whatever_became_of_its_session(
    walker: Walker, browser: TestClient, settings: Settings, clock: Clock
) -> None:
    path, form = filled(walker, at_case)
    with closing(sqlite3.connect(settings.outbox / "web.sqlite3")) as connection, connection:
        connection.execute("UPDATE account SET disabled = 1 WHERE name = 'jane.smith'")
    clock.pass_by(minutes=31)
    before = kept(settings)
    refused(browser, path, form)
    assert kept(settings) == before


@pytest.mark.parametrize("page", [at_case, at_choice, at_details, at_decision])
def test_nothing_is_kept_where_there_is_nothing_of_ones_own_and_none_can_tell(
    walker: Walker, browser: TestClient, settings: Settings, clock: Clock, page: Page
) -> None:
    """The answers to another's referral and to one that never was are the same."""
    path, form = filled(walker, page)
    nowhere = path.replace(walker.at.rpartition("/")[2], "never-was")
    with browsing(settings) as another:
        sign_in(another, "al")
        form["csrf"] = csrf(another.get("/you"))
        clock.pass_by(minutes=31)
        before = kept(settings)
        answers = [another.post(one, data=form) for one in (path, nowhere)]
    assert [one.status_code for one in answers] == [401, 401]
    assert answers[0].text == answers[1].text
    assert kept(settings) == before


@pytest.mark.parametrize(
    ("page", "form"),
    [
        ("submit", {"submit": "victim-hardening", "accept": "victim-hardening"}),
        ("remove", {"intervention": "mediation"}),
        ("delete", {}),
    ],
)
def test_what_does_something_does_nothing_afterwards(
    walker: Walker,
    browser: TestClient,
    settings: Settings,
    clock: Clock,
    page: str,
    form: dict[str, str],
) -> None:
    token = csrf(browser.get(f"{walker.at}/case"))
    seen = walker.seen()
    clock.pass_by(minutes=31)
    before = kept(settings)
    refused(browser, f"{walker.at}/{page}", {**seen, **form, "csrf": token})
    assert kept(settings) == before
    with open_outbox(settings) as outbox:
        assert list(outbox.held()) == []


# Who signs in, and where


def test_for_somebody_else_nothing_is_revealed(
    walker: Walker, browser: TestClient, settings: Settings, clock: Clock
) -> None:
    path, form = filled(walker, at_case)
    clock.pass_by(minutes=31)
    again = browser.post(path, data=form).headers["location"]
    after = csrf_and_next(browser.get(again))
    answer = browser.post("/sign-in", data={**after, "name": "al", "password": PASSWORD})
    assert answer.headers["location"] == "/"
    assert browser.get(path).status_code == 404
    assert browser.post(path, data=form).status_code == 403, "nor is it theirs to keep"


def csrf_and_next(answer: httpx2.Response) -> dict[str, str]:
    return dict(re.findall(r'name="(csrf|next)" value="([^"]*)"', answer.text))


def test_every_form_that_is_open_is_kept_before_and_after_signing_in(
    walker: Walker, browser: TestClient, clock: Clock
) -> None:
    case, details, you = (filled(walker, page) for page in (at_case, at_details, at_you))
    clock.pass_by(minutes=31)
    assert browser.get("/outbox").status_code == 303
    assert AWAY in said(browser.get("/sign-in"))
    assert KEPT not in said(browser.get("/sign-in"))
    for path, form in (case, details):
        assert browser.post(path, data=form).headers["location"].startswith("/sign-in?kept")
    sign_in(browser)
    answer = browser.post(you[0], data=you[1])
    assert (answer.status_code, answer.headers["location"]) == (303, you[0])
    for page in (at_case, at_details, at_you):
        has_typed(walker, *page(walker))


def test_with_a_provider_it_is_the_same(tmp_path: Path, clock: Clock) -> None:
    with Provider() as provider:
        settings = web_settings(
            tmp_path,
            login="oidc",
            oidc_issuer=provider.issuer,
            oidc_client_id=CLIENT,
            oidc_client_secret=SECRET,
        )
        with browsing(settings) as browser:
            come_back(browser, "/sign-in/start")
            walker = walked(browser, settings)
            for sub, where in ((None, ""), ("another", "/")):
                path, form = filled(walker, at_case)
                clock.pass_by(minutes=31)
                page = browser.get(browser.post(path, data=form).headers["location"])
                assert f"{AWAY} {KEPT}" in said(page)
                assert "Sign in with your work account" in page.text
                start = re.search(r'href="(/sign-in/start[^"]*)"', page.text)
                assert start
                provider.claims = {"sub": sub} if sub else {}
                assert come_back(browser, start[1]).headers["location"] == (where or path)
                if not where:
                    has_typed(walker, *at_case(walker))


def come_back(browser: TestClient, start: str) -> httpx2.Response:
    there = httpx2.get(browser.get(start).headers["location"], timeout=10)
    answer: httpx2.Response = browser.get(there.headers["location"])
    return answer


def test_on_this_machine_where_nobody_signs_in_one_goes_on_at_once(
    tmp_path: Path, clock: Clock
) -> None:
    settings = Settings(outbox=tmp_path / "outbox", web=WebSettings(keep_progress_hours=72))
    with browsing(settings) as browser:
        walker = walked(browser, settings)
        path, form = filled(walker, at_case)
        clock.pass_by(hours=11)
        answer = browser.post(path, data=form)
        assert (answer.status_code, answer.headers["location"]) == (303, path)
        has_typed(walker, *at_case(walker))

        path, form = filled(walker, at_case)
        clock.pass_by(hours=34)
        assert browser.post(path, data=form).status_code == 403
