"""A restored copy of an outbox, and how it is brought in order.

A copy is older than what the relay took since it was made: what waits in it may have been submitted
meanwhile. So nothing of it is tried again before the relay's own log, or a person, has said so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from referrals.delivery import DeliveryStatus
from referrals.errors import NotPossibleNow, OutboxRestored
from referrals.relay_log import RelayLog, reference_of

if TYPE_CHECKING:
    from referrals.ports import Outbox, Restoring

PORTION = 500
"""So many messages are settled in one transaction."""

HELD_WORDS = "it may have been submitted after this copy of the outbox was made"
RELAYED_WORDS = "the relay's log shows that it was taken"
NOTED = "outbox restored"
"""What the audit calls it when a copy is one no more."""
SAID_SO = "somebody has said so"
STILL_WAITS = "Something that this copy was made with waits again. Run it once more."

_OPEN = frozenset(
    {
        DeliveryStatus.QUEUED,
        DeliveryStatus.SENDING,
        DeliveryStatus.DELAYED,
        DeliveryStatus.UNCERTAIN,
        DeliveryStatus.FAILED,
    }
)


@dataclass(frozen=True)
class Copied:
    """That an outbox is a copy: `why`, and the last moment of the original that it knows of.

    `last_message` is the number of the last message that it was made with.
    """

    why: str
    as_of: datetime
    last_message: int

    def refusal(self, name: str) -> OutboxRestored:
        return OutboxRestored(
            f"The outbox {name} is a restored copy: {self.why}. It knows nothing after "
            f"{self.as_of:%Y-%m-%d %H:%M:%S} UTC, so what waits in it may have been submitted "
            "since, and nothing is submitted now. What is queued is kept and waits. Run "
            "`referrals outbox restored`: it says what is to be done, and docs/backup.md how."
        )


def moment_of(text: str | None) -> datetime:
    """When the audit's last entry was made; if it tells no time, the log has to tell everything."""
    try:
        return datetime.fromisoformat(text or "").astimezone(UTC)
    except (ValueError, OverflowError):
        return datetime(1, 1, 1, tzinfo=UTC)


class Verdict(StrEnum):
    """What becomes of a message of a copy."""

    RELAYED = "relayed"
    HELD = "held"
    DUE = "due"


def is_possible(
    verdict: Verdict, status: DeliveryStatus, waits: bool, purged_at: object | None
) -> bool:
    """Whether it still may become of a message, whatever others have decided meanwhile."""
    match verdict:
        case Verdict.RELAYED:
            return status in _OPEN
        case Verdict.HELD:
            return waits
        case Verdict.DUE:
            return status is DeliveryStatus.UNCERTAIN and not waits and purged_at is None


def settled_words(verdict: Verdict, status: str) -> tuple[str, dict[str, str]]:
    """What the audit says of it: the action, and on what ground."""
    match verdict:
        case Verdict.RELAYED:
            return "relayed", {"by": "the relay's log", "was": status}
        case Verdict.HELD:
            return "restored", {"was": status}
        case Verdict.DUE:
            return "retried", {"by": "the relay's log, which has not got it", "was": status}


@dataclass(frozen=True)
class Unsettled:
    """A message of which the relay may have more to tell than the outbox.

    `doubtful_since` is when the first attempt began whose end is not known; None if there was none.
    `is_last` is whether no newer message has its reference.
    """

    id: int
    reference: str
    message_id: str
    status: DeliveryStatus
    doubtful_since: datetime | None
    is_whole: bool
    is_last: bool


@dataclass(frozen=True)
class Evidence:
    """The relay's log; `complete_since` if it is known to miss nothing since then.

    `unknown` are the Message-IDs that the relay took and that this outbox does not have.
    """

    log: RelayLog
    unknown: frozenset[str]
    complete_since: datetime | None = None

    @property
    def unknown_references(self) -> frozenset[str]:
        return frozenset(map(reference_of, self.unknown))

    def verdict(self, one: Unsettled, doubtful_since: datetime | None) -> Verdict:
        """What is to become of one that was open when the copy was made, or is uncertain.

        Due again is only what a complete log does not name at all, not even as refused, from
        before there was any doubt; and what no newer message of the same referral has replaced.
        """
        if one.message_id in self.log.taken:
            return Verdict.RELAYED
        never_taken = (
            self.complete_since is not None
            and doubtful_since is not None
            and self.complete_since <= doubtful_since
            and one.message_id not in self.log.named
        )
        replaced = not one.is_last or one.reference in self.unknown_references
        return Verdict.DUE if never_taken and one.is_whole and not replaced else Verdict.HELD


