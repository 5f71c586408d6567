"""What ours must equal, made plainly and slowly.

The message as the standard library's EmailMessage makes it; a referral's content key from the whole
case as JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage, MIMEPart
from email.policy import EmailPolicy
from email.utils import format_datetime
from typing import Any

from referrals.eligibility import Assessment
from referrals.errors import MessageRefused
from referrals.message import Sender
from referrals.rendering import Letter
from referrals.texts import NONCHARACTERS

_LINE_LENGTH = 76


class _Policy(EmailPolicy):
    """Folds a subject between words, and leaves no first line empty."""

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


_POLICY = _Policy(linesep="\r\n", max_line_length=_LINE_LENGTH)
_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]|=\?")
_NOT_PLAIN = re.compile(r"[\s,;:<>()\[\]\\\"]")


def compose_draft(letter: Letter, sender: Sender, recipient: str | None, marking: str) -> bytes:
    message = _compose(letter, sender, recipient, marking)
    message["X-Unsent"] = "1"
    return message.as_bytes(policy=_POLICY)


def compose_outgoing(
    letter: Letter,
    sender: Sender,
    recipient: str,
    marking: str,
    *,
    date: datetime,
    message_id: str,
) -> bytes:
    message = _compose(letter, sender, recipient, marking)
    message["Date"] = format_datetime(date)
    message["Message-ID"] = _header("Message-ID", message_id)
    return message.as_bytes(policy=_POLICY)


def _compose(letter: Letter, sender: Sender, recipient: str | None, marking: str) -> EmailMessage:
    subject = _header("Subject", letter.subject)
    if not subject.strip():
        raise MessageRefused("The subject is empty. Mend the template.")
    if marking:
        subject = f"{_header('marking', marking)}: {subject}"
    if not subject.isascii() or not subject.isprintable() or len(subject) > 200:
        raise MessageRefused(
            "The subject must be printable ASCII of at most 200 characters: mail "
            "clients show others wrongly. Mend the template."
        )
    message = EmailMessage(policy=_POLICY)
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
    message.set_boundary(f"=_{digest[:40]}")
    return message


def _part(subtype: str, content: str) -> MIMEPart:
    if "\x00" in content:
        raise MessageRefused("The text holds a NUL character, which can't be sent.")
    if NONCHARACTERS.search(content):
        raise MessageRefused(
            "The text holds a code point that is no character, which can't be sent."
        )
    part = MIMEPart(policy=_POLICY)
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


def content_key(assessment: Assessment) -> str:
    case, intervention = assessment.case, assessment.intervention
    raw = case.model_dump(mode="json")
    whole = [
        case.reference,
        intervention.id,
        assessment.agency.email if assessment.agency else None,
        {path: _at(raw, path) for path in intervention.facts if not path.startswith("consents.")},
        {name: str(answer) for name, answer in assessment.answers.items()},
    ]
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _at(value: Any, path: str) -> Any:
    for part in path.split("."):
        if isinstance(value, list):
            value = [item.get(part) for item in value]
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value
