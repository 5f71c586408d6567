"""Message submission (RFC 6409) to the operator's relay: exact bytes, verified TLS, our errors.

aiosmtplib connects, secures the link and logs in. From there on `smtp_link` has it, and here are
the commands: aiosmtplib's `data` rewrites line endings, and does not tell a link lost before the
end of the content (the relay holds nothing) from one lost after it (nobody knows, RFC 1047).

Errors are raised outside the `except` that met the fault, so that they carry no `__context__`:
what a library or a relay said may repeat the login or an address.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Concatenate, ParamSpec, TypeVar

import aiosmtplib
from aiosmtplib import (
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPException,
    SMTPResponse,
    SMTPResponseException,
    SMTPServerDisconnected,
    SMTPTimeoutError,
)

from referrals.delivery import DeliveryStatus, Outgoing, Receipt, Reply
from referrals.errors import (
    ConfigurationError,
    DeliveryError,
    DeliveryUncertain,
    MessageRefused,
    PermanentDeliveryError,
    Problem,
    ReferralsError,
    RelayRefused,
    TransientDeliveryError,
)
from referrals.settings import RelaySettings, Security, is_loopback
from referrals.transports.smtp_link import Link

LONGEST_FINAL_WAIT_S = 600.0  # RFC 5321 §4.5.3.2.6
_QUIT_WAIT_S = 5.0
_CLEAR_TEXT_WAIT_S = 2.0
_CLOSING = 421
_OUT_OF_ORDER = 503
_VERB_UNKNOWN = (500, 502)
_BLOCK = 64 * 1024
_LONGEST_WORDS = 400

_BEFORE_MESSAGE = frozenset({"connect", "greeting", "tls", "login"})
# RFC 4954 §6: a login is wanted, too weak or wrong, whichever command it answers.
_LOGIN_CODES = frozenset({530, 534, 535, 538})
_PASSWORD_TRANSITION_NEEDED = 432
_MECHANISM_UNKNOWN = 504

# RFC 1870, RFC 2920, RFC 6152, RFC 6531
_OF_USE = ("size", "pipelining", "8bitmime", "smtputf8")

_FAULTS = (OSError, SMTPException, ValueError, RuntimeError, ReferralsError)

_DRAFT_HEADER = re.compile(rb"^(X-Unsent|(?:Resent-)?Bcc)[ \t]*:", re.IGNORECASE | re.MULTILINE)
_LONGEST_LINE = 998 + len(b"\r\n")
# Each begins with the octet that is looked for, which `re` leaps to: these read all of a message.
_BARE_CR = re.compile(rb"\r(?!\n)")
_BARE_LF = re.compile(rb"\n(?<!\r\n)")
_LEADING_DOT = re.compile(rb"\.(?<=\n\.)")
_ADDRESS = re.compile(r"[^\x00-\x20\x7f<>@]+@[^\x00-\x20\x7f<>@]+")

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class CertificateSummary:
    """What the relay showed us, and `ssl` verified."""

    subject: str
    issuer: str
    not_after: datetime


@dataclass(frozen=True)
class RelayReport:
    """What `relay check` found; no mail was submitted."""

    relay: str
    greeting: str
    host: str
    tls_version: str | None
    cipher: str | None
    certificate: CertificateSummary | None
    extensions: tuple[str, ...]
    size_limit: int | None
    logged_in: bool


class SmtpTransport:
    """A connection a message, for now; `session` is where pooling will go.

    Raises:
        ConfigurationError: no relay, no password beside the username, a CA file that cannot be
            read, or a link in the clear to another machine.
    """

    def __init__(self, relay: RelaySettings, *, final_wait_s: float | None = None) -> None:
        """Read the CA file; connect to nothing.

        Args:
            final_wait_s: how long to wait for the reply to the content. Giving up early makes
                duplicates (RFC 1047), so the default is 20 times `relay.timeout_s`, at most
                RFC 5321's ten minutes: just that for the usual 30 s.
        """
        _refuse_unusable(relay)
        self._relay, self._name = relay, relay.name
        self._tls = _tls_context(relay)
        self._final_wait_s = (
            min(LONGEST_FINAL_WAIT_S, 20 * relay.timeout_s)
            if final_wait_s is None
            else final_wait_s
        )
        self._manners = _Manners()

    async def deliver(self, outgoing: Outgoing) -> Receipt:
        """Submit these exact bytes, once.

        Raises:
            MessageRefused: a draft, or bytes that SMTP cannot carry unchanged.
            DeliveryError: see `ports.Transport`.
        """
        _refuse_unfit(outgoing)
        async with self.session() as session:
            return await session.submit(outgoing)

    @property
    def name(self) -> str:
        return self._name

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A session that is connected, secured and logged in."""
        session = Session(self._relay, self._tls, self._final_wait_s, self._manners)
        try:
            await session.open()
            yield session
        finally:
            await session.close()


