"""Tells whoever supervises this process how it is: systemd, or another that speaks sd_notify.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Self

_PINGS_IN_TIME = 3
"""So many in each span after which the supervisor takes us for dead: one may come late."""


@dataclass(frozen=True)
class Supervisor:
    """Says nothing where nobody listens. A supervisor that is gone is no reason to stop.

    Args:
        address: of its datagram socket: a path, or `@name` in the abstract name space.
        watchdog_s: after so long without a ping it ends and restarts us; 0 if it never does.
    """

    address: str = ""
    watchdog_s: float = 0.0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """The one that an environment names, if any."""
        address = environment.get("NOTIFY_SOCKET", "")
        for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC", "")
        known = address.startswith(("/", "@"))
        pings = known and for_us and microseconds.isascii() and microseconds.isdigit()
        return cls(address if known else "", int(microseconds) / 1e6 if pings else 0.0)

    def ready(self, status: str) -> None:
        """We do our work from now on. `status` is for people: neither a name nor a reference."""
        self._say("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        self._say(f"STATUS={status}")

    def stopping(self, status: str) -> None:
        self._say("STOPPING=1", f"STATUS={status}")

    @asynccontextmanager
    async def watching(self, is_well: Callable[[], bool]) -> AsyncIterator[None]:
        """Ping from the loop that this is used in, for as long as it turns and `is_well`."""
        if not self.watchdog_s:
            yield
            return
        pinging = asyncio.create_task(self._ping(is_well))
        try:
            yield
        finally:
            pinging.cancel()
            with suppress(asyncio.CancelledError):
                await pinging

    async def _ping(self, is_well: Callable[[], bool]) -> None:
        while True:
            if is_well():
                self._say("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / _PINGS_IN_TIME)

    def _say(self, *lines: str) -> None:
        if not self.address:
            return
        to = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link,
        ):
            # A supervisor that is stopped must not stop us, too.
            link.settimeout(0.5)
            link.sendto("\n".join(lines).encode(), to)
