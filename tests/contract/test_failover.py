"""Several relays: which one a message goes through while some of them are away, ill or full."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from pydantic import SecretStr

from referrals import worker as worker_module
from referrals.delivery import DeliveryStatus, Outgoing, Reply
from referrals.errors import RelayRefused, TransientDeliveryError
from referrals.relay_health import FIRST_REST, FIRST_REST_AFTER_LOGIN
from referrals.settings import RelaySettings, Security
from referrals.transports.failover import Choice, Failover, Limits
from referrals.transports.smtp import SmtpTransport
from referrals.worker import Relay, Report, Worker
from tests.conftest import NOW
from tests.contract.test_worker import (
    Clock,
    FakeRelay,
    FakeSession,
    Hurried,
    PlannedRelay,
    by_reference,
    loop_clock,
    once,
    statuses,
    transport,
    untouched,
    worker_on,
)
from tests.outboxes import Harness, Outbox, durable
from tests.peers import Drop, Hang, Say, ScriptedRelay, Step, run
from tests.queued import submissions
from tests.smtp_sink import SmtpSink, free_port, wait_until

RELAYED = DeliveryStatus.RELAYED
LOGIN = {"username": "robot", "password": SecretStr("secret")}
SECOND = timedelta(seconds=1)


@dataclass
class Relays:
    """A worker over several, in order; `said` is what it told, `clock` what it goes by."""

    outbox: Outbox
    ways: Sequence[Relay]
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], Any] = field(default_factory=Clock)
    said: list[str] = field(default_factory=list)

    def worker(self, **options: Any) -> Worker:
        choices = [
            Choice("relay" if not number else f"relays.r{number}", way, way.name, self.limits)
            for number, way in enumerate(self.ways)
        ]
        several = Failover(choices, self.outbox, self.clock, self.said.append)
        return worker_on(self.outbox, several, now=self.clock, **options)

    def pass_time(self, by: timedelta) -> None:
        assert isinstance(self.clock, Clock)
        self.clock.now += by


def nowhere() -> SmtpTransport:
    port = free_port()
    return SmtpTransport(RelaySettings(host="127.0.0.1", port=port, security=Security.NONE))


def through(outbox: Outbox) -> Counter[str | None]:
    """How many attempts each relay had."""
    return Counter(
        attempt.relay for one in outbox.held(limit=9_999) for attempt in outbox.attempts(one.id)
    )


def all_relayed_at_once(outbox: Outbox, count: int) -> bool:
    """Whether no fault of a relay was counted against a message."""
    held = outbox.held(limit=9_999)
    return len(held) == count and all(
        (one.status, one.attempts, one.maybe_doubled) == (RELAYED, 1, False) for one in held
    )


# The first is away


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("how", ["away", "hangs", "refuses the login", "says 421", "drops us"])
def test_the_second_takes_all_while_the_first_can_not_be_used(
    outbox: Outbox, how: str, lanes: int
) -> None:
    outbox.queue(submissions(12), NOW)
    scripts: dict[str, dict[str, Step]] = {
        "hangs": {"greeting": Hang()},
        "refuses the login": {"auth": Say(b"535 5.7.8 no, robot\r\n")},
        "says 421": {"greeting": Say(b"421 4.3.2 not now\r\n", close=True)},
        "drops us": {"ehlo": Drop(reset=True)},
    }
    first, second = ScriptedRelay(scripts.get(how, {})), ScriptedRelay()

    async def scenario() -> tuple[Report, Relays]:
        async with first, second:
            more = LOGIN if how == "refuses the login" else {}
            way = transport(first, timeout_s=0.3 if how == "hangs" else 5.0, **more)
            relays = Relays(outbox, [nowhere() if how == "away" else way, transport(second)])
            return await relays.worker(lanes=lanes).deliver_due(), relays

    report, relays = run(scenario())
    assert (report.outcomes, report.relay_fault) == ({RELAYED: 12}, None)
    assert all_relayed_at_once(outbox, 12)
    assert through(outbox) == {f"127.0.0.1:{second.port}": 12}
    assert first.connections == (how != "away"), "by one lane, once"
    (told,) = relays.said
    assert "is left alone until" in told
    assert "robot" not in told
    (state,) = outbox.relay_states(NOW).values()
    rest = FIRST_REST_AFTER_LOGIN if how == "refuses the login" else FIRST_REST
    assert (state.until, state.failures, state.faults) == (NOW + rest, 1, 1)


def test_the_audit_and_the_attempts_name_the_relay_that_took_it(outbox: Outbox) -> None:
    outbox.queue(submissions(1), NOW)

    async def scenario() -> str:
        async with ScriptedRelay() as second:
            way = transport(second)
            await Relays(outbox, [nowhere(), way]).worker().deliver_due()
            return way.name

    name = run(scenario())
    assert [one.relay for one in outbox.attempts(1)] == [name]
    assert [one.detail["relay"] for one in outbox.audit() if one.action == "relayed"] == [name]


@pytest.mark.parametrize("lanes", [1, 3])
def test_one_that_goes_away_in_the_midst_leaves_the_rest_to_the_next(
    outbox: Outbox, lanes: int
) -> None:
    wanted = submissions(40)
    outbox.queue(wanted, NOW)

    def plan(name: str, times: int) -> Step | None:
        gone = first.times["mail"] > 8
        return Drop() if gone and name in ("mail", "greeting") else None

    first, second = PlannedRelay(plan=plan), ScriptedRelay()

    async def scenario() -> tuple[Report, Relays]:
        async with first, second:
            relays = Relays(outbox, [transport(first), transport(second)])
            return await relays.worker(lanes=lanes).deliver_due(), relays

    report, relays = run(scenario())
    assert (report.outcomes, report.relay_fault) == ({RELAYED: 40}, None)
    assert Counter(first.contents + second.contents) == Counter(
        one.outgoing.content for one in wanted
    )
    assert min(through(outbox).values()) >= 8
    assert len(relays.said) == 1


def test_one_that_is_killed_in_the_midst_loses_and_doubles_nothing(outbox: Outbox) -> None:
    """But for what it had to the last octet, which nobody can know."""
    wanted = submissions(60)
    outbox.queue(wanted, NOW)
    with SmtpSink() as first, SmtpSink() as second:

        async def scenario() -> Report:
            relays = Relays(outbox, [_way(first.port), _way(second.port)])
            worker = relays.worker(lanes=3, told=lambda *_: _kill_after(first, outbox, 10))
            report = await worker.deliver_due()
            relays.pass_time(timedelta(minutes=5))
            again = await worker.deliver_due()
            report.outcomes.update(again.outcomes)
            return report

        report = run(scenario(), limit_s=30)
        arrived = Counter(first.arrived + second.arrived)
    assert report.relay_fault is None
    assert outbox.counts() == {"relayed": 60}
    doubled = {one.reference for one in outbox.held(limit=99) if one.maybe_doubled}
    assert set(arrived) == {one.outgoing.content for one in wanted}
    for one in wanted:
        assert arrived[one.outgoing.content] <= 1 + (one.outgoing.reference in doubled)
    assert len(doubled) <= 3, "one a lane"
    assert second.arrived


def _way(port: int) -> SmtpTransport:
    return SmtpTransport(
        RelaySettings(host="127.0.0.1", port=port, security=Security.NONE, timeout_s=10.0)
    )


def _kill_after(sink: SmtpSink, outbox: Outbox, count: int) -> None:
    if outbox.counts().get("relayed", 0) >= count and sink._process.poll() is None:
        sink.kill()


def test_one_that_wants_a_login_in_the_midst_is_left_and_not_tried_again(outbox: Outbox) -> None:
    outbox.queue(submissions(6), NOW)
    first = PlannedRelay(plan=once("mail", Say(b"530 5.7.0 log in again\r\n"), 3))

    async def scenario() -> Report:
        async with first, ScriptedRelay() as second:
            relays = Relays(outbox, [transport(first), transport(second)])
            return await relays.worker().deliver_due()

    report = run(scenario())
    assert report.outcomes == {RELAYED: 6}
    assert all_relayed_at_once(outbox, 6)
    (state,) = outbox.relay_states(NOW).values()
    assert state.refused_login
    assert (first.connections, len(first.contents)) == (1, 2)


@pytest.mark.parametrize(
    "answer", [Say(b"421 4.3.2 shutting down\r\n", close=True), Say(b"450 4.7.1 not now\r\n")]
)
def test_one_that_takes_no_message_just_now_is_left_for_the_next(
    outbox: Outbox, answer: Step
) -> None:
    outbox.queue(submissions(9), NOW)
    first = PlannedRelay(plan=lambda name, _: answer if name == "mail" else None)

    async def scenario() -> Report:
        async with first, ScriptedRelay() as second:
            relays = Relays(outbox, [transport(first), transport(second)])
            return await relays.worker().deliver_due()

    report = run(scenario())
    assert report.relay_fault is None
    # Three put off in a row may each be about the message itself.
    put_off = 0 if answer == Say(b"421 4.3.2 shutting down\r\n", close=True) else 3
    assert report.outcomes[DeliveryStatus.DELAYED] == put_off
    assert report.outcomes[RELAYED] == 9 - put_off


@pytest.mark.parametrize(
    ("step", "how"), [("rcpt", Drop()), ("data", Drop(reset=True)), ("content", Drop())]
)
def test_one_that_breaks_every_link_in_mid_message_is_left_for_the_next(
    outbox: Outbox, step: str, how: Step
) -> None:
    outbox.queue(submissions(9), NOW)

    async def scenario() -> Report:
        async with ScriptedRelay({step: how}) as first, ScriptedRelay() as second:
            relays = Relays(outbox, [transport(first), transport(second)])
            report = await relays.worker().deliver_due()
            assert first.connections == 3
            return report

    report = run(scenario())
    spoilt = DeliveryStatus.UNCERTAIN if step == "content" else DeliveryStatus.DELAYED
    assert report.outcomes == {spoilt: 3, RELAYED: 6}
    (state,) = outbox.relay_states(NOW).values()
    assert state.fault is not None
    assert state.fault.words == "broke the link"


@pytest.mark.parametrize("step", ["mail", "rcpt", "data", "content"])
@pytest.mark.parametrize("code", [451, 550])
def test_what_is_said_of_one_message_is_no_fault_of_the_relay(
    outbox: Outbox, step: str, code: int
) -> None:
    outbox.queue(submissions(5), NOW)
    first = PlannedRelay(plan=once(step, Say(b"%d %d.7.1 not this\r\n" % (code, code // 100))))

    async def scenario() -> Relays:
        async with first, ScriptedRelay() as second:
            relays = Relays(outbox, [transport(first), transport(second)])
            await relays.worker().deliver_due()
            assert second.connections == 0
            return relays

    relays = run(scenario())
    assert relays.said == []
    assert outbox.relay_states(NOW) == {}
    assert outbox.counts()["relayed"] == 4


def test_what_is_uncertain_is_tried_through_the_next_the_same(outbox: Outbox) -> None:
    """Two relays can't notice that they have one message twice, but the agency's can."""
    outbox.queue(submissions(1), NOW)
    first = PlannedRelay(plan=once("content", Drop()))

    async def scenario() -> list[bytes]:
        async with ScriptedRelay() as second:
            async with first:
                relays = Relays(outbox, [transport(first), transport(second)])
                await relays.worker().deliver_due()
            assert outbox.counts() == {"uncertain": 1}
            relays.pass_time(timedelta(minutes=1))
            await relays.worker().deliver_due()
            return second.contents

    assert run(scenario()) == first.contents == [submissions(1)[0].outgoing.content]
    assert outbox.counts() == {"relayed": 1}
    assert by_reference(outbox)["R-1"].maybe_doubled


# It comes back


@dataclass
class Moody(FakeRelay):
    """A relay without a wire, which can't be reached while it is `away`."""

    away: bool = False
    tried: int = 0

    def session(self) -> Any:
        self.tried += 1
        if self.away:
            raise TransientDeliveryError(f"{self.name} is away", stage="connect")
        return super().session()


