"""Makes the tables in PostgreSQL and brings them up to date, a file a step; no step twice.

Ours lie in the schema `referrals`, procrastinate's in `procrastinate`. Of its steps, those named
"pre" go with the programs that run by now and with newer ones; "post" is for when all of them are
new, so these wait until no other worker shows a sign of life.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import psycopg
from procrastinate.schema import SchemaManager

from referrals.errors import OutboxUnusable
from referrals.outboxes.postgres.connections import Connection, Database, translated

_LOCK = 7_261_001
"""Of PostgreSQL's advisory locks, the one that whoever makes a step holds."""
_LIVE_S = 60


@dataclass(frozen=True)
class Step:
    """`name` says whose it is, and orders them."""

    name: str
    schema: str
    file: Traversable

    @property
    def waits(self) -> bool:
        """Whether programs that do not know it yet would be in its way."""
        return _waits(self.name)


def _waits(name: str) -> bool:
    return "_post_" in name


def steps() -> list[Step]:
    """Procrastinate's first: ours build upon them."""
    return [*_of("procrastinate.sql.migrations", "procrastinate"),
            *_of("referrals.outboxes.postgres", "referrals", "schema")]  # fmt: skip


def _of(package: str, schema: str, folder: str = "") -> Iterator[Step]:
    place = files(package)
    place = place.joinpath(folder) if folder else place
    for file in sorted(place.iterdir(), key=lambda one: one.name):
        if file.name.endswith(".sql"):
            yield Step(f"{schema}/{file.name.removesuffix('.sql')}", schema, file)


@dataclass(frozen=True)
class Migrated:
    """What was done, and what waits until other workers have stopped."""

    done: list[str]
    waiting: list[str]


def migrate(database: Database) -> Migrated:
    """Make what is missing. Several may do so at once, and workers may run meanwhile.

    Raises:
        OutboxUnusable: the server says no, or the database was made by a newer version.
    """
    with translated(database), database.connect() as connection:
        connection.execute("SET lock_timeout = 0")
        connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))  # until we hang up
        connection.execute("CREATE SCHEMA IF NOT EXISTS procrastinate")
        connection.execute("CREATE SCHEMA IF NOT EXISTS referrals")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS referrals.step"
            " (name text PRIMARY KEY, made_at timestamptz NOT NULL DEFAULT now())"
        )
        known = steps()
        made = _made(connection)
        _refuse_newer(made, known, database)
        done = []
        if not made:
            done = _make_new(connection, known)
            made = set(done)
        missing = [step for step in known if step.name not in made]
        others = any(step.waits for step in missing) and _others_work(connection)
        for step in missing:
            if not (step.waits and others):
                _make(connection, step)
                done.append(step.name)
        return Migrated(done, [step.name for step in missing if step.name not in done])


def _make_new(connection: Connection, known: list[Step]) -> list[str]:
    """Procrastinate as a whole, which is what its steps come to."""
    theirs = [step.name for step in known if step.schema == "procrastinate"]
    with connection.transaction():
        _in_schema(connection, "procrastinate", SchemaManager.get_schema())
        _note(connection, *theirs)
    return theirs


def _make(connection: Connection, step: Step) -> None:
    with connection.transaction():
        _in_schema(connection, step.schema, step.file.read_text(encoding="utf-8"))
        _note(connection, step.name)


def _in_schema(connection: Connection, schema: str, script: str) -> None:
    # One statement a time, or as many as there are: without values, the server takes them all.
    connection.execute("SELECT set_config('search_path', %s, true)", (schema,))
    connection.execute(script.encode())


def _note(connection: Connection, *names: str) -> None:
    connection.execute("INSERT INTO referrals.step SELECT unnest(%s::text[])", (list(names),))


def _made(connection: Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM referrals.step").fetchall()}


def _others_work(connection: Connection) -> bool:
    return (
        connection.execute(
            "SELECT 1 FROM procrastinate.procrastinate_workers"
            " WHERE last_heartbeat > now() - make_interval(secs => %s)",
            (_LIVE_S,),
        ).fetchone()
        is not None
    )


def check(connection: Connection, database: Database) -> None:
    """Raises OutboxUnusable unless this version can use the tables.

    Steps that wait for old workers to stop are no hindrance, nor are those that a newer version has
    made without waiting: pages and workers of both run side by side until the old are stopped.
    """
    try:
        made = _made(connection)
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        raise OutboxUnusable(
            f"{database.name} has no outbox yet. Run `referrals migrate`."
        ) from None
    known = steps_known()
    _refuse_newer({name for name in made if _waits(name)}, known, database)
    if any(step.name not in made and not step.waits for step in known):
        raise OutboxUnusable(
            f"The outbox in {database.name} was made by an older version of referrals. Run "
            "`referrals migrate`."
        )


_known: list[Step] = []


def steps_known() -> list[Step]:
    """As `steps`, read once: this is asked whenever an outbox is opened."""
    if not _known:
        _known.extend(steps())
    return _known


def _refuse_newer(made: set[str], known: list[Step], database: Database) -> None:
    if made - {step.name for step in known}:
        raise OutboxUnusable(
            f"The outbox in {database.name} was made by a newer version of referrals. Use that "
            "version."
        )


def as_json(migrated: Migrated) -> dict[str, Any]:
    return {"done": migrated.done, "waiting": migrated.waiting}
