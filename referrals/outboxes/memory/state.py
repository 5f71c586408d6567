"""What an outbox in memory keeps, and how a step changes it.

What there is, is one `State`. A step works on a copy of it, which takes its place once the step is
through: so a step is kept whole or not at all, and who reads sees one moment. That costs time with
each message there is, so it is for thousands of them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar

from referrals.audit import FIRST, Entry, new_entry
from referrals.delivery import DeliveryStatus
from referrals.errors import OutboxUnusable
from referrals.queueing import Attempt, Held

if TYPE_CHECKING:
    from referrals.holding import Hold
    from referrals.relay_health import RelayLink, RelayState
    from referrals.restored import Copied
    from referrals.verification import Verification

GIVEN_UP = (DeliveryStatus.FAILED, DeliveryStatus.UNCERTAIN)
"""Of these the key is free again once they are purged, since `retry` is possible no more."""

T = TypeVar("T")


FINISHED = (DeliveryStatus.RELAYED, DeliveryStatus.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class Message(Held):
    """All that is kept of a message. `due_at` is None once nothing is to be done with it."""

    content_key: str
    facts_key: str | None
    sender: str
    content: bytes | None = field(repr=False)
    trying_since: datetime
    failures: int = 0
    lease_until: datetime | None = None
    lease_owner: str | None = None

    def __getitem__(self, column: str) -> Any:
        return getattr(self, column)

    @property
    def is_leased(self) -> bool:
        return self.lease_until is not None

    @property
    def waits(self) -> bool:
        """Whether it is under way, or to be tried at some time."""
        return self.is_leased or self.due_at is not None

    @property
    def is_live(self) -> bool:
        """As `queueing.LIVE`."""
        forgotten = self.purged_at is not None and self.status in GIVEN_UP
        return self.status is not DeliveryStatus.CANCELLED and not forgotten

    @property
    def held(self) -> Held:
        return Held(**{one.name: getattr(self, one.name) for one in fields(Held)})

    def freed(self, word: str) -> str:
        """A key that leaves its own to whoever queues the same referral anew."""
        return f"{self.content_key}:{word}:{self.id}"


@dataclass
class State:
    """All that there is, the oldest first.

    Messages by number, and attempts by theirs, each with its message's. `rerouted` has the message
    that facts have become which were to go to an address; `links` are by relay and owner, and
    `paced_at` by relay, with None for all of them.
    """

    messages: dict[int, Message] = field(default_factory=dict)
    attempts: dict[int, tuple[int, Attempt]] = field(default_factory=dict)
    audit: list[Entry] = field(default_factory=list)
    verified: dict[tuple[str, str], Verification] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    rerouted: dict[tuple[str, str], int] = field(default_factory=dict)
    links: dict[tuple[str, str], RelayLink] = field(default_factory=dict)
    relays: dict[str, RelayState] = field(default_factory=dict)
    paced_at: dict[str | None, datetime] = field(default_factory=dict)
    copied: Copied | None = None
    last_attempt: int = 0

    def copy(self) -> State:
        """Of its own, but for what never changes."""
        kept: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        for name, value in kept.items():
            if isinstance(value, (dict, list)):
                kept[name] = value.copy()
        return State(**kept)

    def add(self, message: Message) -> Message:
        self.messages[message.id] = message
        return message

    def change(self, message: Message, **to: Any) -> Message:
        return self.add(replace(message, **to))

    @property
    def next_number(self) -> int:
        return len(self.messages) + 1

    def begin(self, message: Message, attempt: Attempt) -> int:
        """Number an attempt."""
        self.last_attempt += 1
        self.attempts[self.last_attempt] = message.id, attempt
        return self.last_attempt

    def end_open_attempts(self, message: Message, **to: Any) -> int:
        """How many there were."""
        found = [
            (number, attempt)
            for number, (of, attempt) in self.attempts.items()
            if of == message.id and attempt.ended_at is None
        ]
        for number, attempt in found:
            self.attempts[number] = message.id, replace(attempt, **to)
        return len(found)

    def attempts_of(self, message_id: int) -> list[Attempt]:
        return [attempt for number, attempt in self.attempts.values() if number == message_id]

    def touched_at(self, message: Message) -> datetime:
        """When something last happened to it, beside a person's decision."""
        of_attempts = [one.ended_at or one.started_at for one in self.attempts_of(message.id)]
        return max(of_attempts, default=message.queued_at)

    def with_reroutes(self, messages: Iterable[Message]) -> list[Held]:
        """With the address of the message made of each, or of the one that was there already."""
        next_of = {one.replaces: one.recipient for one in self.messages.values()}
        made = []
        for one in messages:
            to = next_of.get(one.id)
            if to is None and ":rerouted:" in one.content_key and one.facts_key is not None:
                to = self.messages[self.rerouted[one.facts_key, one.recipient]].recipient
            made.append(replace(one.held, rerouted_to=to))
        return made

    def of_case(self, case_reference: str | None) -> list[Entry]:
        return [one for one in self.audit if case_reference in (None, one.case_reference)]


class Memory:
    """Where a MemoryOutbox keeps everything; several may share one, each with its own actor."""

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.state = State()
        self.listeners: list[Callable[[], None]] = []


class MemoryPlace:
    """A Memory that is open: steps done to it, and the audit of them."""

    def __init__(self, memory: Memory, actor: str) -> None:
        self._memory = memory
        self._actor = actor.encode(errors="backslashreplace").decode()
        self._closed = False

    @classmethod
    def open(cls, memory: Memory, actor: str) -> Self:
        return cls(memory, actor)

    @property
    def name(self) -> str:
        return "memory"

    @property
    def actor(self) -> str:
        return self._actor

    def close(self) -> None:
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _state(self) -> State:
        """As of now; what is done meanwhile is done to another."""
        if self._closed:
            raise OutboxUnusable(f"The outbox in {self.name} is closed.")
        return self._memory.state

    def _do(self, change: Callable[[State], T]) -> T:
        with self._memory.gate:
            state = self._state.copy()
            answer = change(state)
            self._memory.state = state
        return answer

    async def _await(self, change: Callable[[State], T]) -> T:
        await asyncio.sleep(0)  # here a cancelled call ends, before anything is done
        return self._do(change)

    def _log(
        self, state: State, now: datetime, action: str, message: Message, detail: Mapping[str, Any]
    ) -> None:
        self._write(state, now, action, detail, message.reference, message.case_reference)

    def _write(
        self,
        state: State,
        now: datetime,
        action: str,
        detail: Mapping[str, Any],
        reference: str = "",
        case_reference: str = "",
    ) -> None:
        entry = new_entry(
            number=len(state.audit) + 1,
            before=state.audit[-1].hash if state.audit else FIRST,
            at=now,
            actor=self.actor,
            action=action,
            reference=reference,
            case_reference=case_reference,
            detail=detail,
        )
        state.audit.append(entry)
