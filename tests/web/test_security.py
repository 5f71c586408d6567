"""What somebody tries who means harm, over real sockets where it matters: the real `serve`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount, Route
from starlette.testclient import TestClient

from referrals.bootstrap import now, open_outbox
from referrals.directory import Directory
from referrals.samples import sample_case
from referrals.settings import RelaySettings, Security, Settings, WebSettings
from referrals.sink import Sink
from referrals.web.accounts import Accounts
from referrals.web.app import build_app, build_site
from referrals.web.site import Role
from referrals.web.store import open_store
from tests.e2e.conftest import REFERRALS, Beside
from tests.web.conftest import Serving, browsing, web_settings
from tests.web.signing import PASSWORD, add_account, csrf, post, said, sign_in
from tests.web.walking import Walker

CHOSEN = ("mediation", "victim-hardening")
WORD = "zqcanaryzq"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return web_settings(tmp_path, login="accounts")


# Who may come in: every route there is


def routes_of(app: Any) -> Iterator[tuple[str, str]]:
    """Method and path of each."""
    while not isinstance(app, Starlette):
        app = app._app

    def walk(routes: list[BaseRoute], before: str) -> Iterator[tuple[str, str]]:
        for route in routes:
            if isinstance(route, Mount):
                yield from walk(list(route.routes), before + route.path)
            elif isinstance(route, Route):
                for method in sorted(route.methods or ()):
                    yield method, before + route.path
            else:
                pytest.fail(f"what is {route}?")

    yield from walk(app.routes, "")


def filled(path: str) -> str:
    return re.sub(r"{[^}]+}", "x", path)


OPEN = {
    "/static/{name:path}",
    "/help",
    "/api/openapi.json",
    "/health/live",
    "/health/ready",
    "/metrics",  # which looks at the peer and the token itself
    "/sign-in",
    "/sign-in/start",
    "/sign-in/back",
    "/sign-out",
    "/sign-out/everywhere",
    "/signed-out",
}


@pytest.mark.parametrize(
    "web",
    [
        {"login": "accounts"},
        {"login": "oidc", "oidc_issuer": "https://127.0.0.1:9", "oidc_client_id": "x"},
        {"login": "proxy", "proxy_secret": "s3cret"},
    ],
)
def test_without_signing_in_no_route_is_open_but_the_named(
    tmp_path: Path, web: dict[str, Any]
) -> None:
    settings = web_settings(tmp_path, **web)
    app = build_app(build_site(settings))
    found = list(routes_of(app))
    assert len(found) > 100, "or this proves nothing"
    closed = 0
    with TestClient(app, "http://127.0.0.1", follow_redirects=False) as stranger:
        for method, path in found:
            if path in OPEN:
                continue
            answer = stranger.request(method, filled(path))
            told = f"{method} {path} answers {answer.status_code}"
            if path.startswith("/api/"):
                assert answer.status_code == 401, told
            elif web["login"] == "proxy":
                assert answer.status_code == 403, told
            elif method in ("GET", "HEAD"):
                assert answer.status_code == 303, told
                assert answer.headers["location"].startswith("/sign-in?next=") or path == "/", told
            else:
                assert answer.status_code in (401, 403), told
            closed += 1
    assert closed > 90


def test_no_form_is_taken_without_its_token_whoever_sends_it(settings: Settings) -> None:
    """Neither without one, nor with another session's, for an administrator who may do it all."""
    add_account(settings)
    app = build_app(build_site(settings))
    posts = [path for method, path in routes_of(app) if method == "POST" and "/api/" not in path]
    assert len(posts) > 25
    with browsing(settings) as stranger:
        foreign = csrf(stranger.get("/sign-in"))
    with TestClient(app, "http://127.0.0.1", follow_redirects=False) as browser:
        sign_in(browser)
        own = csrf(browser.get("/account"))
        for path in posts:
            for token in ({}, {"csrf": ""}, {"csrf": foreign}, {"csrf": own[:-1]}):
                answer = browser.post(filled(path), data=token)
                assert answer.status_code == 403, path
                assert "open for too long" in said(answer), path
            answer = browser.post(filled(path), params={"csrf": own})
            assert answer.status_code == 403, f"{path}: a token in the address counts for nothing"
            upload = {"csrf": ("csrf", own.encode(), "text/plain")}
            assert browser.post(filled(path), files=upload).status_code in (400, 403), path


