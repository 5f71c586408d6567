"""A relay that goes nowhere: takes messages on this machine and keeps them, to try things out.

It needs aiosmtpd (`referrals[sink]`), imported only when a sink starts. Not
`aiosmtpd.controller.Controller`, which runs a thread and, on port 0, connects to itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from referrals.errors import ConfigurationError, Problem
from referrals.settings import is_loopback

log = logging.getLogger(__name__)
_AIOSMTPD_LOG = logging.getLogger("mail.log")

Tls = Literal["none", "starttls", "tls"]


class Secret(Protocol):
    """What pydantic's SecretStr is to us."""

    def get_secret_value(self) -> str: ...


@dataclass(frozen=True)
class CertificatePair:
    """PEM files: the certificate with its chain, and its key."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Arrived:
    """A message as it came: `content` is exact, with nothing added."""

    sender: str = field(repr=False)
    recipients: tuple[str, ...]
    content: bytes = field(repr=False)
    arrived_at: datetime
    secured: bool
    logged_in: bool
    kept_as: Path | None = None


class Sink:
    """Listens while its `async with` block runs; `port` is then the real one.

    Args:
        host: loopback only.
        port: 0 lets the system choose.
        keep: folder for one .eml file a message; made, private, if it is not there.
        certificate: for `tls="starttls"` and `"tls"`.
        login: when given, the only user name and password, demanded before MAIL.
        on_message: called after a message is kept; what it raises is logged, not answered.

    Raises:
        ConfigurationError: from the constructor or on entering.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        keep: Path | None = None,
        tls: Tls = "none",
        certificate: CertificatePair | None = None,
        login: tuple[str, Secret] | None = None,
        on_message: Callable[[Arrived], None] | None = None,
    ) -> None:
        if not is_loopback(host):
            raise _wrong(
                "sink.host",
                "a sink listens on this machine only.",
                "Use 127.0.0.1, ::1 or localhost.",
            )
        if tls not in ("none", "starttls", "tls"):
            raise _wrong("sink.tls", "is not known.", "Use 'none', 'starttls' or 'tls'.")
        if tls != "none" and certificate is None:
            raise _wrong(
                "sink.certificate", "TLS needs one.", "Give the paths of a certificate and its key."
            )
        # Given a name, asyncio would listen on a different port for each of its addresses.
        self.host = "127.0.0.1" if host == "localhost" else host
        self.port = port
        self.arrived: list[Arrived] = []
        self._keep = keep
        self._tls: Tls = tls
        self._certificate = certificate
        self._login = login
        self._on_message = on_message
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._silence = _Silence()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        if self._keep is not None:
            _make_private(self._keep)
        new_link = _link_factory(self)
        context = _server_context(self._certificate) if self._certificate else None
        starttls = context if self._tls == "starttls" else None
        _AIOSMTPD_LOG.addFilter(self._silence)
        try:
            self._server = await loop.create_server(
                lambda: new_link(starttls),
                self.host,
                self.port,
                ssl=context if self._tls == "tls" else None,
            )
        except OSError as error:
            _AIOSMTPD_LOG.removeFilter(self._silence)
            reason = os.strerror(error.errno) if error.errno else "the system says no"
            raise _wrong(
                "sink.port", f"cannot listen on {self.host}:{self.port}: {reason}.", "Use another."
            ) from None
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()
            while self._links:
                for link in tuple(self._links):
                    link.abort()
                await asyncio.sleep(0)
            await asyncio.sleep(0)  # the loop closes a link's socket a turn after telling it
            await self._server.wait_closed()
            self._server = None
        _AIOSMTPD_LOG.removeFilter(self._silence)

    def _right(self, username: bytes, password: bytes) -> bool:
        if self._login is None:
            return False
        name, secret = self._login
        right_name = hmac.compare_digest(username, name.encode())
        right_password = hmac.compare_digest(password, secret.get_secret_value().encode())
        return right_name and right_password

    def _take(self, envelope: Any, session: Any, *, secured: bool) -> None:
        content: bytes = envelope.original_content
        now = datetime.now(UTC)
        kept_as = None
        if self._keep is not None:
            digest = hashlib.sha256(content).hexdigest()[:16]
            name = f"{now:%Y%m%dT%H%M%S.%fZ}-{len(self.arrived) + 1:06d}-{digest}.eml"
            kept_as = self._keep / name
            _write_private(kept_as, content)
        message = Arrived(
            sender=envelope.mail_from,
            recipients=tuple(envelope.rcpt_tos),
            content=content,
            arrived_at=now,
            secured=secured,
            logged_in=bool(session.authenticated),
            kept_as=kept_as,
        )
        self.arrived.append(message)
        if self._on_message is not None:
            try:
                self._on_message(message)
            except Exception as error:
                # Not the error's text: it may hold what arrived.
                log.warning(
                    "The sink kept a message but could not show it: %s", type(error).__name__
                )


