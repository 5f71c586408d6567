"""Personal data stays in the letter: not in logs, errors, names, headers or reports.

A case carries a unique word in every value that a person typed. Wherever else than in a letter's
body one of them turns up, something leaks.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
from dataclasses import dataclass
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest

from referrals.cli import faults
from referrals.directory import Directory, QuestionType
from referrals.samples import sample_case
from referrals.service import Service
from referrals.sink import Sink
from tests.conftest import TODAY
from tests.e2e.conftest import Beside, Command, Done, RelayEnv, process
from tests.peers import Certificates, Drop, Say, ScriptedRelay, Step, serving

WORD = re.compile(r"zq\d{3}zq", re.IGNORECASE)
BORN = ("2011-07-23", "23 July 2011", "23/07/2011")
HOME = "NG7 5HN"
PASSWORD = "zq999zq Pass"
FREE = {QuestionType.LINE, QuestionType.TEXT}
# Not typed freely: choices, dates, and what the directory knows.
CHOSEN = {
    "reference", "area", "district", "on", "record", "strand", "person", "interventions", "given",
    "how", "basis", "code", "withdrawn_on",
}  # fmt: skip


@dataclass(frozen=True)
class Marked:
    """A case and which word stands where."""

    case: dict[str, Any]
    words: dict[str, str]

    def leaked(self, text: str) -> list[str]:
        """Where the words, dates and postcodes of the case in this text come from."""
        places = {word: place for place, word in self.words.items()}
        found = [places.get(word.lower(), word) for word in WORD.findall(text)]
        return found + [sign for sign in (*BORN, HOME, HOME.replace(" ", "")) if sign in text]


def marked(case: dict[str, Any], free: set[str]) -> Marked:
    words: dict[str, str] = {}

    def mark(value: Any, path: str) -> Any:
        key = path.rpartition(".")[2]
        if isinstance(value, dict):
            return {name: mark(inner, f"{path}.{name}".strip(".")) for name, inner in value.items()}
        if isinstance(value, list):
            return [mark(inner, f"{path}.{i}") if isinstance(inner, dict) else inner
                    for i, inner in enumerate(value, 1)]  # fmt: skip
        if not isinstance(value, str) or key in CHOSEN:
            return value
        if path.startswith("answers.") and path not in free:
            return value
        word = words[path] = f"zq{len(words):03}zq"
        match key:
            case "email":
                return f"{word}@council.example.com"
            case "date_of_birth":
                del words[path]
                return BORN[0]
            case _:
                return f"{word} is written here, and this is long enough to be a sentence or two."

    made = mark(case, "")
    return Marked(made, words)


@pytest.fixture(scope="session")
def secret_case(directory: Directory) -> Marked:
    """All that a case can hold: every person with every detail, an override, all answers."""
    case = sample_case(directory, sorted(directory.interventions), TODAY)
    for number, person in enumerate(case["people"].values()):
        person |= {
            "address": "x", "phone": "x", "email": "x", "postcode": "x", "language": "x",
            "access_needs": "x", "date_of_birth": "x",
            "safe_contact": {"method": "x", "times": "x", "avoid": "x"},
        }  # fmt: skip
        assert number < 4
    case["location"] |= {"postcode": "x", "place": "x"}
    case["overrides"] = [
        {"code": "MED-004", "reason": "x", "authorised_by": "x", "on": TODAY.isoformat()}
    ]
    case["answers"]["mediation"]["domestic_abuse"] = True
    free = {
        f"answers.{one.id}.{question.name}"
        for one in directory.interventions.values()
        for question in one.fields
        if question.type in FREE
    }
    made = marked(case, free)
    made.case["location"]["postcode"] = HOME
    for role in ("victim", "young_person"):
        made.case["people"][role]["postcode"] = HOME
    return made


@pytest.fixture
def written(home: Path, secret_case: Marked) -> Path:
    file = home / "case.json"
    file.write_text(json.dumps(secret_case.case), encoding="utf-8")
    return file


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Heard:
    """Everything that is logged, and every error that reaches the command line."""
    caplog.set_level(logging.DEBUG)
    errors: list[Exception] = []
    report = faults.report

    def overheard(error: Exception, as_json: bool) -> int:
        errors.append(error)
        return report(error, as_json)

    monkeypatch.setattr(faults, "report", overheard)
    # What a debugging operator may switch on.
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    return Heard(caplog, errors)


@dataclass(frozen=True)
class Heard:
    caplog: pytest.LogCaptureFixture
    errors: list[Exception]

    def everything(self) -> str:
        told = [self.caplog.text]
        for record in self.caplog.records:
            told += [record.getMessage(), repr(record.args), repr(record.__dict__)]
        for error in self.errors:
            told += [str(error), repr(error), repr(error.__dict__)]
            told += traceback.format_exception(error)
        return "\n".join(told)


def test_the_case_is_marked_everywhere(secret_case: Marked) -> None:
    """Or the tests below would prove little."""
    places = "\n".join(secret_case.words)
    for place in (
        "referrer.name",
        "referrer.email",
        "location.place",
        "incidents.2.what",
        "people.victim.safe_contact.avoid",
        "people.other_party.access_needs",
        "people.parent_or_carer.email",
        "consents.1.recorded_by",
        "lawful_basis.reason",
        "overrides.1.authorised_by",
        "answers.fire-resistant-mailbox.threat",
        "answers.police-dispersal-order.grounds",
    ):
        assert place in places
    assert len(secret_case.words) > 80


def test_nothing_made_of_it_shows_it_in_its_repr(secret_case: Marked, service: Service) -> None:
    """A repr ends up in logs, in tracebacks and on debuggers' screens."""
    case, place = service.read(secret_case.case)
    for name in sorted(service.directory.interventions):
        referral = service.prepare(service.assess(case, place, name))
        assert secret_case.leaked(referral.letter.text)
        made: list[object] = [case, case.people, case.referrer, case.incidents, referral]
        made += [referral.assessment, referral.letter, service]
        if referral.agency.email:
            made.append(service.outgoing(referral, token="1", accept_unverified=True))
        assert secret_case.leaked(repr(made) + str(made)) == []


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "argv", ["check case.json", "suggest case.json", "check case.json mediation"]
)
def test_judging_a_case_repeats_nothing_of_it(
    argv: str, as_json: bool, written: Path, secret_case: Marked, referrals: Command, heard: Heard
) -> None:
    done = referrals(*argv.split(), *(["--json"] if as_json else []))

    assert done.code == 0, done.said
    assert secret_case.leaked(done.said + heard.everything()) == []


