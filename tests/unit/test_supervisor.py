"""What systemd, or another, is told of us: over a real datagram socket."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from referrals.supervisor import Supervisor


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.bind(str(tmp_path / "notify"))
        link.settimeout(5)
        yield link


def test_it_says_what_the_protocol_says(heard: socket.socket) -> None:
    supervisor = Supervisor.of({"NOTIFY_SOCKET": heard.getsockname()})
    supervisor.ready("Working.")
    supervisor.status("Waiting.")
    supervisor.stopping("Enough.")
    assert [heard.recv(100) for _ in range(3)] == [
        b"READY=1\nSTATUS=Working.",
        b"STATUS=Waiting.",
        b"STOPPING=1\nSTATUS=Enough.",
    ]
    assert supervisor.watchdog_s == 0


def test_a_name_may_be_abstract() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.bind(f"\0referrals-test-{os.getpid()}")
        link.settimeout(5)
        Supervisor.of({"NOTIFY_SOCKET": f"@referrals-test-{os.getpid()}"}).status("Hello.")
        assert link.recv(100) == b"STATUS=Hello."


def test_pings_come_only_while_all_is_well(heard: socket.socket) -> None:
    supervisor = Supervisor(heard.getsockname(), watchdog_s=0.03)
    heard.setblocking(False)

    def pings() -> int:
        count = 0
        while True:
            try:
                assert heard.recv(100) == b"WATCHDOG=1"
            except BlockingIOError:
                return count
            count += 1

    async def run() -> None:
        well = True
        async with supervisor.watching(lambda: well):
            await asyncio.sleep(0.1)
            assert pings() > 1
            well = False
            await asyncio.sleep(0.1)
            assert not pings()
        well = True
        await asyncio.sleep(0.1)
        assert not pings()

    asyncio.run(run())


def test_a_loop_that_is_held_up_does_not_ping(heard: socket.socket) -> None:
    supervisor = Supervisor(heard.getsockname(), watchdog_s=0.03)
    heard.setblocking(False)

    async def run() -> None:
        async with supervisor.watching(lambda: True):
            await asyncio.sleep(0.01)
            while True:
                try:
                    heard.recv(100)
                except BlockingIOError:
                    break
            time.sleep(0.1)  # noqa: ASYNC251 - the very point
            with pytest.raises(BlockingIOError):
                heard.recv(100)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000"}, 3.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "{me}"}, 3.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"}, 0.0),
        ({"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "3000000"}, 0.0),
        ({"WATCHDOG_USEC": "3000000"}, 0.0),
    ],
)
def test_the_watchdog_is_for_whom_it_names(environment: dict[str, str], watchdog_s: float) -> None:
    given = {key: value.format(me=os.getpid()) for key, value in environment.items()}
    assert Supervisor.of(given).watchdog_s == watchdog_s


def test_a_supervisor_that_is_gone_stops_nobody(tmp_path: Path) -> None:
    Supervisor(str(tmp_path / "nobody")).ready("Working.")
    Supervisor().ready("Working.")
