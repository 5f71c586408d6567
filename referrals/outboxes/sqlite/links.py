"""Links to relays, and the health of relays, as all processes on one machine know them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from referrals.outboxes.owed import Owed
from referrals.outboxes.sqlite.account import micros, moment, moment_if
from referrals.outboxes.sqlite.file import nothing
from referrals.outboxes.sqlite.origin import SqliteOrigin
from referrals.relay_health import (
    RelayFault,
    RelayLink,
    RelayState,
    after_fault,
    on_trial,
    well_again,
)

_LEASE = timedelta(minutes=20)
"""Where it can't be seen whether a process lives; longer than any attempt, as `worker.LEASE`."""


class SqliteLinks(SqliteOrigin):
    """`ports.Links`."""

    def __init__(self, *args: Any, **more: Any) -> None:
        # To be given back: relay and owner.
        self._links_owed: Owed[tuple[str, str], tuple[str, str]] = Owed()
        super().__init__(*args, **more)

    async def take_link(
        self,
        relay: str,
        owner: str,
        machine: str,
        most: int,
        now: datetime,
        *,
        is_gone: Callable[[str], bool],
    ) -> bool:
        """See `ports.Links`."""

        def run(db: sqlite3.Connection) -> bool:
            at, taken = micros(now), 0
            for other, until in db.execute(
                "SELECT owner, lease_until FROM relay_link WHERE relay = ?", (relay,)
            ).fetchall():
                if other == owner or until < at or is_gone(other):
                    db.execute(
                        "DELETE FROM relay_link WHERE relay = ? AND owner = ?", (relay, other)
                    )
                else:
                    taken += 1
            if taken >= most:
                return False
            db.execute(
                "INSERT INTO relay_link VALUES (?, ?, ?, ?, ?)",
                (relay, owner, machine, at, micros(now + _LEASE)),
            )
            return True

        def undo(taken: bool) -> None:
            if taken:
                self._owe_link(relay, owner)

        return await self._await(run, undo)

    async def keep_link(self, relay: str, owner: str, now: datetime) -> bool:
        """See `ports.Links`."""
        return await self._await(
            lambda db: bool(
                db.execute(
                    "UPDATE relay_link SET lease_until = ? WHERE relay = ? AND owner = ?",
                    (micros(now + _LEASE), relay, owner),
                ).rowcount
            )
        )

    async def give_link_back(self, relay: str, owner: str) -> None:
        """See `ports.Links`."""
        self._owe_link(relay, owner)
        await self._await(nothing)

    def _owe_link(self, relay: str, owner: str) -> None:
        self._links_owed.add((relay, owner), (relay, owner))

    def _begun(self, connection: sqlite3.Connection) -> None:
        super()._begun(connection)
        for given in self._links_owed.pay():
            connection.execute("DELETE FROM relay_link WHERE relay = ? AND owner = ?", given)

    def _kept(self) -> None:
        super()._kept()
        self._links_owed.paid()

    def _is_owing(self) -> bool:
        return bool(self._links_owed) or super()._is_owing()

    async def count_links(
        self, relay: str, now: datetime, *, is_gone: Callable[[str], bool]
    ) -> int:
        """See `ports.Links`."""

        def run(db: sqlite3.Connection) -> int:
            rows = db.execute(
                "SELECT owner FROM relay_link WHERE relay = ? AND lease_until >= ?",
                (relay, micros(now)),
            ).fetchall()
            return sum(not is_gone(owner) for (owner,) in rows)

        return await self._await(run)

    def links(self, now: datetime, *, is_gone: Callable[[str], bool]) -> list[RelayLink]:
        """See `ports.Links`."""
        rows = self._read(
            "SELECT relay, owner, machine, since FROM relay_link WHERE lease_until >= ?"
            " ORDER BY relay, machine, since",
            (micros(now),),
        )
        return [
            RelayLink(relay, owner, machine, moment(since))
            for relay, owner, machine, since in rows
            if not is_gone(owner)
        ]

    # Health

    async def recall_relays(self, now: datetime) -> dict[str, RelayState]:
        """See `ports.Links`."""
        return await self._await(lambda db: _by_relay(db.execute(_STATES).fetchall()))

    def relay_states(self, now: datetime) -> dict[str, RelayState]:
        """See `ports.Links`."""
        return _by_relay(self._read(_STATES))

    async def take_trial(self, state: RelayState, now: datetime) -> bool:
        """See `ports.Links`."""

        def run(db: sqlite3.Connection) -> bool:
            if _state(db, state.relay).turn != state.turn:
                return False
            _keep(db, on_trial(state, now))
            return True

        return await self._await(run)

    async def note_fault(
        self, relay: str, fault: RelayFault, now: datetime, *, on_trial: bool
    ) -> RelayState:
        """See `ports.Links`."""

        def run(db: sqlite3.Connection) -> RelayState:
            before = _state(db, relay)
            after = after_fault(before, fault, now, on_trial=on_trial)
            if after is not before:
                _keep(db, after)
            return after

        return await self._await(run)

    async def note_well(self, relay: str, now: datetime) -> None:
        """See `ports.Links`."""

        def run(db: sqlite3.Connection) -> None:
            before = _state(db, relay)
            if before.fault is not None:
                _keep(db, well_again(before))

        await self._await(run)


_STATES = """
SELECT relay, stage, code, refused_login, failures, since, until, turn, faults, returns
FROM relay_state
"""


def _by_relay(rows: list[Any]) -> dict[str, RelayState]:
    return {row[0]: _state_of(row) for row in rows}


def _state_of(row: Any) -> RelayState:
    relay, stage, code, refused_login, failures, since, until, turn, faults, returns = row
    fault = None if stage is None else RelayFault(stage, code, bool(refused_login))
    return RelayState(
        relay, fault, failures, moment_if(since), moment_if(until), turn, faults, returns
    )


def _state(db: sqlite3.Connection, relay: str) -> RelayState:
    row = db.execute(f"{_STATES} WHERE relay = ?", (relay,)).fetchone()
    return RelayState(relay) if row is None else _state_of(row)


def _keep(db: sqlite3.Connection, state: RelayState) -> None:
    fault = state.fault
    db.execute(
        "INSERT OR REPLACE INTO relay_state VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            state.relay,
            fault.stage if fault else None,
            fault.code if fault else None,
            bool(fault and fault.refused_login),
            state.failures,
            micros(state.since) if state.since else None,
            micros(state.until) if state.until else None,
            state.turn,
            state.faults,
            state.returns,
        ),
    )
