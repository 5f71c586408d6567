"""Signing in and out, in each of the ways that `web.login` offers."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from joserfc.jwk import OctKey, RSAKey
from starlette.testclient import TestClient

from referrals.errors import ConfigurationError
from referrals.settings import Settings, WebSettings
from referrals.web.app import build_site
from referrals.web.throttle import ACCOUNT, ADDRESS, Allowance, wait_words
from tests.web.conftest import Clock, Serving, browsing, web_settings
from tests.web.provider import CLIENT, SECRET, Provider
from tests.web.signing import PASSWORD, add_account, csrf, post, said, sign_in

ADDRESS_SET = "https://referrals.council.example.com"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = web_settings(tmp_path, login="accounts")
    add_account(made)
    return made


@pytest.fixture
def browser(settings: Settings) -> Iterator[TestClient]:
    with browsing(settings) as opened:
        yield opened


# Accounts


def test_one_is_led_to_the_sign_in_page_and_from_there_to_where_one_wanted(
    browser: TestClient,
) -> None:
    answer = browser.get("/outbox?status=failed")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=%2Foutbox")
    form = browser.get(answer.headers["location"])
    assert 'name="next" value="/outbox"' in form.text
    assert 'autocomplete="username"' in form.text
    assert 'autocomplete="current-password"' in form.text

    answer = sign_in(browser, "Jane.SMITH ", next="/outbox")
    assert (answer.status_code, answer.headers["location"]) == (303, "/outbox")
    page = browser.get("/outbox")
    assert page.status_code == 200
    assert "jane.smith" in page.text
    assert browser.get("/sign-in").headers["location"] == "/"


@pytest.mark.parametrize(
    "wanted",
    ["//evil.example", "/\\evil.example", "https://evil.example/", "evil.example", "/%2f/evil",
     "/a\r\nX: y", "/\tevil", "/sign-out", "/sign-in", "/account", "/sign-in?next=/", "", "/é",
     "/outbox?x=//evil.example", "/outbox?", "/outbox?x=%0d%0a", "/outbox?x=y#z", "?x=y",
     "//evil.example?x=y", "/" + "a" * 300, "/a?" + "a" * 300, "javascript:alert(1)"],
)  # fmt: skip
def test_nobody_is_led_away_after_signing_in(browser: TestClient, wanted: str) -> None:
    assert sign_in(browser, next=wanted).headers["location"] == "/"


def test_what_is_missing_is_said_and_the_password_never_comes_back(browser: TestClient) -> None:
    answer = sign_in(browser, "", "")
    assert answer.status_code == 422
    assert "Enter your account name." in said(answer)
    assert "Enter your password." in said(answer)
    answer = sign_in(browser, "<script>x</script>", "a wrong one, CANARY")
    assert answer.status_code == 422
    assert "not right" in said(answer)
    assert "CANARY" not in answer.text
    assert "<script>x" not in answer.text
    assert "&lt;script&gt;x" in answer.text


def test_an_unknown_name_and_a_wrong_password_are_answered_alike(browser: TestClient) -> None:
    def told(name: str) -> tuple[int, str]:
        answer = sign_in(browser, name, "a wrong one, long enough")
        return answer.status_code, re.sub(r'value="[^"]*"', "", answer.text)

    assert told("jane.smith") == told("nobody")


def test_signing_in_gives_another_session_and_ends_the_one_before(
    browser: TestClient, settings: Settings
) -> None:
    """So a token that somebody planted is worth nothing (session fixation)."""
    browser.get("/sign-in")
    planted = browser.cookies["referrals"]
    sign_in(browser)
    first = browser.cookies["referrals"]
    assert first != planted

    with browsing(settings) as attacker:
        for token in (planted, "a-token-of-my-own"):
            attacker.cookies.set("referrals", token, "127.0.0.1")
            assert attacker.get("/outbox").status_code == 303
            attacker.get("/sign-in")
            assert attacker.cookies["referrals"] != "a-token-of-my-own"


def test_signing_in_again_ends_the_session_before(browser: TestClient, settings: Settings) -> None:
    form = csrf(browser.get("/sign-in"))
    sign_in(browser)
    first = browser.cookies["referrals"]
    own = csrf(browser.get("/account"))
    assert own != form, "forms from before are worth nothing either"
    browser.post("/sign-in", data={"csrf": own, "name": "jane.smith", "password": PASSWORD})
    assert browser.cookies["referrals"] != first
    with browsing(settings) as later:
        later.cookies.set("referrals", first, "127.0.0.1")
        assert later.get("/outbox").status_code == 303


def test_signing_out_asks_first_and_then_ends_it_for_good(
    browser: TestClient, settings: Settings
) -> None:
    sign_in(browser)
    token = browser.cookies["referrals"]
    assert "Do you want to sign out?" in said(browser.get("/sign-out"))
    assert browser.get("/outbox").status_code == 200, "looking at that page does nothing"

    answer = post(browser, "/sign-out", form="/sign-out")
    assert (answer.status_code, answer.headers["location"]) == (303, "/signed-out")
    assert answer.headers["clear-site-data"] == '"cache", "storage"'
    assert "You are signed out" in said(browser.get("/signed-out"))
    assert browser.get("/outbox").status_code == 303
    assert browser.get("/sign-out").headers["location"] == "/signed-out"
    with browsing(settings) as later:
        later.cookies.set("referrals", token, "127.0.0.1")
        assert later.get("/outbox").status_code == 303


def test_a_form_sent_after_the_session_ended_is_not_taken_and_it_is_said(
    browser: TestClient, clock: Clock
) -> None:
    sign_in(browser)
    token = csrf(browser.get("/account"))
    clock.pass_by(minutes=31)
    answer = browser.post("/referrals", data={"csrf": token})
    assert answer.status_code == 401
    assert "You were signed out" in said(answer)
    assert browser.get("/account").status_code == 303


def test_a_session_ends_after_its_longest_life_however_busy(
    browser: TestClient, clock: Clock
) -> None:
    sign_in(browser)
    for _ in range(29):
        clock.pass_by(minutes=20)
        assert browser.get("/account").status_code == 200
    clock.pass_by(minutes=21)
    assert browser.get("/account").status_code == 303


def test_one_changes_ones_own_password(browser: TestClient, settings: Settings) -> None:
    sign_in(browser)
    with browsing(settings) as elsewhere:
        sign_in(elsewhere)
        form = {"old": PASSWORD, "new": "troubled kettle nine"}
        answer = post(browser, "/account", form, "/account")
        assert answer.headers["location"] == "/account?changed"
        assert "was changed" in said(browser.get("/account?changed"))
        assert elsewhere.get("/account").status_code == 303, "the other sessions end"
        assert sign_in(elsewhere).status_code == 422
        assert sign_in(elsewhere, password="troubled kettle nine").status_code == 303


# Throttling


@pytest.mark.parametrize(
    ("count", "wait"), [(0, 0), (4, 0), (5, 2), (6, 4), (7, 8), (12, 256), (13, 300), (9**9, 300)]
)
def test_the_wait_doubles_up_to_its_longest(count: int, wait: int) -> None:
    assert ACCOUNT.wait(count) == timedelta(seconds=wait)
    assert ADDRESS.wait(count) <= timedelta(minutes=1)
    assert Allowance(0, timedelta(seconds=1), timedelta(hours=1)).wait(0) == timedelta(seconds=1)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 second"), (1.5, "2 seconds"), (50, "50 seconds"), (51, "1 minute"), (61, "2 minutes"),
     (300, "5 minutes")],
)  # fmt: skip
def test_the_wait_is_told_in_words_and_never_too_short(seconds: float, words: str) -> None:
    assert wait_words(timedelta(seconds=seconds)) == words


@pytest.mark.parametrize("name", ["jane.smith", "nobody"])
def test_guessing_gets_slower_and_says_how_long_to_wait(
    browser: TestClient, clock: Clock, name: str
) -> None:
    """For a name that nobody has as well, so that it tells nothing."""
    for _ in range(5):
        assert sign_in(browser, name, "a wrong one, long enough").status_code == 422
    answer = sign_in(browser, name, PASSWORD)
    assert answer.status_code == 429
    assert "Wait 2 seconds" in said(answer)
    clock.pass_by(seconds=2)
    assert sign_in(browser, name, "a wrong one, long enough").status_code == 422
    assert "Wait 4 seconds" in said(sign_in(browser, name, PASSWORD))
    clock.pass_by(seconds=4)
    assert sign_in(browser, name, PASSWORD).status_code == (303 if name == "jane.smith" else 422)


def test_a_right_password_forgets_the_wrong_ones(browser: TestClient, clock: Clock) -> None:
    for _ in range(3):
        for _ in range(4):
            sign_in(browser, password="a wrong one, long enough")
        assert sign_in(browser).status_code == 303
        browser.cookies.clear()


def test_a_colleague_is_not_locked_out_of_a_browser_that_they_used_before(
    browser: TestClient, settings: Settings, clock: Clock
) -> None:
    sign_in(browser)
    post(browser, "/sign-out", form="/sign-out")
    with browsing(settings) as attacker:
        for _ in range(20):
            sign_in(attacker, password="a wrong one, long enough")
        assert sign_in(attacker).status_code == 429
    assert sign_in(browser).status_code == 303
    with browsing(settings) as another:
        known = browser.cookies["referrals-known"]
        another.cookies.set("referrals-known", known, "127.0.0.1")
        for _ in range(5):
            sign_in(another, password="a wrong one, long enough")
        assert sign_in(another).status_code == 429, "but it is no way round"
        another.cookies.set("referrals-known", f"{known}0", "127.0.0.1")
        assert sign_in(another).status_code == 429
        assert sign_in(another, "nobody", "a wrong one, long enough").status_code == 422


def test_one_address_can_not_try_many_names(browser: TestClient, clock: Clock) -> None:
    for n in range(30):
        assert sign_in(browser, f"nobody{n}", "a wrong one, long enough").status_code == 422
    assert sign_in(browser, "nobody30", "a wrong one, long enough").status_code == 429
    clock.pass_by(seconds=2)
    assert sign_in(browser).status_code == 303, "and a right one does not clear it"
    browser.cookies.clear()
    clock.pass_by(seconds=1)
    assert sign_in(browser, "nobody31", "a wrong one, long enough").status_code == 422
    assert sign_in(browser, "nobody32", "a wrong one, long enough").status_code == 429


def test_behind_a_proxy_the_address_is_what_the_proxy_says_last(
    tmp_path: Path, clock: Clock
) -> None:
    settings = web_settings(tmp_path, login="accounts", address=ADDRESS_SET)
    with browsing(settings) as browser:

        def tried(number: int, forwarded: str) -> int:
            browser.headers["X-Forwarded-For"] = forwarded
            return sign_in(browser, f"nobody{number}", "a wrong one, long enough").status_code

        for n in range(30):
            assert tried(n, f"198.51.100.{n}, 203.0.113.9") == 422
        assert tried(30, "198.51.100.99, 203.0.113.9:4711") == 429, "its front part is anybody's"
        assert tried(31, "203.0.113.10") == 422
        for n in range(40, 70):
            assert tried(n, f"2001:db8:1:2::{n:x}") == 422
        assert tried(70, "2001:db8:1:2:ffff::1") == 429, "a whole /64 is one address"
        assert tried(71, "2001:db8:1:3::1") == 422


def test_attempts_at_once_are_all_counted(serving: Serving, settings: Settings) -> None:
    """Each is counted before its password is looked at."""
    page = serving(settings)
    statuses: list[int] = []

    def try_once() -> None:
        with httpx2.Client(base_url=page.base_url, timeout=30) as client:
            statuses.append(sign_in(client, password="a wrong one, long enough").status_code)

    threads = [threading.Thread(target=try_once) for _ in range(25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(statuses)) == [422, 429]
    assert statuses.count(422) == 5


# A proxy


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[TestClient]:
    settings = web_settings(tmp_path, login="proxy", proxy_secret="s3cret", address=ADDRESS_SET)
    with browsing(settings) as browser:
        yield browser


PROXY = {
    "X-Proxy-Secret": "s3cret",
    "X-Remote-User": "jane.smith",
    "X-Remote-Groups": "staff,referrals-sender;x",
}


def test_a_proxy_that_proves_itself_says_who_it_is(proxied: TestClient) -> None:
    page = proxied.get("/outbox", headers=PROXY)
    assert page.status_code == 200
    assert "jane.smith" in page.text
    assert proxied.get("/audit", headers=PROXY).status_code == 403
    boss = {**PROXY, "X-Remote-Groups": "Administrator"}
    assert proxied.get("/audit", headers=boss).status_code == 200
    assert proxied.get("/outbox").status_code == 403, "nothing is remembered of it"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("X-Remote-User", "jane.smith"), ("X-Remote-Groups", "administrator")],
        [("X-Proxy-Secret", ""), ("X-Remote-User", "jo"), ("X-Remote-Groups", "sender")],
        [("X-Proxy-Secret", "s3cre"), ("X-Remote-User", "jo"), ("X-Remote-Groups", "sender")],
        [("X-Proxy-Secret", "S3CRET"), ("X-Remote-User", "jo"), ("X-Remote-Groups", "sender")],
        [("X-Proxy-Secret", "é"), ("X-Remote-User", "jo"), ("X-Remote-Groups", "sender")],
        [("X-Proxy-Secret", "s3cret"), ("X-Proxy-Secret", "s3cret"), ("X-Remote-User", "jo"),
         ("X-Remote-Groups", "sender")],
        [("X-Proxy-Secret", "s3cret"), ("X-Remote-User", "jo"), ("X-Remote-User", "al"),
         ("X-Remote-Groups", "sender")],
        [("X-Proxy-Secret", "s3cret"), ("X-Remote-User", " "), ("X-Remote-Groups", "sender")],
        [("X-Proxy-Secret", "s3cret"), ("X-Remote-User", "j" * 201), ("X-Remote-Groups", "sender")],
        [("X-Proxy-Secret", "s3cret"), ("X-Remote-Groups", "sender")],
        [("X-Proxy-Secret", "s3cret"), ("X-Remote-User", "jo"), ("X-Remote-Groups", "sender"),
         ("X-Remote-Groups", "administrator")],
        [("X-Proxy-Secret", "s3cret"), ("X-Remote-User", "jo"), ("X-Remote-Groups", "senders")],
        [("X-Proxy-Secret", "s3cret"), ("X-Remote-User", "jo")],
    ],
)  # fmt: skip
def test_anything_less_than_that_is_nobody(
    proxied: TestClient, headers: list[tuple[str, str]]
) -> None:
    octets = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    answer = proxied.get("/outbox", headers=httpx2.Headers(octets))
    assert answer.status_code == 403
    assert "jane.smith" not in answer.text


def test_a_proxys_name_may_not_pass_for_a_tokens(proxied: TestClient) -> None:
    page = proxied.get("/outbox", headers={**PROXY, "X-Remote-User": "token:case-system"})
    assert "token:case-system" not in page.text
    assert "token.case-system" in page.text


def test_a_form_needs_its_token_behind_a_proxy_too(proxied: TestClient) -> None:
    assert proxied.post("/you", headers=PROXY, data={"name": "Jo"}).status_code == 403


# OpenID Connect


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as running:
        yield running


def oidc_settings(folder: Path, provider: Provider, **more: Any) -> Settings:
    return web_settings(
        folder,
        login="oidc",
        oidc_issuer=provider.issuer,
        oidc_client_id=CLIENT,
        **({"oidc_client_secret": SECRET} | more),
    )


@pytest.fixture
def oidc(tmp_path: Path, provider: Provider) -> Iterator[TestClient]:
    with browsing(oidc_settings(tmp_path, provider)) as opened:
        yield opened


def at_provider(url: str) -> str:
    """What the provider sends the browser back to."""
    answer = httpx2.get(url, timeout=10)
    assert answer.status_code == 302, answer.text
    return answer.headers["location"]


def come_back(browser: httpx2.Client, start: str = "/sign-in/start") -> httpx2.Response:
    away = browser.get(start, follow_redirects=False)
    assert away.status_code in (302, 303), said(away)
    return browser.get(at_provider(away.headers["location"]), follow_redirects=False)


def test_one_signs_in_at_the_provider_and_comes_back(oidc: TestClient, provider: Provider) -> None:
    page = oidc.get(oidc.get("/outbox").headers["location"])
    start = re.search(r'href="(/sign-in/start[^"]*)"', page.text)
    assert start
    before = oidc.cookies["referrals"]

    answer = come_back(oidc, start[1])
    assert (answer.status_code, answer.headers["location"]) == (303, "/outbox")
    assert oidc.cookies["referrals"] != before
    assert "Jane Smith" in oidc.get("/outbox").text
    assert oidc.get("/audit").status_code == 403, "a sender"
    [asked] = provider.asked
    assert asked["response_type"] == "code"
    assert asked["code_challenge_method"] == "S256"
    assert set(asked["scope"].split()) == {"openid", "profile", "email"}
    assert len(asked["state"]) >= 20
    assert len(asked["nonce"]) >= 20
    assert asked["redirect_uri"] == "http://127.0.0.1/sign-in/back"
    assert provider.refused == []


def test_over_sockets_alone(serving: Serving, tmp_path: Path, provider: Provider) -> None:
    """The real server, the provider's, and a browser that follows where it is led."""
    page = serving(oidc_settings(tmp_path, provider))
    answer = page.get("/sign-in/start?next=/outbox", follow_redirects=True)
    assert (answer.status_code, answer.url.path) == (200, "/outbox")
    assert "Jane Smith" in answer.text


