"""Two `serve` before one PostgreSQL: nobody notices which of them answers."""

from __future__ import annotations

import io
import re
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from pydantic import SecretStr

from referrals.bootstrap import build_service, open_outbox
from referrals.outboxes.postgres import connections
from referrals.samples import sample_case
from referrals.settings import Settings
from referrals.sink import Sink
from referrals.web.site import Role
from tests.e2e.conftest import Beside
from tests.postgres import Server, server
from tests.smtp_sink import wait_until
from tests.web.machines import WITHIN_S, Machine, browser_at, machines
from tests.web.provider import CLIENT, SECRET, Provider
from tests.web.signing import add_account, said, sign_in
from tests.web.walking import Walker

INTERVENTION = "victim-hardening"
_KILLED_AFTER = 5
"""Forms that were answered."""


@pytest.fixture
def settings() -> Iterator[Settings]:
    url = SecretStr(server().url(server().emptied()))
    yield Settings(database=url)
    connections.close_idle()


def env_of(settings: Settings, login: str, **more: str) -> dict[str, str]:
    assert settings.database is not None
    return {
        "DATABASE": settings.database.get_secret_value(),
        "WEB_LOGIN": login,
        "RELAY_HOST": "127.0.0.1",
        "RELAY_SECURITY": "none",
        "RELAY_PORT": "9",
        **more,
    }


def walker_at(browser: httpx2.Client) -> Walker:
    service = build_service(Settings())
    raw = sample_case(service.directory, [INTERVENTION], service.today())
    return Walker.with_case(browser, raw)


def walk(browser: httpx2.Client) -> Walker:
    """The whole journey, up to what is in the outbox."""
    walker = walker_at(browser)
    assert "Check" in walker.to_check(INTERVENTION)
    assert INTERVENTION in walker.get(f"{walker.at}/preview/{INTERVENTION}").text
    with zipfile.ZipFile(io.BytesIO(browser.get(f"{walker.at}/drafts.zip").content)) as drafts:
        [draft] = drafts.namelist()
    assert browser.get(f"{walker.at}/drafts/{draft}").text.count("X-Unsent: 1") == 1
    went = walker.submit(INTERVENTION).headers["location"]
    assert went == f"{walker.at}/done"
    assert "Victim" in said(walker.get(went))
    again = walker.submit(INTERVENTION).headers["location"]
    assert "before" in said(walker.get(again)), "the same is not queued twice"
    assert "SAMPLE" in walker.get("/outbox").text
    return walker


def arrived_once(relay: Sink, settings: Settings) -> None:
    with open_outbox(settings) as outbox:
        wait_until(lambda: outbox.counts() == {"relayed": 1}, "it was relayed")
    assert len(relay.arrived) == 1


def test_with_accounts_of_ours(settings: Settings, tmp_path: Path) -> None:
    add_account(settings, role=Role.SENDER)
    with Beside(Sink()) as relay:
        env = env_of(settings, "accounts", RELAY_PORT=str(relay.port))
        with machines(tmp_path, env) as both, browser_at(both) as browser:
            assert browser.get("/outbox").headers["location"] == "/sign-in?next=%2Foutbox"
            assert sign_in(browser).status_code == 303
            walk(browser)
            arrived_once(relay, settings)
            balancer = browser._transport
            assert min(balancer.taken) > 10  # type: ignore[attr-defined]

            lapses(browser, settings)
            signs_out(browser)
            guesses(both)
        for machine in both:
            assert not list(machine.folder.glob("outbox/*.sqlite3*"))
            assert "Traceback" not in machine.said


def lapses(browser: httpx2.Client, settings: Settings) -> None:
    """Away for too long, with a form that is open: what was typed is kept, whoever gets it."""
    walker = walker_at(browser)
    walker.to_check(INTERVENTION)
    path = f"{walker.at}/case"
    form = {**walker.fill(path), "incidents.1.what": "typed before it lapsed"}
    form.pop("action", None)
    assert settings.database is not None
    with connections.Database.of(settings.database.get_secret_value()).reader() as db:
        db.execute("UPDATE page.session SET seen_at = seen_at - 1860, began_at = began_at - 1860")

    answer = browser.post(path, data=form)
    assert answer.status_code == 303
    asked = browser.get(answer.headers["location"])
    assert "What you typed is kept" in said(asked)
    query = parse_qs(urlsplit(answer.headers["location"]).query)
    went = sign_in(browser, next=query["next"][0])
    assert went.headers["location"] == path
    assert "typed before it lapsed" in browser.get(path).text


def signs_out(browser: httpx2.Client) -> None:
    cookie = browser.cookies["referrals"]
    form = browser.get("/sign-out")
    token = re.search(r'name="csrf" value="([^"]+)"', form.text)
    assert token
    assert browser.post("/sign-out", data={"csrf": token[1]}).status_code == 303
    browser.cookies.set("referrals", cookie, "127.0.0.1")
    for _ in range(2):
        assert browser.get("/outbox").status_code == 303, "on no machine is it of use any more"


