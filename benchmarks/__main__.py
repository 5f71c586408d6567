"""All the speed that we promise, as ratios from one run: `make bench`.

First the start of a command, beside Python's; then whole jobs, beside other programs that are made
for them and beside what the machine can do at most; then whether many rows cost more each than few;
then the page, beside a page that does nothing.
docs/benchmarks.md says what is measured and how fair it is. Exits 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import cold_start, page, scale
from benchmarks.measure import Contest, Plan, Program, Target
from benchmarks.programs import PEERS, SESSIONS, Workshop, check_same_letter

QUICK = Plan(rounds=1, seconds=1.5, trial=(20, 120))
USUAL = Plan(rounds=3, seconds=4.0, trial=(50, 350))
BUSY = 0.5
FULL = Plan(rounds=3, seconds=None, trial=(50, 350))


def contests(shop: Workshop) -> list[Contest]:
    return [
        Contest(
            "Drafting: each row parsed, checked, rendered, composed and kept",
            [
                Program("referrals, 1 core", lambda *job: shop.draft(*job, one_core=True), "1"),
                Program("mailmerge, 1 core", lambda *job: shop.dry_run(*job, one_core=True), "1"),
                Program("referrals", shop.draft),
                Program("mailmerge", shop.dry_run),
                Program("files alone", shop.write_limit),
            ],
            [
                Target("referrals, 1 core", "mailmerge, 1 core", 5),
                Target("referrals", "mailmerge", 10),
                Target("referrals", "files alone"),
            ],
        ),
        Contest(
            "Sending: the same, and submitted to smtp-sink",
            [Program("referrals", shop.send), *map(shop.sending, PEERS)],
            [
                Target("referrals", "mailmerge", 5),
                Target("referrals", "django-post-office", 5),
                Target("referrals", "fastapi-mail", 3),
                Target("referrals", "redmail"),
            ],
        ),
        Contest(
            f"Delivering alone: what waits, submitted over {SESSIONS} connections",
            [
                Program("referrals deliver", shop.deliver_copy),
                Program("aiosmtplib", shop.bare),
                Program("smtp-source", shop.smtp_source, most=40_000),
            ],
            [
                Target("referrals deliver", "aiosmtplib", 0.8),
                Target("referrals deliver", "smtp-source", 0.25, moonshot=True),
            ],
        ),
    ]


def compete(shop: Workshop, plan: Plan) -> bool:
    """Print a table for each contest; whether every target was met."""
    sizes = check_same_letter(shop)
    shown = ", ".join(f"{name} {size / 1000:.1f} KB" for name, size in sizes.items())
    print(f"\nThe same letter in each, as text and HTML: {shown}.")
    print(f"{plan.rounds} rounds in turns, medians; the start of a process counts.")
    met = True
    for contest in contests(shop):
        contest.play(shop.top, plan)
        met &= contest.report()
    return met


def start(rounds: int) -> bool:
    timed = cold_start.measure(rounds)
    print(f"Cold start, {rounds} rounds\n")
    return cold_start.report(timed)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=...", description=(__doc__ or "").partition("\n")[0]
    )
    much = parser.add_mutually_exclusive_group()
    much.add_argument("--quick", action="store_true", help="a minute or so, and less sure")
    much.add_argument("--full", action="store_true", help="10,000 rows a run, and 100,000; long")
    parser.add_argument("--only", choices=["start", "jobs", "scale", "page"], help="one part of it")
    parser.add_argument("--referrals", type=Path, default=cold_start.REFERRALS, help="our command")
    parser.add_argument("--peers", type=Path, default=cold_start.ROOT / ".venv-bench" / "bin")
    parser.add_argument(
        "--folder", type=Path, default=cold_start.ROOT / "build", help="a real disk"
    )
    return parser.parse_args()


def main() -> int:
    asked = options()
    plan, rounds, sizes = USUAL, 15, [1_000, 10_000]
    if asked.quick:
        plan, rounds, sizes = QUICK, 5, [500, 2_000]
    elif asked.full:
        plan, rounds, sizes = FULL, 21, [1_000, 10_000, 100_000]
    began = time.monotonic()
    load = os.getloadavg()[0]
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {load:.1f} before")
    if load > BUSY:
        print("Something else is at work here: take these figures with care.")
    print()
    asked.folder.mkdir(exist_ok=True)
    met = True
    try:
        if asked.only in (None, "start"):
            met &= start(rounds)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=asked.folder.resolve()) as top:
            Path(top).chmod(0o755)  # smtp-sink as root gives up its rights, and then writes here
            shop = Workshop(Path(top), asked.referrals.resolve(), asked.peers.resolve())
            if asked.only in (None, "jobs"):
                met &= compete(shop, plan)
            if asked.only in (None, "scale"):
                met &= scale.measure(shop, sizes)
            if asked.only in (None, "page"):
                met &= page.measure(shop, 2 if asked.quick else 5)
    except (RuntimeError, OSError) as failure:
        print(failure, file=sys.stderr)
        return 2
    print(f"\n{time.monotonic() - began:.0f} s in all. {'' if met else 'A target was missed.'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
