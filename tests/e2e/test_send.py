"""`send` and `relay check` through real sockets: what arrives, what is refused, what is said."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from referrals.directory import Directory
from referrals.samples import sample_case
from referrals.service import Service
from referrals.sink import Arrived, Sink
from tests.conftest import CONFIG, TODAY
from tests.e2e.conftest import REFERRALS, Beside, Command, Done, RelayEnv
from tests.peers import Certificates, Drop, Say, ScriptedRelay, Step, serving

PASSWORD = "correct horse Battery 9"
LOGIN = ("referrals", SecretStr(PASSWORD))
ADDRESS = "community@nottinghamcityhomes.org.uk"
SEND = ("send", "mediation", "case.json", "--yes", "--accept-unverified")


def sink(security: str, certificates: Certificates, **more: Any) -> Sink:
    mode: Any = security
    return Sink(tls=mode, certificate=certificates.good, **more)


@pytest.mark.parametrize("login", [False, True])
@pytest.mark.parametrize("security", ["none", "starttls", "tls"])
def test_arrives_as_it_was_composed(
    security: str,
    login: bool,
    certificates: Certificates,
    case_file: Path,
    referrals: Command,
    relay_env: RelayEnv,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _length: "c0ffee")
    with Beside(sink(security, certificates, login=LOGIN if login else None)) as relay:
        relay_env(relay.port, security, ca_file=certificates.ca_file)
        if login:
            monkeypatch.setenv("REFERRALS_RELAY_USERNAME", LOGIN[0])
            monkeypatch.setenv("REFERRALS_RELAY_PASSWORD", PASSWORD)
        done = referrals(*SEND)
    case, place = service.read(json.loads(case_file.read_bytes()))
    referral = service.prepare(service.assess(case, place, "mediation"))
    composed = service.outgoing(referral, token="c0ffee", accept_unverified=True)

    assert (done.code, done.err) == (0, "")
    assert f"{referral.reference} mediation: relayed" in done.out
    (arrived,) = relay.arrived
    assert arrived.content == composed.content
    assert arrived.recipients == (ADDRESS,)
    assert arrived.sender == case.referrer.email
    assert (arrived.secured, arrived.logged_in) == (security != "none", login)
    message = message_from_bytes(arrived.content, policy=default)
    assert message["X-Unsent"] is None
    assert [len(message.get_all(name, [])) for name in ("Date", "Message-ID", "To")] == [1, 1, 1]
    assert message["To"] == ADDRESS
    assert message["Date"].datetime == service.now()


def test_each_message_has_an_id_of_its_own(
    case_file: Path, referrals: Command, relay_env: RelayEnv
) -> None:
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        for number in range(2):
            assert referrals(*SEND, "--set", f"reference=CASE-{number}").code == 0
    ids = [message_from_bytes(one.content)["Message-ID"] for one in relay.arrived]
    assert len(set(ids)) == 2


def test_json_tells_the_reply(case_file: Path, referrals: Command, relay_env: RelayEnv) -> None:
    with Beside(ScriptedRelay()) as relay:
        relay_env(relay.port)
        done = referrals(*SEND, "--json")
    told = done.json
    assert (done.code, told["status"], told["to"]) == (0, "relayed", ADDRESS)
    assert told["reply"] == {"code": 250, "enhanced": "2.0.0", "text": "taken as X1"}
    assert told["relay"] == f"127.0.0.1:{relay.port}"


# Not unless one says so


@pytest.mark.parametrize("more", [[], ["--accept-unverified"], ["--json"]])
def test_without_yes_nothing_connects(
    more: list[str], case_file: Path, referrals: Command, relay_env: RelayEnv
) -> None:
    with Beside(ScriptedRelay()) as relay:
        relay_env(relay.port)
        done = referrals("send", "mediation", "case.json", *more)
    assert done.code == 0
    assert relay.connections == 0
    assert "not submitted" in done.out or "Nothing was submitted" in done.out


@pytest.mark.parametrize(
    "argv",
    [
        ["send", "mediation", "case.json", "--yes"],
        ["send", "police-dispersal-order", "case.json", "--yes", "--accept-unverified"],
        [*SEND, "--set", "consents.1.given=no"],
        [*SEND, "--set", "people.victim.name="],
    ],
)
def test_what_may_not_go_connects_to_nothing(
    argv: list[str], case_file: Path, referrals: Command, relay_env: RelayEnv
) -> None:
    with Beside(ScriptedRelay()) as relay:
        relay_env(relay.port)
        done = referrals(*argv)
    assert done.code in (3, 4, 7)
    assert done.out == ""
    assert relay.connections == 0


@pytest.mark.parametrize(
    "typed",
    [
        [],
        ["--set", "answers.police-dispersal-order.to=inspector@police.example.com"],
        ["--set", "to=inspector@police.example.com"],
        ["--set", "agency.email=inspector@police.example.com"],
    ],
)
def test_no_typing_gives_the_dispersal_order_an_address(
    typed: list[str], case_file: Path, referrals: Command, relay_env: RelayEnv
) -> None:
    with Beside(ScriptedRelay()) as relay:
        relay_env(relay.port)
        done = referrals(
            "send", "police-dispersal-order", "case.json", "--yes", "--accept-unverified", *typed
        )
    assert done.code == (3 if typed else 7)
    assert relay.connections == 0
    assert typed or "only be drafted" in done.err


def with_agency(home: Path, agency: str, lines: str) -> Path:
    """A deployment's own config, in which an agency has these lines too."""
    config = Path(shutil.copytree(CONFIG, home / "config"))
    file = config / "regions" / "nottinghamshire" / "agencies.toml"
    text = file.read_text(encoding="utf-8")
    before, after = text.split(f'id = "{agency}"\n')
    after = re.sub(r'^verified_on = ""\n', "", after, count=1, flags=re.MULTILINE)
    file.write_text(f'{before}id = "{agency}"\n{lines}\n{after}', encoding="utf-8")
    return config