def test_one_lane_alone_tries_it_again_and_then_all_return(outbox: Outbox) -> None:
    outbox.queue(submissions(400), NOW)
    first = Moody(name="first:25", away=True)
    tries: list[tuple[int, int]] = []

    async def submitting(_: Outgoing) -> None:
        relays.pass_time(SECOND / 2)  # so two messages a second
        await asyncio.sleep(0)
        seconds = (relays.clock.now - NOW).total_seconds()  # type: ignore[attr-defined]
        tries.append((int(seconds), first.tried))
        if seconds > 100:
            first.away = False

    second = Moody(submitting, name="second:25")
    relays = Relays(outbox, [first, second])
    report = run(relays.worker(lanes=4).deliver_due(), limit_s=30)

    assert report.outcomes == {RELAYED: 400}
    assert all_relayed_at_once(outbox, 400)
    # Links to the second end after a minute; when the time has come, one lane tries the first.
    assert 3 <= first.tried <= 9
    # The lanes whose links ended just before it was known to be well come a minute later.
    assert through(outbox)["first:25"] > 20
    assert tries[-1][0] < 200, "no link to the second outlived its minute by much"
    assert [line.split(". ")[0] for line in relays.said] == [
        "The relay first:25 could not be reached",
        "The relay first:25 is used again.",
    ]
    state = outbox.relay_states(NOW)["first:25"]
    assert (state.fault, state.faults, state.returns) == (None, 1, 1)


