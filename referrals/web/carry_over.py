"""Accounts and tokens from one store into another, as when the outbox moves into PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from referrals.web.store import Statements, Store, Tables

_ACCOUNT = (
    "name", "id", "password", "role", "must_change", "disabled", "made_at", "signed_in_at",
)  # fmt: skip
_TOKEN = (
    "digest", "name", "role", "made_by", "made_at", "expires_at", "last_used_at", "revoked_at",
)  # fmt: skip
_FLAGS = ("must_change", "disabled")


@dataclass(frozen=True)
class Carried:
    """Names. What was there already stays as it is."""

    accounts: list[str]
    accounts_there: list[str]
    tokens: list[str]
    tokens_there: list[str]


def carry_over(old: Tables, store: Store) -> Carried:
    """Take over accounts and tokens: their hashes, so that passwords and tokens go on as before.

    Sessions and half-made referrals are left: people sign in once more.

    Raises:
        OutboxUnusable: of either; nothing was taken over.
    """
    with old.reading() as db:
        accounts = db.execute("SELECT * FROM account ORDER BY name").fetchall()
        tokens = db.execute("SELECT * FROM token ORDER BY name").fetchall()
    with store.writing(surely=True, alone=True) as db:
        return Carried(
            *_added(db, "account", _ACCOUNT, accounts), *_added(db, "token", _TOKEN, tokens)
        )


def _added(
    db: Statements, table: str, columns: Sequence[str], rows: Sequence[Any]
) -> tuple[list[str], list[str]]:
    added: list[str] = []
    there: list[str] = []
    for row in rows:
        values = [bool(row[one]) if one in _FLAGS else row[one] for one in columns]
        done = db.execute(
            f"INSERT INTO {table} ({', '.join(columns)})"  # noqa: S608  # ours
            f" VALUES ({', '.join('?' * len(columns))}) ON CONFLICT DO NOTHING",
            values,
        )
        (added if done.rowcount == 1 else there).append(row["name"])
    return added, there
