"""The worker against relays that refuse, hang up and break, and with an outbox that does."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from pydantic import SecretStr

from referrals import worker as worker_module
from referrals.delivery import DeliveryStatus, Outgoing, Receipt, Reply, RetryPolicy
from referrals.errors import OutboxUnusable, RelayRefused, TransientDeliveryError
from referrals.queueing import Claimed, Held, Outcome
from referrals.settings import RelaySettings, Security
from referrals.sink import Sink
from referrals.transports.smtp import SmtpTransport
from referrals.worker import LEASE, DeliveryOptions, Report, Worker, is_gone, owner_name
from tests.conftest import NOW
from tests.outboxes import Durable, Harness, Outbox, disk_full, durable
from tests.peers import Certificates, Drop, Hang, Say, ScriptedRelay, Step, run, serving
from tests.queued import SENDER, submission, submissions

MINUTE = timedelta(minutes=1)


@dataclass
class Clock:
    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


def worker_on(
    outbox: Outbox,
    relay: worker_module.Relay,
    *,
    now: Callable[[], datetime] = lambda: NOW,
    told: Callable[[Claimed, DeliveryStatus, Outcome], None] = lambda *_: None,
    **options: Any,
) -> Worker:
    chosen = DeliveryOptions(**{"lanes": 1, **options})
    return Worker(outbox, relay, chosen, now=now, jitter=lambda: 0.0, told=told)


def transport(relay: ScriptedRelay | Sink, **more: Any) -> SmtpTransport:
    given = {"host": relay.host, "port": relay.port, "security": Security.NONE, "timeout_s": 5.0}
    return SmtpTransport(RelaySettings(**{**given, **more}), final_wait_s=5.0)


def by_reference(outbox: Outbox) -> dict[str, Held]:
    return {one.reference: one for one in outbox.held(limit=10_000)}


def statuses(outbox: Outbox) -> dict[str, str]:
    return {name: str(one.status) for name, one in sorted(by_reference(outbox).items())}


def untouched(outbox: Outbox, count: int) -> bool:
    """Whether all are queued as they were, with not one attempt to their name."""
    held = outbox.held()
    return len(held) == count and all(
        (one.status, one.due_at, one.attempts, one.maybe_doubled)
        == (DeliveryStatus.QUEUED, NOW, 0, False)
        and outbox.attempts(one.id) == []
        for one in held
    )


@dataclass
class PlannedRelay(ScriptedRelay):
    """A scripted relay whose answer to a step may depend on how often the step came. One link."""

    plan: Callable[[str, int], Step | None] = lambda *_: None
    times: Counter[str] = field(default_factory=Counter)

    async def _answer(
        self,
        name: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        usual: Step | None = None,
    ) -> None:
        self.times[name] += 1
        step = self.plan(name, self.times[name])
        self.script = {name: step} if step else {}
        await super()._answer(name, reader, writer, usual)


def once(name: str, step: Step, time: int = 1) -> Callable[[str, int], Step | None]:
    return lambda asked, times: step if (asked, times) == (name, time) else None


def deliver(outbox: Outbox, relay: ScriptedRelay, **options: Any) -> Report:
    async def scenario() -> Report:
        async with relay:
            return await worker_on(outbox, transport(relay), **options).deliver_due()

    return run(scenario())


# All is well


@pytest.mark.parametrize("lanes", [1, 4])
def test_every_message_arrives_once_byte_for_byte(outbox: Outbox, lanes: int) -> None:
    wanted = submissions(30)
    outbox.queue(wanted, NOW)
    told: list[str] = []

    async def scenario() -> Report:
        async with Sink() as sink:
            report = await worker_on(
                outbox,
                transport(sink),
                lanes=lanes,
                told=lambda claimed, status, _: told.append(
                    f"{claimed.outgoing.reference} {status}"
                ),
            ).deliver_due()
            assert {one.sender for one in sink.arrived} == {SENDER}
            assert Counter(one.content for one in sink.arrived) == Counter(
                one.outgoing.content for one in wanted
            )
            return report

    report = run(scenario())
    assert report.outcomes == {DeliveryStatus.RELAYED: 30}
    assert (report.recovered, report.relay_fault) == (0, None)
    assert outbox.counts() == {"relayed": 30}
    assert sorted(told) == sorted(f"{one.outgoing.reference} relayed" for one in wanted)
    assert not any(one.maybe_doubled for one in outbox.held())


def test_links_are_reused_and_opened_only_for_something(outbox: Outbox) -> None:
    relay = ScriptedRelay()

    async def scenario() -> None:
        async with relay:
            worker = worker_on(outbox, transport(relay), lanes=3)
            await worker.deliver_due()
            assert relay.connections == 0
            outbox.queue(submissions(20), NOW)
            await worker.deliver_due()
            assert 1 <= relay.connections <= 3

    run(scenario())
    assert outbox.counts() == {"relayed": 20}


# The relay wants none of it


@pytest.mark.parametrize("fault", ["login", "no STARTTLS", "certificate", "530 at MAIL", "554"])
def test_a_relay_that_refuses_us_stops_the_run_and_fails_nothing(
    outbox: Outbox, certificates: Certificates, fault: str
) -> None:
    outbox.queue(submissions(5), NOW)
    cases: dict[str, tuple[ScriptedRelay, dict[str, Any]]] = {
        "login": (
            ScriptedRelay({"auth": Say(b"535 5.7.8 no\r\n")}),
            {"username": "robot", "password": SecretStr("secret")},
        ),
        "no STARTTLS": (ScriptedRelay(), {"security": Security.STARTTLS}),
        "certificate": (
            ScriptedRelay(tls=serving(certificates.self_signed)),
            {"security": Security.STARTTLS},
        ),
        "530 at MAIL": (ScriptedRelay({"mail": Say(b"530 5.7.0 log in\r\n")}), {}),
        "554": (ScriptedRelay({"greeting": Say(b"554 5.7.1 not you\r\n")}), {}),
    }
    relay, more = cases[fault]

    async def scenario() -> Report:
        async with relay:
            return await worker_on(outbox, transport(relay, **more), lanes=2).deliver_due()

    report = run(scenario())
    assert isinstance(report.relay_fault, RelayRefused)
    assert report.outcomes == {}
    assert untouched(outbox, 5)
    assert relay.contents == []
    # A wrong password that is tried once a lane may lock the account.
    assert relay.connections == (2 if fault == "530 at MAIL" else 1)


def test_a_relay_that_refuses_us_midway_leaves_the_rest_untried(outbox: Outbox) -> None:
    outbox.queue(submissions(5), NOW)
    relay = PlannedRelay(plan=once("mail", Say(b"530 5.7.0 log in again\r\n"), 3))

    report = deliver(outbox, relay)
    assert isinstance(report.relay_fault, RelayRefused)
    assert outbox.counts() == {"relayed": 2, "queued": 3}
    assert sum(one.attempts for one in outbox.held()) == 2


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize(
    "script",
    [
        {"greeting": Say(b"421 4.3.2 not now\r\n")},
        {"greeting": Drop()},
        {"greeting": Drop(reset=True)},
        {"greeting": Hang()},
        {"ehlo": Drop()},
        {"mail": Say(b"421 4.3.2 shutting down\r\n", close=True)},
        {"mail": Drop()},
        None,
    ],
)
def test_a_relay_that_can_not_be_reached_stops_the_run_and_delays_nothing(
    outbox: Outbox, script: dict[str, Step] | None, lanes: int
) -> None:
    outbox.queue(submissions(5), NOW)
    relay = ScriptedRelay(script or {})

    async def scenario() -> Report:
        async with relay:
            if script is not None:
                reached = transport(relay, timeout_s=0.2 if Hang() in script.values() else 5.0)
                return await worker_on(outbox, reached, lanes=lanes).deliver_due()
        return await worker_on(outbox, transport(relay), lanes=lanes).deliver_due()

    report = run(scenario())
    assert isinstance(report.relay_fault, TransientDeliveryError)
    assert report.outcomes == {}
    assert untouched(outbox, 5)
    assert relay.connections <= (lanes if "mail" in (script or {}) else 1)


def test_a_relay_that_goes_away_midway_leaves_the_rest_untried(outbox: Outbox) -> None:
    outbox.queue(submissions(6), NOW)

    def plan(name: str, times: int) -> Step | None:
        if (name, times) == ("mail", 4):
            return Drop()
        return Say(b"421 4.3.2 down\r\n", close=True) if name == "greeting" and times > 1 else None

    report = deliver(outbox, PlannedRelay(plan=plan))
    assert isinstance(report.relay_fault, TransientDeliveryError)
    assert outbox.counts() == {"relayed": 3, "queued": 3}
    assert sum(one.attempts for one in outbox.held()) == 3


@pytest.mark.parametrize("code", [421, 554])
def test_a_relay_may_allow_fewer_links_than_there_are_lanes(outbox: Outbox, code: int) -> None:
    """Those that get one do all the work, and nothing was wrong, however it said so."""
    outbox.queue(submissions(20), NOW)
    links = 0
    kind = TransientDeliveryError if code == 421 else RelayRefused

    @asynccontextmanager
    async def one_at_a_time() -> AsyncIterator[FakeSession]:
        nonlocal links
        if links:
            raise kind("too many connections", stage="greeting", reply=Reply(code, None, "no"))
        links += 1
        try:
            yield FakeSession(quickly)
        finally:
            links -= 1

    relay = FakeRelay()
    relay.session = one_at_a_time  # type: ignore[method-assign]
    report = run(worker_on(outbox, relay, lanes=4).deliver_due())

    assert report.relay_fault is None
    assert outbox.counts() == {"relayed": 20}


# The relay does not want one message


STEPS = ["mail", "rcpt", "data", "content"]
STAGES = {"mail": "sender", "rcpt": "recipient", "data": "data", "content": "content"}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("code", [451, 550])
def test_a_refused_message_is_delayed_or_failed_and_the_link_used_on(
    outbox: Outbox, step: str, code: int
) -> None:
    outbox.queue(submissions(3), NOW)
    reply = b"%d %d.7.1 not this one\r\n" % (code, code // 100)
    relay = PlannedRelay(plan=once(step, Say(reply)))

    report = deliver(outbox, relay)
    status = DeliveryStatus.DELAYED if code == 451 else DeliveryStatus.FAILED
    assert report.outcomes == {status: 1, DeliveryStatus.RELAYED: 2}
    assert report.relay_fault is None
    assert statuses(outbox) == {"R-1": str(status), "R-2": "relayed", "R-3": "relayed"}
    assert relay.connections == 1
    assert b"RSET" in [heard.line for heard in relay.heard]
    (attempt,) = outbox.attempts(1)
    assert (attempt.outcome, attempt.stage, attempt.code) == (str(status), STAGES[step], code)
    assert attempt.words == "not this one"
    due = by_reference(outbox)["R-1"].due_at
    assert due == (NOW + MINUTE if code == 451 else None)


def test_a_relay_that_can_not_forget_a_message_gets_another_link(outbox: Outbox) -> None:
    """A refused message must not cling to the next (RFC 5321 §4.1.1.5)."""
    outbox.queue(submissions(3), NOW)

    def plan(name: str, times: int) -> Step | None:
        if name == "rset":
            return Say(b"502 5.5.1 what?\r\n")
        return once("rcpt", Say(b"550 5.1.1 no\r\n"))(name, times)

    relay = PlannedRelay(plan=plan)
    deliver(outbox, relay)
    assert outbox.counts() == {"failed": 1, "relayed": 2}
    assert relay.connections == 2


def test_what_smtp_can_not_carry_fails_before_the_relay_sees_it(outbox: Outbox) -> None:
    drafts = b"X-Unsent: 1\r\n\r\nx\r\n", b"Subject: x\r\n\r\nno end", b"Subject: x\n\nx\r\n"
    outbox.queue([submission(number, content=draft) for number, draft in enumerate(drafts, 1)], NOW)
    outbox.queue([submission(9)], NOW)
    relay = ScriptedRelay()

    deliver(outbox, relay)
    assert statuses(outbox) == dict.fromkeys(("R-1", "R-2", "R-3"), "failed") | {"R-9": "relayed"}
    assert relay.contents == [submission(9).outgoing.content]


def test_bytes_that_changed_since_are_not_submitted(harness: Harness, outbox: Outbox) -> None:
    outbox.queue(submissions(2), NOW)
    harness.falsify(1, b"\r\n")
    relay = ScriptedRelay()

    deliver(outbox, relay)
    assert statuses(outbox) == {"R-1": "failed", "R-2": "relayed"}
    assert relay.contents == [submission(2).outgoing.content]


# A relay's limits are normal life


@pytest.mark.parametrize(
    ("step", "limit"),
    [
        (step, limit)
        for step in STEPS
        for limit in (
            Say(b"421 4.7.0 too many messages\r\n", close=True),
            Say(b"421 4.7.0 too many messages\r\n"),
            Drop(),
        )
        # A link closed without a reply after the final dot leaves the message uncertain.
        if (step, limit) != ("content", Drop())
    ],
)
def test_a_link_that_is_closed_after_some_messages_is_no_fault(
    outbox: Outbox, step: str, limit: Step
) -> None:
    outbox.queue(submissions(9), NOW)
    on_this_link = 0

    def third_on_each_link(name: str, _: int) -> Step | None:
        nonlocal on_this_link
        if name == "greeting":
            on_this_link = 0
        on_this_link += name == step
        return limit if name == step and on_this_link == 3 else None

    relay = PlannedRelay(plan=third_on_each_link)
    report = deliver(outbox, relay)
    assert report.outcomes == {DeliveryStatus.RELAYED: 9}
    assert report.relay_fault is None
    assert all(one.attempts == 1 for one in outbox.held())
    assert all(len(outbox.attempts(one.id)) == 1 for one in outbox.held())
    assert relay.connections == 5, "two messages a link"


def test_a_limit_told_as_450_at_mail_is_tried_over_a_new_link_first(outbox: Outbox) -> None:
    outbox.queue(submissions(4), NOW)
    relay = PlannedRelay(plan=once("mail", Say(b"450 4.7.1 too much mail from you\r\n"), 3))

    deliver(outbox, relay)
    assert outbox.counts() == {"relayed": 4}
    assert relay.connections == 2


def test_a_message_that_breaks_every_link_is_delayed_and_the_others_go_on(
    outbox: Outbox,
) -> None:
    outbox.queue(submissions(6), NOW)
    bad = submission(3).outgoing.content

    class Relay(PlannedRelay):
        async def _take_content(
            self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            first = await reader.readline()
            if first.strip() == b"Message-ID: <R-3.token@police.test>":
                writer.transport.abort()
                raise ConnectionResetError
            rest = await reader.readuntil(b"\r\n.\r\n")
            self.contents.append((first + rest[:-3]).replace(b"\r\n.", b"\r\n"))
            await self._answer("content", reader, writer)

    relay = Relay()
    report = deliver(outbox, relay)
    # The link may break while the dot is on its way: then nobody knows.
    broken = by_reference(outbox)["R-3"].status
    assert broken in {DeliveryStatus.DELAYED, DeliveryStatus.UNCERTAIN}
    assert report.outcomes == {broken: 1, DeliveryStatus.RELAYED: 5}
    assert bad not in relay.contents


# Nobody knows


@pytest.mark.parametrize("reset", [False, True])
def test_a_link_lost_after_the_dot_is_uncertain_and_tried_again_the_same(
    outbox: Outbox, reset: bool
) -> None:
    outbox.queue(submissions(3), NOW)
    clock = Clock()
    relay = PlannedRelay(plan=once("content", Drop(reset=reset), 2))

    async def scenario() -> tuple[Report, Report, Report]:
        async with relay:
            worker = worker_on(outbox, transport(relay), now=clock)
            first, too_soon = await worker.deliver_due(), await worker.deliver_due()
            clock.now += MINUTE
            return first, too_soon, await worker.deliver_due()

    first, too_soon, then = run(scenario())
    assert first.outcomes == {DeliveryStatus.RELAYED: 2, DeliveryStatus.UNCERTAIN: 1}
    assert too_soon.outcomes == {}
    assert then.outcomes == {DeliveryStatus.RELAYED: 1}
    assert outbox.counts() == {"relayed": 3}
    assert [one.reference for one in outbox.held() if one.maybe_doubled] == ["R-2"]
    one, two, three = (one.outgoing.content for one in submissions(3))
    assert relay.contents == [one, two, three, two]
    assert [try_.outcome for try_ in outbox.attempts(2)] == ["uncertain", "relayed"]


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_relay_that_answers_no_message_leaves_few_in_doubt(outbox: Outbox, lanes: int) -> None:
    """Each message in doubt may arrive twice, and each wait for an answer may take ten minutes."""
    outbox.queue(submissions(40), NOW)
    relay = ScriptedRelay({"content": Drop()})

    async def scenario() -> Report:
        async with relay:
            return await worker_on(outbox, transport(relay), lanes=lanes).deliver_due()

    report = run(scenario())
    assert isinstance(report.relay_fault, TransientDeliveryError)
    assert "answered none" in str(report.relay_fault)
    counts = outbox.counts()
    assert 10 <= counts["uncertain"] < 10 + lanes
    assert counts["uncertain"] + counts["queued"] == 40


def test_what_is_left_in_doubt_now_and_then_ends_no_run(outbox: Outbox) -> None:
    outbox.queue(submissions(40), NOW)

    def plan(name: str, times: int) -> Step | None:
        return Drop() if name == "content" and times % 3 else None

    report = deliver(outbox, PlannedRelay(plan=plan))
    assert report.relay_fault is None
    assert set(outbox.counts()) == {"uncertain", "relayed"}


def test_uncertain_can_wait_for_a_person(outbox: Outbox) -> None:
    outbox.queue(submissions(1), NOW)
    clock = Clock()
    relay = PlannedRelay(plan=once("content", Drop()))

    async def scenario() -> None:
        async with relay:
            worker = worker_on(outbox, transport(relay), now=clock, hold_uncertain=True)
            await worker.deliver_due()
            clock.now += timedelta(days=1)
            await worker.deliver_due()
            assert outbox.counts() == {"uncertain": 1}
            assert len(relay.contents) == 1
            outbox.retry("R-1", clock.now)
            await worker.deliver_due()

    run(scenario())
    assert outbox.counts() == {"relayed": 1}


def test_what_a_dead_process_was_at_is_taken_up(outbox: Outbox) -> None:
    outbox.queue(submissions(2), NOW)
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = owner_name().replace(
        f".{os.getpid()}.{worker_module._start(os.getpid())}",
        f".{gone.pid}.{worker_module._start(gone.pid)}",
    )
    run(outbox.claim(f"{name}/0", NOW, LEASE))
    relay = ScriptedRelay()
    assert deliver(outbox, relay).recovered == 0
    assert outbox.counts() == {"sending": 1, "relayed": 1}

    gone.communicate(b"")
    report = deliver(outbox, ScriptedRelay())
    assert report.recovered == 1
    assert outbox.counts() == {"relayed": 2}
    assert by_reference(outbox)["R-1"].maybe_doubled


# Without a wire


async def quickly(_: Outgoing) -> None:
    return None


@dataclass
class FakeSession:
    submitting: Callable[[Outgoing], Awaitable[None]]

    async def submit(self, outgoing: Outgoing) -> Receipt:
        await self.submitting(outgoing)
        return Receipt(DeliveryStatus.RELAYED, "fake:25", Reply.parse(250, "2.0.0 Ok"))

    async def reset(self) -> None:
        return None


@dataclass
class FakeRelay:
    submitting: Callable[[Outgoing], Awaitable[None]] = quickly
    links: int = 0
    name: str = "fake:25"

    @asynccontextmanager
    async def session(self) -> AsyncIterator[FakeSession]:
        self.links += 1
        yield FakeSession(self.submitting)


@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_so_many_messages_at_once_and_no_more(outbox: Outbox, lanes: int) -> None:
    outbox.queue(submissions(40), NOW)
    at_once: set[str] = set()
    most = 0
    full = asyncio.Event()

    async def submitting(outgoing: Outgoing) -> None:
        nonlocal most
        at_once.add(outgoing.reference)
        most = max(most, len(at_once))
        if most == lanes:
            full.set()
        await full.wait()  # the first wait for the rest of the lanes
        at_once.discard(outgoing.reference)

    relay = FakeRelay(submitting)
    run(worker_on(outbox, relay, lanes=lanes).deliver_due())

    assert most == relay.links == lanes
    assert outbox.counts() == {"relayed": 40}


def test_stop_finishes_what_is_under_way_and_takes_nothing_new(outbox: Outbox) -> None:
    outbox.queue(submissions(10), NOW)
    under_way: list[str] = []
    stopped = asyncio.Event()

    async def submitting(outgoing: Outgoing) -> None:
        under_way.append(outgoing.reference)
        if len(under_way) == 3:
            worker.stop()
            stopped.set()
        await stopped.wait()

    worker = worker_on(outbox, FakeRelay(submitting), lanes=3)
    report = run(worker.deliver_due())

    assert report.outcomes == {DeliveryStatus.RELAYED: 3}
    assert outbox.counts() == {"queued": 7, "relayed": 3}
    assert {one.reference for one in outbox.held() if one.attempts} == set(under_way)


def test_stop_gives_back_what_was_claimed_with_the_last_outcome(outbox: Outbox) -> None:
    outbox.queue(submissions(3), NOW)
    worker = worker_on(outbox, FakeRelay(), told=lambda *_: worker.stop())
    report = run(worker.deliver_due())

    assert report.outcomes == {DeliveryStatus.RELAYED: 1}
    assert statuses(outbox) == {"R-1": "relayed", "R-2": "queued", "R-3": "queued"}
    assert sum(one.attempts for one in outbox.held()) == 1


def test_what_is_cut_short_is_uncertain(outbox: Outbox) -> None:
    """A second Ctrl-C: the relay may have it."""
    outbox.queue(submissions(2), NOW)

    async def scenario() -> None:
        begun = asyncio.Event()

        async def submitting(_: Outgoing) -> None:
            begun.set()
            await asyncio.Event().wait()

        task = asyncio.ensure_future(worker_on(outbox, FakeRelay(submitting)).deliver_due())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario())
    assert statuses(outbox) == {"R-1": "uncertain", "R-2": "queued"}
    assert by_reference(outbox)["R-1"].maybe_doubled


def test_a_link_that_fails_in_an_unknown_way_leaves_the_message_untried(
    outbox: Outbox,
) -> None:
    outbox.queue(submissions(1), NOW)
    relay = FakeRelay()

    def broken() -> Any:
        raise ZeroDivisionError

    relay.session = broken  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        run(worker_on(outbox, relay).deliver_due())
    assert untouched(outbox, 1)


def test_one_message_is_tried_once_when_asked_for_by_name(outbox: Outbox) -> None:
    """Due or not, and not again and again until it is given up."""
    queued = outbox.queue(submissions(3), NOW)
    busy = Say(b"450 4.2.0 busy\r\n")
    relay = PlannedRelay(plan=lambda name, _: busy if name == "rcpt" else None)

    async def scenario() -> None:
        async with relay:
            worker = worker_on(outbox, transport(relay), lanes=3)
            for times in (1, 2):
                report = await worker.deliver_due(only=queued[1].id)
                assert report.outcomes == {DeliveryStatus.DELAYED: 1}
                assert relay.times["rcpt"] == times

    run(scenario())
    assert statuses(outbox) == {"R-1": "queued", "R-2": "delayed", "R-3": "queued"}


@pytest.mark.parametrize("step", [Drop(), Say(b"421 4.3.2 down\r\n", close=True)])
def test_one_message_over_a_link_that_breaks_is_tried_once(outbox: Outbox, step: Step) -> None:
    queued = outbox.queue(submissions(1), NOW)
    relay = ScriptedRelay({"rcpt": step})

    async def scenario() -> None:
        async with relay:
            await worker_on(outbox, transport(relay)).deliver_due(only=queued[0].id)

    run(scenario())
    assert relay.connections == 1
    assert outbox.counts() == {"delayed": 1}


# Pace


class Hurried(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer when nothing else is to be done."""

    def __init__(self) -> None:
        super().__init__()
        self._skipped = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def hurried(timeout: float | None = None) -> Any:
            # So long as that what a thread is at, a commit say, is done before the clock jumps.
            events = select(timeout if not timeout else min(timeout, 0.05))
            if timeout and not events:
                self._skipped += timeout
            return events

        self._selector.select = hurried  # type: ignore[attr-defined]

    def time(self) -> float:
        return super().time() + self._skipped