def test_it_is_not_tried_before_its_time_nor_by_the_others_while_one_tries(
    outbox: Outbox,
) -> None:
    first, second = Moody(name="first:25", away=True), Moody(name="second:25")
    relays = Relays(outbox, [first, second])

    async def rounds() -> list[int]:
        found = []
        for number, seconds in enumerate((0, 4, 2, 4, 6, 1)):
            relays.pass_time(seconds * SECOND)
            outbox.queue(submissions(4, first=4 * number + 1), relays.clock())
            await relays.worker(lanes=4).deliver_due()
            found.append(first.tried)
        return found

    assert run(rounds()) == [1, 1, 2, 2, 3, 3]


def test_a_relay_on_trial_that_takes_a_link_and_no_message_stays_left_alone(
    outbox: Outbox,
) -> None:
    outbox.queue(submissions(4), NOW)
    down = Say(b"421 4.3.2 down\r\n", close=True)
    first = PlannedRelay(plan=lambda name, _: down if name == "mail" else None)

    async def scenario() -> None:
        async with first, ScriptedRelay() as second:
            relays = Relays(outbox, [transport(first), transport(second)])
            for number, failures in enumerate((1, 1, 2, 3)):
                await relays.worker().deliver_due(only=number + 1)
                (state,) = outbox.relay_states(relays.clock()).values()
                assert state.failures == failures
                relays.pass_time((3 if number == 0 else 30) * SECOND)

    run(scenario())
    assert all_relayed_at_once(outbox, 4)


