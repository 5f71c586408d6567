"""A link to a relay, once it is ready for mail: bytes out, replies in, nothing else.

aiosmtplib connects, secures the link and logs in. Its own reading of replies takes one command at
a time and drops what comes between two; this takes commands in groups (RFC 2920), and a reply that
nobody asked for is seen.
"""

from __future__ import annotations

import asyncio
import re
from typing import Self

from aiosmtplib import SMTPResponse, SMTPResponseException, SMTPServerDisconnected, SMTPTimeoutError
from aiosmtplib.protocol import SMTPProtocol

# RFC 5321 §4.5.3.1.5 allows 512 octets a line. To give up on the answer to a message because of its
# length would leave in doubt what is clear, so only a relay that never ends one is cut short.
_LONGEST_REPLY = 256 * 1024

# RFC 5321 §4.2; some relays end a line with LF alone, or send no text and no space before it.
_LINE = re.compile(rb"([1-5][0-9]{2})(?:([ \t-])([^\n]*))?\r?\n")


class Link(asyncio.Protocol):
    """Reads and writes; who waits for what, and what a reply means, is the caller's business."""

    def __init__(self, transport: asyncio.WriteTransport, unread: bytes) -> None:
        self._transport = transport
        self._unread = unread
        self._texts: list[bytes] = []  # of the lines that were read of a reply of several
        self._code = b""  # of the first of them
        self._read_to = 0  # their end
        self._is_lost = False
        self._news: asyncio.Future[None] | None = None  # something came, left or broke
        self._alarm: asyncio.TimerHandle | None = None  # for the end of a wait, maybe a past one's
        self._loop = asyncio.get_running_loop()

    @classmethod
    def taken_over(cls, protocol: SMTPProtocol | None) -> Self:
        """The link that aiosmtplib has opened; it hears no more of it."""
        transport = protocol.transport if protocol is not None else None
        if not isinstance(transport, asyncio.WriteTransport) or transport.is_closing():
            raise SMTPServerDisconnected("Connection lost")
        assert protocol is not None  # noqa: S101 - for mypy
        link = cls(transport, bytes(protocol._buffer))
        transport.set_write_buffer_limits(high=0)  # so that `unsent` is all that waits in here
        transport.set_protocol(link)
        return link

    # What asyncio calls

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if len(self._unread) > 2 * _LONGEST_REPLY:
            self._transport.abort()
        self._tell()

    def eof_received(self) -> None:
        self._is_lost = True
        self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._tell()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def resume_writing(self) -> None:
        self._tell()

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    # What a session calls

    @property
    def is_up(self) -> bool:
        return not self._is_lost and not self._transport.is_closing()

    @property
    def has_news(self) -> bool:
        """Whether the relay has said something that nobody has read."""
        return bool(self._unread)

    @property
    def unsent(self) -> int:
        """Octets that the kernel has not taken yet; over TLS, those that are not yet encrypted."""
        return self._transport.get_write_buffer_size()

    def write(self, octets: bytes) -> None:
        """Give them to the kernel as far as it takes them now.

        Raises:
            SMTPServerDisconnected: not one of them has left.
        """
        if self.is_up:
            self._transport.write(octets)
        if not self.is_up:
            raise SMTPServerDisconnected("Connection lost")

    async def sent(self, limit_s: float) -> None:
        """Wait until all has left, or the relay says something."""
        until = self._loop.time() + limit_s
        while self.unsent and not self._unread:
            await self._wait(until)

    async def reply(self, limit_s: float) -> SMTPResponse:
        """The next reply, whole.

        Raises:
            SMTPServerDisconnected, SMTPTimeoutError
            SMTPResponseException: what came is no reply, or never ends.
        """
        response = self.parsed()
        if response is None:
            until = self._loop.time() + limit_s
            while response is None:
                await self._wait(until)
                response = self.parsed()
        return response

    async def _wait(self, until: float) -> None:
        if not self.is_up:
            raise SMTPServerDisconnected("Connection lost")
        loop = self._loop
        if loop.time() >= until:
            raise SMTPTimeoutError("Timed out")
        # Not `asyncio.timeout`, and not an alarm for each wait: there are two waits or more a
        # message, and hardly ever does one end by the clock.
        if self._alarm is not None and self._alarm.when() > until:
            self._alarm.cancel()
            self._alarm = None
        if self._alarm is None:
            self._alarm = loop.call_at(until, self._ring)
        self._news = loop.create_future()
        try:
            await self._news
        finally:
            self._news = None

    def _ring(self) -> None:
        self._alarm = None
        self._tell()  # whoever waits by now looks at the clock, and waits again

    def parsed(self) -> SMTPResponse | None:
        """Take one reply off what is unread, if it is there to its last line."""
        unread = self._unread
        end = unread.find(b"\n") + 1
        if unread[3:4] == b" " and 0 < end <= _LONGEST_REPLY:  # of one line, as most are
            code = unread[:3]
            if code.isdigit() and b"100" <= code < b"600":
                self._unread = unread[end:]
                text = unread[4:end].strip(b" \t\r\n")
                return SMTPResponse(int(code), text.decode(errors="surrogateescape"))
        return self._parsed_by_line()

    def _parsed_by_line(self) -> SMTPResponse | None:
        unread = self._unread
        while (end := unread.find(b"\n", self._read_to) + 1) > 0:
            line = _LINE.fullmatch(unread, self._read_to, end)
            if end > _LONGEST_REPLY or (line is None and not self._texts):
                raise SMTPResponseException(-1, "Not a reply")
            # Between the first line and the last, some relays leave a line without its code.
            code, mark, text = (
                line.groups(b"") if line else (b"", b"-", unread[self._read_to : end])
            )
            # RFC 5321 §4.2.1: the same code in each line. One that says yes and no says nothing.
            self._code = self._code or code
            if line and code[:1] != self._code[:1]:
                raise SMTPResponseException(-1, "Not one reply")
            self._texts.append(text.strip(b" \t\r\n"))
            self._read_to = end
            if mark != b"-":
                said = b"\n".join(self._texts).decode(errors="surrogateescape")
                self._unread = unread[end:]
                self._texts, self._code, self._read_to = [], b"", 0
                return SMTPResponse(int(code), said)
        if len(unread) > _LONGEST_REPLY:
            raise SMTPResponseException(-1, "It never ends")
        return None
