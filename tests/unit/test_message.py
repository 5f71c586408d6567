"""The bytes of a message: structure, headers, and that any text arrives as it was."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from referrals.errors import MessageRefused
from referrals.message import Sender, compose_draft, compose_outgoing
from referrals.rendering import Letter
from tests.hostile import BATCH, FRAGMENTS, LINE_SEPARATORS, LONG_WORD, MEGABYTE

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
TO = "Hate.crime@nottinghamshire.pnn.police.uk"
SENDER = Sender("Sam Officer", "sam@council.example.com", "sam@council.example.com")
MESSAGE_ID = "<K7QM-29TX-WCF4.abc@council.example.com>"
LETTER = Letter("Referral: Mediation - K7QM-29TX-WCF4", "Text.\n", "<p>Text.</p>\n")


def draft(
    letter: Letter = LETTER,
    sender: Sender = SENDER,
    to: str | None = TO,
    marking: str = "OFFICIAL",
) -> bytes:
    return compose_draft(letter, sender, to, marking)


def outgoing(
    letter: Letter = LETTER,
    sender: Sender = SENDER,
    marking: str = "OFFICIAL",
    message_id: str = MESSAGE_ID,
) -> bytes:
    return compose_outgoing(letter, sender, TO, marking, date=NOW, message_id=message_id)


def parsed(content: bytes) -> EmailMessage:
    message = message_from_bytes(content, policy=default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    for part in message.walk():
        assert not part.defects
    return message


def content_of(message: EmailMessage, subtype: str) -> str:
    """The part as Python's parser reads it, with LF for CRLF and nothing else changed."""
    (part,) = [one for one in message.iter_parts() if one.get_content_subtype() == subtype]
    text = part.get_content()
    assert isinstance(text, str)
    return text.replace("\r\n", "\n")