def test_one_on_trial_that_puts_a_sender_off_has_shown_nothing(outbox: Outbox) -> None:
    outbox.queue(submissions(3), NOW)
    answers = iter([Say(b"421 4.3.2 down\r\n", close=True), Say(b"450 4.7.1 not now\r\n"), None])
    first = PlannedRelay(plan=lambda name, _: next(answers) if name == "mail" else None)

    async def scenario() -> list[bool]:
        found = []
        async with first, ScriptedRelay() as second:
            relays = Relays(outbox, [transport(first), transport(second)])
            for number in (1, 2, 3):
                await relays.worker().deliver_due(only=number)
                (state,) = outbox.relay_states(relays.clock()).values()
                found.append(state.fault is None)
                relays.pass_time(timedelta(minutes=6))
        return found

    assert run(scenario()) == [False, False, True]


@pytest.mark.parametrize("lanes", [2, 6])
def test_the_next_one_s_login_is_tried_once_whatever_the_lanes(outbox: Outbox, lanes: int) -> None:
    outbox.queue(submissions(40), NOW)
    gone = asyncio.Event()

    def plan(name: str, times: int) -> Step | None:
        if name == "mail" and times > 10:
            gone.set()
        return Drop() if gone.is_set() and name in ("greeting", "mail") else None

    first = PlannedRelay(plan=plan)
    second = ScriptedRelay({"auth": Say(b"535 5.7.8 no\r\n")})

    async def scenario() -> Report:
        async with first, second:
            relays = Relays(outbox, [transport(first), transport(second, **LOGIN)])
            return await relays.worker(lanes=lanes).deliver_due()

    report = run(scenario())
    assert isinstance(report.relay_fault, TransientDeliveryError)
    assert second.connections == 1


