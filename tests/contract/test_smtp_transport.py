"""SmtpTransport against a relay that misbehaves at every step, and against our own sink."""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import traceback
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from referrals.delivery import DeliveryStatus, Envelope, Outgoing, Receipt
from referrals.errors import (
    ConfigurationError,
    DeliveryError,
    DeliveryUncertain,
    MessageRefused,
    PermanentDeliveryError,
    RelayRefused,
    TransientDeliveryError,
)
from referrals.settings import RelaySettings, Security
from referrals.sink import Arrived, CertificatePair, Sink
from referrals.transports.smtp import SmtpTransport, check
from tests.peers import Certificates, Drop, Hang, Say, ScriptedRelay, Step, run, serving

PASSWORD = "Canary-pa55phrase"
SENDER = "officer@police.test"
CONTENT = (
    b"From: officer@police.test\r\nTo: agency@council.test\r\nSubject: OFFICIAL\r\n\r\n"
    b".\r\n..\r\n.dotted\r\n" + b"x" * 998 + b"\r\n\r\nend\r\n"
)
OUTGOING = Outgoing("R-1", Envelope(SENDER, "agency@council.test"), CONTENT)
BIG = replace(OUTGOING, content=CONTENT + (b"y" * 998 + b"\r\n") * 16_000)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(autouse=True)
def _no_secret_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does, at DEBUG, no log holds the password or a line of the message."""
    caplog.set_level(logging.DEBUG)
    yield
    for secret in (PASSWORD, *_forms(), ".dotted"):
        assert secret not in caplog.text


def _forms() -> tuple[str, ...]:
    return tuple(
        base64.b64encode(form).decode()
        for form in (PASSWORD.encode(), b"\0robot\0" + PASSWORD.encode())
    )


def settings_for(
    relay: ScriptedRelay | Sink, security: Security = Security.NONE, **more: Any
) -> RelaySettings:
    return RelaySettings(
        **{"host": relay.host, "port": relay.port, "security": security, "timeout_s": 5.0, **more}
    )


LOGIN: dict[str, Any] = {"username": "robot", "password": SecretStr(PASSWORD)}


async def fault(
    relay: ScriptedRelay,
    security: Security = Security.NONE,
    outgoing: Outgoing = OUTGOING,
    **more: Any,
) -> DeliveryError:
    """What `deliver` raises; it must show neither password nor sender, whoever prints it how."""
    hurry = 0.2 if any(isinstance(step, Hang) for step in relay.script.values()) else 5.0
    async with relay:
        relay_settings = settings_for(relay, security, **{"timeout_s": hurry, **more})
        transport = SmtpTransport(relay_settings, final_wait_s=hurry)
        with pytest.raises(DeliveryError) as caught:
            await transport.deliver(outgoing)
        if relay.script.get("mid-content") != Hang():  # that one does not even look
            await relay.all_closed()  # a link left open would hang here
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(error.reply)
    for hidden in (PASSWORD, *_forms(), SENDER, "agency@council.test"):
        assert hidden not in shown
    assert str(relay.port) in str(error)
    return error


def assert_fault(
    error: DeliveryError, kind: type[DeliveryError], stage: str, code: int | None = None
) -> None:
    assert type(error) is kind, f"{error!r}"
    assert error.stage == stage
    assert (error.reply.code if error.reply else None) == code


# What arrives


@pytest.mark.parametrize("security", Security)
def test_arrives_unchanged(security: Security, certificates: Certificates) -> None:
    """What arrives is, byte for byte, what was handed over."""
    mode: Any = security.value

    async def scenario() -> list[Arrived]:
        async with Sink(tls=mode, certificate=certificates.good, login=_login()) as sink:
            transport = SmtpTransport(
                settings_for(sink, security, ca_file=certificates.ca_file, **LOGIN)
            )
            receipt = await transport.deliver(OUTGOING)
            assert receipt.status is DeliveryStatus.RELAYED
            assert receipt.relay == f"127.0.0.1:{sink.port}"
            assert str(receipt.reply) == "250 2.0.0 Kept; it goes no further"
            return sink.arrived

    [arrived] = run(scenario())
    assert arrived.content == CONTENT
    assert arrived.sender == SENDER
    assert arrived.recipients == ("agency@council.test",)
    assert arrived.logged_in
    assert arrived.secured == (security is not Security.NONE)


def _login() -> tuple[str, SecretStr]:
    return "robot", SecretStr(PASSWORD)


lines = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60),
    st.sampled_from([".", "..", "...", ".a", "", "QUIT", "x" * 998, "." + "x" * 997]),
).map(str.encode)


def test_any_lines_arrive_unchanged() -> None:
    """The final dot is ours alone, whatever lines a message has."""

    async def deliver_all(contents: list[bytes]) -> list[bytes]:
        async with ScriptedRelay() as relay:
            transport = SmtpTransport(settings_for(relay))
            for content in contents:
                await transport.deliver(replace(OUTGOING, content=content))
            return relay.contents

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.lists(lines, max_size=12), min_size=1, max_size=4))
    def unchanged(messages: list[list[bytes]]) -> None:
        contents = [b"\r\n".join([b"Subject: x", b"", *message, b""]) for message in messages]
        contents += [b"\r\n".join([*message, b""]) for message in messages if any(message)]
        assert run(deliver_all(contents)) == contents

    unchanged()


def test_a_big_message_arrives_unchanged() -> None:
    """More than the kernel's buffers hold, so that writing has to wait for the relay."""

    async def scenario() -> list[bytes]:
        async with ScriptedRelay() as relay:
            await SmtpTransport(settings_for(relay)).deliver(BIG)
            return relay.contents

    assert run(scenario()) == [BIG.content]


def test_parameters_follow_what_is_offered() -> None:
    eight_bit = replace(OUTGOING, content=b"Subject: x\r\n\r\n\xc3\xa9\r\n")
    foreign = replace(OUTGOING, envelope=Envelope(SENDER, "bürger@council.test"))

    async def mail(outgoing: Outgoing, *extensions: bytes) -> bytes:
        async with ScriptedRelay(extensions=extensions) as relay:
            await SmtpTransport(settings_for(relay)).deliver(outgoing)
            return next(h.line for h in relay.heard if h.line.startswith(b"MAIL"))

    size = b" SIZE=%d" % len(CONTENT)
    plain = b"MAIL FROM:<officer@police.test>"
    assert run(mail(OUTGOING, b"SIZE 5000", b"8BITMIME", b"SMTPUTF8")) == plain + size
    assert run(mail(OUTGOING, b"SIZE")) == plain + size
    assert run(mail(OUTGOING, b"SIZE 0")) == plain + size
    assert run(mail(OUTGOING, b"SIZE " + b"9" * 5000)) == plain + size
    assert run(mail(OUTGOING)) == plain
    assert run(mail(eight_bit, b"8BITMIME")) == plain + b" BODY=8BITMIME"
    assert run(mail(foreign, b"SMTPUTF8")) == plain + b" SMTPUTF8"


