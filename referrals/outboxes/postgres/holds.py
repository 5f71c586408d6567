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
from referrals.outboxes.postgres import jobs
from referrals.outboxes.postgres.account import held_of
from referrals.outboxes.postgres.connections import Connection, is_text, one
from referrals.outboxes.postgres.database import Row
from referrals.outboxes.postgres.retention import PostgresRetention
from referrals.queueing import LIVE, REROUTED_TO, Held, Queued

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
            if not self._read(_WITH_A_JOB, (agency, 1)) or time.monotonic() >= until:
                return answer
            time.sleep(_PAUSE_S)

    @staticmethod
    def _keep(db: Connection, agency: str) -> int:
        """Take their jobs from some that wait for an agency. Returns how many there were."""
        # Jobs first, as whoever claims locks them; in steps, since for the two joined the server
        # has a very bad plan where its statistics are of a time when nothing waited.
        waiting = db.execute(_WITH_A_JOB, (agency, _PORTION)).fetchall()
        gone = jobs.forget_waiting(db, [job for (job,) in waiting])
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
        for row in rows:
            if row["job"] is not None:  # queued in the moment in which the hold began
                jobs.cancel(db, row["job"])
        return self._reroute_all(db, rerouting, rows, now) if rows else []

    def _reroute_all(
        self, db: Connection, rerouting: Rerouting, rows: list[Row], now: datetime
    ) -> list[Rerouted]:
        """In a few statements, however many there are: each is a way to the server and back."""
        from referrals.holding import NOT_INTACT, Kept, Rerouted

        columns = [[row[name] for row in rows] for name in ("id", "reference", "facts_key")]
        found = db.execute(_THERE, [*columns, rerouting.recipient]).fetchall()
        there: dict[int, tuple[int, str]] = {old: (new, sha256) for old, new, sha256 in found}
        kept = {row["id"]: Kept(row["recipient"], row["sha256"], row["octets"]) for row in rows}
        made: dict[int, Readdressed] = {}
        by_facts: dict[tuple[str, str], int] = {}  # the same facts, at two old addresses
        twice: dict[int, int] = {}
        broken = []
        for row in rows:
            number, facts = row["id"], (row["reference"], row["facts_key"])
            if number in there:
                continue
            if row["facts_key"] is not None and facts in by_facts:
                twice[number] = by_facts[facts]
                continue
            token = secrets.token_hex(8)
            new = rerouting.message(row["reference"], row["message_id"], kept[number], token, now)
            if new is None:
                broken.append(number)
                continue
            made[number] = new
            by_facts[facts] = number
        db.execute(_FAIL, (broken,))
        db.execute(_CANCEL, ([number for number in kept if number not in broken],))
        after = self._insert_instead(db, rows, rerouting.recipient, made, now)
        ends = {
            **there,
            **{old: (after[old], one.sha256) for old, one in made.items()},
            **{old: (after[first], made[first].sha256) for old, first in twice.items()},
        }
        self._note_addresses(db, rerouting.recipient, rows, ends)
        done = []
        for row in rows:
            number, reference, case_reference = row["id"], row["reference"], row["case_reference"]
            if number not in ends:
                self._log(now, "failed", reference, case_reference, {"why": NOT_INTACT})
                done.append(Rerouted(reference, number, None))
                continue
            end, sha256 = ends[number]
            detail = rerouting.detail(kept[number], row["intervention"], sha256)
            self._log(now, "rerouted", reference, case_reference, detail)
            done.append(Rerouted(reference, number, end, joined=number not in made))
        return done

    @staticmethod
    def _insert_instead(
        db: Connection,
        rows: list[Row],
        recipient: str,
        made: dict[int, Readdressed],
        now: datetime,
    ) -> dict[int, int]:
        """By the old one's number that of the new one, which takes over its key."""
        moved = [row for row in rows if row["id"] in made]
        news = [made[row["id"]] for row in moved]
        inserted = db.execute(
            _INSERT,
            {
                "recipient": recipient,
                "now": now,
                "olds": [row["id"] for row in moved],
                "keys": [row["content_key"] for row in moved],
                "message_ids": [new.message_id for new in news],
                "sha256s": [new.sha256 for new in news],
                "sizes": [len(new.content) for new in news],
            },
        ).fetchall()
        after = {old: number for number, old in inserted}
        db.cursor().executemany(
            "INSERT INTO content VALUES (%s, %b)",
            [(after[old], new.content) for old, new in made.items()],
        )
        return after

    @staticmethod
    def _note_addresses(
        db: Connection, recipient: str, rows: list[Row], ends: dict[int, tuple[int, str]]
    ) -> None:
        """Under which facts and addresses a message is known from here on."""
        known: dict[tuple[str, str], int] = {}
        moved: list[tuple[str, int, int]] = []
        for row in rows:
            facts, number = row["facts_key"], row["id"]
            if facts is None or number not in ends:
                continue
            end = ends[number][0]
            moved.append((facts, number, end))
            known[facts, row["recipient"]] = known[facts, recipient] = end
        if not moved:
            return
        db.execute(_MOVE_KNOWN, [list(column) for column in zip(*moved, strict=True)])
        db.execute(
            _NOTE_KNOWN,
            [
                [facts for facts, _ in known],
                [address for _, address in known],
                list(known.values()),
            ],
        )

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
SELECT job FROM message WHERE agency = %s AND job IS NOT NULL AND due_at IS NOT NULL LIMIT %s
"""

_ADDRESSED = """
SELECT recipient, status, due_at IS NOT NULL AS waits, purged_at IS NULL AS whole,
    count(*) AS number
