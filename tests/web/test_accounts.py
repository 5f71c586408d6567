"""Accounts: what a name and a password may be, who is let in, and how they are looked after."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from starlette.testclient import TestClient

from referrals.bootstrap import now, open_outbox
from referrals.settings import Settings
from referrals.web.accounts import AccountError, Accounts, as_name
from referrals.web.passwords import Hashes, as_password, one_time_password, problem_with
from referrals.web.site import Role
from referrals.web.store import Store, open_store
from tests.conftest import NOW
from tests.e2e.conftest import Command
from tests.web.conftest import browsing, web_settings
from tests.web.signing import PASSWORD, add_account, post, said, sign_in
from tests.web.stores import octets


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return web_settings(tmp_path, login="accounts")


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    opened = open_store(settings)
    yield opened
    opened.close()


@pytest.fixture
def accounts(store: Store) -> Accounts:
    return Accounts(store)


# Names and passwords


@pytest.mark.parametrize(
    "typed", ["Jane.Smith", " jane.smith ", "JANE.SMITH", "ｊａｎｅ．ｓｍｉｔｈ", "Jane.\u017fmith"]
)
def test_a_name_is_the_same_however_it_is_typed(typed: str) -> None:
    """Full-width letters, and the long s that folds into one."""
    assert as_name(typed) == "jane.smith"


@pytest.mark.parametrize(
    "typed",
    ["", " ", "a" * 61, "a b", "-jo", ".jo", "@jo", "jo:x", "jo/x", "jo\n", "jo\r\nX: y", "jo\0",
     "<script>", "jo\u202e", "jo,al", "'jo'", "token:x", "\ufdfa"],
)  # fmt: skip
def test_a_name_that_could_be_taken_for_something_else_is_refused(typed: str) -> None:
    with pytest.raises(AccountError) as caught:
        as_name(typed if typed != "jo\n" else "jo\nx")
    assert not typed.strip() or len(typed) < 3 or typed not in str(caught.value)


def test_a_name_has_sixty_characters_at_most() -> None:
    assert len(as_name("a" * 60)) == 60


@pytest.mark.parametrize(
    "typed",
    ["purple otter lamp", "tablefishwindow", "K7QM-29TX-WCF4-HJ3P", "пароль очень длинный",
     "correct horse battery", "a1!b2?c3$d4%", "smithsonian oak tree"],
)  # fmt: skip
def test_a_long_password_that_somebody_thought_of_will_do(typed: str) -> None:
    """Nobody is made to use digits or signs."""
    assert problem_with(as_password(typed), "jane.smith") is None


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("", "12 characters"),
        ("elevenchars", "12 characters"),
        ("o" * 201, "200 characters"),
        ("password1234", "easy to guess"),
        ("P@ssw0rd1234", "easy to guess"),
        ("Nottingham2026!", "easy to guess"),
        ("qwertyuiop12", "easy to guess"),
        ("1qaz2wsx3edc", "easy to guess"),
        ("123456789012", "easy to guess"),
        ("210987654321", "easy to guess"),
        ("aaaaaaaaaaaa", "easy to guess"),
        ("abcabcabcabc", "easy to guess"),
        ("liverpool123", "easy to guess"),
        ("referrals referrals", "easy to guess"),
        ("jane.smith2026", "account’s name"),
        ("SmithJane!1985", "account’s name"),
        ("otter\tpurple lamp", "can’t be typed"),
    ],
)
def test_a_short_or_common_password_is_refused(typed: str, why: str) -> None:
    problem = problem_with(as_password(typed), "jane.smith")
    assert problem is not None
    assert why in problem
    assert not typed or typed not in problem


def test_a_one_time_password_is_fit_and_never_the_same() -> None:
    made = {one_time_password() for _ in range(50)}
    assert len(made) == 50
    assert all(problem_with(one, "jane.smith") is None for one in made)
    assert all(re.fullmatch(r"[C-Z234679]{4}(-[C-Z234679]{4}){3}", one) for one in made)


@pytest.mark.usefixtures("genuine_hashes")
def test_a_password_is_kept_as_argon2id_alone(accounts: Accounts, store: Store) -> None:
    accounts.add("jo", PASSWORD, Role.SENDER, NOW, must_change=False)

    whole = octets(store)
    assert PASSWORD.encode() not in whole
    assert b"$argon2id$v=19$m=65536,t=3,p=4$" in whole


def test_the_same_password_typed_on_another_keyboard_fits(accounts: Accounts) -> None:
    accounts.add("jo", "caf\u00e9 purple lamp", Role.SENDER, NOW, must_change=False)
    assert accounts.check("jo", "cafe\u0301 purple lamp", NOW)


@pytest.mark.usefixtures("genuine_hashes")
def test_a_hash_with_old_parameters_is_made_anew_at_the_next_sign_in(
    accounts: Accounts, store: Store
) -> None:
    accounts.add("jo", PASSWORD, Role.SENDER, NOW, must_change=False)
    old = PasswordHasher(time_cost=1, memory_cost=8_192).hash(PASSWORD)
    with store.writing() as connection:
        connection.execute("UPDATE account SET password = ?", (old,))

    assert accounts.check("jo", "something else altogether", NOW) is None
    assert _kept(store) == old
    assert accounts.check("jo", PASSWORD, NOW)
    assert _kept(store) != old
    assert not Hashes().is_old(_kept(store))
    assert accounts.check("jo", PASSWORD, NOW)


def _kept(store: Store) -> str:
    with store.reading() as connection:
        return str(connection.execute("SELECT password FROM account").fetchone()["password"])


def test_an_unknown_name_is_verified_too_so_that_time_tells_nothing(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted rather than timed."""
    accounts.add("jo", PASSWORD, Role.SENDER, NOW, must_change=False)
    accounts.add("al", PASSWORD, Role.SENDER, NOW, must_change=False)
    accounts.add("boss", PASSWORD, Role.ADMINISTRATOR, NOW, must_change=False)
    accounts.set_disabled("al", True)
    verified = []
    genuine = PasswordHasher.verify

    def verify(self: PasswordHasher, hashed: str, password: str) -> bool:
        verified.append(re.findall(r"m=\d+,t=\d+,p=\d+", hashed))
        return bool(genuine(self, hashed, password))

    monkeypatch.setattr(PasswordHasher, "verify", verify)
    for name in ("jo", "nobody", "al", ""):
        assert accounts.check(name, "wrong and long enough", NOW) is None
    assert accounts.check("al", PASSWORD, NOW) is None, "disabled"
    assert accounts.check("nobody", PASSWORD, NOW) is None
    assert len(verified) == 6
    assert len({str(one) for one in verified}) == 1