def test_says_who_we_are_without_the_machines_name() -> None:
    async def ehlo(**more: Any) -> bytes:
        async with ScriptedRelay() as relay:
            await SmtpTransport(settings_for(relay, **more)).deliver(OUTGOING)
            return relay.heard[0].line

    assert run(ehlo()) == b"EHLO [127.0.0.1]"
    assert run(ehlo(local_hostname="refer.police.test")) == b"EHLO refer.police.test"


@pytest.mark.parametrize("code", [500, 502])
def test_a_relay_that_does_not_know_ehlo_is_greeted_with_helo(code: int) -> None:
    """And offers nothing, whatever it says then (RFC 5321 §3.2)."""
    relay = ScriptedRelay(
        {
            "ehlo": Say(b"%d 5.5.1 what?\r\n" % code),
            "helo": Say(b"250-relay.test\r\n250-SIZE 5\r\n250 PIPELINING\r\n"),
        }
    )

    async def scenario() -> None:
        async with relay:
            await SmtpTransport(settings_for(relay)).deliver(OUTGOING)

    run(scenario())
    assert relay.verbs == ["EHLO", "HELO", "MAIL", "RCPT", "DATA", "QUIT"]
    assert b"SIZE" not in relay.heard[2].line
    assert relay.contents == [CONTENT]


def test_a_relay_that_knows_helo_alone_has_no_tls_and_no_login() -> None:
    script: dict[str, Step] = {
        "ehlo": Say(b"502 5.5.1 what?\r\n"),
        "helo": Say(b"250 relay.test\r\n"),
    }
    error = run(fault(ScriptedRelay(script), Security.STARTTLS))
    assert_fault(error, RelayRefused, "tls")
    error = run(fault(ScriptedRelay(script), **LOGIN))
    assert_fault(error, RelayRefused, "login")


def test_many_at_once() -> None:
    async def scenario() -> int:
        async with ScriptedRelay() as relay:
            transport = SmtpTransport(settings_for(relay))
            await asyncio.gather(*(transport.deliver(OUTGOING) for _ in range(20)))
            return len(relay.contents)

    assert run(scenario()) == 20


# Every step, every fault

STEPS = {
    "greeting": "greeting",
    "ehlo": "greeting",
    "auth": "login",
    "mail": "sender",
    "rcpt": "recipient",
    "data": "data",
    "content": "content",
}
PIPELINING = (*ScriptedRelay().extensions, b"PIPELINING")
ways = pytest.mark.parametrize(
    "offered", [ScriptedRelay().extensions, PIPELINING], ids=["one by one", "pipelined"]
)
Offered = tuple[bytes, ...]
BEFORE_END = [step for step in STEPS if step != "content"]
SILENCES: list[Step] = [Hang(), Drop(), Drop(reset=True)]
NONSENSE = [
    b"\x00\xff\xfe\x80 binary\r\n",
    b"HTTP/1.1 400 Bad Request\r\n",
    b"\r\n",
    b"999 no such code\r\n",
    b"-50 negative\r\n",
    b"2_5 int() takes this\r\n",
    b"250-" + b"a" * 9000 + b"\r\n",
    b"a" * 40_000,
]


@ways
@pytest.mark.parametrize("step", BEFORE_END)
@pytest.mark.parametrize("silence", SILENCES, ids=str)
def test_silence_before_the_end_is_transient(step: str, silence: Step, offered: Offered) -> None:
    """The relay cannot hold what it was never given."""
    error = run(fault(ScriptedRelay({step: silence}, extensions=offered), **LOGIN))
    if offered is PIPELINING and silence == Drop(reset=True) and step in {"rcpt", "data"}:
        # A reset may overtake the replies to what went before in the same group.
        assert error.stage in {"sender", "recipient", "data"}
    else:
        assert error.stage == STEPS[step]
    assert_fault(error, TransientDeliveryError, error.stage)


@ways
@pytest.mark.parametrize("silence", SILENCES, ids=str)
def test_silence_after_the_end_is_uncertain(silence: Step, offered: Offered) -> None:
    """RFC 1047: the relay may hold it, and nobody told us."""
    error = run(fault(ScriptedRelay({"content": silence}, extensions=offered), **LOGIN))
    assert_fault(error, DeliveryUncertain, "content")


@pytest.mark.parametrize("octets", [b"2", b"250", b"250-almost\r\n", b"250-almost\r\n250 "])
def test_half_a_reply_after_the_end_is_uncertain(octets: bytes) -> None:
    error = run(fault(ScriptedRelay({"content": Say(octets, close=True)})))
    assert_fault(error, DeliveryUncertain, "content")


@ways
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("nonsense", NONSENSE, ids=lambda octets: repr(octets[:12]))
def test_nonsense_is_no_answer(step: str, nonsense: bytes, offered: Offered) -> None:
    relay = ScriptedRelay({step: Say(nonsense, close=True)}, extensions=offered)
    error = run(fault(relay, **LOGIN))
    kind = DeliveryUncertain if step == "content" else TransientDeliveryError
    assert_fault(error, kind, STEPS[step])


@ways
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("code", [421, 450, 451, 452, 454])
def test_4yz_is_transient(step: str, code: int, offered: Offered) -> None:
    relay = ScriptedRelay({step: Say(b"%d 4.3.2 later\r\n" % code)}, extensions=offered)
    error = run(fault(relay, **LOGIN))
    assert_fault(error, TransientDeliveryError, STEPS[step], code)
    assert str(error.reply) == f"{code} 4.3.2 later"


@ways
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("code", [500, 501, 502, 503, 550, 552, 554, 571])
def test_5yz_fails_the_message_only_if_it_was_about_it(
    step: str, code: int, offered: Offered
) -> None:
    """Before MAIL the relay knows nothing of the message, so it can't have refused it."""
    relay = ScriptedRelay({step: Say(b"%d 5.7.1 never\r\n" % code)}, extensions=offered)
    error = run(fault(relay, **LOGIN))
    before_mail = step in {"greeting", "ehlo", "auth"}
    kind = RelayRefused if before_mail else PermanentDeliveryError
    assert_fault(error, kind, STEPS[step], code)
    assert "5.7.1 never" in str(error)


@ways
@pytest.mark.parametrize("step", ["mail", "rcpt", "data", "content"])
@pytest.mark.parametrize("code", [530, 534, 535, 538])
def test_a_demand_for_a_login_is_the_operators(step: str, code: int, offered: Offered) -> None:
    relay = ScriptedRelay({step: Say(b"%d 5.7.0 log in first\r\n" % code)}, extensions=offered)
    error = run(fault(relay))
    assert_fault(error, RelayRefused, STEPS[step], code)
    assert "relay.username" in str(error)


