"""An outbox that leaves nothing on a disk: for tests and demos, and the model of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from referrals.delivery import (
    JITTER,
    DeliveryStatus,
    Envelope,
    Outgoing,
    RetryPolicy,
    Submission,
    next_attempt,
)
from referrals.errors import LeaseLost, NotInOutbox, NotPossibleNow
from referrals.outboxes.memory.holds import MemoryHolds
from referrals.outboxes.memory.links import MemoryLinks
from referrals.outboxes.memory.origin import MemoryOrigin
from referrals.outboxes.memory.state import FINISHED, GIVEN_UP, Message, State
from referrals.queueing import (
    ANSWERABLE,
    CANCELLABLE,
    RETRIABLE,
    Attempt,
    Claimed,
    Held,
    NotYet,
    Outcome,
    Queued,
    decidable,
    decided,
    still_waiting,
    storable,
)
from referrals.verification import Verification, none_recorded

if TYPE_CHECKING:
    from referrals.audit import Entry


class MemoryOutbox(MemoryLinks, MemoryOrigin, MemoryHolds):
    """`ports.Outbox` in this process alone. From any thread or loop."""

    # Queueing

    def queue(self, submissions: Sequence[Submission], now: datetime) -> list[Queued]:
        """See `ports.Queue`."""
        answers = self._do(lambda state: self._queue(state, submissions, now))
        if any(one.new for one in answers):
            self._tell()
        return answers

    def queue_soon(self, submissions: Sequence[Submission], now: datetime) -> Future[list[Queued]]:
        """See `ports.Queue`."""
        done: Future[list[Queued]] = Future()
        try:
            done.set_result(self.queue(submissions, now))
        except Exception as error:
            done.set_exception(error)
        return done

    def known(self, content_keys: Iterable[str]) -> dict[str, Queued]:
        """See `ports.Queue`."""
        wanted = set(content_keys)
        return {
            one.content_key: Queued(one.id, new=False, status=one.status)
            for one in self._state.messages.values()
            if one.content_key in wanted
        }

    def _queue(
        self, state: State, submissions: Sequence[Submission], now: datetime
    ) -> list[Queued]:
        known = self._known_elsewhere(state, submissions)
        known |= {one.content_key: one for one in state.messages.values()}
        answers = []
        for one in submissions:
            before = known.get(one.content_key)
            if before is not None:
                answers.append(Queued(before.id, new=False, status=before.status))
                continue
            outgoing = one.outgoing
            message = Message(
                id=state.next_number,
                reference=outgoing.reference,
                case_reference=one.case_reference,
                intervention=one.intervention,
                agency=one.agency,
                recipient=outgoing.envelope.recipient,
                message_id=one.message_id,
                sha256=one.sha256,
                size=len(outgoing.content),
                status=DeliveryStatus.QUEUED,
                queued_at=now,
                due_at=now,
                attempts=0,
                maybe_doubled=False,
                relayed_at=None,
                acknowledge_by=one.acknowledge_by,
                acknowledged_on=None,
                purged_at=None,
                content_key=one.content_key,
                facts_key=one.facts_key,
                sender=outgoing.envelope.sender,
                content=outgoing.content,
                trying_since=now,
            )
            known[one.content_key] = state.add(message)
            self._log(state, now, "queued", message, one.disclosure)
            answers.append(Queued(message.id, new=True, status=message.status))
        return answers

    # Delivering

    @contextmanager
    def listening(self, heard: Callable[[], None]) -> Iterator[None]:
        """See `ports.Outbox`."""
        with self._memory.gate:
            self._memory.listeners.append(heard)
        try:
            yield
        finally:
            with self._memory.gate:
                self._memory.listeners.remove(heard)

    def _tell(self) -> None:
        with self._memory.gate:
            listeners = list(self._memory.listeners)
        for heard in listeners:
            heard()

    async def claim(
        self,
        owner: str,
        now: datetime,
        lease: timedelta,
        *,
        only: int | None = None,
        every: timedelta | None = None,
        pace: tuple[str, timedelta] | None = None,
    ) -> Claimed | NotYet | None:
        """See `ports.Deliveries`."""
        paces: dict[str | None, timedelta] = {} if every is None else {None: every}
        paces |= {} if pace is None else dict([pace])

        def run(state: State) -> Claimed | NotYet | None:
            message = self._next(state, now, only)
            if message is None:
                return None
            until = self._paced(state, now, paces)
            return self._take(state, message, owner, now, lease) if until is None else NotYet(until)

        return await self._await(run)

    def _next(self, state: State, now: datetime, only: int | None = None) -> Message | None:
        self._refuse_a_copy(state)
        under_way = Counter(one.agency for one in state.messages.values() if one.is_leased)
        due = [
            (under_way[one.agency], one.due_at, one.id)
            for one in state.messages.values()
            if one.due_at is not None
            and one.agency not in state.holds
            and (one.due_at <= now if only is None else one.id == only)
        ]
        return state.messages[min(due)[-1]] if due else None

    @staticmethod
    def _paced(
        state: State, now: datetime, paces: Mapping[str | None, timedelta]
    ) -> datetime | None:
        """Take the next place in each pace, or say when it is.

        What a clock put back has left in the future counts as now.
        """
        last = {key: min(state.paced_at[key], now) for key in paces if key in state.paced_at}
        until = max((at + paces[key] for key, at in last.items()), default=now)
        state.paced_at |= last if until > now else dict.fromkeys(paces, now)
        return until if until > now else None

    @staticmethod
    def _take(
        state: State, message: Message, owner: str, now: datetime, lease: timedelta
    ) -> Claimed:
        assert message.due_at is not None  # noqa: S101 - and whatever waits has its content
        assert message.content is not None  # noqa: S101
        begun = Attempt(now, None, None, None, None, None, None, None)
        attempt = state.begin(message, begun)
        # Counted from the first attempt: that a machine was off for days is no relay's doing.
        since = message.trying_since if message.failures else now
        state.change(
            message,
            status=DeliveryStatus.SENDING,
            due_at=None,
            lease_until=now + lease,
            lease_owner=owner,
            attempts=message.attempts + 1,
            trying_since=since,
        )
        return Claimed(
            id=message.id,
            attempt=attempt,
            case_reference=message.case_reference,
            agency=message.agency,
            outgoing=Outgoing(
                message.reference, Envelope(message.sender, message.recipient), message.content
            ),
            sha256=message.sha256,
            status=message.status,
            due_at=message.due_at,
            failures=message.failures,
            queued_at=message.queued_at,
            trying_since=since,
            maybe_doubled=message.maybe_doubled,
        )

    async def record(
        self,
        claimed: Claimed,
        owner: str,
        outcome: Outcome,
        now: datetime,
        policy: RetryPolicy,
        *,
        jitter: float = 0.0,
        hold_uncertain: bool = False,
    ) -> DeliveryStatus:
        """See `ports.Deliveries`."""
        return await self._await(
            lambda state: self._record(
                state, claimed, owner, outcome, now, policy, jitter, hold_uncertain
            )
        )

    async def record_and_claim(
        self,
        claimed: Claimed,
        owner: str,
        outcome: Outcome,
        now: datetime,
        policy: RetryPolicy,
        lease: timedelta,
        *,
        jitter: float = 0.0,
        hold_uncertain: bool = False,
    ) -> tuple[DeliveryStatus | None, Claimed | None]:
        """See `ports.Deliveries`."""

        def run(state: State) -> tuple[DeliveryStatus | None, Claimed | None]:
            status: DeliveryStatus | None
            try:
                status = self._record(
                    state, claimed, owner, outcome, now, policy, jitter, hold_uncertain
                )
            except LeaseLost:
                status = None
            message = self._next(state, now)
            return status, self._take(state, message, owner, now, lease) if message else None

        return await self._await(run)

    def _record(
        self,
        state: State,
        claimed: Claimed,
        owner: str,
        outcome: Outcome,
        now: datetime,
        policy: RetryPolicy,
        jitter: float,
        hold_uncertain: bool,
    ) -> DeliveryStatus:
        status, due, failures, doubled = decided(
            outcome.status, claimed, now, policy, jitter, hold_uncertain
        )
        relayed = outcome.status is DeliveryStatus.RELAYED
        message = state.messages[claimed.id]
        _, attempt = state.attempts.get(claimed.attempt, (0, None))
        if attempt and (attempt.outcome, attempt.relay) == (outcome.status, outcome.relay):
            return status  # kept before
        if not (relayed or _is_under_way(message, owner, attempt)):
            raise LeaseLost(f"{claimed.outgoing.reference} was taken over by another process.")
        state.change(
            message,
            status=status,
            due_at=due,
            lease_until=None,
            lease_owner=None,
            failures=failures,
            maybe_doubled=message.maybe_doubled or doubled,
            relayed_at=message.relayed_at or (now if relayed else None),
        )
        if attempt is not None:
            reply = outcome.reply
            ended = replace(
                attempt,
                ended_at=now,
                outcome=str(outcome.status),
                stage=outcome.stage,
                code=reply.code if reply else None,
                enhanced=reply.enhanced if reply else None,
                words=storable(reply.text if reply else outcome.words),
                relay=outcome.relay,
            )
            state.attempts[claimed.attempt] = message.id, ended
        if status is not DeliveryStatus.DELAYED:
            self._log(state, now, str(status), message, outcome.detail)
        return status

    async def release(self, claimed: Claimed, owner: str) -> None:
        """See `ports.Deliveries`."""

        def run(state: State) -> None:
            message = state.messages[claimed.id]
            _, attempt = state.attempts.get(claimed.attempt, (0, None))
            if _is_under_way(message, owner, attempt):
                del state.attempts[claimed.attempt]
                state.change(
                    message,
                    status=claimed.status,
                    due_at=claimed.due_at,
                    lease_until=None,
                    lease_owner=None,
                    attempts=message.attempts - 1,
                )

        await self._await(run)

    async def recover(
        self,
        now: datetime,
        policy: RetryPolicy,
        *,
        is_gone: Callable[[str], bool] = lambda _: False,
        hold_uncertain: bool = False,
    ) -> int:
        """See `ports.Deliveries`."""

        def run(state: State) -> int:
            self._refuse_a_copy(state)
            self._mend_due(state, now, policy)
            lost = [
                one
                for one in state.messages.values()
                if one.lease_until is not None
                and (one.lease_until < now or is_gone(one.lease_owner or ""))
            ]
            for one in lost:
                self._take_back(state, one, now, policy, hold_uncertain)
            return len(lost)

        return await self._await(run)

    @staticmethod
    def _mend_due(state: State, now: datetime, policy: RetryPolicy) -> None:
        """Make due now what a clock that was ahead has put off further than anything can be."""
        longest = now + policy.longest_wait * (1 + JITTER)
        latest = {
            DeliveryStatus.QUEUED: now,
            DeliveryStatus.DELAYED: longest,
            DeliveryStatus.UNCERTAIN: longest,
        }
        for one in list(state.messages.values()):
            if one.due_at is not None and one.due_at > latest[one.status]:
                state.change(one, due_at=now)

    def _take_back(
        self,
        state: State,
        message: Message,
        now: datetime,
        policy: RetryPolicy,
        hold_uncertain: bool,
    ) -> None:
        due: datetime | None = now
        if message.failures:
            due = next_attempt(message.failures, message.trying_since, now, policy)
        state.change(
            message,
            status=DeliveryStatus.UNCERTAIN,
            due_at=None if hold_uncertain else due,
            lease_until=None,
            lease_owner=None,
            failures=message.failures + 1,
            maybe_doubled=True,
        )
        words = "the process that was submitting it ended"
        state.end_open_attempts(message, ended_at=now, outcome="uncertain", words=words)
        self._log(state, now, "uncertain", message, {"lease": "ended"})

    # What there is

    def counts(self) -> dict[str, int]:
        """See `ports.Account`, as of all that follow."""
        return dict(Counter(str(one.status) for one in self._state.messages.values()))

    def oldest_due(self, now: datetime) -> datetime | None:
        state = self._state
        due = (one.due_at for one in state.messages.values() if one.agency not in state.holds)
        return min((at for at in due if at is not None and at <= now), default=None)

    def held(
        self,
        *,
        message_id: int | None = None,
        status: DeliveryStatus | None = None,
        reference: str | None = None,
        case_reference: str | None = None,
        kept: bool = False,
        limit: int = 1_000,
        offset: int = 0,
    ) -> list[Held]:
        found = [
            one
            for one in reversed(self._state.messages.values())
            if message_id in (None, one.id)
            and status in (None, one.status)
            and reference in (None, one.reference)
            and case_reference in (None, one.case_reference)
            and not (kept and (one.due_at is None or one.agency not in self._state.holds))
        ]
        return self._state.with_reroutes(found[offset : offset + limit])

    def attempts(self, message_id: int) -> list[Attempt]:
        return self._state.attempts_of(message_id)

    def content(self, message_id: int) -> bytes | None:
        message = self._state.messages.get(message_id)
        if message is None:
            raise NotInOutbox("There is no such message in the outbox.")
        return message.content

    def unacknowledged(self, today: date) -> list[Held]:
        found = [
            one.held
            for one in self._state.messages.values()
            if one.status in ANSWERABLE
            and one.acknowledged_on is None
            and one.acknowledge_by < today
        ]
        return sorted(found, key=lambda one: (one.acknowledge_by, one.id))

    # What a person decides

    def retry(self, reference: str, now: datetime) -> Held:
        """See `ports.Decisions`, as of all that follow."""

        def change(state: State, message: Message) -> Message:
            if message.purged_at is not None:
                raise NotPossibleNow(f"{reference}: its content was purged. Make it anew.")
            return state.change(message, status=DeliveryStatus.QUEUED, due_at=now, failures=0)

        held = self._decide(reference, "retried", RETRIABLE, now, change, newest=True)
        self._tell()
        return held

    def cancel(self, reference: str, now: datetime) -> Held:
        def change(state: State, message: Message) -> Message:
            return state.change(
                message,
                status=DeliveryStatus.CANCELLED,
                due_at=None,
                content_key=message.freed("cancelled"),
            )

        return self._decide(reference, "cancelled", CANCELLABLE, now, change)

    def acknowledge(self, reference: str, on: date, now: datetime) -> Held:
        def change(state: State, message: Message) -> Message:
            return state.change(
                message,
                acknowledged_on=on,
                status=DeliveryStatus.RELAYED,
                due_at=None,
                lease_until=None,
                lease_owner=None,
                relayed_at=message.relayed_at or now,
            )

        return self._decide(
            reference, "acknowledged", ANSWERABLE, now, change, or_maybe_arrived=True
        )

    def _decide(
        self,
        reference: str,
        action: str,
        allowed: Sequence[DeliveryStatus],
        now: datetime,
        change: Callable[[State, Message], Message],
        *,
        newest: bool = False,
        or_maybe_arrived: bool = False,
    ) -> Held:
        def run(state: State) -> Held:
            found = [one for one in state.messages.values() if one.reference == reference]
            found.sort(key=lambda one: (one.acknowledged_on is not None, -one.id))
            message = decidable(
                found, reference, action, allowed, newest=newest, or_maybe_arrived=or_maybe_arrived
            )
            after = change(state, message)
            self._log(state, now, action, message, {})
            return after.held

        return self._do(run)

    # Forgetting

    def purge(self, relayed_before: datetime, now: datetime) -> int:
        """See `ports.Retention`, as of all that follow."""
        return self._do(
            lambda state: self._forget(state, _finished(state, relayed_before), "purged", now)
        )

    def purgeable(self, relayed_before: datetime) -> int:
        return len(_finished(self._state, relayed_before))

    def unfinished(self, untouched_since: datetime) -> list[tuple[Held, datetime]]:
        state = self._state
        found = [
            (one.held, state.touched_at(one))
            for one in state.messages.values()
            if one.status not in FINISHED and one.purged_at is None
            # A clock that was put back may have an attempt begin before the message was queued.
            and one.queued_at < untouched_since
            and state.touched_at(one) < untouched_since
        ]  # fmt: skip
        return sorted(found, key=lambda one: (one[1], one[0].id))

    def purge_unfinished(self, untouched_since: datetime, now: datetime) -> int:
        def run(state: State) -> int:
            untouched = [
                one
                for one in state.messages.values()
                if one.status in GIVEN_UP
                and not one.waits
                and state.touched_at(one) < untouched_since
            ]
            return self._forget(state, untouched, "purged", now)

        return self._do(run)

    def erase(self, case_reference: str, now: datetime) -> int:
        def run(state: State) -> int:
            of_case = [
                one for one in state.messages.values() if one.case_reference == case_reference
            ]
            waiting = sum(one.waits for one in of_case)
            if waiting:
                raise still_waiting(case_reference, waiting)
            return self._forget(state, of_case, "erased", now)

        return self._do(run)

    def _forget(self, state: State, messages: Iterable[Message], action: str, now: datetime) -> int:
        whole = [one for one in messages if one.purged_at is None]
        for one in whole:
            key = one.freed("purged") if one.status in GIVEN_UP else one.content_key
            state.change(one, content=None, sender="", purged_at=now, content_key=key)
            relayed = one.status is DeliveryStatus.RELAYED
            self._log(state, now, action, one, {} if relayed else {"status": str(one.status)})
        return len(whole)

    def note(
        self, action: str, detail: Mapping[str, Any], now: datetime, *, case_reference: str = ""
    ) -> None:
        self._do(lambda state: self._write(state, now, action, detail, "", case_reference))

    def last_noted(self, action: str) -> datetime | None:
        found = (one.at for one in reversed(self._state.audit) if one.action == action)
        return next(found, None)

    # Addresses

    def verify(self, given: Verification, /, now: datetime) -> None:
        """See `ports.Addresses`, as of the next."""

        def run(state: State) -> None:
            state.verified[given.agency, given.address] = given
            self._write(state, now, "address verified", given.detail)

        self._do(run)

    def withdraw(self, agency: str, address: str, now: datetime) -> None:
        def run(state: State) -> None:
            gone = state.verified.pop((agency, address), None)
            if gone is None:
                raise none_recorded(agency, address)
            self._write(state, now, "address verification withdrawn", gone.detail)

        self._do(run)

    def recorded(self) -> tuple[Verification, ...]:
        """What was recorded of addresses, by agency and address."""
        return tuple(one for _, one in sorted(self._state.verified.items()))

    # The audit

    def audit(self, case_reference: str | None = None) -> Iterator[Entry]:
        return iter(self._state.of_case(case_reference))

    def newest_entries(
        self, case_reference: str | None = None, *, limit: int, offset: int = 0
    ) -> list[Entry]:
        return self._state.of_case(case_reference)[::-1][offset : offset + limit]

    def count_entries(self, case_reference: str | None = None) -> int:
        return len(self._state.of_case(case_reference))


def _is_under_way(message: Message, owner: str, attempt: Attempt | None) -> bool:
    """Whether this very attempt still has the message; of two workers both may be that owner."""
    return (
        message.status is DeliveryStatus.SENDING
        and message.lease_owner == owner
        and attempt is not None
        and attempt.ended_at is None
    )


def _finished(state: State, before: datetime) -> list[Message]:
    """Whole messages that were relayed before a time, or queued before it and then cancelled."""
    return [
        one
        for one in state.messages.values()
        if one.purged_at is None
        and (
            (one.status is DeliveryStatus.RELAYED and (one.relayed_at or before) < before)
            or (one.status is DeliveryStatus.CANCELLED and one.queued_at < before)
        )
    ]