def guesses(both: Sequence[Machine]) -> None:
    """They count together."""
    with browser_at(both) as stranger:
        answers = [sign_in(stranger, "al", "a wrong one, long enough") for _ in range(6)]
    assert [one.status_code for one in answers] == [*[422] * 5, 429]


def test_with_a_provider(settings: Settings, tmp_path: Path) -> None:
    with Provider() as provider:
        env = env_of(
            settings,
            "oidc",
            WEB_OIDC_ISSUER=provider.issuer,
            WEB_OIDC_CLIENT_ID=CLIENT,
            WEB_OIDC_CLIENT_SECRET=SECRET,
            WEB_DELIVER="false",
        )
        with machines(tmp_path, env) as both, browser_at(both) as browser:
            for _ in range(2):  # each machine may be the one that is come back to
                browser.cookies.clear()
                browser.get("/sign-in")
                away = browser.get("/sign-in/start?next=/outbox")
                back = httpx2.get(away.headers["location"], timeout=10).headers["location"]
                went = browser.get(back)
                assert (went.status_code, went.headers["location"]) == (303, "/outbox")
                assert browser.get(back).status_code == 403, "it is of use once"
                browser.get("/sign-in")
            walk(browser)
            assert "Jane Smith" in browser.get("/").text
            signs_out(browser)


def test_with_a_proxy_that_says_who_it_is(settings: Settings, tmp_path: Path) -> None:
    env = env_of(settings, "proxy", WEB_PROXY_SECRET="a long shared secret", WEB_DELIVER="false")
    told = {
        "X_Proxy_Secret": "a long shared secret",
        "X_Remote_User": "jane.smith",
        "X_Remote_Groups": "referrals-sender",
    }
    with machines(tmp_path, env) as both, browser_at(both, **told) as browser:
        walk(browser)
        with open_outbox(settings) as outbox:
            assert {one.actor for one in outbox.audit()} == {"jane.smith"}
    assert not list(tmp_path.glob("*/outbox/*.sqlite3*"))


# Faults


@pytest.fixture
def frail() -> Iterator[Server]:
    made = Server.make()
    yield made
    connections.close_idle()
    made.remove()


def test_what_was_answered_outlives_the_machine_and_the_database(
    frail: Server, tmp_path: Path
) -> None:
    settings = Settings(database=SecretStr(frail.url(frail.new_database())))
    add_account(settings, role=Role.SENDER)
    env = env_of(settings, "accounts", WEB_DELIVER="false")
    with machines(tmp_path, env) as both, browser_at(both) as browser:
        sign_in(browser)
        walker = walker_at(browser)
        walker.to_check(INTERVENTION)
        path = f"{walker.at}/case"
        form = {**walker.fill(path), "action": "save"}

        first, second = both
        saved = saves_until_killed(browser, first, path, form)
        with browser_at([second]) as left:
            left.cookies.update(browser.cookies)
            assert (
                f"typed {saved}" in left.get(path).text
                or f"typed {saved + 1}" in left.get(path).text
            )
            loses_the_database(frail, left, path, form)


def saves_until_killed(
    browser: httpx2.Client, machine: Machine, path: str, form: dict[str, Sequence[str] | str]
) -> int:
    """The number of the last form that was answered by a machine that is killed meanwhile."""
    answered = 0
    with browser_at([machine]) as before:
        before.cookies.update(browser.cookies)
        while True:
            if answered == _KILLED_AFTER:
                threading.Timer(0.01, machine.kill).start()  # somewhere within the next few
            try:
                typed = f"typed {answered + 1}"
                answer = before.post(path, data={**form, "incidents.1.what": typed})
            except httpx2.TransportError:
                break
            assert answer.status_code == 303, said(answer)
            answered += 1
    assert answered >= _KILLED_AFTER
    return answered


def loses_the_database(
    frail: Server, browser: httpx2.Client, path: str, form: dict[str, Sequence[str] | str]
) -> None:
    frail.stop("immediate")
    form = {**form, "incidents.1.what": "typed in the meantime"}
    for answer in (browser.get(path), browser.post(path, data=form)):
        assert (answer.status_code, answer.headers["content-type"][:9]) == (503, "text/html")
        assert "Referrals can’t be used just now" in said(answer)
        assert str(frail.folder) not in answer.text
    assert browser.get("/health/live").status_code == 200
    assert browser.get("/health/ready").status_code == 503

    frail.start()
    until = time.monotonic() + WITHIN_S
    while browser.get(path).status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert browser.post(path, data=form).status_code == 303, "the session and its form still count"
    assert "typed in the meantime" in browser.get(path).text