@ways
@pytest.mark.parametrize(
    ("step", "code"),
    [("greeting", 250), ("mail", 354), ("rcpt", 354), ("data", 250), ("rcpt", 221), ("auth", 250)],
)
def test_a_kind_answer_to_another_question_is_no_answer(
    step: str, code: int, offered: Offered
) -> None:
    relay = ScriptedRelay({step: Say(b"%d odd\r\n" % code)}, extensions=offered)
    error = run(fault(relay, **LOGIN))
    assert_fault(error, TransientDeliveryError, STEPS[step], code)


@pytest.mark.parametrize("code", [100, 221, 354])
def test_an_odd_answer_to_the_content_is_uncertain(code: int) -> None:
    error = run(fault(ScriptedRelay({"content": Say(b"%d odd\r\n" % code)})))
    assert_fault(error, DeliveryUncertain, "content", code)


@pytest.mark.parametrize(
    "quit_step", [*SILENCES, Say(b"554 no\r\n"), Say(b"\xff\r\n"), Say(b"421 x")]
)
def test_nothing_in_quit_changes_the_outcome(quit_step: Step) -> None:
    async def scenario() -> DeliveryStatus:
        async with ScriptedRelay({"quit": quit_step}) as relay:
            receipt = await SmtpTransport(settings_for(relay, timeout_s=0.2)).deliver(OUTGOING)
            await relay.all_closed()
            return receipt.status

    assert run(scenario()) is DeliveryStatus.RELAYED


@dataclass
class Slow(ScriptedRelay):
    """Takes its time over the content."""

    pause_s: float = 0.5

    async def _answer(
        self,
        name: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        usual: Step | None = None,
    ) -> None:
        if name == "content":
            await asyncio.sleep(self.pause_s)
        await super()._answer(name, reader, writer, usual)


def test_each_wait_has_its_own_limit() -> None:
    """The content may take longer than a command, and the command after it no longer than ever."""

    async def scenario() -> None:
        async with Slow() as relay:
            transport = SmtpTransport(settings_for(relay, timeout_s=0.2), final_wait_s=60.0)
            async with transport.session() as session:
                await session.submit(OUTGOING)
                relay.script = {"mail": Hang()}
                error = await _fault_of(session.submit(OUTGOING))
            assert_fault(error, TransientDeliveryError, "sender")
            assert relay.contents == [CONTENT]

    run(scenario(), limit_s=5.0)


def test_the_content_is_waited_for_to_its_own_limit() -> None:
    async def scenario() -> None:
        async with Slow(pause_s=20.0) as relay:
            transport = SmtpTransport(settings_for(relay, timeout_s=0.2), final_wait_s=0.6)
            began = asyncio.get_running_loop().time()
            error = await _fault_of(transport.deliver(OUTGOING))
            assert asyncio.get_running_loop().time() - began >= 0.6
            assert_fault(error, DeliveryUncertain, "content")

    run(scenario(), limit_s=5.0)


async def _fault_of(submitting: Coroutine[Any, Any, object]) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        await submitting
    return caught.value


def test_a_refusal_ends_politely() -> None:
    relay = ScriptedRelay({"rcpt": Say(b"550 5.1.1 nobody\r\n")})
    run(fault(relay))
    assert relay.verbs[-1] == "QUIT"


# The content


@pytest.mark.parametrize("silence", SILENCES, ids=str)
def test_lost_in_mid_content_is_transient(silence: Step) -> None:
    """The final dot was never written, so the relay cannot have accepted (RFC 5321 §4.1.1.4)."""
    relay = ScriptedRelay({"mid-content": silence})
    error = run(fault(relay, outgoing=BIG))
    assert_fault(error, TransientDeliveryError, "content")
    assert relay.contents == []


def test_lost_in_mid_content_over_tls_is_transient(certificates: Certificates) -> None:
    relay = ScriptedRelay({"mid-content": Hang()}, tls=serving(certificates.good))
    error = run(fault(relay, Security.STARTTLS, BIG, ca_file=certificates.ca_file))
    assert_fault(error, TransientDeliveryError, "content")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts sockets in /proc")
def test_a_relay_that_stops_reading_holds_no_socket_of_ours(certificates: Certificates) -> None:
    """TLS's closing handshake is not waited for: `deliver` has closed when it returns."""

    def sockets() -> int:
        links = (str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink())
        return sum(link.startswith("socket:") for link in links)

    async def scenario() -> int:
        relay = ScriptedRelay({"mid-content": Hang()}, tls=serving(certificates.good))
        async with relay:
            relay_settings = settings_for(
                relay, Security.STARTTLS, ca_file=certificates.ca_file, timeout_s=0.2
            )
            before = sockets()
            with pytest.raises(TransientDeliveryError):
                await SmtpTransport(relay_settings).deliver(BIG)
            return sockets() - before

    assert run(scenario()) == 1  # the relay's own end


@pytest.mark.parametrize(
    ("reply", "kind", "code"),
    [
        (b"552 5.3.4 too big\r\n", PermanentDeliveryError, 552),
        (b"421 4.3.0 going down\r\n", TransientDeliveryError, 421),
        (b"250 2.0.0 taken\r\n", TransientDeliveryError, None),
    ],
)
def test_a_reply_in_mid_content_accepts_nothing(
    reply: bytes, kind: type[DeliveryError], code: int | None
) -> None:
    relay = ScriptedRelay({"mid-content": Say(reply)})
    error = run(fault(relay, outgoing=BIG))
    assert_fault(error, kind, "content", code)
    assert relay.contents == []
    assert relay.verbs[-1] == "DATA"


@ways
def test_a_reply_given_too_soon_is_not_taken_for_the_final_one(offered: Offered) -> None:
    """Relay's 250 behind its 354 is no acceptance of content it has not seen."""
    script: dict[str, Step] = {
        "data": Say(b"354 go on\r\n250 taken\r\n"),
        "content": Say(b"554 5.6.0 rejected\r\n"),
    }
    relay = ScriptedRelay(script, extensions=offered)
    error = run(fault(relay))
    assert_fault(error, TransientDeliveryError, "content")
    assert relay.contents == []


@pytest.mark.parametrize("reply", [b"250-taken\r\n550 no\r\n", b"2500 taken\r\n", b"250_x\r\n"])
def test_a_reply_that_says_yes_and_no_or_is_none_is_uncertain(reply: bytes) -> None:
    error = run(fault(ScriptedRelay({"content": Say(reply)})))
    assert_fault(error, DeliveryUncertain, "content")


