"""The command against a real Postfix: TLS, SASL login, its policies, limits and absences."""

from __future__ import annotations

import io
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from email import message_from_bytes
from pathlib import Path

import pytest
from pydantic import SecretStr

from referrals.case_files import flatten
from referrals.delivery import DeliveryStatus, Submission
from referrals.directory import Directory
from referrals.errors import TransientDeliveryError
from referrals.outboxes.sqlite.outbox import SqliteOutbox
from referrals.relay_log import RelayLog
from referrals.samples import sample_case
from referrals.settings import Security
from tests.account import Wanted, check
from tests.conftest import NOW, TODAY
from tests.e2e.conftest import Command, RelayEnv
from tests.e2e.test_batch import NCH, rows_of, write
from tests.office import Office
from tests.peers import Certificates
from tests.postfix import ANVIL_UNIT_S, LOGIN, Postfix, presenting
from tests.queued import SENDER, submission

COUNT = 12
SEND = ("batch", "cases.csv", "--send", "--accept-unverified")
DAY = timedelta(days=1)
ITS_HEADERS = {"return-path", "x-original-to", "delivered-to", "received"}

ALL_KEYWORDS = "pipelining,size,8bitmime,smtputf8,enhancedstatuscodes,dsn,chunking,vrfy,etrn"
SERVICES = {
    "starttls": {},
    "tls": {"smtpd_tls_wrappermode": "yes"},
    "clear": {"smtpd_tls_security_level": "none", "smtpd_tls_auth_only": "no"},
    "stripped": {"smtpd_discard_ehlo_keywords": "starttls"},
    "no login": {"smtpd_discard_ehlo_keywords": "auth"},
    "no pipelining": {"smtpd_discard_ehlo_keywords": "pipelining"},
    "no 8bitmime": {"smtpd_discard_ehlo_keywords": "8bitmime"},
    "no smtputf8": {"smtpd_discard_ehlo_keywords": "smtputf8"},
    "no size": {"smtpd_discard_ehlo_keywords": "size"},
    "nothing": {"smtpd_discard_ehlo_keywords": ALL_KEYWORDS},
    "small": {"message_size_limit": "2000"},
    "refuses the content": {"smtpd_end_of_data_restrictions": "reject"},
    "small, unsaid": {"message_size_limit": "2000", "smtpd_discard_ehlo_keywords": "size"},
    "refuses": {
        "smtpd_recipient_restrictions": f"check_recipient_access inline:{{{{{NCH}=REJECT}}}}"
    },
    "defers": {
        "smtpd_recipient_restrictions": f"check_recipient_access inline:{{{{{NCH}=DEFER}}}}"
    },
    "impatient": {
        "smtpd_recipient_restrictions": f"check_recipient_access inline:{{{{{NCH}=REJECT}}}}",
        "smtpd_soft_error_limit": "2",
        "smtpd_hard_error_limit": "4",
    },
    "one link": {"smtpd_client_connection_count_limit": "1"},
    "few links": {"smtpd_client_connection_rate_limit": "2"},
    "few messages": {"smtpd_client_message_rate_limit": "5"},
    "few recipients": {"smtpd_client_recipient_rate_limit": "5"},
    "few logins": {"smtpd_client_auth_rate_limit": "2"},
    "few handshakes": {"smtpd_client_new_tls_session_rate_limit": "2"},
    "little junk": {"smtpd_junk_command_limit": "2"},
}


@pytest.fixture(scope="session")
def postfix(certificates: Certificates) -> Iterator[Postfix]:
    bad = {
        "expired": presenting(certificates.expired),
        "other host": presenting(certificates.other_host),
        "self-signed": presenting(certificates.self_signed),
    }
    with Postfix(certificates, SERVICES | bad) as running:
        yield running
        assert "fatal: " not in running.log()


@pytest.fixture(autouse=True)
def _nothing_there(postfix: Postfix) -> None:
    postfix.forget()


