"""Which agencies are held, and how what waits for them gets another address."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from referrals.delivery import DeliveryStatus
from referrals.outboxes.sqlite.account import held_of, micros, moment
from referrals.outboxes.sqlite.verifications import SqliteVerifications
from referrals.queueing import LIVE, REROUTED_TO, Held, Queued

if TYPE_CHECKING:
    from referrals.delivery import Submission
    from referrals.holding import Addressed, Hold, Readdressed, Reason, Rerouted, Rerouting

_PORTION = 5_000


class SqliteHolds(SqliteVerifications):
    """While an agency is in the table `hold`, whoever claims passes over its messages."""

    def hold(self, agency: str, why: Reason, now: datetime) -> tuple[Hold, bool]:
        """See `ports.Holds`."""
        from referrals.holding import Hold

        def run(db: sqlite3.Connection) -> tuple[Hold, bool]:
            before = _hold(db, agency)
            if before is not None:
                return before, False
            made = Hold(agency, now, self.actor, why)
            db.execute(
                "INSERT INTO hold VALUES (?, ?, ?, ?)", (agency, micros(now), self.actor, why)
            )
            self._log(db, now, "agency held", "", "", made.detail)
            self._forget_reads()
            return made, True

        return self._do(run)

    def holds(self) -> list[Hold]:
        """See `ports.Holds`."""
        from referrals.holding import Hold, Reason

        rows = self._read("SELECT agency, since, held_by, why FROM hold ORDER BY agency")
        return [Hold(agency, moment(since), by, Reason(why)) for agency, since, by, why in rows]

    def addressed(self, agency: str) -> list[Addressed]:
        """See `ports.Holds`."""
        from referrals.holding import Addressed

        rows = self._read(_ADDRESSED, (agency,))
        return [
            Addressed(recipient, DeliveryStatus(status), bool(waits), bool(whole), number)
            for recipient, status, waits, whole, number in rows
        ]

    def disclosed(self, agency: str, recipient: str, *, limit: int = 1_000) -> list[Held]:
        """See `ports.Holds`."""
        return [
            held_of(row, row["rerouted_to"])
            for row in self._read(_DISCLOSED, (agency, recipient, limit))
        ]

    def reroute(self, rerouting: Rerouting, now: datetime) -> Iterator[list[Rerouted]]:
        """See `ports.Holds`."""
        from referrals.holding import GROUP

        for status in rerouting.statuses:
            after = 0
            while True:
                group = self._do(
                    lambda db, status=status, after=after: self._reroute(  # type: ignore[misc]
                        db, rerouting, status, after, now
                    )
                )
                if group:
                    yield group
                    after = group[-1].old
                if len(group) < GROUP:
                    break

    def _reroute(
        self,
        db: sqlite3.Connection,
        rerouting: Rerouting,
        status: DeliveryStatus,
        after: int,
        now: datetime,
    ) -> list[Rerouted]:
        from referrals.holding import GROUP, not_held

        agency = rerouting.agency
        if _hold(db, agency) is None:
            raise not_held(agency)
        rows = db.execute(
            _TO_REROUTE, (status, after, agency, rerouting.recipient, GROUP)
        ).fetchall()
        done = [self._reroute_one(db, rerouting, row, now) for row in rows]
        self._forget_reads()
        return done

    def _reroute_one(
        self, db: sqlite3.Connection, rerouting: Rerouting, row: sqlite3.Row, now: datetime
    ) -> Rerouted:
        from referrals.holding import NOT_INTACT, Kept, Rerouted

        number, reference, facts = row["id"], row["reference"], row["facts_key"]
        old = Kept(row["recipient"], row["sha256"], row["octets"])
        there = db.execute(_THERE, (reference, facts, rerouting.recipient)).fetchone()
        if there is not None:
            db.execute(_CANCEL, (number,))
            after, sha256 = there
        else:
            token = secrets.token_hex(8)
            new = rerouting.message(reference, row["message_id"], old, token, now)
            if new is None:
                db.execute(_FAIL, (number,))
                why = {"why": NOT_INTACT}
                self._log(db, now, "failed", reference, row["case_reference"], why)
                return Rerouted(reference, number, None)
            db.execute(_CANCEL, (number,))  # before its key is another's
            after, sha256 = self._insert_instead(db, row, rerouting.recipient, new, now), new.sha256
        if facts is not None:
            db.execute(
                "UPDATE rerouted SET message = ? WHERE facts_key = ? AND message = ?",
                (after, facts, number),
            )
            db.executemany(
                "INSERT INTO rerouted VALUES (?, ?, ?) ON CONFLICT (facts_key, recipient)"
                " DO UPDATE SET message = excluded.message",
                [(facts, old.recipient, after), (facts, rerouting.recipient, after)],
            )
        detail = rerouting.detail(old, row["intervention"], sha256)
        self._log(db, now, "rerouted", reference, row["case_reference"], detail)
        return Rerouted(reference, number, after, joined=there is not None)

    @staticmethod
    def _insert_instead(
        db: sqlite3.Connection, row: sqlite3.Row, recipient: str, new: Readdressed, now: datetime
    ) -> int:
        at, size = micros(now), len(new.content)
        cursor = db.execute(
            _INSERT,
            (
                row["content_key"],
                recipient,
                new.message_id,
                new.sha256,
                size,
                at,
                at,
                at,
                row["id"],
            ),
        )
        number = int(cursor.lastrowid or 0)
        db.execute("INSERT INTO content VALUES (?, ?)", (number, new.content))
        return number

    def resume(self, agency: str, recipient: str | None, now: datetime) -> None:
        """See `ports.Holds`."""
        from referrals.holding import not_held, still_elsewhere

        def releasable(db: sqlite3.Connection) -> Hold:
            hold = _hold(db, agency)
            if hold is None:
                raise not_held(agency)
            (left,) = db.execute(_ELSEWHERE, (agency, recipient)).fetchone()
            if left:
                raise still_elsewhere(agency, left)
            return hold

        def run(db: sqlite3.Connection) -> None:
            hold = releasable(db)
            stopped = db.execute(_STOP_UNCERTAIN, (agency, recipient)).rowcount
            db.execute(
                "UPDATE message SET trying_since = trying_since + :now - max(trying_since, :since)"
                " WHERE agency = :agency AND due_at IS NOT NULL AND failures > 0",
                {"now": micros(now), "since": micros(hold.since), "agency": agency},
            )
            db.execute("DELETE FROM hold WHERE agency = ?", (agency,))
            detail = hold.detail | {"address": recipient, "uncertain_left": stopped}
            self._log(db, now, "agency released", "", "", detail)
            self._forget_reads()

        self._do(releasable)
        # As if it had just been queued, so that nobody else waits behind all that was held.
        while self._do(
            lambda db: db.execute(_DUE_NOW, {"agency": agency, "now": micros(now)}).rowcount
        ):
            pass
        self._do(run)

    @staticmethod
    def _known_elsewhere(
        db: sqlite3.Connection, submissions: Sequence[Submission]
    ) -> dict[str, Queued]:
        """Those among them that were queued before, and have another address since; by key."""
        if not submissions or not db.execute("SELECT 1 FROM rerouted LIMIT 1").fetchone():
            return {}
        rows = db.execute(
            _KNOWN_ELSEWHERE, (json.dumps([one.facts_key for one in submissions]),)
        ).fetchall()
        found = {
            (facts, recipient): Queued(number, new=False, status=DeliveryStatus(status))
            for facts, recipient, number, status in rows
        }
        keys = {
            one.content_key: (one.facts_key, one.outgoing.envelope.recipient) for one in submissions
        }
        return {key: found[facts] for key, facts in keys.items() if facts in found}


def _hold(db: sqlite3.Connection, agency: str) -> Hold | None:
    from referrals.holding import Hold, Reason

    row = db.execute("SELECT since, held_by, why FROM hold WHERE agency = ?", (agency,)).fetchone()
    return None if row is None else Hold(agency, moment(row[0]), row[1], Reason(row[2]))


_ADDRESSED = """
SELECT recipient, status, due_at IS NOT NULL, purged_at IS NULL, count(*) FROM message
WHERE agency = ? AND status IN ('queued', 'sending', 'delayed', 'failed', 'uncertain')
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
"""

_DISCLOSED = f"""
SELECT message.*, {REROUTED_TO}
FROM message WHERE agency = ? AND recipient <> ? AND acknowledged_on IS NULL
    AND (relayed_at IS NOT NULL OR maybe_doubled) ORDER BY id DESC LIMIT ?
