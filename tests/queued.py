"""Referrals to queue, numbered: each with bytes, a key and a Message-ID of its own."""

from __future__ import annotations

from datetime import date
from typing import Any

from referrals.delivery import Envelope, Outgoing, Submission

SENDER = "officer@police.test"


def submission(number: int = 1, **changes: Any) -> Submission:
    """A referral of about a kilobyte; `changes` are fields of Submission, or of Outgoing."""
    message_id = f"<R-{number}.token@police.test>"
    content = (
        f"Message-ID: {message_id}\r\nSubject: R-{number}\r\n\r\n"
        f".dotted {number}\r\n" + "words of a letter\r\n" * 50
    ).encode()
    outgoing = Outgoing(
        changes.pop("reference", f"R-{number}"),
        Envelope(SENDER, changes.pop("recipient", "agency@council.test")),
        changes.pop("content", content),
    )
    fields: dict[str, Any] = {
        "content_key": f"key {number}",
        "case_reference": f"CASE-{number}",
        "intervention": "mediation",
        "agency": "agency-1",
        "message_id": message_id,
        "acknowledge_by": date(2026, 12, 1),
        "outgoing": outgoing,
        "detail": {"facts": ["people.victim.name"], "fields": []},
    }
    return Submission(**(fields | changes))


def submissions(count: int, first: int = 1, **changes: Any) -> list[Submission]:
    return [submission(number, **changes) for number in range(first, first + count)]