@pytest.mark.parametrize(
    ("role", "closed"),
    [
        (Role.REFERRER, {"/accounts", "/accounts/new", "/audit", "/audit/audit.csv"}),
        (Role.SENDER, {"/accounts", "/accounts/new", "/audit", "/audit/audit.csv"}),
        (Role.ADMINISTRATOR, set()),
    ],
)
def test_what_each_role_may_look_at(settings: Settings, role: Role, closed: set[str]) -> None:
    add_account(settings, "jo", role)
    paths = {"/accounts", "/accounts/new", "/audit", "/audit/audit.csv", "/outbox", "/directory"}
    with browsing(settings) as browser:
        sign_in(browser, "jo")
        assert {path for path in paths if browser.get(path).status_code == 403} == closed


@pytest.mark.parametrize(
    ("path", "needed"),
    [
        ("/outbox/x/retry", Role.SENDER),
        ("/outbox/x/cancel", Role.SENDER),
        ("/outbox/x/answered", Role.SENDER),
        ("/batch/x/submit", Role.SENDER),
        ("/referrals/x/submit", Role.SENDER),
        ("/directory/x/verify", Role.ADMINISTRATOR),
        ("/directory/x/withdraw", Role.ADMINISTRATOR),
        ("/accounts/new", Role.ADMINISTRATOR),
        ("/accounts/x/role", Role.ADMINISTRATOR),
        ("/accounts/x/password", Role.ADMINISTRATOR),
        ("/accounts/x/disable", Role.ADMINISTRATOR),
        ("/accounts/x/enable", Role.ADMINISTRATOR),
        ("/accounts/x/remove", Role.ADMINISTRATOR),
    ],
)
def test_what_each_role_may_do(settings: Settings, path: str, needed: Role) -> None:
    """With a good token, so that it is the role that says no."""
    add_account(settings)
    for role in Role:
        name = f"a{role}"
        add_account(settings, name, role)
        with browsing(settings) as browser:
            sign_in(browser, name)
            answer = post(browser, path, {"role": "administrator"}, "/account")
        ranks = list(Role)
        may = ranks.index(role) >= ranks.index(needed)
        assert (answer.status_code != 403) is may, (role, answer.status_code)


def test_nobody_makes_themselves_an_administrator(settings: Settings) -> None:
    add_account(settings)
    add_account(settings, "jo", Role.SENDER)
    with browsing(settings) as browser:
        sign_in(browser, "jo", role="administrator", roles="administrator", user="jane.smith")
        form = {"old": PASSWORD, "new": "troubled kettle nine", "role": "administrator",
                "name": "jane.smith", "id": "x", "must_change": "0"}  # fmt: skip
        post(browser, "/account", form, "/account")
        assert browser.get("/accounts").status_code == 403
        assert "jo" in said(browser.get("/account"))
    store = open_store(settings)
    assert Accounts(store).check("jane.smith", PASSWORD, now()), "and hers is as it was"
    store.close()


# Markup


HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}",
    "' onmouseover='alert(1)",
    "</title><script>alert(1)</script>",
    "javascript:alert(1)",
)  # fmt: skip


@pytest.mark.parametrize("typed", HOSTILE)
def test_what_is_typed_is_never_markup(settings: Settings, typed: str) -> None:
    add_account(settings)
    with browsing(settings) as browser:
        pages = [
            sign_in(browser, typed, typed, next=typed),
            browser.get("/sign-in", params={"next": typed}),
            browser.get("/nowhere/" + typed.replace("/", "")),
        ]
        sign_in(browser)
        pages += [
            post(browser, "/accounts/new", {"name": typed, "role": typed}, "/accounts/new"),
            post(browser, "/account", {"old": typed, "new": typed}, "/account"),
            browser.get("/accounts", params={"done": typed}),
        ]
    for page in pages:
        assert "<script>alert" not in page.text
        assert "onerror=alert(1)>" not in page.text
        assert "' onmouseover='" not in page.text
        assert 'href="javascript:' not in page.text
        assert "49" not in said(page)


