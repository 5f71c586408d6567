"""Links to relays, and the health of relays, as all machines on one database know them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from referrals.outboxes.owed import Owed
from referrals.outboxes.postgres import jobs
from referrals.outboxes.postgres.connections import Connection
from referrals.outboxes.postgres.database import nothing
from referrals.outboxes.postgres.origin import PostgresOrigin
from referrals.relay_health import (
    RelayFault,
    RelayLink,
    RelayState,
    after_fault,
    on_trial,
    well_again,
)
from referrals.worker import owner_name

_LOCK = 7_261_002
"""Of PostgreSQL's advisory locks, the one that whoever changes these tables holds."""


class PostgresLinks(PostgresOrigin):
    """`ports.Links`. A place is free once the heart of the process that has it has stopped."""

    def __init__(self, *args: Any, **more: Any) -> None:
        # To be given back: relay and owner.
        self._links_owed: Owed[tuple[str, str], tuple[str, str]] = Owed()
        super().__init__(*args, **more)

    def _registered(self, db: Connection) -> int:
        """Our number among procrastinate's workers."""
        raise NotImplementedError

    def _server_time(self, db: Connection, now: datetime) -> datetime:
        """One clock for all machines."""
        raise NotImplementedError

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

        def run(db: Connection) -> bool:
            worker = self._registered(db)
            db.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            rows = db.execute(f"{_LINKS} WHERE relay = %s", (jobs.SILENT_S, relay)).fetchall()
            gone = [row[1] for row in rows if row[1] == owner or _is_lost(row, is_gone)]
            if gone:
                db.execute(
                    "DELETE FROM relay_link WHERE relay = %s AND owner = ANY(%s)", (relay, gone)
                )
            if len(rows) - len(gone) >= most:
                return False
            db.execute(
                "INSERT INTO relay_link VALUES (%s, %s, %s, %s, %s)",
                (relay, owner, machine, worker, self._server_time(db, now)),
            )
            return True

        def undo(taken: bool) -> None:
            if taken:
                self._owe_link(relay, owner)

        return await self._await(run, undo)

    async def keep_link(self, relay: str, owner: str, now: datetime) -> bool:
        """See `ports.Links`. The heart says that we live; but it may have a new number."""

        def run(db: Connection) -> bool:
            return bool(
                db.execute(
                    "UPDATE relay_link SET worker = %s WHERE relay = %s AND owner = %s",
                    (self._registered(db), relay, owner),
                ).rowcount
            )

        return await self._await(run)

    async def give_link_back(self, relay: str, owner: str) -> None:
        """See `ports.Links`."""
        self._owe_link(relay, owner)
        await self._await(nothing)

    def _owe_link(self, relay: str, owner: str) -> None:
        self._links_owed.add((relay, owner), (relay, owner))

    def _begun(self, connection: Connection) -> None:
        super()._begun(connection)
        for given in self._links_owed.pay():
            connection.execute("DELETE FROM relay_link WHERE relay = %s AND owner = %s", given)

    def _kept(self) -> None:
        super()._kept()
        self._links_owed.paid()

    def _is_owing(self) -> bool:
        return bool(self._links_owed) or super()._is_owing()

    async def count_links(
        self, relay: str, now: datetime, *, is_gone: Callable[[str], bool]
    ) -> int:
        """See `ports.Links`."""

        def run(db: Connection) -> int:
            rows = db.execute(f"{_LINKS} WHERE relay = %s", (jobs.SILENT_S, relay)).fetchall()
            return sum(not _is_lost(row, is_gone) for row in rows)

        return await self._await(run)

    def links(self, now: datetime, *, is_gone: Callable[[str], bool]) -> list[RelayLink]:
        """See `ports.Links`."""
        with self.database.reader() as reader:
            rows = reader.execute(
                f"{_LINKS} ORDER BY relay, machine, since", (jobs.SILENT_S,)
            ).fetchall()
        return [RelayLink(*row[:4]) for row in rows if not _is_lost(row, is_gone)]

    # Health

    async def recall_relays(self, now: datetime) -> dict[str, RelayState]:
        """See `ports.Links`."""
        return await self._await(lambda db: self._states(db, now))

    def relay_states(self, now: datetime) -> dict[str, RelayState]:
        """See `ports.Links`."""
        return self._do(lambda db: self._states(db, now))

    def _states(self, db: Connection, now: datetime) -> dict[str, RelayState]:
        return _by_relay(db, now - self._server_time(db, now))

    async def take_trial(self, state: RelayState, now: datetime) -> bool:
        """See `ports.Links`."""

        def run(db: Connection) -> bool:
            before = _locked(db, state.relay)
            if before.turn != state.turn:
                return False
            _keep(db, on_trial(before, self._server_time(db, now)))
            return True

        return await self._await(run)

    async def note_fault(
        self, relay: str, fault: RelayFault, now: datetime, *, on_trial: bool
    ) -> RelayState:
        """See `ports.Links`."""

        def run(db: Connection) -> RelayState:
            before, at = _locked(db, relay), self._server_time(db, now)
            after = after_fault(before, fault, at, on_trial=on_trial)
            if after is not before:
                _keep(db, after)
            return _moved(after, now - at)

        return await self._await(run)

    async def note_well(self, relay: str, now: datetime) -> None:
        """See `ports.Links`."""

        def run(db: Connection) -> None:
            before = _locked(db, relay)
            if before.fault is not None:
                _keep(db, well_again(before))

        await self._await(run)