def loop_clock() -> datetime:
    return NOW + timedelta(seconds=asyncio.get_running_loop().time())


@pytest.mark.parametrize("lanes", [1, 4])
def test_so_many_messages_a_minute_and_no_more(outbox: Outbox, lanes: int) -> None:
    outbox.queue(submissions(12), NOW)
    times: list[float] = []

    async def submitting(_: Outgoing) -> None:
        times.append(asyncio.get_running_loop().time())

    worker = worker_on(
        outbox, FakeRelay(submitting), lanes=lanes, rate_per_minute=6, now=loop_clock
    )
    with asyncio.Runner(loop_factory=Hurried) as runner:
        runner.run(worker.deliver_due())

    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert len(times) == 12
    assert min(gaps) > 9  # ten seconds, less what a claim may take longer than the next
    assert times[-1] - times[0] < 150


def test_workers_on_one_outbox_keep_one_pace(harness: Harness, outbox: Outbox) -> None:
    """By the times of the claims: a commit may take so long that two are submitted together."""
    queued = outbox.queue(submissions(12), NOW)

    async def scenario() -> None:
        with harness.open("other") as other:
            workers = [
                worker_on(box, FakeRelay(), lanes=2, rate_per_minute=6, now=loop_clock)
                for box in (outbox, other)
            ]
            await asyncio.gather(*(worker.deliver_due() for worker in workers))

    with asyncio.Runner(loop_factory=Hurried) as runner:
        runner.run(scenario())

    begun = sorted(outbox.attempts(one.id)[0].started_at for one in queued)
    assert min(later - sooner for sooner, later in pairwise(begun)) > timedelta(seconds=9)
    assert outbox.counts() == {"relayed": 12}


