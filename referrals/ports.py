"""What the service and the worker ask of the world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, Self

from referrals.delivery import Outgoing, Receipt

if TYPE_CHECKING:
    from referrals.audit import Entry
    from referrals.delivery import DeliveryStatus, RetryPolicy, Submission
    from referrals.holding import Addressed, Hold, Reason, Rerouted, Rerouting
    from referrals.queueing import Attempt, Claimed, Held, NotYet, Outcome, Queued
    from referrals.relay_health import RelayFault, RelayLink, RelayState
    from referrals.restored import Copied, Unsettled, Verdict
    from referrals.verification import Verification


class Transport(Protocol):
    """A way to a relay."""

    async def deliver(self, outgoing: Outgoing) -> Receipt:
        """Hand over these exact bytes, once.

        Returning means that the relay now holds the message (RFC 5321 §6.1).

        Raises:
            MessageRefused: a draft, or bytes that SMTP can't carry unchanged.
            TransientDeliveryError: worth trying again later; the relay does not hold it.
            PermanentDeliveryError: this message will not be accepted.
            DeliveryUncertain: the link broke after the end of the content, before the reply.
            RelayRefused: login, certificate or TLS; says nothing of this message.

        A cancelled call may have handed the message over: treat it as uncertain.
        """
        ...


class Queue(Protocol):
    """Where finished messages are put.

    Of each part of an outbox: a change is durable once its call has returned, and one that raises
    OutboxUnusable has changed nothing and may be made again. Several processes may use one outbox.
    """

    def queue(self, submissions: Sequence[Submission], now: datetime) -> list[Queued]:
        """Put messages into the queue, all or none, each `content_key` once.

        One that is known already is left as it is, and the answer says what became of it. Known,
        too, are the same facts with an address that they had before they were rerouted.
        """
        ...

    def queue_soon(self, submissions: Sequence[Submission], now: datetime) -> Future[list[Queued]]:
        """As `queue`, but durable when the answer is there."""
        ...

    def known(self, content_keys: Iterable[str]) -> dict[str, Queued]:
        """Which of these were queued before, and what became of them."""
        ...


class Deliveries(Protocol):
    """What a worker does with each message: claim it, attempt it, record what that came to.

    `owner` names the worker's lane, and is asked after when its lease is looked at.
    """

    async def claim(
        self,
        owner: str,
        now: datetime,
        lease: timedelta,
        *,
        only: int | None = None,
        every: timedelta | None = None,
        pace: tuple[str, timedelta] | None = None,
    ) -> Claimed | NotYet | None:
        """The message whose turn it is, nobody else's until the lease ends; None if none is due.

        A claim is the start of an attempt: if nothing more is heard of it, the relay may hold the
        message. The agency with the fewest messages under way comes first, then the message that
        has been due longest. A cancelled call claims nothing.

        Args:
            only: the one message to claim, due already or not.
            every: the pace, which all processes on this outbox keep together: no message is
                claimed sooner than this after the last that was claimed so.
            pace: the same for what goes to one relay, named first; kept besides `every`.
        """
        ...

    async def record(
        self,
        claimed: Claimed,
        owner: str,
        outcome: Outcome,
        now: datetime,
        policy: RetryPolicy,
        *,
        jitter: float = 0.0,
        hold_uncertain: bool = False,
    ) -> DeliveryStatus:
        """What an attempt came to, and the status that follows from it.

        That the relay holds it stays true whoever has the message by now: a late "relayed" counts.
        The same outcome of the same attempt again changes nothing: whoever could not hear that it
        was kept may say it once more.

        Raises:
            LeaseLost: another process has taken the message over, or a person has decided.
        """
        ...

    async def record_and_claim(
        self,
        claimed: Claimed,
        owner: str,
        outcome: Outcome,
        now: datetime,
        policy: RetryPolicy,
        lease: timedelta,
        *,
        jitter: float = 0.0,
        hold_uncertain: bool = False,
    ) -> tuple[DeliveryStatus | None, Claimed | None]:
        """`record`, then `claim`, both or neither; no status if the lease was lost."""
        ...

    async def release(self, claimed: Claimed, owner: str) -> None:
        """Give a claimed message back untried, as it was: no attempt was begun.

        If that can't be written now, it is with whatever this outbox writes next.
        """
        ...

    async def recover(
        self,
        now: datetime,
        policy: RetryPolicy,
        *,
        is_gone: Callable[[str], bool],
        hold_uncertain: bool = False,
    ) -> int:
        """Take back messages whose lease has ended or whose owner is gone; how many there were.

        Whoever had them died while submitting: they are uncertain, and due at once; one that this
        befalls again waits longer each time.
        """
        ...


class Account(Protocol):
    """What is in an outbox, for people."""

    def counts(self) -> dict[str, int]:
        """How many there are of each status."""
        ...

    def oldest_due(self, now: datetime) -> datetime | None:
        """Since when the message has been due that has been so longest; None if none is."""
        ...

    def held(
        self,
        *,
        message_id: int | None = None,
        status: DeliveryStatus | None = None,
        reference: str | None = None,
        case_reference: str | None = None,
        kept: bool = False,
        limit: int = 1_000,
        offset: int = 0,
    ) -> list[Held]:
        """Messages, the newest first: `limit` of them after the first `offset`.

        Args:
            kept: only those that would be tried by themselves, were their agency not held.
        """
        ...

    def attempts(self, message_id: int) -> list[Attempt]: ...

    def content(self, message_id: int) -> bytes | None:
        """The queued bytes, or None once they are purged.

        Raises:
            NotInOutbox.
        """
        ...

    def audit(self, case_reference: str | None = None) -> Iterator[Entry]:
        """Every entry in order, or those of one case; see `referrals.audit`."""
        ...

    def newest_entries(
        self, case_reference: str | None = None, *, limit: int, offset: int = 0
    ) -> list[Entry]:
        """Entries of the audit, or those of one case, the newest first."""
        ...

    def count_entries(self, case_reference: str | None = None) -> int: ...

    def unacknowledged(self, today: date) -> list[Held]:
        """Relayed or uncertain, past their acknowledge-by date, and not acknowledged."""
        ...


class Decisions(Protocol):
    """What a person decides on the newest message of a reference that it is possible for.

    Each raises NotInOutbox, or NotPossibleNow where the message's status does not allow it.
    """

    def retry(self, reference: str, now: datetime) -> Held:
        """Make a delayed, failed or uncertain message due now, as if it were just queued."""
        ...

    def cancel(self, reference: str, now: datetime) -> Held:
        """Keep a message that is not yet relayed from being tried (again)."""
        ...

    def acknowledge(self, reference: str, on: date, now: datetime) -> Held:
        """Record that the agency has answered: so it has arrived."""
        ...


class Retention(Protocol):
    """How content is forgotten, by age or by case, while the account of it stays."""

    def purge(self, relayed_before: datetime, now: datetime) -> int:
        """Forget the content of what was relayed or cancelled before a time. Returns how many."""
        ...

    def purgeable(self, relayed_before: datetime) -> int:
        """How many `purge` would forget."""
        ...

    def unfinished(self, untouched_since: datetime) -> list[tuple[Held, datetime]]:
        """Whole messages neither relayed nor cancelled, with when each was last tried or queued.

        Only those to which nothing has happened since a time; the oldest first.
        """
        ...

    def purge_unfinished(self, untouched_since: datetime, now: datetime) -> int:
        """Forget the content of what failed or stays uncertain, if nothing happened to it since.

        The same referral may then be queued anew. What waits for the relay is never forgotten.
        """
        ...

    def erase(self, case_reference: str, now: datetime) -> int:
        """Forget the content of everything of one case. Returns how many.

        Raises:
            NotPossibleNow: something of it is being submitted just now, or waits to be.
        """
        ...

    def note(
        self, action: str, detail: Mapping[str, Any], now: datetime, *, case_reference: str = ""
    ) -> None:
        """Write into the audit what was done to the whole outbox, or to what lies beside it."""
        ...

    def last_noted(self, action: str) -> datetime | None:
        """When something was last written down with `note`."""
        ...


class Addresses(Protocol):
    """Which addresses somebody has asked about: kept with the audit."""

    def verify(self, given: Verification, /, now: datetime) -> None:
        """Record it, in place of what was recorded of that agency and address before."""
        ...

    def withdraw(self, agency: str, address: str, now: datetime) -> None:
        """Take a record back; what config/ says stays.

        Raises:
            NotPossibleNow: there is none.
        """
        ...


class Holds(Protocol):
    """Which agencies nothing goes to for now, see `referrals.holding`.

    While an agency is held its referrals are queued, and none of them is claimed, by whatever
    process, `only` included. The time does not count against any. Whatever is under way when a
    hold begins is finished.
    """

    def hold(self, agency: str, why: Reason, now: datetime) -> tuple[Hold, bool]:
        """Begin a hold; false if there is one already, which is left as it is.

        Once this has returned, whatever else of the agency is `sending` was under way before.
        """
        ...

    def holds(self) -> list[Hold]:
        """By agency."""
        ...

    def addressed(self, agency: str) -> list[Addressed]:
        """How many messages of an agency are not finished or have failed, by address and status."""
        ...

    def disclosed(self, agency: str, recipient: str, *, limit: int = 1_000) -> list[Held]:
        """Messages that another address than this has or may have, unanswered, the newest first."""
        ...

    def reroute(self, rerouting: Rerouting, now: datetime) -> Iterator[list[Rerouted]]:
        """Make the messages of a held agency anew for its present address, and cancel the old ones.

        In groups: each is complete with its audit once it is yielded. Where a run was broken off,
        another goes on.

        Raises:
            NotPossibleNow: the agency is not held.
        """
        ...

    def resume(self, agency: str, recipient: str | None, now: datetime) -> None:
        """End a hold: what waits for this address is due now.

        Uncertain messages to other addresses are tried no more: they wait for a person.

        Raises:
            NotPossibleNow: the agency is not held; or something still waits for another address,
                or is being submitted to it.
        """
        ...


class Links(Protocol):
    """What all processes on one outbox know of the relays: links that are open, and their health.

    `relay` is whatever they call it in common.
    """

    async def take_link(
        self,
        relay: str,
        owner: str,
        machine: str,
        most: int,
        now: datetime,
        *,
        is_gone: Callable[[str], bool],
    ) -> bool:
        """Take one of so many places for a link; false if all are taken.

        The places of owners that are gone are free. A cancelled call takes none.
        """
        ...

    async def keep_link(self, relay: str, owner: str, now: datetime) -> bool:
        """Say that a link is still used, now and then; false if its place was taken away."""
        ...

    async def give_link_back(self, relay: str, owner: str) -> None:
        """Free a place. If that can't be written now, it is with whatever is written next."""
        ...

    async def count_links(
        self, relay: str, now: datetime, *, is_gone: Callable[[str], bool]
    ) -> int:
        """How many places are taken."""
        ...

    def links(self, now: datetime, *, is_gone: Callable[[str], bool]) -> list[RelayLink]:
        """The places that are taken."""
        ...

    async def recall_relays(self, now: datetime) -> dict[str, RelayState]:
        """As `relay_states`, for a loop."""
        ...

    def relay_states(self, now: datetime) -> dict[str, RelayState]:
        """What is known of each relay that ever had a fault, by the caller's clock."""
        ...

    async def take_trial(self, state: RelayState, now: datetime) -> bool:
        """Be the one who tries a relay again; false if its state has changed since."""
        ...

    async def note_fault(
        self, relay: str, fault: RelayFault, now: datetime, *, on_trial: bool
    ) -> RelayState:
        """See `relay_health.after_fault`."""
        ...

    async def note_well(self, relay: str, now: datetime) -> None:
        """That it has taken a message, or was checked by a person."""
        ...