def test_there_is_always_an_administrator_once_there_was_one(accounts: Accounts) -> None:
    accounts.add("jo", PASSWORD, Role.SENDER, NOW, must_change=False)
    accounts.set_role("jo", Role.REFERRER)
    accounts.add("boss", PASSWORD, Role.ADMINISTRATOR, NOW, must_change=False)
    with pytest.raises(AccountError, match="only administrator"):
        accounts.remove("boss")
    with pytest.raises(AccountError, match="only administrator"):
        accounts.set_disabled("boss", True)
    with pytest.raises(AccountError, match="only administrator"):
        accounts.set_role("boss", Role.SENDER)
    assert accounts.named("boss")
    accounts.set_role("jo", Role.ADMINISTRATOR)
    accounts.remove("boss")
    assert [one.name for one in accounts.all()] == ["jo"]


def test_a_name_is_given_once(accounts: Accounts) -> None:
    accounts.add("jo", PASSWORD, Role.SENDER, NOW, must_change=False)
    with pytest.raises(AccountError, match="already"):
        accounts.add("jo", PASSWORD, Role.SENDER, NOW, must_change=False)
    with pytest.raises(AccountError, match="no such"):
        accounts.set_role("al", Role.SENDER)


def test_a_removed_accounts_unfinished_referrals_are_not_its_successors(
    accounts: Accounts, store: Store
) -> None:
    accounts.add("jo", PASSWORD, Role.SENDER, NOW, must_change=False)
    store.save("referral", "jo", {"name": "x"}, NOW, timedelta(hours=1))
    accounts.remove("jo")
    accounts.add("jo", PASSWORD, Role.SENDER, NOW, must_change=False)
    assert store.listed("referral", "jo", NOW) == []


# The pages


@pytest.fixture
def boss(settings: Settings) -> Iterator[TestClient]:
    """An administrator's browser."""
    add_account(settings)
    with browsing(settings) as browser:
        assert sign_in(browser).status_code == 303
        yield browser


def _audited(settings: Settings) -> list[tuple[str, str, dict[str, str]]]:
    with open_outbox(settings) as outbox:
        return [(one.actor, one.action, dict(one.detail)) for one in outbox.audit()]


def _id(settings: Settings, name: str) -> str:
    store = open_store(settings)
    try:
        account = Accounts(store).named(name)
    finally:
        store.close()
    assert account
    return account.id


def _one_time(answer: object) -> str:
    found = re.search(r"[A-Z0-9]{4}(-[A-Z0-9]{4}){3}", getattr(answer, "text", ""))
    assert found
    return found[0]


