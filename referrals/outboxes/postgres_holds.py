"""Which agencies are held, and how what waits for them gets another address.

What waits for an agency that is held has no job, so whoever fetches one need not step over it. A
trigger sees to that in whatever way a message becomes due; `_take` looks once more, for the moment
in which a hold begins. What a release leaves without a job, since it was broken off or something
was queued in that moment, gets one from the next worker that looks round.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from psycopg.rows import dict_row

from referrals.delivery import DeliveryStatus
from referrals.outboxes import postgres_jobs as jobs
from referrals.outboxes.postgres_account import held_of
from referrals.outboxes.postgres_database import Row
from referrals.outboxes.postgres_link import Connection, is_text, one
from referrals.outboxes.postgres_retention import PostgresRetention
from referrals.queueing import LIVE, Held, Queued

if TYPE_CHECKING:
    from referrals.delivery import Submission
    from referrals.holding import Addressed, Hold, Readdressed, Reason, Rerouted, Rerouting

_PORTION = 1_000
_PAUSE_S = 0.02


class PostgresHolds(PostgresRetention):
    """See above."""

    def hold(self, agency: str, why: Reason, now: datetime) -> tuple[Hold, bool]:
        """See `ports.Holds`."""
        from referrals.holding import Hold

        def run(db: Connection) -> tuple[Hold, bool]:
            made = db.execute(
                "INSERT INTO hold VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                (agency, now, self.actor, why),
            ).rowcount
            if made:
                hold = Hold(agency, now, self.actor, why)
                self._log(now, "agency held", "", "", hold.detail)
                return hold, True
            return _hold(db, agency, lock=False) or Hold(agency, now, self.actor, why), False

        answer = self._do(run)
        until = time.monotonic() + self._patience_s
        while True:
            kept = self._do(lambda db: self._keep(db, agency))
            if kept == _PORTION:
                continue
            # Whoever claims one just now will have committed, and then it is under way.
            if not self._read(_WITH_A_JOB, (agency,)) or time.monotonic() >= until:
                return answer
            time.sleep(_PAUSE_S)

    @staticmethod
    def _keep(db: Connection, agency: str) -> int:
        """Take their jobs from some that wait for an agency. Returns how many there were."""
        gone = jobs.forget_waiting(db, agency, _PORTION)
        db.execute(
            "UPDATE message SET job = NULL WHERE job = ANY(%s) AND due_at IS NOT NULL", (gone,)
        )
        return len(gone)

    def holds(self) -> list[Hold]:
        """See `ports.Holds`."""
        from referrals.holding import Hold, Reason

        rows = self._read("SELECT agency, since, held_by, why FROM hold ORDER BY agency")
        return [
            Hold(row["agency"], row["since"], row["held_by"], Reason(row["why"])) for row in rows
        ]

    def addressed(self, agency: str) -> list[Addressed]:
        """See `ports.Holds`."""
        from referrals.holding import Addressed

        if not is_text(agency):
            return []
        return [
            Addressed(**row | {"status": DeliveryStatus(row["status"])})
            for row in self._read(_ADDRESSED, (agency,))
        ]

    def disclosed(self, agency: str, recipient: str, *, limit: int = 1_000) -> list[Held]:
        """See `ports.Holds`."""
        return [held_of(row) for row in self._read(_DISCLOSED, (agency, recipient, limit))]

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
        db: Connection,
        rerouting: Rerouting,
        status: DeliveryStatus,
        after: int,
        now: datetime,
    ) -> list[Rerouted]:
        from referrals.holding import GROUP, not_held

        if _hold(db, rerouting.agency, lock=True) is None:
            raise not_held(rerouting.agency)
        rows = (
            db.cursor(row_factory=dict_row)
            .execute(_TO_REROUTE, (status, after, rerouting.agency, rerouting.recipient, GROUP))
            .fetchall()
        )
        return [self._reroute_one(db, rerouting, row, now) for row in rows]

    def _reroute_one(
        self, db: Connection, rerouting: Rerouting, row: Row, now: datetime
    ) -> Rerouted:
        from referrals.holding import NOT_INTACT, Kept, Rerouted

        number, reference, facts = row["id"], row["reference"], row["facts_key"]
        old = Kept(row["recipient"], row["sha256"], row["octets"])
        if row["job"] is not None:  # queued in the moment in which the hold began
            jobs.cancel(db, row["job"])
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
                self._log(now, "failed", reference, row["case_reference"], why)
                return Rerouted(reference, number, None)
            db.execute(_CANCEL, (number,))  # before its key is another's
            after, sha256 = self._insert_instead(db, row, rerouting.recipient, new, now), new.sha256
        if facts is not None:
            db.execute("UPDATE rerouted SET message = %s WHERE message = %s", (after, number))
            db.cursor().executemany(
                "INSERT INTO rerouted VALUES (%s, %s, %s) ON CONFLICT (facts_key, recipient)"
                " DO UPDATE SET message = excluded.message",
                [(facts, old.recipient, after), (facts, rerouting.recipient, after)],
            )
        detail = rerouting.detail(old, row["intervention"], sha256)
        self._log(now, "rerouted", reference, row["case_reference"], detail)
        return Rerouted(reference, number, after, joined=there is not None)

    @staticmethod
    def _insert_instead(
        db: Connection, row: Row, recipient: str, new: Readdressed, now: datetime
    ) -> int:
        (number,) = one(
            db.execute(
                _INSERT,
                {
                    "key": row["content_key"],
                    "recipient": recipient,
                    "message_id": new.message_id,
                    "sha256": new.sha256,
                    "size": len(new.content),
                    "now": now,
                    "old": row["id"],
                },
            )
        )
        db.execute("INSERT INTO content VALUES (%s, %b)", (number, new.content))
        return int(number)

    def resume(self, agency: str, recipient: str | None, now: datetime) -> None:
        """See `ports.Holds`."""
        from referrals.holding import not_held, still_elsewhere

        def run(db: Connection) -> None:
            hold = _hold(db, agency, lock=True)
            if hold is None:
                raise not_held(agency)
            (left,) = one(db.execute(_ELSEWHERE, (agency, recipient)))
            if left:
                raise still_elsewhere(agency, left)
            stopped = db.execute(_STOP_UNCERTAIN, (agency, recipient)).rowcount
            db.execute(
                "UPDATE message SET trying_since ="
                " trying_since + (%(now)s - greatest(trying_since, %(since)s))"
                " WHERE agency = %(agency)s AND due_at IS NOT NULL AND failures > 0",
                {"now": now, "since": hold.since, "agency": agency},
            )
            db.execute("DELETE FROM hold WHERE agency = %s", (agency,))
            detail = hold.detail | {"address": recipient, "uncertain_left": stopped}
            self._log(now, "agency released", "", "", detail)

        self._do(run)
        while self._do(lambda db: self._make_due(db, agency, now)):
            pass

    def _make_due_what_is_held_no_more(self, db: Connection, now: datetime) -> None:
        for (agency,) in db.execute(_KEPT_WITHOUT_HOLD).fetchall():
            self._make_due(db, agency, now)

    @staticmethod
    def _make_due(db: Connection, agency: str, now: datetime) -> int:
        """Give jobs to some that were kept, as if they had just been queued. Returns how many."""
        numbers = [number for (number,) in db.execute(_KEPT, (agency, agency, _PORTION)).fetchall()]
        if numbers:
            (turn,) = one(db.execute("SELECT next_turn(%s)", (agency,)))
            turns = list(range(turn, turn + len(numbers)))
            deferred = jobs.defer(db, list(zip(numbers, turns, strict=True)))
            db.execute(_MAKE_DUE, (now, numbers, deferred, turns))
        return len(numbers)

    @staticmethod
    def _held_agencies(db: Connection) -> set[str]:
        return {agency for (agency,) in db.execute("SELECT agency FROM hold").fetchall()}

    @staticmethod
    def _known_elsewhere(db: Connection, submissions: Sequence[Submission]) -> dict[str, Queued]:
        """Those among them that were queued before, and have another address since; by key."""
        facts_keys = [each.facts_key for each in submissions if each.facts_key is not None]
        if not facts_keys:
            return {}
        rows = db.execute(_KNOWN_ELSEWHERE, (facts_keys,)).fetchall()
        found = {
            (facts, recipient): Queued(number, new=False, status=DeliveryStatus(status))
            for facts, recipient, number, status in rows
        }
        keys = {
            each.content_key: (each.facts_key, each.outgoing.envelope.recipient)
            for each in submissions
        }
        return {key: found[facts] for key, facts in keys.items() if facts in found}


def _hold(db: Connection, agency: str, *, lock: bool) -> Hold | None:
    from referrals.holding import Hold, Reason

    asked = "SELECT since, held_by, why FROM hold WHERE agency = %s"
    row = db.execute(f"{asked} FOR UPDATE" if lock else asked, (agency,)).fetchone()
    return None if row is None else Hold(agency, row[0], row[1], Reason(row[2]))


_WITH_A_JOB = """
SELECT 1 FROM message WHERE agency = %s AND job IS NOT NULL AND due_at IS NOT NULL LIMIT 1
"""

_ADDRESSED = """
SELECT recipient, status, due_at IS NOT NULL AS waits, purged_at IS NULL AS whole,
    count(*) AS number
