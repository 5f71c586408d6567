"""Accounts that we keep ourselves: names, hashed passwords, a role each."""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from referrals.web.passwords import Hashes, as_password
from referrals.web.site import Role
from referrals.web.store import Statements, Store

LONGEST_NAME = 60
# No colon, which stands in the names of tokens; nothing that would need quoting anywhere.
_NAME = re.compile(r"[^\W_][\w.\-@+]*")


class AccountError(ValueError):
    """What can't be done to accounts, and why. It never names anybody."""


@dataclass(frozen=True)
class Account:
    """`id` stands in URLs, where names never do."""

    id: str
    name: str
    role: Role
    must_change: bool
    disabled: bool
    made_at: datetime
    signed_in_at: datetime | None


def as_name(typed: str) -> str:
    """An account's name as it is kept: however it was typed, it is the same account.

    Raises:
        AccountError.
    """
    name = folded_name(typed)
    if not name:
        raise AccountError("An account needs a name.")
    if len(name) > LONGEST_NAME:
        raise AccountError(f"An account’s name has {LONGEST_NAME} characters at most.")
    if not _NAME.fullmatch(name):
        raise AccountError(
            "An account’s name is made of letters, digits and . _ - @ + and begins with a letter "
            "or digit."
        )
    return name


def folded_name(typed: str) -> str:
    """Source: RFC 8265 §3.3 (UsernameCaseMapped), with NFKC for what phones autocorrect."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", typed).casefold()).strip()


class Accounts:
    """All of it raises OutboxUnusable where the store can't be used."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._hashes = Hashes()

    def all(self) -> list[Account]:
        with self._store.reading() as connection:
            rows = connection.execute("SELECT * FROM account ORDER BY name").fetchall()
        return [_account(row) for row in rows]

    def named(self, name: str) -> Account | None:
        return self._one("name", name)

    def of_id(self, account_id: str) -> Account | None:
        return self._one("id", account_id)

    def _one(self, column: str, value: str) -> Account | None:
        with self._store.reading() as connection:
            row = connection.execute(
                f"SELECT * FROM account WHERE {column} = ?",  # noqa: S608  # ours
                (value,),
            ).fetchone()
        return _account(row) if row else None

    def check(self, typed_name: str, typed_password: str, now: datetime) -> Account | None:
        """The account, if the password is its own and it is not disabled.

        It takes as long whether there is such an account or not.
        """
        name = folded_name(typed_name)
        with self._store.reading() as connection:
            row = connection.execute("SELECT * FROM account WHERE name = ?", (name,)).fetchone()
        kept: str | None = row["password"] if row else None
        password = as_password(typed_password)
        fits = self._hashes.fits(password, kept)
        if kept is None or not fits or row["disabled"]:
            return None
        renewed = self._hashes.make(password) if self._hashes.is_old(kept) else kept
        with self._store.writing() as connection:
            # Not if it was changed meanwhile.
            connection.execute(
                "UPDATE account SET password = ?, signed_in_at = ? WHERE name = ? AND password = ?",
                (renewed, now.timestamp(), name, kept),
            )
        return _account(row)

    def add(
        self, name: str, password: str, role: Role, now: datetime, *, must_change: bool
    ) -> Account:
        """A new account.

        Args:
            name: as `as_name` made it.
            password: fit for it, see `passwords.problem_with`.

        Raises:
            AccountError: there is one of that name.
        """
        hashed = self._hashes.make(as_password(password))
        account_id = secrets.token_hex(6)
        with self._store.writing(surely=True) as connection:
            done = connection.execute(
                "INSERT INTO account (name, id, password, role, must_change, disabled, made_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO NOTHING",
                (name, account_id, hashed, role, must_change, False, now.timestamp()),
            )
        if done.rowcount != 1:
            raise AccountError("There is an account of that name already.")
        return Account(account_id, name, role, must_change, False, now, None)

    def set_password(self, name: str, password: str, *, must_change: bool) -> None:
        """Give it another password, and end its sessions."""
        hashed = self._hashes.make(as_password(password))
        self._change(
            name, "UPDATE account SET password = ?, must_change = ? WHERE name = ?",
            (hashed, must_change, name),
        )  # fmt: skip

    def set_role(self, name: str, role: Role) -> None:
        """Give it another role, and end its sessions. Raises AccountError."""
        self._change(name, "UPDATE account SET role = ? WHERE name = ?", (role, name))

    def set_disabled(self, name: str, disabled: bool) -> None:
        """A disabled account can't sign in, and is out at once. Raises AccountError."""
        self._change(name, "UPDATE account SET disabled = ? WHERE name = ?", (disabled, name))

    def remove(self, name: str) -> None:
        """Forget it, and what it has not finished. Raises AccountError."""
        self._change(name, "DELETE FROM account WHERE name = ?", (name,), forgetting=True)

    def _change(
        self, name: str, statement: str, values: Sequence[object], *, forgetting: bool = False
    ) -> None:
        with self._store.writing(surely=True, alone=True) as connection:
            had_one = _has_administrator(connection)
            if connection.execute(statement, values).rowcount != 1:
                raise AccountError("There is no such account.")
            if had_one and not _has_administrator(connection):
                raise AccountError(
                    "This is the only administrator. Make another account one first."
                )
            connection.execute('DELETE FROM session WHERE "user" = ?', (name,))
            if forgetting:
                connection.execute("DELETE FROM document WHERE owner = ?", (name,))


def _has_administrator(connection: Statements) -> bool:
    row = connection.execute(
        "SELECT 1 FROM account WHERE role = ? AND NOT disabled LIMIT 1", (Role.ADMINISTRATOR,)
    ).fetchone()
    return row is not None


def _account(row: Any) -> Account:
    seen = row["signed_in_at"]
    return Account(
        row["id"],
        row["name"],
        Role(row["role"]),
        bool(row["must_change"]),
        bool(row["disabled"]),
        datetime.fromtimestamp(row["made_at"], UTC),
        None if seen is None else datetime.fromtimestamp(seen, UTC),
    )