def test_the_way_back_is_the_configured_address(tmp_path: Path, provider: Provider) -> None:
    with browsing(oidc_settings(tmp_path, provider, address=ADDRESS_SET)) as browser:
        away = browser.get("/sign-in/start")
        asked = parse_qs(urlsplit(away.headers["location"]).query)
        assert asked["redirect_uri"] == [f"{ADDRESS_SET}/sign-in/back"]
        assert come_back(browser).headers["location"] == "/"
        assert "__Host-referrals" in browser.cookies


def test_a_client_without_a_secret_proves_itself_by_pkce(
    tmp_path: Path, provider: Provider
) -> None:
    provider.secret = None
    with browsing(oidc_settings(tmp_path, provider, oidc_client_secret=None)) as browser:
        assert come_back(browser).headers["location"] == "/"


@pytest.mark.parametrize(
    ("faults", "why"),
    [
        ({"claims": {"nonce": "another"}}, "a nonce of another sign-in"),
        ({"claims": {"nonce": None}}, "no nonce"),
        ({"claims": {"iss": "https://evil.example"}}, "another issuer"),
        ({"claims": {"iss": None}}, "no issuer"),
        ({"claims": {"aud": "another-client"}}, "a token for another client"),
        ({"claims": {"aud": "another-client", "azp": CLIENT}}, "the same, with azp"),
        ({"claims": {"aud": None}}, "no audience"),
        ({"claims": {"aud": [CLIENT, "another"], "azp": "another"}}, "handed on by another"),
        ({"claims": {"exp": 1_000_000_000}}, "expired"),
        ({"claims": {"exp": None}}, "never expires"),
        ({"claims": {"iat": None}}, "no time"),
        ({"claims": {"nbf": 9_999_999_999}}, "not yet"),
        ({"claims": {"sub": None}}, "nobody"),
        ({"algorithm": "none"}, "unsigned"),
        ({"algorithm": "HS256", "key": OctKey.import_key(SECRET)}, "signed with what we know"),
        ({"key": RSAKey.generate_key(2048)}, "signed with another key"),
        ({"without_id_token": True}, "no ID token"),
        ({"back": {"state": "another"}}, "a state of another sign-in"),
        ({"back": {"code": "made-up"}}, "a code of nobody"),
        ({"back": {"iss": "https://evil.example"}}, "an answer of another provider"),
        ({"back": {"error": "access_denied"}}, "the provider says no"),
        ({"secret": "another"}, "our secret is not the provider's"),
        ({"metadata": {"issuer": "https://evil.example"}}, "metadata of another issuer"),
        ({"metadata": {"id_token_signing_alg_values_supported": ["none", "HS256"]}}, "no way"),
        ({"metadata": {"token_endpoint": "http://evil.example/token"}}, "an unprotected endpoint"),
    ],
)  # fmt: skip
def test_whatever_is_not_right_signs_nobody_in(
    oidc: TestClient, provider: Provider, faults: dict[str, Any], why: str, caplog: Any
) -> None:
    for name, value in faults.items():
        setattr(provider, name, value)
    answer = oidc.get("/sign-in/start")
    if answer.status_code == 302:
        answer = oidc.get(at_provider(answer.headers["location"]))

    assert answer.status_code in (403, 502), why
    assert "could not be signed in" in said(answer)
    assert oidc.get("/outbox").status_code == 303
    log = "\n".join(record.getMessage() for record in caplog.records)
    assert "A sign-in failed" in log
    assert "jane" not in log.lower()
    for name in ("claims", "back", "metadata"):
        setattr(provider, name, {})
    provider.algorithm, provider.key, provider.secret = "RS256", None, SECRET
    provider.without_id_token = False
    assert come_back(oidc).headers["location"] == "/", "and it goes on once all is well"


