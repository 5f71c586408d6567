"""What a typed value may hold: lines, texts, dates, yes or no, e-mail addresses.

Each check raises `PydanticCustomError` with two sentences, what is wrong and what would be right;
neither repeats the value, which may be personal.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

LINE_LENGTH = 300
TEXT_LENGTH = 20_000

# C0 and C1 controls; TAB and LF are let through where lines are.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Code points that will never be characters (Unicode §23.7); strict parsers refuse a text with one.
NONCHARACTERS = re.compile(
    "[\ufdd0-\ufdef"
    + "".join(chr(plane | 0xFFFE) + chr(plane | 0xFFFF) for plane in range(0, 0x110000, 0x10000))
    + "]"
)
_LINE_ENDS = re.compile(r"\r\n|[\r\u2028\u2029]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")
_UK_DATE = re.compile(r"(\d{2})/(\d{2})/(\d{4})", re.ASCII)
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_MIDNIGHT = re.compile(r" 00:00:00(?:\.0+)?$", re.ASCII)  # as databases export a day
_SERIAL = re.compile(r"\d{5}(?:\.\d+)?", re.ASCII)
_MOMENT = re.compile(r"(\S+)[T ](\d{2}:\d{2})(?::00)?", re.ASCII)


def fault(code: str, what: str, remedy: str) -> PydanticCustomError:
    """A problem with a value, in our words."""
    return PydanticCustomError(
        code,
        "{what} {remedy}",
        {"what": what, "remedy": remedy},
    )


def as_text(value: Any) -> str:
    """Text over several lines, as typed, but for line ends (LF) and blank space around it.

    Emoji, bidirectional marks and zero-width joiners are part of people's names and words and
    pass; what no mail client can show (control characters, lone surrogates) is refused.
    """
    if not isinstance(value, str):
        raise fault("text", "is not text.", "Write it in quotes.")
    # Of what is refused nothing is printable: for most texts this one look is enough.
    text = value.strip() if value.isprintable() else _looked_through(value)
    if len(text) > TEXT_LENGTH:
        raise fault("too-long", "is too long.", f"Use {TEXT_LENGTH:,} characters at most.")
    return text


def _looked_through(value: str) -> str:
    text = _LINE_ENDS.sub("\n", value).strip()
    if _SURROGATES.search(text):
        raise fault(
            "characters",
            "holds half of a character (a lone surrogate), which can't be sent.",
            "Type that character again.",
        )
    if _CONTROLS.search(text) or NONCHARACTERS.search(text):
        raise fault(
            "characters",
            "holds a control character, which can't be sent.",
            "Type it again, or paste it as plain text.",
        )
    return text


def as_line(value: Any) -> str:
    """Text on one line."""
    text = as_text(value)
    if "\n" in text:
        raise fault("one-line", "has more than one line.", "Write it on one line.")
    if len(text) > LINE_LENGTH:
        raise fault("too-long", "is too long.", f"Use {LINE_LENGTH} characters at most.")
    return text


def as_date(value: Any) -> date:
    """A day, as 2026-01-31 or 31/01/2026; never a number, which could be any format's."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    if isinstance(value, str):
        value = _MIDNIGHT.sub("", value.strip())
        if uk := _UK_DATE.fullmatch(value):
            value = f"{uk[3]}-{uk[2]}-{uk[1]}"
        if _ISO_DATE.fullmatch(value):
            try:
                return date.fromisoformat(value)
            except ValueError:
                pass
        if _SERIAL.fullmatch(value):
            raise fault(
                "date",
                "is a number, as a spreadsheet keeps a date that it shows otherwise.",
                "Format the cell as a date, or write it as 2026-01-31 or 31/01/2026.",
            )
    raise fault("date", "is not a date.", "Write it as 2026-01-31 or 31/01/2026.")


# Not strftime's, which speaks the machine's language.
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September",
           "October", "November", "December")  # fmt: skip


def day_words(day: date) -> str:
    """`24 November 2026`"""
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