def test_the_dispersal_order_goes_once_the_deployment_gives_an_address(
    home: Path,
    case_file: Path,
    referrals: Command,
    relay_env: RelayEnv,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = 'email = "inspectors@police.example.com"\nverified_on = 2026-11-02'
    monkeypatch.setenv("REFERRALS_CONFIG", str(with_agency(home, "authorising-inspector", lines)))
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        done = referrals("send", "police-dispersal-order", "case.json", "--yes")
    assert (done.code, done.err) == (0, "")
    assert [one.recipients for one in relay.arrived] == [("inspectors@police.example.com",)]


@pytest.mark.parametrize(
    ("verified_on", "code"),
    [("2026-11-24", 0), ("2026-05-28", 0), ("2026-05-27", 7)],
    ids=["today", "180 days ago", "181 days ago"],
)
def test_an_address_is_trusted_for_its_review_time(
    verified_on: str,
    code: int,
    home: Path,
    case_file: Path,
    referrals: Command,
    relay_env: RelayEnv,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = with_agency(home, "nottingham-city-homes", f"verified_on = {verified_on}")
    monkeypatch.setenv("REFERRALS_CONFIG", str(config))
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        assert referrals("send", "mediation", "case.json", "--yes").code == code
        assert len(relay.arrived) == (code == 0)


def test_no_relay_is_said_with_what_to_do(case_file: Path, referrals: Command) -> None:
    for argv in (SEND, ("relay", "check")):
        done = referrals(*argv)
        assert done.code == 5
        assert "REFERRALS_RELAY_HOST" in done.err
        assert "drafts work without it" in done.err
        problem = referrals(*argv, "--json").json["error"]["problems"][0]
        assert (problem["where"], problem["code"]) == ("relay.host", "no-relay")


# What a relay may answer


OUTCOMES: dict[str, tuple[dict[str, Step], int, str, str, dict[str, Any] | None]] = {
    "busy": (
        {"rcpt": Say(b"451 4.7.1 greylisted, come back\r\n")},
        8, "delayed", "recipient", {"code": 451, "enhanced": "4.7.1",
                                    "text": "greylisted, come back"},
    ),
    "closing": ({"greeting": Say(b"421 4.3.2 closing\r\n")}, 8, "delayed", "greeting",
                {"code": 421, "enhanced": "4.3.2", "text": "closing"}),
    "lost before the content": ({"data": Drop(reset=True)}, 8, "delayed", "data", None),
    "unknown recipient": (
        {"rcpt": Say(b"550 5.1.1 no such mailbox\r\n")},
        9, "failed", "recipient", {"code": 550, "enhanced": "5.1.1", "text": "no such mailbox"},
    ),
    "content refused": (
        {"content": Say(b"554-5.7.1 no\r\n554 5.7.1 thanks\r\n")},
        9, "failed", "content", {"code": 554, "enhanced": "5.7.1", "text": "no thanks"},
    ),
    "lost after the content": ({"content": Drop()}, 10, "uncertain", "content", None),
    "login wanted": (
        {"mail": Say(b"530 5.7.0 log in first\r\n")},
        11, "relay-refused", "sender", {"code": 530, "enhanced": "5.7.0",
                                        "text": "log in first"},
    ),
    "not welcome": ({"greeting": Say(b"554 5.7.1 not you\r\n")}, 11, "relay-refused", "greeting",
                    {"code": 554, "enhanced": "5.7.1", "text": "not you"}),
}  # fmt: skip


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_each_outcome_has_its_exit_code_and_words(
    outcome: str, case_file: Path, referrals: Command, relay_env: RelayEnv
) -> None:
    script, code, kind, stage, reply = OUTCOMES[outcome]
    with Beside(ScriptedRelay(script)) as relay:
        relay_env(relay.port)
        words = referrals(*SEND)
        as_json = referrals(*SEND, "--json", "--set", "reference=OTHER-2")
    assert (words.code, as_json.code) == (code, code)
    assert (words.out, as_json.err) == ("", "")
    error = as_json.json["error"]
    assert (error["code"], error["stage"], error["reply"]) == (kind, stage, reply)
    assert words.err == f"Error: {error['message']}\n"


def test_nobody_there_is_delayed(case_file: Path, referrals: Command, relay_env: RelayEnv) -> None:
    with Beside(ScriptedRelay()) as relay:
        port = relay.port
    relay_env(port)
    done = referrals(*SEND)
    assert done.code == 8
    assert "does not hold the message" in done.err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("expired", "has expired"),
        ("not_yet", "is not valid yet"),
        ("other_host", "is for another host"),
        ("stranger", "does not know"),
        ("self_signed", "self-signed"),
    ],
)
@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_bad_certificate_stops_it_before_anything_is_told(
    name: str,
    words: str,
    security: str,
    certificates: Certificates,
    case_file: Path,
    referrals: Command,
    relay_env: RelayEnv,
) -> None:
    server = ScriptedRelay(tls=serving(getattr(certificates, name)), implicit=security == "tls")
    with Beside(server) as relay:
        relay_env(
            relay.port, security, ca_file=certificates.ca_file, username="me", password=PASSWORD
        )
        for argv in (SEND, ("relay", "check")):
            done = referrals(*argv)
            assert done.code == 11
            assert words in done.err
    assert not {"AUTH", "MAIL"} & set(relay.verbs)


