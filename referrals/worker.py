"""Delivers what is due: lanes over reused connections, each message claimed before its attempt.

What ends a run early is a relay that can't be reached or refuses us, and an outbox that can't be
written. None of it is a referral's fault, so nothing is counted against any.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from referrals.delivery import DeliveryStatus, Outgoing, Receipt, RetryPolicy
from referrals.errors import (
    DeliveryError,
    DeliveryUncertain,
    LeaseLost,
    MessageRefused,
    OutboxError,
    OutboxUnusable,
    PermanentDeliveryError,
    RelayRefused,
    TransientDeliveryError,
)
from referrals.ports import Deliveries
from referrals.queueing import Claimed, NotYet, Outcome

LEASE = timedelta(minutes=20)
"""Longer than any attempt: the last reply may take ten minutes (RFC 5321 §4.5.3.2.6)."""

_CLOSING = 421
_OF_ONE_LINK = ("connect", "greeting")
_POLL_S = 2.0
_PLACE_S = 0.5
"""How often it is asked whether a place for a link is free."""
_PLACE_FOR_ONE_S = 10.0
"""How long a person waits for one, who has asked for this very message to be tried."""
_LONGEST_PAUSE_S = 300.0
_LONGEST_ROUND_S = 60.0
"""After this, `watch` looks after what others left behind, however much there still is to do."""
_PUT_OFF_IN_A_ROW = 3
"""So many put off at MAIL, none taken in between, say that the relay takes none just now."""
_IN_DOUBT_IN_A_ROW = 10
"""So many left in doubt, none taken in between, are enough: each more may arrive twice, too."""
_STOPPED_S = 1.0
"""How long a stop waits for an outbox that says nothing, where no outcome depends on it."""
_RECORD_AGAIN_S = (0.2, 1.0, 5.0)
"""Waits before an outcome is written again: one that is forgotten arrives twice."""

T = TypeVar("T")


class Session(Protocol):
    """A link to the relay that is ready for messages, one after another."""

    async def submit(self, outgoing: Outgoing) -> Receipt: ...

    async def reset(self) -> None:
        """Make ready for the next message after a refused one; raises if the link is gone."""
        ...


@runtime_checkable
class Routed(Protocol):
    """What a session that goes through one of several relays says besides."""

    relay: str
    """Its name, for people."""
    pace: tuple[str, timedelta] | None
    """That relay's own, see `ports.Deliveries.claim`."""

    @property
    def is_spent(self) -> bool:
        """Whether another link is to be had for the next message: to a better relay, perhaps."""
        ...


class Relay(Protocol):
    """Where sessions come from; `name` is for people.

    A session's block is left with RelayRefused or NoLink if the relay takes nothing. One that has
    another relay then says so with Elsewhere.
    """

    @property
    def name(self) -> str: ...

    def session(self) -> AbstractAsyncContextManager[Session]:
        """Raises RelayRefused, TransientDeliveryError, or NoPlace once it is entered."""
        ...


@dataclass(frozen=True)
class DeliveryOptions:
    """How to deliver. `rate_per_minute` of 0 means as fast as the relay takes it.

    `lanes` is how many links there are at most; a relay that allows fewer gets fewer.
    """

    lanes: int = 4
    rate_per_minute: int = 0
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    hold_uncertain: bool = False


@dataclass
class Report:
    """What a run came to, by status; `relay_fault` is why it ended early, if it did."""

    outcomes: Counter[DeliveryStatus] = field(default_factory=Counter)
    recovered: int = 0
    relay_fault: RelayRefused | TransientDeliveryError | None = None


@dataclass
class _Run(Report):
    """A report while its run lasts."""

    link_fault: TransientDeliveryError | None = None  # one lane's, while others may go on
    outbox_fault: OutboxError | None = None
    unrecorded: list[str] = field(default_factory=list)
    linked: bool = False
    up: int = 0  # links
    put_off: int = 0  # messages in a row
    in_doubt: int = 0  # likewise
    nothing_due: asyncio.Event = field(default_factory=asyncio.Event)
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    ends_at: float | None = None  # on the monotonic clock
    at_work: int = 0  # lanes
    idle: list[asyncio.Future[None]] = field(default_factory=list)  # lanes that may be roused

    @property
    def is_long(self) -> bool:
        return self.ends_at is not None and time.monotonic() >= self.ends_at

    def rouse(self, count: int = 1) -> None:
        """Have so many idle lanes look again."""
        while self.idle and count > 0:
            one = self.idle.pop()
            if not one.done():
                one.set_result(None)
                count -= 1