async def check(relay: RelaySettings) -> RelayReport:
    """Connect, secure the link and log in, but submit no mail.

    Raises:
        ConfigurationError, DeliveryError: as `SmtpTransport` does.
    """
    async with SmtpTransport(relay).session() as session:
        await session.noop()
        return await session.report()


def _in_our_words(
    method: Callable[Concatenate[Session, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Session, P], Coroutine[Any, Any, T]]:
    """Translate what goes wrong; see the module's docstring for why outside the `except`."""

    @functools.wraps(method)
    async def translated(session: Session, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await method(session, *args, **kwargs)
        except Exception as error:
            # A bug is no reason to forget that the relay may hold the message.
            if not isinstance(error, _FAULTS) and not session.handed_over:
                raise
            fault = session.translate(error)
        raise fault

    return translated


@dataclass
class _Manners:
    """What a relay has shown of itself, whatever it says it can do."""

    takes_groups: bool = True


class _Client(aiosmtplib.SMTP):
    was_up = False

    def close(self) -> None:
        """Close now: TLS's closing handshake would wait 30 s for a relay that hangs."""
        transport = self.transport
        self.was_up = self.was_up or transport is not None
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()  # first: Python 3.11.2, Debian 12's, can't abort what it has closed
        super().close()


class Session:
    """One connection to the relay, and how far it got."""

    def __init__(
        self,
        relay: RelaySettings,
        tls: ssl.SSLContext | None,
        final_wait_s: float,
        manners: _Manners,
    ) -> None:
        self._relay, self._name = relay, relay.name
        self._tls = tls
        self._final_wait_s = final_wait_s
        self._manners = manners
        self._secret = _Secret(relay)
        self._sender = ""
        self._greeting = ""
        self._logged_in = False
        self._in_step = False  # every command so far had its reply, so QUIT makes sense
        self.stage = "connect"
        self.handed_over = False  # the final dot may have reached the relay
        self._link: Link | None = None  # once it is ready for mail
        self._offered: frozenset[str] = frozenset()
        self._limit_octets: int | None = None
        self._pipelines = False
        self._client = self._new_client()

    def _new_client(self) -> _Client:
        relay = self._relay
        return _Client(
            hostname=relay.host,
            port=relay.effective_port,
            use_tls=relay.security is Security.TLS,
            start_tls=False,  # never opportunistic: `open` demands it
            tls_context=self._tls,
            # `_limit` is ours: aiosmtplib would use asyncio.wait_for, which before Python 3.12
            # loses a cancellation that comes together with a result (python/cpython#86296).
            timeout=None,
            # Only to keep aiosmtplib from asking DNS for our name; `_ehlo` gives the real one.
            local_hostname="localhost",
        )

    @_in_our_words
    async def open(self) -> None:
        await self._connect()

    async def _connect(self) -> None:
        await self._greeted()
        self._in_step = True
        self._refuse_other_machine()
        self.stage = "greeting"
        await self._ehlo()
        if self._relay.security is Security.STARTTLS:
            self.stage = "tls"
            await self._start_tls()
            await self._ehlo()  # RFC 3207 §4.2: what was offered in the clear counts for nothing
        if self._relay.username is not None:
            self.stage = "login"
            await self._login(self._relay.username)
        self._link = Link.taken_over(self._client.protocol)
        # What was offered before STARTTLS or login is forgotten by then.
        self._offered = frozenset(one for one in _OF_USE if self._client.supports_extension(one))
        self._limit_octets = self._size_limit()
        self._pipelines = "pipelining" in self._offered and self._manners.takes_groups

    @_in_our_words
    async def submit(self, outgoing: Outgoing) -> Receipt:
        envelope = outgoing.envelope
        self._sender = envelope.sender
        self.handed_over = False

        self.stage = "sender"
        _refuse_unfit(outgoing)
        options = self._mail_options(outgoing)
        mail = b" ".join((b"MAIL FROM:<%b>" % envelope.sender.encode(), *options))
        rcpt = b"RCPT TO:<%b>" % envelope.recipient.encode()
        link = await self._announce_at_once(mail, rcpt) if self._pipelines else None
        if link is None:
            link = await self._announce_in_steps(mail, rcpt)
        self._in_step = False
        self.stage = "content"
        answer = await self._hand_over(link, outgoing.content)
        self._in_step = self.handed_over
        self._demand(2, answer)
        return Receipt(DeliveryStatus.RELAYED, self._name, self._reply(answer))

    @_in_our_words
    async def reset(self) -> None:
        """Make the relay forget a refused message (RFC 5321 §4.1.1.5)."""
        self.handed_over = False
        self._demand(2, await self._command(b"RSET"))

    @_in_our_words
    async def noop(self) -> None:
        self.handed_over = False
        self._demand(2, await self._command(b"NOOP"))

    async def close(self) -> None:
        """QUIT if the relay listens; whatever happens here changes no outcome."""
        wait_s = min(self._relay.timeout_s, _QUIT_WAIT_S)
        try:
            if self._in_step and self._client.is_connected:
                with suppress(*_FAULTS):
                    if self._link is None:
                        async with asyncio.timeout(wait_s):
                            await self._client.quit()
                    else:
                        self._link.write(b"QUIT\r\n")
                        await self._link.reply(wait_s)
        finally:
            self._client.close()
            # asyncio closes the socket on the loop's next turn, and TLS's on the one after.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    @_in_our_words
    async def report(self) -> RelayReport:
        ehlo = self._client.last_ehlo_response
        tls = self._client.get_transport_info("ssl_object")
        cipher = tls.cipher() if tls else None
        return RelayReport(
            relay=self._name,
            greeting=self._words(self._greeting),
            host=self._words(ehlo.message).partition(" ")[0] if ehlo else "",
            tls_version=tls.version() if tls else None,
            cipher=cipher[0] if cipher else None,
            certificate=_certificate(tls.getpeercert()) if tls else None,
            extensions=tuple(
                self._words(f"{keyword.upper()} {parameters}")
                for keyword, parameters in self._client.esmtp_extensions.items()
            ),
            size_limit=self._size_limit(),
            logged_in=self._logged_in,
        )

    # Steps

    async def _greeted(self) -> None:
        """Connect; where TLS comes first, hear a relay that says without it that it is too busy.

        Exim does so, for one, if it allows us no more links; else it would seem to know no TLS.
        """
        answer = None
        for again in (False, True):
            if again:
                self._client = self._new_client()
            try:
                async with self._limit():
                    self._greeting = (await self._client.connect()).message
                return
            except SMTPConnectError as error:
                if again or not _is_clear_text(error):
                    raise
            answer = await self._heard_in_the_clear()
            if answer is not None:
                break
        if answer is not None and 400 <= answer.code <= 599:
            self.stage = "greeting"
            raise self._refusal(answer)
        raise RelayRefused(self._no_common_tls(), stage="tls")

    async def _heard_in_the_clear(self) -> SMTPResponse | None:
        """The first line that the relay says to whoever says nothing, if it soon says any."""
        line = b""
        with suppress(OSError, ValueError):
            async with asyncio.timeout(min(self._relay.timeout_s, _CLEAR_TEXT_WAIT_S)):
                reader, writer = await asyncio.open_connection(
                    self._relay.host, self._relay.effective_port
                )
                try:
                    line = await reader.readline()
                finally:
                    writer.transport.abort()
        said = re.match(rb"([2-5][0-9]{2})[ -]?([^\r\n]*)", line)
        if said is None:
            return None
        return SMTPResponse(int(said[1]), said[2].decode(errors="surrogateescape"))

    def _refuse_other_machine(self) -> None:
        """`localhost` is a name, and a name may lead anywhere."""
        if self._relay.security is Security.NONE:
            peer = self._client.get_transport_info("peername")
            if not is_loopback(peer[0]):
                raise RelayRefused(
                    f"{self._name} is not on this machine, so a link without TLS won't do. "
                    "Set relay.security to 'starttls' or 'tls'.",
                    stage="connect",
                )

    async def _ehlo(self) -> None:
        """Say who we are: the configured name, or our address (RFC 5321 §4.1.4).

        Never the machine's own name: looking that up may hang, and the relay need not know it.
        A relay that does not know EHLO is greeted with HELO, and offers nothing (§3.2).
        """
        name = self._relay.local_hostname
        if name is None:
            address = str(self._client.get_transport_info("sockname")[0]).partition("%")[0]
            name = f"[IPv6:{address}]" if ":" in address else f"[{address}]"
        reply = await self._greet(b"EHLO", name)
        if reply.code in _VERB_UNKNOWN:
            plainly = await self._greet(b"HELO", name)
            if _is_yes(2, plainly):  # what it says behind the first line is no list of extensions
                reply = SMTPResponse(plainly.code, plainly.message.partition("\n")[0])
        self._demand(2, reply)
        self._client.last_ehlo_response = reply

    async def _greet(self, verb: bytes, name: str) -> SMTPResponse:
        self._in_step = False
        async with self._limit():
            reply = await self._client.execute_command(verb, name.encode("ascii"))
        self._in_step = True
        return reply

    async def _start_tls(self) -> None:
        if not self._client.supports_extension("starttls"):
            raise RelayRefused(
                f"{self._name} does not offer STARTTLS, so nothing was submitted: neither "
                "login nor referrals go out in the clear. Ask who runs the relay, or try "
                "relay.security = 'tls' on port 465.",
                stage="tls",
            )
        self._in_step = False
        async with self._limit():
            await self._client.starttls()
        self._in_step = True

    async def _login(self, username: str) -> None:
        relay = self._relay
        secured = self._client.get_transport_info("ssl_object") is not None
        if not secured and relay.security is not Security.NONE:  # what `open` ensures, once more
            raise RelayRefused(
                f"The link to {relay.name} is not secured, so we did not log in.", stage="login"
            )
        password = relay.password.get_secret_value() if relay.password else ""
        if not (_encodable(username) and _encodable(password)):
            raise RelayRefused(
                f"The login for {relay.name} is not text: it holds NUL or bytes that are not "
                "UTF-8. Set relay.username and relay.password again.",
                stage="login",
            )
        # Not `login()`, which tries a wrong password once for each mechanism and so locks accounts.
        ways: dict[str, Callable[..., Awaitable[SMTPResponse]]] = {
            "plain": self._client.auth_plain,
            "login": self._client.auth_login,
            "cram-md5": self._client.auth_crammd5,
        }
        offered = [way for way in ways if way in self._client.server_auth_methods]
        if not offered:
            raise RelayRefused(
                f"{relay.name} offers no login that we know (AUTH PLAIN, LOGIN or CRAM-MD5). "
                "Check relay.port and relay.security, or take out the username and password.",
                stage="login",
            )
        refusal = SMTPResponse(_MECHANISM_UNKNOWN, "")
        for way in offered:
            self._in_step = False
            try:
                async with self._limit():
                    await ways[way](username, password)
            except SMTPAuthenticationError as error:
                refusal = SMTPResponse(error.code, error.message)
            else:
                self._in_step = self._logged_in = True
                return
            self._in_step = True
            if refusal.code != _MECHANISM_UNKNOWN:
                break
        raise self._refusal(refusal)

    def _mail_options(self, outgoing: Outgoing) -> list[bytes]:
        """MAIL's parameters, or a refusal of what this relay can't carry.

        Source: RFC 1870 (SIZE), RFC 6152 (8BITMIME), RFC 6531 (SMTPUTF8).
        """
        relay, content, envelope = self._name, outgoing.content, outgoing.envelope
        options = []
        if "size" in self._offered:
            limit = self._limit_octets
            if limit is not None and len(content) > limit:
                raise PermanentDeliveryError(
                    f"The message is too big for {relay}: {len(content)} octets, and it takes "
                    f"{limit} at most. Shorten it, or ask for a higher limit.",
                    stage="sender",
                )
            options.append(b"SIZE=%d" % len(content))
        if not content.isascii():
            if "8bitmime" not in self._offered:
                raise PermanentDeliveryError(
                    f"{relay} takes 7-bit content only (no 8BITMIME), and this message is not.",
                    stage="sender",
                )
            options.append(b"BODY=8BITMIME")
        for stage, address in (("sender", envelope.sender), ("recipient", envelope.recipient)):
            if address.isascii():
                continue
            if "smtputf8" not in self._offered:
                raise PermanentDeliveryError(
                    f"The {stage}'s address holds letters outside ASCII, and {relay} does not "
                    "take those (no SMTPUTF8). Use an address in plain letters.",
                    stage=stage,
                )
            if b"SMTPUTF8" not in options:
                options.append(b"SMTPUTF8")
        return options

    async def _announce_in_steps(self, mail: bytes, rcpt: bytes) -> Link:
        link = self._ready()
        try:
            self._demand(2, await self._command(mail))
            self.stage = "recipient"
            self._demand(2, await self._command(rcpt))
            self.stage = "data"
            self._demand(3, await self._command(b"DATA"))
        except SMTPTimeoutError:
            self._manners.takes_groups = True  # if it was slow in a group, that was not why
            raise
        return link

    async def _announce_at_once(self, mail: bytes, rcpt: bytes) -> Link | None:
        """MAIL, RCPT and DATA in one go, for a relay that takes them so (RFC 2920).

        None if it does not after all, and they have to be said one by one over a new link.
        """
        link = self._ready()
        self._in_step = False
        link.write(b"%b\r\n%b\r\nDATA\r\n" % (mail, rcpt))
        for stage, first_digit, to_come in (("sender", 2, 2), ("recipient", 2, 1), ("data", 3, 0)):
            self.stage = stage
            answer: SMTPResponse | None = None
            try:
                answer = link.parsed() or await link.reply(self._relay.timeout_s)
            except SMTPTimeoutError:
                if stage == "sender":
                    raise
            if answer is None or answer.code == _OUT_OF_ORDER:
                # Some answer what they can at once before what they think about; some take the
                # first command and lose the others.
                self._manners.takes_groups = False
                await self._begin_anew()
                return None
            if not _is_yes(first_digit, answer):
                await self._abandon(link, answer, to_come)
                raise self._refusal(answer)
        return link

    async def _begin_anew(self) -> None:
        self._client.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self._client, self._link = self._new_client(), None
        self.stage = "connect"
        await self._connect()
        self.stage = "sender"

    async def _abandon(self, link: Link, refusal: SMTPResponse, to_come: int) -> None:
        """Get back into step after a refusal in a group; where that fails, the link is done for.

        A relay may take DATA though it refused the recipient; then it gets a lone dot, and whatever
        it makes of that is no acceptance (RFC 2920 §3.1). If it took a recipient without a sender,
        a dot might submit an empty message: it gets none, and the link is closed.
        """
        if not 400 <= refusal.code <= 599 or refusal.code == _CLOSING:
            return
        with suppress(*_FAULTS):
            answers = [await link.reply(self._relay.timeout_s) for _ in range(to_come)]
            if answers and answers[-1].code // 100 == 3:
                if any(_is_yes(2, answer) for answer in answers):
                    return
                link.write(b".\r\n")
                await link.reply(self._relay.timeout_s)
            self._in_step = True

    async def _hand_over(self, link: Link, content: bytes) -> SMTPResponse:
        """Write the content and the final dot, and return the relay's answer.

        Until the dot is written the relay cannot have accepted anything (RFC 5321 §4.1.1.4). A
        relay that speaks before it is not answering the content: its 2yz then counts for nothing.
        """
        stuffed = _stuffed(content)
        if link.has_news:
            raise SMTPResponseException(-1, "More replies than commands")
        if len(stuffed) <= _BLOCK:
            early = await self._hand_over_at_once(link, stuffed)
        else:
            early = await self._hand_over_in_blocks(link, stuffed)
        if early is not None:
            return self._no_acceptance(early)
        return await link.reply(self._final_wait_s)

    async def _hand_over_at_once(self, link: Link, stuffed: bytes) -> SMTPResponse | None:
        self.handed_over = True
        try:
            link.write(stuffed + b".\r\n")
        except SMTPServerDisconnected:
            self.handed_over = False
            raise
        if not link.unsent:
            return None
        try:
            await link.sent(self._relay.timeout_s)
        finally:
            # The dot is the last of it. What a lost link had not sent can't be told any more.
            self.handed_over = not link.unsent
        return None if self.handed_over else await link.reply(self._relay.timeout_s)

    async def _hand_over_in_blocks(self, link: Link, stuffed: bytes) -> SMTPResponse | None:
        """The dot goes by itself, after the rest has left for the kernel."""
        for block in _blocks(stuffed):
            link.write(block)
            await link.sent(self._relay.timeout_s)
            if link.has_news:
                return await link.reply(self._relay.timeout_s)
        await asyncio.sleep(0)  # let the loop see a link that is already closed
        if link.has_news:
            return await link.reply(self._relay.timeout_s)
        if not link.is_up:
            raise SMTPServerDisconnected("Connection lost")
        self.handed_over = True
        link.write(b".\r\n")
        return None

    def _no_acceptance(self, early: SMTPResponse) -> SMTPResponse:
        if 400 <= early.code <= 599:
            return early
        raise SMTPResponseException(-1, "Reply before the end of the content")

    # Commands and replies

    def _limit(self) -> asyncio.Timeout:
        return asyncio.timeout(self._relay.timeout_s)

    async def _command(self, command: bytes) -> SMTPResponse:
        link = self._ready()
        self._in_step = False
        link.write(command + b"\r\n")
        reply = await link.reply(self._relay.timeout_s)
        self._in_step = True
        return reply

    def _ready(self) -> Link:
        """The link, if the relay waits for a command; a 421 that came unasked is its last word."""
        link = self._link
        if link is None or not self._in_step:
            raise SMTPServerDisconnected("Connection lost")
        if link.has_news:
            self._in_step = False
            unasked = link.parsed()
            if unasked is None or unasked.code != _CLOSING:
                raise SMTPResponseException(-1, "More replies than commands")
            raise self._refusal(unasked)
        return link

    def _demand(self, first_digit: int, reply: SMTPResponse) -> None:
        if not _is_yes(first_digit, reply):
            raise self._refusal(reply)

    def _reply(self, reply: SMTPResponse) -> Reply:
        if self._is_harmless(reply.message):
            return Reply.parse(reply.code, reply.message)
        text = "\n".join(self._words(line) for line in reply.message.split("\n"))
        return Reply.parse(reply.code, self._short(self._secret.withheld(text)))

    def _words(self, text: str) -> str:
        """A relay's words made fit to show: printable, short, without login or sender."""
        if not text.isprintable():
            text = "".join(c if c.isprintable() else " " for c in text)
        if self._sender and "@" in text:
            text = re.sub(re.escape(self._sender), "[sender]", text, flags=re.IGNORECASE)
        return self._short(self._secret.withheld(" ".join(text.split())))

    def _is_harmless(self, text: str) -> bool:
        """Whether `_words` would leave it as it is, for all but blanks; as it mostly would."""
        fits = len(text) <= _LONGEST_WORDS and text.isprintable()
        return fits and "@" not in text and not self._secret.is_in(text)

    @staticmethod
    def _short(text: str) -> str:
        return text if len(text) <= _LONGEST_WORDS else text[:_LONGEST_WORDS] + "…"

    def _size_limit(self) -> int | None:
        """RFC 1870 §3, §4: no number, or 0, means no fixed limit; 20 digits at most."""
        limit = self._client.esmtp_extensions.get("size", "").strip()
        return int(limit) or None if re.fullmatch(r"[0-9]{1,20}", limit) else None

    # What went wrong

    def _refusal(self, response: SMTPResponse) -> DeliveryError:
        """What a reply other than the hoped-for one means, by stage."""
        if not 400 <= response.code <= 599:
            reply = self._reply(response) if 100 <= response.code <= 399 else None
            return self._not_understood(reply)
        reply = self._reply(response)
        relay, stage = self._name, self.stage
        text = f"{relay} {_REFUSED[stage]}: {str(reply).rstrip('. ')}."
        if response.code == _PASSWORD_TRANSITION_NEEDED and stage == "login":
            return RelayRefused(
                f"{text} The password must be changed with who runs the relay first.",
                stage=stage,
                reply=reply,
            )
        if response.code < 500:
            return TransientDeliveryError(
                f"{text} It may be tried later.", stage=stage, reply=reply
            )
        if response.code in _LOGIN_CODES and stage not in _BEFORE_MESSAGE:
            remedy = (
                "It wants another login or TLS first: check relay.username, relay.password and "
                "relay.security."
            )
            return RelayRefused(f"{text} {remedy}", stage=stage, reply=reply)
        if stage in _BEFORE_MESSAGE:
            return RelayRefused(f"{text} {_REMEDY[stage]}", stage=stage, reply=reply)
        return PermanentDeliveryError(
            f"{text} It will not take this message.", stage=stage, reply=reply
        )

    def _not_understood(self, reply: Reply | None = None) -> DeliveryError:
        text = f"{self._name} gave an answer that makes no sense here, or is not SMTP"
        if self.handed_over:
            return self._uncertain(text, reply)
        return TransientDeliveryError(
            f"{text}. It does not hold the message. Check relay.host and relay.port.",
            stage=self.stage,
            reply=reply,
        )

    def _uncertain(self, text: str, reply: Reply | None = None) -> DeliveryUncertain:
        return DeliveryUncertain(
            f"{text}, after it was given the whole message. It may or may not hold it: ask who "
            "runs the relay, or submit it again and risk a duplicate.",
            stage=self.stage,
            reply=reply,
        )

    def translate(self, error: Exception) -> ReferralsError:
        """Put a library's error into our words and class."""
        if isinstance(error, ReferralsError):
            return error
        cause: BaseException = error
        if isinstance(error, SMTPConnectError) and error.__cause__ is not None:
            cause = error.__cause__
        if self.stage == "connect":
            self.stage = self._stage_of_connect(cause)
        if isinstance(cause, SMTPResponseException):
            return self._refusal(SMTPResponse(cause.code, cause.message))
        relay, stage, patience = self._relay, self.stage, f"{self._relay.timeout_s:g} s"
        if self.handed_over:
            if isinstance(cause, TimeoutError):
                text = f"{relay.name} did not answer within {self._final_wait_s:g} s"
            elif isinstance(cause, OSError | SMTPException):
                text = f"The link to {relay.name} was lost"
            else:
                text = f"Something broke on our side ({type(cause).__name__}), with {relay.name}"
            return self._uncertain(text)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RelayRefused(self._certificate_fault(cause), stage="tls")
        lost = isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError)
        if isinstance(cause, ssl.SSLError) and stage == "tls" and not lost:
            return RelayRefused(self._no_common_tls(), stage="tls")
        if isinstance(cause, socket.gaierror):
            text = f"{relay.host} could not be looked up. Check relay.host and the network."
        elif isinstance(cause, UnicodeError) and stage == "connect":
            return RelayRefused(
                "relay.host is not a name that can be looked up. Correct it.", stage=stage
            )
        elif isinstance(cause, TimeoutError):
            text = f"{relay.name} did not answer within {patience} ({_DOING[stage]})."
            if stage in {"connect", "greeting"}:
                text += " Check relay.host, relay.port, relay.security and the firewall."
        elif stage == "connect":
            text = (
                f"Nothing takes connections at {relay.name}, or it cannot be reached. Check "
                "relay.host and relay.port, and that the relay runs."
            )
        elif isinstance(cause, OSError | SMTPException):
            text = f"The link to {relay.name} was lost ({_DOING[stage]})."
        else:
            text = f"{relay.name} could not be used ({_DOING[stage]}: {type(cause).__name__})."
        return TransientDeliveryError(
            f"{text} The relay does not hold the message; it may be tried later.", stage=stage
        )

    def _no_common_tls(self) -> str:
        return (
            f"{self._name} and we found no TLS in common (we need 1.2 or newer). Check "
            "relay.port and relay.security: 587 usually wants 'starttls', 465 'tls'."
        )

    def _stage_of_connect(self, cause: BaseException) -> str:
        """Which of the three steps in aiosmtplib's `connect` broke."""
        if self._client.was_up or isinstance(cause, SMTPException):
            return "greeting"
        implicit = self._relay.security is Security.TLS
        if isinstance(cause, ssl.SSLError) or (
            implicit and isinstance(cause, ConnectionResetError | ConnectionAbortedError)
        ):
            return "tls"
        return "connect"

    def _certificate_fault(self, error: ssl.SSLCertVerificationError) -> str:
        what, remedy = _CERTIFICATE_FAULTS.get(
            error.verify_code, ("could not be verified", "Ask who runs the relay.")
        )
        return f"The certificate of {self._name} {what}. Nothing was submitted. {remedy}"


_REFUSED = {
    "connect": "takes no mail",
    "greeting": "takes no mail from us",
    "tls": "refused to secure the link",
    "login": "refused the login",
    "sender": "refused the sender",
    "recipient": "refused the recipient",
    "data": "refused the message",
    "content": "refused the message",
}
_REMEDY = {
    "connect": "Ask who runs the relay.",
    "greeting": "Check relay.host, relay.port and relay.local_hostname, or ask who runs the relay.",
    "tls": "Ask who runs the relay, or try relay.security = 'tls' on port 465.",
    "login": "Check relay.username and relay.password; nothing was submitted.",
}
_DOING = {
    "connect": "connecting",
    "greeting": "waiting for its greeting",
    "tls": "securing the link",
    "login": "logging in",
    "sender": "giving the sender",
    "recipient": "giving the recipient",
    "data": "announcing the message",
    "content": "giving the message, before its end",
}
_OTHER_HOST = (
    "is for another host",
    "Set relay.host to the name in the certificate, or ask who runs the relay.",
)
_UNKNOWN_AUTHORITY = (
    "is signed by an authority that this machine does not know",
    "If it is your organisation's own, give that authority's certificate as relay.ca_file.",
)
# OpenSSL's X509_V_ERR_… numbers.
_CERTIFICATE_FAULTS = {
    2: _UNKNOWN_AUTHORITY,
    9: ("is not valid yet", "Check this machine's clock, then ask who runs the relay."),
    10: ("has expired", "Ask who runs the relay to renew it; check this machine's clock."),
    18: (
        "is self-signed: nobody vouches for it",
        "Ask who runs the relay for a certificate from an authority, or, if this one is known "
        "to be right, give it as relay.ca_file.",
    ),
    19: _UNKNOWN_AUTHORITY,
    20: _UNKNOWN_AUTHORITY,
    21: _UNKNOWN_AUTHORITY,
    23: ("was revoked", "Ask who runs the relay."),
    62: _OTHER_HOST,
    64: _OTHER_HOST,
}


class _Secret:
    """Knows the password in every form it travels in, to keep a relay's echo out of our texts."""

    _RUN = 6

    def __init__(self, relay: RelaySettings) -> None:
        password = relay.password.get_secret_value() if relay.password else ""
        username = relay.username or ""
        login = f"\0{username}\0{password}".encode(errors="surrogatepass")
        forms = (
            password,
            _base64(password.encode(errors="surrogatepass")),
            _base64(login),
        )
        self._runs = frozenset(
            form[i : i + self._RUN].casefold()
            for form in forms
            if password
            for i in range(max(1, len(form) - self._RUN + 1))
        )

    def __repr__(self) -> str:
        return "_Secret(…)"

    def withheld(self, text: str) -> str:
        """The text, unless it holds any run of letters of the login."""
        return "[withheld: the relay's words repeat the login]" if self.is_in(text) else text

    def is_in(self, text: str) -> bool:
        folded = text.casefold()
        return any(run in folded for run in self._runs)


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _wrong(key: str, what: str, remedy: str) -> ConfigurationError:
    return ConfigurationError([Problem(f"relay.{key}", what, remedy)])


def _refuse_unusable(relay: RelaySettings) -> None:
    if relay.host is None:
        raise _wrong(
            "host",
            "no relay is configured, so nothing can be submitted.",
            "Name the submission server, or save a draft instead.",
        )
    # RelaySettings says so too, but `model_copy` and `model_construct` do not ask it.
    if relay.security is Security.NONE and not is_loopback(relay.host):
        raise _wrong(
            "security",
            "'none' is for a relay on this machine only.",
            "Use 'starttls' or 'tls'.",
        )
    if relay.username is not None and relay.password is None:
        raise _wrong(
            "password",
            "there is a username, but no password.",
            "Give it through the environment or the secrets folder, or take out the username.",
        )


def _tls_context(relay: RelaySettings) -> ssl.SSLContext | None:
    if relay.security is Security.NONE:
        return None
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if relay.ca_file is not None:
        readable = True
        try:
            context.load_verify_locations(cafile=relay.ca_file)
        except (OSError, ValueError):
            readable = False
        if not readable:
            raise _wrong(
                "ca_file",
                "cannot be read, or holds no certificate.",
                "Give the path of a PEM file with the authority's certificate.",
            )
    return context


def _refuse_unfit(outgoing: Outgoing) -> None:
    """Refuse what must not, or cannot, go out unchanged, before anybody is called."""
    content = outgoing.content
    draft = _DRAFT_HEADER.search(content, 0, _end_of_header(content))
    if draft:
        raise MessageRefused(
            f"{outgoing.reference}: the message has a {draft[1].decode()} header, so it is a "
            "draft, and drafts are not submitted. Queue the referral itself."
        )
    what = _unfit(content)
    if what is not None:
        raise MessageRefused(
            f"{outgoing.reference}: the message has {what}, which SMTP cannot carry "
            "unchanged (RFC 5321 §2.3.8, §4.5.3.1.6). This is a fault in what composed it."
        )
    envelope = outgoing.envelope
    for stage, address in (("sender", envelope.sender), ("recipient", envelope.recipient)):
        if not (_ADDRESS.fullmatch(address) and _encodable(address) and len(address) <= 254):
            raise PermanentDeliveryError(
                f"{outgoing.reference}: the {stage}'s address is not one that SMTP can carry. "
                "Correct it.",
                stage=stage,
            )


def _end_of_header(content: bytes) -> int:
    end = content.find(b"\r\n\r\n")
    return len(content) if end < 0 else end


def _unfit(content: bytes) -> str | None:
    """What SMTP can't carry unchanged, if anything."""
    if not content.endswith(b"\r\n"):
        return "a last line that does not end in CRLF"
    if _BARE_CR.search(content) or _BARE_LF.search(content):
        return "a line that does not end in CRLF"
    if b"\0" in content:
        return "a NUL"
    # From the start of a line to the last end of one that is not too far away.
    start, end = 0, len(content)
    while end - start > _LONGEST_LINE:
        start = content.rfind(b"\n", start, start + _LONGEST_LINE) + 1
        if start == 0:
            return "a line of more than 998 octets"
    return None


def _is_clear_text(error: SMTPConnectError) -> bool:
    """Whether what came in place of TLS is no TLS; newer OpenSSLs have the second name for it."""
    cause = error.__cause__
    return isinstance(cause, ssl.SSLError) and cause.reason in (
        "WRONG_VERSION_NUMBER",
        "RECORD_LAYER_FAILURE",
    )


def _is_yes(first_digit: int, reply: SMTPResponse) -> bool:
    """Clients go by the first digit of a reply (RFC 5321 §4.3.2).

    221 is the exception: it closes the channel, and as an answer to anything but QUIT it does not
    say that the command succeeded.
    """
    return reply.code // 100 == first_digit and reply.code != 221


def _stuffed(content: bytes) -> bytes:
    """Double the dot that begins a line (RFC 5321 §4.5.2)."""
    if _LEADING_DOT.search(content):
        content = content.replace(b"\r\n.", b"\r\n..")
    return b"." + content if content.startswith(b".") else content


def _blocks(octets: bytes) -> Iterator[bytes]:
    for start in range(0, len(octets), _BLOCK):
        yield octets[start : start + _BLOCK]


def _certificate(peer: dict[str, Any] | None) -> CertificateSummary | None:
    if not peer:
        return None
    expiry = datetime.fromtimestamp(ssl.cert_time_to_seconds(peer["notAfter"]), UTC)
    return CertificateSummary(
        subject=_distinguished_name(peer["subject"]),
        issuer=_distinguished_name(peer["issuer"]),
        not_after=expiry,
    )


def _distinguished_name(name: tuple[tuple[tuple[str, str], ...], ...]) -> str:
    return ", ".join(f"{key}={value}" for part in name for key, value in part)
