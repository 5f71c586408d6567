"""Postfix's smtp-sink with each of its faults at each command, and the account after it.

Each time a batch meets the fault, then a relay without one; between the two, a person decides what
only a person can.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from referrals.errors import RelayRefused, TransientDeliveryError
from referrals.outboxes.sqlite.outbox import SqliteOutbox
from tests.conftest import NOW
from tests.office import Office
from tests.queued import submission, submissions
from tests.smtp_sink import SmtpSink

COUNT, LANES = 20, 3


class Desk(Office):
    def deliver_the_rest(self, arrived: Iterable[bytes] = (), doubts: int = 0) -> set[str]:
        """All is relayed in the end; the references of what may have arrived twice."""
        self.now += timedelta(days=1)
        with SmtpSink() as relay:
            report = self.deliver(relay)
        assert report.relay_fault is None
        counts = self.check_in_part([*arrived, *relay.arrived], doubts)
        assert counts == {"relayed": len(self.queued)}
        return self.in_doubt()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Desk]:
    with SqliteOutbox.open(tmp_path / "outbox" / "outbox.sqlite3", "tester") as outbox:
        office = Desk(outbox)
        office.queue(submissions(COUNT))
        yield office


# What the relay leaves out


@pytest.mark.parametrize(
    "options",
    [[], ["-p"], ["-8"], ["-a"], ["-C"], ["-E"], ["-F"], ["-N"], ["-T", "1000"],
     ["-8", "-a", "-C", "-E", "-F", "-N", "-p"], ["-m", "1"]],
    ids="".join,
)  # fmt: skip
def test_with_or_without_extensions_all_arrive_once(options: list[str], office: Desk) -> None:
    with SmtpSink(*options) as relay:
        report = office.deliver(relay, lanes=LANES, timeout_s=1.0)

    assert report.relay_fault is None
    assert office.check(relay.arrived) == {"relayed": COUNT}
    assert Counter(relay.arrived) == Counter(one.outgoing.content for one in office.queued)
    assert office.attempts() == COUNT


@pytest.mark.parametrize("option", ["-e", "-P", "-L"])
def test_a_relay_without_esmtp_loses_nothing(option: str, office: Desk) -> None:
    """Whether HELO does instead (RFC 5321 §3.2) or it is refused: all or nothing."""
    with SmtpSink(option) as relay:
        report = office.deliver(relay)
    refused = isinstance(report.relay_fault, RelayRefused)
    assert office.check(relay.arrived) == {"queued" if refused else "relayed": COUNT}
    assert office.deliver_the_rest(relay.arrived) == set()


# A fault at each command

BEFORE_MESSAGE = ("connect", "ehlo")
OF_MESSAGE = ("mail", "rcpt", "data")


@pytest.mark.parametrize("lanes", [1, LANES])
@pytest.mark.parametrize("command", [*BEFORE_MESSAGE, *OF_MESSAGE])
@pytest.mark.parametrize("fault", ["-q", "-Q", "-r"])
def test_what_breaks_before_the_message_is_handed_over_delays_it_at_most(
    fault: str, command: str, lanes: int, office: Desk
) -> None:
    with SmtpSink(fault, command) as relay:
        report = office.deliver(relay, lanes=lanes)
    assert relay.arrived == []
    assert set(office.check([])) <= {"queued", "delayed"}
    if command in BEFORE_MESSAGE:
        assert isinstance(report.relay_fault, TransientDeliveryError)
        assert office.attempts() == 0
    assert office.attempts() <= COUNT, "each is tried once a run"

    assert office.deliver_the_rest() == set()


@pytest.mark.parametrize("command", BEFORE_MESSAGE)
def test_a_relay_that_wants_nobody_fails_no_referral(command: str, office: Desk) -> None:
    with SmtpSink("-f", command) as relay:
        report = office.deliver(relay)
    if command == "connect" or report.relay_fault is not None:  # HELO may do for EHLO
        assert isinstance(report.relay_fault, RelayRefused)
        assert (office.check([]), office.attempts()) == ({"queued": COUNT}, 0)

    assert office.deliver_the_rest(relay.arrived) == set()


@pytest.mark.parametrize("lanes", [1, LANES])
@pytest.mark.parametrize("command", [*OF_MESSAGE, "."])
def test_what_is_refused_for_good_waits_for_a_person(
    command: str, lanes: int, office: Desk
) -> None:
    with SmtpSink("-f", command) as relay:
        report = office.deliver(relay, lanes=lanes)
    assert report.relay_fault is None
    assert office.check([]) == {"failed": COUNT}
    assert {one.outcome for one in office.outbox.attempts(1)} == {"failed"}

    office.retry_failed()
    assert office.deliver_the_rest() == set()


@pytest.mark.parametrize("lanes", [1, LANES])
@pytest.mark.parametrize("fault", ["-Q", "-r"])
def test_a_4yz_after_the_dot_is_no_acceptance(fault: str, lanes: int, office: Desk) -> None:
    with SmtpSink(fault, ".") as relay:
        office.deliver(relay, lanes=lanes)
    assert relay.arrived, "it had them, and said that it won't keep them"
    # Whether the rest of the queue is tried where one after another is put off is not said here.
    counts = office.check([])
    assert counts["delayed"]
    assert counts["delayed"] + counts["queued"] == COUNT

    assert office.deliver_the_rest() == set()


@pytest.mark.parametrize("lanes", [1, LANES])
def test_a_link_cut_after_the_dot_is_in_doubt_and_no_other_is(lanes: int, office: Desk) -> None:
    with SmtpSink("-q", ".") as relay:
        report = office.deliver(relay, lanes=lanes)
    assert report.relay_fault is not None, "ten in a row are enough"
    arrived = len(relay.arrived)
    assert 10 <= arrived < 10 + lanes
    counts = office.check([], relay.arrived)
    assert counts == {"uncertain": arrived, "queued": COUNT - arrived}

    assert len(office.deliver_the_rest(relay.arrived, COUNT)) == arrived


@pytest.mark.parametrize("fault", ["-q", "-Q", "-r", "-f"])
def test_no_fault_in_quit_matters(fault: str, office: Desk) -> None:
    with SmtpSink(fault, "quit") as relay:
        report = office.deliver(relay)
    assert report.relay_fault is None
    assert office.check(relay.arrived) == {"relayed": COUNT}


@pytest.mark.parametrize("refusal", ["-r", "-f"])
@pytest.mark.parametrize("fault", ["-q", "-Q", "-r", "-f"])
def test_a_relay_that_can_not_forget_gets_another_link_for_the_next(
    fault: str, refusal: str, office: Desk
) -> None:
    options = [fault, "rcpt,rset"] if fault == refusal else [refusal, "rcpt", fault, "rset"]
    with SmtpSink(*options) as relay:
        report = office.deliver(relay)
    counts = office.check([])
    if refusal == "-f":
        assert report.relay_fault is None
        assert counts == {"failed": COUNT}
    else:
        assert counts["delayed"] >= 2, "the first is not the last"
        assert counts["delayed"] + counts["queued"] == COUNT
    assert office.attempts() == COUNT - counts["queued"]

    office.retry_failed()
    assert office.deliver_the_rest() == set()


def test_a_refusal_before_the_dot_is_one(office: Desk) -> None:
    """smtp-sink says 550 right after its 354 and reads no more."""
    with SmtpSink("-A", "0") as relay:
        office.deliver(relay)
    assert relay.arrived == []
    # Which of the 550 and the lost link is noticed first, nobody can say.
    assert set(office.check([])) <= {"failed", "delayed", "uncertain"}

    office.retry_failed()
    assert office.deliver_the_rest() == set()


# Slow, silent, gone


@pytest.mark.parametrize("pipelining", [[], ["-p"]], ids=["pipelining", ""])
@pytest.mark.parametrize("command", [*BEFORE_MESSAGE, *OF_MESSAGE, "."])
def test_a_slow_relay_is_waited_for(command: str, pipelining: list[str], office: Desk) -> None:
    """Slow and told several commands at once, smtp-sink 3.7 says 503 to the second before the
    first's 250: a relay that bears no pipelining, whatever it offers.
    """
    with SmtpSink("-W", f"{command}:1", *pipelining) as relay:
        lanes = 1 if command in BEFORE_MESSAGE else COUNT
        report = office.deliver(relay, lanes=lanes, timeout_s=20.0, final_wait_s=20.0)
    assert report.relay_fault is None
    assert office.check(relay.arrived) == {"relayed": COUNT}


@pytest.mark.parametrize("pipelining", [[], ["-p"]], ids=["pipelining", ""])
@pytest.mark.parametrize("command", [*BEFORE_MESSAGE, *OF_MESSAGE])
def test_a_silent_relay_is_given_up_and_nothing_is_in_doubt(
    command: str, pipelining: list[str], office: Desk
) -> None:
    with SmtpSink("-W", f"{command}:60", *pipelining) as relay:
        office.deliver(relay, lanes=COUNT, timeout_s=0.3)
    assert relay.arrived == []
    assert set(office.check([])) <= {"queued", "delayed"}

    assert office.deliver_the_rest() == set()


def test_silence_after_the_dot_is_doubt(office: Desk) -> None:
    with SmtpSink("-W", ".:60") as relay:
        office.deliver(relay, lanes=COUNT, timeout_s=5.0, final_wait_s=0.5)
    assert office.check([], relay.arrived) == {"uncertain": COUNT}
    assert len(office.deliver_the_rest(relay.arrived, COUNT)) == COUNT


def test_a_relay_that_reads_slowly_is_waited_for_or_given_up(office: Desk) -> None:
    big = submission(COUNT + 1, content=b"Subject: big\r\n\r\n" + b"twelve bytes\r\n" * 300_000)
    office.queue([big])
    with SmtpSink("-H", "1", "-T", "4000") as relay:
        office.deliver(relay, lanes=COUNT + 1, timeout_s=0.4)
        assert big.outgoing.content not in relay.arrived
    counts = office.check(relay.arrived)
    assert office.outbox.held(reference=big.outgoing.reference)[0].status == "delayed"
    assert counts["delayed"] + counts["relayed"] == COUNT + 1

    office.now += timedelta(days=1)
    with SmtpSink("-H", "1", "-T", "4000") as second:
        office.deliver(second, lanes=2, timeout_s=20.0)
    assert office.check([*relay.arrived, *second.arrived]) == {"relayed": COUNT + 1}


@pytest.mark.parametrize("timeout_s", [0.5, 20.0])
def test_a_relay_that_sleeps_for_a_while(timeout_s: float, office: Desk) -> None:
    """Stopped in the midst of a batch. Who has no patience is in doubt of what was under way."""
    with SmtpSink() as relay:
        alarm = threading.Timer(1.0, relay.resume)

        def told(*_: object) -> None:
            if len(relay.arrived) >= 5 and alarm.ident is None:
                relay.pause()
                alarm.start()

        office.deliver(relay, timeout_s=timeout_s, final_wait_s=timeout_s, told=told)
        alarm.join()
        # Awake again, it goes through what had been written to it.
        office.now += timedelta(days=1)
        office.deliver(relay)
    assert not (office.in_doubt() and timeout_s > 1)
    assert office.check_in_part(relay.arrived, LANES) == {"relayed": COUNT}


@pytest.mark.parametrize("lanes", [1, LANES])
@pytest.mark.parametrize("options", [["-M", "7"], ["-n", "1", "-q", "rset"]], ids="".join)
def test_a_relay_that_ends_in_the_midst(options: list[str], lanes: int, office: Desk) -> None:
    with SmtpSink(*options) as relay:
        office.deliver(relay, lanes=lanes)
    office.check_in_part(relay.arrived, lanes)
    doubtful = office.in_doubt()

    assert office.deliver_the_rest(relay.arrived, lanes) == doubtful


@pytest.mark.parametrize("lanes", [1, LANES])
def test_a_relay_that_is_killed_in_the_midst(lanes: int, office: Desk) -> None:
    with SmtpSink() as relay:
        office.deliver(
            relay, lanes=lanes, told=lambda *_: relay.kill() if len(relay.arrived) >= 6 else None
        )
    whole = {one.outgoing.content for one in office.queued}
    arrived = [one for one in relay.arrived if one in whole]  # it may have been writing one
    counts = office.check_in_part(arrived, lanes)
    assert counts["queued"] + counts["delayed"] > 0
    doubtful = office.in_doubt()

    assert office.deliver_the_rest(arrived, lanes) == doubtful


def test_a_relay_that_hangs_up_on_the_idle_is_called_again(office: Desk) -> None:
    """Its patience (1 s) is shorter than the pace at which messages go out (2 s)."""
    for one in office.queued[2:]:
        office.outbox.cancel(one.outgoing.reference, NOW)
    began = time.monotonic()
    with SmtpSink("-t", "1") as relay:
        report = office.deliver(
            relay,
            lanes=1,
            rate_per_minute=30,
            now=lambda: NOW + timedelta(seconds=time.monotonic() - began),
        )
    assert report.relay_fault is None
    assert report.outcomes == {"relayed": 2}
    assert len(relay.arrived) == 2
