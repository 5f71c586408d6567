"""A day of 1,000,000 referrals, with trouble at the worst time, simulated: `make simulate`.

What decides is the project's own: when a message is tried again (`delivery.next_attempt`), how long
a worker waits for a relay that is away (`worker.pause_after`), and whose turn it is. What it costs
is measured by `make bench-scale`, which can write it to a file for us (`--costs`). The same seed
gives the same day.

A fleet is taken for one line of counters: it starts a message each 1/capacity seconds, where
capacity is the least of what its workers, its database, the relay and the agreed pace allow, and
has as many under way at the same time as it has lanes. docs/scale.md says what was found.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path

from referrals import worker
from referrals.cli.worker import _AGAIN_S
from referrals.delivery import RetryPolicy, next_attempt

HOUR = 3_600.0
DAY = 24 * HOUR
MIDNIGHT = datetime(2026, 11, 24, tzinfo=UTC)
REFERRALS = 1_000_000
AGENCIES = 200
SEED = 20_261_124
PEAK = 10 * HOUR
"""When the busiest hour begins."""

# A working day: what part of it comes in each hour, before it is made to add up to one.
_PROFILE = (
    0.6, 0.4, 0.3, 0.3, 0.4, 0.8, 2.0, 4.0, 7.0, 10.0, 12.0, 10.5,
    8.0, 9.0, 9.5, 8.5, 6.5, 4.0, 2.5, 2.0, 1.6, 1.4, 1.0, 0.7,
)  # fmt: skip
_IN_SPREADSHEETS = 0.1
_ROWS = 2_000
_QUIET = 0.5
"""The half of the agencies that has least to do."""


class Kind(StrEnum):
    UNREACHABLE = "the relay can't be reached"
    PUTS_OFF = "the relay answers 451 to every RCPT"
    WANTS_NONE = "the relay answers 451 to every MAIL"
    SLOW = "the relay at a tenth of its speed"
    DATABASE = "the database is restarted"
    WORKERS = "half of the workers are gone"


@dataclass(frozen=True)
class Trouble:
    """What goes wrong, from when and for how long, in seconds."""

    kind: Kind
    begins: float
    lasts: float

    @property
    def ends(self) -> float:
        return self.begins + self.lasts


@dataclass(frozen=True)
class Fleet:
    """What delivers.

    Args:
        per_worker, together: messages a second that one worker, and all on one database, can do.
        round_trip_s: from claim to outcome of one message that nothing is in the way of.
        relay: messages a second that the relay takes; 0 for as many as come.
        rate_per_minute: `delivery.rate_per_minute`, 0 for no limit.
    """

    workers: int = 2
    lanes: int = 16
    per_worker: float = 500.0
    together: float = 1_000.0
    round_trip_s: float = 0.015
    relay: float = 0.0
    rate_per_minute: int = 0

    def capacity(self, up: int, slow: bool = False) -> float:
        """Messages a second while so many workers are up."""
        limits = [up * self.per_worker, self.together]
        if self.relay:
            limits.append(self.relay / (10 if slow else 1))
        if self.rate_per_minute:
            limits.append(self.rate_per_minute / 60)
        return min(limits)


@dataclass
class Day:
    """What became of it. Times in seconds.

    Args:
        gone_after: from the end of the trouble until nothing waited any more.
    """

    arrived: int = 0
    relayed: int = 0
    failed: int = 0
    attempts: int = 0
    asked: int = 0
    waiting: int = 0
    most_waiting: int = 0
    gone_after: float | None = None
    waits: list[tuple[float, int]] = field(default_factory=list)

    def wait(self, share: float, agencies: Iterable[int] | None = None) -> float:
        """So long that this share of the messages (of these agencies) waited no longer."""
        wanted = None if agencies is None else set(agencies)
        waits = sorted(one for one, agency in self.waits if wanted is None or agency in wanted)
        return waits[int(share * (len(waits) - 1))] if waits else 0.0


class Turns:
    """Whose turn it is: `next_turn` of the outbox in PostgreSQL."""

    def __init__(self) -> None:
        self._ready: list[tuple[int, int]] = []
        self._under_way: dict[int, int] = {}
        self._turn_of: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._jobs: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._ready)

    def queue(self, message: int, agency: int) -> None:
        """After its agency's last, but no sooner than what is under way."""
        self._jobs[agency] += 1
        self.again(message, agency, self._next(agency))

    def again(self, message: int, agency: int, turn: int) -> None:
        self._last[agency] = max(self._last.get(agency, 0), turn)
        self._turn_of[message] = turn
        heapq.heappush(self._ready, (turn, message))

    def take(self) -> int:
        turn, message = heapq.heappop(self._ready)
        self._under_way[message] = turn
        return message

    def finish(self, message: int, agency: int) -> None:
        del self._under_way[message], self._turn_of[message]
        self._jobs[agency] -= 1
        if not self._jobs[agency]:
            self._last.pop(agency, None)

    def put_off(self, message: int, agency: int) -> int:
        """Its new turn, for when it is due."""
        turn = self._next(agency)
        del self._under_way[message]
        self._last[agency] = max(self._last.get(agency, 0), turn)
        return turn

    def _next(self, agency: int) -> int:
        if self._under_way:
            least = max(self._under_way.values())
        else:
            least = self._ready[0][0] if self._ready else 1
        return max(least, 1 + self._last.get(agency, 0))