@pytest.mark.parametrize(
    "reply",
    [
        b"250 " + b"x" * 100_000 + b"\r\n",
        b"250-taken\r\n" * 10_000 + b"250 taken\r\n",
        b"250-taken,\r\nand a line without its code\r\n250 as X1\r\n",
        b"250-taken\n250\ttaken\r\n",
        b"250 5.0.0 \xe9t\xe9 \x00\x1b[31m\xff\r\n",
        b"250\n",
        b"252 perhaps\r\n",
    ],
    ids=["long", "many lines", "no code", "mixed", "no text", "bare", "252"],
)
def test_a_clumsy_yes_is_a_yes(reply: bytes) -> None:
    """To take it for none would submit the message again, and again."""
    relay = ScriptedRelay({"content": Say(reply)})

    async def scenario() -> Receipt:
        async with relay:
            return await SmtpTransport(settings_for(relay)).deliver(OUTGOING)

    receipt = run(scenario())
    assert receipt.status is DeliveryStatus.RELAYED
    assert receipt.reply.text.isprintable()
    assert len(receipt.reply.text) < 500


@pytest.mark.parametrize(
    ("then", "kind", "code"),
    [
        (Say(b""), None, None),
        (Hang(), TransientDeliveryError, None),
        (Say(b"552 5.3.4 too big\r\n"), PermanentDeliveryError, 552),
        (Say(b"250 2.0.0 taken\r\n"), TransientDeliveryError, None),
    ],
    ids=["reads on", "hangs", "refuses", "lies"],
)
def test_a_relay_that_stops_reading_for_a_while(
    then: Step,
    kind: type[DeliveryError] | None,
    code: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the kernel does not take at once waits for its turn, and the dot is the last of it."""
    monkeypatch.setattr("referrals.transports.smtp._BLOCK", len(BIG.content) * 2)

    class Paused(ScriptedRelay):
        async def _take_content(
            self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(0.05)
            await self._answer("mid-content", reader, writer)
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            self.script = {}
            await super()._take_content(reader, writer)

    async def scenario() -> list[bytes]:
        async with Paused({"mid-content": then}) as relay:  # so its buffer is small
            transport = SmtpTransport(settings_for(relay, timeout_s=0.3 if kind else 5.0))
            async with transport.session() as session:
                assert session._link is not None
                if kind is None:
                    await session.submit(BIG)
                    return relay.contents
                with pytest.raises(kind) as caught:
                    await session.submit(BIG)
                assert session._link.unsent, "or this test shows nothing"
                assert_fault(caught.value, kind, "content", code)
            return relay.contents

    assert run(scenario()) == ([BIG.content] if kind is None else [])


# In one go (RFC 2920)


@dataclass
class Pipelined(ScriptedRelay):
    """Takes commands in groups. Its answers to MAIL and RCPT go out as `pieces` says."""

    extensions: Offered = PIPELINING
    pieces: str = "each"
    grouped: bool = False
    _held: bytes = b""

    async def _answer(
        self,
        name: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        usual: Step | None = None,
    ) -> None:
        if name == "mail":
            self.grouped = b"DATA\r\n" in bytes(reader._buffer)  # type: ignore[attr-defined]
        step = self.script.get(name) or usual or Say(b"")
        if self.pieces == "bytes" and name in {"mail", "rcpt", "data", "content"}:
            told = step if step != Say(b"") else None
            orderly = {"mail": b"250 ok", "rcpt": b"250-ok\r\n250 ok", "data": b"354 go"}
            octets = (
                told.octets if isinstance(told, Say) else orderly.get(name, b"250 ok") + b"\r\n"
            )
            for octet in octets:
                writer.write(bytes([octet]))
                await writer.drain()
                await asyncio.sleep(0)
        elif self.pieces == "one" and name in {"mail", "rcpt"}:
            self._held += step.octets if isinstance(step, Say) and step.octets else b"250 ok\r\n"
        else:
            writer.write(self._held)
            self._held = b""
            await super()._answer(name, reader, writer, usual)


def both(relay: ScriptedRelay, timeout_s: float = 1.0) -> list[DeliveryError | None]:
    """What becomes of two messages over one link; after a refusal, RSET."""
    results: list[DeliveryError | None] = []

    async def scenario() -> None:
        async with relay:
            transport = SmtpTransport(settings_for(relay, timeout_s=timeout_s), final_wait_s=1.0)
            async with transport.session() as session:
                for _ in range(2):
                    try:
                        await session.submit(OUTGOING)
                        results.append(None)
                    except DeliveryError as error:
                        results.append(error)
                        relay.script = {}
                        await session.reset()
            await relay.all_closed()

    run(scenario())
    return results


@pytest.mark.parametrize("pieces", ["each", "one", "bytes"])
def test_commands_go_in_one_group_however_the_replies_come(pieces: str) -> None:
    relay = Pipelined(pieces=pieces)
    assert both(relay) == [None, None]
    assert relay.grouped
    assert relay.contents == [CONTENT, CONTENT]
    assert relay.verbs == ["EHLO", *["MAIL", "RCPT", "DATA"] * 2, "QUIT"]


def test_a_relay_that_does_not_offer_it_gets_one_command_at_a_time() -> None:
    relay = Pipelined(extensions=(b"SIZE 100000",))
    assert both(relay) == [None, None]
    assert not relay.grouped


def test_what_was_offered_before_tls_does_not_count(certificates: Certificates) -> None:
    secured = Say(b"250-relay.test\r\n250 SIZE 100000\r\n")
    relay = Pipelined({"ehlo-secured": secured}, tls=serving(certificates.good))

    async def scenario() -> None:
        async with relay:
            given = settings_for(relay, Security.STARTTLS, ca_file=certificates.ca_file)
            await SmtpTransport(given).deliver(OUTGOING)

    run(scenario())
    assert relay.contents == [CONTENT]
    assert not relay.grouped


NOT_NOW = Say(b"503 5.5.1 bad sequence\r\n")


@pytest.mark.parametrize("pieces", ["each", "one", "bytes"])
@pytest.mark.parametrize("code", [451, 550])
@pytest.mark.parametrize(
    ("step", "after"), [("mail", ["rcpt", "data"]), ("rcpt", ["data"]), ("data", [])]
)
def test_a_refusal_in_a_group_is_the_refusals_and_the_link_is_used_on(
    step: str, after: list[str], code: int, pieces: str
) -> None:
    script: dict[str, Step] = {step: Say(b"%d %d.7.1 no\r\n" % (code, code // 100))}
    relay = Pipelined(script | dict.fromkeys(after, NOT_NOW), pieces=pieces)

    error, then = both(relay)
    assert error is not None
    kind = TransientDeliveryError if code == 451 else PermanentDeliveryError
    assert_fault(error, kind, STEPS[step], code)
    assert then is None
    assert relay.connections == 1
    assert relay.contents == [CONTENT]
    assert "RSET" in relay.verbs


@pytest.mark.parametrize("final", [b"554 5.5.1 no valid recipients\r\n", b"250 2.0.0 taken\r\n"])
def test_a_relay_that_wants_content_for_a_refused_recipient_gets_a_lone_dot(final: bytes) -> None:
    """And whatever it makes of that, the message is refused (RFC 2920 §3.1)."""
    relay = Pipelined({"rcpt": Say(b"550 5.1.1 nobody\r\n"), "content": Say(final)})

    error, then = both(relay)
    assert error is not None
    assert_fault(error, PermanentDeliveryError, "recipient", 550)
    assert then is None
    assert relay.contents == [b"", CONTENT]


@pytest.mark.parametrize("late", ["mail", "rcpt"])
def test_a_relay_that_mixes_up_a_group_gets_one_command_at_a_time(late: str) -> None:
    """As Postfix's smtp-sink does when it is told to be slow: that refuses no message."""

    class Muddled(Pipelined):
        async def _answer(
            self,
            name: str,
            reader: asyncio.StreamReader,
            writer: asyncio.StreamWriter,
            usual: Step | None = None,
        ) -> None:
            if name == late and b"DATA\r\n" in bytes(reader._buffer):  # type: ignore[attr-defined]
                self.script = dict.fromkeys(
                    ["rcpt", "data"] if late == "mail" else ["data"], NOT_NOW
                )
                asyncio.get_running_loop().call_later(0.05, writer.write, b"250 2.1.0 ok\r\n")
                return
            await super()._answer(name, reader, writer, usual)
            if name == "data":
                self.script = {}

    relay = Muddled()
    assert both(relay) == [None, None]
    assert relay.contents == [CONTENT, CONTENT]
    assert relay.connections == 2
    assert relay.verbs.count("MAIL") == 3, "tried in a group once"


@pytest.mark.parametrize("answered", ["mail", "rcpt"])
def test_a_relay_that_loses_the_rest_of_a_group_gets_one_command_at_a_time(answered: str) -> None:
    """It offers PIPELINING all the same."""

    class Forgetful(Pipelined):
        async def _answer(
            self,
            name: str,
            reader: asyncio.StreamReader,
            writer: asyncio.StreamWriter,
            usual: Step | None = None,
        ) -> None:
            await super()._answer(name, reader, writer, usual)
            if name == answered:
                reader._buffer.clear()  # type: ignore[attr-defined]

    relay = Forgetful()
    assert both(relay, 0.2) == [None, None]
    assert relay.contents == [CONTENT, CONTENT]
    assert relay.verbs.count("MAIL") == 3, "tried in a group once"


def test_a_relay_that_is_slow_either_way_is_still_asked_in_groups() -> None:
    relay = Pipelined({"rcpt": Hang()})

    async def scenario() -> None:
        async with relay:
            transport = SmtpTransport(settings_for(relay, timeout_s=0.1))
            with pytest.raises(TransientDeliveryError):
                await transport.deliver(OUTGOING)
            relay.grouped, relay.script = False, {}
            await transport.deliver(OUTGOING)

    run(scenario())
    assert relay.grouped
    assert relay.contents == [CONTENT]


def test_a_relay_that_wants_content_from_a_refused_sender_gets_nothing() -> None:
    """It took the recipient: a lone dot might submit an empty message."""
    relay = Pipelined({"mail": Say(b"550 5.7.1 not you\r\n")})
    error = run(fault(relay))
    assert_fault(error, PermanentDeliveryError, "sender", 550)
    assert relay.contents == []

    with pytest.raises(TransientDeliveryError):
        both(Pipelined({"mail": Say(b"550 5.7.1 not you\r\n")}))


@pytest.mark.parametrize("silence", [Hang(), Drop()], ids=str)  # a reset may overtake a reply
@pytest.mark.parametrize(
    ("step", "then"), [("mail", "rcpt"), ("mail", "data"), ("rcpt", "data"), ("rcpt", "content")]
)
def test_a_link_lost_after_a_refusal_does_not_hide_it(step: str, then: str, silence: Step) -> None:
    relay = Pipelined({step: Say(b"550 5.1.1 no\r\n"), then: silence})
    error = run(fault(relay))
    assert_fault(error, PermanentDeliveryError, STEPS[step], 550)
    assert CONTENT not in relay.contents


@ways
def test_a_421_that_comes_unasked_is_heard_before_the_next_message(offered: Offered) -> None:
    relay = ScriptedRelay({"content": Say(b"250 ok\r\n421 4.4.2 idle\r\n")}, extensions=offered)
    with pytest.raises(TransientDeliveryError):
        both(relay)
    assert relay.verbs.count("MAIL") == 1
    assert relay.contents == [CONTENT]


@ways
def test_a_reply_that_nobody_asked_for_is_not_taken_for_the_next(offered: Offered) -> None:
    relay = ScriptedRelay({"content": Say(b"250 ok\r\n250 ok\r\n")}, extensions=offered)
    with pytest.raises(TransientDeliveryError):
        both(relay)
    assert relay.contents == [CONTENT]


# The link


@pytest.mark.parametrize("security", Security)
def test_nobody_listens(security: Security) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        relay = RelaySettings(host="127.0.0.1", port=unused.getsockname()[1], security=security)
        with pytest.raises(TransientDeliveryError, match="Nothing takes connections") as caught:
            run(SmtpTransport(relay).deliver(OUTGOING))
    assert_fault(caught.value, TransientDeliveryError, "connect")


def test_a_name_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", not_found)
    with pytest.raises(TransientDeliveryError, match=r"relay\.invalid could not be looked up") as e:
        run(SmtpTransport(RelaySettings(host="relay.invalid")).deliver(OUTGOING))
    assert_fault(e.value, TransientDeliveryError, "connect")


def test_a_name_that_is_no_name() -> None:
    with pytest.raises(RelayRefused, match=r"relay\.host") as caught:
        run(SmtpTransport(RelaySettings(host="a" * 70 + ".test")).deliver(OUTGOING))
    assert_fault(caught.value, RelayRefused, "connect")


def test_localhost_that_leads_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link in the clear stays on this machine, whatever a name says."""
    monkeypatch.setattr("referrals.transports.smtp.is_loopback", lambda host: host == "localhost")
    relay = ScriptedRelay()
    error = run(fault(relay, host="localhost"))
    assert_fault(error, RelayRefused, "connect")
    assert "EHLO" not in relay.verbs


CERTIFICATE_FAULTS = {
    "expired": "has expired",
    "not_yet": "is not valid yet",
    "other_host": "is for another host",
    "stranger": "is signed by an authority that this machine does not know",
    "self_signed": "is self-signed",
}


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
@pytest.mark.parametrize("which", CERTIFICATE_FAULTS)
def test_a_bad_certificate_stops_everything(
    which: str, security: Security, certificates: Certificates
) -> None:
    pair: CertificatePair = getattr(certificates, which)
    relay = ScriptedRelay(tls=serving(pair), implicit=security is Security.TLS)
    error = run(fault(relay, security, ca_file=certificates.ca_file, **LOGIN))
    assert_fault(error, RelayRefused, "tls")
    assert CERTIFICATE_FAULTS[which] in str(error)
    assert set(relay.verbs) <= {"EHLO", "STARTTLS", "QUIT"}


def test_the_authority_must_be_known(certificates: Certificates) -> None:
    error = run(fault(ScriptedRelay(tls=serving(certificates.good)), Security.STARTTLS))
    assert_fault(error, RelayRefused, "tls")
    assert "relay.ca_file" in str(error)


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
def test_no_tls_in_common(security: Security, certificates: Certificates) -> None:
    """A relay that knows only old TLS sends the alert `protocol_version` (RFC 8446 §6.2)."""
    step = "handshake" if security is Security.STARTTLS else "greeting"
    relay = ScriptedRelay({step: Say(bytes.fromhex("15030100020246"))})
    relay.extensions = (b"STARTTLS",)
    error = run(fault(relay, security, ca_file=certificates.ca_file))
    assert_fault(error, RelayRefused, "tls")
    assert "no TLS in common" in str(error)


@pytest.mark.parametrize("stripped", [b"SIZE 1000", b"AUTH PLAIN LOGIN"])
def test_without_starttls_nothing_is_said(stripped: bytes) -> None:
    """A relay, or somebody between, that hides STARTTLS gets neither login nor message."""
    relay = ScriptedRelay(extensions=(stripped,))
    error = run(fault(relay, Security.STARTTLS, **LOGIN))
    assert_fault(error, RelayRefused, "tls")
    assert "STARTTLS" in str(error)
    assert set(relay.verbs) == {"EHLO", "QUIT"}


@pytest.mark.parametrize(
    ("step", "kind", "code"),
    [
        (Say(b"502 5.5.1 no\r\n"), RelayRefused, 502),
        (Say(b"454 4.7.0 not now\r\n"), TransientDeliveryError, 454),
        (Say(b"\xff\xff\r\n", close=True), TransientDeliveryError, None),
        (Hang(), TransientDeliveryError, None),
        (Drop(), TransientDeliveryError, None),
    ],
    ids=str,
)
def test_starttls_refused(
    step: Step, kind: type[DeliveryError], code: int | None, certificates: Certificates
) -> None:
    relay = ScriptedRelay({"starttls": step}, tls=serving(certificates.good))
    error = run(fault(relay, Security.STARTTLS, ca_file=certificates.ca_file, **LOGIN))
    assert_fault(error, kind, "tls", code)
    assert "AUTH" not in relay.verbs


@pytest.mark.parametrize("silence", SILENCES, ids=str)
def test_silence_in_the_handshake(silence: Step, certificates: Certificates) -> None:
    relay = ScriptedRelay({"handshake": silence}, tls=serving(certificates.good))
    error = run(fault(relay, Security.STARTTLS, ca_file=certificates.ca_file))
    assert_fault(error, TransientDeliveryError, "tls")


@pytest.mark.parametrize("silence", SILENCES, ids=str)
@pytest.mark.parametrize("step", ["ehlo-secured", "auth", "mail", "data"])
def test_silence_over_tls(step: str, silence: Step, certificates: Certificates) -> None:
    relay = ScriptedRelay({step: silence}, tls=serving(certificates.good))
    error = run(fault(relay, Security.STARTTLS, ca_file=certificates.ca_file, **LOGIN))
    stage = "tls" if step == "ehlo-secured" else STEPS[step]
    assert_fault(error, TransientDeliveryError, stage)


@pytest.mark.parametrize("silence", SILENCES, ids=str)
@pytest.mark.parametrize("step", ["greeting", "content"])
def test_silence_over_tls_from_the_start(
    step: str, silence: Step, certificates: Certificates
) -> None:
    relay = ScriptedRelay({step: silence}, tls=serving(certificates.good), implicit=True)
    error = run(fault(relay, Security.TLS, ca_file=certificates.ca_file))
    kind = DeliveryUncertain if step == "content" else TransientDeliveryError
    assert_fault(error, kind, step)


def test_words_in_the_clear_do_not_survive_starttls(certificates: Certificates) -> None:
    """What somebody injects behind the 220 is not read as the relay's (RFC 3207 §4.2)."""
    relay = ScriptedRelay(
        {"starttls": Say(b"220 go\r\n250-evil\r\n250 AUTH PLAIN\r\n")},
        tls=serving(certificates.good),
    )

    async def scenario() -> None:
        async with relay:
            relay_settings = settings_for(
                relay, Security.STARTTLS, ca_file=certificates.ca_file, **LOGIN
            )
            report = await check(relay_settings)
            assert report.host == "relay.test"

    run(scenario())
    assert relay.verbs == ["EHLO", "STARTTLS", "EHLO", "AUTH", "NOOP", "QUIT"]
    assert [heard.secured for heard in relay.heard] == [False, False, True, True, True, True]


def test_tls_where_the_port_speaks_starttls() -> None:
    error = run(fault(ScriptedRelay(), Security.TLS))
    assert_fault(error, RelayRefused, "tls")
    assert "starttls" in str(error)


@dataclass
class Crowded(ScriptedRelay):
    """TLS from the start, but those of its links that are in `full` get 421 without it, as Exim's.

    Links are counted from 1.
    """

    full: tuple[int, ...] = ()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.connections in self.full:
            writer.write(b"421 4.7.0 too many concurrent connections\r\n")
            while await reader.read(65536):
                pass
        else:
            assert self.tls is not None
            await writer.start_tls(self.tls)
            await super()._converse(reader, writer)


def test_a_relay_that_says_without_tls_that_it_is_busy_is_only_busy(
    certificates: Certificates,
) -> None:
    relay = Crowded(tls=serving(certificates.good), full=(1, 2))
    error = run(fault(relay, Security.TLS, ca_file=certificates.ca_file))
    assert_fault(error, TransientDeliveryError, "greeting", 421)
    assert "too many concurrent" in str(error)
    assert relay.heard == []


def test_a_relay_that_was_busy_a_moment_ago_is_used(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link over which we listen may be the one that is free again: then it says nothing."""
    monkeypatch.setattr("referrals.transports.smtp._CLEAR_TEXT_WAIT_S", 0.1)
    relay = Crowded(tls=serving(certificates.good), full=(1,))

    async def scenario() -> None:
        async with relay:
            given = settings_for(relay, Security.TLS, ca_file=certificates.ca_file)
            await SmtpTransport(given).deliver(OUTGOING)

    run(scenario())
    assert relay.contents == [CONTENT]
    assert relay.connections == 3


def test_starttls_where_the_port_speaks_tls(certificates: Certificates) -> None:
    relay = ScriptedRelay(tls=serving(certificates.good), implicit=True)
    error = run(fault(relay, Security.STARTTLS, timeout_s=0.3))
    assert_fault(error, TransientDeliveryError, "greeting")
    assert "relay.security" in str(error)


# The login


@pytest.mark.parametrize("code", [535, 534, 538, 530, 432])
def test_a_refused_login_is_the_operators_and_tried_once(
    code: int, certificates: Certificates
) -> None:
    """Trying each mechanism with a wrong password would lock the account."""
    relay = ScriptedRelay(
        {"auth": Say(b"%d 5.7.8 no\r\n" % code)},
        tls=serving(certificates.good),
        extensions=(b"AUTH CRAM-MD5 LOGIN PLAIN",),
    )
    error = run(fault(relay, Security.STARTTLS, ca_file=certificates.ca_file, **LOGIN))
    assert_fault(error, RelayRefused, "login", code)
    assert relay.verbs.count("AUTH") == 1
    assert all(heard.secured for heard in relay.heard if heard.line.startswith(b"AUTH"))


def test_a_relays_own_full_stop_is_enough() -> None:
    error = run(fault(ScriptedRelay({"auth": Say(b"535 Authentication failed.\r\n")}), **LOGIN))
    assert "refused the login: 535 Authentication failed. Check relay.username" in str(error)


def test_a_mechanism_that_the_relay_does_not_know_after_all() -> None:
    relay = ScriptedRelay({"auth": Say(b"504 5.5.4 unknown\r\n")})
    error = run(fault(relay, **LOGIN))
    assert_fault(error, RelayRefused, "login", 504)
    assert relay.verbs.count("AUTH") == 2


@pytest.mark.parametrize("mechanism", [b"PLAIN", b"LOGIN", b"CRAM-MD5"])
def test_each_mechanism_logs_in(mechanism: bytes) -> None:
    challenge = Say(b"334 " + base64.b64encode(b"<1.2@relay.test>") + b"\r\n")
    script: dict[str, Step] = {} if mechanism == b"PLAIN" else {"auth": challenge}

    async def scenario() -> bool:
        async with ScriptedRelay(script, extensions=(b"AUTH " + mechanism,)) as relay:
            return (await check(settings_for(relay, **LOGIN))).logged_in

    assert run(scenario())


@pytest.mark.parametrize("extension", [b"SIZE 1000", b"AUTH", b"AUTH GSSAPI NTLM"])
def test_no_login_offered(extension: bytes) -> None:
    relay = ScriptedRelay(extensions=(extension,))
    error = run(fault(relay, **LOGIN))
    assert_fault(error, RelayRefused, "login")
    assert "AUTH" not in relay.verbs


@pytest.mark.parametrize("step", ["auth", "mail", "rcpt", "data", "content", "greeting", "ehlo"])
@pytest.mark.parametrize(
    "echo", [PASSWORD, PASSWORD.upper(), *_forms(), _forms()[1][:20]], ids=range(5)
)
def test_a_relay_that_repeats_the_login(step: str, echo: str) -> None:
    """Relays do echo a command they don't know; the reply's code is kept, its words are not."""
    relay = ScriptedRelay({step: Say(f"500-5.5.2 unknown\r\n500 5.5.2 {echo}\r\n".encode())})
    error = run(fault(relay, **LOGIN))
    assert error.reply is not None
    assert error.reply.code == 500
    assert echo[:16].casefold() not in f"{error!r} {error} {error.reply!r}".casefold()


def test_a_relay_that_repeats_the_login_as_nonsense() -> None:
    relay = ScriptedRelay({"auth": Say(f"what is {PASSWORD}?\r\n".encode())})
    assert_fault(run(fault(relay, **LOGIN)), TransientDeliveryError, "login")


@pytest.mark.parametrize("password", ["bad\udcff" + PASSWORD, "nul\0" + PASSWORD])
def test_a_password_that_is_no_text(password: str) -> None:
    relay = ScriptedRelay()
    error = run(fault(relay, username="robot", password=SecretStr(password)))
    assert_fault(error, RelayRefused, "login")
    assert "AUTH" not in relay.verbs


def test_a_relays_words_are_made_fit_to_show() -> None:
    words = b"550-5.7.1 \x1b[31m\xff\r\n550 5.7.1 <officer@POLICE.test> " + b"w" * 3000 + b"\r\n"
    error = run(fault(ScriptedRelay({"mail": Say(words)})))
    assert str(error).isprintable()
    assert len(str(error)) < 700
    assert "police" not in str(error).lower()
    assert "[sender]" in str(error)


# What is refused before anybody is called


@pytest.mark.parametrize(
    "content",
    [
        b"X-Unsent: 1\r\nSubject: x\r\n\r\nbody\r\n",
        b"Subject: x\r\nx-unsent : 1\r\n\r\nbody\r\n",
        b"Subject: x\r\nBCC: a@b.test\r\n\r\nbody\r\n",
        b"Subject: x\r\nResent-Bcc: a@b.test\r\n\r\nbody\r\n",
        b"Subject: x\r\nBcc: a@b.test\r\n",
        b"Subject: x\n\nbody\n",
        b"Subject: x\r\n\r\nbody\rmore\r\n",
        b"Subject: x\r\n\r\nbody\nmore\r\n",
        b"Subject: x\r\n\r\nbody\r\n.\n",
        b"Subject: x\r\n\r\nno end",
        b"Subject: x\r\n\r\nnul\0\r\n",
        b"Subject: x\r\n\r\n" + b"x" * 999 + b"\r\n",
        b"",
    ],
)
def test_unfit_content_is_refused_before_connecting(content: bytes) -> None:
    async def scenario() -> int:
        async with ScriptedRelay() as relay:
            with pytest.raises(MessageRefused, match="R-1"):
                await SmtpTransport(settings_for(relay)).deliver(replace(OUTGOING, content=content))
            return relay.connections

    assert run(scenario()) == 0


pieces = st.sampled_from(
    [b"\r\n", b"\r\n", b"\r\n", b"\r", b"\n", b"\0", b".", b"x" * 997, b"x" * 998, b"x" * 60]
)


@given(st.lists(pieces, max_size=40).map(b"".join))
def test_content_is_fit_if_each_of_its_lines_is(content: bytes) -> None:
    """RFC 5321 §2.3.8, §4.5.3.1.6, line by line."""
    fit = content.endswith(b"\r\n") and all(
        len(line) <= 998 and not {*b"\r\n\0"} & {*line} for line in content.split(b"\r\n")
    )

    async def scenario() -> None:
        nobody = SmtpTransport(RelaySettings(host="127.0.0.1", port=9, security=Security.NONE))
        # Nobody is called before it was looked at.
        with pytest.raises(TransientDeliveryError if fit else MessageRefused):
            await nobody.deliver(replace(OUTGOING, content=content))

    run(scenario())


def test_a_body_may_speak_of_bcc() -> None:
    async def scenario() -> list[bytes]:
        async with ScriptedRelay() as relay:
            content = b"Subject: x\r\n\r\nBcc: in the text\r\nX-Unsent: 1\r\n"
            await SmtpTransport(settings_for(relay)).deliver(replace(OUTGOING, content=content))
            return relay.contents

    assert len(run(scenario())) == 1


@pytest.mark.parametrize(
    "address",
    [
        "",
        "nobody",
        "a@b\r\nRCPT TO:<x@y>",
        "a b@c.test",
        "<a@b.test>",
        "a@b.test>",
        "\udcff@b.test",
    ],
)
@pytest.mark.parametrize("stage", ["sender", "recipient"])
def test_an_address_that_is_none(address: str, stage: str) -> None:
    envelope = replace(OUTGOING.envelope, **{stage: address})
    relay = RelaySettings(host="127.0.0.1", port=9, security=Security.NONE)
    with pytest.raises(PermanentDeliveryError) as caught:
        run(SmtpTransport(relay).deliver(replace(OUTGOING, envelope=envelope)))
    assert caught.value.stage == stage
    assert not address or address not in str(caught.value)


@pytest.mark.parametrize("stage", ["sender", "recipient"])
def test_foreign_letters_without_smtputf8(stage: str) -> None:
    envelope = replace(OUTGOING.envelope, **{stage: "bürger@council.test"})
    relay = ScriptedRelay()
    error = run(fault(relay, outgoing=replace(OUTGOING, envelope=envelope)))
    assert_fault(error, PermanentDeliveryError, stage)
    assert "SMTPUTF8" in str(error)
    assert "MAIL" not in relay.verbs


def test_eight_bits_without_8bitmime() -> None:
    relay = ScriptedRelay(extensions=())
    content = b"Subject: x\r\n\r\n\xc3\xa9\r\n"
    error = run(fault(relay, outgoing=replace(OUTGOING, content=content)))
    assert_fault(error, PermanentDeliveryError, "sender")
    assert "MAIL" not in relay.verbs


def test_too_big_is_known_beforehand() -> None:
    relay = ScriptedRelay(extensions=(b"SIZE 1000",))
    error = run(fault(relay))
    assert_fault(error, PermanentDeliveryError, "sender")
    assert f"{len(CONTENT)} octets" in str(error)
    assert "1000 at most" in str(error)
    assert "MAIL" not in relay.verbs


# Settings


@pytest.mark.parametrize(
    ("relay", "key"),
    [
        (RelaySettings(), "relay.host"),
        (
            RelaySettings.model_construct(host="relay.test", security=Security.NONE),
            "relay.security",
        ),
        (RelaySettings(host="relay.test", ca_file=Path("/nonexistent.pem")), "relay.ca_file"),
        (RelaySettings(host="relay.test", ca_file=Path(__file__)), "relay.ca_file"),
        (RelaySettings.model_construct(host="relay.test", username="robot"), "relay.password"),
    ],
)
def test_settings_that_cannot_work_say_so_at_once(relay: RelaySettings, key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        SmtpTransport(relay)
    assert [problem.where for problem in caught.value.problems] == [key]


# Cancelling


@pytest.mark.parametrize("step", [*STEPS, "mid-content", "quit"])
def test_cancelling_propagates_and_closes(step: str) -> None:
    async def scenario() -> None:
        async with ScriptedRelay({step: Hang()}) as relay:
            transport = SmtpTransport(settings_for(relay, timeout_s=60, **LOGIN))
            content = BIG if step == "mid-content" else OUTGOING
            delivery = asyncio.create_task(transport.deliver(content))
            await relay.reached.wait()
            delivery.cancel()
            done, _ = await asyncio.wait({delivery}, timeout=5)
            assert done
            assert delivery.cancelled()
            if step != "mid-content":  # that one does not even look whether we are gone
                await relay.all_closed()

    run(scenario())


def test_cancelling_over_tls_closes(certificates: Certificates) -> None:
    async def scenario() -> None:
        relay = ScriptedRelay({"mail": Hang()}, tls=serving(certificates.good))
        async with relay:
            relay_settings = settings_for(
                relay, Security.STARTTLS, ca_file=certificates.ca_file, timeout_s=60
            )
            delivery = asyncio.create_task(SmtpTransport(relay_settings).deliver(OUTGOING))
            await relay.reached.wait()
            delivery.cancel()
            with pytest.raises(asyncio.CancelledError):
                await delivery
            await relay.all_closed()

    run(scenario())


# A bug of ours after the end


def test_our_own_bug_after_the_end_is_uncertain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not knowing why it broke is no reason to forget that the relay may hold it."""
    from referrals.transports import smtp

    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(smtp, "Receipt", broken)
    error = run(fault(ScriptedRelay()))
    assert_fault(error, DeliveryUncertain, "content")
    assert "KeyError" in str(error)


def test_our_own_bug_before_the_end_stays_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    from referrals.transports import smtp

    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(smtp.Session, "_mail_options", broken)

    async def scenario() -> None:
        async with ScriptedRelay() as relay:
            with pytest.raises(KeyError):
                await SmtpTransport(settings_for(relay)).deliver(OUTGOING)
            await relay.all_closed()

    run(scenario())


# relay check


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
def test_check_reports_and_submits_nothing(security: Security, certificates: Certificates) -> None:
    relay = ScriptedRelay(tls=serving(certificates.good), implicit=security is Security.TLS)

    async def scenario() -> Any:
        async with relay:
            return await check(settings_for(relay, security, ca_file=certificates.ca_file, **LOGIN))

    report = run(scenario())
    assert report.relay == f"127.0.0.1:{relay.port}"
    assert report.greeting == "relay.test ESMTP ready"
    assert report.host == "relay.test"
    assert report.tls_version == "TLSv1.3"
    assert report.cipher.startswith("TLS_")
    assert "trustme" in report.certificate.issuer
    assert report.certificate.not_after > datetime.now(UTC)
    assert "AUTH PLAIN LOGIN" in report.extensions
    assert report.size_limit == 100_000_000
    assert report.logged_in
    assert relay.verbs[-3:] == ["AUTH", "NOOP", "QUIT"]
    assert PASSWORD not in repr(report)


def test_check_raises_the_same_errors() -> None:
    async def scenario() -> None:
        async with ScriptedRelay({"noop": Say(b"421 4.3.2 no\r\n")}) as relay:
            await check(settings_for(relay))

    with pytest.raises(TransientDeliveryError):
        run(scenario())