class Restoring(Protocol):
    """What tells a restored copy from the outbox that it was made of; see `referrals.restored`.

    `claim` and `recover` raise OutboxRestored while it is a copy.
    """

    def copied(self) -> Copied | None:
        """Why it is a copy, if it is one."""
        ...

    def take_for_copy(self, now: datetime, *, only_say: bool = False) -> Copied:
        """Have it be a copy from here on, whether that shows or not."""
        ...

    def unsettled(self, *, waiting: bool, after: int = 0, limit: int) -> list[Unsettled]:
        """Messages with higher numbers than `after`, in order.

        Args:
            waiting: those that a copy was made with and that wait or are under way; else those
                that failed, or are uncertain and wait for a person.
        """
        ...

    def settle(self, verdicts: Mapping[int, Verdict], now: datetime) -> Counter[Verdict]:
        """Do it, to those for which it is still possible; how many there were of each."""
        ...

    def settled(self, now: datetime, detail: Mapping[str, Any]) -> bool:
        """Have it be a copy no more, and note it in the audit; false if it is none already.

        Raises:
            NotPossibleNow: something that it was made with still waits.
        """
        ...

    def lost_nothing(self, now: datetime) -> bool:
        """Have it be the outbox itself, as it is; false if it is already."""
        ...

    def surely_relayed(self, since: datetime, before: datetime | None = None) -> list[str]:
        """The Message-IDs of those that the relay took in a time, by its own answer."""
        ...

    def unknown(self, message_ids: Sequence[str]) -> list[str]:
        """Which of these are of no message here."""
        ...


class Outbox(
    Queue, Deliveries, Account, Decisions, Retention, Addresses, Holds, Links, Restoring, Protocol
):
    """The durable queue, and the account of it: closed with `close`, or as a context manager."""

    @property
    def name(self) -> str:
        """Which one it is, and where; for people."""
        ...

    @property
    def actor(self) -> str:
        """In whose name the audit records what is done."""
        ...

    def listening(self, heard: Callable[[], None]) -> AbstractContextManager[None]:
        """While in its block, call `heard`, in any thread, when somebody has queued something.

        One that can't tell never calls it: whoever waits has to look now and then all the same.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