def test_drafting_tells_the_letter_and_nobody_else(
    written: Path, secret_case: Marked, referrals: Command, heard: Heard, home: Path
) -> None:
    done = referrals("draft", "--all", "case.json")
    again = referrals("draft", "--all", "case.json", "--json")

    assert (done.code, again.code) == (0, 0), done.said
    assert secret_case.leaked(done.said + again.said + heard.everything()) == []
    drafts = list((home / "outbox" / "drafts").iterdir())
    assert len(drafts) == 7
    assert secret_case.leaked(" ".join(map(str, drafts))) == []
    told = set()
    for draft in drafts:
        told |= set(letter_only(draft.read_bytes(), secret_case))
    assert len(told) > 80, "the letters do tell what they are for"


def letter_only(content: bytes, secret_case: Marked) -> list[str]:
    """What the body tells. The header may hold the referrer, in From and Reply-To, and no more."""
    message = message_from_bytes(content, policy=default)
    name, email = (secret_case.words[f"referrer.{key}"] for key in ("name", "email"))
    for header, value in message.items():
        words = {word.lower() for word in WORD.findall(value)}
        allowed = {"From": {name, email}, "Reply-To": {email}}.get(header, set())
        if header == "Message-ID":
            value = value.replace("council.example.com", "")
        assert words <= allowed, (header, words)
        assert not [sign for sign in (*BORN, HOME) if sign in value]
    for part in message.walk():
        assert part.get_filename() is None
        if part is not message:
            assert secret_case.leaked(str(part.items())) == []
    body = message.get_body(("plain",))
    assert body is not None
    return secret_case.leaked(body.get_content())