def test_one_whose_login_was_refused_is_used_again_once_a_person_has_seen_to_it(
    outbox: Outbox,
) -> None:
    first = PlannedRelay(plan=once("auth", Say(b"535 5.7.8 no\r\n")))

    async def scenario() -> None:
        async with first, ScriptedRelay() as second:
            relays = Relays(outbox, [transport(first, **LOGIN), transport(second)])
            outbox.queue(submissions(1), NOW)
            await relays.worker().deliver_due()
            relays.pass_time(timedelta(minutes=29))
            outbox.queue(submissions(1, first=2), NOW)
            await relays.worker().deliver_due()
            assert first.connections == 1
            await outbox.note_well(transport(first).name, NOW)
            outbox.queue(submissions(1, first=3), NOW)
            await relays.worker().deliver_due()
            assert len(first.contents) == 1

    run(scenario())


# None is left


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_run_stops_only_if_no_relay_is_left_and_delays_nothing(
    outbox: Outbox, lanes: int
) -> None:
    outbox.queue(submissions(5), NOW)
    first, second = Moody(name="first:25", away=True), Moody(name="second:25", away=True)
    relays = Relays(outbox, [first, second])

    async def scenario() -> Report:
        await relays.worker(lanes=lanes).deliver_due()
        assert (first.tried, second.tried) == (1, 1)
        return await relays.worker(lanes=lanes).deliver_due()

    fault = run(scenario()).relay_fault
    assert isinstance(fault, TransientDeliveryError)
    assert "first:25 is away" in str(fault)
    assert "second:25 is away" in str(fault)
    assert (first.tried, second.tried) == (2, 2), "with none left, each run asks, as with one"
    assert untouched(outbox, 5)
    assert len(relays.said) == 4


def test_if_all_have_refused_the_login_none_is_asked_again(outbox: Outbox) -> None:
    outbox.queue(submissions(5), NOW)
    no: dict[str, Step] = {"auth": Say(b"535 5.7.8 no\r\n")}
    first, second = ScriptedRelay(no), ScriptedRelay(no)

    async def scenario() -> list[Report]:
        async with first, second:
            relays = Relays(outbox, [transport(one, **LOGIN) for one in (first, second)])
            return [await relays.worker(lanes=4).deliver_due() for _ in range(3)]

    for report in run(scenario()):
        assert isinstance(report.relay_fault, RelayRefused)
        assert "refused the login" in str(report.relay_fault)
    assert (first.connections, second.connections) == (1, 1)
    assert untouched(outbox, 5)


def test_the_settings_of_the_relay_at_fault_are_named(outbox: Outbox) -> None:
    outbox.queue(submissions(1), NOW)
    no: dict[str, Step] = {"auth": Say(b"535 5.7.8 no\r\n")}

    async def scenario() -> Report:
        async with ScriptedRelay(no) as second:
            return await (
                Relays(outbox, [nowhere(), transport(second, **LOGIN)]).worker().deliver_due()
            )

    text = str(run(scenario()).relay_fault)
    assert "Check relay.host and relay.port" in text
    assert "Check relays.r1.username and relays.r1.password" in text


@pytest.mark.parametrize("lanes", [1, 4])
def test_two_that_take_links_but_no_message_end_the_run(outbox: Outbox, lanes: int) -> None:
    outbox.queue(submissions(20), NOW)
    down: dict[str, Step] = {"mail": Say(b"421 4.3.2 down\r\n", close=True)}
    first, second = ScriptedRelay(down), ScriptedRelay(down)

    async def scenario() -> Report:
        async with first, second:
            relays = Relays(outbox, [transport(first), transport(second)])
            return await relays.worker(lanes=lanes).deliver_due()

    assert isinstance(run(scenario()).relay_fault, TransientDeliveryError)
    assert first.connections + second.connections <= 3 * lanes
    assert untouched(outbox, 20)


# Limits


@dataclass
class Counting(FakeRelay):
    """A relay without a wire that counts its links."""

    now: int = 0
    most: int = 0

    @asynccontextmanager
    async def session(self) -> AsyncIterator[FakeSession]:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            yield FakeSession(self.submitting)
        finally:
            self.now -= 1


