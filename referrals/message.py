"""A letter into the message's bytes: RFC 5322 header, MIME body, seven bits, CRLF.

Written out here, since `email.message` takes thirty times as long and is slow to load. Only a
mailbox or a marking that must be encoded or folded is left to that library; whatever we write is
what it would have written, octet by octet (tests/contract/test_composer.py).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from referrals.errors import MessageRefused
from referrals.rendering import Letter
from referrals.texts import NONCHARACTERS

if TYPE_CHECKING:
    from email.headerregistry import Address

# The longest line of quoted-printable (RFC 2045 §6.7); header lines may have 78.
_LINE_LENGTH = 76

# Controls but TAB, and halves of characters. `=?` opens an encoded word (RFC 2047), which would be
# read as something that nobody typed.
_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]|=\?")
_NOT_PLAIN = re.compile(r"[\s,;:<>()\[\]\\\"]")
LONGEST_SUBJECT = 200

# RFC 5322 §3.2.3 and §3.2.4: what a header may hold as it is, and what only between quotes.
_ATOM = r"[\w!#$%&'*+/=?^`{|}~-]+"
_DOT_ATOM = rf"{_ATOM}(?:\.{_ATOM})*"
_ADDRESS = re.compile(rf"{_DOT_ATOM}@{_DOT_ATOM}", re.ASCII)
_ATOMS = re.compile(rf"{_ATOM}(?: {_ATOM})*", re.ASCII)
_QUOTABLE = re.compile(r"[!#-\[\]-~]+(?: [!#-\[\]-~]+)*")
_MESSAGE_ID = re.compile(rf"<{_DOT_ATOM}@{_DOT_ATOM}>", re.ASCII)


@dataclass(frozen=True)
class Sender:
    """From, and where replies go if not there."""

    name: str = field(repr=False)
    address: str = field(repr=False)
    reply_to: str | None = field(default=None, repr=False)


def compose_draft(letter: Letter, sender: Sender, recipient: str | None, marking: str) -> bytes:
    """An unfinished message that opens ready to edit.

    `X-Unsent: 1` says so to Outlook. Date, Message-ID and an empty To are the mail client's and
    the officer's to fill in.

    Args:
        recipient: the directory's address as the directory spells it; None leaves To empty.

    Raises:
        MessageRefused: a value can't stand in a header, or the text can't be encoded.
    """
    header, body = _compose(letter, sender, recipient, marking)
    return b"%sX-Unsent: 1\r\n\r\n%s" % (header, body)


def compose_outgoing(
    letter: Letter,
    sender: Sender,
    recipient: str,
    marking: str,
    *,
    date: datetime,
    message_id: str,
) -> bytes:
    """A finished message for the relay, with its one Date and Message-ID.

    Args:
        date: timezone-aware.
        message_id: with its angle brackets (RFC 5322 §3.6.4).

    Raises:
        MessageRefused: as for `compose_draft`.
    """
    from email.utils import format_datetime

    header, body = _compose(letter, sender, recipient, marking)
    last = f"Date: {format_datetime(date)}\r\n{_message_id(message_id)}\r\n"
    return b"%s%s%s" % (header, last.encode("ascii"), body)


def readdressed(content: bytes, recipient: str, *, date: datetime, message_id: str) -> bytes:
    """A finished message of ours to another address: To, Date and Message-ID, and no other octet.

    Args:
        recipient, date, message_id: as for `compose_outgoing`.

    Raises:
        MessageRefused: as for `compose_draft`; or the content is no message of ours.
    """
    from email.utils import format_datetime

    header, blank, body = content.partition(b"\r\n\r\n")
    new = {
        b"to": _mailbox("To", recipient),
        b"date": f"Date: {format_datetime(date)}\r\n",
        b"message-id": _message_id(message_id),
    }
    fields = _FIELD.findall(header + b"\r\n")
    names = [field.partition(b":")[0].lower() for field in fields]
    whole = len(b"".join(fields)) == len(header) + 2
    if not blank or not whole or any(names.count(name) != 1 for name in new):
        raise MessageRefused("This is no message that can be given another address.")
    lines = (
        new[name].encode("ascii") if name in new else field
        for name, field in zip(names, fields, strict=True)
    )
    return b"%s\r\n%s" % (b"".join(lines), body)


# A header field with the lines that it is folded into (RFC 5322 §2.2.3).
_FIELD = re.compile(rb"[!-9;-~]+:[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*")


def _compose(
    letter: Letter, sender: Sender, recipient: str | None, marking: str
) -> tuple[bytes, bytes]:
    """The header but for its last lines, and the body."""
    subject = _header("Subject", letter.subject)
    if not subject.strip():
        raise MessageRefused("The subject is empty. Mend the template.")
    if marking:
        subject = f"{_header('marking', marking)}: {subject}"
    if not subject.isascii() or not subject.isprintable() or len(subject) > LONGEST_SUBJECT:
        raise MessageRefused(
            f"The subject must be printable ASCII of at most {LONGEST_SUBJECT} characters: mail "
            "clients show others wrongly. Mend the template."
        )
    mailboxes = _mailbox("From", sender.address, sender.name)
    if sender.reply_to:
        mailboxes += _mailbox("Reply-To", sender.reply_to)
    if recipient:
        mailboxes += _mailbox("To", recipient)
    text, html = _octets(letter.text), _octets(letter.html)
    # Neither part can hold it: quoted-printable writes = as =3D.
    digest = hashlib.sha256(b"%s\0%s" % (text, html)).hexdigest()
    boundary = f"=_{digest[:40]}"
    header = (
        f"{mailboxes}{_subject(subject)}{_marking(marking)}"
        "MIME-Version: 1.0\r\n"
        f'Content-Type: multipart/alternative;\r\n boundary="{boundary}"\r\n'
    )
    body = _BODY % {
        b"boundary": boundary.encode("ascii"),
        b"text": _quoted_printable(text),
        b"html": _quoted_printable(html),
    }
    return header.encode("ascii"), body


_BODY = b"""\
--%(boundary)s
Content-Type: text/plain; charset="utf-8"
Content-Transfer-Encoding: quoted-printable

