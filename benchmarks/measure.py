"""Processes timed from start to end, in turns, and told apart by ratios of their medians."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_SAMPLED_EVERY_S = 0.1
_LAST_WORDS = 2_000


@dataclass(frozen=True)
class Run:
    """One process from start to end.

    Args:
        peak_mib: memory of its whole tree, what is shared counted once.
    """

    seconds: float
    peak_mib: float


def run(
    argv: Sequence[str],
    folder: Path,
    env: Mapping[str, str],
    *,
    good: Sequence[int] = (0,),
    one_core: bool = False,
) -> Run:
    """Raises RuntimeError with its last words: a failure's time means nothing."""
    with tempfile.TemporaryFile() as words:
        start = time.perf_counter()
        with _cores(1 if one_core else None):
            process = subprocess.Popen(
                argv, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=words
            )
        tree = _Tree(process.pid)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        peak_kib = max(tree.peak_kib(), _of_its_own(used.ru_maxrss))
        if process.returncode not in good:
            words.seek(max(words.seek(0, os.SEEK_END) - _LAST_WORDS, 0))
            said = words.read().decode(errors="replace")
            raise RuntimeError(f"{' '.join(argv)} exited {process.returncode}:\n{said}")
    return Run(seconds, peak_kib / 1024)


@contextmanager
def _cores(count: int | None) -> Iterator[None]:
    """What is started here may use so many cores."""
    all_of_them = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_of_them)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_of_them)


class _Tree:
    """Memory of a process and all below it, looked at now and then."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def peak_kib(self) -> int:
        self._over.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLED_EVERY_S):
            self._peak = max(self._peak, sum(map(_pss_kib, _family(self._pid))))


def _of_its_own(ru_maxrss: int) -> int:
    """The peak of the largest process; 0 if it could be ours, which Linux starts a child with."""
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return ru_maxrss if ru_maxrss > 1.1 * ours else 0


def _family(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))


def _pss_kib(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


@dataclass
class Program:
    """Something that takes part in a contest.

    Args:
        play: does the job for so many rows in an empty folder, checks that all of it was done,
            and tells what the timed part took.
        most: rows that more would not make any surer.
    """

    name: str
    play: Callable[[Path, int], Run]
    cores: str = "2"
    most: int = 10_000
    rows: int = 0
    runs: list[Run] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Rows a second over the whole process, its start included."""
        return statistics.median(self.rows / one.seconds for one in self.runs)


@dataclass(frozen=True)
class Target:
    """`ours` must reach `least` times the rate of `peer`; None only shows the ratio.

    A moonshot is shown and fails nothing.
    """

    ours: str
    peer: str
    least: float | None = None
    moonshot: bool = False


@dataclass
class Contest:
    """Programs that do the same job."""

    title: str
    programs: list[Program]
    targets: list[Target]

    def play(self, top: Path, plan: Plan) -> None:
        """In turns, round after round, so that a busy moment hits all of them."""
        for program in self.programs:
            program.rows = plan.rows_for(program, top)
        for _ in range(plan.rounds):
            for program in self.programs:
                program.runs.append(_played(program, program.rows, top))

    def report(self) -> bool:
        """Print the table; whether every target was met."""
        by_name = {program.name: program for program in self.programs}
        print(f"\n{self.title}\n")
        print(f"{'':26}{'cores':>6}{'rows':>8}{'seconds':>9}{'rows/s':>9}{'MiB':>6}")
        for program in self.programs:
            seconds = statistics.median(one.seconds for one in program.runs)
            peak = max(one.peak_mib for one in program.runs)
            print(
                f"{program.name:26}{program.cores:>6}{program.rows:>8,}{seconds:>9.2f}"
                f"{program.rate:>9,.0f}{peak:>6.0f}"
            )
        print()
        met = True
        for target in self.targets:
            ratio = by_name[target.ours].rate / by_name[target.peer].rate
            line = f"{target.ours} : {target.peer}"
            print(f"{line:52}{ratio:>6.2f}  {verdict(ratio, target)}".rstrip())
            met &= target.least is None or target.moonshot or ratio >= target.least
        return met


def verdict(ratio: float, target: Target) -> str:
    if target.least is None:
        return ""
    word = "met" if ratio >= target.least else "not yet" if target.moonshot else "MISSED"
    return f">= {target.least:g}  {word}" + (" (moonshot)" if target.moonshot else "")


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Args:
        seconds: about what one run should take; None for `Program.most` rows each.
    """

    rounds: int
    seconds: float | None
    trial: tuple[int, int]

    def rows_for(self, program: Program, top: Path) -> int:
        """As many rows as keep it busy for `seconds`, so that its start counts alike for all.

        From two small runs, the first of which also warms the disk and writes the byte code.
        """
        few, more = self.trial
        first, second = (_played(program, rows, top).seconds for rows in (few, more))
        if self.seconds is None:
            return program.most
        each = max(second - first, 0.001) / (more - few)
        rows = int(self.seconds / each)
        return min(max(round(rows, -2), more), program.most)


def _played(program: Program, rows: int, top: Path) -> Run:
    # It stays until all is measured: for some seconds after thousands of files were deleted, ext4
    # takes several times as long to make new ones, and whoever comes next would pay.
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=top))
    folder.chmod(0o755)
    os.sync()  # what the one before left to be written is not this one's to wait for
    return program.play(folder, rows)
