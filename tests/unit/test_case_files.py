"""Cases as people keep them: JSON, and CSV as spreadsheets save it."""

from __future__ import annotations

import csv
import io
import json
import traceback
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from referrals.case_files import (
    LARGEST_FILE,
    Columns,
    flatten,
    letters,
    parse,
    parse_csv,
    parse_json,
    read_text,
    tidy,
    unflatten,
)
from referrals.directory import Directory
from referrals.eligibility import read_case
from referrals.errors import CaseError, CaseInvalid, CaseUnreadable, Problem
from referrals.samples import sample_case

ROOT = Path(__file__).parents[2]
TODAY = date(2026, 11, 24)
CANARY = "Quetzal" + "Vanterpool"


def rows(text: str) -> list[dict[str, Any]]:
    return list(parse_csv(text, "case.csv"))


def as_csv(cells: dict[str, str], **dialect: Any) -> str:
    out = io.StringIO()
    writer = csv.writer(out, **dialect)
    writer.writerow(cells.keys())
    writer.writerow(cells.values())
    return out.getvalue()


def invalid(text: str) -> list[tuple[str, str]]:
    with pytest.raises(CaseInvalid) as refused:
        rows(text)
    assert all(problem.what and problem.remedy for problem in refused.value.problems)
    return [(problem.where, problem.code) for problem in refused.value.problems]


def unreadable(content: bytes | str, name: str = "case.csv") -> str:
    given = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    with pytest.raises(CaseUnreadable) as refused:
        parse(given, name)
    return str(refused.value)


# --- there and back

keys = st.from_regex(r"[a-z][a-z0-9_\-]{0,6}", fullmatch=True)
words = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('\n",;\t'), max_size=12
).filter(str.strip)
groups = st.recursive(
    words,
    lambda inner: (
        st.dictionaries(keys, inner, min_size=1, max_size=4)
        | st.lists(st.dictionaries(keys, inner, min_size=1, max_size=3), min_size=1, max_size=12)
    ),
    max_leaves=20,
)
cases = st.dictionaries(keys.filter(lambda key: key != "answers"), groups, min_size=1, max_size=5)


@settings(max_examples=40)
@given(cases, st.sampled_from([",", ";", "\t"]), st.booleans())
def test_a_case_comes_back_from_its_columns(
    raw: dict[str, Any], delimiter: str, mark: bool
) -> None:
    columns = dict(flatten(raw))
    assert unflatten(columns.items()) == raw

    # The separator of the header is the one that stands there most often.
    if len(columns) > 1:
        text = as_csv(columns, delimiter=delimiter)
        encoded = text.encode("utf-8-sig" if mark else "utf-8")
        assert parse(encoded, "case.csv") == [raw]


def test_the_samples_of_all_interventions_come_back_from_a_spreadsheet(
    directory: Directory,
) -> None:
    raw = sample_case(directory, sorted(directory.interventions), TODAY)
    (again,) = parse(as_csv(dict(flatten(raw))).encode(), "case.csv")
    case, place = read_case(raw, directory, TODAY)
    case_again, place_again = read_case(again, directory, TODAY)

    assert place_again == place
    typed = {"answers"}  # still as typed: yes for true, one; two for a list
    assert case_again.model_dump(exclude=typed) == case.model_dump(exclude=typed)


def test_values_are_written_as_people_write_them() -> None:
    raw = {"a": True, "b": False, "c": ["x", "y"], "d": 7, "e": [{"f": "g"}], "h": {"i": "j"}}

    assert dict(flatten(raw)) == {
        "a": "yes",
        "b": "no",
        "c": "x; y",
        "d": "7",
        "e.1.f": "g",
        "h.i": "j",
    }


columns = st.lists(st.sampled_from(["a", "b", "answers", "1", "2", "10"]), min_size=1, max_size=4)
tables = st.lists(columns.map(".".join), min_size=1, max_size=9, unique=True)


