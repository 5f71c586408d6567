"""Referrals with references and Message-IDs such as ours, which a relay's log can be asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from referrals.delivery import Submission
from referrals.reference import referral_reference
from tests.queued import submission


def reference(number: int) -> str:
    return referral_reference(f"CASE-{number}", "mediation")


def message_id(number: int) -> str:
    return f"<{reference(number)}.{number:016x}@police.test>"


def referrals(count: int, first: int = 1, **changes: Any) -> list[Submission]:
    """As `tests.queued.submissions`."""
    return [
        submission(
            number,
            **{
                "reference": reference(number),
                "message_id": message_id(number),
                "content": f"Message-ID: {message_id(number)}\r\n\r\nletter {number}\r\n".encode(),
            }
            | changes,
        )
        for number in range(first, first + count)
    ]


def ids_of(contents: Iterable[bytes]) -> list[str]:
    """The Message-IDs of what arrived: a relay's log of a kind."""
    found = [re.match(rb"Message-ID:\s+(<.*>)\r\n", content) for content in contents]
    return [one[1].decode() for one in found if one]
