"""A spreadsheet before several machines: whichever is asked shows it and goes on with it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from referrals.bootstrap import open_outbox
from referrals.case_files import flatten
from referrals.errors import OutboxUnusable
from referrals.outboxes.postgres import connections
from referrals.samples import sample_case
from referrals.settings import RelaySettings, Security, Settings
from referrals.web import batch_folder
from referrals.web.app import build_site
from referrals.web.batch_folder import BatchFolder
from referrals.web.batch_pages import tidy
from referrals.web.batch_shared import SharedBatch, sweep_shared
from referrals.web.site import Site
from tests.rows import as_csv, rows_of
from tests.web.stores import octets, settings_of
from tests.web.test_batch_pages import (  # noqa: F401  # fixtures
    CANARY,
    WAIT_S,
    Seen,
    Visit,
    drafts_in,
    started,
    with_wrong,
)


@pytest.fixture(autouse=True)
def _no_page_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("referrals.web.batch_pages._WAIT_S", 0.0)


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[tuple[Site, Site]]:
    """Of two machines: one database, and a disk each."""
    relay = RelaySettings(host="127.0.0.1", port=1, security=Security.NONE)
    shared = settings_of("postgres", tmp_path).model_copy(update={"relay": relay})
    own: list[Settings] = [
        shared.model_copy(update={"outbox": tmp_path / name / "outbox"}) for name in "ab"
    ]
    made = build_site(own[0]), build_site(own[1])
    yield made
    for one in made:
        one.close()
    connections.close_idle()


@pytest.fixture
def cells(sites: tuple[Site, Site]) -> dict[str, str]:
    service = sites[0].service
    return dict(flatten(sample_case(service.directory, ["mediation"], service.today())))


def on(site: Site, seen: Seen) -> Seen:
    """The same spreadsheet on that machine."""
    visit = Visit(site)
    return visit.seen(visit.get(seen.path))


def on_disk(site: Site) -> list[str]:
    """What is left on a machine's disk but the lock that jobs take turns by."""
    folder = batch_folder.folders(site.settings.outbox)
    found = [path.name for path in folder.rglob("*")] if folder.exists() else []
    return sorted(name for name in found if name != "turn")


def shared(site: Site, seen: Seen) -> SharedBatch:
    return SharedBatch(site.store.tables, site.settings.outbox, seen.path.rpartition("/")[2])


def test_each_step_may_be_taken_on_another_machine(
    sites: tuple[Site, Site], cells: dict[str, str]
) -> None:
    one, other = sites
    seen = Visit(one).upload(as_csv(with_wrong(cells)))
    there = on(other, seen)
    assert there.heading == seen.heading
    assert "2 rows" in there.text
    assert there.file("errors.csv") == seen.file("errors.csv")
    assert there.file("left-out") == seen.file("left-out")

    assert there.then("leave-out").answer.status_code == 200
    drafted = on(one, seen).then("drafts")
    assert drafted.heading == "3 drafts to download"
    assert len(drafts_in(on(other, seen).file("drafts.zip"))) == 3
    assert on_disk(one) == on_disk(other) == []
    assert CANARY.encode() not in octets(one.store), "what is done with is not kept"


def test_it_is_queued_where_all_look(sites: tuple[Site, Site], cells: dict[str, str]) -> None:
    one, other = sites
    seen = Visit(one).upload(as_csv(rows_of(cells, 3)))
    assert on(other, seen).submit(3).heading == "3 referrals queued"
    assert on(one, seen).heading == "3 referrals queued"
    with open_outbox(one.settings) as outbox:
        assert outbox.counts() == {"queued": 3}
        assert [entry.actor for entry in outbox.audit()] == ["jo"] * 3
    for site in sites:
        assert not list(site.settings.outbox.glob("*.sqlite3*"))


def test_two_machines_at_once_are_one(sites: tuple[Site, Site], cells: dict[str, str]) -> None:
    one, other = sites
    seen = Visit(one).upload(as_csv(rows_of(cells, 2)))
    folders = batch_folder.folders(one.settings.outbox)
    with BatchFolder(folders / "another").turn(lambda: None):
        Visit(one).post(f"{seen.path}/drafts")
        assert shared(other, seen).status() == {"step": "waiting", "running": True}
        assert not shared(other, seen).start({})
        assert not shared(other, seen).remove()
    assert on(other, seen).heading == "2 drafts to download"