class Renew(Exception):
    """This link is of no more use; another may be."""


class Elsewhere(Renew):
    """So it is for a message that was not tried: this relay takes none, another may."""


class NoPlace(Exception):
    """All links that the relay may have are in use; `is_free` asks whether that is still so."""

    def __init__(self, relay: str, is_free: Callable[[], Awaitable[bool]]) -> None:
        self.relay = relay
        self.is_free = is_free


class NoLink(Exception):
    """This lane gets no link, or none that takes a message; `fault` says why."""

    def __init__(self, fault: TransientDeliveryError) -> None:
        self.fault = fault


class Worker:
    """Delivers from one outbox through one relay.

    Args:
        now, jitter: the clock, aware, and a number from -1 to 1; given so that tests can choose.
        told: called with each message and what became of it.
    """

    def __init__(
        self,
        outbox: Deliveries,
        relay: Relay,
        options: DeliveryOptions,
        *,
        now: Callable[[], datetime],
        jitter: Callable[[], float],
        told: Callable[[Claimed, DeliveryStatus, Outcome], None] = lambda *_: None,
    ) -> None:
        self._outbox = outbox
        self._relay = relay
        self._options = options
        self._now = now
        self._jitter = jitter
        self._told = told
        self._owner = owner_name()
        self._stopping = asyncio.Event()
        self._woken = asyncio.Event()
        self._round: _Run | None = None  # of `watch`
        rate = options.rate_per_minute
        self._every = timedelta(minutes=1) / rate if rate else None
        # Of the one lane that waits for its place in the pace of a relay, or of all.
        self._turns: defaultdict[str | None, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._asking = asyncio.Lock()  # of the one lane that asks for a place for its link

    def stop(self) -> None:
        """Finish what is under way and take nothing new."""
        self._stopping.set()
        self._woken.set()

    def wake(self) -> None:
        """Have `watch` look at once: something may be due. Call it in the loop's own thread."""
        self._woken.set()
        if self._round is not None:
            self._round.rouse()

    async def deliver_due(self, only: int | None = None) -> Report:
        """Try everything that is due, once. `only` names one message, to be tried due or not.

        Raises:
            OutboxUnusable: the outbox can't be written. Every lane has finished what it was at;
                what the relay took without our being able to record it is named.
        """
        return await self._deliver(_Run(), only)

    async def _deliver(self, run: _Run, only: int | None = None) -> Report:
        recovering = self._outbox.recover(
            self._now(),
            self._options.policy,
            is_gone=is_gone,
            hold_uncertain=self._options.hold_uncertain,
        )
        run.recovered = await self._unless_stopped(recovering) or 0
        lanes = 1 if only is not None else self._options.lanes
        if self._options.rate_per_minute:
            # More would only keep links open for longer than a relay bears with.
            lanes = min(lanes, self._options.rate_per_minute)
        ended = await asyncio.gather(
            *(self._lane_of(f"{self._owner}/{number}", run, only) for number in range(lanes)),
            return_exceptions=True,
        )
        for fault in ended:
            if fault is not None:
                raise fault
        if run.unrecorded:
            raise OutboxUnusable(
                f"{run.outbox_fault} The relay was given {', '.join(run.unrecorded)}, which could "
                "not be recorded: what it took may arrive twice."
            )
        if run.outbox_fault is not None:
            raise run.outbox_fault
        if not (run.is_long and run.outcomes[DeliveryStatus.RELAYED]):
            run.relay_fault = run.relay_fault or run.link_fault
        return run

    async def watch(self, seen: Callable[[Report], None] = lambda _: None) -> None:
        """Deliver whatever becomes due, until `stop`.

        A relay that can't be reached or refuses us is tried again after a while, longer each time
        up to five minutes. `wake` ends the wait, unless it refuses us: a password that is tried
        too often may lock the account.
        """
        faults = 0
        while not self._stopping.is_set():
            self._woken.clear()
            self._round = run = _Run(ends_at=time.monotonic() + _LONGEST_ROUND_S)
            report = await self._deliver(run)
            self._round = None
            if run.is_long:
                self._woken.set()
            seen(report)
            # One that took some, and then wants no more for now, is asked again soon.
            going = report.outcomes[DeliveryStatus.RELAYED] > 0
            faults = (1 if going else faults + 1) if report.relay_fault else 0
            pause_s = pause_after(faults)
            refused = isinstance(report.relay_fault, RelayRefused)
            if faults > 1:
                # However much is queued meanwhile, a relay that is away is not asked all the time.
                await self._stopped_within(_POLL_S)
                pause_s -= _POLL_S
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await (self._stopping if refused else self._woken).wait()

    async def _lane_of(self, owner: str, run: _Run, only: int | None) -> None:
        """As `_lane`; if it is a round of `watch`, for as long as another lane is at work.

        Else a lull ends one lane after another, and the last, if it never finds nothing, works off
        by itself whatever comes.
        """
        while True:
            run.at_work += 1
            try:
                nothing_due = await self._lane(owner, run, only)
            finally:
                run.at_work -= 1
                if not run.at_work:
                    run.rouse(len(run.idle))
            if not nothing_due or run.ends_at is None or not await self._roused(run):
                return

    async def _roused(self, run: _Run) -> bool:
        """Wait until something may be due; false once no other lane is at work."""
        if run.at_work and not self._is_over(run):
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            run.idle.append(idle)
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await idle
        return run.at_work > 0 and not self._is_over(run)

    async def _lane(self, owner: str, run: _Run, only: int | None) -> bool:
        """Claim and attempt until nothing is due. The link is opened only once something is.

        False if it ends for another reason.
        """
        try:
            while (claimed := await self._claim(owner, run, only)) is not None:
                run.rouse()  # where one was due, another may be
                try:
                    await self._use_link(owner, claimed, run, only)
                    return True
                except Elsewhere:
                    run.put_off = run.in_doubt = 0
                except Renew:
                    if only is not None:
                        return False  # it had its attempt
                except NoPlace as full:
                    if not await self._has_place(full, run, only):
                        return False
                except NoLink as error:
                    # Another lane may have one: a relay may allow fewer than we have lanes.
                    run.link_fault = error.fault
                    return False
                except RelayRefused as error:
                    run.relay_fault = run.relay_fault or error
                    return False
            return True
        except OutboxError as error:
            # The account can't be kept: take nothing new in any lane.
            run.outbox_fault = run.outbox_fault or error
            return False

    async def _has_place(self, full: NoPlace, run: _Run, only: int | None) -> bool:
        """Wait for a place for a link, holding no message; false once there is no need of one."""
        clock = asyncio.get_running_loop().time
        until = clock() + _PLACE_FOR_ONE_S
        async with self._asking:
            while not (self._is_over(run) or run.nothing_due.is_set()):
                if only is not None and clock() > until:
                    run.link_fault = TransientDeliveryError(
                        f"All links that {full.relay} may have are in use just now.",
                        stage="connect",
                    )
                    return False
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PLACE_S):
                        await run.nothing_due.wait()
                if await full.is_free():
                    return True
        return False

    async def _claim(
        self,
        owner: str,
        run: _Run,
        only: int | None,
        pace: tuple[str, timedelta] | None = None,
    ) -> Claimed | None:
        waits = self._every is not None or pace is not None
        async with self._turns[pace[0] if pace else None] if waits else nullcontext():
            while not self._is_over(run):
                now = self._now()
                found = await self._unless_stopped(
                    self._outbox.claim(owner, now, LEASE, only=only, every=self._every, pace=pace)
                )
                if not isinstance(found, NotYet):
                    return self._claimed(found, run)
                await self._stopped_within((found.until - now).total_seconds())
        return None

    @staticmethod
    def _claimed(found: Claimed | None, run: _Run) -> Claimed | None:
        if found is None:
            run.link_fault = None  # nothing is left that a lane without a link would have tried
            run.nothing_due.set()
        else:
            run.nothing_due.clear()
        return found

    async def _stopped_within(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _use_link(self, owner: str, first: Claimed, run: _Run, only: int | None) -> None:
        """Open a link and attempt one message after another over it, until nothing is due.

        Raises:
            Renew, NoLink, NoPlace, RelayRefused
        """
        async with AsyncExitStack() as stack:
            try:
                session = await self._open(stack, run)
            except TransientDeliveryError as error:
                await self._release(first, owner)
                raise NoLink(error) from None
            except BaseException:
                await self._release(first, owner)
                raise
            routed = session if isinstance(session, Routed) else None
            name = routed.relay if routed else self._relay.name
            pace = routed.pace if routed else None
            claimed: Claimed | None = first
            if pace is not None:
                # Which relay's pace it is to keep is known only now.
                await self._release(first, owner)
                claimed = await self._claim(owner, run, only, pace)
            relayed = 0
            while claimed is not None:
                try:
                    outcome, link_is_good = await self._attempt(
                        session, name, claimed, relayed, run
                    )
                except (RelayRefused, NoLink, Renew):
                    await self._release(claimed, owner)
                    raise
                except asyncio.CancelledError:
                    # It may have been handed over, see `ports.Transport`.
                    ended = Outcome(DeliveryStatus.UNCERTAIN, name, "", None, "we were stopped")
                    await self._record(claimed, owner, ended, run)
                    raise
                relayed += outcome.status is DeliveryStatus.RELAYED
                spent = routed is not None and routed.is_spent
                if not link_is_good or spent or only is not None:
                    await self._record(claimed, owner, outcome, run)
                    if only is not None:
                        return
                    if run.in_doubt >= _IN_DOUBT_IN_A_ROW:
                        raise NoLink(_leaves_in_doubt(name, run.in_doubt))
                    raise Renew
                claimed = await self._record_and_claim(claimed, owner, outcome, run, pace)

    async def _open(self, stack: AsyncExitStack, run: _Run) -> Session:
        """Open a link; the first of a run by one lane alone.

        So a wrong password is tried once, not once a lane, which may lock the account.
        """
        async with nullcontext() if run.linked else run.opening:
            fault = run.relay_fault or run.link_fault
            if fault is not None and not run.linked:
                raise fault
            try:
                session = await stack.enter_async_context(self._relay.session())
            except RelayRefused as error:
                if not (run.up and error.stage in _OF_ONE_LINK):
                    run.relay_fault = run.relay_fault or error
                    raise
                # Perhaps it allows no more links; if it means us, those that are up will find out.
                fault = TransientDeliveryError(str(error), stage=error.stage, reply=error.reply)
            except TransientDeliveryError as error:
                fault = error
            else:
                run.linked = True
                run.up += 1
                stack.callback(_one_less_up, run)
                return session
            run.link_fault = run.link_fault or fault
            raise fault

    async def _attempt(
        self, session: Session, name: str, claimed: Claimed, relayed: int, run: _Run
    ) -> tuple[Outcome, bool]:
        """What became of it, and whether the link is good for another.

        Args:
            name: the relay's.
            relayed: how many messages this link has taken so far.

        Raises:
            Renew: the relay wants no more messages over this link, as it may after so many or
                after so much time: that is normal life, and another link will do.
            NoLink: it wants no message at all just now, or has put off several in a row: each
                that it puts off waits twice as long the next time, and fails in the end.
            RelayRefused: it wants none from us.
        """
        if not claimed.is_intact:
            words = "Its bytes are not those that were queued. Make the referral anew."
            return Outcome(DeliveryStatus.FAILED, name, "", None, words), True
        try:
            receipt = await session.submit(claimed.outgoing)
        except DeliveryUncertain as error:
            run.in_doubt += 1
            return _outcome(DeliveryStatus.UNCERTAIN, name, error), False
        except TransientDeliveryError as error:
            closed = error.reply is None or error.reply.code == _CLOSING
            if relayed and (closed or error.stage == "sender"):
                raise Renew from None
            if closed and error.stage == "sender":
                raise NoLink(error) from None
            # At RCPT or later it may be about this message or its agency, and others fare better.
            run.put_off += error.stage == "sender"
            if run.put_off > _PUT_OFF_IN_A_ROW:
                raise NoLink(error) from None
            good = not closed and await _is_good(session)
            return _outcome(DeliveryStatus.DELAYED, name, error), good
        except PermanentDeliveryError as error:
            return _outcome(DeliveryStatus.FAILED, name, error), await _is_good(session)
        except MessageRefused as error:
            return Outcome(DeliveryStatus.FAILED, name, "content", None, str(error)), True
        run.put_off = run.in_doubt = 0
        return Outcome(receipt.status, name, "content", receipt.reply), True

    async def _record_and_claim(
        self,
        claimed: Claimed,
        owner: str,
        outcome: Outcome,
        run: _Run,
        pace: tuple[str, timedelta] | None,
    ) -> Claimed | None:
        """Record an outcome and claim what is next: in one step, if nothing speaks against it."""
        if self._every is not None or pace is not None or self._is_over(run):
            await self._record(claimed, owner, outcome, run)
            return await self._claim(owner, run, None, pace)
        try:
            status, following = await self._outbox.record_and_claim(
                claimed,
                owner,
                outcome,
                self._now(),
                self._options.policy,
                LEASE,
                jitter=self._jitter(),
                hold_uncertain=self._options.hold_uncertain,
            )
        except OutboxUnusable:
            await self._record(claimed, owner, outcome, run)  # with patience
            return await self._claim(owner, run, None)
        try:
            self._recorded(claimed, status, outcome, run)
        except BaseException:  # who is told may be gone: a closed pipe, say
            if following is not None:
                await self._release(following, owner)
            raise
        if following is not None and self._is_over(run):
            await self._release(following, owner)
            return None
        return self._claimed(following, run)

    async def _record(self, claimed: Claimed, owner: str, outcome: Outcome, run: _Run) -> None:
        """Record an outcome, patiently: to forget one is to submit the message twice."""
        status: DeliveryStatus | None = None
        try:
            status = await _patiently(
                lambda: self._outbox.record(
                    claimed,
                    owner,
                    outcome,
                    self._now(),
                    self._options.policy,
                    jitter=self._jitter(),
                    hold_uncertain=self._options.hold_uncertain,
                )
            )
        except LeaseLost:
            pass
        except OutboxUnusable:
            run.unrecorded.append(claimed.outgoing.reference)
            raise
        self._recorded(claimed, status, outcome, run)

    def _recorded(
        self, claimed: Claimed, status: DeliveryStatus | None, outcome: Outcome, run: _Run
    ) -> None:
        if status is not None:  # else whoever took it over keeps the account of it
            run.outcomes[status] += 1
            self._told(claimed, status, outcome)

    async def _release(self, claimed: Claimed, owner: str) -> None:
        await self._unless_stopped(_patiently(lambda: self._outbox.release(claimed, owner)))

    async def _unless_stopped(self, asked: Coroutine[Any, Any, T]) -> T | None:
        """What it comes to; None if that is not there a moment after we were told to stop.

        Not for what an outcome depends on.
        """
        task = asyncio.ensure_future(asked)
        stopped = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait((task,), timeout=_STOPPED_S)
            return await task if task.done() else None
        finally:
            stopped.cancel()
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def _is_over(self, run: _Run) -> bool:
        return (
            self._stopping.is_set()
            or run.is_long
            or run.relay_fault is not None
            or run.outbox_fault is not None
        )


def _leaves_in_doubt(relay: str, count: int) -> TransientDeliveryError:
    return TransientDeliveryError(
        f"{relay} was given the whole of {count} messages in a row and answered none, so the rest "
        "is kept until later: each of those may arrive twice. Ask who runs the relay.",
        stage="content",
    )


def _one_less_up(run: _Run) -> None:
    run.up -= 1


def pause_after(faults: int) -> float:
    """Seconds until a relay is asked again that could not be reached so many times in a row.

    Twice as long each time, up to five minutes; 0 faults: until we look for what became due.
    """
    return min(_LONGEST_PAUSE_S, _POLL_S * 2.0 ** min(faults, 10))


async def _patiently(write: Callable[[], Awaitable[T]]) -> T:
    """Write again, after a while, what the outbox could not take; the last time, let it say so."""
    for pause_s in _RECORD_AGAIN_S:
        try:
            return await write()
        except OutboxUnusable:
            await asyncio.sleep(pause_s)
    return await write()


def _outcome(
    status: DeliveryStatus,
    relay: str,
    error: TransientDeliveryError | PermanentDeliveryError | DeliveryUncertain,
) -> Outcome:
    return Outcome(status, relay, error.stage, error.reply, str(error), error)


async def _is_good(session: Session) -> bool:
    """Whether the link takes another message after a refused one."""
    try:
        await session.reset()
    except DeliveryError:
        return False
    return True


def owner_name() -> str:
    """This process, by a name that no other has: boot, process namespace, id, time of start."""
    return f"{_boot()}.{_namespace()}.{os.getpid()}.{_start(os.getpid())}"


def is_gone(owner: str) -> bool:
    """Whether the process that holds a lease has ended; where that can't be told, it has not.

    A process in another container can't be seen from here, so only the lease tells.
    """
    try:
        boot, namespace, pid, start = owner.partition("/")[0].split(".")
        number = int(pid)
    except ValueError:
        return False
    if not (boot and namespace and start and _boot()):
        return False
    if boot != _boot():
        return True
    if namespace != _namespace():
        return False
    now = _start(number)
    return now != start if now else not _exists(number)


def _boot() -> str:
    """Names this run of the system, the same in all its containers."""
    return _read("/proc/sys/kernel/random/boot_id").strip()


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return ""


def _start(pid: int) -> str:
    """When a process started, in ticks since boot; "" if it can't be seen.

    Source: proc(5), /proc/pid/stat, fields 3 and 22.
    """
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) < 20:
        return ""
    return "ended" if fields[0] in "ZX" else fields[19]  # a zombie only waits for its parent


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _exists(pid: int) -> bool:
    """Also for a process whose /proc is hidden from us (hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