def test_the_way_back_is_of_use_once(oidc: TestClient, tmp_path: Path, provider: Provider) -> None:
    back = at_provider(oidc.get("/sign-in/start").headers["location"])
    with browsing(oidc_settings(tmp_path, provider)) as another:
        assert another.get(back).status_code == 403, "nor of any use in another browser"
        another.get("/sign-in/start")
        assert another.get(back).status_code == 403
    assert oidc.get(back).headers["location"] == "/"
    post(oidc, "/sign-out", form="/sign-out")
    assert oidc.get(back).status_code == 403
    away = oidc.get("/sign-in/start")
    code = parse_qs(urlsplit(back).query)["code"][0]
    provider.back = {"code": code}
    answer = oidc.get(at_provider(away.headers["location"]))
    assert answer.status_code == 403, "a code that was used before"
    assert "code" in provider.refused


def test_a_beginning_is_of_use_for_one_attempt(oidc: TestClient, provider: Provider) -> None:
    back = at_provider(oidc.get("/sign-in/start").headers["location"])
    assert oidc.get(re.sub(r"code=[^&]*", "code=guessed", back)).status_code == 403
    assert oidc.get(back).status_code == 403


def test_one_who_takes_too_long_begins_anew(oidc: TestClient, clock: Clock) -> None:
    back = at_provider(oidc.get("/sign-in/start").headers["location"])
    clock.pass_by(minutes=10)
    assert oidc.get(back).status_code == 403