def test_an_account_is_added_with_a_password_that_is_changed_at_the_first_sign_in(
    boss: TestClient, settings: Settings
) -> None:
    answer = post(boss, "/accounts/new", {"name": "P.Jones", "role": "sender"}, "/accounts/new")
    once = _one_time(answer)
    assert answer.headers["cache-control"] == "no-store"
    assert once not in boss.get("/accounts").text
    assert _audited(settings) == [
        ("jane.smith", "account added", {"account": "p.jones", "role": "sender"})
    ]

    with browsing(settings) as browser:
        assert sign_in(browser, "p.jones", once).headers["location"] == "/account"
        for path in ("/", "/outbox", "/you"):
            assert browser.get(path).headers["location"] == "/account", "before anything else"
        form = {"old": once, "new": once}
        assert "not the one" in said(post(browser, "/account", form, "/account"))
        form["new"] = "password1234"
        assert "easy to guess" in said(post(browser, "/account", form, "/account"))
        form |= {"old": "wrong", "new": "troubled kettle nine"}
        assert "not the password that you have" in said(post(browser, "/account", form, "/account"))
        form["old"] = once
        before = browser.cookies["referrals"]
        assert post(browser, "/account", form, "/account").headers["location"] == "/"
        assert browser.cookies["referrals"] != before
        assert browser.get("/outbox").status_code == 200
        assert browser.get("/accounts").status_code == 403, "a sender keeps no accounts"
        assert sign_in_elsewhere(settings, "p.jones", once) == 422
        assert sign_in_elsewhere(settings, "p.jones", "troubled kettle nine") == 303


def sign_in_elsewhere(settings: Settings, name: str, password: str) -> int:
    with browsing(settings) as browser:
        return sign_in(browser, name, password).status_code


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ({}, ["An account needs a name.", "Choose what"]),
        ({"name": "a b", "role": "sender"}, ["letters, digits"]),
        ({"name": "jane.SMITH", "role": "sender"}, ["already"]),
        ({"name": "al", "role": "owner"}, ["Choose what"]),
        ({"name": "<b>al", "role": "sender"}, ["letters, digits"]),
    ],
)
def test_all_that_is_wrong_with_a_new_account_is_said_at_once(
    boss: TestClient, settings: Settings, typed: dict[str, str], expected: list[str]
) -> None:
    answer = post(boss, "/accounts/new", typed, "/accounts/new")

    assert answer.status_code == 422
    assert "<title>Error: " in answer.text
    assert all(words in said(answer) for words in expected)
    assert "<b>al" not in answer.text
    assert _audited(settings) == []


@pytest.mark.parametrize(
    ("path", "typed"),
    [("disable", {}), ("role", {"role": "referrer"}), ("password", {}), ("remove", {})],
)
def test_a_change_puts_whoever_uses_the_account_out_at_once(
    boss: TestClient, settings: Settings, path: str, typed: dict[str, str]
) -> None:
    account = add_account(settings, "p.jones", Role.SENDER)
    form = f"/accounts/{account.id}"
    with browsing(settings) as browser:
        sign_in(browser, "p.jones")
        assert browser.get("/outbox").status_code == 200
        assert post(boss, f"{form}/{path}", typed, form).status_code in (200, 303)

        assert browser.get("/outbox").headers["location"] == "/sign-in?next=%2Foutbox"
    [(actor, _, detail)] = _audited(settings)
    assert (actor, detail["account"]) == ("jane.smith", "p.jones")


def test_a_disabled_account_is_told_no_more_than_a_wrong_password(
    boss: TestClient, settings: Settings
) -> None:
    form = f"/accounts/{add_account(settings, 'p.jones', Role.SENDER).id}"
    post(boss, f"{form}/disable", {}, form)
    with browsing(settings) as browser:
        disabled = said(sign_in(browser, "p.jones"))
        assert disabled.replace("p.jones", "nobody") == said(sign_in(browser, "nobody"))
    post(boss, f"{form}/enable", {}, form)
    assert sign_in_elsewhere(settings, "p.jones", PASSWORD) == 303


def test_the_role_counts_as_it_is_now(boss: TestClient, settings: Settings, store: Store) -> None:
    """Also if another process changes it and leaves the session alone."""
    add_account(settings, "p.jones", Role.ADMINISTRATOR)
    with store.writing() as connection:
        connection.execute("UPDATE account SET role = 'sender' WHERE name = 'jane.smith'")
    assert boss.get("/accounts").status_code == 403
    with store.writing() as connection:
        connection.execute("UPDATE account SET disabled = 1 WHERE name = 'jane.smith'")
    assert boss.get("/outbox").status_code == 303


def test_the_last_administrator_is_kept_and_it_is_said_why(
    boss: TestClient, settings: Settings
) -> None:
    form = f"/accounts/{_id(settings, 'jane.smith')}"
    for path, typed in (("disable", {}), ("remove", {}), ("role", {"role": "sender"})):
        answer = post(boss, f"{form}/{path}", typed, form)
        assert answer.status_code == 422
        assert "only administrator" in said(answer)
    assert "your own account" in said(boss.get(form))
    assert boss.get("/accounts").status_code == 200


