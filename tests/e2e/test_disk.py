"""The command on a disk that is full or read-only, an outbox that is locked, an output that ends.

Whatever is asked for while the disk says no is either done or said not to be; with room again the
same commands go on, nothing is lost, and nothing is doubled unawares.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from referrals.case_files import flatten
from referrals.directory import Directory
from referrals.errors import OutboxUnusable
from referrals.outboxes.sqlite.outbox import SqliteOutbox
from referrals.samples import sample_case
from referrals.sink import Sink
from tests.account import Wanted, check
from tests.conftest import TODAY
from tests.disks import mount_small, unmount
from tests.e2e.conftest import REFERRALS, Beside, Command, RelayEnv
from tests.e2e.test_batch import rows_of, write
from tests.office import Office
from tests.queued import submissions
from tests.smtp_sink import SmtpSink

COUNT = 20
SEND = ("batch", "cases.csv", "--send", "--accept-unverified")
NO_ROOM = "Free some room"


class SmallDisk:
    """A file system of its own, in memory, that can be filled, emptied and made read-only."""

    def __init__(self, folder: Path, size: str) -> None:
        self.folder = folder
        self._filler = folder / "filler"
        self._size = size

    def mount(self) -> None:
        mount_small(self.folder, f"size={self._size},mode=700")

    def unmount(self) -> None:
        unmount(self.folder)

    def fill(self, but: int = 0) -> None:
        """Leave room for so many bytes."""
        self.empty()
        free = os.statvfs(self.folder)
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - but))

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)

    def be(self, how: str) -> None:
        """`ro` or `rw`."""
        subprocess.run(
            ["mount", "-o", f"remount,{how}", self.folder], check=True, capture_output=True
        )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "small", "4m")
    disk.mount()
    try:
        yield disk
    finally:
        disk.unmount()


@pytest.fixture
def batch(
    directory: Directory, home: Path, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A spreadsheet; the outbox is to lie on the small disk."""
    monkeypatch.setenv("REFERRALS_OUTBOX", str(disk.folder / "outbox"))
    cells = dict(flatten(sample_case(directory, ["mediation"], TODAY)))
    write(rows_of(cells, COUNT))
    return disk.folder / "outbox"


def account(folder: Path, arrived: list[bytes], doubts: int = 0) -> Counter[str]:
    with SqliteOutbox.open(folder / "outbox.sqlite3", "test") as outbox:
        held = outbox.held()
        marked = [one for one in held if one.maybe_doubled]
        assert len(marked) <= doubts
        unsure = {outbox.content(one.id) for one in marked}
        return check(
            outbox,
            [Wanted(one.reference, outbox.content(one.id) or b"") for one in held],
            [one for one in arrived if one not in unsure],
            [one for one in arrived if one in unsure],
        )


# No room


@pytest.mark.parametrize("room", [0, 40_000, 300_000])
def test_a_disk_that_is_full_when_a_batch_is_queued(
    room: int, batch: Path, disk: SmallDisk, referrals: Command, relay_env: RelayEnv
) -> None:
    disk.fill(but=room)
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        done = referrals(*SEND)
        assert done.code == 6
        assert NO_ROOM in done.err
        assert "Traceback" not in done.err
        disk.empty()
        assert referrals(*SEND).code == 0
        assert referrals(*SEND).code == 0
    arrived = [one.content for one in relay.arrived]
    assert account(batch, arrived) == {"relayed": COUNT}