@pytest.mark.parametrize("roles", [None, [], ["staff"], "staff", 7, {"sender": True}, ["sender "]])
def test_without_a_role_one_is_told_so(oidc: TestClient, provider: Provider, roles: Any) -> None:
    provider.claims["roles"] = roles
    answer = come_back(oidc)
    if roles == ["sender "]:
        assert answer.status_code == 303
        return
    assert answer.status_code == 403
    assert "You have no access yet" in said(answer)
    assert oidc.get("/outbox").status_code == 303


@pytest.mark.parametrize(
    "roles", ["administrator", "staff referrals-administrator", ["/referrals-administrator"]]
)
def test_roles_come_in_the_ways_that_providers_have(
    oidc: TestClient, provider: Provider, roles: Any
) -> None:
    provider.claims["roles"] = roles
    come_back(oidc)
    assert oidc.get("/audit").status_code == 200


def test_another_claim_may_hold_the_roles(tmp_path: Path, provider: Provider) -> None:
    settings = oidc_settings(tmp_path, provider, oidc_roles_claim="groups")
    provider.claims |= {"roles": ["administrator"], "groups": ["referrer"]}
    with browsing(settings) as browser:
        come_back(browser)
        assert browser.get("/audit").status_code == 403
        assert browser.get("/outbox").status_code == 200