def test_no_name_stands_in_an_address(boss: TestClient, settings: Settings) -> None:
    add_account(settings, "p.jones", Role.SENDER)
    for path in ("/accounts", f"/accounts/{_id(settings, 'p.jones')}"):
        links = re.findall(r'(?:href|action)="([^"]*)"', boss.get(path).text)
        assert links
        assert not any("jones" in link for link in links)
    assert boss.get("/accounts/000000000000").status_code == 404


# The commands


def test_accounts_on_the_command_line(
    referrals: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("referrals.bootstrap.now", now)
    assert "accounts add NAME" in referrals("accounts", "list").out
    done = referrals(
        "accounts", "add", "Jane.Smith", "--role", "administrator", stdin=b"purple otter lamp\r\n"
    )
    assert (done.code, done.out) == (0, "jane.smith was added as administrator.\n")
    done = referrals("accounts", "add", "p.jones", "--role", "sender", "--one-time", "--json")
    once = done.json["password"]
    assert done.json == {"name": "p.jones", "role": "sender", "password": once}
    assert referrals("accounts", "list").out.splitlines() == [
        "jane.smith\tadministrator\tin use\tnever",
        "p.jones\tsender\tone-time password\tnever",
    ]
    done = referrals("accounts", "password", "p.jones", stdin=b"short\n")
    assert done.code == 2
    assert "12 characters or more" in done.err
    assert "short" not in done.err
    assert referrals("accounts", "password", "p.jones", stdin=b"").code == 2
    assert referrals("accounts", "password", "p.jones", stdin=b"\xff" * 20).code == 2
    assert referrals("accounts", "password", "P.JONES", stdin=b"troubled kettle nine").code == 0
    assert referrals("accounts", "roles", "p.jones", "--role", "administrator").code == 0
    assert referrals("accounts", "disable", "jane.smith").code == 0
    assert referrals("accounts", "disable", "p.jones").code == 2, "the last administrator"
    assert referrals("accounts", "disable", "jane.smith", "--undo").code == 0
    assert referrals("accounts", "remove", "jane.smith", "--json").json["removed"] is True
    done = referrals("accounts", "remove", "jane.smith")
    assert (done.code, done.err.splitlines()[-1]) == (2, "Error: There is no such account.")
    assert referrals("accounts", "add", "a b", "--role", "sender", "--one-time").code == 2
    [one] = referrals("accounts", "list", "--json").json
    assert (one["name"], one["role"], one["disabled"]) == ("p.jones", "administrator", False)
    log = referrals("audit", "list", "--json").out
    assert [entry["action"] for entry in json.loads(log)] == [
        "account added", "account added", "account password renewed", "account role changed",
        "account disabled", "account enabled", "account removed",
    ]  # fmt: skip
    for secret in ("purple otter", once, "troubled kettle"):
        assert secret not in log


def test_all_sessions_are_ended_on_the_command_line(
    referrals: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("referrals.bootstrap.now", now)
    settings = web_settings(home, login="accounts")
    add_account(settings)
    with browsing(settings) as browser:
        sign_in(browser)
        assert referrals("accounts", "sign-out").code == 2
        assert browser.get("/account").status_code == 200
        assert referrals("accounts", "sign-out", "--everybody").out == "1 session ended.\n"
        assert browser.get("/account").status_code == 303


def test_a_password_is_never_an_argument(referrals: Command) -> None:
    done = referrals("accounts", "add", "jo", "purple otter lamp", "--role", "sender")
    assert done.code == 2
    done = referrals("accounts", "add", "jo", "--password", "purple", "--role", "sender")
    assert done.code == 2


def test_tokens_on_the_command_line(
    referrals: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("referrals.bootstrap.now", now)
    assert referrals("tokens", "list").out == "No tokens.\n"
    done = referrals("tokens", "add", "Case-System", "--role", "sender", "--days", "30")
    token = done.out.strip()
    assert token.startswith("referrals_")
    assert "shown this once" in done.err
    listed = referrals("tokens", "list")
    assert listed.out.startswith("case-system\tsender\tgood\t")
    assert token not in listed.said
    [told] = referrals("tokens", "list", "--json").json
    assert told["good"] is True
    store = open_store(Settings(outbox=home / "outbox"))
    user = store.token_user(token)
    assert user is not None
    assert user.may(Role.SENDER)
    assert referrals("tokens", "add", "case-system", "--role", "sender").code == 2
    assert referrals("tokens", "revoke", "case-system").code == 0
    assert store.token_user(token) is None
    store.close()
    assert referrals("tokens", "revoke", "case-system").code == 2
    log = referrals("audit", "list", "--json").out
    assert [entry["action"] for entry in json.loads(log)] == ["token added", "token revoked"]
    assert token not in log