@dataclass
class _Worker:
    """`asks_at` is when it looks whether the relay is back; None while it works."""

    asks_at: float | None = None
    no_sooner: float = 0.0
    faults: int = 0
    gone: bool = False


class Simulation:
    """One day, event by event.

    Args:
        arrivals: when each message is queued, in order, and by which agency.
    """

    def __init__(
        self,
        arrivals: Sequence[tuple[float, int]],
        fleet: Fleet,
        trouble: Trouble | None = None,
        policy: RetryPolicy | None = None,
        seed: int = SEED,
    ) -> None:
        self._arrivals = arrivals
        self._fleet = fleet
        self._trouble = trouble
        self._policy = policy or RetryPolicy()
        self._chance = random.Random(seed)  # noqa: S311 - spreads retries
        self._workers = [_Worker() for _ in range(fleet.workers)]
        self._turns = Turns()
        self._due: list[tuple[float, int, int]] = []  # when, message, turn
        self._busy: list[tuple[float, int]] = []  # until when, message
        self._failures: Counter[int] = Counter()
        self._since: dict[int, float] = {}
        self._now = 0.0
        self._next_start = 0.0
        self._capacity = fleet.capacity(fleet.workers)
        self._up = fleet.workers
        self.day = Day()

    def run(self) -> Day:
        for _ in self.steps():
            pass
        return self.day

    def steps(self) -> Iterator[float]:
        """Each event's time, after it has happened."""
        arrivals, trouble = iter(self._arrivals), self._trouble
        coming = next(arrivals, None)
        changes = [trouble.begins, trouble.ends] if trouble else []
        number, never = 0, float("inf")
        while True:
            arrives = coming[0] if coming else never
            if trouble and trouble.kind is Kind.DATABASE and self._is_on(Kind.DATABASE, arrives):
                arrives = trouble.ends  # whoever queued was told so, and did it again
            ends = self._busy[0][0] if self._busy else never
            due = self._due[0][0] if self._due else never
            starts = self._may_start(ends)
            changing = changes[0] if changes else never
            asks = self._asks()
            at = min(arrives, ends, due, starts, changing, asks)
            if at == never:
                return
            self._now = at
            if at == changing:
                self._change(changes.pop(0))
            elif at == ends:
                self._end(*heapq.heappop(self._busy))
            elif at == asks:
                self._ask(at)
            elif at == due:
                _, message, turn = heapq.heappop(self._due)
                self._turns.again(message, self._agency(message), turn)
            elif at == arrives and coming:
                self.day.arrived += 1
                self.day.waiting += 1
                self._turns.queue(number, coming[1])
                number += 1
                coming = next(arrivals, None)
                self._wake(at)
            else:
                self._start(at)
            self._note(at)
            yield at

    def _note(self, at: float) -> None:
        day, trouble = self.day, self._trouble
        waiting = day.waiting
        if waiting > day.most_waiting:
            day.most_waiting = waiting
        over = trouble is not None and day.gone_after is None and at > trouble.ends
        if trouble and over and waiting <= len(self._busy):
            day.gone_after = at - trouble.ends

    # Messages

    def _agency(self, message: int) -> int:
        return self._arrivals[message][1]

    def _may_start(self, ends: float) -> float:
        if not len(self._turns) or not self._up:
            return float("inf")
        lanes = self._up * self._fleet.lanes
        if len(self._busy) >= lanes:
            return max(ends, self._next_start)  # the one that ends comes first
        return max(self._now, self._next_start)

    def _start(self, at: float) -> None:
        if self._is_on(Kind.UNREACHABLE, at):
            self._all_fault(at)
            return
        if self._is_on(Kind.WANTS_NONE, at):
            for _ in range(self._up):
                for _ in range(min(worker._PUT_OFF_IN_A_ROW, len(self._turns))):
                    self._put_off(at, self._take(at))
            self._all_fault(at)
            return
        message = self._take(at)
        slow = self._is_on(Kind.SLOW, at)
        takes = self._fleet.round_trip_s * (10 if slow else 1)
        heapq.heappush(self._busy, (at + takes, message))
        self._next_start = at + 1 / self._capacity
        for one in self._workers:
            one.faults = 0

    def _take(self, at: float) -> int:
        message = self._turns.take()
        self.day.attempts += 1
        if not self._failures[message]:
            self._since[message] = at
        return message

    def _end(self, at: float, message: int) -> None:
        if self._is_on(Kind.PUTS_OFF, at):
            self._put_off(at, message)
            return
        agency = self._agency(message)
        self._turns.finish(message, agency)
        self.day.relayed += 1
        self.day.waiting -= 1
        self.day.waits.append((at - self._arrivals[message][0], agency))
        self._forget(message)

    def _put_off(self, at: float, message: int) -> None:
        self._failures[message] += 1
        due = next_attempt(
            self._failures[message],
            _moment(self._since[message]),
            _moment(at),
            self._policy,
            self._chance.uniform(-1, 1),
        )
        agency = self._agency(message)
        if due is None:
            self._turns.finish(message, agency)
            self.day.failed += 1
            self.day.waiting -= 1
            self._forget(message)
            return
        turn = self._turns.put_off(message, agency)
        heapq.heappush(self._due, ((due - MIDNIGHT).total_seconds(), message, turn))

    def _forget(self, message: int) -> None:
        self._failures.pop(message, None)
        self._since.pop(message, None)

    # Workers

    def _is_on(self, kind: Kind, at: float) -> bool:
        trouble = self._trouble
        return trouble is not None and trouble.kind is kind and trouble.begins <= at < trouble.ends

    def _change(self, at: float) -> None:
        """The trouble begins or ends."""
        if self._trouble is None:
            return
        begins, kind = at == self._trouble.begins, self._trouble.kind
        if kind is Kind.WORKERS:
            for one in self._workers[: len(self._workers) // 2]:
                one.gone = begins
        if kind is Kind.DATABASE:
            for one in self._workers:
                one.gone = begins
                if not begins:  # at worst it has just asked in vain
                    one.asks_at = one.no_sooner = at + _AGAIN_S[-1]
        self._count(at)

    def _count(self, at: float) -> None:
        self._up = sum(not one.gone and one.asks_at is None for one in self._workers)
        self._capacity = self._fleet.capacity(self._up, self._is_on(Kind.SLOW, at))

    def _asks(self) -> float:
        if self._up == len(self._workers):
            return float("inf")
        asking = [one.asks_at for one in self._workers if one.asks_at is not None and not one.gone]
        return min(asking, default=float("inf"))

    def _ask(self, at: float) -> None:
        for one in self._workers:
            if one.asks_at is not None and one.asks_at <= at:
                one.asks_at = None
                self.day.asked += 1
        self._count(at)

    def _all_fault(self, at: float) -> None:
        """Whoever is up finds that the relay takes nothing."""
        for one in self._workers:
            if one.asks_at is None:
                one.faults += 1
                one.asks_at = at + worker.pause_after(one.faults)
                one.no_sooner = at + (worker._POLL_S if one.faults > 1 else 0.0)
        self._count(at)

    def _wake(self, at: float) -> None:
        """A message that comes has those who wait ask again, see `Worker.watch`."""
        if self._up == len(self._workers):
            return
        for one in self._workers:
            if one.asks_at is not None:
                one.asks_at = min(one.asks_at, max(at, one.no_sooner))


def _moment(seconds: float) -> datetime:
    return MIDNIGHT + timedelta(seconds=seconds)


# The day


def arrivals(
    count: int = REFERRALS, seed: int = SEED, agencies: int = AGENCIES
) -> list[tuple[float, int]]:
    """When each referral is queued, and by which agency: 0 has most to do, then 1, and so on.

    A tenth comes in spreadsheets of 2,000 rows, in the mornings, from those with most to do; the
    rest one by one, by the profile of a working day. How busy agencies are falls as their rank
    does (Zipf).
    """
    chance = random.Random(seed)  # noqa: S311 - a made-up day
    weights = [1 / (rank + 1) for rank in range(agencies)]
    cumulated = list(accumulate(weights))
    busy = int(agencies * (1 - _QUIET))
    sheets = int(count * _IN_SPREADSHEETS) // _ROWS
    made: list[tuple[float, int]] = []
    for _ in range(sheets):
        at = chance.uniform(8.5, 12) * HOUR
        agency = chance.choices(range(busy), cum_weights=cumulated[:busy])[0]
        made += [(at, agency)] * _ROWS
    singly = count - len(made)
    hours = chance.choices(range(24), weights=_PROFILE, k=singly)
    whose = chance.choices(range(agencies), cum_weights=cumulated, k=singly)
    made += [((hour + chance.random()) * HOUR, one) for hour, one in zip(hours, whose, strict=True)]
    made.sort()
    return made


TROUBLES = (
    None,
    Trouble(Kind.UNREACHABLE, PEAK, 2 * HOUR),
    Trouble(Kind.PUTS_OFF, PEAK, HOUR),
    Trouble(Kind.WANTS_NONE, PEAK, HOUR),
    Trouble(Kind.SLOW, PEAK, 3 * HOUR),
    Trouble(Kind.DATABASE, PEAK, HOUR / 12),
    Trouble(Kind.WORKERS, PEAK - HOUR, 8 * HOUR),
)


def variants(fleet: Fleet) -> list[tuple[str, Fleet]]:
    """Other fleets for the same outage."""
    return [
        ("1 worker, no limit", replace(fleet, workers=1, rate_per_minute=0, relay=0)),
        ("2 workers, no limit", replace(fleet, workers=2, rate_per_minute=0, relay=0)),
        ("4 workers, no limit", replace(fleet, workers=4, rate_per_minute=0, relay=0)),
        ("6,000 a minute", replace(fleet, rate_per_minute=6_000)),
        ("3,000 a minute", replace(fleet, rate_per_minute=3_000)),
        ("2,400 a minute", replace(fleet, rate_per_minute=2_400)),
        ("1,800 a minute", replace(fleet, rate_per_minute=1_800)),
    ]


def quiet(count: int = AGENCIES) -> range:
    return range(int(count * (1 - _QUIET)), count)


HEAD = (
    f"{'':42}{'waiting':>9}{'longest':>9}{'median':>9}{'99%':>9}{'99% of':>9}{'gone':>9}"
    f"{'tries':>7}\n{'':42}{'at most':>9}{'wait':>9}{'':9}{'':9}{'quiet':>9}{'after':>9}"
    f"{'each':>7}"
)


def line(name: str, day: Day) -> str:
    gone = "" if day.gone_after is None else clock(day.gone_after)
    told = [day.wait(1), day.wait(0.5), day.wait(0.99), day.wait(0.99, quiet())]
    return (
        f"{name:42}{day.most_waiting:>9,}{''.join(f'{clock(one):>9}' for one in told)}{gone:>9}"
        f"{day.attempts / max(day.arrived, 1):>7.2f}"
    )


def clock(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds * 1000:,.0f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d}"


def name_of(trouble: Trouble | None) -> str:
    return "no trouble" if trouble is None else f"{trouble.kind}, {clock(trouble.lasts)}"


def _played(count: int, seed: int, what: tuple[str, Fleet, Trouble | None]) -> str:
    name, fleet, trouble = what
    return line(name, Simulation(_arrivals(count, seed), fleet, trouble).run())


@lru_cache(maxsize=1)
def _arrivals(count: int, seed: int) -> list[tuple[float, int]]:
    return arrivals(count, seed)


def measured(costs: Mapping[str, float]) -> Fleet:
    """From what `make bench-scale` has measured on one machine."""
    rates = [rate for name, rate in costs.items() if name.startswith("rate_")]
    return Fleet(per_worker=costs["rate_1"], together=max(rates), round_trip_s=costs["latency_1"])


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make simulate ARGS=...", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--costs", type=Path, help="what `make bench-scale` wrote with --costs")
    parser.add_argument("--referrals", type=int, default=REFERRALS, help="of the day")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rate", type=int, default=3_000, help="delivery.rate_per_minute")
    parser.add_argument("--relay", type=float, default=100.0, help="messages a second it takes")
    parser.add_argument("--seed", type=int, default=SEED)
    return parser.parse_args()


def main() -> int:
    asked = options()
    fleet = Fleet()
    if asked.costs:
        fleet = measured(json.loads(asked.costs.read_text(encoding="utf-8")))
    fleet = replace(fleet, workers=asked.workers, rate_per_minute=asked.rate, relay=asked.relay)
    print(
        f"A day of {asked.referrals:,} referrals of {AGENCIES} agencies, seed {asked.seed}; "
        f"{fleet.workers} workers of {fleet.lanes} lanes,\n"
        f"{fleet.per_worker:,.0f} a second each and {fleet.together:,.0f} together, "
        f"{fleet.round_trip_s * 1000:.0f} ms a message; a relay that takes\n"
        f"{fleet.relay:,.0f} a second, and is given {fleet.rate_per_minute:,} a minute at most\n\n"
        f"{HEAD}"
    )
    days = [(name_of(trouble), fleet, trouble) for trouble in TROUBLES]
    days += [(name, other, TROUBLES[1]) for name, other in variants(fleet)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        played = pool.map(partial(_played, asked.referrals, asked.seed), days)
        for number, told in enumerate(played):
            if number == len(TROUBLES):
                print(f"\nThe same outage of {clock(2 * HOUR)}, with other fleets\n\n{HEAD}")
            print(told, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
