"""What becomes of what is sent: the queue by the command line, over real sockets."""

from __future__ import annotations

import csv
import io
import json
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
    assert referrals("outbox", "list", "--json").json == {
        "counts": {},
        "holds": [],
        "unfinished_and_old": 0,
        "messages": [],
    }
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


def test_an_audit_that_was_cut_short_is_noticed_by_what_was_noted(
    case_file: Path, referrals: Command, relay_env: RelayEnv, home: Path
) -> None:
    send(referrals, relay_env)  # queued, relayed, and the day's retention
    noted = referrals("audit", "verify", "--json").json["noted"]
    assert noted.startswith("3:")
    assert noted in referrals("audit", "verify", "--expect", noted[:18]).out
    with sqlite3.connect(home / "outbox" / "outbox.sqlite3") as database:
        database.execute("DROP TRIGGER audit_is_not_shortened")
        database.execute("DELETE FROM audit WHERE number > 1")
    assert referrals("audit", "verify").code == 0, "nothing shows by itself"
    done = referrals("audit", "verify", "--expect", noted)
    assert (done.code, "the log ends at 1" in done.out) == (12, True)
    assert referrals("audit", "verify", "--expect", f"1:{'0' * 16}").code == 12
    for wrong in ("2", "2:xyz", f"2:{'0' * 15}", f"x:{'0' * 16}"):
        assert referrals("audit", "verify", "--expect", wrong).code == 2, wrong


def test_the_audit_is_listed_and_exported_by_case_and_by_day(
    case_file: Path, referrals: Command, relay_env: RelayEnv, clock: Callable[[timedelta], None]
) -> None:
    reference = send(referrals, relay_env)
    clock(timedelta(days=2))
    referrals("ack", reference)
    for argv in (("list", "--json"), ("export", "--json")):
        for filters, actions in (
            ([], ["queued", "relayed", "retention", "acknowledged"]),
            (["--since", "2026-11-25"], ["acknowledged"]),
            (["--since", "2026-11-24"], ["queued", "relayed", "retention", "acknowledged"]),
            (["--case", "sample-001"], ["queued", "relayed", "acknowledged"]),
            (["--case", "OTHER-1"], []),
        ):
            out = referrals("audit", *argv, *filters).out
            found = (
                json.loads(out) if argv[0] == "list" else [json.loads(x) for x in out.splitlines()]
            )
            assert [entry["action"] for entry in found] == actions
    rows = list(csv.DictReader(io.StringIO(referrals("audit", "export", "--format", "csv").out)))
    assert [row["action"] for row in rows] == ["queued", "relayed", "retention", "acknowledged"]
    assert json.loads(rows[0]["detail"])["intervention"] == "mediation"
    assert referrals("audit", "list", "--since", "yesterday").code == 2
    assert referrals("audit", "list", "--case", "OTHER-1").out == "No entries.\n"


def test_what_is_shown_says_what_to_do_next(
    case_file: Path,
    referrals: Command,
    relay_env: RelayEnv,
    clock: Callable[[timedelta], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = send(referrals, relay_env, BUSY)

    def shown() -> str:
        return referrals("outbox", "show", reference).out

    assert "next step: none: `referrals deliver` tries it again" in shown()
    clock(timedelta(hours=1))
    with Beside(ScriptedRelay(NO)) as relay:
        relay_env(relay.port)
        assert "It is not tried again" in referrals("deliver").out
    assert f"`referrals outbox retry {reference}`" in shown()
    assert "`referrals deliver` tries it" in referrals("outbox", "retry", reference).out
    monkeypatch.setenv("REFERRALS_DELIVERY_ON_UNCERTAIN", "hold")
    with Beside(ScriptedRelay({"content": Drop()})) as relay:
        relay_env(relay.port)
        assert "It waits for you" in referrals("deliver").out
    assert "status: uncertain, waits for you" in shown()
    assert "ask the agency whether it came" in shown()
    referrals("ack", reference)
    assert "status: relayed, answered" in shown()
    assert referrals("outbox", "list", "--status", "failed").out.startswith("None like that.")


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
