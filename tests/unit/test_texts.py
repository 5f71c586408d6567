"""What a typed value may hold, and that a refusal never repeats it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pytest
from email_validator import EmailNotValidError, validate_email
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from referrals.texts import (
    _PLAIN_ADDRESS,
    LINE_LENGTH,
    TEXT_LENGTH,
    as_date,
    as_email,
    as_line,
    as_moment,
    as_reference,
    as_text,
    as_yes_no,
    check_email,
    given_line,
    given_text,
    split_list,
)

# Letters of several scripts; marks for direction; emoji joined into one.
NAMES = [
    "Zo\u00eb O\u2019Neill-\u738b",
    "\u200f\u0645\u0631\u064a\u0645\u202e",
    "\U0001f469\u200d\U0001f692 x",
]
NOT_TEXT: list[Any] = [None, True, 7, 1.5, [], {}, ["text"], b"text"]


def code_of(check: Callable[[Any], Any], value: Any) -> str:
    """The code with which a value is refused, once its two sentences were looked at."""
    with pytest.raises(PydanticCustomError) as refused:
        check(value)
    context = refused.value.context or {}
    assert context["what"].endswith(".")
    assert context["remedy"].endswith(".")
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None
    return refused.value.type


# --- lines and texts


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("  two words \n", "two words"),
        ("one\r\ntwo\rthree\u2028four\u2029five", "one\ntwo\nthree\nfour\nfive"),
        ("tab\tstays", "tab\tstays"),
        *((name, name) for name in NAMES),
        ("{{ 7*7 }} <script>", "{{ 7*7 }} <script>"),
    ],
)
def test_text_is_kept_as_typed_but_for_line_ends_and_blank_edges(typed: str, kept: str) -> None:
    assert as_text(typed) == kept


@pytest.mark.parametrize("check", [as_text, as_line, given_text, given_line, as_email])
@pytest.mark.parametrize("value", NOT_TEXT)
def test_what_is_not_text_is_not_made_text(check: Callable[[Any], str], value: Any) -> None:
    assert code_of(check, value) == "text"


@pytest.mark.parametrize("check", [as_text, as_line, as_reference, as_email])
@pytest.mark.parametrize("character", ["\x00", "\x07", "\x0b", "\x1b", "\x7f", "\x85", "\ud800"])
def test_what_no_mail_client_can_show_is_refused(
    check: Callable[[Any], str], character: str
) -> None:
    assert code_of(check, f"a{character}1") == "characters"


@pytest.mark.parametrize(
    ("check", "most"),
    [
        (as_text, TEXT_LENGTH),
        (given_text, TEXT_LENGTH),
        (as_line, LINE_LENGTH),
        (given_line, LINE_LENGTH),
    ],
)
def test_lengths_end_where_they_should(check: Callable[[Any], str], most: int) -> None:
    assert check(f" {'x' * most} ") == "x" * most
    assert code_of(check, "x" * (most + 1)) == "too-long"


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\u2028", "\u2029"])
def test_a_line_is_one_line(end: str) -> None:
    """Nothing typed on a line can start another, in a header least of all."""
    assert code_of(as_line, f"Sam{end}Bcc: other@example.com") == "one-line"


@pytest.mark.parametrize("check", [given_line, given_text])
def test_blank_is_not_given(check: Callable[[Any], str]) -> None:
    assert code_of(check, " \t\n ") == "missing"


@given(st.text(st.characters(codec=None)))
def test_any_text_is_refused_or_can_be_sent(typed: str) -> None:
    try:
        kept = as_text(typed)
    except PydanticCustomError:
        return
    assert kept.encode("utf-8").decode("utf-8") == kept == as_text(kept)
    assert not set(kept) & ({chr(code) for code in range(32)} - {"\t", "\n"})


# --- days and moments


@pytest.mark.parametrize(
    ("typed", "day"),
    [
        ("2026-01-31", date(2026, 1, 31)),
        (" 31/01/2026 ", date(2026, 1, 31)),
        ("2026-01-31 00:00:00", date(2026, 1, 31)),  # as a database exports a day
        ("31/01/2026 00:00:00.000", date(2026, 1, 31)),
        ("03/04/2026", date(2026, 4, 3)),  # British: the day comes first
        ("29/02/2028", date(2028, 2, 29)),
        (date(2026, 1, 31), date(2026, 1, 31)),
    ],
)
def test_reads_days_as_written_in_britain_or_by_iso(typed: Any, day: date) -> None:
    assert as_date(typed) == day


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "2026-02-29",
        "29/02/2026",
        "31/04/2026",
        "01/31/2026",
        "1/2/2026",
        "01/02/26",
        "2026-1-31",
        "20260131",
        "2026-W05-6",
        "2026-01-31T00:00",
        "2026-01-31 18:00:00",
        "31.01.2026",
        "yesterday",
        "\u0662\u0660\u0662\u0666-01-31",
        20260131,
        46053,  # what a spreadsheet calls a day
        1.5,
        True,
        None,
        [],
        datetime(2026, 1, 31, tzinfo=UTC),
    ],
)
def test_never_guesses_a_day(typed: Any) -> None:
    assert code_of(as_date, typed) == "date"


def test_says_that_a_number_may_be_a_spreadsheets_day() -> None:
    with pytest.raises(PydanticCustomError, match="as a spreadsheet keeps a date"):
        as_date("46053")


@pytest.mark.parametrize(
    "typed",
    [
        "2026-01-31 18:00",
        "2026-01-31T18:00",
        "2026-01-31T18:00:00",
        "31/01/2026 18:00",
        " 31/01/2026T18:00:00 ",
        datetime(2026, 1, 31, 18, 0),  # noqa: DTZ001
    ],
)
def test_reads_moments_by_the_local_clock(typed: Any) -> None:
    assert as_moment(typed).isoformat() == "2026-01-31T18:00:00"


@pytest.mark.parametrize(
    "typed",
    [
        "2026-01-31",
        "18:00",
        "2026-01-31 6pm",
        "2026-01-31 6:00",
        "2026-01-31 25:00",
        "2026-01-31 18:60",
        "2026-01-31 18:00:30",
        "2026-01-31 18:00Z",
        "2026-01-31T18:00+01:00",
        "2026-02-30 18:00",
        "today 18:00",
        1769882400,
        None,
        datetime(2026, 1, 31, 18, 0, tzinfo=UTC),
    ],
)
def test_never_guesses_a_moment(typed: Any) -> None:
    """An offset would say another hour than the one by the region's clock: it is refused."""
    with pytest.raises(PydanticCustomError) as refused:
        as_moment(typed)
    assert refused.value.type == "moment"


