"""What is kept and for how long, and what is given out or erased for one case."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from referrals.sink import Sink
from tests.conftest import NOW
from tests.e2e.conftest import Beside, Command, RelayEnv
from tests.e2e.test_outbox import BUSY, NO, SEND, clock, send, status
from tests.peers import Drop, ScriptedRelay, Step

__all__ = ["clock"]

Clock = Callable[[timedelta], None]
CANARY = "Alex Sample"


def age(file: Path, days: float) -> None:
    when = (NOW - timedelta(days=days)).timestamp()
    os.utime(file, (when, when))


def everything_in(folder: Path) -> str:
    """What a thief of the folder would read: free pages and logs of the database, dot files."""
    return "".join(
        file.read_bytes().decode("latin-1") for file in folder.rglob("*") if file.is_file()
    )


def test_content_is_forgotten_in_time_and_the_account_stays(
    case_file: Path, referrals: Command, relay_env: RelayEnv, clock: Clock
) -> None:
    reference = send(referrals, relay_env)
    assert referrals("draft", "mediation", "case.json").code == 0
    draft = next(Path("outbox/drafts").glob("*.eml"))
    age(draft, 1)
    assert referrals("outbox", "purge").out == (
        "Content of 0 messages forgotten, 0 old drafts deleted.\n"
    )
    clock(timedelta(days=31))
    assert referrals("outbox", "purge", "--dry-run", "--json").json["purged"] == 1
    assert CANARY in everything_in(Path("outbox"))
    done = referrals("outbox", "purge", "--json").json
    assert (done["purged"], done["drafts_deleted"], done["unfinished"]) == (1, 0, [])
    clock(timedelta(days=91))
    assert str(draft) in referrals("outbox", "purge", "--dry-run").out
    assert draft.exists()
    assert f"1 old draft deleted:\n  {draft}\n" in referrals("outbox", "purge").out
    assert not draft.exists()
    told = referrals("outbox", "show", reference, "--json").json[0]
    assert (told["status"], bool(told["purged_at"])) == ("relayed", True)
    assert CANARY not in everything_in(Path("outbox"))
    assert referrals("audit", "verify").code == 0


@pytest.mark.parametrize("kept", ["failed", "uncertain"])
def test_what_never_arrived_is_told_loudly_and_forgotten_only_when_asked(
    kept: str,
    case_file: Path,
    referrals: Command,
    relay_env: RelayEnv,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REFERRALS_DELIVERY_ON_UNCERTAIN", "hold")
    reference = send(referrals, relay_env, NO if kept == "failed" else {"content": Drop()})
    clock(timedelta(days=89))
    assert referrals("outbox", "list").err == ""
    clock(timedelta(days=91))
    assert "Unfinished: 1 message neither relayed nor cancelled" in referrals("outbox", "list").err
    done = referrals("outbox", "purge")
    assert reference in done.err
    assert f"{kept}" in done.err
    assert "91 days" in done.err
    [one] = referrals("outbox", "purge", "--json").json["unfinished"]
    assert (one["reference"], one["status"], one["days_untouched"]) == (reference, kept, 91)
    assert CANARY in everything_in(Path("outbox"))
    with Beside(ScriptedRelay()) as relay:
        relay_env(relay.port)
        clock(timedelta(days=93))
        assert reference in referrals("deliver").err, "and so does the daily purge"

    assert "1 unfinished message given up" in referrals("outbox", "purge", "--unfinished").out
    assert CANARY not in everything_in(Path("outbox"))
    assert status(referrals, reference) == kept
    assert "refer again from the case" in referrals("outbox", "show", reference).out
    assert referrals("outbox", "retry", reference).code == 6
    last = [entry for entry in referrals("audit", "list", "--json").json if entry["reference"]][-1]
    assert (last["action"], last["detail"]) == ("purged", {"status": kept})
    with Beside(Sink()) as sink:
        relay_env(sink.port)
        assert referrals(*SEND).code == 0, "it may be referred anew"
        assert len(sink.arrived) == 1


@pytest.mark.parametrize("script", [BUSY, {"content": Drop()}], ids=["delayed", "uncertain"])
def test_what_waits_for_the_relay_is_never_purged(
    script: dict[str, Step],
    case_file: Path,
    referrals: Command,
    relay_env: RelayEnv,
    clock: Clock,
) -> None:
    reference = send(referrals, relay_env, script)
    clock(timedelta(days=400))
    done = referrals("outbox", "purge", "--unfinished", "--days", "0", "--json").json
    assert (done["purged"], done["given_up"], len(done["unfinished"])) == (0, 0, 1)
    with Beside(Sink()) as sink:
        relay_env(sink.port)
        assert f"{reference} relayed" in referrals("deliver").out
        assert len(sink.arrived) == 1


def test_one_that_was_touched_of_late_is_not_unfinished(
    case_file: Path, referrals: Command, relay_env: RelayEnv, clock: Clock
) -> None:
    reference = send(referrals, relay_env, NO)
    clock(timedelta(days=80))
    referrals("outbox", "retry", reference)
    with Beside(ScriptedRelay(NO)) as relay:
        relay_env(relay.port)
        assert referrals("deliver").code == 9
    clock(timedelta(days=100))
    done = referrals("outbox", "purge", "--unfinished", "--json").json
    assert (done["given_up"], done["unfinished"]) == (0, [])


def test_deliver_purges_once_a_day_unless_it_is_switched_off(
    case_file: Path,
    referrals: Command,
    relay_env: RelayEnv,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send(referrals, relay_env)
    with Beside(ScriptedRelay()) as relay:
        relay_env(relay.port)

        def purged(later: timedelta) -> int:
            clock(later)
            told: int = referrals("deliver", "--json").json["purged"]
            return told

        monkeypatch.setenv("REFERRALS_DELIVERY_PURGE", "by-hand")
        assert purged(timedelta(days=31)) == 0
        monkeypatch.delenv("REFERRALS_DELIVERY_PURGE")
        monkeypatch.setenv("REFERRALS_DELIVERY_KEEP_CONTENT_DAYS", "40")
        assert purged(timedelta(days=31)) == 0
        monkeypatch.delenv("REFERRALS_DELIVERY_KEEP_CONTENT_DAYS")
        assert purged(timedelta(days=31, hours=23)) == 0, "it was done the same day"
        clock(timedelta(days=32))
        assert "content of 1 message was forgotten" in referrals("deliver").out
        assert purged(timedelta(days=20)) == 0, "the clock was set back: it is done again"
    noted = [
        one for one in referrals("audit", "list", "--json").json if one["action"] == "retention"
    ]
    forgotten = [one["detail"]["messages"] for one in noted]
    assert forgotten == [0, 0, 1, 0], "the first with what was sent"


def test_a_purge_that_fails_keeps_nobody_from_delivering(
    case_file: Path,
    referrals: Command,
    relay_env: RelayEnv,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send(referrals, relay_env, BUSY)
    drafts = Path("outbox/drafts")
    drafts.mkdir()
    age_of = drafts / "old.eml"
    age_of.write_text("Subject: x\r\n\r\n")
    age(age_of, 999)

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    clock(timedelta(days=1, hours=1))
    with Beside(Sink()) as sink, monkeypatch.context() as patched:
        relay_env(sink.port)
        patched.setattr("referrals.retention.Path.unlink", refuse)
        done = referrals("deliver")
        assert (done.code, "was not purged" in done.err, len(sink.arrived)) == (0, True, 1)


# One case


def test_everything_on_one_case_is_exported(
    case_file: Path, referrals: Command, relay_env: RelayEnv, home: Path
) -> None:
    reference = send(referrals, relay_env, BUSY)
    referrals("draft", "mediation", "victim-hardening", "case.json")
    done = referrals("outbox", "export", "sample-001", "--out", "new/held", "--json").json
    assert (done["messages"], done["audit"], done["drafts"]) == (1, 1, 2)
    folder = home / "new" / "held"
    [message] = (folder / "messages").glob("*.eml")
    assert b"X-Unsent" not in message.read_bytes()
    assert len(list((folder / "drafts").glob("*.eml"))) == 2
    account = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    [told] = account["messages"]
    assert (told["reference"], told["file"]) == (reference, f"messages/{message.name}")
    assert told["tries"][0]["words"] == "come back later"
    assert [entry["action"] for entry in account["audit"]] == ["queued"]
    index = (folder / "index.txt").read_text(encoding="utf-8")
    assert f"{reference} mediation, to community@nottinghamcityhomes.org.uk" in index
    assert "451 4.7.1 come back later" in index
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path

    assert referrals("outbox", "export", "SAMPLE-001", "--out", "held.zip").code == 0
    packed = home / "held.zip"
    assert packed.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert set(archive.namelist()) == {str(path.relative_to(folder)) for path in files}
        assert archive.read(f"messages/{message.name}") == message.read_bytes()
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o100600}
    assert referrals("outbox", "export", "NOBODY-1", "--out", "x").code == 6
    assert not (home / "x").exists()


def test_an_export_is_whole_or_not_there(
    case_file: Path,
    referrals: Command,
    relay_env: RelayEnv,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send(referrals, relay_env)
    (home / "full").mkdir()
    (home / "full" / "mine.txt").write_text("mine")
    (home / "there.zip").write_text("mine")
    for out in ("full", "there.zip", "there.zip/inner"):
        done = referrals("outbox", "export", "SAMPLE-001", "--out", out)
        assert (done.code, "Nothing was" in done.err) == (6, True), out
    assert (home / "there.zip").read_text() == "mine"
    (home / "empty").mkdir()
    assert referrals("outbox", "export", "SAMPLE-001", "--out", "empty").code == 0

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(home.rglob("*"))
    with monkeypatch.context() as patched:
        patched.setattr("referrals.case_export.os.fsync", full)
        for out in ("other", "other.zip"):
            done = referrals("outbox", "export", "SAMPLE-001", "--out", out)
            assert (done.code, "No space left" in done.err) == (6, True)
    assert sorted(home.rglob("*")) == before


def test_what_is_erased_is_in_no_file_of_the_outbox(
    case_file: Path, referrals: Command, relay_env: RelayEnv, home: Path
) -> None:
    """The database, its log, drafts, what was left half-written, what a sink has kept."""
    outbox = home / "outbox"
    send(referrals, relay_env)
    referrals("draft", "mediation", "victim-hardening", "case.json")
    referrals("draft", "mediation", "case.json", "--beside", "--set", "people.victim.phone=1")
    [draft, *_] = (outbox / "drafts").glob("*-mediation.eml")
    shutil.copy(draft, outbox / "drafts" / "my own name.eml")
    shutil.copy(draft, outbox / "drafts" / f".{draft.stem}.0a1b2c3d.referral-tmp")
    (outbox / "sink").mkdir()
    shutil.copy(draft, outbox / "sink" / "20261124T120000.000000Z-000001-0.eml")
    other = home / "other.json"
    other.write_text(
        case_file.read_text().replace("SAMPLE-001", "SAMPLE-002").replace(CANARY, "Another Person")
    )
    with Beside(Sink()) as sink:
        relay_env(sink.port)
        assert referrals(*[str(other) if x == "case.json" else x for x in SEND]).code == 0
    referrals("draft", "mediation", str(other))

    said = referrals("outbox", "erase", "sample-001").out
    assert "Content of 1 message would be erased and 6 drafts deleted" in said
    assert "my own name.eml" in said
    assert CANARY in everything_in(outbox)
    with sqlite3.connect(outbox / "outbox.sqlite3") as reading:  # another process is about
        reading.execute("SELECT count(*) FROM message").fetchone()
        done = referrals("outbox", "erase", "SAMPLE-001", "--yes", "--json").json
    reading.close()
    assert (done["erased"], done["drafts_deleted"]) == (1, 6)
    left = everything_in(outbox)
    assert CANARY not in left
    assert "Alex" not in left.replace("=\r\n", "")
    assert "Another Person" in left, "another case is left"
    entries = referrals("audit", "list", "--json", "--case", "SAMPLE-001").json
    assert [one["action"] for one in entries] == ["queued", "relayed", "erased", "erased"]
    assert entries[-1]["detail"] == {"files": 6}
    assert referrals("audit", "verify").code == 0
    again = referrals("outbox", "erase", "SAMPLE-001", "--yes", "--json").json
    assert (again["erased"], again["drafts_deleted"]) == (0, 0)


def test_drafts_alone_can_be_erased_and_what_waits_can_not(
    case_file: Path, referrals: Command, relay_env: RelayEnv, home: Path
) -> None:
    referrals("draft", "mediation", "case.json")
    assert "1 draft deleted" in referrals("outbox", "erase", "SAMPLE-001", "--yes").out
    assert not list((home / "outbox" / "drafts").iterdir())
    assert referrals("outbox", "erase", "SAMPLE-001").code == 6
    reference = send(referrals, relay_env, BUSY)
    referrals("draft", "mediation", "case.json")
    assert f"Cancel or deliver first what still waits: {reference}" in (
        referrals("outbox", "erase", "SAMPLE-001").out
    )
    assert referrals("outbox", "erase", "SAMPLE-001", "--yes").code == 6
    assert len(list((home / "outbox" / "drafts").iterdir())) == 1, "all or nothing"