FROM message
WHERE agency = %s AND status IN ('queued', 'sending', 'delayed', 'failed', 'uncertain')
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
"""

_DISCLOSED = """
SELECT * FROM message WHERE agency = %s AND recipient <> %s AND acknowledged_on IS NULL
    AND (relayed_at IS NOT NULL OR maybe_doubled) ORDER BY id DESC LIMIT %s
"""

_TO_REROUTE = """
SELECT * FROM message JOIN content ON content.message = message.id
WHERE status = %s AND id > %s AND agency = %s AND recipient <> %s
ORDER BY id LIMIT %s FOR UPDATE OF message
"""

_THERE = f"""
SELECT id, sha256 FROM message
WHERE reference = %s AND facts_key = %s AND recipient = %s AND {LIVE}
ORDER BY id DESC LIMIT 1
"""  # noqa: S608 - ours

_CANCEL = """
UPDATE message SET status = 'cancelled', due_at = NULL, job = NULL,
    content_key = content_key || ':rerouted:' || id
WHERE id = %s
"""

_FAIL = "UPDATE message SET status = 'failed', due_at = NULL, job = NULL WHERE id = %s"

_INSERT = """
INSERT INTO message (reference, case_reference, intervention, agency, content_key, sender,
    recipient, message_id, sha256, size, queued_at, trying_since, status, due_at, acknowledge_by,
    facts_key, replaces)