def test_previews_hold_it_in_the_letter_alone(
    written: Path, secret_case: Marked, referrals: Command, heard: Heard
) -> None:
    done = referrals("preview", "mediation", "case.json", "--json")
    shown = done.json

    assert done.err == ""
    assert secret_case.leaked(shown["text"])
    for key in ("reference", "subject", "to", "agency", "findings", "acknowledge_by"):
        assert secret_case.leaked(json.dumps(shown[key])) == []
    assert secret_case.leaked(heard.everything()) == []


SEND = ("mediation", "case.json", "--yes", "--accept-unverified")


def test_sending_tells_the_relay_and_nobody_else(
    written: Path,
    secret_case: Marked,
    referrals: Command,
    relay_env: RelayEnv,
    heard: Heard,
    certificates: Certificates,
    home: Path,
) -> None:
    from pydantic import SecretStr

    server = Sink(
        tls="starttls",
        certificate=certificates.good,
        login=("referrals", SecretStr(PASSWORD)),
        keep=home / "sink",
    )
    with Beside(server) as relay:
        relay_env(
            relay.port,
            "starttls",
            ca_file=certificates.ca_file,
            username="referrals",
            password=PASSWORD,
        )
        said = [
            referrals("send", *SEND),
            referrals("send", *SEND, "--json"),  # queued before: says so
            referrals("send", *SEND, "--json", "--set", "reference=OTHER-2"),
            referrals("outbox", "list"),
            referrals("outbox", "list", "--json"),
            referrals("audit", "export"),
            referrals("send", *SEND[:2]),
            referrals("doctor"),
            referrals("doctor", "--json"),
            referrals("relay", "check", "--json"),
        ]
    assert [done.code for done in said] == [0] * len(said)
    everything = "\n".join(done.said for done in said) + heard.everything()
    assert "Using selector" in everything, "asyncio's debug log is listened to"
    assert secret_case.leaked(everything) == []
    assert PASSWORD not in everything
    assert secret_case.leaked(" ".join(map(str, (home / "sink").iterdir()))) == []
    assert len(relay.arrived) == 2
    assert letter_only(relay.arrived[0].content, secret_case)
    assert secret_case.leaked(repr(relay.arrived)) == []