@example(["a.1.b", "a.b"], [["x", ""], ["x", "x"], ["", "x"]])
@given(tables, st.lists(st.lists(st.sampled_from(["", " ", "x", " y"]), max_size=9), max_size=3))
def test_a_header_that_was_looked_at_once_makes_the_same_of_a_row(
    header: list[str], rows: list[list[str]]
) -> None:
    """The short way and the long one, contradictions included."""

    def outcome(made: Callable[[], dict[str, Any]]) -> Any:
        try:
            return json.dumps(made(), sort_keys=True)
        except CaseInvalid as error:
            return error.problems

    table = Columns(header, "case.csv")
    for row in rows:
        if table.without_name(row) is None:
            cells = list(zip(header, row, strict=False))
            assert outcome(lambda row=row: table.nested(row)[0]) == outcome(  # type: ignore[misc]
                lambda cells=cells: unflatten(cells)  # type: ignore[misc]
            )


@pytest.mark.parametrize(
    ("position", "name"), [(0, "A"), (25, "Z"), (26, "AA"), (701, "ZZ"), (702, "AAA")]
)
def test_a_column_has_the_letters_that_a_spreadsheet_shows(position: int, name: str) -> None:
    assert letters(position) == name


# --- what a spreadsheet makes of a file

HEADER = "reference,people.victim.name,incidents.1.on"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_reads_what_spreadsheets_save(delimiter: str, end: str, encoding: str) -> None:
    header = HEADER.replace(",", delimiter)
    text = end.join([header, delimiter.join(["A-1", "Zoë O’Neill", "01/02/2026"]), ""])

    assert parse(text.encode(encoding), "case.csv") == [
        {
            "reference": "A-1",
            "people": {"victim": {"name": "Zoë O’Neill"}},
            "incidents": [{"on": "01/02/2026"}],
        }
    ]


def test_a_quoted_cell_keeps_its_lines_and_separators() -> None:
    (raw,) = rows('reference,location.place\r\nA-1,"one, ""two""\r\nthree;\n"\r\n')

    assert raw["location"]["place"] == 'one, "two"\r\nthree;\n'


def test_one_case_a_row_and_blank_rows_are_no_cases() -> None:
    found = rows(f"{HEADER}\n\nA-1,,\n , ,\nA-2,Alex,\n,,\n\n")

    assert found == [
        {"reference": "A-1"},
        {"reference": "A-2", "people": {"victim": {"name": "Alex"}}},
    ]


def test_a_short_row_leaves_the_rest_blank_and_blank_cells_may_trail() -> None:
    assert rows(f"{HEADER}\nA-1\n") == [{"reference": "A-1"}]
    assert rows(f"{HEADER}\nA-1,,,, ,\n") == [{"reference": "A-1"}]


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_more_cells_than_columns_are_refused(delimiter: str) -> None:
    """An address with an unquoted comma would shift every fact one column on."""
    header = HEADER.replace(",", delimiter)
    said = unreadable(f"{header}\nA-1{delimiter}x{delimiter}y{delimiter}{CANARY}\n")

    assert "row 2" in said
    assert CANARY not in said


def test_columns_are_trimmed_and_lists_need_not_start_at_one() -> None:
    (raw,) = rows(" reference , incidents.2.on,incidents.10.on ,incidents.7.on\nA-1,b,d,c\n")

    assert raw == {"reference": "A-1", "incidents": [{"on": "b"}, {"on": "c"}, {"on": "d"}]}


def test_a_case_may_have_its_second_incident_alone(directory: Directory) -> None:
    text = (ROOT / "samples/county.csv").read_text(encoding="utf-8")
    (raw,) = rows(text.replace("incidents.1.", "incidents.5."))
    case, _ = read_case(raw, directory, TODAY)

    assert [incident.on.isoformat() for incident in case.incidents] == ["2026-11-07", "2026-10-10"]


def test_doubled_columns_are_refused() -> None:
    assert invalid("reference,people.victim.name, people.victim.name\nA-1,Alex,Robin\n") == [
        ("people.victim.name", "doubled")
    ]


@pytest.mark.parametrize(
    "column",
    [
        "people..name",
        "people.victim.",
        "people victim name",
        "incidents.0.on",
        "incidents.01.on",  # beside incidents.1.on it would make two of one
        "incidents.201.on",
        "incidents.9999999999.on",
        "incidents.\u00b2.on",
        "incidents.-1.on",
        "incidents[1].on",
        CANARY,
        "x" * 41,
    ],
)
def test_a_column_of_another_form_is_refused_and_not_repeated(column: str) -> None:
    assert invalid(f"reference,{column}\nA-1,x\n") == [("column B", "column")]


