"""What becomes of what is sent: the queue by the command line, over real sockets."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest

from referrals.sink import Sink
from tests.conftest import NOW
from tests.e2e.conftest import REFERRALS, Beside, Command, RelayEnv
from tests.peers import Drop, Say, ScriptedRelay, Step

SEND = ("send", "mediation", "case.json", "--yes", "--accept-unverified")
BUSY: dict[str, Step] = {"rcpt": Say(b"451 4.7.1 come back later\r\n")}
NO: dict[str, Step] = {"rcpt": Say(b"550 5.1.1 no such mailbox\r\n")}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Moves the command's clock to so long after noon on 24 November 2026."""

    def at(later: timedelta) -> None:
        monkeypatch.setattr("referrals.bootstrap.now", lambda: NOW + later)

    return at


def send(referrals: Command, relay_env: RelayEnv, script: dict[str, Step] | None = None) -> str:
    """Send the sample; the referral's reference."""
    with Beside(ScriptedRelay(script or {})) as relay:
        relay_env(relay.port)
        referrals(*SEND)
    found: str = referrals("outbox", "list", "--json").json["messages"][0]["reference"]
    return found


def status(referrals: Command, reference: str) -> str:
    found: str = referrals("outbox", "show", reference, "--json").json[0]["status"]
    return found


def test_an_empty_outbox_says_so(referrals: Command, home: Path) -> None:
    assert referrals("outbox", "list").out == "Empty.\n"
    assert referrals("outbox", "list", "--json").json == {"counts": {}, "messages": []}
    assert referrals("due").out == "Nothing is overdue.\n"
    assert "0 entries" in referrals("audit", "verify").out
    for argv in (["show", "X"], ["retry", "X"], ["cancel", "X"], ["erase", "X"]):
        done = referrals("outbox", *argv)
        assert (done.code, "is in the outbox" in done.err or "not in" in done.err) == (6, True)
    assert (home / "outbox" / "outbox.sqlite3").stat().st_mode & 0o777 == 0o600


def test_what_could_not_be_relayed_is_delivered_later_as_it_was_queued(
    case_file: Path, referrals: Command, relay_env: RelayEnv, clock: Callable[[timedelta], None]
) -> None:
    reference = send(referrals, relay_env, BUSY)
    shown = referrals("outbox", "show", reference)
    assert "status: delayed" in shown.out
    assert "451 4.7.1 come back later" in shown.out
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        assert referrals("deliver").code == 0
        assert relay.arrived == [], "it is not due yet"
        clock(timedelta(hours=1))
        done = referrals("deliver")
        assert (done.code, f"{reference} relayed" in done.out) == (0, True)
        assert referrals("deliver", "--json").json["counts"] == {"relayed": 1}
    [arrived] = relay.arrived
    assert arrived.recipients == ("community@nottinghamcityhomes.org.uk",)
    told = referrals("outbox", "show", reference, "--json").json[0]
    assert message_from_bytes(arrived.content)["Message-ID"] == told["message_id"]
    assert [attempt["outcome"] for attempt in told["tries"]] == ["delayed", "relayed"]


def test_the_same_referral_is_sent_once_however_often_it_is_asked_for(
    case_file: Path, referrals: Command, relay_env: RelayEnv, clock: Callable[[timedelta], None]
) -> None:
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        first = referrals(*SEND)
        clock(timedelta(days=1))  # the letter has another date now
        again = referrals(*SEND)
        other = referrals(*SEND, "--set", "answers.mediation.began=In May")
    assert [first.code, again.code, other.code] == [0, 0, 0]
    assert "nothing was submitted now" in again.out.replace("\n", " ")
    assert len(relay.arrived) == 2


@pytest.mark.parametrize(
    ("script", "code", "kept"),
    [(NO, 9, "failed"), (BUSY, 8, "delayed"), ({"content": Drop()}, 10, "delayed")],
)
def test_deliver_tells_by_its_exit_code(
    script: dict[str, Step],
    code: int,
    kept: str,
    case_file: Path,
    referrals: Command,
    relay_env: RelayEnv,
) -> None:
    """An uncertain one is tried again by default, and waits as one that may arrive twice."""
    with Beside(ScriptedRelay()) as relay:
        relay_env(relay.port)
    assert referrals(*SEND).code == 8, "nobody is there: it is queued"
    with Beside(ScriptedRelay(script)) as relay:
        relay_env(relay.port)
        assert referrals("deliver").code == code
    [told] = referrals("outbox", "list", "--json").json["messages"]
    assert told["may_arrive_twice"] == (code == 10)
    assert told["status"] in (kept, "uncertain")


