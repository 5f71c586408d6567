"""Real letters to queue by the thousand: a few are composed, and each goes under many numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from benchmarks.rows import INTERVENTION, facts, our_row
from referrals import bootstrap
from referrals.case_files import unflatten
from referrals.delivery import Envelope, Outgoing, Submission
from referrals.settings import Settings

_KINDS = 50


@dataclass(frozen=True)
class _Letter:
    message_id: str
    envelope: Envelope
    content: bytes
    acknowledge_by: date
    detail: dict[str, Any]


class Letters:
    """Submissions as `referrals batch` makes them of `rows`.

    A number has a Message-ID, a reference, a case and a key of its own.

    Args:
        size: cut each content to so many bytes, where the disk would not hold them all; 0 for none.
    """

    def __init__(self, size: int = 0, kinds: int = _KINDS) -> None:
        service = bootstrap.build_service(Settings())
        self._letters = []
        for number in range(kinds):
            raw = unflatten(our_row(facts(number)).items())
            raw.pop("intervention", None)
            case, place = service.read(raw)
            referral = service.prepare(service.assess(case, place, INTERVENTION))
            made = service.submission(referral, token=f"{number:08d}", accept_unverified=True)
            self._letters.append(
                _Letter(
                    made.message_id,
                    made.outgoing.envelope,
                    made.outgoing.content,
                    made.acknowledge_by,
                    dict(made.detail),
                )
            )
        self._size = size

    @property
    def mean_size(self) -> int:
        return sum(len(self._content(one, one.message_id)) for one in self._letters) // len(
            self._letters
        )

    def contents(self) -> Sequence[bytes]:
        return [self._content(one, one.message_id) for one in self._letters]

    def submission(self, number: int, agency: str) -> Submission:
        letter = self._letters[number % len(self._letters)]
        message_id = f"<{number:010d}.{letter.message_id[1:]}"
        return Submission(
            content_key=f"bench {number}",
            case_reference=f"BEN-{number:09d}",
            intervention=INTERVENTION,
            agency=agency,
            message_id=message_id,
            acknowledge_by=letter.acknowledge_by,
            outgoing=Outgoing(
                f"BENCH-{number:09d}", letter.envelope, self._content(letter, message_id)
            ),
            detail=letter.detail,
        )

    def _content(self, letter: _Letter, message_id: str) -> bytes:
        whole = letter.content.replace(letter.message_id.encode(), message_id.encode(), 1)
        if not self._size:
            return whole
        return whole[: self._size].rpartition(b"\r\n")[0] + b"\r\n"