def test_nobody_holds_a_message_for_longer_than_a_minute_to_keep_the_pace(
    outbox: Outbox,
) -> None:
    """Its lease would end."""
    outbox.queue(submissions(5), NOW)
    relay = FakeRelay()
    with asyncio.Runner(loop_factory=Hurried) as runner:
        runner.run(
            worker_on(outbox, relay, lanes=64, rate_per_minute=1, now=loop_clock).deliver_due()
        )

    assert relay.links == 1
    assert outbox.counts() == {"relayed": 5}


def test_a_run_cut_short_while_it_keeps_the_pace_gives_its_message_back(
    outbox: Outbox,
) -> None:
    outbox.queue(submissions(3), NOW)

    async def scenario() -> None:
        async def submitting(_: Outgoing) -> None:
            asyncio.get_running_loop().call_later(0.05, task.cancel)

        worker = worker_on(outbox, FakeRelay(submitting), rate_per_minute=1, now=loop_clock)
        task = asyncio.ensure_future(worker.deliver_due())
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario())
    assert outbox.counts() == {"relayed": 1, "queued": 2}


def test_stop_does_not_wait_for_the_pace(outbox: Outbox) -> None:
    outbox.queue(submissions(3), NOW)

    async def submitting(_: Outgoing) -> None:
        asyncio.get_running_loop().call_later(0.05, worker.stop)

    worker = worker_on(outbox, FakeRelay(submitting), rate_per_minute=1, now=loop_clock)
    run(worker.deliver_due())

    assert outbox.counts() == {"relayed": 1, "queued": 2}
    assert sum(one.attempts for one in outbox.held()) == 1


