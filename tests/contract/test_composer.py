"""Our composer against EmailMessage, octet by octet, and what it refuses against what that did."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from referrals import message as ours
from referrals.errors import MessageRefused
from referrals.message import Sender
from referrals.rendering import Letter
from tests import oracle
from tests.hostile import BATCH, FRAGMENTS, LINE_SEPARATORS, mixed
from tests.soft_breaks import EDGES

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Given:
    """All that a message is made of; `outgoing` is its date and Message-ID, None for a draft."""

    letter: Letter
    sender: Sender
    to: str | None
    marking: str
    outgoing: tuple[datetime, str] | None

    def made_by(self, composer: object) -> bytes | str:
        """The message, or why it is refused. Any other error is a fault."""
        try:
            if self.outgoing is None:
                draft: Callable[..., bytes] = composer.compose_draft  # type: ignore[attr-defined]
                return draft(self.letter, self.sender, self.to, self.marking)
            date, message_id = self.outgoing
            outgoing: Callable[..., bytes] = composer.compose_outgoing  # type: ignore[attr-defined]
            return outgoing(
                self.letter, self.sender, self.to, self.marking, date=date, message_id=message_id
            )
        except MessageRefused as refusal:
            return str(refusal)


def check_same(case: Given) -> bytes | None:
    """Our message, found equal to the library's; None where both refuse it, for the same reason."""
    made, want = case.made_by(ours), case.made_by(oracle)
    # Not by assert, which would take minutes to show how two long strings differ.
    if made != want:
        pytest.fail(f"{case!r}\n{first_difference(made, want)}")
    if isinstance(made, str):
        return None
    check_form(made, case)
    return made


def first_difference(made: bytes | str, want: bytes | str) -> str:
    if isinstance(made, str) or isinstance(want, str):
        return f"made {made[:200]!r}\nwant {want[:200]!r}"
    lines = zip(made.split(b"\r\n"), want.split(b"\r\n"), strict=False)
    return "made {!r}\nwant {!r}".format(
        *next((pair for pair in lines if pair[0] != pair[1]), "??")
    )


def longest_word(case: Given) -> int:
    """There is no place in it to fold a line."""
    sender, letter = case.sender, case.letter
    values = [sender.name, sender.address, sender.reply_to, case.to, case.marking, letter.subject]
    values += case.outgoing[1:] if case.outgoing else ()
    return max(len(word) for value in values if value for word in value.split(" "))


def check_form(content: bytes, case: Given) -> None:
    """Seven bits and CRLF; lines that mail allows; these headers, these parts, and no other.

    RFC 5321 §2.3.8, RFC 5322 §2.1.1, RFC 2045 §6.7, RFC 2046 §5.1.1.
    """
    assert content.isascii()
    assert b"\0" not in content
    assert content.endswith(b"\r\n")
    assert content.count(b"\r\n") == content.count(b"\r") == content.count(b"\n")
    head, _, body = content.partition(b"\r\n\r\n")
    folded, lines = head.split(b"\r\n"), body.split(b"\r\n")
    assert max(map(len, folded)) <= (998 if longest_word(case) > 50 else 78)
    assert max(map(len, lines)) <= 76
    assert not any(line.endswith((b" ", b"\t")) for line in lines)
    names = [line.split(b":")[0].decode() for line in folded if not line.startswith((b" ", b"\t"))]
    assert names == [
        "From",
        *(["Reply-To"] if case.sender.reply_to else []),
        *(["To"] if case.to else []),
        "Subject",
        *(["X-Protective-Marking"] if case.marking else []),
        "MIME-Version",
        "Content-Type",
        *(["X-Unsent"] if case.outgoing is None else ["Date", "Message-ID"]),
    ]
    boundary = lines[0].removeprefix(b"--")
    assert f'boundary="{boundary.decode()}"'.encode() in head
    assert [line for line in lines if boundary in line] == [
        b"--" + boundary,
        b"--" + boundary,
        b"--" + boundary + b"--",
    ]


# Anything at all