"""  # noqa: S608 - ours

_TO_REROUTE = """
SELECT * FROM message JOIN content ON message = id
WHERE status = ? AND id > ? AND agency = ? AND recipient <> ? ORDER BY id LIMIT ?
"""

_THERE = f"""
SELECT id, sha256 FROM message WHERE reference = ? AND facts_key = ? AND recipient = ? AND {LIVE}
ORDER BY id DESC LIMIT 1
"""  # noqa: S608 - ours

_CANCEL = """
UPDATE message SET status = 'cancelled', due_at = NULL,
    content_key = content_key || ':rerouted:' || id
WHERE id = ?
"""

_FAIL = "UPDATE message SET status = 'failed', due_at = NULL WHERE id = ?"

_INSERT = """
INSERT INTO message (reference, case_reference, intervention, agency, content_key, sender,
    recipient, message_id, sha256, size, queued_at, trying_since, status, due_at, acknowledge_by,
    facts_key, replaces)
SELECT reference, case_reference, intervention, agency, ?, sender,
    ?, ?, ?, ?, ?, ?, 'queued', ?, acknowledge_by, facts_key, id
FROM message WHERE id = ?
"""

_ELSEWHERE = """
SELECT count(*) FROM message
WHERE agency = ? AND recipient IS NOT ? AND status IN ('queued', 'sending', 'delayed')
"""

_STOP_UNCERTAIN = """
UPDATE message SET due_at = NULL
WHERE agency = ? AND recipient IS NOT ? AND status = 'uncertain' AND due_at IS NOT NULL
"""

_DUE_NOW = f"""
UPDATE message SET due_at = :now WHERE id IN (
    SELECT id FROM message WHERE agency = :agency AND due_at <> :now
        AND EXISTS (SELECT 1 FROM hold WHERE agency = :agency)
    LIMIT {_PORTION})
"""  # noqa: S608 - ours

_KNOWN_ELSEWHERE = f"""
SELECT rerouted.facts_key, rerouted.recipient, message.id, message.status
FROM rerouted JOIN message ON message.id = rerouted.message
WHERE rerouted.facts_key IN (SELECT value FROM json_each(?)) AND {LIVE}
"""  # noqa: S608 - ours