# Watching


def test_watch_delivers_what_becomes_due_and_survives_a_relay_that_is_away(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_POLL_S", 0.001)
    outbox.queue([submission(1)], NOW)
    relay = FakeRelay()
    works = relay.session
    seen: list[bool] = []

    def away() -> Any:
        raise TransientDeliveryError("away", stage="connect")

    def look(report: Report) -> None:
        seen.append(report.relay_fault is not None)
        relayed = outbox.counts().get("relayed", 0)
        if len(seen) == 3:
            relay.session = works  # type: ignore[method-assign]
        elif relayed == 1 and len(outbox.held()) == 1:
            outbox.queue([submission(2)], NOW)
        elif relayed == 2:
            worker.stop()

    relay.session = away  # type: ignore[method-assign]
    worker = worker_on(outbox, relay)
    run(worker.watch(look))

    assert seen[:3] == [True, True, True]
    assert not any(seen[3:])
    assert outbox.counts() == {"relayed": 2}


def test_watch_waits_longer_each_time_for_a_relay_that_is_away(outbox: Outbox) -> None:
    outbox.queue([submission(1)], NOW)
    times: list[float] = []
    relay = FakeRelay()

    def away() -> Any:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 10:
            worker.stop()
        raise TransientDeliveryError("away", stage="connect")

    relay.session = away  # type: ignore[method-assign]
    worker = worker_on(outbox, relay)
    with asyncio.Runner(loop_factory=Hurried) as runner:
        runner.run(worker.watch())

    gaps = [round(later - sooner) for sooner, later in pairwise(times)]
    assert gaps == [4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert untouched(outbox, 1)


def test_lanes_that_a_lull_has_ended_come_back_while_another_is_at_work(outbox: Outbox) -> None:
    """Else the last one alone would work off all that comes, for as long as it is never idle."""
    first, rest = submission(1), submissions(6, first=2)
    most = [0]
    begun, all_busy = asyncio.Event(), asyncio.Event()

    async def submitting(outgoing: Outgoing) -> None:
        if outgoing.reference == first.outgoing.reference:
            begun.set()
            await asyncio.wait_for(all_busy.wait(), 20)
            return
        most[0] += 1
        if most[0] == 3:
            all_busy.set()
        await all_busy.wait()

    async def scenario() -> None:
        worker = worker_on(outbox, FakeRelay(submitting), lanes=4)
        outbox.queue([first], NOW)
        watching = asyncio.ensure_future(worker.watch())
        await begun.wait()
        await until_idle(worker, 3)
        await asyncio.to_thread(outbox.queue, rest, NOW)
        worker.wake()
        await all_busy.wait()
        worker.stop()
        await watching

    run(scenario())
    assert most[0] == 3


async def until_idle(worker: Worker, lanes: int) -> None:
    while worker._round is None or len(worker._round.idle) < lanes:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def test_watch_looks_after_others_though_there_is_always_something_to_do(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a dead process had is taken up, and old content forgotten, under constant load too."""
    monkeypatch.setattr(worker_module, "_LONGEST_ROUND_S", 0.05)
    monkeypatch.setattr(worker_module, "_POLL_S", 3600.0)  # with no pause in between
    outbox.queue(submissions(20), NOW)
    rounds: list[int] = []

    async def submitting(_: Outgoing) -> None:
        await asyncio.sleep(0.03)

    def look(report: Report) -> None:
        rounds.append(report.outcomes[DeliveryStatus.RELAYED])
        assert report.relay_fault is None
        if sum(rounds) == 20:
            worker.stop()

    worker = worker_on(outbox, FakeRelay(submitting))
    run(worker.watch(look))

    assert len(rounds) > 3


def test_a_relay_that_is_away_is_not_asked_again_with_each_message_that_comes(
    outbox: Outbox,
) -> None:
    outbox.queue([submission(1)], NOW)
    times: list[float] = []
    relay = FakeRelay()

    def away() -> Any:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 6:
            worker.stop()
        raise TransientDeliveryError("away", stage="connect")

    relay.session = away  # type: ignore[method-assign]
    worker = worker_on(outbox, relay)

    def seen(_: Report) -> None:
        asyncio.get_running_loop().call_soon(worker.wake)

    with asyncio.Runner(loop_factory=Hurried) as runner:
        runner.run(worker.watch(seen))

    gaps = [round(later - sooner) for sooner, later in pairwise(times)]
    assert gaps == [0, 2, 2, 2, 2]


# The outbox breaks


def breaking(outbox: Durable, monkeypatch: pytest.MonkeyPatch, broken: Callable[[], bool]) -> None:
    whole = outbox._begin

    def sometimes(patience_s: float) -> Any:
        if broken():
            raise disk_full(outbox)
        return whole(patience_s)

    monkeypatch.setattr(outbox, "_begin", sometimes)
    monkeypatch.setattr(worker_module, "_RECORD_AGAIN_S", (0.001, 0.001))


@durable
def test_an_outbox_that_breaks_stops_every_lane(
    outbox: Durable, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.queue(submissions(50), NOW)
    submitted: list[str] = []
    full = False

    async def submitting(outgoing: Outgoing) -> None:
        nonlocal full
        submitted.append(outgoing.reference)
        full = full or len(submitted) == 10

    breaking(outbox, monkeypatch, lambda: full)
    worker = worker_on(outbox, FakeRelay(submitting), lanes=4)
    with pytest.raises(OutboxUnusable, match=r"disk is full.*could not be recorded") as refused:
        run(worker.deliver_due())

    assert 10 <= len(submitted) <= 13
    counts = outbox.counts()
    lost = set(submitted) - {
        one.reference for one in outbox.held() if one.status is DeliveryStatus.RELAYED
    }
    assert 1 <= len(lost) <= 4
    assert all(reference in str(refused.value) for reference in lost)
    assert counts["queued"] >= 50 - 13
    full = False
    report = run(worker.deliver_due())
    assert report.outcomes[DeliveryStatus.RELAYED] == counts["queued"], "the worker works again"


@durable
def test_an_outcome_is_recorded_as_soon_as_it_can_be(
    outbox: Durable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be forgotten, and the message submitted twice."""
    outbox.queue(submissions(3), NOW)
    submitted: list[str] = []
    faults = iter([True, True])

    async def submitting(outgoing: Outgoing) -> None:
        submitted.append(outgoing.reference)

    breaking(outbox, monkeypatch, lambda: len(submitted) == 2 and next(faults, False))
    report = run(worker_on(outbox, FakeRelay(submitting)).deliver_due())

    assert report.outcomes == {DeliveryStatus.RELAYED: 3}
    assert submitted == ["R-1", "R-2", "R-3"]
    assert outbox.counts() == {"relayed": 3}


@durable
def test_what_could_not_be_given_back_is_as_soon_as_it_can_be(
    outbox: Durable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No attempt was made, so no doubt may stay."""
    outbox.queue(submissions(3), NOW)
    full = False
    relay = FakeRelay()
    works = relay.session

    def away() -> Any:
        nonlocal full
        full = True
        raise TransientDeliveryError("away", stage="connect")

    breaking(outbox, monkeypatch, lambda: full)
    relay.session = away  # type: ignore[method-assign]
    worker = worker_on(outbox, relay)
    with pytest.raises(OutboxUnusable):
        run(worker.deliver_due())
    assert outbox.counts() == {"sending": 1, "queued": 2}

    full = False
    relay.session = works  # type: ignore[method-assign]
    report = run(worker.deliver_due())
    assert report.recovered == 0
    assert outbox.counts() == {"relayed": 3}
    assert all((one.attempts, one.maybe_doubled) == (1, False) for one in outbox.held())


# Several processes


def _work(harness: Harness, port: int) -> int:
    with harness.open("child") as outbox:
        relay = RelaySettings(host="127.0.0.1", port=port, security=Security.NONE, timeout_s=20.0)
        worker = worker_on(outbox, SmtpTransport(relay), lanes=3)
        report = asyncio.run(worker.deliver_due())
        assert report.recovered == 0
        assert report.relay_fault is None
        return report.outcomes[DeliveryStatus.RELAYED]


@durable
def test_two_processes_on_one_outbox_relay_each_message_once(
    harness: Harness, outbox: Durable
) -> None:
    wanted = submissions(150)
    outbox.queue(wanted, NOW)

    async def scenario() -> tuple[list[int], list[bytes]]:
        async with Sink() as sink:
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                asked = [pool.apply_async(_work, (harness, sink.port)) for _ in range(2)]
                shares = [await asyncio.to_thread(one.get, 30) for one in asked]
                pool.close()
                pool.join()
            return shares, [one.content for one in sink.arrived]

    shares, arrived = run(scenario(), limit_s=60)
    assert sum(shares) == 150
    assert Counter(arrived) == Counter(one.outgoing.content for one in wanted)
    assert outbox.counts() == {"relayed": 150}


def test_a_process_is_known_by_more_than_its_number() -> None:
    boot, namespace, pid, start = owner_name().split(".")

    assert not is_gone(owner_name())
    assert not is_gone(f"{owner_name()}/3")
    assert is_gone(f"{boot}.{namespace}.{pid}.{int(start) + 1}/0"), "the number was used again"
    assert is_gone(f"another-boot.{namespace}.{pid}.{start}/0")
    assert not is_gone(f"{boot}.1.{pid}.{start}1/0"), "another container's: who knows"
    for nonsense in ("", "/0", "1", "a.b.c.d", "..."):
        assert not is_gone(nonsense)


def test_a_killed_process_is_gone_even_before_its_parent_has_noticed() -> None:
    boot, namespace, _, _ = owner_name().split(".")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = f"{boot}.{namespace}.{child.pid}.{worker_module._start(child.pid)}/0"
    assert not is_gone(owner)

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, not yet reaped
    assert is_gone(owner)
    assert child.wait() == -signal.SIGKILL
    assert is_gone(owner)
    assert child.stdin is not None
    child.stdin.close()


def test_a_process_that_hides_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """With hidepid, /proc shows nothing of another user's processes."""
    boot, namespace, pid, start = owner_name().split(".")
    monkeypatch.setattr(worker_module, "_start", lambda _: "")

    assert not is_gone(f"{boot}.{namespace}.{pid}.{start}/0")
    assert is_gone(f"{boot}.{namespace}.{2**22 + 1}.{start}/0")


def test_a_port_that_nobody_listens_on_is_said_so(outbox: Outbox) -> None:
    outbox.queue([submission()], NOW)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        relay = RelaySettings(host="127.0.0.1", port=taken.getsockname()[1], security=Security.NONE)
        report = run(worker_on(outbox, SmtpTransport(relay), policy=RetryPolicy()).deliver_due())
    assert "Nothing takes connections" in str(report.relay_fault)
