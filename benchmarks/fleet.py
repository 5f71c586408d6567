"""Several workers on one queue in PostgreSQL, beside procrastinate alone: `make bench-scale`.

First how fast what waits is worked off, by one, two and four workers, in turns with procrastinate
alone; then what a message costs, how long it takes from queued to relayed, where those who write
to the audit wait for each other, and whether a long backlog makes any of it slower.
docs/scale.md says what follows from it. Exits 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks import database
from benchmarks.cold_start import REFERRALS, ROOT, environment
from benchmarks.database import Base, Spent
from benchmarks.letters import Letters
from benchmarks.measure import run
from benchmarks.programs import settings
from benchmarks.relay import open_sink, sink
from referrals.queueing import Claimed
from tests.postgres import Server

LEAST = 0.7
"""Of procrastinate's bare rate, with a task that does nothing."""
LANES = 16
BUSY = 0.5
_AGENCIES = "a,b,c,d,e,f,g"
_SMALL = 1_000
_PATIENCE_S = 120.0
_PEER = [sys.executable, "-m", "benchmarks.peers.procrastinate_jobs"]
_ROOM = 2.5
"""So many times the bytes of the messages on the disk: tables, indexes, and the log meanwhile."""


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Args:
        drained: messages that are worked off at a time.
        steady_s: how long messages come in at a steady rate.
        backlogs: (messages, bytes each; 0 for whole letters).
    """

    rounds: int
    drained: int
    steady_s: float
    backlogs: tuple[tuple[int, int], ...]


QUICK = Plan(1, 2_000, 4.0, ((1_000, 0), (10_000, 0)))
USUAL = Plan(3, 5_000, 12.0, ((10_000, 0), (100_000, 0)))
FULL = Plan(3, 8_000, 20.0, ((10_000, 0), (100_000, 0), (1_000_000, _SMALL)))
WORKERS = (1, 2, 4)


@dataclass
class Drained:
    """How fast a queue was worked off, and what that took."""

    rate: float
    worker_cpu_s: float = 0.0
    spent: Spent = field(default_factory=lambda: Spent(0, 0, 0, 0))
    waits: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Workshop:
    """Where it happens.

    Args:
        referrals: our command.
    """

    server: Server
    top: Path
    referrals: Path
    letters: Path

    # Workers

    @contextmanager
    def workers(self, base: Base, count: int, port: int) -> Iterator[list[float]]:
        """So many `referrals worker`, up and looking; the list then has their processor seconds."""
        env = settings(port) | {"REFERRALS_DATABASE": base.url}
        argv = [str(self.referrals), "worker", "--concurrency", str(LANES)]
        used: list[float] = []
        known = base.workers()
        with (self.top / "workers.err").open("wb") as words:
            processes = [
                subprocess.Popen(
                    argv, env=env, cwd=self.top, stdout=subprocess.DEVNULL, stderr=words
                )
                for _ in range(count)
            ]
            try:
                _until(lambda: base.workers() >= known + count, "the workers are up")
                yield used
            finally:
                for one in processes:
                    one.send_signal(signal.SIGTERM)
                for one in processes:
                    _, status, spent = os.wait4(one.pid, 0)
                    one.returncode = os.waitstatus_to_exitcode(status)
                    used.append(spent.ru_utime + spent.ru_stime)
        if any(one.returncode for one in processes):
            raise RuntimeError((self.top / "workers.err").read_text()[-2_000:])

    # Queueing

    def queue(self, base: Base, count: int, *, processes: int = 1, **how: Any) -> float:
        """Queue so many more; messages a second."""
        made = self.queueing(base, count, processes=processes, **how)
        told = [_told(one) for one in made]
        return count / max(float(one["seconds"]) for one in told)

    def queueing(
        self, base: Base, count: int, *, processes: int = 1, rate: float = 0.0, **how: Any
    ) -> list[subprocess.Popen[str]]:
        first, each = base.last() + 1, math.ceil(count / processes)
        made = []
        for start in range(0, count, each):
            argv = [sys.executable, "-m", "benchmarks.producer", base.url]
            argv += [str(first + start), str(min(each, count - start))]
            argv += ["--rate", str(rate / processes)]
            for name, value in how.items():
                argv += [f"--{name}", str(value)]
            made.append(
                subprocess.Popen(
                    argv, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
                )
            )
        return made

    # Draining

    def drain(self, count: int, workers: int) -> Drained:
        """Our workers on a new outbox with so many messages of several agencies."""
        base = database.new_outbox(self.server)
        self.queue(base, count, agencies=_AGENCIES)
        os.sync()
        with sink(count) as port:
            before = base.spent()
            with base.sampled() as waits, self.workers(base, workers, port) as used:
                _until(lambda: base.entries() >= 2 * count, "all are relayed", _PATIENCE_S)
            spent = base.spent() - before
        (seconds,) = base.ask(
            "SELECT extract(epoch FROM percentile_disc(0.9) WITHIN GROUP (ORDER BY relayed_at)"
            " - percentile_disc(0.1) WITHIN GROUP (ORDER BY relayed_at)) FROM referrals.message"
        )
        return Drained(
            0.8 * count / float(seconds), sum(used), spent, waits, base.bytes_a_message()
        )

    def bare(self, count: int, workers: int, port: int | None = None) -> Drained:
        """Procrastinate's own workers with as many jobs; with a relay, each submits a letter."""
        base = database.new_jobs(self.server)
        subprocess.run(
            [*_PEER, "defer", base.url, str(count)],
            cwd=ROOT, env=environment(), check=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.sync()
        relay = [] if port is None else [str(port), str(self.letters)]
        argv = [*_PEER, "work", base.url, str(LANES), *relay]
        processes = [
            subprocess.Popen(
                argv, cwd=ROOT, env=environment(), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )
            for _ in range(workers)
        ]  # fmt: skip
        done = sorted(one for process in processes for one in _told(process))
        if len(done) != count:
            raise RuntimeError(f"Procrastinate did {len(done)} jobs of {count}.")
        return Drained(0.8 * count / (done[int(0.9 * count)] - done[int(0.1 * count)]))

    def bare_submitting(self, count: int, workers: int) -> Drained:
        with sink(count) as port:
            return self.bare(count, workers, port)

    def steady(self, workers: int, rate: float, seconds: float) -> list[float]:
        """Seconds from queued to relayed of each message that comes in one by one."""
        base, count = database.new_outbox(self.server), int(rate * seconds)
        with sink(count) as port, self.workers(base, workers, port):
            for one in self.queueing(
                base, count, rate=rate, group=1, agencies=_AGENCIES,
                processes=max(1, math.ceil(rate / 150)),
            ):  # fmt: skip
                _told(one)
            _until(lambda: base.entries() >= 2 * count, "all are relayed", _PATIENCE_S)
        return _latencies(base)


def _told(process: subprocess.Popen[str]) -> Any:
    words, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{process.args!r} exited {process.returncode}")
    return json.loads(words)


def _until(done: Callable[[], bool], what: str, patience_s: float = 30.0) -> None:
    limit = time.monotonic() + patience_s
    while not done():
        if time.monotonic() > limit:
            raise RuntimeError(f"Waited {patience_s:g} s in vain: {what}.")
        time.sleep(0.05)


def _latencies(base: Base, after: int = 0) -> list[float]:
    """Of the messages with higher numbers."""
    with base.server.connected(base.name) as db:
        rows = db.execute(
            "SELECT extract(epoch FROM relayed_at - queued_at)::float FROM referrals.message"
            " WHERE relayed_at IS NOT NULL AND id > %s",
            (after,),
        ).fetchall()
    return [one for (one,) in rows]


def spread(seconds: Sequence[float]) -> str:
    """The median, the 99th of 100, and the longest, in milliseconds."""
    if not seconds:
        return f"{'none':>30}"
    ordered = sorted(seconds)
    told = ordered[len(ordered) // 2], ordered[int(0.99 * (len(ordered) - 1))], ordered[-1]
    return "".join(f"{one * 1000:>10,.1f}" for one in told)


# The tables


def throughput(shop: Workshop, plan: Plan) -> tuple[bool, dict[int, list[Drained]]]:
    """Each number of workers in turn, round after round; whether the targets were met."""
    count = plan.drained
    ours: dict[int, list[Drained]] = {one: [] for one in WORKERS}
    bare: dict[int, list[Drained]] = {one: [] for one in WORKERS}
    relaying: dict[int, list[Drained]] = {one: [] for one in WORKERS}
    for turn in range(plan.rounds):
        for workers in WORKERS:
            ours[workers].append(shop.drain(count, workers))
            bare[workers].append(shop.bare(count, workers))
            if turn == 0 or plan is FULL:
                relaying[workers].append(shop.bare_submitting(count, workers))
    print(
        f"\n1. Working off {count:,}, {LANES} lanes each worker; rounds: {plan.rounds}\n"
        f"\n{'':9}{'referrals':>12}{'procrastinate, bare':>22}{'ratio':>8}{'':14}"
        f"{'with aiosmtplib':>17}{'ratio':>8}\n"
        f"{'workers':9}{'messages/s':>12}{'jobs/s':>22}{'':22}{'letters/s':>17}"
    )
    met = True
    for workers in WORKERS:
        rate, peer, honest = (_rate(one[workers]) for one in (ours, bare, relaying))
        good = rate / peer >= LEAST
        met &= good
        print(
            f"{workers:<9}{rate:>12,.0f}{peer:>22,.0f}{rate / peer:>8.2f}"
            f"  >= {LEAST:g} {'met' if good else 'MISSED':6}{honest:>18,.0f}{rate / honest:>8.2f}"
        )
    return met, ours


def _rate(runs: Sequence[Drained]) -> float:
    return statistics.median(one.rate for one in runs)


def costs(shop: Workshop, plan: Plan, ours: Mapping[int, Sequence[Drained]]) -> dict[str, float]:
    """Print what a message costs to queue and to deliver; the figures that a plan needs."""
    count = plan.drained
    base = database.new_outbox(shop.server)
    before = base.spent()
    rate = shop.queue(base, count, agencies=_AGENCIES)
    queued = base.spent() - before
    print(
        f"\n2. What a message costs, of {count:,}\n"
        f"\n{'':34}{'worker':>10}{'PostgreSQL':>12}{'log':>9}{'waits':>9}{'commits':>9}"
        f"\n{'':34}{'CPU ms':>10}{'CPU ms':>12}{'KB':>9}{'of disk':>9}"
    )
    _cost("queued in groups of 250", 0.0, queued, count)
    figures: dict[str, float] = {"queue_rate": rate, "queue_pg_ms": queued.cpu_s / count * 1000}
    for workers in WORKERS:
        spent = Spent.typical([one.spent for one in ours[workers]])
        worker_cpu_s = statistics.median(one.worker_cpu_s for one in ours[workers])
        _cost(f"relayed, {workers} workers", worker_cpu_s, spent, count)
        figures[f"rate_{workers}"] = _rate(ours[workers])
        figures[f"worker_ms_{workers}"] = worker_cpu_s / count * 1000
        figures[f"pg_ms_{workers}"] = spent.cpu_s / count * 1000
    print(f"\nQueueing, in groups of 250: one process {rate:,.0f} a second", end="")
    for processes in (2, 4):
        base = database.new_outbox(shop.server)
        print(f", {processes}: {shop.queue(base, count, processes=processes):,.0f}", end="")
    print(".")
    sizes = ours[1][-1].sizes
    shown = ", ".join(f"{name} {one / 1000:.1f}" for name, one in sizes.items())
    print(f"On the disk with indexes, KB a message: {shown}; all {sum(sizes.values()) / 1000:.1f}.")
    print("\nWhat the server's processes were at while they drained (of those at work):")
    for workers in WORKERS:
        waits = dict(ours[workers][-1].waits)
        waits.pop("looks", None)
        whole = sum(waits.values()) or 1
        common = sorted(waits.items(), key=lambda one: -one[1])[:4]
        shown = ", ".join(f"{name} {number / whole:.0%}" for name, number in common)
        print(f"  {workers} workers: {shown}")
    return figures


def _cost(name: str, worker_cpu_s: float, spent: Spent, count: int) -> None:
    print(
        f"{name:34}{worker_cpu_s / count * 1000:>10.2f}{spent.cpu_s / count * 1000:>12.2f}"
        f"{spent.wal_bytes / count / 1000:>9.1f}{spent.syncs / count:>9.2f}"
        f"{spent.commits / count:>9.2f}"
    )


def chain(shop: Workshop, plan: Plan) -> None:
    """How many commits a second write to the audit, which go one after another."""
    count = plan.drained // 2
    print("\n3. The audit is one chain: messages queued one by one, each a commit\n")
    for processes in (1, 2, 4):
        base = database.new_outbox(shop.server)
        with base.sampled() as waits:
            rate = shop.queue(base, count, processes=processes, group=1, agencies=_AGENCIES)
        found = {key: number for key, number in waits.items() if key != "looks"}
        locked = sum(number for key, number in found.items() if key.startswith("Lock:"))
        share = locked / (sum(found.values()) or 1)
        print(
            f"  {processes} processes: {rate:>7,.0f} a second; {share:.0%} of them waited in line"
        )


def latency(shop: Workshop, plan: Plan, figures: dict[str, float]) -> None:
    print(
        "\n4. From queued to relayed, one by one, at half the rate above; the queue is empty"
        f"\n\n{'workers':9}{'a second':>10}{'median ms':>10}{'99% ms':>10}{'most ms':>10}"
    )
    for workers in WORKERS:
        # Whoever queues takes a share of the same two cores.
        rate = min(figures[f"rate_{workers}"] / 2, 500)
        found = shop.steady(workers, rate, plan.steady_s)
        print(f"{workers:<9}{rate:>10,.0f}{spread(found)}", flush=True)
        figures[f"latency_{workers}"] = statistics.median(found)


def backlogs(shop: Workshop, plan: Plan) -> None:
    """One busy agency's backlog, longer and longer, in one outbox."""
    base = database.new_outbox(shop.server)
    print(
        "\n5. A backlog of one busy agency and two workers; a quiet agency's come in meanwhile\n"
        f"\n{'':11}{'queued':>9}{'fetch':>8}{'fetch':>9}{'claim':>8}{'counts':>9}{'oldest':>8}"
        f"{'list':>8}{'relayed':>9}  quiet agency, ms"
        f"\n{'backlog':11}{'a second':>9}{'ms':>8}{'dead ms':>9}{'ms':>8}{'ms':>9}{'due ms':>8}"
        f"{'ms':>8}{'a second':>9}{'median':>10}{'99%':>10}{'most':>10}"
    )
    for size, octets in plan.backlogs:
        rate = shop.queue(
            base, size - base.waiting(), processes=2, size=octets, agencies="busy", group=500
        )
        fetch, claim, looks = base.fetch_ms(), _claim_ms(base), _looks(shop, base)
        relayed, quiet = _with_quiet(shop, base, min(plan.steady_s, size / 2_500))
        after = base.fetch_ms()
        print(
            f"{size:<11,}{rate:>9,.0f}{fetch:>8.2f}{after:>9.2f}{claim:>8.2f}{looks['counts']:>9.1f}"
            f"{looks['oldest']:>8.1f}{looks['list']:>8.0f}{relayed:>9,.0f}{spread(quiet)}",
            flush=True,
        )
    print(f"\nOf procrastinate's jobs, {base.dead_jobs():,} dead rows are left at the end.")


def _claim_ms(base: Base, times: int = 40) -> float:
    """Median time of a claim with its commit; all are given back."""

    async def claim() -> list[float]:
        taken, mine = [], []
        with base.outbox() as outbox:
            for number in range(times):
                began = time.perf_counter()
                found = await outbox.claim(
                    f"bench/{number}", datetime.now(UTC), timedelta(minutes=20)
                )
                taken.append(time.perf_counter() - began)
                if isinstance(found, Claimed):
                    mine.append((found, f"bench/{number}"))
            for found, owner in mine:
                await outbox.release(found, owner)
        return taken

    return statistics.median(asyncio.run(claim())) * 1000


def _looks(shop: Workshop, base: Base) -> dict[str, float]:
    """Median milliseconds of what a page and a timer ask: counts also is what /health asks."""
    now = datetime.now(UTC)
    with base.outbox() as outbox:
        counts = _median_ms(outbox.counts)
        oldest = _median_ms(lambda: outbox.oldest_due(now))
    env = settings(1) | {"REFERRALS_DATABASE": base.url}
    argv = [str(shop.referrals), "outbox", "list"]
    listed = statistics.median(run(argv, shop.top, env).seconds for _ in range(3)) * 1000
    return {"counts": counts, "oldest": oldest, "list": listed}


def _median_ms(ask: Any, times: int = 5) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        ask()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1000


def _with_quiet(shop: Workshop, base: Base, seconds: float) -> tuple[float, list[float]]:
    """Messages relayed a second from the backlog, and how long the quiet agency's took."""
    before = base.last()
    with open_sink() as port, shop.workers(base, 2, port):
        (quiet,) = shop.queueing(
            base, max(5, int(20 * seconds)), rate=20, group=1, agencies="quiet"
        )
        _told(quiet)
        _until(lambda: base.waiting(before) == 0, "the quiet agency's are relayed")
    (rate,) = base.ask(
        "SELECT count(*) / extract(epoch FROM max(relayed_at) - min(relayed_at))"
        " FROM referrals.message WHERE agency = 'busy' AND relayed_at >="
        " (SELECT min(queued_at) FROM referrals.message WHERE id > %s)", (before,)
    )  # fmt: skip
    return float(rate or 0), _latencies(base, before)


# The command


def room_wanted(plan: Plan, letter: int) -> int:
    """Bytes on the disk for all of it."""
    backlog = sum(size * (octets or letter) for size, octets in plan.backlogs)
    drains = plan.drained * letter * (plan.rounds * len(WORKERS) + 12)
    small = sum(size for size, _ in plan.backlogs) * 6_000
    return int((backlog + drains) * _ROOM) + small


def check_folder(folder: Path, plan: Plan, letter: int) -> None:
    """Raises RuntimeError: no real disk, or not enough of it."""
    kind = _file_system(folder)
    if kind in ("tmpfs", "ramfs"):
        raise RuntimeError(f"{folder} is memory ({kind}), no disk. Name another with --folder.")
    wanted, free = room_wanted(plan, letter), shutil.disk_usage(folder).free
    if free < wanted:
        raise RuntimeError(
            f"{folder} has {free / 1e9:.1f} GB free, and this takes up to {wanted / 1e9:.1f} GB. "
            "Name another disk with --folder, or measure less (--quick)."
        )


def _file_system(folder: Path) -> str:
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, place, found, *_ = line.split()
        if folder.resolve().is_relative_to(place) and len(place) >= len(best):
            best, kind = place, found
    return kind


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench-scale ARGS=...", description=(__doc__ or "").partition("\n")[0]
    )
    much = parser.add_mutually_exclusive_group()
    much.add_argument("--quick", action="store_true", help="two minutes, and less sure")
    much.add_argument("--full", action="store_true", help="a backlog of 1,000,000 as well; long")
    parser.add_argument("--only", choices=["rate", "latency", "chain", "backlog"], help="one part")
    parser.add_argument("--costs", type=Path, help="a file for what `make simulate` wants to know")
    parser.add_argument("--referrals", type=Path, default=REFERRALS, help="our command")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="a real disk"
    )
    return parser.parse_args()