def test_a_disk_that_is_full_when_the_queue_is_worked_off(
    batch: Path, disk: SmallDisk, referrals: Command, relay_env: RelayEnv
) -> None:
    with Beside(Sink()) as away:
        port = away.port
    relay_env(port)
    assert referrals(*SEND).code == 8
    disk.fill()
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        for _ in range(2):
            done = referrals("deliver")
            assert done.code == 6
            assert NO_ROOM in done.err
        assert relay.arrived == [], "nothing is tried that can't be accounted for"
        disk.empty()
        assert referrals("deliver").code == 0
    assert account(batch, [one.content for one in relay.arrived]) == {"relayed": COUNT}


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("room", [0, 8_192, 65_536])
def test_a_disk_that_fills_in_the_midst_of_a_run(
    lanes: int, room: int, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is in vain here to try again for long; elsewhere a test shows that it is not.
    monkeypatch.setattr("referrals.worker._RECORD_AGAIN_S", (0.05,), raising=False)
    place = disk.folder / "outbox" / "outbox.sqlite3"
    with SqliteOutbox.open(place, "tester") as outbox, SmtpSink() as relay:
        office = Office(outbox)
        office.queue(submissions(60))
        filled: list[bool] = []

        def told(*_: object) -> None:
            if not filled and outbox.counts().get("relayed", 0) >= 10:
                filled.append(True)
                disk.fill(but=room)

        with pytest.raises(OutboxUnusable, match=NO_ROOM) as caught:
            office.deliver(relay, lanes=lanes, told=told)
        arrived = relay.arrived
        recorded = outbox.counts().get("relayed", 0)
        assert filled
        assert len(arrived) < 60, "it stopped"
        # What was given and can't be recorded is named.
        unrecorded = len(arrived) - recorded
        assert 0 <= unrecorded <= lanes
        assert ("may arrive twice" in str(caught.value)) == bool(unrecorded)

        disk.empty()
    # This process lives on, so the next one is another: as when the command is run again.
    with SqliteOutbox.open(place, "next") as outbox, SmtpSink() as second:
        office.outbox = outbox
        office.now += timedelta(days=1)
        office.deliver(second, lanes=lanes)
        assert office.check_in_part([*arrived, *second.arrived], lanes) == {"relayed": 60}


@pytest.mark.parametrize("room", [0, 30_000, 60_000])
def test_a_disk_that_is_full_when_drafts_are_saved(
    room: int, batch: Path, disk: SmallDisk, referrals: Command
) -> None:
    out = disk.folder / "drafts"
    disk.fill(but=room)
    done = referrals("batch", "cases.csv", "--draft", "--out", str(out))
    assert done.code == 6
    assert "Traceback" not in done.err
    assert NO_ROOM in done.err
    whole = {path.name: path.read_bytes() for path in out.glob("*")} if out.exists() else {}
    assert all(name.endswith(".eml") for name in whole), "nothing half-written is left behind"
    assert all(content.rstrip().endswith(b"--") for content in whole.values())

    disk.empty()
    done = referrals("batch", "cases.csv", "--draft", "--out", str(out))
    assert done.code == 0
    assert len(list(out.iterdir())) == COUNT
    assert all((out / name).read_bytes() == content for name, content in whole.items())


# No writing


def test_a_read_only_disk_is_said_so_by_every_command(
    batch: Path, disk: SmallDisk, referrals: Command, relay_env: RelayEnv
) -> None:
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        assert referrals(*SEND).code == 0
        disk.be("ro")
        write_again = Path("cases.csv").read_text().replace("CASE-", "OTHER-")
        Path("cases.csv").write_text(write_again)
        for argv in (
            SEND,
            ("deliver",),
            ("outbox", "purge"),
            ("batch", "cases.csv", "--draft", "--out", str(disk.folder / "drafts")),
        ):
            done = referrals(*argv)
            assert done.code == 6, (argv, done.said)
            assert "Read-only file system" in done.err
        disk.be("rw")
        assert referrals(*SEND).code == 0
    assert account(batch, [one.content for one in relay.arrived]) == {"relayed": 2 * COUNT}


# Locked


def test_an_outbox_that_is_locked_for_a_while_is_waited_for(
    batch: Path, referrals: Command, relay_env: RelayEnv
) -> None:
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        assert referrals("outbox", "list").code == 0
        other = sqlite3.connect(
            batch / "outbox.sqlite3", isolation_level=None, check_same_thread=False
        )
        try:
            other.execute("BEGIN EXCLUSIVE")
            waking = threading.Timer(1.0, lambda: other.execute("ROLLBACK"))
            waking.start()
            began = time.monotonic()
            done = referrals(*SEND)
            assert time.monotonic() - began >= 0.9
            waking.join()
        finally:
            other.close()
    assert done.code == 0, done.said
    assert account(batch, [one.content for one in relay.arrived]) == {"relayed": COUNT}


# An output that ends


@pytest.mark.parametrize(("output", "argv"), [("/dev/full", SEND), ("a closed pipe", ("deliver",))])
def test_an_output_that_takes_no_more_costs_no_account(
    output: str, argv: tuple[str, ...], batch: Path, referrals: Command, relay_env: RelayEnv
) -> None:
    """`referrals deliver | head -1`, say: what was relayed is known to be, and nothing is stuck."""
    relay_env(1)
    assert argv == SEND or referrals(*SEND).code == 8
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        if output == "/dev/full":
            out = os.open(output, os.O_WRONLY)
        else:
            reading, out = os.pipe()
            os.close(reading)
        try:
            done = subprocess.run(
                [*REFERRALS, *argv], stdout=out, stderr=subprocess.PIPE, timeout=60, check=False
            )
        finally:
            os.close(out)
        assert b"Traceback" not in done.stderr
        assert b"fault of ours" not in done.stderr
        assert referrals(*SEND).code == 0
    assert account(batch, [one.content for one in relay.arrived]) == {"relayed": COUNT}
