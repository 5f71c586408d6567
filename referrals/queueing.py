"""What an outbox takes and tells: messages queued, claimed and held, and their attempts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from referrals.delivery import DeliveryStatus, Outgoing, Reply, RetryPolicy, next_attempt
from referrals.errors import NotInOutbox, NotPossibleNow

if TYPE_CHECKING:
    from referrals.errors import DeliveryError


@dataclass(frozen=True)
class Queued:
    """`new` is false where the same referral was queued before; then nothing was changed."""

    id: int
    new: bool
    status: DeliveryStatus


@dataclass(frozen=True)
class Claimed:
    """A message that is ours to attempt until the lease ends.

    `status` and `due_at` are what it had before, and has again if it is released untried.
    """

    id: int
    attempt: int
    case_reference: str
    agency: str
    outgoing: Outgoing
    sha256: str
    status: DeliveryStatus
    due_at: datetime
    failures: int
    queued_at: datetime
    trying_since: datetime
    maybe_doubled: bool

    @property
    def is_intact(self) -> bool:
        """Whether these are still the bytes that were queued."""
        return hashlib.sha256(self.outgoing.content).hexdigest() == self.sha256


@dataclass(frozen=True)
class NotYet:
    """A message is due, but the pace allows none before this time."""

    until: datetime


@dataclass(frozen=True)
class Outcome:
    """What an attempt came to. `status` is relayed, delayed, failed or uncertain."""

    status: DeliveryStatus
    relay: str
    stage: str = ""
    reply: Reply | None = None
    words: str = ""
    fault: DeliveryError | None = field(default=None, repr=False)
    """The error behind it, for whoever waits for this very message; not kept."""

    @property
    def detail(self) -> dict[str, Any]:
        """What the audit says of it."""
        return {"relay": self.relay, "reply": self.reply.code if self.reply else None}


def decided(
    outcome: DeliveryStatus,
    claimed: Claimed,
    now: datetime,
    policy: RetryPolicy,
    jitter: float,
    hold_uncertain: bool,
) -> tuple[DeliveryStatus, datetime | None, int, bool]:
    """Status, when it is due again, failures so far, and whether it may arrive twice."""
    if outcome in (DeliveryStatus.RELAYED, DeliveryStatus.FAILED):
        return outcome, None, claimed.failures, False
    uncertain = outcome is DeliveryStatus.UNCERTAIN
    if uncertain and hold_uncertain:
        return outcome, None, claimed.failures, True
    failures = claimed.failures + 1
    due = next_attempt(failures, claimed.trying_since, now, policy, jitter)
    if due is None:
        # Given up: uncertain stays so, since a person must know that it may have arrived.
        return (outcome if uncertain else DeliveryStatus.FAILED), None, failures, uncertain
    return outcome, due, failures, uncertain


@dataclass(frozen=True)
class Attempt:
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    stage: str | None
    code: int | None
    enhanced: str | None
    words: str | None
    relay: str | None


RETRIABLE = (DeliveryStatus.DELAYED, DeliveryStatus.FAILED, DeliveryStatus.UNCERTAIN)
CANCELLABLE = (DeliveryStatus.QUEUED, *RETRIABLE)
ANSWERABLE = (DeliveryStatus.RELAYED, DeliveryStatus.UNCERTAIN)
"""What a person may decide on, by status; `Held` knows the exceptions."""

LIVE = "status <> 'cancelled' AND (purged_at IS NULL OR status NOT IN ('failed', 'uncertain'))"
"""Of a message, in SQL: the same referral may not be queued anew."""

REROUTED_TO = """
coalesce(
    (SELECT newer.recipient FROM message AS newer WHERE newer.replaces = message.id),
    (SELECT newer.recipient FROM rerouted JOIN message AS newer ON newer.id = rerouted.message
     WHERE rerouted.facts_key = message.facts_key AND rerouted.recipient = message.recipient
         AND replace(message.content_key, ':rerouted:', '') <> message.content_key)
) AS rerouted_to"""
"""Of a message, in SQL: the address of the one made of it, or of the one that was there already.

Without `%`, which PostgreSQL's driver takes for a place to fill.
"""


@dataclass(frozen=True)
class Held:
    """A message in the outbox, without its content."""

    id: int
    reference: str
    case_reference: str
    intervention: str
    agency: str
    recipient: str
    message_id: str
    sha256: str
    size: int
    status: DeliveryStatus
    queued_at: datetime
    due_at: datetime | None
    attempts: int
    maybe_doubled: bool
    relayed_at: datetime | None
    acknowledge_by: date
    acknowledged_on: date | None
    purged_at: datetime | None
    replaces: int | None = None
    """The id of the message to another address that this was made of."""
    rerouted_to: str | None = None
    """The address of the message that was made of this one, if one was; told by `Account.held`."""

    @property
    def may_be_retried(self) -> bool:
        return self.status in RETRIABLE and self.purged_at is None

    @property
    def may_be_cancelled(self) -> bool:
        return self.status in CANCELLABLE

    @property
    def may_be_answered(self) -> bool:
        """Whether the agency may have it, and has not answered as far as we know."""
        arrived = self.status in ANSWERABLE or self.maybe_doubled
        return arrived and self.acknowledged_on is None


class _Row(Protocol):
    """A message as a database gives it, by column."""

    def __getitem__(self, column: str, /) -> Any: ...


_AnyRow = TypeVar("_AnyRow", bound=_Row)


def decidable(
    rows: Sequence[_AnyRow],
    reference: str,
    action: str,
    allowed: Sequence[DeliveryStatus],
    *,
    newest: bool = False,
    or_maybe_arrived: bool = False,
) -> _AnyRow:
    """The newest message of a reference that something can be decided on.

    Args:
        rows: all with this reference; those without an answer first, each the newest first.
        action: in words, such as `retried`.
        newest: only the newest of all will do.
        or_maybe_arrived: whatever its status, one that may have arrived will do.

    Raises:
        NotInOutbox, NotPossibleNow.
    """

    def possible(row: _AnyRow) -> bool:
        return row["status"] in allowed or bool(or_maybe_arrived and row["maybe_doubled"])

    if not rows:
        raise NotInOutbox(f"{reference} is not in the outbox.")
    latest = max(rows, key=lambda row: int(row["id"]))
    row = latest if newest else next(filter(possible, rows), latest)
    if not possible(row):
        raise NotPossibleNow(
            f"{reference} is {row['status']}, so it can't be {action}: that is for "
            f"{', '.join(allowed)}."
        )
    return row


def still_waiting(case_reference: str, messages: int) -> NotPossibleNow:
    """Why nothing of a case can be erased yet."""
    return NotPossibleNow(
        f"{case_reference}: {messages} of its messages still wait for the relay. "
        "Cancel them first, or deliver them."
    )


def storable(words: str) -> str:
    """A relay's words as every outbox can hold them: it may say what is no text."""
    return words.encode(errors="backslashreplace").decode().replace("\0", "\\0")