def test_a_separator_left_behind_the_last_column_is_nothing() -> None:
    """Excel writes one where a column was deleted; a value in it is still refused."""
    assert rows("reference,\nA-1,\n") == [{"reference": "A-1"}]
    with pytest.raises(CaseUnreadable):
        rows("reference,\nA-1,x\n")


@pytest.mark.parametrize(
    ("columns", "conflict"),
    [
        (("people.victim", "people.victim.name"), "people.victim.name"),
        (("people.victim.name", "people.victim"), "people.victim"),
        (("people", "people.victim.safe_contact.method"), "people.victim.safe_contact.method"),
    ],
)
def test_a_column_is_a_value_or_a_group(columns: tuple[str, ...], conflict: str) -> None:
    assert invalid(f"reference,{','.join(columns)}\nA-1,x,y\n") == [(conflict, "column")]


def test_a_conflicting_column_without_a_value_does_no_harm() -> None:
    assert rows("reference,people,people.victim.name\nA-1,,Alex\n") == [
        {"reference": "A-1", "people": {"victim": {"name": "Alex"}}}
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        (",,\n", "is empty"),
        ('reference,location.place\nA-1,"open\n', "is not CSV"),
        ('reference,location.place\nA-1,"shut"x\n', "is not CSV"),
        (f"reference,location.place\nA-1,{'x' * 200_000}\n", "is not CSV"),
    ],
)
def test_what_is_no_table_is_refused(text: str, said: str) -> None:
    assert said in unreadable(text)


# --- bytes


def test_a_json_file_is_utf8() -> None:
    content = '{"reference": "Zoë-1"}'

    assert parse(content.encode(), "case.json") == [{"reference": "Zoë-1"}]
    assert parse(content.encode("utf-8-sig"), "case.json") == [{"reference": "Zoë-1"}]
    assert "UTF-8" in unreadable(content.encode("cp1252"), "case.json")
    assert "UTF-8" in unreadable(b"reference,a.b\nA-1,\x81\xff", "case.csv")


def test_a_file_has_a_sane_size() -> None:
    assert read_text(b" " * LARGEST_FILE, "case.json")
    assert "5 MB" in unreadable(b" " * (LARGEST_FILE + 1))


@pytest.mark.parametrize("name", ["-", "case.txt", "CASE.CSV"])
def test_a_table_is_known_by_its_name_or_its_header(name: str) -> None:
    text = (ROOT / "samples/county.csv").read_bytes()

    assert parse(text, name)[0]["reference"] == "ADC-26-0088"


@pytest.mark.parametrize("name", ["-", "case.json"])
def test_json_is_not_taken_for_a_table(name: str) -> None:
    assert parse(b'\n {"reference": "a.1"}', name) == [{"reference": "a.1"}]


# --- JSON


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1, column 1"),
        ("{", "is not JSON"),
        ('{"a": 1,}', "is not JSON"),
        ("[]", "in braces"),
        ('"text"', "in braces"),
        ('[{"reference": "A-1"}]', "in braces"),
        ('{"a": NaN}', "out of bounds"),
        ('{"a": -Infinity}', "out of bounds"),
        ('{"a": ' + "9" * 5_000 + "}", "out of bounds"),
        ('{"a":' * 100_000, "out of bounds"),
        ('{"a":' * 20 + "1" + "}" * 20, "without end"),
        ("[" * 100_000, "out of bounds"),
        ('{"answers": {"mediation": ' + '{"a":' * 20 + "1" + "}" * 22, "without end"),
    ],
)
def test_what_is_no_json_object_is_refused(text: str, said: str) -> None:
    assert said in unreadable(text, "case.json")