class Desk:
    """Somebody at the command line, with a relay to talk to and a clock that can be put on."""

    def __init__(
        self,
        referrals: Command,
        relay_env: RelayEnv,
        postfix: Postfix,
        certificates: Certificates,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self._referrals = referrals
        self._relay_env = relay_env
        self._postfix = postfix
        self._certificates = certificates
        self._now = NOW
        monkeypatch.setattr("referrals.bootstrap.now", lambda: self._now)

    def use(
        self,
        service: str,
        *,
        password: str = LOGIN[1],
        security: str = "starttls",
        timeout_s: str = "5",
    ) -> None:
        self._relay_env(
            self._postfix.ports[service],
            security,
            ca_file=self._certificates.ca_file,
            username=LOGIN[0],
            password=password,
            timeout_s=timeout_s,
        )

    def __call__(self, *argv: str) -> int:
        done = self._referrals(*argv)
        self.said = done.said
        assert "Traceback" not in done.said
        assert LOGIN[1] not in done.said
        return done.code

    def wait(self, time: timedelta) -> None:
        self._now += time

    def account(self) -> Counter[str]:
        """What there is of each status, after the check that it is true."""
        with SqliteOutbox.open(Path("outbox/outbox.sqlite3"), "test") as outbox:
            queued = [Wanted(one.reference, outbox.content(one.id) or b"") for one in outbox.held()]
            assert len(queued) == COUNT
            return check(outbox, queued, delivered(self._postfix, [one.content for one in queued]))

    def attempts(self) -> int:
        with SqliteOutbox.open(Path("outbox/outbox.sqlite3"), "test") as outbox:
            return sum(one.attempts for one in outbox.held())

    def deliver_the_rest(self) -> None:
        """Where all is well, all is relayed in the end."""
        self.use("starttls")
        self.wait(DAY)
        assert self("deliver") == 0, self.said
        assert self.account() == {"relayed": COUNT}


def delivered(postfix: Postfix, sent: list[bytes]) -> list[bytes]:
    """What arrived, with Postfix's own headers in front taken off.

    Nothing that we wrote may have been changed, and nothing added but in front.
    """
    ours = {message_id(one): one for one in sent}
    contents = []
    for arrived in postfix.arrived():
        content = ours[message_id(arrived)]
        assert arrived.endswith(content), "changed on the way"
        front = message_from_bytes(arrived.removesuffix(content))
        assert {name.lower() for name in front.keys()} <= ITS_HEADERS  # noqa: SIM118 - not a dict
        contents.append(content)
    return contents


def message_id(content: bytes) -> bytes:
    found = re.search(rb"^Message-ID:\s*(<[^>]+>)", content, re.MULTILINE | re.IGNORECASE)
    assert found
    return found[1]


@pytest.fixture
def desk(
    directory: Directory,
    referrals: Command,
    relay_env: RelayEnv,
    postfix: Postfix,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
) -> Desk:
    """A batch is there to be sent."""
    cells = dict(flatten(sample_case(directory, ["mediation"], TODAY)))
    write(rows_of(cells, COUNT))
    return Desk(referrals, relay_env, postfix, certificates, monkeypatch)


# All is well


@pytest.mark.parametrize(("service", "security"), [("starttls", "starttls"), ("tls", "tls")])
def test_all_arrive_as_they_were_written(service: str, security: str, desk: Desk) -> None:
    desk.use(service, security=security)
    assert desk("relay", "check") == 0, desk.said
    assert "logged in: yes" in desk.said
    assert desk(*SEND) == 0, desk.said
    assert desk.account() == {"relayed": COUNT}
    assert desk(*SEND) == 0, desk.said
    assert desk.account() == {"relayed": COUNT}, "the same file again doubles nothing"


@pytest.mark.parametrize(
    "service", ["no pipelining", "no 8bitmime", "no smtputf8", "no size", "nothing"]
)
def test_what_the_relay_does_not_offer_is_not_missed(service: str, desk: Desk) -> None:
    desk.use(service)
    assert desk(*SEND) == 0, desk.said
    assert desk.account() == {"relayed": COUNT}
    assert desk.attempts() == COUNT


# The operator's to mend: nothing is tried, and nothing fails


@pytest.mark.parametrize(
    ("service", "security", "password", "words"),
    [
        ("starttls", "starttls", "wrong", "refused the login"),
        ("tls", "tls", "wrong", "refused the login"),
        ("stripped", "starttls", LOGIN[1], "does not offer STARTTLS"),
        ("clear", "starttls", LOGIN[1], "does not offer STARTTLS"),
        ("no login", "starttls", LOGIN[1], "offers no login"),
        ("expired", "starttls", LOGIN[1], "has expired"),
        ("other host", "starttls", LOGIN[1], "is for another host"),
        ("self-signed", "starttls", LOGIN[1], "is self-signed"),
        ("starttls", "tls", LOGIN[1], "no TLS in common"),
    ],
)
def test_what_the_operator_must_mend_fails_no_referral(
    service: str, security: str, password: str, words: str, desk: Desk
) -> None:
    desk.use(service, security=security, password=password)
    assert desk("relay", "check") == 11
    assert words in desk.said
    assert desk(*SEND) == 11
    assert words in desk.said
    assert desk.account() == {"queued": COUNT}
    assert desk("deliver") == 11
    assert (desk.account(), desk.attempts()) == ({"queued": COUNT}, 0)

    desk.deliver_the_rest()


def test_tls_where_it_is_not_spoken_at_once_is_told_from_the_relay_being_away(desk: Desk) -> None:
    desk.use("tls", security="starttls", timeout_s="0.5")  # each waits for the other to speak first
    assert desk("deliver") == 0
    assert desk(*SEND) == 8
    assert "relay.security" in desk.said
    assert (desk.account(), desk.attempts()) == ({"queued": COUNT}, 0)

    desk.deliver_the_rest()


# The relay's policies


@pytest.mark.parametrize(
    ("service", "code", "status", "words"),
    [
        ("refuses", 9, "failed", "554 5.7.1"),
        ("impatient", 9, "failed", "554 5.7.1"),
        ("defers", 8, "delayed", "450 4.7.1"),
        ("small", 9, "failed", "too big"),
        ("small, unsaid", 9, "failed", "552 5.3.4"),
    ],
)
def test_what_the_relay_will_not_take(
    service: str, code: int, status: str, words: str, desk: Desk
) -> None:
    desk.use(service)
    assert desk(*SEND) == code
    counts = desk.account()
    # Where one after another is put off, the rest need not be tried.
    assert counts == {status: COUNT} or set(counts) == {"delayed", "queued"}
    assert desk.attempts() == counts[status]
    with SqliteOutbox.open(Path("outbox/outbox.sqlite3"), "test") as outbox:
        references = [one.reference for one in outbox.held(status=DeliveryStatus(status))]
    assert desk("outbox", "show", references[0]) == 0
    assert words in desk.said

    for reference in references if status == "failed" else ():
        assert desk("outbox", "retry", reference) == 0
    desk.deliver_the_rest()


def test_its_log_tells_what_it_took_from_what_it_only_looked_at(
    desk: Desk, postfix: Postfix
) -> None:
    def told() -> RelayLog:
        log = RelayLog()
        log.read(io.BytesIO(postfix.log().encode()))
        return log

    desk.use("refuses the content")
    assert desk(*SEND) == 9
    with SqliteOutbox.open(Path("outbox/outbox.sqlite3"), "test") as outbox:
        held = outbox.held(status=DeliveryStatus.FAILED)
    ours = {one.message_id for one in held}
    log = told()
    assert (len(ours), ours & log.taken, ours <= log.named) == (COUNT, set(), True)

    for one in held:
        assert desk("outbox", "retry", one.reference) == 0
    desk.deliver_the_rest()
    assert ours <= told().taken


# The relay's limits: normal life


@pytest.mark.parametrize("service", ["one link", "little junk"])
def test_a_limit_of_links_only_slows_it_down(service: str, desk: Desk) -> None:
    desk.use(service)
    assert desk(*SEND) == 0, desk.said
    assert desk.account() == {"relayed": COUNT}
    assert desk.attempts() == COUNT


@pytest.mark.parametrize(
    "service",
    ["few links", "few messages", "few recipients", "few logins", "few handshakes"],
)
def test_a_limit_by_time_is_waited_out(service: str, desk: Desk) -> None:
    """The relay counts for so many seconds; we come back later, and nothing fails."""
    desk.use(service)
    code = desk(*SEND)
    for _ in range(COUNT):
        assert code in {0, 8}, desk.said
        counts = desk.account()
        assert set(counts) <= {"relayed", "queued", "delayed"}
        if counts == {"relayed": COUNT}:
            return
        time.sleep(ANVIL_UNIT_S)
        desk.wait(DAY)
        code = desk("deliver")
    pytest.fail(f"not all got through: {counts}")


# Letters that need more than ASCII


@pytest.fixture
def office(tmp_path: Path, certificates: Certificates) -> Iterator[Office]:
    """Where a test must look into the midst of a run."""
    with SqliteOutbox.open(tmp_path / "outbox.sqlite3", "tester") as outbox:
        yield Office(
            outbox,
            relay={
                "security": Security.STARTTLS,
                "username": LOGIN[0],
                "password": SecretStr(LOGIN[1]),
                "ca_file": certificates.ca_file,
            },
        )


def account(office: Office, postfix: Postfix, doubts: int = 0) -> Counter[str]:
    sent = [one.outgoing.content for one in office.queued]
    return office.check_in_part(delivered(postfix, sent), doubts)


def letter(number: int, body: str = "words of a letter\r\n" * 50) -> Submission:
    """With every header that Postfix would otherwise add."""
    header = (
        f"Message-ID: <R-{number}.token@police.test>\r\nDate: Tue, 24 Nov 2026 12:00:00 +0000\r\n"
        f"From: {SENDER}\r\nTo: agency@council.test\r\nSubject: R-{number}\r\n"
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
        "Content-Transfer-Encoding: 8bit\r\n\r\n"
    )
    return submission(number, content=(header + body).encode())


def letters(count: int) -> list[Submission]:
    return [letter(number) for number in range(1, count + 1)]


@pytest.mark.parametrize(("service", "status"), [("starttls", "relayed"), ("nothing", "failed")])
def test_eight_bits_arrive_as_they_are_or_not_at_all(
    service: str, status: str, office: Office, postfix: Postfix
) -> None:
    office.queue([letter(1, "caf\u00e9 \u2014 \u0645\u0631\u062d\u0628\u0627\r\n.\r\n..dots\r\n")])
    office.deliver(postfix.at(service))
    assert account(office, postfix) == {status: 1}


@pytest.mark.parametrize(
    ("service", "status"), [("starttls", "relayed"), ("no smtputf8", "failed")]
)
def test_an_address_outside_ascii_is_taken_as_it_is_or_not_at_all(
    service: str, status: str, office: Office, postfix: Postfix
) -> None:
    one = letter(1)
    envelope = replace(one.outgoing.envelope, recipient="b\u00fcro@council.test")
    office.queue([replace(one, outgoing=replace(one.outgoing, envelope=envelope))])
    office.deliver(postfix.at(service))
    assert account(office, postfix) == {status: 1}


# Postfix away in the midst of a batch


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("way", ["stop", "kill"])
def test_a_relay_that_is_stopped_and_started_in_the_midst(
    way: str, lanes: int, office: Office, postfix: Postfix
) -> None:
    office.queue(letters(40))
    ended: list[bool] = []

    def told(*_: object) -> None:
        if not ended and office.outbox.counts().get("relayed", 0) >= 10:
            ended.append(True)
            postfix.stop() if way == "stop" else postfix.kill()

    office.deliver(postfix.at("starttls"), lanes=lanes, told=told)
    assert ended
    try:
        counts = Counter(office.outbox.counts())
        assert counts["relayed"] >= 10
        assert counts["failed"] == 0
        assert counts.total() == 40
    finally:
        postfix.start()
    office.now += DAY
    report = office.deliver(postfix.at("starttls"))
    assert report.relay_fault is None
    assert account(office, postfix, lanes) == {"relayed": 40}


def test_what_is_queued_while_it_is_away_is_delivered_when_it_is_back(
    office: Office, postfix: Postfix
) -> None:
    office.queue(letters(20))
    postfix.stop()
    try:
        away = office.deliver(postfix.at("starttls"))
        assert isinstance(away.relay_fault, TransientDeliveryError)
        assert office.outbox.counts() == {"queued": 20}
    finally:
        postfix.start()
    assert office.deliver(postfix.at("starttls")).relay_fault is None
    assert account(office, postfix) == {"relayed": 20}


@pytest.mark.parametrize("timeout_s", [0.7, 20.0])
def test_a_relay_that_sleeps_for_a_while(
    timeout_s: float, office: Office, postfix: Postfix
) -> None:
    """Who waits long enough is in no doubt; who does not is in doubt of what was under way."""
    office.queue(letters(30))
    alarm = threading.Timer(1.5, postfix.resume)

    def told(*_: object) -> None:
        if alarm.ident is None and office.outbox.counts().get("relayed", 0) >= 8:
            postfix.pause()
            alarm.start()

    office.deliver(postfix.at("starttls"), timeout_s=timeout_s, final_wait_s=timeout_s, told=told)
    alarm.join()
    assert not (office.in_doubt() and timeout_s > 5)
    office.now += DAY
    office.deliver(postfix.at("starttls"))
    assert account(office, postfix, 3) == {"relayed": 30}
