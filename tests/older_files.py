"""Files of SQLite as older versions made them, with nothing in them yet."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from importlib.resources import files
from pathlib import Path

_FIRST = Path(__file__).with_name("outbox-version-1.sql")


def make_older(file: Path, version: int) -> None:
    file.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(_FIRST.read_text(encoding="utf-8"))
        for step in range(2, version + 1):
            script = files("referrals.outboxes.sqlite").joinpath(f"migrate_{step}.sql")
            db.executescript(script.read_text(encoding="utf-8"))
        db.execute(f"PRAGMA user_version = {version}")