async def slowly(_: Outgoing) -> None:
    await asyncio.sleep(0.002)


@pytest.mark.parametrize("relays", [1, 2])
def test_a_relay_has_so_many_links_and_no_more(outbox: Outbox, relays: int) -> None:
    outbox.queue(submissions(60), NOW)
    first, other = Counting(slowly, name="first:25"), Counting(slowly, name="second:25")
    several = Relays(outbox, [first, other][:relays], Limits(connections=3))

    report = run(several.worker(lanes=8).deliver_due())
    assert (report.outcomes, report.relay_fault) == ({RELAYED: 60}, None)
    assert first.most == 3
    assert other.most == 0, "one that is full is not ill: lanes wait"
    assert outbox.links(NOW, is_gone=lambda _: False) == []
    assert outbox.relay_states(NOW) == {}


def test_whoever_gets_no_place_waits_without_a_fault_and_then_goes_on(
    harness: Harness, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_PLACE_S", 0.01)
    outbox.queue(submissions(5), NOW)
    relay = Counting(name="first:25")

    async def scenario() -> Report:
        await outbox.take_link("first:25", "another", "desk", 1, NOW, is_gone=lambda _: False)
        worker = Relays(outbox, [relay], Limits(connections=1)).worker(lanes=3)
        task = asyncio.ensure_future(worker.deliver_due())
        await asyncio.sleep(0.2)
        assert outbox.counts() == {"queued": 5}, "it holds no message meanwhile"
        await outbox.give_link_back("first:25", "another")
        return await task

    report = run(scenario())
    assert (report.outcomes, report.relay_fault) == ({RELAYED: 5}, None)
    assert all_relayed_at_once(outbox, 5)


@pytest.mark.parametrize("how", ["stopped", "cancelled", "by name"])
def test_a_wait_for_a_place_ends(outbox: Outbox, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(worker_module, "_PLACE_S", 0.01)
    monkeypatch.setattr(worker_module, "_PLACE_FOR_ONE_S", 0.05)
    outbox.queue(submissions(2), NOW)

    async def scenario() -> Report | None:
        await outbox.take_link("fake:25", "another", "desk", 1, NOW, is_gone=lambda _: False)
        worker = Relays(outbox, [FakeRelay()], Limits(connections=1)).worker(lanes=2)
        task = asyncio.ensure_future(worker.deliver_due(only=1 if how == "by name" else None))
        await asyncio.sleep(0.1)
        if how == "stopped":
            worker.stop()
        if how == "cancelled":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return None
        return await task

    report = run(scenario())
    wait_until(lambda: untouched(outbox, 2), "what was cancelled to be given back")
    if report is not None:
        assert (report.relay_fault is not None) is (how == "by name")
    assert [one.owner for one in outbox.links(NOW, is_gone=lambda _: False)] == ["another"]


@pytest.mark.parametrize("code", [421, 554])
def test_one_that_allows_fewer_links_than_we_have_lanes_is_not_ill(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(worker_module, "_PLACE_S", 0.01)
    outbox.queue(submissions(40), NOW)
    links = 0

    @asynccontextmanager
    async def two_at_a_time() -> AsyncIterator[FakeSession]:
        nonlocal links
        if links == 2:
            kind = TransientDeliveryError if code == 421 else RelayRefused
            raise kind("too many", stage="greeting", reply=Reply.parse(code, "too many"))
        links += 1
        try:
            yield FakeSession(slowly)
        finally:
            links -= 1

    first, second = FakeRelay(name="first:25"), Counting(name="second:25")
    first.session = two_at_a_time  # type: ignore[method-assign]
    report = run(Relays(outbox, [first, second]).worker(lanes=6).deliver_due())

    assert (report.outcomes, report.relay_fault) == ({RELAYED: 40}, None)
    assert second.most == 0


def test_each_relay_keeps_its_own_pace(outbox: Outbox) -> None:
    outbox.queue(submissions(9), NOW)
    times: list[float] = []

    async def submitting(_: Outgoing) -> None:
        times.append(asyncio.get_running_loop().time())

    relays = Relays(outbox, [FakeRelay(submitting)], Limits(rate_per_minute=6), clock=loop_clock)

    async def scenario() -> Report:
        return await relays.worker(lanes=4).deliver_due()

    with asyncio.Runner(loop_factory=Hurried) as runner:
        report = runner.run(scenario())
    assert report.outcomes == {RELAYED: 9}
    assert len(times) == 9
    assert min(later - sooner for sooner, later in pairwise(times)) > 9
    assert times[-1] - times[0] < 120
    assert all_relayed_at_once(outbox, 9)


def test_a_single_relay_with_a_limit_is_tried_anew_by_each_run(outbox: Outbox) -> None:
    outbox.queue(submissions(3), NOW)
    relay = Moody(name="first:25", away=True)
    several = Relays(outbox, [relay], Limits(connections=2))

    async def scenario() -> list[Report]:
        return [await several.worker(lanes=3).deliver_due() for _ in range(2)]

    for report in run(scenario()):
        assert str(report.relay_fault) == "first:25 is away"
    assert relay.tried == 2
    assert several.said == []
    assert untouched(outbox, 3)


def test_what_is_cut_short_gives_its_place_back(outbox: Outbox) -> None:
    outbox.queue(submissions(2), NOW)

    async def scenario() -> None:
        begun = asyncio.Event()

        async def submitting(_: Outgoing) -> None:
            begun.set()
            await asyncio.Event().wait()

        worker = Relays(outbox, [FakeRelay(submitting)], Limits(connections=1)).worker()
        task = asyncio.ensure_future(worker.deliver_due())
        await begun.wait()
        assert len(outbox.links(NOW, is_gone=lambda _: False)) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario())
    assert outbox.links(NOW, is_gone=lambda _: False) == []
    assert statuses(outbox) == {"R-1": "uncertain", "R-2": "queued"}


# Several processes


def _work(harness: Harness, port: int) -> int:
    async def work() -> int:
        with harness.open("child") as outbox:
            relays = Relays(outbox, [_way(port)], Limits(connections=2))
            report = await relays.worker(lanes=4).deliver_due()
            assert report.relay_fault is None
            return report.outcomes[RELAYED]

    return asyncio.run(work())


@dataclass
class LinksCounted(ScriptedRelay):
    """Counts the links that it has at the same time."""

    now: int = 0
    most: int = 0

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await super()._converse(reader, writer)
        finally:
            self.now -= 1


@durable
def test_two_processes_share_the_links_of_one_relay(harness: Harness, outbox: Outbox) -> None:
    wanted = submissions(80)
    outbox.queue(wanted, NOW)
    relay = LinksCounted()

    async def scenario() -> list[int]:
        async with relay:
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                asked = [pool.apply_async(_work, (harness, relay.port)) for _ in range(2)]
                shares = [await asyncio.to_thread(one.get, 60) for one in asked]
                pool.close()
                pool.join()
            return shares

    assert sum(run(scenario(), limit_s=60)) == 80
    assert Counter(relay.contents) == Counter(one.outgoing.content for one in wanted)
    assert relay.most == 2
    assert all_relayed_at_once(outbox, 80)


@durable
def test_the_link_of_a_killed_process_is_another_s_at_once(
    harness: Harness, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_PLACE_S", 0.05)
    outbox.queue(submissions(20), NOW)
    relay = LinksCounted({"content": Hang()})

    async def scenario() -> tuple[Report, Report]:
        async with relay:
            child = multiprocessing.get_context("spawn").Process(
                target=_work, args=(harness, relay.port)
            )
            child.start()
            await asyncio.to_thread(wait_until, lambda: len(relay.contents) == 2, "its messages")
            relay.script = {}
            worker = Relays(outbox, [_way(relay.port)], Limits(connections=2)).worker(lanes=2)
            going_on = asyncio.ensure_future(worker.deliver_due())
            await asyncio.sleep(0.3)
            assert len(relay.contents) == 2, "the child has both places"
            child.kill()
            first = await going_on
            await asyncio.to_thread(child.join)
            return first, await worker.deliver_due()

    first, then = run(scenario(), limit_s=60)
    assert (first.outcomes, first.relay_fault) == ({RELAYED: 18}, None)
    assert (then.recovered, then.outcomes) == (2, {RELAYED: 2})
    assert len(relay.contents) == 22
    assert outbox.links(NOW, is_gone=lambda _: False) == []
