"""Relays for tests to talk to: one that follows a script, and certificates for it and our Sink."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import trustme

from referrals.sink import CertificatePair

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T], *, limit_s: float = 10.0) -> T:
    """`asyncio.run` that fails on a hang, on tasks left over and on what asyncio only logs."""
    complaints: list[str] = []

    def complain(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # A relay whose TLS a client refuses; asyncio says so in debug mode only.
        if context["message"] != "Error on transport creation for incoming connection":
            complaints.append(repr(context))

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(complain)
        result = await asyncio.wait_for(work, limit_s)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, f"left running: {others}"
        return result

    try:
        return asyncio.run(watched())
    finally:
        gc.collect(1)
        assert not complaints, complaints


@dataclass(frozen=True)
class Say:
    """Answer with these bytes, then perhaps close."""

    octets: bytes
    close: bool = False


@dataclass(frozen=True)
class Hang:
    """Answer nothing, and wait for the other side to give up."""


@dataclass(frozen=True)
class Drop:
    """Close without an answer: politely (FIN), or with a reset."""

    reset: bool = False


Step = Say | Hang | Drop

ORDERLY: dict[str, Step] = {
    "greeting": Say(b"220 relay.test ESMTP ready\r\n"),
    "starttls": Say(b"220 2.0.0 go ahead\r\n"),
    "auth": Say(b"235 2.7.0 welcome\r\n"),
    "auth-step": Say(b"235 2.7.0 welcome\r\n"),
    "helo": Say(b"500 5.5.2 what?\r\n"),
    "mail": Say(b"250 2.1.0 sender ok\r\n"),
    "rcpt": Say(b"250 2.1.5 recipient ok\r\n"),
    "data": Say(b"354 go on\r\n"),
    "content": Say(b"250 2.0.0 taken as X1\r\n"),
    "rset": Say(b"250 2.0.0 ok\r\n"),
    "noop": Say(b"250 2.0.0 ok\r\n"),
    "quit": Say(b"221 2.0.0 bye\r\n", close=True),
}


@dataclass(frozen=True)
class Heard:
    """A command that the relay got, and whether over TLS."""

    line: bytes
    secured: bool


class _Closed(Exception):
    pass


@dataclass
class ScriptedRelay:
    """A raw SMTP server on 127.0.0.1 that answers each step as told.

    Steps: greeting, ehlo, helo, ehlo-secured (after STARTTLS), starttls, handshake (in place of
    TLS), auth, auth-step (each further line of AUTH), mail, rcpt, data, mid-content (once 64 octets
    are there), content (after the final dot), rset, noop, quit.
    """

    script: Mapping[str, Step] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    implicit: bool = False
    extensions: tuple[bytes, ...] = (b"SIZE 100000000", b"8BITMIME", b"AUTH PLAIN LOGIN")
    host: str = "127.0.0.1"
    heard: list[Heard] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    port: int = 0
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0

    def __post_init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def verbs(self) -> list[str]:
        return [heard.line.split(b" ")[0].decode("latin-1").upper() for heard in self.heard]

    async def __aenter__(self) -> Self:
        listening = socket.socket()
        if "mid-content" in self.script:
            # Small, so that a relay that reads nothing soon stops the writer too.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        listening.bind((self.host, 0))
        self._server = await asyncio.start_server(
            self._serve, sock=listening, ssl=self.tls if self.implicit else None
        )
        self.port = listening.getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await self._server.wait_closed()

    async def all_closed(self) -> None:
        """Wait until every client has gone."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        gone = (_Closed, OSError, EOFError, asyncio.CancelledError)
        with contextlib.suppress(*gone):
            await self._converse(reader, writer)
        writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        secured = self.implicit
        await self._answer("greeting", reader, writer)
        while line := await reader.readline():
            command = line.rstrip(b"\r\n")
            self.heard.append(Heard(command, secured))
            verb = command.split(b" ")[0].decode("latin-1").lower()
            if verb == "ehlo":
                step = "ehlo-secured" if secured and not self.implicit else "ehlo"
                await self._answer(step, reader, writer, self._offer(secured))
            elif verb == "starttls":
                await self._answer("starttls", reader, writer)
                if "handshake" in self.script:
                    await self._answer("handshake", reader, writer)
                    await self._answer("silence", reader, writer, Hang())
                assert self.tls is not None
                await writer.start_tls(self.tls)
                secured = True
            elif verb == "auth":
                await self._authenticate(reader, writer, secured)
            elif verb == "data":
                await self._answer("data", reader, writer)
                told = self.script.get("data", ORDERLY["data"])
                if isinstance(told, Say) and told.octets.startswith(b"354"):
                    await self._take_content(reader, writer)
            elif verb in ORDERLY:
                await self._answer(verb, reader, writer)
            else:
                writer.write(b"500 5.5.2 what?\r\n")

    def _offer(self, secured: bool) -> Say:
        extensions = list(self.extensions)
        if self.tls and not secured:
            extensions.append(b"STARTTLS")
        lines = [b"relay.test at your service", *extensions]
        last = len(lines) - 1
        return Say(
            b"".join(
                b"250%b%b\r\n" % (b" " if i == last else b"-", line) for i, line in enumerate(lines)
            )
        )

    async def _authenticate(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secured: bool
    ) -> None:
        step = self.script.get("auth", ORDERLY["auth"])
        await self._answer("auth", reader, writer)
        while isinstance(step, Say) and step.octets.startswith(b"334"):
            line = await reader.readline()
            self.heard.append(Heard(line.rstrip(b"\r\n"), secured))
            step = self.script.get("auth-step", ORDERLY["auth-step"])
            await self._answer("auth-step", reader, writer)

    async def _take_content(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        stuffed = b""
        if "mid-content" in self.script:
            stuffed = await reader.readexactly(64)
            await self._answer("mid-content", reader, writer)
        lines = [stuffed]
        while (line := await reader.readline()) != b".\r\n":
            if not line:
                raise _Closed
            lines.append(line)
        self.contents.append(_unstuffed(b"".join(lines)))
        await self._answer("content", reader, writer)

    async def _answer(
        self,
        name: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        usual: Step | None = None,
    ) -> None:
        step = self.script.get(name) or usual or ORDERLY[name]
        if name in self.script:
            self.reached.set()
        if isinstance(step, Hang):
            if name == "mid-content":
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                await asyncio.Event().wait()
            while await reader.read(65536):
                pass
            raise _Closed
        if isinstance(step, Drop):
            if step.reset:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            raise _Closed
        writer.write(step.octets)
        await writer.drain()
        if step.close:
            writer.close()
            raise _Closed


def _unstuffed(content: bytes) -> bytes:
    lines = content.split(b"\r\n")
    return b"\r\n".join(line.removeprefix(b".") for line in lines)


@dataclass(frozen=True)
class Certificates:
    """An authority of our own, and what it issued or did not."""

    ca_file: Path
    good: CertificatePair
    expired: CertificatePair
    not_yet: CertificatePair
    other_host: CertificatePair
    stranger: CertificatePair
    self_signed: CertificatePair

    @classmethod
    def make(cls, folder: Path) -> Certificates:
        authority = trustme.CA()
        ca_file = folder / "authority.pem"
        authority.cert_pem.write_to_path(ca_file)
        now = datetime.now(UTC)
        day = timedelta(days=1)

        def pair(name: str, issued: trustme.LeafCert) -> CertificatePair:
            written = CertificatePair(folder / f"{name}.pem", folder / f"{name}.key")
            for i, part in enumerate(issued.cert_chain_pems):
                part.write_to_path(written.certificate, append=i > 0)
            issued.private_key_pem.write_to_path(written.key)
            return written

        issue = authority.issue_cert
        here = "127.0.0.1"
        return cls(
            ca_file,
            good=pair("good", issue(here, "localhost")),
            expired=pair("expired", issue(here, not_before=now - 2 * day, not_after=now - day)),
            not_yet=pair("not-yet", issue(here, not_before=now + day, not_after=now + 2 * day)),
            other_host=pair("other-host", issue("elsewhere.test")),
            stranger=pair("stranger", trustme.CA().issue_cert(here)),
            self_signed=_self_signed(folder),
        )


def _self_signed(folder: Path) -> CertificatePair:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "relay")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pair = CertificatePair(folder / "self-signed.pem", folder / "self-signed.key")
    pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pair.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return pair


def serving(pair: CertificatePair, *, maximum: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if maximum is not None:
        context.maximum_version = maximum
    context.load_cert_chain(pair.certificate, pair.key)
    return context