def test_an_uncertain_message_waits_for_a_person_where_that_is_set(
    case_file: Path,
    referrals: Command,
    relay_env: RelayEnv,
    clock: Callable[[timedelta], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REFERRALS_DELIVERY_ON_UNCERTAIN", "hold")
    reference = send(referrals, relay_env, {"content": Drop()})
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        clock(timedelta(days=30))
        referrals("deliver")
        assert relay.arrived == []
        assert referrals(*SEND).code == 10, "asked for again, it is still uncertain"
        assert referrals("outbox", "retry", reference).code == 0
        assert referrals("deliver").code == 0
    assert len(relay.arrived) == 1


def test_a_relay_that_refuses_us_fails_no_referral(
    case_file: Path, referrals: Command, relay_env: RelayEnv
) -> None:
    reference = send(referrals, relay_env, {"mail": Say(b"530 5.7.0 log in first\r\n")})
    told = referrals("outbox", "show", reference, "--json").json[0]
    assert (told["status"], told["attempts"], told["tries"]) == ("queued", 0, [])
    with Beside(ScriptedRelay({"greeting": Say(b"554 5.7.1 not you\r\n")})) as relay:
        relay_env(relay.port)
        assert referrals("deliver").code == 11
        assert referrals("deliver", "--json").json["relay_fault"]


def test_cancel_and_retry_do_what_their_status_allows(
    case_file: Path, referrals: Command, relay_env: RelayEnv
) -> None:
    reference = send(referrals, relay_env, NO)
    assert status(referrals, reference) == "failed"
    assert "outbox retry" in referrals(*SEND).err, "asked for again, it says what to do"
    assert referrals("outbox", "retry", reference.lower()).code == 0
    assert status(referrals, reference) == "queued"
    assert referrals("outbox", "cancel", reference, "--json").json["status"] == "cancelled"
    refused = referrals("outbox", "retry", reference)
    assert (refused.code, "is cancelled" in refused.err) == (6, True)
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        assert referrals("deliver").code == 0
        assert relay.arrived == []
        assert referrals(*SEND).code == 0, "a cancelled one may be asked for anew"
        assert len(relay.arrived) == 1


def test_an_answer_is_awaited_until_it_is_recorded(
    case_file: Path, referrals: Command, relay_env: RelayEnv, clock: Callable[[timedelta], None]
) -> None:
    reference = send(referrals, relay_env)
    assert referrals("due", "--json").json == []
    clock(timedelta(days=8))
    assert reference in referrals("due").out
    assert referrals("due", "--json").json[0]["acknowledge_by"] == "2026-12-01"
    assert referrals("ack", reference).out == f"{reference}: acknowledged 2026-12-02\n"
    assert referrals("due", "--json").json == []
    assert "acknowledged 2026-12-02" in referrals("outbox", "show", reference).out


def test_content_is_forgotten_in_time_and_the_account_stays(
    case_file: Path, referrals: Command, relay_env: RelayEnv, clock: Callable[[timedelta], None]
) -> None:
    reference = send(referrals, relay_env)
    assert referrals("draft", "mediation", "case.json").code == 0
    draft = next(Path("outbox/drafts").glob("*.eml"))
    old = (NOW - timedelta(days=1)).timestamp()
    os.utime(draft, (old, old))
    assert referrals("outbox", "purge", "--json").json == {"purged": 0, "drafts_deleted": 0}
    clock(timedelta(days=31))
    assert referrals("outbox", "purge", "--json").json == {"purged": 1, "drafts_deleted": 0}
    clock(timedelta(days=91))
    assert "1 drafts deleted" in referrals("outbox", "purge").out
    assert not draft.exists()
    told = referrals("outbox", "show", reference, "--json").json[0]
    assert (told["status"], bool(told["purged_at"])) == ("relayed", True)
    assert "Alex Sample" not in everything_in(Path("outbox"))
    assert referrals("audit", "verify").code == 0


def everything_in(folder: Path) -> str:
    """What a thief of the folder would read, free pages of the database included."""
    with sqlite3.connect(folder / "outbox.sqlite3") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return "".join(
        file.read_bytes().decode("latin-1") for file in folder.rglob("*") if file.is_file()
    )


def test_everything_on_one_case_is_exported_and_erased(
    case_file: Path, referrals: Command, relay_env: RelayEnv, home: Path
) -> None:
    reference = send(referrals, relay_env)
    done = referrals("outbox", "export", "sample-001", "--out", "held", "--json").json
    assert (done["messages"], done["audit"]) == (1, 2)
    [message] = (home / "held").glob("*.eml")
    assert b"X-Unsent" not in message.read_bytes()
    [account] = (home / "held").glob("*.json")
    assert json.loads(account.read_text())["messages"][0]["reference"] == reference
    assert "1 messages would be erased" in referrals("outbox", "erase", "SAMPLE-001").out
    assert referrals("outbox", "erase", "SAMPLE-001", "--yes", "--json").json["erased"] == 1
    assert "Alex Sample" not in everything_in(home / "outbox")
    actions = [entry["action"] for entry in referrals("audit", "list", "--json").json]
    assert actions == ["queued", "relayed", "erased"]
    assert referrals("outbox", "export", "NOBODY-1", "--out", "held").code == 6


def test_the_audit_tells_what_kind_of_thing_was_disclosed_and_no_value(
    case_file: Path, referrals: Command, relay_env: RelayEnv
) -> None:
    send(referrals, relay_env)
    lines = [json.loads(line) for line in referrals("audit", "export").out.splitlines()]
    detail = lines[0]["detail"]
    assert detail["address"] == "community@nottinghamcityhomes.org.uk"
    assert detail["accepted_unverified"] is True
    assert "people.victim.name" in detail["facts"]
    assert "dispute" in detail["fields"]
    assert detail["consents"]["victim"] == {"given": True, "on": "2026-11-19"}
    assert "Sample" not in json.dumps([{**line, "case_reference": ""} for line in lines])


def test_an_altered_audit_is_noticed(
    case_file: Path, referrals: Command, relay_env: RelayEnv, home: Path
) -> None:
    send(referrals, relay_env)
    with sqlite3.connect(home / "outbox" / "outbox.sqlite3") as database:
        database.execute("DROP TRIGGER audit_is_not_altered")
        database.execute("UPDATE audit SET actor = 'nobody' WHERE number = 1")
    done = referrals("audit", "verify")
    assert (done.code, "tampered" in done.out) == (12, True)
    assert referrals("audit", "verify", "--json").json["breaks"][0]["number"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_watching_goes_on_until_it_is_stopped(
    number: signal.Signals,
    case_file: Path,
    referrals: Command,
    relay_env: RelayEnv,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process of its own, with the real clock."""
    monkeypatch.setattr("referrals.bootstrap.now", lambda: datetime.now(UTC))
    with Beside(ScriptedRelay()) as relay:
        relay_env(relay.port)
    assert referrals(*SEND).code == 8
    with Beside(Sink()) as sink:
        relay_env(sink.port)
        watcher = subprocess.Popen(
            [*REFERRALS, "deliver", "--watch"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            assert watcher.stdout is not None
            assert b"relayed" in watcher.stdout.readline()
        finally:
            watcher.send_signal(number)
            _, err = watcher.communicate(timeout=30)
    assert watcher.returncode == 0
    assert b"Traceback" not in err
    assert len(sink.arrived) == 1
    assert b"Finishing what is under way" in err


def test_an_outbox_that_is_none_is_said(referrals: Command, home: Path) -> None:
    (home / "outbox").mkdir()
    (home / "outbox" / "outbox.sqlite3").write_bytes(b"not a database, whatever its name" * 99)
    for argv in (["outbox", "list"], ["audit", "verify"], ["due"]):
        done = referrals(*argv)
        assert (done.code, "can't be used" in done.err) == (6, True)
        told: Any = referrals(*argv, "--json").json
        assert told["error"]["code"] == "outbox-unusable"