def test_no_page_has_a_script_a_style_or_a_handler_within(settings: Settings) -> None:
    account = add_account(settings)
    paths = ["/sign-in", "/account", "/accounts", "/accounts/new", f"/accounts/{account.id}",
             f"/accounts/{account.id}/remove", "/sign-out", "/nowhere"]  # fmt: skip
    with browsing(settings) as browser:
        pages = [browser.get("/sign-in").text]
        sign_in(browser)
        pages += [browser.get(path).text for path in paths]
    for page in pages:
        assert not re.search(r"<script(?![^>]* src=)", page)
        assert not re.search(r"<style|\sstyle=", page)
        assert not re.search(r"<[^>]*\son\w+=", page)
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', page)


# Over sockets


def test_brute_force_is_slowed_down_and_the_page_answers_others(
    serving: Serving, settings: Settings
) -> None:
    add_account(settings)
    page = serving(settings)
    statuses: list[int] = []

    def guess(number: int) -> None:
        with httpx2.Client(base_url=page.base_url, timeout=30) as client:
            for n in range(10):
                guessed = f"a wrong guess {number} {n}"
                statuses.append(sign_in(client, password=guessed).status_code)

    threads = [threading.Thread(target=guess, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    assert page.get("/health/live").status_code == 200
    for thread in threads:
        thread.join()
    assert set(statuses) == {422, 429}
    assert statuses.count(422) <= 8, "five at once, and then one after each wait"


def test_a_location_holds_no_line_of_an_attackers(serving: Serving, settings: Settings) -> None:
    page = serving(settings)
    for path in ("/outbox/x%0d%0aSet-Cookie:%20a=b", "/sign-in?next=/x%0d%0aSet-Cookie:%20a=b"):
        answer = page.get(path)
        assert "a=b" not in str(answer.headers.get_list("set-cookie"))
    answer = post(page, "/sign-in", {"name": "x\r\nSet-Cookie: a=b", "next": "/x\r\nA: b"})
    assert "a" not in dict(answer.headers)


@contextmanager
def served(folder: Path, **env: str) -> Iterator[tuple[str, Path]]:
    """`referrals serve` as a process of its own: its address, and a file with all that it says."""
    said_in = folder / "said.txt"
    variables = {f"REFERRALS_{name}": value for name, value in env.items()}
    variables["PYTHONASYNCIODEBUG"] = "1"
    with said_in.open("wb") as sink:
        process = subprocess.Popen(
            [*REFERRALS, "serve", "--port", "0"],
            cwd=folder,
            env={**os.environ, **variables, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        until = time.monotonic() + 30
        found = None
        while found is None:
            assert process.poll() is None, said_in.read_text()
            assert time.monotonic() < until, "it never said where"
            time.sleep(0.05)
            found = re.search(r"http://\S+:\d+", said_in.read_text())
        yield found[0], said_in
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


FORGED = {
    "to": "evil@example.org",
    "cc": "evil@example.org",
    "bcc": "evil@example.org",
    "recipient": "evil@example.org",
    "recipients": "evil@example.org",
    "address": "evil@example.org",
    "agency": "evil",
    "agency.email": "evil@example.org",
    "agency_id": "evil",
    "email": "evil@example.org",
    "envelope": "evil@example.org",
    "route": "evil",
    "sender": "evil@example.org",
    "reply_to": "evil@example.org",
    "subject": "evil",
    "headers": "Bcc: evil@example.org",
    "answers.mediation.to": "evil@example.org",
    "answers.victim-hardening.agency": "evil@example.org",
    "case.agency": "evil@example.org",
    "user": "evil",
    "owner": "evil",
    "actor": "evil",
    "__class__": "evil",
}


class Forger(httpx2.Client):
    """A browser that adds to every form, and to every address, what nobody asked for."""

    def __init__(self, address: str) -> None:
        super().__init__(base_url=address, timeout=30)
        self.urls: list[str] = []
        self.headers_seen: list[str] = []

    def request(self, method: str, url: Any, **more: Any) -> httpx2.Response:
        if method == "POST" and isinstance(more.get("data"), dict):
            more["data"] = {**FORGED, **more["data"]}
            if "?" not in url:
                more["params"] = {"to": "evil@example.org", "agency": "evil"}
        answer = super().request(method, url, **more)
        self.urls.append(str(answer.url))
        self.headers_seen.append(str(answer.headers))
        return answer


def marked(directory: Directory) -> dict[str, Any]:
    """A case whose every free text has a word that may be nowhere but in letters and pages."""
    case = sample_case(directory, CHOSEN, date.today())  # noqa: DTZ011
    case["referrer"] |= {"name": f"Sam {WORD}", "role": f"Officer {WORD}"}
    for incident in case["incidents"]:
        incident["what"] = f"{WORD}. {incident['what']}"
    for person in case["people"].values():
        person["name"] = f"{WORD} {person['name']}"
        person["address"] = f"{WORD}, 10 Example Street"
        person["safe_contact"]["method"] += f" {WORD}"
    case["answers"]["mediation"]["dispute"] += f" {WORD}"
    case["answers"]["mediation"]["hopes"] += f" {WORD}"
    return case


def test_no_request_changes_the_recipient_and_nothing_personal_leaves_the_letter(
    tmp_path: Path, directory: Directory
) -> None:
    """The whole way in a process of its own, to a relay, with forged fields in every form."""
    outbox = tmp_path / "outbox"
    with Beside(Sink()) as sink:
        env = {
            "OUTBOX": str(outbox),
            "WEB_LOGIN": "accounts",
            "RELAY_HOST": "127.0.0.1",
            "RELAY_PORT": str(sink.port),
            "RELAY_SECURITY": "none",
        }
        relay = RelaySettings(host="127.0.0.1", port=sink.port, security=Security.NONE)
        settings = Settings(outbox=outbox, relay=relay, web=WebSettings(login="accounts"))  # type: ignore[arg-type]
        add_account(settings, "jo", Role.SENDER)
        with served(tmp_path, **env) as (address, said_in), Forger(address) as browser:
            assert sign_in(browser, WORD, f"{WORD} {WORD}").status_code == 422
            assert sign_in(browser, "jo").status_code == 303
            browser.get(f"/nowhere/{WORD}")
            browser.post("/you", data={"name": WORD})
            walker = Walker.with_case(cast(TestClient, browser), marked(directory))
            walker.to_check(*CHOSEN)
            for chosen in CHOSEN:
                assert WORD in walker.get(f"{walker.at}/preview/{chosen}").text
            archive = browser.get(f"{walker.at}/drafts.zip")
            assert archive.status_code == 200
            assert walker.submit(*CHOSEN).headers["location"].endswith("/done")
            walker.get(f"{walker.at}/done")
            until = time.monotonic() + 20
            while len(sink.arrived) < len(CHOSEN) and time.monotonic() < until:
                time.sleep(0.05)
        log = said_in.read_text()
        arrived = list(sink.arrived)

    wanted = {
        "community@nottinghamcityhomes.org.uk",
        "admin@nottsvictimcare.org.uk",
    }
    assert {tuple(one.recipients) for one in arrived} == {(address,) for address in wanted}
    for one in arrived:
        assert b"evil" not in one.content
        message = message_from_bytes(one.content, policy=default)
        assert [str(to) in wanted for to in message.get_all("To", [])] == [True]
        assert not set(message.keys()) & {"Cc", "Bcc"}
        assert WORD not in str(message["Subject"])
    with open_outbox(settings) as opened:
        audit = [(one.actor, one.action, one.facts) for one in opened.audit()]
        assert {one.recipient for one in opened.held()} == wanted
    queued = [actor for actor, action, _ in audit if action == "queued"]
    assert queued == ["jo", "jo"], "and it was that user who did it"
    assert WORD not in str(audit)
    own = [url for url in browser.urls if "nowhere" not in url]
    assert WORD not in "".join(own)
    assert WORD not in "".join(browser.headers_seen)
    assert WORD not in log
    assert "Traceback" not in log
    assert WORD not in "".join(str(path) for path in tmp_path.rglob("*"))


def test_the_log_of_a_fault_holds_nothing_personal(
    serving: Serving, settings: Settings, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Not even if what fails has it in its text."""
    add_account(settings)

    def fail(self: object, *typed: object) -> None:
        raise ValueError(f"{typed}")

    page = serving(settings)
    monkeypatch.setattr("referrals.web.accounts.Accounts.check", fail)
    answer = sign_in(page, WORD, f"{WORD} {WORD}")
    assert answer.status_code == 500
    assert WORD not in answer.text
    monkeypatch.undo()
    said_of_it = capfd.readouterr()
    log = caplog.text + said_of_it.out + said_of_it.err
    assert "ValueError at " in log
    assert WORD not in log
    assert "Traceback" not in log
