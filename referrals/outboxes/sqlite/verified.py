"""What is recorded of addresses in an outbox, read without opening the whole of it.

Every command that looks at the directory reads this, so it loads SQLite alone, and that only where
there is an outbox.
"""

from __future__ import annotations

import os
import threading
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3

    from referrals.verification import Verification

_PATIENCE_S = 5.0


class Verified:
    """Kept open, for whoever asks again and again, from any thread; it sees what others write.

    Nothing is ever made or changed. Where the file can't be read, nothing is known to be verified:
    drafting goes on, and submitting asks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._gate = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    def read(self) -> tuple[Verification, ...]:
        """By agency and address."""
        with self._gate:
            try:
                about = self._path.stat()
            except OSError:
                self._drop()
                return ()
            return self._records((about.st_dev, about.st_ino))

    def _records(self, file: tuple[int, int]) -> tuple[Verification, ...]:
        import sqlite3

        try:
            if self._connection is None or self._file != file:
                self._drop()
                self._connection, self._file = self._connect(), file
            rows: list[Any] = self._connection.execute(
                "SELECT agency, address, verified_on, verified_by FROM verification"
                " ORDER BY agency, address"
            ).fetchall()
        except sqlite3.Error:
            self._drop()
            return ()
        if not rows:
            return ()
        from referrals.verification import Verification

        return tuple(
            Verification(agency=agency, address=address, on=date.fromisoformat(on), by=by)
            for agency, address, on, by in rows
        )

    def _connect(self) -> sqlite3.Connection:
        import sqlite3

        # Not mode=ro: that leaves SQLite's two other files behind, which nobody needs.
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=_PATIENCE_S,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._file = None

    def close(self) -> None:
        with self._gate:
            self._drop()


def read_verified(path: Path) -> tuple[Verification, ...]:
    """Once, and closed again."""
    if not os.path.exists(path):  # noqa: PTH110 - a third of the time of Path's, at every start
        return ()
    with closing(Verified(path)) as verified:
        return verified.read()
