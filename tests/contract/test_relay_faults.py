"""The account after what smtp-sink can't do: faults under TLS, in mid-content, and by chance."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from referrals.delivery import RetryPolicy
from referrals.errors import RelayRefused, TransientDeliveryError
from referrals.outboxes.sqlite.outbox import SqliteOutbox
from referrals.settings import Security
from referrals.worker import Report
from tests.chaos import ChaosRelay
from tests.conftest import NOW
from tests.office import Office
from tests.peers import Certificates, Drop, Hang, Say, ScriptedRelay, Step, run, serving
from tests.queued import submissions

COUNT = 6
TEMPORARY, FOR_GOOD = Say(b"454 4.7.0 not now\r\n"), Say(b"554 5.7.1 never\r\n")
CLOSING = Say(b"421 4.3.2 going down\r\n", close=True)
PATIENT = RetryPolicy(give_up_after=timedelta(days=10_000))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def office(tmp_path: Path, certificates: Certificates) -> Iterator[Office]:
    with SqliteOutbox.open(tmp_path / "outbox" / "outbox.sqlite3", "tester") as outbox:
        office = Office(outbox)
        office.relay = {
            "security": Security.STARTTLS,
            "ca_file": certificates.ca_file,
            "username": "me",
            "password": SecretStr("a long enough password"),
        }
        office.queue(submissions(COUNT))
        yield office


def met(
    office: Office, certificates: Certificates, script: dict[str, Step], lanes: int
) -> tuple[Report, ScriptedRelay]:
    """Try all against a relay with this script."""

    async def scenario() -> tuple[Report, ScriptedRelay]:
        async with ScriptedRelay(script, tls=serving(certificates.good)) as relay:
            report = await office.delivering(relay, lanes=lanes, timeout_s=0.3, final_wait_s=0.3)
            return report, relay

    return run(scenario(), limit_s=30)


def all_is_relayed_in_the_end(office: Office, certificates: Certificates) -> list[bytes]:
    office.now += timedelta(days=1)
    report, relay = met(office, certificates, {}, 3)
    assert report.relay_fault is None
    assert office.outbox.counts() == {"relayed": COUNT}
    return relay.contents


@pytest.mark.parametrize("fault", [Drop(), Drop(reset=True), Hang(), CLOSING, TEMPORARY, FOR_GOOD])
@pytest.mark.parametrize("step", ["starttls", "handshake", "ehlo-secured", "auth"])
def test_what_breaks_while_the_link_is_made_is_no_referrals_fault(
    step: str, fault: Step, office: Office, certificates: Certificates
) -> None:
    report, relay = met(office, certificates, {step: fault}, 3)
    refused = isinstance(report.relay_fault, RelayRefused)
    assert refused or isinstance(report.relay_fault, TransientDeliveryError)
    if step != "handshake":
        assert refused == (fault == FOR_GOOD)
    assert "MAIL" not in relay.verbs
    assert office.check([]) == {"queued": COUNT}
    assert office.attempts() == 0

    assert office.check(all_is_relayed_in_the_end(office, certificates)) == {"relayed": COUNT}


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("fault", [Drop(), Drop(reset=True), CLOSING, TEMPORARY])
def test_a_relay_that_breaks_in_mid_content_took_nothing(
    fault: Step, lanes: int, office: Office, certificates: Certificates
) -> None:
    """The relay had not seen the dot. It may have been written when the fault is noticed."""
    met(office, certificates, {"mid-content": fault}, lanes)
    counts = office.check_in_part([], COUNT)
    assert set(counts) <= {"queued", "delayed", "uncertain"}
    assert counts["queued"] < COUNT
    all_is_relayed_in_the_end(office, certificates)


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("fault", [Drop(), Drop(reset=True), Hang(), Say(b"250 2.0.0 ta", True)])
def test_what_breaks_after_the_dot_under_tls_is_in_doubt(
    fault: Step, lanes: int, office: Office, certificates: Certificates
) -> None:
    _, relay = met(office, certificates, {"content": fault}, lanes)
    assert office.check([], relay.contents) == {"uncertain": COUNT}
    arrived = relay.contents + all_is_relayed_in_the_end(office, certificates)
    assert office.check_in_part(arrived, COUNT) == {"relayed": COUNT}


@pytest.mark.parametrize("security", [Security.NONE, Security.STARTTLS])
@pytest.mark.parametrize("seed", range(4))
def test_by_chance_at_any_step_nothing_is_lost_or_doubled_unawares(
    seed: int, security: Security, office: Office, certificates: Certificates
) -> None:
    office.queue(submissions(30, COUNT + 1))
    if security is Security.NONE:
        office.relay = {"security": security}

    async def scenario() -> int:
        tls = None if security is Security.NONE else serving(certificates.good)
        async with ChaosRelay(tls=tls, seed=seed, odds=0.08) as relay:
            runs = 0
            while set(office.outbox.counts()) - {"relayed", "failed"}:
                runs += 1
                if runs == 60:
                    relay.odds = 0
                assert runs < 70
                await office.delivering(
                    relay, lanes=1 + seed % 4, timeout_s=0.3, final_wait_s=0.2, policy=PATIENT
                )
                await relay.all_closed()
                office.check(relay.taken, relay.doubtful)
                office.now += timedelta(hours=5)
            return runs

    assert run(scenario(), limit_s=60) > 1


@dataclass
class Sparing(ScriptedRelay):
    """Takes so many messages a minute by our clock, and puts off the others at MAIL."""

    now: Callable[[], datetime] = lambda: NOW
    most: int = 30
    minutes: Counter[datetime] = field(default_factory=Counter)

    async def _answer(
        self,
        name: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        usual: Step | None = None,
    ) -> None:
        if name == "mail":
            minute = self.now().replace(second=0)
            self.minutes[minute] += 1
            if self.minutes[minute] > self.most:
                usual = Say(b"450 4.7.1 too much mail from you\r\n")
        await super()._answer(name, reader, writer, usual)


def test_a_limit_of_messages_a_minute_costs_time_and_no_message_its_patience(
    office: Office,
) -> None:
    """Exchange Online takes 30 a minute; ten times as many should take some ten minutes.

    Each message that is put off waits twice as long each time, and fails in the end: so a relay
    that takes nothing just now must not be asked for every message that waits.
    """
    count = 300
    office.queue(submissions(count - COUNT, COUNT + 1))
    office.relay = {"security": Security.NONE}

    async def scenario() -> None:
        began = office.now
        async with Sparing(now=lambda: office.now) as relay:
            while set(office.outbox.counts()) != {"relayed"}:
                await office.delivering(relay, lanes=4)
                assert office.outbox.counts().get("failed", 0) == 0
                assert office.now - began < timedelta(hours=1), office.outbox.counts()
                office.now += timedelta(seconds=30)
            await relay.all_closed()
            assert office.check(relay.contents) == {"relayed": count}

    run(scenario(), limit_s=30)
    assert office.attempts() < 2 * count
