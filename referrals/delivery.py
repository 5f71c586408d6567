"""What becomes of a message: its envelope, the relay's reply, and its delivery status."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import Any


class DeliveryStatus(StrEnum):
    """What we know of a referral's message, and no more.

    Source: RFC 3464 §2.3.3 for relayed, delayed and failed; the others are ours. There is no
    "sent" and no "delivered": past the relay we cannot know.
    """

    DRAFTED = "drafted"
    QUEUED = "queued"
    SENDING = "sending"
    RELAYED = "relayed"
    DELAYED = "delayed"
    FAILED = "failed"
    UNCERTAIN = "uncertain"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Envelope:
    """Who hands a message over and who gets it: one referral, one recipient.

    Source: RFC 5321 §2.3.1.
    """

    sender: str = field(repr=False)  # as a rule the referrer's own address
    recipient: str


@dataclass(frozen=True)
class Outgoing:
    """A finished message on its way out. `content` is relayed byte for byte."""

    reference: str
    envelope: Envelope
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class Submission:
    """A referral to be queued: the finished message, and what the audit says of it.

    `content_key` is the same for the same case, intervention, address and facts, whatever the day;
    `facts_key` whatever the address, too.
    `detail` holds names, codes and dates, never a value of the case.
    """

    content_key: str
    case_reference: str
    intervention: str
    agency: str
    message_id: str
    acknowledge_by: date
    outgoing: Outgoing
    detail: Mapping[str, Any]
    facts_key: str | None = None

    @cached_property
    def sha256(self) -> str:
        """Of the content, in hexadecimal. Once asked for it goes along into another process."""
        return hashlib.sha256(self.outgoing.content).hexdigest()

    @property
    def disclosure(self) -> dict[str, Any]:
        """What the audit says once it is queued."""
        return {
            **self.detail,
            "address": self.outgoing.envelope.recipient,
            "agency": self.agency,
            "intervention": self.intervention,
            "sha256": self.sha256,
        }


_ENHANCED = re.compile(r"^\s*([245]\.\d{1,3}\.\d{1,3})(?:\s+|$)")


@dataclass(frozen=True)
class Reply:
    """A relay's answer: code (RFC 5321 §4.2), enhanced status code (RFC 3463) and words."""

    code: int
    enhanced: str | None
    text: str

    @classmethod
    def parse(cls, code: int, text: str) -> Reply:
        """Split the enhanced status code off every line of a reply's text.

        Source: RFC 2034 §4: each line of a multi-line reply repeats the code.
        """
        first = _ENHANCED.match(text)
        lines = (_ENHANCED.sub("", line, count=1).strip() for line in text.splitlines())
        return cls(code, first[1] if first else None, " ".join(line for line in lines if line))

    def __str__(self) -> str:
        return " ".join(str(part) for part in (self.code, self.enhanced, self.text) if part)


@dataclass(frozen=True)
class Receipt:
    """Proof that the relay now holds a message (RFC 5321 §6.1)."""

    status: DeliveryStatus
    relay: str
    reply: Reply


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait between attempts, and when to stop."""

    first_wait: timedelta = timedelta(minutes=1)
    longest_wait: timedelta = timedelta(hours=4)
    give_up_after: timedelta = timedelta(days=4)


JITTER = 0.2
"""How much shorter or longer a wait may be than it would be without."""


def next_attempt(
    failures: int, queued_at: datetime, now: datetime, policy: RetryPolicy, jitter: float = 0.0
) -> datetime | None:
    """When to try a delayed message again; None means stop trying.

    The wait doubles from `policy.first_wait` up to `policy.longest_wait`, and then varies, so that
    what failed together is not tried together.

    Args:
        failures: transient failures so far, 1 or more.
        now: timezone-aware, as is `queued_at`; the caller owns the clock.
        jitter: -1.0 to 1.0, which is a fifth shorter to a fifth longer.

    Source: RFC 5321 §4.5.4.1, sending strategy.
    """
    doubled = policy.first_wait * 2 ** min(failures - 1, 20)
    wait = min(doubled, policy.longest_wait) * (1 + JITTER * jitter)
    due = now + wait
    return due if due - queued_at <= policy.give_up_after else None
