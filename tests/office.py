"""An outbox, a worker and a clock for tests, and the account of what they did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from referrals.delivery import DeliveryStatus, Submission
from referrals.ports import Outbox
from referrals.settings import RelaySettings, Security
from referrals.transports.smtp import SmtpTransport
from referrals.worker import DeliveryOptions, Report, Worker
from tests.account import check, wanted
from tests.conftest import NOW
from tests.peers import run


class Somewhere(Protocol):
    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...


@dataclass
class Office:
    """An outbox with a batch in it, a clock, and what is done with both.

    `relay` is how its relays are talked to, besides host, port and timeout.
    """

    outbox: Outbox
    queued: list[Submission] = field(default_factory=list)
    now: datetime = NOW
    relay: dict[str, Any] = field(default_factory=lambda: {"security": Security.NONE})

    def queue(self, batch: Sequence[Submission]) -> None:
        self.outbox.queue(batch, self.now)
        self.queued += batch

    def deliver(self, relay: Somewhere, **how: Any) -> Report:
        """As `delivering`."""
        return run(self.delivering(relay, **how), limit_s=60)

    async def delivering(
        self,
        relay: Somewhere,
        *,
        lanes: int = 3,
        timeout_s: float = 5.0,
        final_wait_s: float = 10.0,
        told: Callable[..., None] = lambda *_: None,
        now: Callable[[], datetime] | None = None,
        **options: Any,
    ) -> Report:
        """Try everything that is due, once, with the worker that `deliver` uses.

        Args:
            now: where the office's own clock, which stands still, won't do.
        """
        settings = RelaySettings(
            host=relay.host, port=relay.port, timeout_s=timeout_s, **self.relay
        )
        worker = Worker(
            self.outbox,
            SmtpTransport(settings, final_wait_s=final_wait_s),
            DeliveryOptions(lanes=lanes, **options),
            now=now or (lambda: self.now),
            jitter=lambda: 0.0,
            told=told,
        )
        return await worker.deliver_due()

    def check(self, taken: Iterable[bytes], in_doubt: Iterable[bytes] = ()) -> Counter[str]:
        return check(self.outbox, wanted(self.queued), taken, in_doubt)

    def attempts(self) -> int:
        return sum(one.attempts for one in self.outbox.held())

    def retry_failed(self) -> None:
        for one in self.outbox.held(status=DeliveryStatus.FAILED):
            self.outbox.retry(one.reference, self.now)

    def in_doubt(self) -> set[str]:
        """The references of what is marked: each may have arrived, or not, or twice."""
        return {one.reference for one in self.outbox.held(limit=100_000) if one.maybe_doubled}

    def check_in_part(
        self, arrived: Iterable[bytes], doubts: int, *, copies: int = 2
    ) -> Counter[str]:
        """The account where a relay went away in the midst of at most so many messages.

        Args:
            copies: how often one of those may have arrived.
        """
        marked = self.in_doubt()
        assert len(marked) <= doubts
        contents = {one.outgoing.content for one in self.queued if one.outgoing.reference in marked}
        arrived = list(arrived)
        assert max(Counter(arrived).values(), default=0) <= copies
        return self.check(
            [one for one in arrived if one not in contents],
            [one for one in arrived if one in contents],
        )