def test_a_name_that_people_choose_themselves_opens_nobody_elses_work(
    tmp_path: Path, provider: Provider
) -> None:
    """`sub` alone is unique (Core §5.7)."""
    settings = oidc_settings(tmp_path, provider)
    for sub in ("1", "2"):
        provider.claims |= {"sub": sub, "name": None}
        with browsing(settings) as browser:
            come_back(browser)
            assert "jane.smith" in browser.get("/outbox").text
    with closing(sqlite3.connect(settings.outbox / "web.sqlite3")) as connection:
        names = {name for (name,) in connection.execute("SELECT user FROM session")}
    assert len(names) == 2
    assert all(name.startswith("jane.smith#") for name in names)


def test_the_provider_is_asked_about_itself_once_an_hour(
    oidc: TestClient, provider: Provider
) -> None:
    for _ in range(3):
        come_back(oidc)
        post(oidc, "/sign-out", form="/sign-out")
    assert provider.requests.count("/.well-known/openid-configuration") == 1
    assert provider.requests.count("/jwks") == 1


def test_a_new_key_of_the_provider_is_fetched(oidc: TestClient, provider: Provider) -> None:
    come_back(oidc)
    post(oidc, "/sign-out", form="/sign-out")
    provider.turn_key()
    assert come_back(oidc).headers["location"] == "/"