%(text)s
--%(boundary)s
Content-Type: text/html; charset="utf-8"
Content-Transfer-Encoding: quoted-printable

%(html)s
--%(boundary)s--
""".replace(b"\n", b"\r\n")


# Header


def _header(name: str, value: str) -> str:
    if _FORBIDDEN.search(value):
        raise MessageRefused(
            f"{name} may not hold a line break or another control character, half of a character, "
            "or =?."
        )
    return value


def _subject(subject: str) -> str:
    """Folded between words.

    The library would move a word that is too long for a line to the next, and leave the first
    empty: some programs then show it with a space before it, or not at all.
    """
    first, *words = subject.split()
    lines = [f"Subject: {first}"]
    for word in words:
        if len(lines[-1]) + 1 + len(word) > _LINE_LENGTH:
            lines.append("")
        lines[-1] += f" {word}"
    return "".join(f"{line}\r\n" for line in lines)


@lru_cache(maxsize=16)
def _marking(marking: str) -> str:
    if not marking:
        return ""
    name = "X-Protective-Marking"
    line = f"{name}: {marking}"
    return f"{line}\r\n" if len(line) <= _LINE_LENGTH else _folded(name, marking)


def _message_id(message_id: str) -> str:
    """Message-ID, on a line of its own rather than over 76 characters, if that helps."""
    if not _MESSAGE_ID.fullmatch(_header("Message-ID", message_id)):
        raise MessageRefused("Message-ID needs one id in angle brackets, <left@right>.")
    line = f"Message-ID: {message_id}"
    if len(line) > _LINE_LENGTH > len(message_id):
        line = f"Message-ID:\r\n {message_id}"
    return f"{line}\r\n"


@lru_cache(maxsize=512)
def _mailbox(name: str, address: str, display_name: str = "") -> str:
    """The header of one mailbox, exactly as spelled. More than one, or none, is refused.

    Remembered: one sender has many letters, and the directory few addresses.
    """
    _header(name, address)
    _header(name, display_name)
    local, at, domain = address.rpartition("@")
    if (
        not at
        or not local
        or not domain
        or "@" in local
        or not address.isascii()
        or _NOT_PLAIN.search(address)
    ):
        raise MessageRefused(f"{name} needs one plain address, name@domain.")
    phrase = _phrase(display_name)
    if phrase is not None and _ADDRESS.fullmatch(address):
        line = f"{name}: {phrase} <{address}>" if phrase else f"{name}: {address}"
        if len(line) <= _LINE_LENGTH:
            return f"{line}\r\n"
    from email.headerregistry import Address

    try:
        mailbox = Address(display_name=display_name, username=local, domain=domain)
    except (ValueError, UnicodeError):
        raise MessageRefused(f"{name} can't be written as a header.") from None
    return _folded(name, mailbox)


def _phrase(display_name: str) -> str | None:
    """A name as it stands before an address; None if it must be encoded, or is out of the way."""
    if not display_name or _ATOMS.fullmatch(display_name):
        return display_name
    return f'"{display_name}"' if _QUOTABLE.fullmatch(display_name) else None


def _folded(name: str, value: str | Address) -> str:
    """A header that must be folded or encoded (RFC 2047), as the library does it.

    It is slow, and slow to load.
    """
    from email.policy import SMTP

    policy = SMTP.clone(max_line_length=_LINE_LENGTH)
    lines: str = policy.fold(name, policy.header_factory(name, value))
    return lines


# Body

_ASCII = bytes(range(0x80))
# What the UTF-8 of a code point that is no character has in it, and hardly any other's. To search
# for these is a hundred times as fast.
_OF_NONCHARACTERS = (b"\xef\xb7", b"\xbf\xbe", b"\xbf\xbf")


def _octets(content: str) -> bytes:
    try:
        octets = content.encode()
    except UnicodeEncodeError:
        octets = None
    # Among octets it is found ten times as fast.
    if "\x00" in content if octets is None else b"\0" in octets:
        raise MessageRefused("The text holds a NUL character, which can't be sent.")
    if (octets is None or _suspect(octets)) and NONCHARACTERS.search(content):
        raise MessageRefused(
            "The text holds a code point that is no character, which can't be sent."
        )
    if octets is None:
        raise MessageRefused(
            "The text holds half of a character (a lone surrogate), which can't be sent."
        )
    return octets


def _suspect(octets: bytes) -> bool:
    if octets.isascii():
        return False
    beyond = octets.translate(None, _ASCII)
    return any(sign in beyond for sign in _OF_NONCHARACTERS)


_AS_IS = b"\t\n" + bytes(range(0x20, 0x7F))
# Short lines, then what of a long one comes before a soft break: 75 characters, or one or two less
# so that no =XX is parted. The last match is empty.
_TO_SOFT_BREAK = re.compile(rb"(?:.{0,76}+\n)*+(?:.{73}[^=]{0,2})?")
_BLANK_BEFORE_END = re.compile(rb"\n(?<=[ \t]\n)")  # to look for the rarer of the two is quicker
_BLANK_AT_END = re.compile(rb"(?m)^(.*)([ \t])$")


def _quoted_printable(octets: bytes) -> bytes:
    """Text in UTF-8 as RFC 2045 §6.7 writes it, ending with a line end.

    `binascii.b2a_qp` won't do: it is slower, and may make a line of more than 76.
    """
    if b"\r" in octets:
        octets = octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if not octets.endswith(b"\n"):
        octets += b"\n"
    octets = octets.replace(b"=", b"=3D")
    rest = octets.translate(None, _AS_IS)
    while rest:
        octet = rest[:1]
        octets = octets.replace(octet, b"=%02X" % ord(octet))
        rest = rest.replace(octet, b"")
    octets = b"=\n".join(_TO_SOFT_BREAK.findall(octets)[:-1])
    if _BLANK_BEFORE_END.search(octets):
        octets = _BLANK_AT_END.sub(_visible, octets)
    return octets.replace(b"\n", b"\r\n")


def _visible(line: re.Match[bytes]) -> bytes:
    """A blank before a line end is written =XX, or has a soft break after it where that is longer.

    This is the library's choice; others would do.
    """
    start, blank = line.groups()
    coded = b"=%02X" % ord(blank)
    room = _LINE_LENGTH - len(start)
    if room >= len(coded):
        return start + coded
    return start + (blank + b"=\n" if room > 1 else b"=\n" + coded)
