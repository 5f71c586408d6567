"""Accounts move with the outbox."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from referrals.outboxes.postgres import connections
from referrals.settings import Settings
from referrals.web.accounts import Accounts
from referrals.web.site import Role
from referrals.web.store import open_store
from tests.conftest import NOW
from tests.e2e.conftest import Command
from tests.postgres import server
from tests.web.asking import token_of
from tests.web.signing import PASSWORD, add_account


@pytest.fixture
def old(tmp_path: Path) -> Settings:
    made = Settings(outbox=tmp_path / "old")
    add_account(made)
    add_account(made, "al", Role.SENDER, must_change=True)
    return made


@pytest.fixture
def _in_database(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("REFERRALS_DATABASE", server().url(server().emptied()))
    yield
    connections.close_idle()


@pytest.mark.usefixtures("_in_database")
def test_passwords_and_tokens_go_on_as_before_in_the_database(
    referrals: Command, old: Settings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = token_of(old, Role.SENDER, days=400)
    monkeypatch.setenv("REFERRALS_OUTBOX", str(old.outbox))
    assert f"accounts import {old.outbox}" in referrals("accounts", "list").out
    monkeypatch.delenv("REFERRALS_OUTBOX")
    assert referrals("accounts", "add", "al", "--role", "referrer", "--one-time").code == 0
    file = old.outbox / "web.sqlite3"

    done = referrals("accounts", "import", file)
    assert done.out == (
        "Taken over: 1 account, 1 token.\nThere already, and left as they are: al.\n"
    )
    told = referrals("accounts", "import", file, "--json").json
    assert told["accounts"] == told["tokens"] == [], "a second time nothing is done"
    assert told["accounts_there"] == ["al", "jane.smith"]

    store = open_store(Settings(database=SecretStr(server().url(server()._shared()))))
    accounts = Accounts(store)
    jane = accounts.check("jane.smith", PASSWORD, NOW)
    assert jane is not None
    assert (jane.role, jane.must_change, jane.disabled) == (Role.ADMINISTRATOR, False, False)
    al = accounts.named("al")
    assert al is not None
    assert (al.role, al.must_change) == (Role.REFERRER, True), "it is the one that was there"
    assert store.token_user(token, NOW) is not None
    log = json.loads(referrals("audit", "list", "--json").out)
    assert [one["action"] for one in log] == [
        "account added", "account imported", "token imported",
    ]  # fmt: skip
    assert not (home / "outbox" / "web.sqlite3").exists()


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
def test_what_is_no_store_is_said(referrals: Command, home: Path, content: bytes) -> None:
    (home / "web.sqlite3").write_bytes(content)
    done = referrals("accounts", "import", "web.sqlite3")
    assert "Traceback" not in done.said
    assert done.code == (6 if content else 0), done.said
    assert referrals("accounts", "import", "nowhere").code == 2
