"""The commands with their outbox in PostgreSQL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from referrals.bootstrap import now, open_outbox
from referrals.outboxes.postgres import connections
from referrals.settings import Settings
from referrals.settings_sources import read_settings
from referrals.sink import Sink
from tests.conftest import ROOT
from tests.e2e.conftest import REFERRALS, Beside, Command, RelayEnv
from tests.postgres import server
from tests.queued import submissions

SEND = ("send", "mediation", "case.json", "--yes", "--accept-unverified")


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of one with an empty outbox, which the commands use."""
    name = server().emptied()
    monkeypatch.setenv("REFERRALS_DATABASE", server().url(name))
    yield name
    connections.close_idle()


def test_a_referral_from_the_tables_to_the_answer(
    referrals: Command,
    case_file: Path,
    home: Path,
    relay_env: RelayEnv,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REFERRALS_OUTBOX", server().url(server().empty_database()))
    refused = referrals("outbox", "list")
    assert (refused.code, "Run `referrals migrate`" in refused.err) == (6, True)
    made = referrals("migrate")
    assert (made.code, "steps made in empty_" in made.out) == (0, True)
    assert "is up to date" in referrals("migrate").out
    assert referrals("migrate", "--json").json == {"done": [], "waiting": []}

    with Beside(Sink()) as relay:
        relay_env(relay.port)
        assert referrals(*SEND).code == 0
        again = referrals(*SEND)
        assert "nothing was submitted now" in again.out.replace("\n", " ")
        assert referrals("deliver").code == 0
        [arrived] = relay.arrived
    [held] = referrals("outbox", "list", "--json").json["messages"]
    reference = held["reference"]
    assert held["status"] == "relayed"
    assert f"{reference}" in arrived.content.decode()
    assert "attempt 1: " in referrals("outbox", "show", reference).out
    assert referrals("ack", reference).code == 0
    assert referrals("due").out == "Nothing is overdue.\n"
    verified = referrals("directory", "verify", "victim-care", "--by", "Sam Smith")
    assert (verified.code, "Sam Smith" in verified.out) == (0, True), verified.said
    assert referrals("outbox", "export", "CASE-1", "--out", "all.zip").said
    chain = referrals("audit", "verify", "--json").json
    assert (chain["ok"], chain["entries"]) == (True, 5)
    assert not (home / "outbox" / "outbox.sqlite3").exists()
    connections.close_idle()


def test_a_batch_is_queued_and_delivered(
    referrals: Command, home: Path, relay_env: RelayEnv, database: str
) -> None:
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        done = referrals(
            "batch", str(ROOT / "samples" / "batch.csv"), "--send", "--accept-unverified"
        )
        assert done.code == 0, done.said
        assert relay.arrived
    counts = referrals("outbox", "list", "--json").json["counts"]
    assert set(counts) == {"relayed"}


def test_a_worker_delivers_what_is_queued_and_stops_when_told_to(
    home: Path, relay_env: RelayEnv, database: str
) -> None:
    settings = read_settings()
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        worker = subprocess.Popen(
            [*REFERRALS, "worker", "--concurrency", "2", "--json"], stdout=subprocess.PIPE
        )
        with open_outbox(settings, "page") as outbox:
            outbox.queue(submissions(5), now())
            until = time.monotonic() + 30
            while outbox.counts() != {"relayed": 5}:
                assert time.monotonic() < until, outbox.counts()
                time.sleep(0.02)
        worker.send_signal(signal.SIGTERM)
        out, _ = worker.communicate(timeout=30)
        assert worker.returncode == 0
        assert len(relay.arrived) == 5
    decoder, rest, told = json.JSONDecoder(), out.decode().strip(), []
    while rest:
        one, end = decoder.raw_decode(rest)
        told.append(one["reference"])
        rest = rest[end:].strip()
    assert sorted(told) == [f"R-{number}" for number in range(1, 6)]


@pytest.mark.parametrize("command", ["worker", "migrate"])
def test_without_a_database_there_is_nothing_to_do(referrals: Command, command: str) -> None:
    done = referrals(command)
    assert (done.code, "REFERRALS_DATABASE" in done.err) == (5, True)


def test_a_database_that_is_away_keeps_nobody_from_drafting(
    referrals: Command, case_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFERRALS_DATABASE", "postgresql://me:s3cret@127.0.0.1:1/referrals")
    assert referrals("draft", "mediation", "case.json").code == 0
    refused = referrals("outbox", "list")
    assert (refused.code, "referrals on 127.0.0.1:1 can't be used" in refused.err) == (6, True)
    seen = refused.said + referrals("doctor").said + referrals("doctor", "--json").said
    assert "s3cret" not in seen
    assert "(set, not shown)" in seen


# Settings


def test_outbox_may_name_the_database(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("REFERRALS_OUTBOX", "postgresql://me@host/x")
    settings = read_settings()
    assert settings.database is not None
    assert settings.database.get_secret_value() == "postgresql://me@host/x"
    assert settings.outbox == Path("outbox")
    monkeypatch.setenv("REFERRALS_OUTBOX", "/srv/drafts")
    monkeypatch.setenv("REFERRALS_DATABASE", "postgres://me@host/x")
    assert read_settings().outbox == Path("/srv/drafts")


def test_the_password_may_lie_among_the_secrets(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    (home / "secrets").mkdir()
    (home / "secrets" / "database_password").write_text("s3cret\n")
    monkeypatch.setenv("REFERRALS_SECRETS", str(home / "secrets"))
    monkeypatch.setenv("REFERRALS_DATABASE", "postgresql://me@host/x")
    settings = read_settings()
    assert settings.database_password is not None
    assert settings.database_password.get_secret_value() == "s3cret"
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ('outbox = "postgresql://me:s3cret@host/x"', "holds a password"),
        ('database = "postgresql://me@host/x?password=s3cret"', "holds a password"),
        ('database_password = "s3cret"', "can't be set here"),
        ('database = "mysql://me:s3cret@host/x"', "no URL of PostgreSQL's"),
    ],
)
def test_a_password_in_settings_toml_is_refused_and_not_repeated(
    referrals: Command, home: Path, monkeypatch: pytest.MonkeyPatch, toml: str, says: str
) -> None:
    (home / "config").mkdir()
    (home / "config" / "settings.toml").write_text(f"{toml}\n")
    monkeypatch.setenv("REFERRALS_CONFIG", str(home / "config"))
    done = referrals("outbox", "list")
    assert (done.code, says in done.said, "s3cret" in done.said) == (5, True, False), done.said


def test_a_url_that_is_none_is_refused_and_not_repeated(
    referrals: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFERRALS_DATABASE", "postgresql://me:s3%cret@host/x")
    done = referrals("outbox", "list")
    assert (done.code, "cret" in done.said) == (5, False)


def test_without_the_packages_it_says_what_to_install(home: Path) -> None:
    hidden = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from referrals.cli import main; sys.exit(main(['outbox', 'list']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", hidden],
        env={**os.environ, "REFERRALS_DATABASE": "postgresql://me@host/x"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 5
    assert b"pip install 'referrals[postgres]'" in done.stderr


def test_a_file_needs_none_of_it(home: Path) -> None:
    """PostgreSQL's packages are loaded only for who uses it."""
    looked = (
        "import sys\nfrom referrals.cli import main\nmain(['outbox', 'list'])\n"
        "sys.exit(any(name in sys.modules for name in ('psycopg', 'procrastinate')))"
    )
    assert subprocess.run([sys.executable, "-c", looked], check=False).returncode == 0
    assert Settings().database is None