separators = (
    *LINE_SEPARATORS,
    "\r",
    "\r\n",
    "\n",
    "\r\r\n",
    "\n\r",
    "\t\n",
    " \n",
    " \r",
    "\t\r\n",
)
piece = st.one_of(
    st.sampled_from((*FRAGMENTS, *separators, *EDGES)),
    st.text(max_size=100),
    st.builds(str.__mul__, st.sampled_from("x= \té\u20ac\U0001f600.\n"), st.integers(1, 160)),
)
wild = st.lists(piece, max_size=8).map("".join)

# Of what is written in a header most is written, and some refused.
printable = st.characters(min_codepoint=0x20, max_codepoint=0x7E)
word = st.one_of(
    st.sampled_from(["Zo\u00eb", "O'Brien", "J.", "PC 1234", "(she/her)", "a,b", '"', "\\", "@"]),
    st.sampled_from(["<b@x.org>", "\u202e", "\u2028", "\x85", "\u200f", "\U0001f600", "\t", "  "]),
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=12),
    st.text(printable, max_size=60),
)
refused = st.sampled_from(
    ["=?", "\r", "\n ", "\0", "\x1b", "\x7f", "\ud800", "\r\nBcc: b@example.com"]
)
line = st.lists(word, max_size=6).map(" ".join)
anything = st.one_of(line, st.builds("{}{}{}".format, line, refused, line), st.text())
plain = st.characters(
    codec="ascii", categories=["L", "N"], include_characters="!#$%&'*+-/=?^_`{|}~."
)
spelt = st.builds(
    "{}@{}".format,
    st.text(plain, min_size=1, max_size=64),
    st.text(plain, min_size=1, max_size=180),
)
usual = st.sampled_from(["sam@council.example.com", "Sam.O'Brien+x@Council.example.com"])
odd = st.builds("{}@{}".format, st.text(max_size=6), st.text(max_size=6))
address = usual | spelt | odd
some_marking = st.one_of(
    st.sampled_from(["", "OFFICIAL", "OFFICIAL-SENSITIVE", "  "]),
    st.text(printable, max_size=150),
    st.lists(st.sampled_from(["OFFICIAL", "word", "-"]), max_size=20).map(" ".join),
)
marking = some_marking | anything
subject = st.one_of(st.sampled_from(["S", "Referral: Mediation - K7QM-29TX-WCF4"]), marking)
label = st.text(plain.filter(lambda one: one != "."), min_size=1, max_size=90)
message_id = st.builds("<{}@{}.{}>".format, label, label, label)
zone = st.integers(-14 * 60, 14 * 60).map(lambda offset: timezone(timedelta(minutes=offset)))
moment = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=zone)  # noqa: DTZ001
case = st.builds(
    Given,
    st.builds(Letter, subject, wild, wild),
    st.builds(Sender, anything, address, st.none() | address),
    st.none() | address,
    marking,
    st.none() | st.tuples(moment, message_id),
)


@given(case=case)
@settings(max_examples=400)
def test_any_message_is_as_the_library_makes_it_or_refused_alike(case: Given) -> None:
    check_same(case)


SENDER = Sender("Sam Officer", "sam@council.example.com", "sam@council.example.com")
TO = "Hate.crime@nottinghamshire.pnn.police.uk"


@given(text=wild, html=wild)
@settings(max_examples=400)
def test_any_text_is_written_as_the_library_writes_it(text: str, html: str) -> None:
    check_same(Given(Letter("Subject", text, html), SENDER, TO, "OFFICIAL", None))


@given(name=line, address=usual | spelt, marking=some_marking, message_id=message_id, date=moment)
@settings(max_examples=400)
def test_any_header_is_written_as_the_library_writes_it(
    name: str, address: str, marking: str, message_id: str, date: datetime
) -> None:
    letter = Letter("Subject", "Text.\n", "<p>Text.</p>\n")
    check_same(Given(letter, Sender(name, address), TO, marking, (date, message_id)))


# What is hard, one by one


def drafts(texts: Iterable[str], html: Callable[[str], str] = str) -> Iterable[Given]:
    for text in texts:
        yield Given(Letter("Subject", text, html(text)), SENDER, TO, "OFFICIAL", None)


def test_each_soft_break_is_where_the_library_puts_it() -> None:
    for case in drafts(["".join(EDGES), "\r\n".join(EDGES), "\r".join(EDGES)]):
        assert check_same(case)