# --- yes or no


@pytest.mark.parametrize("typed", [True, "yes", "YES", " Y ", "true"])
def test_yes(typed: Any) -> None:
    assert as_yes_no(typed) is True


@pytest.mark.parametrize("typed", [False, "no", "No", " n", "FALSE"])
def test_no(typed: Any) -> None:
    assert as_yes_no(typed) is False


@pytest.mark.parametrize("typed", [None, 0, 1, "", "1", "0", "maybe", "on", "yes please", [True]])
def test_consent_is_never_read_into_anything_else(typed: Any) -> None:
    assert code_of(as_yes_no, typed) == "yes-no"


# --- e-mail addresses


def is_taken_by_email_validator(value: str) -> bool:
    try:
        validate_email(value, check_deliverability=False, allow_smtputf8=False)
    except EmailNotValidError:
        return False
    return True


atoms = st.text("abzAZ09_+-", min_size=1, max_size=12)
labels = st.text("abzAZ09-", min_size=1, max_size=12)
plain = st.builds(
    lambda local, domain, top: f"{'.'.join(local)}@{'.'.join(domain)}.{top}",
    st.lists(atoms, min_size=1, max_size=6),
    st.lists(labels, min_size=1, max_size=6),
    st.sampled_from(["uk", "UK", "org", "com", "net"]),
)