def test_a_job_on_another_machine_can_be_stopped_and_deleted(
    sites: tuple[Site, Site],
    cells: dict[str, str],
    started: list[subprocess.Popen[bytes]],  # noqa: F811
) -> None:
    one, other = sites
    folders = batch_folder.folders(one.settings.outbox)
    folders.mkdir(parents=True)
    visit = Visit(one)
    with BatchFolder(folders / "another").turn(lambda: None):
        answer = visit.post("/batch", files={"file": ("cases.csv", as_csv(rows_of(cells, 2)))})
        path = answer.url.path
        assert Visit(other).post(f"{path}/delete").url.path == "/batch"
        assert started[0].wait(WAIT_S) == 1
    assert visit.get(path).status_code == 404
    until = time.monotonic() + WAIT_S
    while on_disk(one):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_what_was_killed_can_be_gone_on_with_elsewhere(
    sites: tuple[Site, Site],
    cells: dict[str, str],
    started: list[subprocess.Popen[bytes]],  # noqa: F811
) -> None:
    one, other = sites
    folders = batch_folder.folders(one.settings.outbox)
    folders.mkdir(parents=True)
    visit = Visit(one)
    with BatchFolder(folders / "another").turn(lambda: None):
        answer = visit.post("/batch", files={"file": ("cases.csv", as_csv(rows_of(cells, 2)))})
        seen = Seen(visit, answer.url.path, answer)
        started[0].send_signal(signal.SIGKILL)
        stopped = on(other, seen)
        assert stopped.heading == "This was stopped before it was done"
    assert stopped.then("again").heading == "2 referrals ready"


def test_whose_lease_has_run_out_changes_nothing_more(
    sites: tuple[Site, Site], cells: dict[str, str]
) -> None:
    """He was paused, or cut off, and another went on in his place."""
    one, other = sites
    seen = Visit(one).upload(as_csv(rows_of(cells, 2)))
    late = SharedBatch(
        one.store.tables, one.settings.outbox, seen.path.rpartition("/")[2], "paused"
    )
    with one.store.writing() as db:
        db.execute("UPDATE batch SET worker = 'paused', lease_until = now() - interval '1 second'")
    before = on(other, seen).then("drafts")
    assert before.heading == "2 drafts to download"

    late.path.mkdir(parents=True)
    changes: list[Callable[[], None]] = [
        lambda: late.tell({"step": "checking", "done": 0}),
        lambda: late.tidy("drafts.zip"),
        lambda: write(late, "drafts.zip"),
    ]
    for change in changes:
        with pytest.raises(OutboxUnusable, match="another process"):
            change()
    assert late.is_to_stop
    assert on(one, seen).file("drafts.zip") == before.file("drafts.zip")


def write(folder: BatchFolder, name: str) -> None:
    with folder.writing(name) as file:
        file.write(b"late")


def test_deleting_and_expiring_leave_nothing(
    sites: tuple[Site, Site], cells: dict[str, str]
) -> None:
    one, other = sites
    seen, kept = (Visit(one).upload(as_csv(rows_of(cells, 1))) for _ in range(2))
    marker = rows_of(cells, 1)[0]["reference"].encode()
    Visit(other).post(f"{seen.path}/delete")
    assert batches(one) == 1

    tidy(other)
    assert batches(one) == 1, "what somebody still has stays"
    one.store.forget("batch", "jo", kept.path.rpartition("/")[2])
    sweep_shared(other.store.tables)
    assert batches(one) == 1, "it may be just being uploaded"
    with one.store.writing() as db:
        db.execute("UPDATE batch SET made_at = made_at - interval '2 hours'")
    tidy(other)
    assert batches(one) == 0
    assert marker not in octets(one.store)


def batches(site: Site) -> int:
    with site.store.reading() as db:
        row = db.execute("SELECT count(*) AS count FROM batch").fetchone()
    return int(row["count"])


def test_a_workplace_that_was_left_behind_is_swept(sites: tuple[Site, Site]) -> None:
    site = sites[0]
    left = batch_folder.workplace(site.settings.outbox, "x", "y")
    left.mkdir(parents=True)
    (left / "upload").write_text(CANARY)
    tidy(site)
    assert left.exists(), "a process may be just beginning there"
    old = (site.now - timedelta(minutes=2)).timestamp()
    os.utime(left, (old, old))
    handle: Any = BatchFolder(left)._lock(left / "lock")
    os.utime(left, (old, old))
    tidy(site)
    assert left.exists(), "somebody is at work"
    os.close(handle)
    tidy(site)
    assert not left.exists()