def test_each_hostile_text_is_written_as_the_library_writes_it() -> None:
    for case in drafts((*BATCH, *mixed(120, seed=7)), lambda text: f"<p>{text[:1000]}</p>"):
        assert check_same(case)


@pytest.mark.parametrize("length", [0, 1, 60, 70])
def test_each_character_is_written_or_refused_as_by_the_library(length: int) -> None:
    """Every octet that UTF-8 has, at a line's start and about its end."""
    start, characters = "x" * length, [chr(code) for code in range(0x3000)]
    characters += [
        chr(plane + code) for plane in range(0, 0x110000, 0x10000) for code in (0, 0xFFFD)
    ]
    shown = [one for one in characters if one != "\0"]
    for case in drafts(["".join(f"{start}{one}\n{one}{start}x" for one in shown)]):
        assert check_same(case)
    refused = ["\0", "\ud800", "\udfff", "\ufdd0", "\ufdef", "\ud800\uffff", "\ufffe\0"]
    refused += [chr(plane + 0xFFFE) for plane in range(0, 0x110000, 0x10000)]
    refused += [chr(plane + 0xFFFF) for plane in range(0, 0x110000, 0x10000)]
    for case in drafts(f"{start}{one}" for one in refused):
        assert check_same(case) is None


def test_each_printable_character_in_a_name_and_address_is_written_as_by_the_library() -> None:
    letter = Letter("Subject", "Text.\n", "<p>Text.</p>\n")
    for code in range(0x20, 0x100):
        for form in ("{}", "{}a", "a{}", "a {}b", "a{} b", "a{}{}b"):
            mark = form.replace("{}", chr(code))
            check_same(Given(letter, Sender(mark, "a@example.com"), TO, "", None))
            check_same(Given(letter, Sender("Sam", f"{mark}@example.com"), TO, "", None))
            check_same(Given(letter, Sender("", "a@example.com"), f"a@{mark}", "", None))


@pytest.mark.parametrize("what", ["name", "address", "to", "marking", "subject", "id"])
def test_a_header_about_as_long_as_a_line_is_folded_as_by_the_library(what: str) -> None:
    for length, form in product(range(40, 80), ("x", "x ", "x.", "\u00e4")):
        value = (form * length)[:length].strip().rstrip(".")
        if form == "\u00e4" and what not in ("name", "subject"):
            continue
        local = "".join(value.split())
        letter = Letter(value if what == "subject" else "S", "Text.\n", "<p>Text.</p>\n")
        sender = Sender(
            value if what == "name" else "Sam",
            f"{local}@example.com" if what == "address" else "sam@example.com",
            None,
        )
        to = f"a@{local}" if what == "to" else TO
        marking = value if what == "marking" else ""
        message_id = f"<a@{local}>" if what == "id" else "<a@b.example>"
        check_same(Given(letter, sender, to, marking, (NOW, message_id)))


# Start, and memory

PLAIN = """
import sys
from referrals.message import Sender, compose_draft
from referrals.rendering import Letter
loaded = set(sys.modules)
compose_draft(
    Letter("Subject", "Zo\\u00eb = Zo\\u00eb\\n" * 50, "<p>\\u0645</p>\\n"),
    Sender("PC J. O'Brien, 1234", "sam@council.example.com", "sam@council.example.com"),
    "Hate.crime@nottinghamshire.pnn.police.uk",
    "OFFICIAL-SENSITIVE",
)
print(*sorted(set(sys.modules) - loaded))
print(*sorted(set(sys.modules) & {"email.headerregistry", "email.policy", "email.contentmanager"}))
"""


def test_a_plain_message_loads_nothing() -> None:
    """Pydantic may load other modules of `email`; these are what takes time."""
    done = subprocess.run(
        [sys.executable, "-c", PLAIN], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []


def test_what_is_remembered_is_bounded() -> None:
    """Names and addresses are personal, and a worker runs for weeks."""
    caches = [one.cache_info() for one in vars(ours).values() if hasattr(one, "cache_info")]
    assert len(caches) == 2
    assert all(cache.maxsize is not None and cache.maxsize <= 512 for cache in caches)