class _Link(Protocol):
    def abort(self) -> None: ...


class _Silence(logging.Filter):
    """Keeps aiosmtpd's log shut: at DEBUG it writes every line of every message."""

    def filter(self, _record: logging.LogRecord) -> bool:
        return False


def _wrong(where: str, what: str, remedy: str) -> ConfigurationError:
    return ConfigurationError([Problem(where, what, remedy)])


def _link_factory(sink: Sink) -> Callable[[ssl.SSLContext | None], Any]:
    try:
        from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword
    except ImportError:
        raise _wrong(
            "sink", "needs aiosmtpd, which is not installed.", "Run: pip install 'referrals[sink]'"
        ) from None

    class Handler:
        """Hooks that aiosmtpd finds by name."""

        async def handle_EHLO(
            self, _server: Any, session: Any, _envelope: Any, hostname: str, replies: list[str]
        ) -> list[str]:
            session.host_name = hostname
            if sink._login is None:
                return [reply for reply in replies if not reply.startswith("250-AUTH")]
            return replies

        async def handle_MAIL(
            self, _server: Any, session: Any, envelope: Any, address: str, options: list[str]
        ) -> str:
            if sink._tls == "starttls" and session.ssl is None:
                return "530 5.7.0 Must issue a STARTTLS command first"
            if sink._login is not None and not session.authenticated:
                return "530 5.7.0 Authentication required"
            envelope.mail_from = address
            envelope.mail_options.extend(options)
            return "250 2.1.0 OK"

        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            secured = server.transport.get_extra_info("ssl_object") is not None
            try:
                sink._take(envelope, session, secured=secured)
            except OSError as error:
                log.warning("The sink could not keep a message: %s", error.strerror)
                return "451 4.3.0 Could not be kept"
            return "250 2.0.0 Kept; it goes no further"

    def authenticate(
        _server: Any, _session: Any, _envelope: Any, _mechanism: str, login: LoginPassword
    ) -> AuthResult:
        return AuthResult(success=sink._right(login.login, login.password), handled=False)

    class Link(SMTP):  # type: ignore[misc, unused-ignore]  # Any, as far as mypy can see
        """Counts itself among the sink's links while it is up."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            sink._links.add(self)

        def connection_lost(self, error: Exception | None) -> None:
            super().connection_lost(error)
            sink._links.discard(self)

        def abort(self) -> None:
            if isinstance(self.transport, asyncio.WriteTransport):
                # In Python 3.11.2, Debian 12's, a TLS link that is closing can't be aborted.
                with suppress(AttributeError):
                    self.transport.abort()

    def new_link(starttls: ssl.SSLContext | None) -> Link:
        return Link(
            Handler(),
            hostname="localhost",
            ident="referrals sink",
            enable_SMTPUTF8=True,
            tls_context=starttls,
            # aiosmtpd counts only STARTTLS as TLS; with "tls" or "none" AUTH comes at once.
            auth_require_tls=starttls is not None,
            authenticator=authenticate,
            loop=asyncio.get_running_loop(),
        )

    return new_link


def _server_context(pair: CertificatePair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(pair.certificate, pair.key)
    except (OSError, ValueError):
        raise _wrong(
            "sink.certificate",
            "the certificate or its key cannot be read, or they don't belong together.",
            "Give the paths of two PEM files.",
        ) from None
    return context


def _make_private(folder: Path) -> None:
    """Make the folder 0700; one that is there and open to others is refused, not changed."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode
    except OSError as error:
        raise _wrong(
            "sink.keep", f"the folder cannot be made: {error.strerror}.", "Name another."
        ) from None
    if mode & 0o077:
        raise _wrong(
            "sink.keep", "others can read that folder.", "Name a new one, or chmod 700 it."
        )


def _write_private(path: Path, content: bytes) -> None:
    """Write a 0600 file that is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