def as_moment(value: Any) -> datetime:
    """A day and a time by the region's clock, to the minute, without an offset."""
    if isinstance(value, datetime) and value.tzinfo is None:
        return value
    if isinstance(value, str) and (parts := _MOMENT.fullmatch(value.strip())):
        try:
            return datetime.combine(as_date(parts[1]), time.fromisoformat(parts[2]))
        except (ValueError, PydanticCustomError):
            pass
    raise fault("moment", "is not a date and time.", "Write it as 2026-01-31 18:00.")


_YES = {"yes", "y", "true"}
_NO = {"no", "n", "false"}


def as_yes_no(value: Any) -> bool:
    """True or false in JSON; yes or no in a spreadsheet. Numbers are not taken for either."""
    if isinstance(value, bool):
        return value
    word = value.strip().casefold() if isinstance(value, str) else ""
    if word in _YES:
        return True
    if word in _NO:
        return False
    raise fault("yes-no", "is neither yes nor no.", "Write yes or no.")


# The plainest addresses, all of which email-validator takes (a test compares the two). Importing
# it costs as much as all our configuration, so it is asked about the others only. 64 octets before
# the @ and 254 in all: RFC 5321 §4.5.3.1.
_PLAIN_ADDRESS = re.compile(
    r"(?=.{1,64}@)[a-z0-9_+\-]+(?:\.[a-z0-9_+\-]+)*@"
    r"(?=.{4,189}$)(?:[a-z0-9](?:[a-z0-9]|-(?!-)){0,40}(?<!-)\.){1,6}(?:uk|org|com|net)",
    re.ASCII | re.IGNORECASE,
)


def check_email(value: str) -> str:
    """An address as typed, if its syntax is right (RFC 5321); DNS is not asked."""
    if not _PLAIN_ADDRESS.fullmatch(value) and not _is_address(value):
        raise fault("email", "is not an e-mail address.", "Write it as name@organisation.gov.uk.")
    return value


def as_email(value: Any) -> str:
    return check_email(as_line(value))


def _is_address(value: str) -> bool:
    from email_validator import EmailNotValidError, validate_email

    try:
        validate_email(value, check_deliverability=False, allow_smtputf8=False)
    except EmailNotValidError:
        return False
    return value.isascii()  # no relay here needs SMTPUTF8, and look-alikes stay out


def given_line(value: Any) -> str:
    if type(value) is str and value.isprintable():  # as nearly all: the long way says the same
        text = value.strip()
        if 0 < len(text) <= LINE_LENGTH:
            return text
    return _given(as_line(value))


def given_text(value: Any) -> str:
    if type(value) is str and value.isprintable():
        text = value.strip()
        if 0 < len(text) <= TEXT_LENGTH:
            return text
    return _given(as_text(value))


def _given(value: str) -> str:
    if not value:
        raise fault("missing", "is empty.", "Fill it in.")
    return value


_REFERENCE = re.compile(r"(?=.*\d)[A-Z0-9](?:[A-Z0-9/_.\-]{0,38}[A-Z0-9])?", re.ASCII)


def as_reference(value: Any) -> str:
    """A case's own number. It goes into logs, so it can't be a name: it has a digit."""
    text = as_line(value).upper()
    if not _REFERENCE.fullmatch(text):
        raise fault(
            "reference",
            "is not a case reference.",
            "Use 1 to 40 letters, digits, / . _ or -, with at least one digit; never a name.",
        )
    return text


def as_choice(value: Any) -> Any:
    """One of our words, whatever its capitals; whether it is one is for others to say."""
    return value.strip().casefold() if isinstance(value, str) else value


def split_list(value: Any) -> Any:
    """`a; b` in a CSV cell is the list a, b; anything else is left as it is."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(";") if part.strip()]
    return value


def as_names(value: Any) -> Any:
    """A list of our words, such as interventions."""
    names = split_list(value)
    return [as_choice(name) for name in names] if isinstance(names, list) else names


Line = Annotated[str, BeforeValidator(given_line)]
Text = Annotated[str, BeforeValidator(given_text)]
Email = Annotated[str, BeforeValidator(as_email)]
Reference = Annotated[str, BeforeValidator(as_reference)]
YesNo = Annotated[bool, BeforeValidator(as_yes_no)]
Day = Annotated[date, BeforeValidator(as_date)]