FROM message
WHERE agency = %s AND status IN ('queued', 'sending', 'delayed', 'failed', 'uncertain')
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
"""

_DISCLOSED = f"""
SELECT message.*, {REROUTED_TO}
FROM message WHERE agency = %s AND recipient <> %s AND acknowledged_on IS NULL
    AND (relayed_at IS NOT NULL OR maybe_doubled) ORDER BY id DESC LIMIT %s
"""  # noqa: S608 - ours

_TO_REROUTE = """
SELECT * FROM message JOIN content ON content.message = message.id
WHERE status = %s AND id > %s AND agency = %s AND recipient <> %s
ORDER BY id LIMIT %s FOR UPDATE OF message
"""

_THERE = f"""
SELECT DISTINCT ON (given.id) given.id, message.id, message.sha256
FROM unnest(%s::bigint[], %s::text[], %s::text[]) AS given (id, reference, facts_key)
JOIN message ON message.reference = given.reference AND message.facts_key = given.facts_key
WHERE message.recipient = %s AND {LIVE}
ORDER BY given.id, message.id DESC
"""  # noqa: S608 - ours

_CANCEL = """
UPDATE message SET status = 'cancelled', due_at = NULL, job = NULL,
    content_key = content_key || ':rerouted:' || id
WHERE id = ANY(%s)
"""

_FAIL = "UPDATE message SET status = 'failed', due_at = NULL, job = NULL WHERE id = ANY(%s)"

_INSERT = """
INSERT INTO message (reference, case_reference, intervention, agency, content_key, sender,
    recipient, message_id, sha256, size, queued_at, trying_since, status, due_at, acknowledge_by,
    facts_key, replaces)
SELECT reference, case_reference, intervention, agency, made.content_key, sender,
    %(recipient)s, made.message_id, made.sha256, made.size, %(now)s, %(now)s, 'queued', %(now)s,
    acknowledge_by, facts_key, id
FROM unnest(%(olds)s::bigint[], %(keys)s::text[], %(message_ids)s::text[], %(sha256s)s::text[],
    %(sizes)s::integer[]) AS made (old, content_key, message_id, sha256, size)
JOIN message ON id = made.old
ORDER BY id RETURNING id, replaces
"""

_MOVE_KNOWN = """
UPDATE rerouted SET message = moved.after
FROM unnest(%s::text[], %s::bigint[], %s::bigint[]) AS moved (facts_key, before, after)
WHERE rerouted.facts_key = moved.facts_key AND rerouted.message = moved.before
"""

_NOTE_KNOWN = """
INSERT INTO rerouted SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[])
ON CONFLICT (facts_key, recipient) DO UPDATE SET message = excluded.message
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
