"""A letter into the message's bytes: RFC 5322 header, MIME body, seven bits, CRLF."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage, MIMEPart
from email.policy import EmailPolicy
from email.utils import format_datetime
from typing import Any

from referrals.errors import MessageRefused
from referrals.rendering import Letter
from referrals.texts import NONCHARACTERS

# The longest line of quoted-printable (RFC 2045 §6.7); header lines may have 78.
_LINE_LENGTH = 76


class _Policy(EmailPolicy):
    """Folds a subject between words.

    The library would move one that is too long for a line to the next as a whole, and leave the
    first empty: some programs then show it with a space before it, or not at all.
    """

    def fold_binary(self, name: str, value: Any) -> bytes:
        if name != "Subject":
            return super().fold_binary(name, value)
        first, *words = str(value).split()
        lines = [f"{name}: {first}"]
        for word in words:
            if len(lines[-1]) + 1 + len(word) > _LINE_LENGTH:
                lines.append("")
            lines[-1] += f" {word}"
        return "".join(f"{line}\r\n" for line in lines).encode("ascii")


POLICY = _Policy(linesep="\r\n", max_line_length=_LINE_LENGTH)

# Controls but TAB, and halves of characters. `=?` opens an encoded word (RFC 2047), which would be
# read as something that nobody typed.
_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]|=\?")
_NOT_PLAIN = re.compile(r"[\s,;:<>()\[\]\\\"]")
LONGEST_SUBJECT = 200


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
    message = _compose(letter, sender, recipient, marking)
    message["X-Unsent"] = "1"
    return message.as_bytes(policy=POLICY)


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
    message = _compose(letter, sender, recipient, marking)
    message["Date"] = format_datetime(date)
    message["Message-ID"] = _header("Message-ID", message_id)
    return message.as_bytes(policy=POLICY)


def _compose(letter: Letter, sender: Sender, recipient: str | None, marking: str) -> EmailMessage:
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
    message = EmailMessage(policy=POLICY)
    message["From"] = _mailbox("From", sender.address, sender.name)
    if sender.reply_to:
        message["Reply-To"] = _mailbox("Reply-To", sender.reply_to)
    if recipient:
        message["To"] = _mailbox("To", recipient)
    message["Subject"] = subject
    if marking:
        message["X-Protective-Marking"] = marking
    message["MIME-Version"] = "1.0"
    text, html = _part("plain", letter.text), _part("html", letter.html)
    message["Content-Type"] = "multipart/alternative"
    message.set_payload([text, html])
    digest = hashlib.sha256(f"{letter.text}\0{letter.html}".encode()).hexdigest()
    # Neither part can hold it: quoted-printable writes = as =3D.
    message.set_boundary(f"=_{digest[:40]}")
    return message


def _part(subtype: str, content: str) -> MIMEPart:
    if "\x00" in content:
        raise MessageRefused("The text holds a NUL character, which can't be sent.")
    if NONCHARACTERS.search(content):
        raise MessageRefused(
            "The text holds a code point that is no character, which can't be sent."
        )
    part = MIMEPart(policy=POLICY)
    try:
        part.set_content(content, subtype=subtype, charset="utf-8", cte="quoted-printable")
    except UnicodeEncodeError:
        raise MessageRefused(
            "The text holds half of a character (a lone surrogate), which can't be sent."
        ) from None
    del part["MIME-Version"]
    return part


def _header(name: str, value: str) -> str:
    if _FORBIDDEN.search(value):
        raise MessageRefused(
            f"{name} may not hold a line break or another control character, half of a character, "
            "or =?."
        )
    return value


def _mailbox(name: str, address: str, display_name: str = "") -> Address:
    """One mailbox, exactly as spelled. More than one, or none, is refused."""
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
    try:
        return Address(display_name=display_name, username=local, domain=domain)
    except (ValueError, UnicodeError):
        raise MessageRefused(f"{name} can't be written as a header.") from None
