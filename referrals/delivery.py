"""What becomes of a message: its envelope, the relay's reply, and its delivery status."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum


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


_ENHANCED = re.compile(r"\s*([245]\.\d{1,3}\.\d{1,3})(?:\s+|$)")


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