ANSWERS: dict[str, dict[str, Step]] = {
    "refuses the recipient": {"rcpt": Say(b"550 5.1.1 nobody here\r\n")},
    "refuses the content": {"content": Say(b"554 5.6.0 not that\r\n")},
    "is busy": {"content": Say(b"451 4.3.0 later\r\n")},
    "drops the link": {"content": Drop(reset=True)},
    "drops the link at once": {"greeting": Drop()},
    "repeats the sender": {"mail": Say(b"550 5.7.1 I don't take mail from <SENDER>\r\n")},
    "refuses the login": {"auth": Say(b"535 5.7.8 wrong\r\n")},
    "repeats the login": {"auth": Say(b"535 5.7.8 wrong: LOGIN\r\n")},
    "babbles": {"mail": Say(b"hello?\r\n")},
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_relay_that_says_no_learns_and_tells_no_more(
    answer: str,
    written: Path,
    secret_case: Marked,
    referrals: Command,
    relay_env: RelayEnv,
    heard: Heard,
) -> None:
    sender = secret_case.case["referrer"]["email"].encode()
    script = {
        name: Say(step.octets.replace(b"SENDER", sender).replace(b"LOGIN", PASSWORD.encode()))
        if isinstance(step, Say)
        else step
        for name, step in ANSWERS[answer].items()
    }
    with Beside(ScriptedRelay(script)) as relay:
        relay_env(relay.port, username="referrals", password=PASSWORD)
        said = [referrals("send", *SEND), referrals("send", *SEND, "--json")]
    assert [done.code in (8, 9, 10, 11) for done in said] == [True, True]
    assert heard.errors
    everything = "\n".join(done.said for done in said) + heard.everything()
    assert secret_case.leaked(everything) == []
    assert PASSWORD not in everything


def test_a_bad_certificate_tells_nothing(
    written: Path,
    secret_case: Marked,
    referrals: Command,
    relay_env: RelayEnv,
    heard: Heard,
    certificates: Certificates,
) -> None:
    with Beside(ScriptedRelay(tls=serving(certificates.stranger))) as relay:
        relay_env(relay.port, "starttls", username="referrals", password=PASSWORD)
        done = referrals("send", *SEND)
    assert done.code == 11
    assert secret_case.leaked(done.said + heard.everything()) == []
    assert PASSWORD not in done.said + heard.everything()


def test_a_process_with_all_debugging_on_tells_nothing(
    home: Path, secret_case: Marked, relay_env: RelayEnv
) -> None:
    """Python's and asyncio's debugging, and warnings, on standard error."""
    case = json.loads(process("new", "mediation").out)
    case["people"]["victim"]["name"] = "zq500zq"
    case["answers"]["mediation"]["dispute"] = "zq501zq is what the dispute is about, at length."
    env = {"PYTHONASYNCIODEBUG": "1", "PYTHONDEVMODE": "1", "PYTHONWARNINGS": "always"}
    with Beside(Sink()) as relay:
        relay_env(relay.port, username="referrals", password=PASSWORD)
        stdin = json.dumps(case).encode()
        done = process("send", "mediation", "-", *SEND[2:], stdin=stdin, env=env)
    assert "offers no login" in done.err
    assert secret_case.leaked(done.said) == []
    assert PASSWORD not in done.said


# What can't be read is not repeated either

BROKEN: dict[str, Any] = {
    "an address that is none": ["people.victim.email", "zq700zq at home"],
    "a date of the wrong form": ["people.victim.date_of_birth", "zq700zq 2011"],
    "a day that is not": ["people.victim.date_of_birth", "2011-13-23"],
    "a list for a name": ["people.victim.name", ["zq700zq"]],
    "a group for a name": ["people.victim.name", {"zq700zq": "zq701zq"}],
    "a name for a group": ["people.victim", "zq700zq"],
    "two lines for one": ["people.victim.name", "zq700zq\nzq701zq"],
    "a control character": ["people.victim.name", "zq700zq\x07"],
    "half a character": ["people.victim.name", "zq700zq\ud800"],
    "a long name": ["people.victim.name", "zq700zq" * 100],
    "an unknown key": ["people.victim.zq700zq", "zq701zq"],
    "an unknown key of ours": ["people.victim.nickname", "zq701zq"],
    "a key that is a sentence": ["people.Maya zq700zq lives at", "zq701zq"],
    "an unknown answer": ["answers.mediation.Zq700zq", "zq701zq"],
    "an unknown intervention": ["answers.zq700zq", {"zq701zq": "zq702zq"}],
    "a choice that is none": ["answers.mediation.party_a_tenure", "zq700zq"],
    "a yes that is none": ["answers.mediation.domestic_abuse", "zq700zq"],
    "a consent to nothing": ["consents.1.interventions", ["zq700zq"]],
    "a consent of nobody": ["consents.1.person", "zq700zq"],
    "a basis that is none": ["lawful_basis.basis", "zq700zq"],
    "an override of nothing": ["overrides.1.code", "zq700zq"],
    "a name for a reference": ["reference", "zq700zq Maya"],
    "an area that is none": ["location.area", "zq700zq"],
    "a district that is none": ["location.district", "zq700zq"],
    "a postcode that is none": ["location.postcode", "zq700zq"],
}


def put(case: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(case))
    *groups, last = path.split(".")
    place: Any = made
    for part in groups:
        place = place[int(part) - 1] if isinstance(place, list) else place[part]
    place[last] = value
    return made


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_case_is_not_repeated(
    fault: str, secret_case: Marked, referrals: Command, heard: Heard, home: Path
) -> None:
    case = json.dumps(put(secret_case.case, *BROKEN[fault])).encode()
    said = [
        referrals("check", "-", stdin=case),
        referrals("suggest", "-", "--json", stdin=case),
        referrals("draft", "--all", "-", stdin=case),
        referrals("send", "mediation", "-", *SEND[2:], "--json", stdin=case),
    ]
    assert {done.code for done in said} == {3}
    leaks = secret_case.leaked("\n".join(done.said for done in said) + heard.everything())
    if fault in SHOWN_KEYS:
        leaks = [word for word in leaks if word != "zq700zq"]
    assert leaks == []
    assert list(home.iterdir()) == []


# A key of the form of ours is named, so that a mistyped one can be found.
SHOWN_KEYS = {"an unknown key"}


@pytest.mark.parametrize(
    "content",
    [
        b'{"people": zq700zq}',
        b'{"people": "zq700zq',
        b'["zq700zq"]',
        b'"zq700zq"',
        b"zq700zq \xff",
        b'{"Maya zq700zq": 1, "Maya zq700zq": 2}',
        b"reference,people.victim.name\nA1,zq700zq,zq701zq\n",
        b'reference,people.victim.name\nA1,"zq700zq"zq701zq\n',
        b"reference,people.zq700zq Maya\nA1,x\n",
        b"reference,people.victim.name\nzq700zq Maya,zq701zq\n",
    ],
)
def test_a_broken_file_is_not_repeated(
    content: bytes, secret_case: Marked, referrals: Command, heard: Heard
) -> None:
    said: list[Done] = [
        referrals("check", "-", stdin=content),
        referrals("draft", "mediation", "-", "--json", stdin=content),
    ]
    assert {done.code for done in said} == {3}
    told = "\n".join(done.said for done in said) + heard.everything()
    assert secret_case.leaked(told) == []


def test_what_set_is_given_is_not_repeated(
    written: Path, secret_case: Marked, referrals: Command, heard: Heard
) -> None:
    for change in (
        "people.victim.email=zq700zq at home",
        "people.victim.date_of_birth=zq700zq",
        "Maya zq700zq",
        "Maya zq700zq=1",
        "people=zq700zq",
    ):
        done = referrals("check", "case.json", "--set", change)
        assert done.code in (2, 3)
        assert secret_case.leaked(done.said + heard.everything()) == []


def test_secrets_in_broken_settings_are_not_repeated(
    referrals: Command, home: Path, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    said = []
    for name, value in (
        ("REFERRALS_RELAY", json.dumps({"host": "x", "password": PASSWORD})),
        ("REFERRALS_RELAY_PASSWORD", PASSWORD),
        ("REFERRALS_RELAY_PASSWRD", PASSWORD),
        ("REFERRALS_RELAY_PORT", PASSWORD),
        ("REFERRALS_RELAY_SECURITY", PASSWORD),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            said += [referrals("doctor"), referrals("relay", "check", "--json")]
        (home / ".env").write_text(f"{name}={value}\n", encoding="utf-8")
        said += [referrals("doctor"), referrals("doctor", "--json")]
        (home / ".env").unlink()
    secrets = home / "secrets"
    secrets.mkdir()
    (secrets / "relay_password").write_text(PASSWORD, encoding="utf-8")
    monkeypatch.setenv("REFERRALS_SECRETS", str(secrets))
    said.append(referrals("doctor"))

    assert {done.code for done in said} == {5}
    assert PASSWORD not in "\n".join(done.said for done in said) + heard.everything()