def as_sent(text: str) -> str:
    """A text with LF for each line end, and one at its end: what RFC 2046 asks of text/plain."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.endswith("\n") else f"{text}\n"


# Headers

BOTH = pytest.mark.parametrize("compose", [draft, outgoing])


def test_a_draft_opens_as_unsent() -> None:
    message = parsed(draft())
    assert message["X-Unsent"] == "1"
    assert message["Date"] is None
    assert message["Message-ID"] is None


def test_an_outgoing_message_has_its_one_date_and_id() -> None:
    message = parsed(outgoing())
    assert message.get_all("Date") == ["Tue, 24 Nov 2026 12:00:00 +0000"]
    assert message.get_all("Message-ID") == [MESSAGE_ID]
    assert message["X-Unsent"] is None


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (draft(), {"X-Unsent"}),
        (outgoing(), {"Date", "Message-ID"}),
    ],
    ids=["draft", "outgoing"],
)
def test_each_header_stands_once_and_there_is_no_other(content: bytes, names: set[str]) -> None:
    """No Bcc, no Cc and no Auto-Submitted above all (RFC 3834 would keep people from answering)."""
    found = parsed(content).keys()
    assert len(found) == len(set(found))
    assert set(found) == names | {
        "From",
        "Reply-To",
        "To",
        "Subject",
        "X-Protective-Marking",
        "MIME-Version",
        "Content-Type",
    }


def test_the_recipient_keeps_its_spelling() -> None:
    assert f"\r\nTo: {TO}\r\n".encode() in draft()
    upper = "cpintelligence@Nottinghamshire.pnn.police.uk"
    assert f"\r\nTo: {upper}\r\n".encode() in draft(to=upper)


def test_the_recipient_is_one() -> None:
    assert [address.addr_spec for address in parsed(draft())["To"].addresses] == [TO]


@pytest.mark.parametrize("to", [None, ""])
def test_a_draft_without_a_recipient_has_no_to(to: str | None) -> None:
    assert parsed(draft(to=to))["To"] is None


def test_without_reply_to_there_is_none() -> None:
    assert parsed(draft(sender=Sender("Us", "us@example.com")))["Reply-To"] is None


def test_the_marking_is_prefix_and_header() -> None:
    message = parsed(draft(marking="OFFICIAL-SENSITIVE"))
    assert message["Subject"] == f"OFFICIAL-SENSITIVE: {LETTER.subject}"
    assert message["X-Protective-Marking"] == "OFFICIAL-SENSITIVE"


def test_without_a_marking_there_is_neither() -> None:
    message = parsed(draft(marking=""))
    assert message["Subject"] == LETTER.subject
    assert message["X-Protective-Marking"] is None


def test_the_name_is_quoted_and_encoded_as_needed() -> None:
    for name in (
        'O\'Brien, Zo\u00eb "PC" (x)',
        "\U0001f600 \u0645\u0631\u062d\u0628\u0627",
        "a;b@c",
    ):
        (address,) = parsed(draft(sender=Sender(name, "a@example.com")))["From"].addresses
        assert (address.display_name, address.addr_spec) == (name, "a@example.com")


# Structure


@BOTH
def test_two_alternatives_plain_first(compose: object) -> None:
    message = parsed(draft() if compose is draft else outgoing())
    assert message.get_content_type() == "multipart/alternative"
    types = [(part.get_content_type(), part.get_content_charset()) for part in message.iter_parts()]
    assert types == [("text/plain", "utf-8"), ("text/html", "utf-8")]
    for part in message.iter_parts():
        assert part["Content-Transfer-Encoding"] == "quoted-printable"
        assert part["MIME-Version"] is None
        assert part["Content-Disposition"] is None


def test_the_same_letter_makes_the_same_bytes() -> None:
    assert draft() == draft()
    assert outgoing() == outgoing()


def check_structure(content: bytes) -> None:
    """What every relay may demand (RFC 5322 §2.1.1, RFC 2045 §6.7, RFC 5321 §2.3.8)."""
    assert content.isascii()
    assert b"\0" not in content
    assert content.endswith(b"\r\n")
    assert b"\r" not in content.replace(b"\r\n", b"")
    assert b"\n" not in content.replace(b"\r\n", b"")
    head, _, body = content.partition(b"\r\n\r\n")
    assert all(len(line) <= 998 for line in content.split(b"\r\n"))
    assert all(len(line) <= 78 for line in head.split(b"\r\n"))
    assert all(len(line) <= 76 for line in body.split(b"\r\n"))
    assert all(line.strip() for line in head.split(b"\r\n"))
    assert not any(line[-1:] in (b" ", b"\t") for line in body.split(b"\r\n"))
    boundary = parsed(content).get_boundary()
    assert boundary
    assert len(boundary) <= 70
    delimiters = [line for line in body.split(b"\r\n") if boundary.encode() in line]
    open_, close = f"--{boundary}".encode(), f"--{boundary}--".encode()
    assert delimiters == [open_, open_, close]


any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)
hostile_text = st.lists(
    st.one_of(st.sampled_from((*FRAGMENTS, *LINE_SEPARATORS, "\r", "\r\n")), any_text), max_size=12
).map("".join)


@given(text=hostile_text, html=hostile_text)
@settings(max_examples=150, deadline=None)
def test_any_text_arrives_as_it_was_or_is_refused(text: str, html: str) -> None:
    """But for line ends, which mail writes as CRLF, and one at the end of each part."""
    letter = Letter("Subject", text, html)
    if any(map(is_noncharacter, text + html)):
        with pytest.raises(MessageRefused, match="no character"):
            draft(letter)
        return
    content = draft(letter)
    check_structure(content)
    message = parsed(content)
    assert content_of(message, "plain") == as_sent(text)
    assert content_of(message, "html") == as_sent(html)


def is_noncharacter(character: str) -> bool:
    code = ord(character)
    return 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE


@pytest.mark.parametrize("text", BATCH, ids=range(len(BATCH)))
def test_each_hostile_text_arrives_as_it_was(text: str) -> None:
    content = outgoing(Letter("Subject", text, f"<p>{text[:1000]}</p>"))
    check_structure(content)
    assert content_of(parsed(content), "plain") == as_sent(text)


@pytest.mark.parametrize("text", [LONG_WORD, MEGABYTE], ids=["word", "megabyte"])
def test_a_very_long_text_arrives_in_both_parts(text: str) -> None:
    message = parsed(draft(Letter("Subject", text, text)))
    assert content_of(message, "plain") == as_sent(text)
    assert content_of(message, "html") == as_sent(text)


@pytest.mark.parametrize("part", ["text", "html"])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("\0", "NUL"),
        ("\ud800", "lone surrogate"),
        ("\udfff\ud800", "lone surrogate"),
        ("\ufffe", "no character"),
        ("\ufdd0", "no character"),
        ("\U0010ffff", "no character"),
    ],
    ids=ascii,
)
def test_what_no_client_can_show_is_refused_and_not_repeated(
    part: str, bad: str, words: str
) -> None:
    parts = {"text": "qz-canary", "html": "qz-canary"}
    parts[part] += bad
    for compose in (draft, outgoing):
        with pytest.raises(MessageRefused, match=words) as raised:
            compose(Letter("Subject", **parts))
        assert "qz-canary" not in str(raised.value)
        assert raised.value.__suppress_context__ or raised.value.__context__ is None


# What would be another header, or another recipient

INJECTIONS = [
    "{}\r\nBcc: b@example.com",
    "{}\nBcc: b@example.com",
    "{}\rBcc: b@example.com",
    "{}\0",
    "\r\n{}",
]


@pytest.mark.parametrize("form", INJECTIONS, ids=ascii)
@pytest.mark.parametrize("what", ["name", "from", "reply_to", "to", "subject", "marking", "id"])
def test_a_line_break_in_a_header_is_refused_and_not_repeated(form: str, what: str) -> None:
    def bad(value: str, name: str) -> str:
        return form.format(value) if what == name else value

    letter = Letter(bad("Subject", "subject"), "Text.\n", "<p>Text.</p>\n")
    sender = Sender(
        bad("Sam", "name"), bad("sam@example.com", "from"), bad("s@example.com", "reply_to")
    )
    with pytest.raises(MessageRefused) as raised:
        compose_outgoing(
            letter,
            sender,
            bad(TO, "to"),
            bad("OFFICIAL", "marking"),
            date=NOW,
            message_id=bad(MESSAGE_ID, "id"),
        )
    assert "example.com" not in str(raised.value)
    assert "Bcc" not in str(raised.value)


@pytest.mark.parametrize(
    "address",
    [
        "a@example.com, b@example.com",
        "a@example.com,b@example.com",
        "a@example.com;b@example.com",
        "a@example.com b@example.com",
        "Name <a@example.com>",
        "<a@example.com>",
        '"a b"@example.com',
        "group:a@example.com;",
        "a@b@example.com",
        "a",
        "@example.com",
        "a@",
        " ",
        "\u00e4@example.com",
        "a@ex\u00e4mple.com",
        "a@example.com\t",
        "a(comment)@example.com",
        "a@example.com(comment)",
        "a@[127.0.0.1]\\",
    ],
)
@pytest.mark.parametrize("what", ["from", "reply_to", "to"])
def test_anything_but_one_plain_address_is_refused(address: str, what: str) -> None:
    values = {"from": "f@example.com", "reply_to": "r@example.com", "to": "t@example.com"}
    values[what] = address
    with pytest.raises(MessageRefused, match=r"^(From|Reply-To|To) "):
        draft(sender=Sender("Sam", values["from"], values["reply_to"]), to=values["to"])


@pytest.mark.parametrize(
    "message_id",
    [
        "",
        "a@example.com",
        "<a@example.com",
        "<a@example.com> <b@example.com>",
        "<a b@example.com>",
        "<a,b@example.com>",
        "<a@b@example.com>",
        "<a@>",
        "<@example.com>",
        "<\u00e4@example.com>",
        "<\u2028@example.com>",
    ],
    ids=ascii,
)
def test_anything_but_one_message_id_is_refused(message_id: str) -> None:
    with pytest.raises(MessageRefused, match=r"^Message-ID needs one id"):
        outgoing(message_id=message_id)


def test_there_is_always_a_sender() -> None:
    with pytest.raises(MessageRefused, match="From needs one plain address"):
        draft(sender=Sender("Sam", ""))


WORDS_OF_NAMES = st.one_of(
    st.sampled_from(
        ["Zo\u00eb", "O'Brien", "\U0001f600", "\u202e", ",", '"', "\\", "(", "@", "<b@x.org>"]
    ),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8),
)


@given(name=st.lists(WORDS_OF_NAMES, max_size=8).map(" ".join))
@settings(max_examples=150, deadline=None)
def test_any_name_is_one_mailbox_of_that_name(name: str) -> None:
    """White space apart: folding may change it, and Python's own parser puts a space between two
    encoded words of a name (mailparser, postal-mime and Email::MIME do not).
    """
    if "=?" in name:
        with pytest.raises(MessageRefused):
            draft(sender=Sender(name, "a@example.com"))
        return
    content = draft(sender=Sender(name, "a@example.com"))
    check_structure(content)
    message = parsed(content)
    (address,) = message["From"].addresses
    assert address.addr_spec == "a@example.com"
    assert "".join(address.display_name.split()) == "".join(name.split())
    assert message.keys().count("From") == 1


@pytest.mark.parametrize(
    "name",
    [
        "=?utf-8?q?Chief=20Constable?=",
        "=?us-ascii?q?x=0D=0ABcc:=20b@example.com?=",
        "\ud800",
        "a\x0bb",
        "a\x1b[2Jb",
        "a\x7fb",
    ],
    ids=ascii,
)
def test_a_name_that_would_be_read_as_another_is_refused(name: str) -> None:
    with pytest.raises(MessageRefused, match=r"^From may not hold"):
        draft(sender=Sender(name, "a@example.com"))


def test_the_longest_name_is_written_without_delay() -> None:
    """300 characters are the most that a case may hold; each is four octets here."""
    content = draft(sender=Sender("\U0001f600" * 300, "a@example.com"))
    check_structure(content)


@pytest.mark.parametrize(
    "subject", ["", "  ", "caf\u00e9", "tab\there", "x" * 201, "a\x7fb", "\u202e"]
)
def test_a_subject_that_clients_show_wrongly_is_refused(subject: str) -> None:
    with pytest.raises(MessageRefused, match=r"(?i)subject"):
        draft(Letter(subject, "Text.\n", "<p>Text.</p>\n"), marking="")


@pytest.mark.parametrize("length", range(8, 41, 4))
def test_a_subject_is_folded_between_words_and_its_first_line_is_not_empty(length: int) -> None:
    subject = ("word " * length).strip()
    content = draft(Letter(subject, "Text.\n", "<p>Text.</p>\n"), marking="")
    check_structure(content)
    assert parsed(content)["Subject"] == subject
    assert b"\r\nSubject: word word" in content


@pytest.mark.parametrize("form", ["{}", "OFFICIAL {}"])
def test_a_subject_of_one_long_word_is_one_header(form: str) -> None:
    subject = form.format("w" * 150)
    content = draft(Letter(subject, "Text.\n", "<p>Text.</p>\n"), marking="")
    assert parsed(content)["Subject"] == subject
    assert re.findall(rb"(?m)^Subject:", content) == [b"Subject:"]


def test_a_sender_s_repr_says_nothing() -> None:
    assert "sam" not in repr(SENDER).lower()
