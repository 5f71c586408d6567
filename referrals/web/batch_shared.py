"""A spreadsheet in PostgreSQL, so that any web machine can show it, go on with it and delete it.

What was uploaded, how far it is and what came of it lie in the database. The machine that is asked
to do something with it does so in a folder of its own, which goes when the process ends. Whoever
works on it has a lease, by the database's clock, and renews it; what he would write once another
has it is refused.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from referrals.errors import OutboxUnusable
from referrals.web.batch_folder import DRAFTS, ERRORS, LEFT_OUT, UPLOAD, BatchFolder, workplace

if TYPE_CHECKING:
    from referrals.web.store import Statements, Tables

log = logging.getLogger(__name__)

_SHARED = (ERRORS, LEFT_OUT, DRAFTS)
_PIECE = 1 << 20
_LEASE_S = 10
_RENEW_EVERY_S = 1.0


class SharedBatch(BatchFolder):
    """All but what is done in its folder raises OutboxUnusable where the database can't be used.

    Args:
        outbox: of this machine, where it works.
        worker: on the job's side, which process it is.
    """

    def __init__(self, tables: Tables, outbox: Path, batch_id: str, worker: str = "") -> None:
        super().__init__(workplace(outbox, batch_id, worker))
        self._tables = tables
        self._outbox = outbox
        self._id = batch_id
        self._worker = worker
        self._renewed_at = 0.0
        self._is_to_stop = False

    # The page's side

    def receive(self, file: IO[bytes]) -> None:
        with self._tables.writing() as db:
            db.execute("INSERT INTO batch (id, status) VALUES (?, ?)", (self._id, _LOST))
            self._put(db, UPLOAD, file)

    def start(self, order: Mapping[str, Any], ended: Callable[[], None] = lambda: None) -> bool:
        worker = secrets.token_hex(8)
        with self._tables.writing() as db:
            claimed = db.execute(
                "UPDATE batch SET worker = ?, lease_until = now() + ? * interval '1 second',"
                " stop = false, status = ?"
                " WHERE id = ? AND (lease_until IS NULL OR lease_until <= now())",
                (worker, _LEASE_S, json.dumps({"step": "waiting"}), self._id),
            )
        if claimed.rowcount != 1:
            return False
        job = SharedBatch(self._tables, self._outbox, self._id, worker)
        try:
            job._start(order, ended)
        except BaseException:
            job.end()
            raise
        return True

    def _start(self, order: Mapping[str, Any], ended: Callable[[], None]) -> None:
        for folder in (self.path.parent, self.path):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = self._lock_own()

        def gone() -> None:
            try:
                self.end()
            except OutboxUnusable as error:  # then its lease runs out
                log.warning("%s", error)
            ended()

        try:
            self._spawn({**order, "batch": self._id, "worker": self._worker}, handle, gone)
        finally:
            os.close(handle)

    def status(self) -> dict[str, Any]:
        with self._tables.reading() as db:
            row = db.execute(
                "SELECT status, coalesce(lease_until > now(), false) AS running"
                " FROM batch WHERE id = ?",
                (self._id,),
            ).fetchone()
        told: dict[str, Any] = json.loads(row["status"] if row else _LOST)
        return told | {"running": bool(row and row["running"])}

    @property
    def is_running(self) -> bool:
        return bool(self.status()["running"])

    def has(self, name: str) -> bool:
        with self._tables.reading() as db:
            found = db.execute(
                "SELECT 1 FROM batch_file WHERE batch = ? AND name = ? LIMIT 1", (self._id, name)
            ).fetchone()
        return found is not None

    def opened(self, name: str) -> tuple[int, Iterator[bytes]] | None:
        with self._tables.reading() as db:
            row = db.execute(
                "SELECT made, count(*) AS count, sum(length(octets)) AS size FROM batch_file"
                " WHERE batch = ? AND name = ? GROUP BY made",
                (self._id, name),
            ).fetchone()
        if row is None:
            return None

        def pieces() -> Iterator[bytes]:
            # Each on its own: a browser may be slow, and keeps no connection for that.
            for number in range(row["count"]):
                with self._tables.reading() as db:
                    piece = db.execute(
                        "SELECT octets FROM batch_file"
                        " WHERE batch = ? AND name = ? AND made = ? AND number = ?",
                        (self._id, name, row["made"], number),
                    ).fetchone()
                if piece is None:
                    raise OutboxUnusable("The file was made anew while it was read. Read it again.")
                yield bytes(piece["octets"])

        return int(row["size"]), pieces()

    def stop(self) -> None:
        with self._tables.writing() as db:
            db.execute("UPDATE batch SET stop = true WHERE id = ?", (self._id,))

    def remove(self) -> bool:
        with self._tables.writing() as db:
            db.execute(
                "DELETE FROM batch WHERE id = ? AND (lease_until IS NULL OR lease_until <= now())",
                (self._id,),
            )
            left = db.execute("SELECT 1 FROM batch WHERE id = ?", (self._id,)).fetchone()
        return left is None

    # The job's side

    def begin(self) -> None:
        found = self.opened(UPLOAD)
        if found is None:
            raise OutboxUnusable("The spreadsheet was deleted meanwhile.")
        with super().placing(UPLOAD) as path, path.open("wb") as kept:
            for piece in found[1]:
                kept.write(piece)

    def end(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        with self._tables.writing() as db:
            db.execute(
                "UPDATE batch SET worker = NULL, lease_until = NULL WHERE id = ? AND worker = ?",
                (self._id, self._worker),
            )

    @property
    def is_to_stop(self) -> bool:
        """Asked again and again, which renews the lease."""
        if time.monotonic() - self._renewed_at < _RENEW_EVERY_S:
            return self._is_to_stop
        self._renewed_at = time.monotonic()
        try:
            with self._tables.writing() as db:
                row = db.execute(
                    "UPDATE batch SET lease_until = now() + ? * interval '1 second'"
                    " WHERE id = ? AND worker = ? RETURNING stop",
                    (_LEASE_S, self._id, self._worker),
                ).fetchone()
        except OutboxUnusable:  # it may come back before the lease has run out
            return self._is_to_stop
        self._is_to_stop = row is None or bool(row["stop"])
        return self._is_to_stop

    def tell(self, status: Mapping[str, Any]) -> None:
        with self._tables.writing() as db:
            self._check_lease(db)
            db.execute("UPDATE batch SET status = ? WHERE id = ?", (json.dumps(status), self._id))

    @contextmanager
    def placing(self, name: str) -> Iterator[Path]:
        with super().placing(name) as path:
            yield path
        if name in _SHARED:
            with self._tables.writing() as db, (self.path / name).open("rb") as file:
                self._check_lease(db)
                self._put(db, name, file)

    def tidy(self, *more: str) -> None:
        super().tidy(*more)
        if more and self._worker:
            with self._tables.writing() as db:
                self._check_lease(db)
                for name in more:
                    self._forget(db, name)

    def _check_lease(self, db: Statements) -> None:
        row = db.execute("SELECT worker FROM batch WHERE id = ? FOR UPDATE", (self._id,)).fetchone()
        if row is None or row["worker"] != self._worker:
            raise OutboxUnusable("The spreadsheet is another process’s by now, or was deleted.")

    def _put(self, db: Statements, name: str, file: IO[bytes]) -> None:
        self._forget(db, name)
        made, number = secrets.token_hex(8), 0
        while (piece := file.read(_PIECE)) or not number:
            db.execute(
                "INSERT INTO batch_file (batch, name, made, number, octets) VALUES (?, ?, ?, ?, ?)",
                (self._id, name, made, number, piece),
            )
            number += 1

    def _forget(self, db: Statements, name: str) -> None:
        db.execute("DELETE FROM batch_file WHERE batch = ? AND name = ?", (self._id, name))


_LOST = json.dumps({"step": "lost"})


def sweep_shared(tables: Tables) -> None:
    """Remove those that nobody has any more: their document has expired, or was forgotten."""
    with tables.writing() as db:
        db.execute(
            "DELETE FROM batch WHERE made_at < now() - interval '1 hour'"
            " AND (lease_until IS NULL OR lease_until <= now())"
            " AND NOT EXISTS (SELECT 1 FROM document WHERE kind = 'batch' AND id = batch.id)"
        )