def main() -> int:
    asked = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server is stopped all the same
    plan = QUICK if asked.quick else FULL if asked.full else USUAL
    began, load = time.monotonic(), os.getloadavg()[0]
    letters = Letters()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {load:.1f} before")
    if load > BUSY:
        print("Something else is at work here: take these figures with care.")
    met = True
    try:
        check_folder(asked.folder, plan, letters.mean_size)
        with tempfile.TemporaryDirectory(prefix="bench-scale-", dir=asked.folder) as place:
            top = Path(place)
            top.chmod(0o755)  # the server as root gives up its rights, and then works here
            (top / "letters").mkdir()
            for number, content in enumerate(letters.contents()):
                (top / "letters" / f"{number}.eml").write_bytes(content)
            with database.started(top) as server:
                print(
                    f"PostgreSQL {database.version(server)} with its defaults, fsync on, on "
                    f"{_file_system(top)}; a letter has {letters.mean_size / 1000:.1f} KB"
                )
                shop = Workshop(server, top, asked.referrals.resolve(), top / "letters")
                met = measure(shop, plan, asked.only, asked.costs)
    except (RuntimeError, OSError) as failure:
        print(failure, file=sys.stderr)
        return 2
    print(f"\n{time.monotonic() - began:.0f} s in all. {'' if met else 'A target was missed.'}")
    return 0 if met else 1


def measure(shop: Workshop, plan: Plan, only: str | None, costs_file: Path | None) -> bool:
    met, figures = True, {"rate_1": 500.0, "rate_2": 800.0, "rate_4": 800.0}
    if only in (None, "rate"):
        met, ours = throughput(shop, plan)
        figures = costs(shop, plan, ours)
    if only in (None, "chain"):
        chain(shop, plan)
    if only in (None, "latency"):
        latency(shop, plan, figures)
    if costs_file is not None:
        costs_file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if only in (None, "backlog"):
        backlogs(shop, plan)
    return met


if __name__ == "__main__":
    sys.exit(main())
