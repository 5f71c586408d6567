"""Our messages as programs of other languages read them: mailparser, postal-mime, Email::MIME.

What is compared is the decoded text, character for character, but for this:
- line ends are LF here, whatever the parser gives for mail's CRLF, and a part ends with one;
- postal-mime puts one more line end after each part, and drops a U+FEFF that a part starts with.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from html.parser import HTMLParser
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from referrals.directory import Directory, Intervention, QuestionType
from referrals.message import Sender, compose_draft, compose_outgoing
from referrals.rendering import Letter
from referrals.samples import sample_case
from referrals.service import Service
from tests.hostile import BATCH, FRAGMENTS, LINE_SEPARATORS, mixed
from tests.soft_breaks import EDGES

FOLDER = Path(__file__).resolve().parents[1] / "parsers"
PARSERS = ("mailparser", "postal-mime", "Email::MIME")
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
TODAY = date(2026, 11, 24)
TO = "Hate.crime@nottinghamshire.pnn.police.uk"
NAMES = (
    "Sam Officer",
    "Zo\u00eb O'Brien",
    'Sam "Sandy" Officer (PC 123), Example',
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u0645\u0631\u062d\u0628\u0627",
    "\u202eabc",
    "back\\slash; semi:colon <at> a@b",
    "\u00e4" * 90,
)


@dataclass(frozen=True)
class Sent:
    """A message that we made, and what it was made from."""

    letter: Letter
    sender: Sender
    to: str | None
    marking: str
    content: bytes


def made(letter: Letter, sender: Sender, to: str | None, marking: str, *, draft: bool) -> Sent:
    if draft or to is None:
        content = compose_draft(letter, sender, to, marking)
    else:
        content = compose_outgoing(
            letter, sender, to, marking, date=NOW, message_id="<a.b@example.com>"
        )
    return Sent(letter, sender, to, marking, content)


def hostile_messages() -> dict[str, Sent]:
    texts = (*BATCH, *mixed(120), "".join(EDGES))
    messages = {}
    for number, (text, name) in enumerate(zip(texts, cycle(NAMES), strict=False)):
        letter = Letter(f"Referral: number {number}", text, f"<p>{text[:50_000]}</p>\n")
        to = None if number % 10 == 9 else TO
        reply_to = None if number % 7 == 6 else "Sam.O'Brien+x@Council.example.com"
        sender = Sender(name, "Sam.O'Brien+x@Council.example.com", reply_to)
        marking = "" if number % 5 == 4 else "OFFICIAL-SENSITIVE"
        messages[f"text-{number:03}"] = made(letter, sender, to, marking, draft=number % 2 == 0)
    return messages


# A case with something hostile in every field

FREE = {
    "access_needs",
    "address",
    "avoid",
    "language",
    "method",
    "name",
    "organisation",
    "phone",
    "place",
    "reason",
    "recorded_by",
    "role",
    "times",
    "what",
}
OF_SEVERAL_LINES = {"access_needs", "address", "avoid", "reason", "what"}


class Spoiler:
    """Puts hostile text into a raw case, with a mark so that each is found again."""

    def __init__(self) -> None:
        shown = [text for text in (*FRAGMENTS, *LINE_SEPARATORS) if text not in _REFUSED]
        self.fragments = cycle(shown)
        self.planted: dict[str, str] = {}

    def text(self, path: str, *, lines: bool) -> str:
        start = f"qz{len(self.planted):03}zq "
        words = start + "".join(next(self.fragments) for _ in range(4)) + " end"
        words = words.replace("\u2028", "\n").replace("\u2029", "\n")
        if not lines:
            words = words.replace("\n", " ")[:280] + "."
            if path == "referrer.name":
                words = words.replace("=?", "= ?")  # refused in a header, as it would be decoded
        self.planted[path] = words
        return words

    def spoilt(self, raw: Any, intervention: Intervention, path: str = "") -> Any:
        if isinstance(raw, list):
            return [self.spoilt(item, intervention, f"{path}.{n}") for n, item in enumerate(raw)]
        if not isinstance(raw, dict):
            return raw
        return {
            key: self._value(key, value, intervention, f"{path}.{key}".lstrip("."))
            for key, value in raw.items()
        }

    def _value(self, key: str, value: Any, intervention: Intervention, path: str) -> Any:
        if path.startswith("answers."):
            question = intervention.question(key)
            if question is None:
                return self.spoilt(value, intervention, path)
            if question.type not in (QuestionType.LINE, QuestionType.TEXT):
                return value
            lines = question.type is QuestionType.TEXT
            return self.text(path, lines=lines)
        if key in FREE and isinstance(value, str):
            lines = key in OF_SEVERAL_LINES or path == "location.place"
            return self.text(path, lines=lines)
        return self.spoilt(value, intervention, path)


_REFUSED = ("\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e")
"""Controls that no field takes."""


def planted_case(directory: Directory, intervention: Intervention) -> tuple[Any, dict[str, str]]:
    spoiler = Spoiler()
    raw = spoiler.spoilt(sample_case(directory, [intervention.id], TODAY), intervention)
    return raw, spoiler.planted


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def visible(html: str) -> str:
    page = Page()
    page.feed(html)
    page.close()
    return "".join(page.texts)


def hanging(value: str) -> str:
    """As the text part sets a value of several lines in."""
    return re.sub(r"\n(?=[^\n])", "\n    ", value)


# Reading


def missing() -> str | None:
    """Why the parsers can't be run here."""
    if not shutil.which("node"):
        return "Node.js is not installed"
    if not all((FOLDER / "node_modules" / name).is_dir() for name in PARSERS[:2]):
        return "mailparser and postal-mime are not installed: npm ci in tests/parsers"
    modules = ["-MEmail::MIME", "-MEmail::Address::XS"]
    if (
        not shutil.which("perl")
        or subprocess.run(["perl", *modules, "-e1"], check=False).returncode
    ):
        return "Perl's Email::MIME is not installed: apt-get install libemail-mime-perl"
    return None