def test_a_doubled_key_is_never_a_silent_choice() -> None:
    """`"given": false, "given": true` must not become an agreement."""
    text = (
        '{"given": false, "given": true, "people": {"name": 1, "name": 2, "name": 3}, '
        f'"{CANARY}": 1, "{CANARY}": 2}}'
    )
    with pytest.raises(CaseInvalid) as refused:
        parse_json(text, "case.json")

    assert [(problem.where, problem.code) for problem in refused.value.problems] == [
        ("name", "doubled"),
        ("given", "doubled"),
        ("(a key)", "doubled"),
    ]


# --- what was not given


@pytest.mark.parametrize(
    ("raw", "tidied"),
    [
        ({}, {}),
        ({"a": None, "b": "", "c": " \n", "d": {}, "e": {"f": {"g": None}}}, {}),
        ({"a": False, "b": 0, "c": []}, {"a": False, "b": 0, "c": []}),
        ({"a": [None, "", {"b": ""}, {"c": 1}]}, {"a": [None, None, None, {"c": 1}]}),
        (
            {"answers": {"talks": {}, "more": None, "rest": {"a": ""}}},
            {"answers": {"talks": {}, "more": {}, "rest": {}}},
        ),
        ({"answers": {"talks": [], "more": 5}}, {"answers": {"talks": [], "more": 5}}),
        ({"answers": "text"}, {"answers": "text"}),
    ],
)
def test_null_blank_and_empty_are_not_given(raw: dict[str, Any], tidied: dict[str, Any]) -> None:
    """But an intervention that was asked for without answers is still asked for."""
    assert tidy(raw) == tidied
    assert tidy(tidy(raw)) == tidied


# --- never an echo


def chain(error: BaseException) -> str:
    """All that a log would show of an error."""
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    shown = "".join(traceback.format_exception(error))
    problems: tuple[Problem, ...] = getattr(error, "problems", ())
    return shown + str(error) + repr(error) + repr(error.args) + repr(problems)


BROKEN = [
    f'{{"reference": "{CANARY}"',
    f'{{"reference": {CANARY}}}',
    f'{{"{CANARY}": "\\x"}}',
    f'{{"{CANARY}": "\x01"}}',
    f'"{CANARY}"',
    f'["{CANARY}"]',
    f'{{"a": "{CANARY}", "a": 1}}',
    f'{{"{CANARY}": 1, "{CANARY}": 2}}',
    f'{{"{CANARY}": NaN}}',
    '{"' + CANARY + '": ' + '{"a":' * 20 + "1" + "}" * 21,
    '{"' + CANARY + '":' * 5_000,
    f'{CANARY}.a,reference\n"{CANARY}',
    f'reference,a.b\n"{CANARY}',
    f'reference,a.b\n"{CANARY}"x,{CANARY}',
    f"reference,a.b\nA-1,x,{CANARY}",
    f"reference,a.b,a\n{CANARY},{CANARY},{CANARY}",
    f"reference,a.b,{CANARY},{CANARY}\n1,2,3,4",
    f"reference,a.b\n{CANARY},\udc81",
]


@pytest.mark.parametrize("name", ["case.json", "case.csv", "-"])
@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_is_not_repeated(text: str, name: str) -> None:
    with pytest.raises(CaseError) as refused:
        parse(text.encode("utf-8", "surrogateescape"), name)

    assert CANARY not in chain(refused.value)


@given(
    st.lists(st.sampled_from([*'{}[]:,"\\; \t\n.a1', CANARY]), max_size=40).map("".join),
    st.sampled_from(["case.json", "case.csv", "-"]),
)
def test_any_file_is_read_or_refused_in_our_words(text: str, name: str) -> None:
    shown = ""
    try:
        parse(text.encode(), name)
    except CaseError as error:
        shown = chain(error)
    assert CANARY not in shown


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(CANARY),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=5) | st.just(CANARY), inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["people", "victim", "name", "consents", "answers", "mediation"]),
                inner,
                max_size=3,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_read_or_refused_in_our_words(value: Any) -> None:
    text = json.dumps({"consents": value, "answers": value, "location": value, "people": value})
    directory = Directory({}, {}, {})
    with pytest.raises(CaseError) as refused:
        read_case(parse(text.encode(), "case.json")[0], directory, TODAY)

    assert CANARY not in chain(refused.value)