def test_without_the_provider_it_is_said_and_the_page_goes_on(
    tmp_path: Path, provider: Provider
) -> None:
    settings = oidc_settings(tmp_path, provider)
    settings = settings.model_copy(
        update={"web": settings.web.model_copy(update={"oidc_issuer": "http://127.0.0.1:9"})}
    )
    with browsing(settings) as browser:
        answer = browser.get("/sign-in/start")
        assert answer.status_code == 502
        assert "could not be signed in" in said(answer)
        assert browser.get("/sign-in").status_code == 200


def test_signing_out_offers_the_provider_as_well(oidc: TestClient, provider: Provider) -> None:
    come_back(oidc)
    post(oidc, "/sign-out", form="/sign-out")
    assert "/sign-out/everywhere" in oidc.get("/signed-out").text
    away = urlsplit(oidc.get("/sign-out/everywhere").headers["location"])
    assert f"{away.scheme}://{away.netloc}{away.path}" == f"{provider.issuer}/end"
    assert parse_qs(away.query) == {
        "client_id": [CLIENT],
        "post_logout_redirect_uri": ["http://127.0.0.1/signed-out"],
    }


def test_an_unprotected_issuer_is_refused_at_the_start(tmp_path: Path) -> None:
    web = WebSettings(login="oidc", oidc_issuer="http://login.example.com", oidc_client_id=CLIENT)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="https"):
        build_site(Settings(outbox=tmp_path, web=web))
