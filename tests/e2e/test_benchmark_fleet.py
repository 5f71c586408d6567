"""What `make bench-scale` measures with is sound: real letters, a fair peer, a real disk."""

from __future__ import annotations

import re
import shutil
from email import message_from_bytes
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import fleet
from benchmarks.database import new_jobs, new_outbox
from benchmarks.letters import Letters
from tests.conftest import NOW
from tests.postgres import server


def test_letters_under_many_numbers_are_all_different_and_whole() -> None:
    letters = Letters(kinds=2)
    made = [letters.submission(number, "agency-1") for number in range(5)]
    for field in ("content_key", "case_reference", "message_id", "sha256"):
        assert len({getattr(one, field) for one in made}) == 5
    for one in made:
        read = message_from_bytes(one.outgoing.content)
        assert read["Message-ID"] == one.message_id
        assert read.get_content_type() == "multipart/alternative"
        assert 10_000 < len(one.outgoing.content) < 20_000


def test_a_letter_can_be_cut_to_fit_the_disk() -> None:
    assert all(900 < len(one) <= 1_000 for one in Letters(1_000, kinds=2).contents())


def test_the_peer_has_the_same_hints_to_the_planner() -> None:
    asked = (
        "SELECT proname, proconfig FROM pg_proc WHERE pronamespace = 'procrastinate'::regnamespace"
        " AND proname LIKE 'procrastinate_fetch_job%' ORDER BY proname"
    )
    ours, theirs = new_outbox(server()), new_jobs(server())
    found = []
    for base in (ours, theirs):
        with server().connected(base.name) as db:
            found.append(db.execute(asked.encode()).fetchall())
    assert found[0] == found[1]
    assert "enable_sort=off" in found[0][0][1]


def test_what_is_taken_to_time_a_fetch_is_put_back() -> None:
    base = new_outbox(server())
    with base.outbox() as outbox:
        outbox.queue([Letters(kinds=1).submission(1, "agency-1")], NOW)
    assert base.fetch_ms(times=3) > 0
    assert base.ask("SELECT status::text FROM procrastinate.procrastinate_jobs") == ("todo",)


def test_memory_is_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_file_system", lambda _: "tmpfs")
    with pytest.raises(RuntimeError, match=r"is memory.*--folder"):
        fleet.check_folder(tmp_path, fleet.QUICK, 15_000)


def test_too_small_a_disk_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    with pytest.raises(RuntimeError, match=re.escape("1.0 GB free, and this takes up to")):
        fleet.check_folder(tmp_path, fleet.FULL, 15_000)


def test_what_was_relayed_in_a_time_is_told_by_its_spread() -> None:
    told = fleet.spread([one / 1_000 for one in range(1, 101)]).split()
    assert told == ["51.0", "99.0", "100.0"]
