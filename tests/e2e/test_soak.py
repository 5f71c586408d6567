"""Processes killed at random for a while; `scripts/soak.py` does the same for longer."""

from __future__ import annotations

import asyncio
from pathlib import Path

from referrals.directory import Directory
from tests.soak import Soak


def test_whoever_is_killed_whenever_nothing_is_lost(tmp_path: Path, directory: Directory) -> None:
    tally = asyncio.run(Soak(tmp_path, directory, seed=3, odds=0.02).run(8.0))

    print(tally)
    assert tally.kills >= 10
    assert tally.queued >= 100
    assert tally.marked, "or this test could not see a duplicate"
