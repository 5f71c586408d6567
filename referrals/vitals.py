"""What a process that goes on delivering knows of itself, for whoever watches over it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import StrEnum

from referrals.delivery import DeliveryStatus
from referrals.supervisor import Supervisor
from referrals.worker import LEASE, Report

_BEAT_S = 1.0
_LATE_S = 120.0
"""A loop that did not turn for so long is held up for good."""
_STUCK_S = 2 * LEASE.total_seconds()
"""One attempt takes less than a lease; the other is for the wait before it (rate_per_minute)."""


class State(StrEnum):
    STARTING = "starting"
    DELIVERING = "delivering"
    WAITING = "waiting"
    """For a database that went away."""
    STOPPING = "stopping"


class Vitals:
    """Written by the loop that delivers, read by any thread.

    Args:
        lanes: connections to the relay at the same time, at most.
        clock: seconds that only ever grow; given so that tests can choose.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        lanes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._supervisor = supervisor
        self._clock = clock
        self._beaten = self._moved = clock()
        self._told = ""
        self.lanes = lanes
        self.state = State.STARTING
        self.relay_fault: str | None = None
        """The code of what the relay last said of us, if it takes nothing just now."""
        self.outcomes: Counter[DeliveryStatus] = Counter()
        self.recovered = 0
        self.last_outcome_at: float | None = None
        """Seconds since 1970."""

    @property
    def turns(self) -> bool:
        """Whether the loop turns."""
        return self._clock() - self._beaten < _LATE_S

    @property
    def is_stuck(self) -> bool:
        """Whether nothing has come of any attempt for longer than one can take."""
        return self._clock() - self._moved > _STUCK_S

    @property
    def is_alive(self) -> bool:
        """Whether it is worth waiting for; otherwise whoever supervises us may start us again."""
        return self.turns and not self.is_stuck

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """In this block the loop's turns are noted, and the supervisor is told of them."""
        beating = asyncio.create_task(self._beat())
        try:
            async with self._supervisor.watching(lambda: not self.is_stuck):
                yield
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating

    async def _beat(self) -> None:
        while True:
            self._beaten = self._clock()
            await asyncio.sleep(_BEAT_S)

    def opened(self) -> None:
        """The outbox can be used."""
        self._moved = self._clock()
        if self.state is State.STARTING:
            self._supervisor.ready(self._words())
        if self.state is not State.STOPPING:
            self.state = State.DELIVERING
        self._tell()

    def waiting(self) -> None:
        """The outbox can't be used, and is tried again."""
        self._moved = self._clock()
        if self.state is not State.STOPPING:
            self.state = State.WAITING
        self._tell()

    def stopping(self) -> None:
        self.state = State.STOPPING
        self._supervisor.stopping("Finishing what is under way, then stopping.")

    def recorded(self, status: DeliveryStatus) -> None:
        """What became of an attempt is in the outbox."""
        self._moved = self._clock()
        self.outcomes[status] += 1
        self.last_outcome_at = time.time()

    def seen(self, report: Report) -> None:
        """A round has ended."""
        self._moved = self._clock()
        self.recovered += report.recovered
        self.relay_fault = report.relay_fault.code if report.relay_fault else None
        self._tell()

    def _tell(self) -> None:
        words = self._words()
        if words != self._told and self.state is not State.STOPPING:
            self._told = words
            self._supervisor.status(words)

    def _words(self) -> str:
        if self.state is State.WAITING:
            return "Waiting for the database."
        if self.relay_fault:
            return f"Waiting for the relay ({self.relay_fault}): the log says why."
        relayed = self.outcomes[DeliveryStatus.RELAYED]
        return f"Delivering; {relayed:,} relayed since the start."