def test_a_relay_that_hides_starttls_gets_nothing(
    certificates: Certificates, case_file: Path, referrals: Command, relay_env: RelayEnv
) -> None:
    with Beside(ScriptedRelay()) as relay:
        relay_env(relay.port, "starttls", username="me", password=PASSWORD)
        done = referrals(*SEND)
    assert done.code == 11
    assert "does not offer STARTTLS" in done.err
    assert set(relay.verbs) <= {"EHLO", "QUIT"}


@pytest.mark.parametrize("given", ["wrong", ""])
def test_a_wrong_login_is_the_operators_fault(
    given: str,
    certificates: Certificates,
    case_file: Path,
    referrals: Command,
    relay_env: RelayEnv,
) -> None:
    with Beside(sink("tls", certificates, login=LOGIN)) as relay:
        login = {"username": LOGIN[0], "password": given} if given else {}
        relay_env(relay.port, "tls", ca_file=certificates.ca_file, **login)
        done = referrals(*SEND)
    assert done.code == 11
    assert relay.arrived == []


def test_a_link_in_the_clear_to_another_machine_is_refused(
    case_file: Path, referrals: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFERRALS_RELAY_HOST", "relay.example.com")
    monkeypatch.setenv("REFERRALS_RELAY_SECURITY", "none")
    done = referrals(*SEND)
    assert done.code == 5
    assert "on this machine only" in done.err


def test_stopping_while_it_is_submitted_is_uncertain(
    case_file: Path, referrals: Command, relay_env: RelayEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("referrals.transports.smtp.Session.submit", stopped)
    with Beside(ScriptedRelay()) as relay:
        relay_env(relay.port)
        both = [referrals(*SEND), referrals(*SEND, "--json", "--set", "reference=OTHER-2")]
    for done in both:
        assert done.code == 10
        assert "may have it or not" in done.said
        assert "Traceback" not in done.said


# relay check


@pytest.mark.parametrize("security", ["none", "starttls", "tls"])
def test_a_relay_is_checked_without_mail(
    security: str, certificates: Certificates, referrals: Command, relay_env: RelayEnv
) -> None:
    with Beside(sink(security, certificates, login=LOGIN)) as relay:
        relay_env(
            relay.port,
            security,
            ca_file=certificates.ca_file,
            username=LOGIN[0],
            password=PASSWORD,
        )
        words, as_json = referrals("relay", "check"), referrals("relay", "check", "--json")
    assert (words.code, words.err, as_json.code) == (0, "", 0)
    assert f"127.0.0.1:{relay.port} is ready." in words.out
    assert "logged in: yes" in words.out
    assert not re.search(r"None|[{}()\[\]]'", words.out)
    told = as_json.json
    assert told["logged_in"] is True
    assert (told["tls_version"] is None) is (security == "none")
    if security != "none":
        assert "TLSv1" in words.out
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT.*", told["certificate"]["not_after"])
    assert relay.arrived == []
    assert PASSWORD not in words.said + as_json.said


# A password that is asked for


def at_a_terminal(argv: list[str], answer: str) -> Done:
    """Run it where somebody can be asked, who answers once."""
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        [*REFERRALS, *argv], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    seen, answered = b"", False
    while True:
        try:
            part = os.read(ours, 65_536)
        except OSError:  # EIO: the other end was closed
            break
        seen += part
        if not answered and b"Password of" in seen and seen.rstrip().endswith(b":"):
            os.write(ours, answer.encode() + b"\n")
            answered = True
    os.close(ours)
    assert answered, seen
    return Done(running.wait(60), seen.decode(), "")


@pytest.mark.parametrize(("typed", "code"), [(PASSWORD, 0), ("not this one", 11)])
def test_a_terminal_is_asked_for_the_password_and_shows_none(
    typed: str,
    code: int,
    certificates: Certificates,
    home: Path,
    relay_env: RelayEnv,
) -> None:
    with Beside(sink("starttls", certificates, login=LOGIN)) as relay:
        relay_env(relay.port, "starttls", ca_file=certificates.ca_file, username=LOGIN[0])
        done = at_a_terminal(["relay", "check"], typed)
    assert done.code == code, done.out
    assert f"Password of referrals at 127.0.0.1:{relay.port}" in done.out
    assert typed not in done.out
    assert "Traceback" not in done.out


def test_where_nobody_can_be_asked_the_setting_is_named(
    case_file: Path, referrals: Command, relay_env: RelayEnv
) -> None:
    relay_env(2525, username="me")
    done = referrals(*SEND)
    assert done.code == 5
    assert "REFERRALS_RELAY_PASSWORD" in done.err


# All seven


def test_each_intervention_reaches_its_own_address_alone(
    directory: Directory, home: Path, referrals: Command, relay_env: RelayEnv
) -> None:
    case = sample_case(directory, sorted(directory.interventions), TODAY)
    (home / "case.json").write_text(json.dumps(case), encoding="utf-8")
    addressed = sorted(set(directory.interventions) - {"police-dispersal-order"})
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        for name in addressed:
            done = referrals("send", name, "case.json", "--yes", "--accept-unverified", "--json")
            assert done.code == 0
            assert recipient(relay.arrived[-1]) == done.json["to"]
    expected = {
        directory.agencies[directory.interventions[name].routes["city"]].email for name in addressed
    }
    assert {recipient(one) for one in relay.arrived} == expected
    assert len(relay.arrived) == len(addressed)


def recipient(arrived: Arrived) -> str:
    (only,) = arrived.recipients
    assert message_from_bytes(arrived.content, policy=default)["To"] == only
    return only