@given(plain)
def test_the_quick_check_takes_nothing_that_email_validator_refuses(value: str) -> None:
    if _PLAIN_ADDRESS.fullmatch(value):
        assert is_taken_by_email_validator(value)


@pytest.mark.parametrize("local", [1, 63, 64, 65])
@pytest.mark.parametrize("domain", [5, 42, 188, 189, 190, 199, 200, 201])
def test_the_quick_check_and_email_validator_agree_on_lengths(local: int, domain: int) -> None:
    """RFC 5321 §4.5.3.1 allows 64 octets before the @ and 254 in all."""
    letters = "d" * (domain - 3)
    host = ".".join(letters[start : start + 40] for start in range(0, len(letters), 41))
    host = f"{host}{'d' * (domain - 3 - len(host))}.uk"
    value = f"{'l' * local}@{host}"
    assert len(host) == domain

    if _PLAIN_ADDRESS.fullmatch(value):
        assert is_taken_by_email_validator(value)


@given(plain | st.emails() | st.text("ab@.-\" '<>,;:()[]\u00e9", max_size=30))
def test_an_address_is_taken_if_and_only_if_its_syntax_is_right(value: str) -> None:
    try:
        taken = check_email(value) == value
    except PydanticCustomError:
        taken = False
    assert taken == (value.isascii() and is_taken_by_email_validator(value))


@pytest.mark.parametrize(
    "value",
    [
        "Hate.crime@nottinghamshire.pnn.police.uk",
        "cpintelligence@Nottinghamshire.pnn.police.uk",
        "o'neill@council.gov.uk",
        "name+tag@council.example.com",
        "name@council.london",
    ],
)
def test_an_address_keeps_its_spelling(value: str) -> None:
    assert as_email(f" {value} ") == value


@pytest.mark.parametrize(
    "value",
    [
        "",
        "name",
        "name@",
        "@council.gov.uk",
        "name@council",
        "name@localhost",
        "name@-council.gov.uk",
        "name@council-.gov.uk",
        "name@council..uk",
        "name@council.gov.uk.",
        ".name@council.gov.uk",
        "na..me@council.gov.uk",
        "two@names@council.gov.uk",
        "a@council.gov.uk, b@council.gov.uk",
        "a@council.gov.uk;b@council.gov.uk",
        "Name <name@council.gov.uk>",
        '"na me"@council.gov.uk',
        "name@[127.0.0.1]",
        "name@co\u00fancil.gov.uk",
        "n\u0430me@council.gov.uk",  # a Cyrillic a
        "name@council.gov.\u212auk",  # the Kelvin sign
        "mailto:name@council.gov.uk",
    ],
)
def test_what_is_not_one_plain_address_is_refused(value: str) -> None:
    assert code_of(check_email, value) == "email"


# --- references and lists


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("ncc-26-0193", "NCC-26-0193"),
        (" 7 ", "7"),
        ("A/B_C.1-2", "A/B_C.1-2"),
        ("1" * 40, "1" * 40),
    ],
)
def test_reads_a_case_reference(typed: str, kept: str) -> None:
    assert as_reference(typed) == kept


@pytest.mark.parametrize(
    "typed",
    ["", "Smith", "Alex Sample 1", "-1", "1-", "1" * 41, "N\u00b0 1", "1;2", "../1", "\u0661"],
)
def test_a_case_reference_is_not_a_name_or_a_path(typed: str) -> None:
    assert code_of(as_reference, typed) == "reference"


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        ("a; b;;c ", ["a", "b", "c"]),
        (" ; ", []),
        (["a; b"], ["a; b"]),
        (None, None),
        (7, 7),
    ],
)
def test_a_cell_with_semicolons_is_a_list(typed: Any, parts: Any) -> None:
    assert split_list(typed) == parts