_LINKS = """
SELECT relay, owner, machine, since, NOT EXISTS (
    SELECT 1 FROM procrastinate_workers AS alive WHERE alive.id = worker
    AND last_heartbeat > now() - make_interval(secs => %s))
FROM relay_link
"""

_STATES = """
SELECT relay, stage, code, refused_login, failures, since, until, turn, faults, returns
FROM relay_state
"""


def _is_lost(row: tuple[Any, ...], is_gone: Callable[[str], bool]) -> bool:
    owner, is_silent = row[1], row[4]
    return is_silent or (is_of_this_run(owner) and is_gone(owner))


def is_of_this_run(owner: str) -> bool:
    """Whether it is of this machine, and this run of it; of others only the heart tells."""
    boot, dot, _ = owner.partition(".")
    return not dot or boot == owner_name().partition(".")[0]


def _by_relay(db: Connection, ahead: timedelta) -> dict[str, RelayState]:
    """By a clock that is so much ahead of the server's."""
    return {row[0]: _moved(_state_of(row), ahead) for row in db.execute(_STATES).fetchall()}


def _moved(state: RelayState, ahead: timedelta) -> RelayState:
    return replace(
        state,
        since=state.since + ahead if state.since else None,
        until=state.until + ahead if state.until else None,
    )


def _state_of(row: Any) -> RelayState:
    relay, stage, code, refused_login, *rest = row
    return RelayState(
        relay, None if stage is None else RelayFault(stage, code, refused_login), *rest
    )


def _locked(db: Connection, relay: str) -> RelayState:
    db.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
    row = db.execute(f"{_STATES} WHERE relay = %s", (relay,)).fetchone()
    return RelayState(relay) if row is None else _state_of(row)


def _keep(db: Connection, state: RelayState) -> None:
    fault = state.fault
    db.execute(
        "INSERT INTO relay_state VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (relay) DO UPDATE SET stage = excluded.stage, code = excluded.code,"
        " refused_login = excluded.refused_login, failures = excluded.failures,"
        " since = excluded.since, until = excluded.until, turn = excluded.turn,"
        " faults = excluded.faults, returns = excluded.returns",
        (
            state.relay,
            fault.stage if fault else None,
            fault.code if fault else None,
            bool(fault and fault.refused_login),
            state.failures,
            state.since,
            state.until,
            state.turn,
            state.faults,
            state.returns,
        ),
    )
