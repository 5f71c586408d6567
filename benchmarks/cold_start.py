"""How long the command takes to start, as ratios of `python -c "import click"`.

The commands take turns, round after round, so that a busy moment hits all of them; a ratio
of medians from one run means the same on a slow machine as on a fast one.

Run by `make bench`. Exits 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REFERRALS = Path(sys.executable).parent / "referrals"
SAMPLE = ROOT / "samples" / "mediation.json"
BASELINE = "import click"


@dataclass
class Timed:
    """One command; `target` is the highest ratio to the baseline that is still good."""

    name: str
    command: Callable[[Path], list[str]]
    target: float | None = None
    seconds: list[float] = field(default_factory=list)

    def once(self, folder: Path, environment: Mapping[str, str]) -> float:
        """Seconds from start to exit.

        Raises:
            RuntimeError: it failed, and a failure's time means nothing.
        """
        argv = self.command(folder)
        start = time.perf_counter()
        done = subprocess.run(
            argv, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        taken = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)} exited {done.returncode}:\n{done.stderr}")
        return taken


def commands() -> list[Timed]:
    python, referrals = sys.executable, str(REFERRALS)
    draft = [referrals, "draft", "mediation", str(SAMPLE), "--out"]
    return [
        Timed("pass", lambda _: [python, "-c", "pass"]),
        Timed(BASELINE, lambda _: [python, "-c", "import click"]),
        Timed("referrals --version", lambda _: [referrals, "--version"], target=1.5),
        Timed("referrals draft", lambda folder: [*draft, str(folder)], target=5.0),
    ]


def environment() -> dict[str, str]:
    """Ours, without what would make Python start otherwise than for a user."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "COVERAGE", "REFERRALS_"))
    }


def measure(rounds: int) -> list[Timed]:
    timed, env = commands(), environment()
    with tempfile.TemporaryDirectory() as top:
        for number in range(rounds + 1):
            for position, each in enumerate(timed):
                # A new folder every time: a draft that is there already would be less work.
                folder = Path(top, f"{number}-{position}")
                folder.mkdir()
                seconds = each.once(folder, env)
                if number:  # the first round warms the disk and writes the byte code
                    each.seconds.append(seconds)
    return timed


def report(timed: list[Timed]) -> bool:
    """Print the table; whether every target was met, by the medians."""
    baseline = next(each for each in timed if each.name == BASELINE)
    base_median, base_minimum = statistics.median(baseline.seconds), min(baseline.seconds)
    met = True
    print(f"{'':22}{'median':>10}{'minimum':>10}{'ratio':>8}{'of minima':>11}  target")
    for each in timed:
        median, minimum = statistics.median(each.seconds), min(each.seconds)
        ratio = median / base_median
        verdict = ""
        if each.target is not None:
            good = ratio < each.target
            met &= good
            verdict = f"< {each.target:g}  {'met' if good else 'MISSED'}"
        print(
            f"{each.name:22}{median * 1000:>7.1f} ms{minimum * 1000:>7.1f} ms"
            f"{ratio:>8.2f}{minimum / base_minimum:>11.2f}  {verdict}".rstrip()
        )
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=21, help="runs of each command (default: 21)")
    rounds = max(parser.parse_args().rounds, 1)
    if not REFERRALS.exists():
        print(f"No {REFERRALS}: run `make bench`, or `make venv` first.", file=sys.stderr)
        return 2
    try:
        timed = measure(rounds)
    except RuntimeError as failure:
        print(failure, file=sys.stderr)
        return 2
    print(f"Cold start, {rounds} rounds, Python {sys.version.split()[0]}\n")
    return 0 if report(timed) else 1


if __name__ == "__main__":
    sys.exit(main())
