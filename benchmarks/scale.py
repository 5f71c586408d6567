"""Whether many rows cost more each than few, and how much memory they need."""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.cold_start import environment
from benchmarks.measure import Run, run
from benchmarks.programs import SESSIONS, Workshop

MOST_RATIO = 1.2
"""Time a row of the most rows to that of the fewest; time to look at a long queue and a short."""
MOST_MIB = 150
_FEW = 10
_SHORT = 1_000
_TIMES = 3
_LOOKS = 5


def measure(shop: Workshop, sizes: list[int]) -> bool:
    """Print both tables; whether every target was met.

    What a process takes to start is measured with a few rows and taken off, since the more rows,
    the less of it falls to each.
    """
    print(f"\nMore rows: time a row without the start, and memory; {SESSIONS} lanes to deliver\n")
    met = True
    with tempfile.TemporaryDirectory(prefix="scale-", dir=shop.top) as top:
        # A short run is repeated, each time in an outbox of its own.
        folders = {
            size: [Path(top, f"{size}-{n}") for n in range(_TIMES if size <= _SHORT else 1)]
            for size in [_FEW, *sizes]
        }
        for folder in (one for several in folders.values() for one in several):
            folder.mkdir(mode=0o755)

        def measured(name: str, step: Callable[[Path, int], Run]) -> bool:
            runs = {size: [step(one, size) for one in each] for size, each in folders.items()}
            return _report(name, {size: _typical(several) for size, several in runs.items()})

        met &= measured("check (dry run)", shop.check)
        met &= measured("draft", shop.draft)
        met &= measured("queue", shop.fill)
        looks = _look(shop, {size: folders[size][0] for size in sizes})
        met &= measured("deliver", shop.deliver)
    print("\nA longer queue: time to look at it, the start included\n")
    for name, times in looks.items():
        ratio = times[max(sizes)] / times[min(sizes)]
        shown = "".join(f"{size:>9,}: {times[size] * 1000:>4.0f} ms" for size in sizes)
        print(f"{name:16}{shown}{ratio:>8.2f}  {_verdict(ratio, MOST_RATIO)}")
        met &= ratio <= MOST_RATIO
    return met


def _typical(runs: list[Run]) -> Run:
    seconds = statistics.median(one.seconds for one in runs)
    return Run(seconds, max(one.peak_mib for one in runs))


def _look(shop: Workshop, folders: Mapping[int, Path]) -> dict[str, dict[int, float]]:
    """Median seconds of each command in each outbox, in turns."""
    taken: dict[str, dict[int, list[float]]] = {}
    references = {size: _a_reference(shop, folder) for size, folder in folders.items()}
    for _ in range(_LOOKS):
        for size, folder in folders.items():
            for words in (["list"], ["show", references[size]]):
                argv = [str(shop.referrals), "outbox", *words]
                times = taken.setdefault(f"outbox {words[0]}", {}).setdefault(size, [])
                times.append(run(argv, folder, environment()).seconds)
    return {
        name: {size: statistics.median(times) for size, times in by_size.items()}
        for name, by_size in taken.items()
    }


def _a_reference(shop: Workshop, folder: Path) -> str:
    argv = [str(shop.referrals), "outbox", "list", "--json", "--limit", "1"]
    listed = subprocess.run(argv, cwd=folder, env=environment(), capture_output=True, check=True)
    return str(json.loads(listed.stdout)["messages"][0]["reference"])


def _report(name: str, runs: dict[int, Run]) -> bool:
    begin = runs.pop(_FEW).seconds
    each = {size: max(one.seconds - begin, 1e-6) / size for size, one in runs.items()}
    for size, one in runs.items():
        micros = f"{each[size] * 1e6:,.0f} µs a row"
        print(f"{name:16}{size:>9,} rows{one.seconds:>9.2f} s{micros:>18}{one.peak_mib:>6.0f} MiB")
    fewest, most = min(runs), max(runs)
    ratio, peak = each[most] / each[fewest], runs[most].peak_mib
    print(
        f"{'':16}time a row, {most:,} : {fewest:,} rows: {ratio:.2f}  "
        f"{_verdict(ratio, MOST_RATIO)};  {peak:.0f} MiB  {_verdict(peak, MOST_MIB)}"
    )
    return ratio <= MOST_RATIO and peak <= MOST_MIB


def _verdict(value: float, most: float) -> str:
    return f"<= {most:g}  {'met' if value <= most else 'MISSED'}"