@dataclass
class Settled:
    """How many there are of each verdict, and what the relay took that this outbox lacks."""

    counts: Counter[Verdict] = field(default_factory=Counter)
    unknown: list[str] = field(default_factory=list)
    was_copy: bool = False


def evidence_of(outbox: Outbox, log: RelayLog, complete_since: datetime | None) -> Evidence:
    """The log beside what the outbox knows.

    One that is complete has all that the relay is known to have taken, up to when it was restored.

    Raises:
        NotPossibleNow: it is said to be complete, and is not, or nothing shows that it is.
    """
    if complete_since is not None:
        before = None if outbox.copied() else outbox.last_noted(NOTED)
        known = outbox.surely_relayed(complete_since, before)
        missing = [message_id for message_id in known if message_id not in log.taken]
        if missing:
            raise NotPossibleNow(
                f"The log is not complete since {complete_since:%Y-%m-%d %H:%M:%S} UTC: it lacks "
                f"{reference_of(missing[0])}, which the relay took after that"
                + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
                + ". Give every file of it, the oldest first, or a later time."
            )
        if not known:
            raise NotPossibleNow(
                "Nothing shows that the log is complete: the outbox knows of none that the relay "
                f"took after {complete_since:%Y-%m-%d %H:%M:%S} UTC, so none could be looked for "
                "in it. Give an earlier time, or leave --log-is-complete-since out."
            )
    unknown = outbox.unknown(sorted(log.taken))
    return Evidence(log, frozenset(unknown), complete_since)


def settle(
    outbox: Restoring,
    copied: Copied | None,
    evidence: Evidence | None,
    now: datetime,
    *,
    only_say: bool = False,
) -> Settled:
    """Bring a copy in order, and take account of what its relay's log tells.

    First whatever waited when the copy was made becomes relayed or is held; then the outbox is
    no copy any more; then what is uncertain becomes relayed or due again, if the log says so. Each
    portion is kept by itself, and what was settled is not settled twice: so it may be stopped at
    any time and run again, also by two at once.

    Args:
        copied: what the outbox says of itself.
        only_say: change nothing, and count what would be done.
    """
    done = Settled(was_copy=copied is not None)
    done.unknown = sorted(evidence.unknown_references) if evidence else []
    if copied is not None:
        for some in _portions(outbox, waiting=True):
            verdicts: dict[int, Verdict] = {}
            for one in some:
                doubtful = min(one.doubtful_since or copied.as_of, copied.as_of)
                found = evidence.verdict(one, doubtful) if evidence else Verdict.HELD
                if only_say:
                    done.counts[found] += 1
                else:
                    verdicts[one.id] = found if found is Verdict.RELAYED else Verdict.HELD
            if not only_say:
                done.counts[Verdict.RELAYED] += outbox.settle(verdicts, now)[Verdict.RELAYED]
        if not only_say:
            outbox.settled(now, {"relayed by the log": done.counts[Verdict.RELAYED],
                                 "not in this copy": len(done.unknown)})  # fmt: skip
    for some in _portions(outbox, waiting=False):
        verdicts = {}
        for one in some:
            found = evidence.verdict(one, one.doubtful_since) if evidence else Verdict.HELD
            is_uncertain = one.status is DeliveryStatus.UNCERTAIN
            if found is Verdict.RELAYED or (found is Verdict.DUE and is_uncertain):
                verdicts[one.id] = found
            else:
                done.counts[Verdict.HELD] += is_uncertain
        done.counts += Counter(verdicts.values()) if only_say else outbox.settle(verdicts, now)
    return done


def _portions(outbox: Restoring, *, waiting: bool) -> Iterator[Sequence[Unsettled]]:
    after = 0
    while some := outbox.unsettled(waiting=waiting, after=after, limit=PORTION):
        yield some
        after = some[-1].id