SELECT reference, case_reference, intervention, agency, %(key)s, sender,
    %(recipient)s, %(message_id)s, %(sha256)s, %(size)s, %(now)s, %(now)s, 'queued', %(now)s,
    acknowledge_by, facts_key, id
FROM message WHERE id = %(old)s RETURNING id
"""

_ELSEWHERE = """
SELECT count(*) FROM message WHERE agency = %s AND recipient IS DISTINCT FROM %s
    AND status IN ('queued', 'sending', 'delayed')
"""

_STOP_UNCERTAIN = """
UPDATE message SET due_at = NULL, job = NULL WHERE agency = %s AND recipient IS DISTINCT FROM %s
    AND status = 'uncertain' AND due_at IS NOT NULL
"""

_KEPT = """
SELECT id FROM message WHERE agency = %s AND due_at IS NOT NULL AND job IS NULL
    AND NOT EXISTS (SELECT 1 FROM hold WHERE agency = %s)
ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED
"""

_MAKE_DUE = """
UPDATE message SET due_at = %s, job = made.job, turn = made.turn
FROM unnest(%s::bigint[], %s::bigint[], %s::integer[]) AS made (message, job, turn)
WHERE id = made.message
"""

# Found by leaps over the index, since there may be many that are held.
_KEPT_WITHOUT_HOLD = """
WITH RECURSIVE kept (agency) AS (
    SELECT min(agency) FROM message WHERE due_at IS NOT NULL AND job IS NULL
    UNION ALL
    SELECT (SELECT min(agency) FROM message
            WHERE due_at IS NOT NULL AND job IS NULL AND agency > kept.agency)
    FROM kept WHERE kept.agency IS NOT NULL
)
SELECT agency FROM kept WHERE agency IS NOT NULL AND agency NOT IN (SELECT agency FROM hold)
"""

_KNOWN_ELSEWHERE = f"""
SELECT rerouted.facts_key, rerouted.recipient, message.id, message.status
FROM rerouted JOIN message ON message.id = rerouted.message
WHERE rerouted.facts_key = ANY(%s) AND {LIVE}
"""  # noqa: S608 - ours
