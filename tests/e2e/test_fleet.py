"""Workers and pages on one PostgreSQL, harmed for a while; `scripts/soak.py --fleet`: longer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from referrals.directory import Directory
from tests.fleet import Fleet
from tests.postgres import Server


@pytest.fixture
def server() -> Iterator[Server]:
    made = Fleet.server_for_it()
    yield made
    made.remove()


def test_whoever_is_harmed_whenever_what_was_promised_arrives(
    tmp_path: Path, directory: Directory, server: Server
) -> None:
    tally = asyncio.run(Fleet(server, tmp_path, directory, seed=5, odds=0.02).run(6.0))

    print(tally)
    assert len(tally.harm) == 6
    assert tally.ended["killed"]
    assert tally.promised >= 50
    assert tally.unanswered + tally.refused
    assert tally.marked, "or this test could not see a duplicate"
