"""The HTTP server under the page: uvicorn, on a socket that we open ourselves."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from referrals.errors import ConfigurationError, Problem
from referrals.settings import Settings, WebSettings
from referrals.supervisor import Supervisor
from referrals.web.app import build_app, build_site
from referrals.web.wire import Wire


async def serve(settings: Settings, started: Callable[[str], None]) -> None:
    """Answer until SIGTERM or Ctrl-C; what is under way is finished first, for ten seconds at most.

    Args:
        started: called with the address, once it can be opened.

    Raises:
        ConfigurationError: of the settings, config/ or the port.
        OutboxUnusable: the outbox folder can't be written.
    """
    site = build_site(settings)
    listening = listen(settings.web.host, settings.web.port)
    config = uvicorn.Config(
        build_app(site),
        log_level=logging.WARNING,
        access_log=False,  # paths hold references; counts are in /metrics
        server_header=False,
        http=Wire,
        ws="none",
        proxy_headers=False,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=15,
        limit_concurrency=500,
    )
    server = _Server(config, lambda: started(address(settings.web, listening)))
    async with server.supervisor.watching(lambda: True):
        await server.serve([listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start
        self.supervisor = Supervisor.of(os.environ)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A stop that was asked for is a success; asked for again, it waits for nobody.

        Uvicorn would end the process by the same signal once all is done.
        """
        self.supervisor.stopping("Finishing what is under way, then stopping.")
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start()
            self.supervisor.ready("Answering.")


def address(web: WebSettings, listening: socket.socket) -> str:
    """Where a browser on this machine finds us."""
    host = f"[{web.host}]" if ":" in web.host else web.host
    return f"http://{host}:{listening.getsockname()[1]}"


def listen(host: str, port: int) -> socket.socket:
    """Raises ConfigurationError: the port is taken, or not ours to take."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, or asyncio would not switch Nagle's waiting off: 40 ms a page.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigurationError(
            [
                Problem(
                    "web.port",
                    f"{host}:{port} can't be listened on: {error.strerror}.",
                    "Choose another with --port, or stop what uses it.",
                    "port",
                )
            ]
        ) from None
    return listening