def read_all(folder: Path) -> dict[str, dict[str, Any]]:
    """What each parser saw of each message in the folder."""
    seen: dict[str, dict[str, Any]] = {}
    for command in (["node", str(FOLDER / "read.js")], ["perl", str(FOLDER / "read.pl")]):
        done = subprocess.run([*command, str(folder)], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[:2_000]
        assert done.stderr == b""
        for name, readings in json.loads(done.stdout).items():
            seen.setdefault(Path(name).stem, {}).update(readings)
    return seen


@dataclass(frozen=True)
class Batch:
    messages: Mapping[str, Sent]
    planted: Mapping[str, Mapping[str, str]]
    seen: Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="module")
def batch(
    directory: Directory, service: Service, tmp_path_factory: pytest.TempPathFactory
) -> Batch:
    reason = missing()
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    messages = hostile_messages()
    planted: dict[str, dict[str, str]] = {}
    for intervention in directory.interventions.values():
        raw, planted[intervention.id] = planted_case(directory, intervention)
        case, place = service.read(raw)
        referral = service.prepare(service.assess(case, place, intervention.id))
        sender = Sender(case.referrer.name, case.referrer.email, case.referrer.email)
        messages[intervention.id] = Sent(
            referral.letter,
            sender,
            referral.agency.email,
            service.mail.marking,
            service.draft(referral),
        )
    folder = tmp_path_factory.mktemp("messages")
    for name, sent in messages.items():
        (folder / f"{name}.eml").write_bytes(sent.content)
    seen = read_all(folder)
    assert set(seen) == set(messages)
    assert all(set(readings) == set(PARSERS) for readings in seen.values())
    return Batch(messages, planted, seen)


def as_sent(text: str) -> str:
    return text if text.endswith("\n") else f"{text}\n"


def as_seen(text: str | None, parser: str) -> str:
    text = (text or "").replace("\r\n", "\n")
    if parser == "postal-mime":
        assert text.endswith("\n")
        text = text.removesuffix("\n")
    return text


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("part", ["text", "html"])
def test_each_part_is_read_as_it_was_written(batch: Batch, parser: str, part: str) -> None:
    for name, sent in batch.messages.items():
        want = as_sent(getattr(sent.letter, part))
        if parser == "postal-mime":
            want = want.removeprefix("\ufeff")
        assert as_seen(batch.seen[name][parser][part], parser) == want, name


@pytest.mark.parametrize("parser", PARSERS)
def test_headers_are_read_as_they_were_meant(batch: Batch, parser: str) -> None:
    """Each has one mailbox at most, and the addresses keep their spelling."""
    for name, sent in batch.messages.items():
        seen = batch.seen[name][parser]
        prefix = f"{sent.marking}: " if sent.marking else ""
        assert seen["subject"] == prefix + sent.letter.subject, name
        ((shown, address),) = seen["from"]
        assert address == sent.sender.address, name
        assert "".join(shown.split()) == "".join(sent.sender.name.split()), name
        assert [one for _, one in seen["reply-to"]] == (
            [sent.sender.reply_to] if sent.sender.reply_to else []
        ), name
        assert [one for _, one in seen["to"]] == ([sent.to] if sent.to else []), name


@pytest.mark.parametrize("parser", PARSERS)
def test_nothing_is_read_as_an_attachment_or_as_a_third_part(batch: Batch, parser: str) -> None:
    assert {seen[parser]["attachments"] for seen in batch.seen.values()} == {0}


@pytest.mark.parametrize("parser", PARSERS)
def test_what_was_typed_in_a_case_is_read_as_typed(
    batch: Batch, directory: Directory, parser: str
) -> None:
    """Through the whole pipe, in both parts, for every field that the intervention tells."""
    told = 0
    for intervention_id, planted in batch.planted.items():
        seen = batch.seen[intervention_id][parser]
        text, page = as_seen(seen["text"], parser), visible(as_seen(seen["html"], parser))
        for path, value in planted.items():
            start = value.split(" ")[0]
            if start not in text and not is_told(directory.interventions[intervention_id], path):
                assert start not in page, f"{intervention_id}: {path}"
                continue
            told += 1
            assert hanging(value) in text, f"{intervention_id}: {path}"
            assert value in page, f"{intervention_id}: {path}"
    assert told > 60


def is_told(intervention: Intervention, path: str) -> bool:
    """Whether config/ says that the agency is told this; an incident's number does not count."""
    fact = re.sub(r"\.\d+", "", path)
    if fact.startswith("incidents.place") or fact.startswith("consents"):
        return False  # no letter tells an incident's place; consents are told for some
    return fact.startswith(("referrer.", "answers.")) or fact in tuple(intervention.facts)


def test_a_difference_would_be_noticed(batch: Batch, tmp_path: Path) -> None:
    """The readers do read: other bytes give another reading."""
    sent = batch.messages["text-003"]
    changed = replace(sent.letter, text="something else\n")
    other = made(changed, sent.sender, sent.to, sent.marking, draft=False)
    (tmp_path / "other.eml").write_bytes(other.content)
    for parser, seen in read_all(tmp_path)["other"].items():
        assert as_seen(seen["text"], parser) == "something else\n"
