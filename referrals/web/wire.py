"""uvicorn's HTTP over a connection, with limits that it leaves to a proxy in front.

A connection that sends its headers slowly, sends more of them than any browser does, or stops
reading what it asked for, is closed: else a few hundred of them would take up the whole server.
"""

from __future__ import annotations

import socket
import struct
from asyncio import Transport
from asyncio.events import TimerHandle
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEADERS_WITHIN_S = 15.0
READ_WITHIN_S = 60.0
_MOST_OF_HEADERS = 65_536
_REFUSAL_HEADERS = (
    b"content-type: text/plain; charset=utf-8\r\nx-content-type-options: nosniff\r\n"
    b"cache-control: no-store\r\nconnection: close\r\n"
)


class Wire(HttpToolsProtocol):
    """Give it to uvicorn as `http`, with `ws="none"`."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._heading: TimerHandle | None = None
        self._reading: TimerHandle | None = None
        self._spare = _MOST_OF_HEADERS

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop("_heading")
        self._stop("_reading")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        # What is no body: headers, trailers, what stands around chunks, blank lines between.
        self._spare -= len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._spare < 0:
            self._refuse(431, "The headers are too large.")
        elif self._is_idle and self._heading is None:
            self._await_headers()

    @property
    def _is_idle(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request
        return cycle is None or cycle.response_complete

    def on_headers_complete(self) -> None:
        self._stop("_heading")
        super().on_headers_complete()
        if self.parser.should_upgrade():
            # Nothing is, and the parser takes what follows for another protocol's.
            self.cycle.keep_alive = False

    def _unsupported_upgrade_warning(self) -> None:
        """What strangers ask for is no news."""

    def on_body(self, body: bytes) -> None:
        # Twice: chunks may take up as much room as what they hold.
        self._spare += 2 * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._spare = _MOST_OF_HEADERS
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop("_reading")
        self._reading = self.loop.call_later(READ_WITHIN_S, self._abort)

    def resume_writing(self) -> None:
        self._stop("_reading")
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _await_headers(self) -> None:
        self._stop("_heading")
        self._heading = self.loop.call_later(HEADERS_WITHIN_S, self._too_slow)

    def _too_slow(self) -> None:
        self._heading = None
        if self._is_idle:
            self._close()

    def _refuse(self, status: int, text: str) -> None:
        # An answer that is under way must not get another one in its middle.
        if self._is_idle:
            phrase = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}[status]
            body = f"{text}\n".encode("ascii")
            length = str(len(body)).encode("ascii")
            self.transport.write(
                b"HTTP/1.1 %d %b\r\n%bcontent-length: %b\r\n\r\n%b"
                % (status, phrase, _REFUSAL_HEADERS, length, body)
            )
        self._close()

    def _close(self) -> None:
        """Once what was written is read; but not later than that."""
        if self.transport.is_closing():
            return
        self.transport.close()
        self._stop("_reading")
        self._reading = self.loop.call_later(READ_WITHIN_S, self._abort)

    def _abort(self) -> None:
        # With a reset: else the kernel would keep what nobody reads, and wait for them in turn.
        link = self.transport.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _stop(self, timer: str) -> None:
        running: TimerHandle | None = getattr(self, timer)
        if running is not None:
            running.cancel()
            setattr(self, timer, None)
