"""Whether an outbox in a file is a restored copy, and how that is brought in order.

Nothing about a file shows that it was copied: a folder that is moved, or a container that is made
anew, has another device and other numbers too. So a copy says so itself: `backup` writes it in.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from referrals.delivery import DeliveryStatus
from referrals.errors import NotPossibleNow, OutboxUnusable
from referrals.outboxes.sqlite.account import micros, moment, moment_if
from referrals.outboxes.sqlite.file import sync_folder
from referrals.outboxes.sqlite.holds import SqliteHolds
from referrals.relay_log import reference_of
from referrals.restored import (
    HELD_WORDS,
    NOTED,
    RELAYED_WORDS,
    SAID_SO,
    STILL_WAITS,
    Copied,
    Unsettled,
    Verdict,
    is_possible,
    moment_of,
    settled_words,
)

_WAITS = "(due_at IS NOT NULL OR lease_until IS NOT NULL)"


class SqliteOrigin(SqliteHolds):
    """See `ports.Restoring`."""

    def _refuse_a_copy(self, db: sqlite3.Connection) -> None:
        """Raises OutboxRestored."""
        copied = _found(db)
        if copied is not None:
            raise copied.refusal(self.name)

    def copied(self) -> Copied | None:
        with self._reader() as reader:
            return _found(reader)

    def take_for_copy(self, now: datetime, *, only_say: bool = False) -> Copied:
        def run(db: sqlite3.Connection) -> Copied:
            copied = _found(db)
            if copied is None:
                copied = Copied(SAID_SO, *_end(db))
                if not only_say:
                    _mark(db)
            return copied

        return self._do(run)

    def settled(self, now: datetime, detail: Mapping[str, Any]) -> bool:
        def run(db: sqlite3.Connection) -> bool:
            if _found(db) is None:
                return False
            if db.execute(
                f"SELECT 1 FROM message WHERE {_WAITS}"  # noqa: S608 - ours
                " AND id <= (SELECT last_message FROM origin) LIMIT 1"
            ).fetchone():
                raise NotPossibleNow(STILL_WAITS)
            db.execute("UPDATE origin SET copied_as_of = NULL, last_message = NULL")
            self._log(db, now, NOTED, "", "", detail)
            return True

        return self._do(run)

    def lost_nothing(self, now: datetime) -> bool:
        def run(db: sqlite3.Connection) -> bool:
            if _found(db) is None:
                return False
            db.execute("UPDATE origin SET copied_as_of = NULL, last_message = NULL")
            self._log(db, now, "outbox moved", "", "", {})
            return True

        return self._do(run)

    def unsettled(self, *, waiting: bool, after: int = 0, limit: int) -> list[Unsettled]:
        of = (
            f"{_WAITS} AND id <= coalesce((SELECT last_message FROM origin), id)"  # noqa: S608 - ours
            if waiting
            else f"NOT {_WAITS} AND status IN ('uncertain', 'failed')"
        )
        rows = self._read(
            "SELECT id, reference, message_id, status, purged_at,"  # noqa: S608 - ours
            " (SELECT min(started_at) FROM attempt WHERE attempt.message = message.id"
            "  AND (outcome IS NULL OR outcome = 'uncertain')) AS doubtful_since,"
            " NOT EXISTS (SELECT 1 FROM message AS newer WHERE newer.reference = message.reference"
            "  AND newer.id > message.id) AS is_last"
            f" FROM message WHERE id > ? AND {of} ORDER BY id LIMIT ?",
            (after, limit),
        )
        return [
            Unsettled(
                id=row["id"],
                reference=row["reference"],
                message_id=row["message_id"],
                status=DeliveryStatus(row["status"]),
                doubtful_since=moment_if(row["doubtful_since"]),
                is_whole=row["purged_at"] is None,
                is_last=bool(row["is_last"]),
            )
            for row in rows
        ]

    def settle(self, verdicts: Mapping[int, Verdict], now: datetime) -> Counter[Verdict]:
        if not verdicts:
            return Counter()

        def run(db: sqlite3.Connection) -> Counter[Verdict]:
            copied, found = _found(db), Counter[Verdict]()
            as_of = min(copied.as_of, now) if copied else now
            for number, verdict in sorted(verdicts.items()):
                row = db.execute("SELECT * FROM message WHERE id = ?", (number,)).fetchone()
                waits = row["due_at"] is not None or row["lease_until"] is not None
                if is_possible(verdict, DeliveryStatus(row["status"]), waits, row["purged_at"]):
                    self._settle(db, row, verdict, as_of, now)
                    found[verdict] += 1
            return found

        return self._do(run)

    def _settle(
        self,
        db: sqlite3.Connection,
        row: sqlite3.Row,
        verdict: Verdict,
        as_of: datetime,
        now: datetime,
    ) -> None:
        number, at = row["id"], micros(now)
        if verdict is Verdict.DUE:
            db.execute(
                "UPDATE message SET status = 'queued', due_at = ?, failures = 0 WHERE id = ?",
                (at, number),
            )
        else:
            relayed = verdict is Verdict.RELAYED
            status = "relayed" if relayed else "uncertain"
            words = RELAYED_WORDS if relayed else HELD_WORDS
            ended = db.execute(
                "UPDATE attempt SET ended_at = ?, outcome = ?, words = ?"
                " WHERE message = ? AND ended_at IS NULL",
                (at, status, words, number),
            ).rowcount
            if not ended:
                db.execute(
                    "INSERT INTO attempt (message, started_at, ended_at, outcome, words)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (number, micros(as_of), at, status, words),
                )
            db.execute(
                "UPDATE message SET status = ?, due_at = NULL, lease_until = NULL,"
                " lease_owner = NULL, attempts = attempts + ?,"
                " maybe_doubled = maybe_doubled OR ?, relayed_at = coalesce(relayed_at, ?)"
                " WHERE id = ?",
                (status, int(not ended), not relayed, at if relayed else None, number),
            )
        action, detail = settled_words(verdict, row["status"])
        self._log(db, now, action, row["reference"], row["case_reference"], detail)

    def surely_relayed(self, since: datetime, before: datetime | None = None) -> list[str]:
        rows = self._read(
            "SELECT DISTINCT message_id FROM attempt JOIN message ON message.id = attempt.message"
            " WHERE outcome = 'relayed' AND code IS NOT NULL AND started_at >= ?"
            " AND started_at < coalesce(?, started_at + 1) ORDER BY message_id",
            (micros(since), None if before is None else micros(before)),
        )
        return [row["message_id"] for row in rows]

    def unknown(self, message_ids: Sequence[str]) -> list[str]:
        with self._reader() as reader:
            return [
                each
                for each in message_ids
                if not reader.execute(
                    "SELECT 1 FROM message WHERE reference = ? AND message_id = ?",
                    (reference_of(each), each),
                ).fetchone()
            ]

    def copy_to(self, target: Path) -> None:
        """Make a copy, consistent while others write, which knows that it is one: 0600, or none.

        Raises:
            OutboxUnusable: the target is there, or can't be written.
        """
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            try:
                with self._reader() as reader, closing(sqlite3.connect(partial)) as copy:
                    reader.backup(copy)
                    copy.row_factory = sqlite3.Row
                    copy.execute("PRAGMA journal_mode = DELETE")  # one file, without companions
                    _mark(copy)
                    copy.commit()
                    if copy.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                        raise OutboxUnusable(
                            f"{target} was not made: the outbox {self.path} is damaged. Keep it, "
                            "and see SQLite's `.recover`."
                        )
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                os.link(partial, target)  # never over another
            finally:
                with suppress(OSError):
                    partial.unlink()
            sync_folder(target.parent)
        except FileExistsError:
            raise OutboxUnusable(f"{target} is there already. Name another file.") from None
        except (OSError, sqlite3.Error) as error:
            reason = (
                os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
            )
            raise OutboxUnusable(
                f"{target} was not made: {reason}. Name a file in a folder that you can write to, "
                "with room for it."
            ) from None


def _found(db: sqlite3.Connection) -> Copied | None:
    as_of, last = db.execute("SELECT copied_as_of, last_message FROM origin").fetchone()
    return None if as_of is None else Copied(_WHY, moment(as_of), last)


_WHY = "it was made by `referrals backup`, or somebody has said so"


def _end(db: sqlite3.Connection) -> tuple[datetime, int]:
    """The last moment that the audit knows of, and the last message."""
    last = db.execute("SELECT at FROM audit ORDER BY number DESC LIMIT 1").fetchone()
    (number,) = db.execute("SELECT coalesce(max(id), 0) FROM message").fetchone()
    return moment_of(last[0] if last else None), number


def _mark(db: sqlite3.Connection) -> None:
    as_of, last = _end(db)
    db.execute(
        "UPDATE origin SET copied_as_of = coalesce(copied_as_of, ?),"
        " last_message = coalesce(last_message, ?)",
        (micros(as_of), last),
    )
