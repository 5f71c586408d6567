"""The sink takes what it is given, keeps it privately and stays on this machine."""

from __future__ import annotations

import asyncio
import builtins
import hashlib
import logging
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from referrals.delivery import Envelope, Outgoing
from referrals.errors import ConfigurationError, RelayRefused, TransientDeliveryError
from referrals.settings import RelaySettings, Security
from referrals.sink import Arrived, CertificatePair, Sink
from referrals.transports.smtp import SmtpTransport
from tests.peers import Certificates, run

CONTENT = b"Subject: x\r\n\r\n.\r\n.dotted canary\r\n"
OUTGOING = Outgoing("R-1", Envelope("Officer@police.test", "Agency@council.test"), CONTENT)
LOGIN = ("robot", SecretStr("Canary-pa55phrase"))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


async def submit(sink: Sink, **more: Any) -> None:
    relay = RelaySettings(
        **{
            "host": sink.host,
            "port": sink.port,
            "security": Security.NONE,
            "timeout_s": 5.0,
            **more,
        }
    )
    await SmtpTransport(relay).deliver(OUTGOING)


def test_keeps_each_message_privately(tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    shown: list[Arrived] = []

    async def scenario() -> list[Arrived]:
        async with Sink(keep=keep, on_message=shown.append) as sink:
            await asyncio.gather(submit(sink), submit(sink))
            return sink.arrived

    arrived = run(scenario())
    assert shown == arrived
    assert stat.S_IMODE(keep.stat().st_mode) == 0o700
    files = sorted(keep.iterdir())
    assert files == sorted(one.kept_as for one in arrived if one.kept_as)
    assert len(files) == 2
    digest = hashlib.sha256(CONTENT).hexdigest()[:16]
    for number, file in enumerate(files, 1):
        assert file.read_bytes() == CONTENT
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert re.fullmatch(rf"\d{{8}}T\d{{6}}\.\d{{6}}Z-{number:06d}-{digest}\.eml", file.name)
    assert arrived[0].sender == "Officer@police.test"
    assert arrived[0].recipients == ("Agency@council.test",)
    assert "canary" not in repr(arrived)


def test_a_folder_that_others_can_read_is_refused_and_left_alone(tmp_path: Path) -> None:
    keep = tmp_path / "open"
    keep.mkdir()
    keep.chmod(0o755)

    async def scenario() -> None:
        async with Sink(keep=keep):
            pass

    with pytest.raises(ConfigurationError, match=r"sink\.keep: others can read"):
        run(scenario())
    assert stat.S_IMODE(keep.stat().st_mode) == 0o755


def test_what_cannot_be_kept_is_not_accepted(tmp_path: Path) -> None:
    keep = tmp_path / "kept"

    async def scenario() -> list[Arrived]:
        async with Sink(keep=keep) as sink:
            keep.rmdir()
            with pytest.raises(TransientDeliveryError):
                await submit(sink)
            return sink.arrived

    assert run(scenario()) == []


def test_a_broken_callback_changes_nothing_and_tells_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(arrived: Arrived) -> None:
        raise ValueError(arrived.content)

    async def scenario() -> int:
        async with Sink(on_message=broken) as sink:
            await submit(sink)
            return len(sink.arrived)

    assert run(scenario()) == 1
    assert "ValueError" in caplog.text
    assert "canary" not in caplog.text


def test_nothing_that_arrives_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def scenario() -> None:
        async with Sink() as one:
            async with Sink():
                pass
            await submit(one)

    run(scenario())
    assert "canary" not in caplog.text
    assert "police.test" not in caplog.text
    assert logging.getLogger("mail.log").filters == []


@pytest.mark.parametrize("security", [Security.NONE, Security.STARTTLS, Security.TLS])
@pytest.mark.parametrize("given", ["right", "wrong", "none"])
def test_demands_its_login(security: Security, given: str, certificates: Certificates) -> None:
    mode: Any = security.value
    password = LOGIN[1] if given == "right" else SecretStr("something else")
    login = {} if given == "none" else {"username": LOGIN[0], "password": password}

    async def scenario() -> list[Arrived]:
        async with Sink(tls=mode, certificate=certificates.good, login=LOGIN) as sink:
            delivery = submit(sink, security=security, ca_file=certificates.ca_file, **login)
            if given == "right":
                await delivery
            else:
                with pytest.raises(RelayRefused):
                    await delivery
            return sink.arrived

    assert [one.logged_in for one in run(scenario())] == ([True] if given == "right" else [])


def test_starttls_cannot_be_skipped(certificates: Certificates) -> None:
    async def scenario() -> None:
        async with Sink(tls="starttls", certificate=certificates.good) as sink:
            with pytest.raises(RelayRefused, match="530"):
                await submit(sink)

    run(scenario())


def test_localhost_is_127_0_0_1_and_ipv6_works_too() -> None:
    async def scenario(host: str) -> str:
        async with Sink(host) as sink:
            await submit(sink)
            return sink.host

    assert run(scenario("localhost")) == "127.0.0.1"
    assert run(scenario("::1")) == "::1"


def test_leaving_closes_links_that_idle(certificates: Certificates) -> None:
    async def scenario() -> None:
        async with Sink() as sink:
            reader, writer = await asyncio.open_connection(sink.host, sink.port)
            await reader.readline()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    run(scenario())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "relay.test", ""])
def test_listens_on_this_machine_only(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"sink\.host"):
        Sink(host)


@pytest.mark.parametrize("mode", ["starttls", "tls"])
def test_tls_wants_a_certificate(mode: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"sink\.certificate"):
        Sink(tls=mode)
    missing = CertificatePair(tmp_path / "no.pem", tmp_path / "no.key")

    async def scenario() -> None:
        async with Sink(tls=mode, certificate=missing):
            pass

    with pytest.raises(ConfigurationError, match=r"sink\.certificate"):
        run(scenario())


def test_a_port_that_is_taken() -> None:
    async def scenario() -> None:
        async with Sink() as one, Sink(port=one.port):
            pass

    with pytest.raises(ConfigurationError, match=r"sink\.port"):
        run(scenario())


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_aiosmtpd(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("aiosmtpd"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_aiosmtpd)

    async def scenario() -> None:
        async with Sink():
            pass

    with pytest.raises(ConfigurationError, match=r"referrals\[sink\]"):
        run(scenario())
