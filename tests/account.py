"""The account that must hold after every fault: of what was queued, and of what a relay got."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from referrals.audit import verify
from referrals.delivery import Submission
from referrals.ports import Outbox

WAITING = frozenset({"queued", "delayed", "uncertain"})
RESTING = WAITING | {"relayed", "failed"}


@dataclass(frozen=True)
class Wanted:
    """A message that should be in the outbox."""

    reference: str
    content: bytes


def wanted(submissions: Iterable[Submission]) -> list[Wanted]:
    return [Wanted(one.outgoing.reference, one.outgoing.content) for one in submissions]


def check(
    outbox: Outbox,
    queued: Sequence[Wanted],
    taken: Iterable[bytes],
    in_doubt: Iterable[bytes] = (),
    *,
    held_for_a_person: bool = False,
) -> Counter[str]:
    """Assert it, and return how many there are of each status.

    Args:
        taken: each content as often as the relay took it and its answer got through.
        in_doubt: likewise, where it had the whole message and its answer may not have got through.
    """
    held = {one.reference: one for one in outbox.held(limit=100_000)}
    assert held.keys() == {one.reference for one in queued}, "lost, or made up"
    counts = Counter(str(one.status) for one in held.values())
    assert counts == Counter(outbox.counts())
    assert set(counts) <= RESTING, "queued = relayed + failed + waiting"

    sure, doubtful = Counter(taken), Counter(in_doubt)
    known = {one.content for one in queued}
    assert set(sure) | set(doubtful) <= known, "what arrived is bytewise what was queued"
    for one in queued:
        entry = held[one.reference]
        status = str(entry.status)
        assert entry.sha256 == hashlib.sha256(one.content).hexdigest()
        assert outbox.content(entry.id) == one.content
        if status == "relayed":
            assert sure[one.content] or doubtful[one.content], f"{one.reference}: never arrived"
        else:
            assert not sure[one.content], f"{one.reference}: arrived, and is {status}"
        if sure[one.content] + doubtful[one.content] > 1:
            assert doubtful[one.content], f"{one.reference}: doubled for no reason"
            assert entry.maybe_doubled, f"{one.reference}: doubled unawares"
        waits = status in WAITING and not (status == "uncertain" and held_for_a_person)
        assert (entry.due_at is not None) == waits, f"{one.reference}: {status}, but when next?"
        assert all(attempt.ended_at for attempt in outbox.attempts(entry.id))
    assert list(verify(outbox.audit())) == []
    return counts
