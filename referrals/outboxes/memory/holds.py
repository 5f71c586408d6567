"""Which agencies are held, and how what waits for them gets another address, in memory."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from referrals.delivery import DeliveryStatus
from referrals.holding import (
    GROUP,
    NOT_INTACT,
    Addressed,
    Hold,
    Kept,
    Reason,
    Rerouted,
    Rerouting,
    not_held,
    still_elsewhere,
)
from referrals.outboxes.memory.state import FINISHED, MemoryPlace, Message, State

if TYPE_CHECKING:
    from referrals.delivery import Submission
    from referrals.queueing import Held

_WAIT_OR_ARE_UNDER_WAY = (DeliveryStatus.QUEUED, DeliveryStatus.SENDING, DeliveryStatus.DELAYED)


class MemoryHolds(MemoryPlace):
    """`ports.Holds`."""

    def hold(self, agency: str, why: Reason, now: datetime) -> tuple[Hold, bool]:
        def run(state: State) -> tuple[Hold, bool]:
            if agency in state.holds:
                return state.holds[agency], False
            made = state.holds[agency] = Hold(agency, now, self.actor, why)
            self._write(state, now, "agency held", made.detail)
            return made, True

        return self._do(run)

    def holds(self) -> list[Hold]:
        return [hold for _, hold in sorted(self._state.holds.items())]

    def addressed(self, agency: str) -> list[Addressed]:
        found = Counter(
            (one.recipient, one.status, one.due_at is not None, one.purged_at is None)
            for one in self._state.messages.values()
            if one.agency == agency and one.status not in FINISHED
        )
        return [Addressed(*how, number) for how, number in sorted(found.items())]

    def disclosed(self, agency: str, recipient: str, *, limit: int = 1_000) -> list[Held]:
        found = [
            one
            for one in reversed(self._state.messages.values())
            if (one.agency == agency and one.recipient != recipient)
            and one.acknowledged_on is None
            and (one.relayed_at is not None or one.maybe_doubled)
        ]
        return self._state.with_reroutes(found[:limit])

    def reroute(self, rerouting: Rerouting, now: datetime) -> Iterator[list[Rerouted]]:
        for status in rerouting.statuses:
            after = 0
            while True:
                group = self._do(partial(self._reroute_some, rerouting, status, after, now))
                if group:
                    yield group
                    after = group[-1].old
                if len(group) < GROUP:
                    break

    def _reroute_some(
        self, rerouting: Rerouting, status: DeliveryStatus, after: int, now: datetime, state: State
    ) -> list[Rerouted]:
        if rerouting.agency not in state.holds:
            raise not_held(rerouting.agency)
        found = [
            one
            for one in state.messages.values()
            if (one.status is status and one.agency == rerouting.agency)
            and one.recipient != rerouting.recipient
            and one.content is not None
            and one.id > after
        ]
        return [self._reroute(state, rerouting, one, now) for one in found[:GROUP]]

    def _reroute(
        self, state: State, rerouting: Rerouting, message: Message, now: datetime
    ) -> Rerouted:
        assert message.content is not None  # noqa: S101 - else it was not chosen
        old = Kept(message.recipient, message.sha256, message.content)
        there = [
            one
            for one in state.messages.values()
            if (one.reference, one.recipient) == (message.reference, rerouting.recipient)
            and one.facts_key == message.facts_key is not None
            and one.is_live
        ]
        if there:
            after = there[-1]
        else:
            token = secrets.token_hex(8)
            new = rerouting.message(message.reference, message.message_id, old, token, now)
            if new is None:
                state.change(message, status=DeliveryStatus.FAILED, due_at=None)
                self._log(state, now, "failed", message, {"why": NOT_INTACT})
                return Rerouted(message.reference, message.id, None)
            after = state.add(
                replace(
                    message,
                    id=state.next_number,
                    recipient=rerouting.recipient,
                    message_id=new.message_id,
                    sha256=new.sha256,
                    size=len(new.content),
                    content=new.content,
                    status=DeliveryStatus.QUEUED,
                    queued_at=now,
                    trying_since=now,
                    due_at=now,
                    attempts=0,
                    failures=0,
                    maybe_doubled=False,
                    relayed_at=None,
                    acknowledged_on=None,
                    replaces=message.id,
                )
            )
        key = message.freed("rerouted")
        state.change(message, status=DeliveryStatus.CANCELLED, due_at=None, content_key=key)
        if message.facts_key is not None:
            for facts, number in state.rerouted.items():
                if number == message.id:
                    state.rerouted[facts] = after.id
            for recipient in (message.recipient, rerouting.recipient):
                state.rerouted[message.facts_key, recipient] = after.id
        detail = rerouting.detail(old, message.intervention, after.sha256)
        self._log(state, now, "rerouted", message, detail)
        return Rerouted(message.reference, message.id, after.id, joined=bool(there))

    def resume(self, agency: str, recipient: str | None, now: datetime) -> None:
        def run(state: State) -> None:
            hold = state.holds.pop(agency, None)
            if hold is None:
                raise not_held(agency)
            of_agency = [one for one in state.messages.values() if one.agency == agency]
            elsewhere = [one for one in of_agency if one.recipient != recipient]
            left = sum(one.status in _WAIT_OR_ARE_UNDER_WAY for one in elsewhere)
            if left:
                raise still_elsewhere(agency, left)
            stopped = [one for one in elsewhere if one.due_at is not None]
            for one in stopped:
                state.change(one, due_at=None)
            for one in of_agency:
                if one.recipient == recipient and one.due_at is not None:
                    waited = now - max(one.trying_since, hold.since)
                    counts = one.trying_since + waited if one.failures else one.trying_since
                    state.change(one, due_at=now, trying_since=counts)
            detail = hold.detail | {"address": recipient, "uncertain_left": len(stopped)}
            self._write(state, now, "agency released", detail)

        self._do(run)
        self._tell()

    def _tell(self) -> None:
        """Have those who listen look."""
        with self._memory.gate:
            listeners = list(self._memory.listeners)
        for heard in listeners:
            heard()

    @staticmethod
    def _known_elsewhere(state: State, submissions: Sequence[Submission]) -> dict[str, Message]:
        """Those among them that were queued before, and have another address since; by key."""
        found = {}
        for one in submissions:
            facts = one.facts_key or "", one.outgoing.envelope.recipient
            if one.facts_key is not None and facts in state.rerouted:
                message = state.messages[state.rerouted[facts]]
                if message.is_live:
                    found[one.content_key] = message
        return found
