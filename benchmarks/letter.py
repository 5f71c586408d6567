"""Our own letter as a template for other programs, so that all of them write the same one.

A draft of a made-up case whose every value stands out is taken apart, and each value replaced by
the name of its column. What then arrives from each program is compared with ours.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email import message_from_bytes
from email.policy import default
from email.utils import parseaddr
from pathlib import Path

from benchmarks.rows import INTERVENTION, Fact, facts
from referrals.reference import referral_reference

_MADE_UP = {
    "case_reference": "SENTINEL-77",
    "officer": "Zqofficer Zq",
    "role": "Zqrole",
    "organisation": "Zqorganisation",
    "officer_email": "zqmail@police.example.com",
    "officer_phone": "0115 496 0999",
    "victim": "Zqvictim Zq",
    "address": "Zqaddress",
    "phone": "07700 900888",
    "first_reference": "26*7777001",
    "second_reference": "26*7777002",
}
_READS_OTHERWISE = {
    "first_on": ("13/01/2025", "13 January 2025"),
    "second_on": ("14/02/2025", "14 February 2025"),
    "agreed_on": ("15/03/2025", "15 March 2025"),
    "basis_on": ("16/04/2025", "16 April 2025"),
    "known": ("not-known", "Not known"),
}


def sentinels() -> dict[str, Fact]:
    """A row in which no value is part of another, nor of what is always in the letter."""
    made = facts(0)
    for column, fact in made.items():
        if column in _READS_OTHERWISE:
            made[column] = Fact(fact.path, *_READS_OTHERWISE[column])
        elif fact.typed == fact.printed:
            value = _MADE_UP.get(column, f"Zq{column.replace('_', '')}qz")
            made[column] = Fact(fact.path, value, value)
    reference = referral_reference(made["case_reference"].typed, INTERVENTION)
    return made | {"referral": Fact(None, "", reference)}


@dataclass(frozen=True)
class Parts:
    """What a reader sees of a message: headers and the two texts."""

    headers: Mapping[str, str]
    text: str
    html: str


def read_parts(content: bytes) -> Parts:
    """Line ends, and blank lines at the end, count for nothing; nor does how HTML is escaped."""
    message = message_from_bytes(content, policy=default)
    found = {
        part.get_content_type(): str(part.get_content())
        for part in message.walk()
        if part.get_content_maintype() == "text"
    }
    shown = ("From", "Subject", "X-Protective-Marking")
    headers = {name: str(message[name]) for name in shown}
    for name in ("Reply-To", "To"):  # fastapi-mail adds a display name of its own
        headers[name] = parseaddr(str(message[name]))[1]
    return Parts(
        headers,
        _plain(found["text/plain"]),
        html.unescape(_plain(found["text/html"])),
    )


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").rstrip("\n")


@dataclass(frozen=True)
class Template:
    """The letter with a hole for each column.

    Args:
        recipient: the same for every row.
        subject, text, html: with `{{ column }}`, as Jinja and Django have it.
    """

    recipient: str
    marking: str
    subject: str
    text: str
    html: str

    def write(self, folder: Path) -> None:
        """One file a part; `body.safe.txt` is for those that escape plain text too."""
        folder.mkdir()
        both = re.compile(r"\{\{ (\w+) \}\}")
        files = {
            "recipient.txt": self.recipient,
            "marking.txt": self.marking,
            "subject.txt": self.subject,
            "body.txt": self.text,
            "body.safe.txt": both.sub(r"{{ \1|safe }}", self.text),
            "body.html": both.sub(r"{{ \1|escape }}", self.html),
        }
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")


def take_apart(draft: bytes, made: Mapping[str, Fact]) -> Template:
    """Turn each value of `sentinels()` back into its column.

    Raises:
        ValueError: a value is nowhere in the letter, or the letter looks like a template itself.
    """
    parts = read_parts(draft)
    whole = parts.headers["Subject"] + parts.text + parts.html
    if re.search(r"\{[{%#]", whole):
        raise ValueError("The letter holds {{, {% or {#.")
    for column, fact in made.items():
        if fact.printed not in whole:
            raise ValueError(f"{column} is not in the letter: {fact.printed!r}")
    holed = _holes(made)
    return Template(
        recipient=parts.headers["To"],
        marking=parts.headers["X-Protective-Marking"],
        subject=holed(parts.headers["Subject"]),
        text=holed(parts.text) + "\n",
        html=holed(parts.html) + "\n",
    )


def _holes(made: Mapping[str, Fact]) -> Callable[[str], str]:
    columns = {fact.printed: column for column, fact in made.items()}
    longest_first = sorted(columns, key=len, reverse=True)
    value = re.compile("|".join(map(re.escape, longest_first)))
    return lambda text: value.sub(lambda found: f"{{{{ {columns[found[0]]} }}}}", text)
