"""Files of many cases as programs really write them: each row as it was meant, or said wrong."""

# ruff: noqa: DTZ001 - the cells of a workbook have no time zone

from __future__ import annotations

import csv
import io
import json
import sys
import tracemalloc
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import openpyxl
import pytest

from referrals.case_files import flatten
from referrals.cells import as_cell_text
from referrals.directory import Directory
from referrals.errors import CaseInvalid, CaseUnreadable
from referrals.row_files import open_rows
from referrals.samples import sample_case
from referrals.sheets import Workbook
from referrals.tables import Row, wanted_of
from tests.conftest import TODAY
from tests.rows import as_csv, rows_of
from tests.workbooks import Book, Cell, boolean, error, formula, inline

CANARY = "Canary Quillfeather"
NAME, PHONE, PLACE = "people.victim.name", "people.victim.phone", "location.place"
HEADER = ["reference", NAME, PHONE, "incidents.1.on", "incidents.1.reference"]


@pytest.fixture(scope="session")
def cells(directory: Directory) -> dict[str, str]:
    """A row for mediation, by column."""
    return dict(flatten(sample_case(directory, ["mediation"], TODAY)))


@pytest.fixture
def book() -> Book:
    return Book()


def as_workbook(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    sheet.append(columns)
    for row in rows:
        sheet.append([row.get(column) for column in columns])
    book.save(path)
    return path


def read(path: Path, directory: Directory, sheet: str | None = None) -> list[Row]:
    rows = list(open_rows(path, directory, sheet).rows())
    problems = [problem for row in rows for problem in row.problems]
    assert all(problem.what and problem.remedy for problem in problems)
    assert CANARY not in str(problems)
    return rows


def wrong(rows: Sequence[Row]) -> list[tuple[int, str, str]]:
    return [(row.number, one.where, one.code) for row in rows for one in row.problems]


def refused(path: Path, directory: Directory, sheet: str | None = None) -> str:
    with pytest.raises((CaseUnreadable, CaseInvalid)) as caught:
        read(path, directory, sheet)
    assert CANARY not in str(caught.value)
    return str(caught.value)


def plain(row: Row) -> dict[str, str]:
    return dict(flatten(row.raw))


def saved(tmp_path: Path, content: str | bytes, name: str = "cases.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# CSV, as it is saved


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le"])
def test_a_csv_reads_alike_however_excel_saved_it(
    encoding: str, delimiter: str, cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    name = "Zoë O’Neill"
    rows = rows_of(cells, 2, **{NAME: name})
    path = saved(tmp_path, as_csv(rows, delimiter).encode(encoding))

    first, second = read(path, directory)

    assert (first.number, second.number) == (2, 3)
    assert first.raw["people"]["victim"]["name"] == name
    assert first.raw["people"]["victim"]["address"] == cells["people.victim.address"]
    assert first.problems == ()


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
def test_lines_end_as_on_any_system(end: str, tmp_path: Path, directory: Directory) -> None:
    path = saved(tmp_path, f"reference,{PLACE}{end}A1,here{end}A2,there{end}")

    assert [(row.number, plain(row)) for row in read(path, directory)] == [
        (2, {"reference": "A1", PLACE: "here"}),
        (3, {"reference": "A2", PLACE: "there"}),
    ]


def test_one_cp1252_letter_at_the_very_end_decides_for_the_whole(
    cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    rows = rows_of(cells, 1500)
    rows[-1][NAME] = "Zoë"
    path = saved(tmp_path, as_csv(rows).encode("cp1252"))
    assert path.stat().st_size > 1 << 20, "or it is read in one piece"

    last = read(path, directory)[-1]

    assert last.raw["people"]["victim"]["name"] == "Zoë"
    assert last.problems == ()


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("mac_roman", "Renée"),
        ("mac_roman", "Müller"),
        ("mac_roman", "OʼNeill".replace("ʼ", "’")),
        ("mac_roman", "one – two"),
        ("mac_roman", "Françoise"),
        ("cp850", "Café"),
        ("cp850", "Jörg"),
        ("cp850", "Müller"),
        ("cp437", "García"),
        ("cp850", "£50"),
    ],
)
def test_a_csv_of_a_macintosh_or_of_ms_dos_is_not_read_as_if_of_windows(
    encoding: str, text: str, tmp_path: Path, directory: Directory
) -> None:
    """Excel offers both in its list of file types; RenŽe would be the wrong name."""
    content = f"reference,{NAME}\nA1,Alex\nA2,{text}\n".encode(encoding)

    assert "line 3 shows" in refused(saved(tmp_path, content), directory)


def test_what_windows_has_is_no_sign_of_another_encoding(
    tmp_path: Path, directory: Directory
) -> None:
    names = [
        "Dušan Žižek",
        "Ólafur Ó Briain",
        "Sa‘id",
        "O’Neill – “Al” … £5 • Œuvre™",
        "ŠKODA",
        "“Go home”he said •then •left™and",
    ]
    rows = "".join(f'A{number},"{name}"\n' for number, name in enumerate(names))
    path = saved(tmp_path, f"reference,{NAME}\n{rows}".encode("cp1252"))

    assert [plain(row)[NAME] for row in read(path, directory)] == names


def test_a_stray_cp1252_letter_in_utf8_is_said_with_row_and_column(
    tmp_path: Path, directory: Directory
) -> None:
    """Neither guessed, nor a reason to read the other names as mojibake."""
    lines = [f"reference,{NAME}", "A1,Zoë", "A2,Siân", "A3,Chlo\xe9", "A4,Łukasz"]
    content = "\r\n".join(lines).encode().replace("Chlo\xe9".encode(), b"Chlo\xe9")
    rows = read(saved(tmp_path, content), directory)

    assert wrong(rows) == [(4, NAME, "encoding")]
    assert "5th" in rows[2].problems[0].what
    assert rows[3].raw["people"]["victim"]["name"] == "Łukasz"


def test_letters_that_excel_read_in_the_wrong_encoding_are_said(
    tmp_path: Path, directory: Directory
) -> None:
    """UTF-8 without a mark, opened in Excel by a double click and saved again."""
    garbled = "Zoë O’Neill".encode().decode("cp1252")
    content = f"reference,{NAME}\nA1,{garbled}\nA2,Zoë £5 – “so”\n"

    assert wrong(read(saved(tmp_path, content), directory)) == [(2, NAME, "encoding")]


def test_rows_are_numbered_as_the_spreadsheet_shows_them(
    cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    """Lines within a cell make no rows; blank rows do."""
    lines = as_csv(rows_of(cells, 2, **{"people.victim.address": "1 Road\n\nTown"})).split("\r\n")
    path = saved(tmp_path, "\r\n".join([lines[0], lines[1], ",,,,", "", lines[2], ""]))

    assert [row.number for row in read(path, directory)] == [2, 5]


def test_what_excel_leaves_behind_is_no_column_and_no_row(
    cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    lines = as_csv(rows_of(cells, 1)).splitlines()
    text = "\r\n".join([lines[0] + ",,,", *lines[1:-1], lines[-1] + ",,,", ",,,", ",,,"])

    (row,) = read(saved(tmp_path, text), directory)

    assert row.problems == ()
    assert row.raw["reference"] == "CASE-1"


@pytest.mark.parametrize("told", [";", "|", ","])
def test_a_line_that_names_the_separator_is_no_row(
    told: str, cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    path = saved(tmp_path, f"sep={told}\r\n" + as_csv(rows_of(cells, 1), told))

    (row,) = read(path, directory)

    assert (row.number, row.raw["reference"]) == (2, "CASE-1")


def test_more_cells_than_columns_are_an_error_of_that_row_alone(
    cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    """An address with an unquoted comma would shift every fact one column on."""
    lines = as_csv(rows_of(cells, 2)).split("\r\n")
    lines[1] += f",{CANARY}"
    rows = read(saved(tmp_path, "\r\n".join(lines)), directory)

    assert wrong(rows) == [(2, "(the row)", "cells")]
    assert len(rows) == 2


def test_a_short_row_has_blanks_at_its_end(tmp_path: Path, directory: Directory) -> None:
    rows = read(saved(tmp_path, f"reference,{NAME},{PHONE}\nA1\nA2,Alex\n"), directory)

    assert [plain(row) for row in rows] == [{"reference": "A1"}, {"reference": "A2", NAME: "Alex"}]


def test_only_a_header_is_a_file_without_cases(tmp_path: Path, directory: Directory) -> None:
    assert read(saved(tmp_path, f"reference,{NAME}\r\n"), directory) == []


UNCLOSED = f"""reference,{NAME},{PLACE}
A1,Alex,"1 Road

Town"
A2,Robin,"2 Road
A3,{CANARY},"3 Road, Town"
A4,Sam,4 Road
"""


def test_a_quotation_mark_left_open_is_said_where_it_was_opened(
    tmp_path: Path, directory: Directory
) -> None:
    rows = read(saved(tmp_path, UNCLOSED), directory)

    assert wrong(rows) == [(3, "(the row)", "quote")]
    assert "This row and all rows after it were not read" in rows[-1].problems[0].what


@pytest.mark.parametrize("size", [1, 200_000])
def test_a_quotation_mark_that_is_never_closed_is_said_as_well(
    size: int, tmp_path: Path, directory: Directory
) -> None:
    text = f'reference,{PLACE}\nA1,here\nA2,"open\n' + "A3,there\n" * size

    assert wrong(read(saved(tmp_path, text), directory)) == [(3, "(the row)", "quote")]


def test_what_was_not_read_is_left_out_whole(tmp_path: Path, directory: Directory) -> None:
    """Rows that nobody looked at must not get lost when the others go ahead."""
    left = tmp_path / "left.csv"
    open_rows(saved(tmp_path, "sep=,\n" + UNCLOSED), directory).copy(left, {3})

    header, *rest = UNCLOSED.splitlines(keepends=True)
    assert left.read_text("utf-8-sig") == header + "".join(rest[3:])


def test_a_quotation_mark_at_fault_makes_no_row_of_the_rest_of_a_cell(
    tmp_path: Path, directory: Directory
) -> None:
    """The lines look like rows, but nobody can tell; a mark within a cell is none of this."""
    text = f'reference,{PLACE},{NAME}\nA1,5" nails,\nA2,"one"two,"Alex\nA3,there,Sam"\nA4,,\n'
    path = saved(tmp_path, text)
    rows = read(path, directory)
    open_rows(path, directory).copy(tmp_path / "left.csv", {3})

    assert wrong(rows) == [(3, "(the row)", "quote")]
    assert plain(rows[0]) == {"reference": "A1", PLACE: '5" nails'}
    left = (tmp_path / "left.csv").read_text("utf-8-sig")
    assert left.splitlines()[1:] == text.splitlines()[2:]


def test_what_a_spreadsheet_put_in_place_of_a_value_is_said(
    tmp_path: Path, directory: Directory
) -> None:
    text = "\n".join(
        [
            ",".join(HEADER),
            "A1,#REF!,07700 900123,########,2.4E+07",
            "A2,=1+1,7700900123,2026-11-02,24000123",
            "#N/A,Alex,7.70E+09,#NAME?,-",
            "A4,# 5 Road,+44 7700 900123,2026-11-02,26*0412345",
        ]
    )

    assert wrong(read(saved(tmp_path, text), directory)) == [
        (2, NAME, "cell-error"),
        (2, "incidents.1.on", "cell-error"),
        (2, "incidents.1.reference", "cell-type"),
        (3, NAME, "cell-error"),
        (3, PHONE, "cell-type"),
        (4, "reference", "cell-error"),
        (4, PHONE, "cell-type"),
        (4, "incidents.1.on", "cell-error"),
    ]


@pytest.mark.parametrize(
    ("column", "written", "text"),
    [
        (PHONE, '"=""07700900123"""', "07700900123"),
        (PHONE, '="07700900123"', "07700900123"),
        ("reference", '="00123"', "00123"),
        (PHONE, "'07700 900123", "07700 900123"),
        (PHONE, "7700900123.0", None),
        (PHONE, "7.7009e+09", None),
        ("reference", "24000123.0", None),
        ("incidents.1.reference", "24000123.0", None),
        ("incidents.1.reference", "24.0", "24.0"),
        ("incidents.1.reference", "0", None),
        ("people.victim.safe_contact.times", "10-Dec", None),
        ("people.victim.safe_contact.times", "10-12", "10-12"),
        ("incidents.1.reference", "Mar-01", None),
        (NAME, "NULL", None),
        (NAME, "Null", "Null"),
        ("people.victim.access_needs", "nan", None),
        ("people.victim.access_needs", "None", "None"),
        (NAME, "=B7", None),
        (NAME, "'=B7", None),
        (NAME, '"=HYPERLINK(""x"",""Alex"")"', None),
        (PLACE, "=> the back gate", "=> the back gate"),
        (PLACE, "==== moved ====", "==== moved ===="),
        (PLACE, '"""Gate"" he said"', '"Gate" he said'),
        ("incidents.1.on", "\u200e31/01/2026\u200f", "31/01/2026"),
        ("location.area", "city\u200b", "city"),
        ("referrer.email", "\u202asam@council.example.com\u202c", "sam@council.example.com"),
        (NAME, "\u0646\u200c\u0627", "\u0646\u200c\u0627"),
    ],
)
def test_a_csv_is_read_as_a_spreadsheet_program_shows_it(
    column: str, written: str, text: str | None, tmp_path: Path, directory: Directory
) -> None:
    """None: it shows something else, and that is said."""
    path = saved(tmp_path, f"reference,{column},people.other_party.name\nA1,{written},Bo\n")
    if column == "reference":
        path = saved(tmp_path, f"reference,people.other_party.name\n{written},Bo\n")

    (row,) = read(path, directory)

    assert row.raw["people"]["other_party"]["name"] == "Bo"
    if text is None:
        assert [(number, where) for number, where, _ in wrong([row])] == [(2, column)]
    else:
        assert wrong([row]) == []
        assert plain(row)[column] == text


def test_a_quotation_after_a_blank_may_have_moved_what_follows(
    tmp_path: Path, directory: Directory
) -> None:
    """`a, "b, c"` has three cells for every reader of CSV, of which one may be dropped unseen."""
    text = (
        f"reference, {PLACE}, {NAME}, {PHONE}\n"
        'A1, "1 Road, Town", Alex\nA2, 5" nails, Bo\nA3,“1 Road, Town”,Alex\nA4,“Gate,Alex\n'
    )

    rows = read(saved(tmp_path, text), directory)

    assert wrong(rows) == [(2, PLACE, "quote"), (4, PLACE, "quote")]


def test_a_note_beside_a_table_is_said_by_its_column_and_the_row_read_on(
    book: Book, tmp_path: Path, directory: Directory
) -> None:
    """No separator can have moved the cells of a workbook."""
    book.add([["reference", NAME, PHONE], ["A1", "Alex", book.number("77"), None, "rang twice"]])

    (row,) = read(book.save(tmp_path / "cases.xlsx"), directory)

    assert wrong([row]) == [(2, PHONE, "cell-type"), (2, "column E", "column")]
    assert row.raw["people"]["victim"]["name"] == "Alex"


# The header


@pytest.mark.parametrize(
    "header",
    [
        f" Reference ,{NAME}",
        f"reference\u00a0,\u200b{NAME.upper()}",
        'REFERENCE,"people.\nvictim.name "',
        'reference,"people.victim\n.name"',
        'Reference,"People . Victim . Name"',
        f"\ufeffreference,{NAME}\u00ad",
    ],
)
def test_a_column_keeps_its_meaning_however_its_name_was_dressed(
    header: str, tmp_path: Path, directory: Directory
) -> None:
    (row,) = read(saved(tmp_path, f"{header}\nA1,Alex\n"), directory)

    assert plain(row) == {"reference": "A1", NAME: "Alex"}


def test_the_header_may_stand_below_a_title(tmp_path: Path, directory: Directory) -> None:
    text = f"Referrals; November,\n\n,as of,24/11/2026\n,\nreference,{NAME},\nA1,Alex,\n"

    (row,) = read(saved(tmp_path, text), directory)

    assert (row.number, plain(row)) == (6, {"reference": "A1", NAME: "Alex"})


def test_a_case_above_the_header_is_not_lost(tmp_path: Path, directory: Directory) -> None:
    """Where it lands when somebody sorts a sheet with its header."""
    text = f"A1,Alex,07700 900123\nreference,{NAME},{PHONE}\nA2,Robin,\n"

    rows = read(saved(tmp_path, text), directory)

    assert wrong(rows) == [(1, "(the row)", "above")]
    assert [row.number for row in rows] == [1, 3]


def test_a_blank_column_is_none_until_it_has_a_value(tmp_path: Path, directory: Directory) -> None:
    rows = read(saved(tmp_path, f",reference,,{NAME}\n,A1,,Alex\n,A2,{CANARY},Robin\n"), directory)

    assert wrong(rows) == [(3, "column C", "column")]
    assert plain(rows[0]) == {"reference": "A1", NAME: "Alex"}


def test_a_column_that_nobody_knows_is_said_once_and_by_its_letter(
    tmp_path: Path, directory: Directory
) -> None:
    """Not in each row; and what may have been meant is said, but not what was typed."""
    columns = f"reference,people.victim.nam,note.{CANARY.split()[1].lower()},{CANARY},incidents.on"
    path = saved(tmp_path, f"{columns}\n" + "A1,1,2,3,4\n" * 3)

    with pytest.raises(CaseInvalid) as caught:
        read(path, directory)

    problems = {one.where: one for one in caught.value.problems}
    assert list(problems) == ["column D", "column B", "column C", "column E"]
    assert f"Did you mean {NAME}?" in problems["column B"].remedy
    assert "Did you mean incidents.1.on?" in problems["column E"].remedy
    assert "quillfeather" not in str(caught.value).lower()


def test_a_column_twice_is_said_with_both_places(tmp_path: Path, directory: Directory) -> None:
    said = refused(saved(tmp_path, f"reference,{NAME},{NAME.title()}\nA1,1,2\n"), directory)

    assert "column C: stands twice: in columns B and C." in said


def test_a_file_without_a_header_is_one_error(tmp_path: Path, directory: Directory) -> None:
    said = refused(saved(tmp_path, f"A1,{CANARY},1 Road\nA2,Robin,2 Road\n"), directory)

    assert "no row of column names" in said


@pytest.mark.parametrize("header", [f"reference,{CANARY}", "reference,a,a", "reference,9999.a"])
def test_columns_that_are_none_are_refused_without_repeating_them(
    header: str, tmp_path: Path, directory: Directory
) -> None:
    refused(saved(tmp_path, f"{header}\n1,2,3\n"), directory)


# JSON lines


def test_json_lines_are_numbered_as_lines_and_each_fails_alone(
    tmp_path: Path, directory: Directory
) -> None:
    lines = [
        '{"reference": "A1"}',
        "",
        f'{{"{CANARY}": ',
        f'["{CANARY}"]',
        f'{{"reference": "{CANARY}",}}',
        '{"reference": NaN}',
        '{"reference": ' + "9" * 5_000 + "}",
        '{"a": ' * 100_000,
        f'{{"{CANARY}": 1, "{CANARY}": 2}}',
        '{"reference": "A10"}',
    ]
    content = b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b'\n{"reference": "\xe9"}\n'
    rows = read(saved(tmp_path, content, "cases.jsonl"), directory)

    assert wrong(rows) == [
        (3, "(the line)", "json"),
        (4, "(the line)", "json"),
        (5, "(the line)", "json"),
        (6, "(the line)", "json"),
        (7, "(the line)", "json"),
        (8, "(the line)", "json"),
        (9, "(a key)", "doubled"),
        (11, "(the line)", "json"),
    ]
    assert [row.raw["reference"] for row in rows if not row.problems] == ["A1", "A10"]
    assert "at character" in rows[1].problems[0].what
    assert "line 1" not in str([row.problems for row in rows])


def test_json_lines_may_be_utf16_as_powershell_writes_them(
    tmp_path: Path, directory: Directory
) -> None:
    path = saved(tmp_path, '{"reference": "Zoë"}\r\n'.encode("utf-16"), "cases.jsonl")

    assert read(path, directory)[0].raw == {"reference": "Zoë"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"reference": "A1"},\n {"reference": "A2"}]', "one list in JSON"),
        ('{\n  "reference": "A1"\n}\n', "one case over many lines"),
    ],
)
def test_json_of_another_layout_is_refused_once(
    content: str, said: str, tmp_path: Path, directory: Directory
) -> None:
    assert said in refused(saved(tmp_path, content, "cases.jsonl"), directory)


# What a cell of a workbook means


@pytest.mark.parametrize(
    ("value", "wanted", "text", "wrong"),
    [
        (None, "text", "", False),
        ("0115", "text", "0115", False),
        (7700900123, "text", "7700900123", True),
        (7700900123.0, "text", "7700900123", True),
        (24000123.0, "code", "24000123", False),
        (2400012300001234, "code", "2400012300001234", True),
        (2.5, "code", "2.5", True),
        (datetime(2026, 5, 1), "text", "2026-05-01", True),
        (datetime(2026, 5, 1), "code", "2026-05-01", True),
        (time(10, 0), "text", "10:00", True),
        (timedelta(hours=30), "other", "1 day, 6:00:00", False),
        (True, "text", "yes", True),
        (3.0, "other", "3", False),
        (2.5, "other", "2.5", False),
        (False, "other", "no", False),
        (date(2026, 1, 31), "other", "2026-01-31", False),
        (datetime(2026, 1, 31), "other", "2026-01-31", False),
        (datetime(2026, 1, 31), "moment", "2026-01-31 00:00", False),
        (datetime(2026, 1, 30, 23, 59, 59, 999_999), "other", "2026-01-31", False),
        (datetime(2026, 1, 31, 18, 0), "moment", "2026-01-31 18:00", False),
        (datetime(2026, 1, 31, 18, 0, 7), "moment", "2026-01-31 18:00:07", False),
        (datetime(9999, 12, 31, 23, 59, 59, 999_999), "moment", "9999-12-31 23:59:59", False),
        ("#N/A", "other", "#N/A", True),
        ("####", "other", "####", True),
        ("# 12", "other", "# 12", False),
    ],
)
def test_a_cell(value: Any, wanted: Any, text: str, wrong: bool) -> None:
    found, problem = as_cell_text(value, wanted)

    assert found == text
    assert (problem is not None) is wrong


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        ("reference", "text"),
        ("people.victim.phone", "text"),
        ("people.victim.safe_contact.times", "text"),
        ("people.victim.date_of_birth", "other"),
        ("incidents.2.on", "other"),
        ("incidents.2.what", "text"),
        ("incidents.2.record", "other"),
        ("consents.1.given", "other"),
        ("answers.police-dispersal-order.starts", "moment"),
        ("answers.police-dispersal-order.locality", "text"),
        ("answers.repeat-victim-panel.person_told", "other"),
        ("answers.nothing.there", "other"),
        ("nothing.there", "other"),
        ("", "other"),
    ],
)
def test_what_a_column_wants(column: str, wanted: str, directory: Directory) -> None:
    assert wanted_of(column, directory) == wanted


@pytest.mark.parametrize("kept", ["shared", "inline"])
def test_texts_are_read_as_excel_shows_them(
    kept: str, book: Book, tmp_path: Path, directory: Directory
) -> None:
    """Runs of a rich text are one; a guide to pronunciation is none of it; escapes are undone."""
    rich = (
        '<r><rPr><b/></rPr><t xml:space="preserve">Alex </t></r><r><t>Sample</t></r>'
        '<rPh sb="0" eb="4"><t>Arekkusu</t></rPh>'
    )
    place = "1 Road_x000D_\nTown _x005F_x000D_ “A” & <b>"
    escaped = place.replace("&", "&amp;").replace("<", "&lt;")
    if kept == "shared":
        row = [book.text("A1"), book.rich(rich), book.rich(f"<t>{escaped}</t>")]
    else:
        row = [
            inline("A1"),
            Cell(f"<is>{rich}</is>", 't="inlineStr"'),
            Cell(f"<is><t>{escaped}</t></is>", 't="inlineStr"'),
        ]
    book.add([["reference", NAME, PLACE], row])

    (found,) = read(book.save(tmp_path / "cases.xlsx"), directory)

    assert plain(found) == {
        "reference": "A1",
        NAME: "Alex Sample",
        PLACE: "1 Road\r\nTown _x000D_ “A” & <b>",
    }


@pytest.mark.parametrize(("date1904", "serial"), [(False, 46328), (True, 44866)])
@pytest.mark.parametrize("shown", ["dd/mm/yyyy", "[$-809]d mmmm yyyy;@", 'd\\-mmm\\-yy "x"'])
def test_a_date_is_that_of_its_calendar(
    date1904: bool, serial: int, shown: str, book: Book, tmp_path: Path, directory: Directory
) -> None:
    on = book.number(str(serial), shown)
    book.add([["reference", "incidents.1.on"], ["A1", on]])

    (row,) = read(book.save(tmp_path / "cases.xlsx", date1904=date1904), directory)

    assert row.raw["incidents"][0]["on"] == "2026-11-02"


MOMENT = "answers.police-dispersal-order.starts"


@pytest.mark.parametrize(
    ("column", "written", "shown", "text"),
    [
        (MOMENT, "46328.75", "dd/mm/yyyy hh:mm", "2026-11-02 18:00"),
        (MOMENT, "46328.7499999999", "m/d/yy h:mm", "2026-11-02 18:00"),
        (MOMENT, "46328.75", "General", "46328.75"),
        ("incidents.1.on", "1", "d/m/yyyy", "1900-01-01"),
        ("incidents.1.on", "59", "d/m/yyyy", "1900-02-28"),
        ("incidents.1.on", "61", "d/m/yyyy", "1900-03-01"),
        ("incidents.1.on", "0.75", "hh:mm", "18:00"),
        ("incidents.1.on", "46328", '"day "0', "day 46328"),
        ("incidents.1.on", "46328", "[$-409]mmm\\-yy;@", None),
        ("incidents.1.on", "46328", "yyyy", None),
        ("incidents.1.on", "46328", "d-mmm", "2026-11-02"),
        ("incidents.1.on", "46328", "dd/mm/yyyy hh:mm", "2026-11-02"),
        (MOMENT, "46328", "dd/mm/yyyy", "2026-11-02"),
        (MOMENT, "46328", "dd/mm/yyyy hh:mm", "2026-11-02 00:00"),
        (MOMENT, "46328.75", "dd/mm/yyyy", "2026-11-02 18:00"),
        ("incidents.1.on", "46328", "0.00E+00", "4.63E+04"),
        ("incidents.1.reference", "260000000000", "0.00E+00", None),
        ("incidents.1.reference", "260000000000", "General", "260000000000"),
        ("incidents.1.on", "0.5", "0%", "0.5"),
        ("incidents.1.on", "1.25", "[h]:mm", "1 day, 6:00:00"),
        (PHONE, "7700900123", "00000000000", "07700900123"),
        (PHONE, "7700900123", "00000\\ 000000", "07700 900123"),
        (PHONE, "7700900123", "00000 000000;@", "07700 900123"),
        (PHONE, "7700900123", "0", None),
        ("incidents.1.reference", "24000123", "General", "24000123"),
        ("incidents.1.reference", "24000123.0", "0", "24000123"),
        ("incidents.1.reference", "24000123", "#,##0", "24000123"),
        ("incidents.1.reference", "123", '"HC/"0000', "HC/0123"),
        ("incidents.1.reference", "123", '_-"HC"\\-#_-;@', "HC-123"),
        ("incidents.1.reference", "12345", '"HC/"0000"/26"', "HC/12345/26"),
        ("incidents.1.reference", "123", '"HC "General', "HC 123"),
        ("incidents.1.reference", "123.5", '"HC "0', None),
        ("incidents.1.reference", "0", "General", None),
        ("incidents.1.reference", "2.4000123E7", "General", "24000123"),
        ("incidents.1.reference", "24000123.000000004", "General", "24000123"),
        ("incidents.1.reference", "1.2345678901234568E+17", "General", None),
        ("incidents.1.reference", "24000123.5", "General", None),
        ("incidents.1.on", "-1", "d/m/yyyy", None),
        ("incidents.1.on", "60", "d/m/yyyy", None),
        ("incidents.1.on", "3000000", "d/m/yyyy", None),
        ("incidents.1.on", "1e400", "General", None),
    ],
)
def test_a_number_is_read_as_it_is_shown(
    column: str,
    written: str,
    shown: str,
    text: str | None,
    book: Book,
    tmp_path: Path,
    directory: Directory,
) -> None:
    """None: what was typed can't be told any more, and that is said.

    A day without its time is none of midnight, nor a month its first day.
    """
    book.add([["reference", column], ["A1", book.number(written, shown)]])
    (row,) = read(book.save(tmp_path / "cases.xlsx"), directory)

    if text is None:
        assert wrong([row]) in ([(2, column, "cell-type")], [(2, column, "cell-error")])
    else:
        assert wrong([row]) == []
        assert plain(row)[column] == text


def test_other_cells_are_what_they_are(book: Book, tmp_path: Path, directory: Directory) -> None:
    header = ["reference", NAME, "incidents.1.on", "consents.1.given", PLACE]
    iso = Cell("<v>2026-11-02T00:00:00</v>", 't="d"')
    book.add(
        [
            header,
            ["A1", error("#REF!"), iso, boolean(True), formula("B1", "from a formula")],
            [formula('"A"&2', "A2"), "Alex", "03/04/2026", boolean(False), formula("B1", "")],
            ["A3", formula("B1"), Cell("<f>TODAY()</f><v></v>"), error("#N/A"), "#VALUE!"],
            [Cell("<v/>"), Cell("", 's="1"'), Cell("<v></v>", 't="str"'), inline(""), inline(" ")],
        ]
    )
    rows = read(book.save(tmp_path / "cases.xlsx"), directory)

    assert wrong(rows) == [
        (2, NAME, "cell-error"),
        (4, NAME, "cell-error"),
        (4, "incidents.1.on", "cell-error"),
        (4, "consents.1.given", "cell-error"),
        (4, PLACE, "cell-error"),
    ]
    assert rows[0].raw["incidents"][0]["on"] == "2026-11-02"
    assert rows[0].raw["consents"][0]["given"] == "yes"
    assert rows[0].raw["location"]["place"] == "from a formula"
    assert plain(rows[1]) == {
        "reference": "A2",
        NAME: "Alex",
        "incidents.1.on": "03/04/2026",
        "consents.1.given": "no",
    }
    assert "not saved" in rows[2].problems[0].what


def test_what_openpyxl_types_reads_as_one_would_type_it(
    cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    row: dict[str, Any] = {
        **cells,
        "consents.1.given": True,
        "consents.1.on": datetime(2026, 11, 2),
        PHONE: 7700900123,
    }

    (found,) = read(as_workbook(tmp_path / "cases.xlsx", [row]), directory)

    assert found.raw["consents"][0]["on"] == "2026-11-02"
    assert found.raw["consents"][0]["given"] == "yes"
    assert wrong([found]) == [(2, PHONE, "cell-type")]


def test_openpyxl_reads_the_same_of_what_it_reads_too(
    book: Book, cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    """Which shows that the workbooks of these tests are workbooks."""
    on = book.number("46328.75", "dd/mm/yyyy hh:mm")
    row = [book.text("A1"), inline("Alex"), book.number("77"), on, boolean(True)]
    book.add([[*HEADER[:4], "consents.1.given"], row])
    path = book.save(tmp_path / "cases.xlsx")

    with Workbook(path) as workbook:
        (rows,) = workbook.rows(workbook.sheets[0])
    with pytest.warns(UserWarning, match="no default style"):
        theirs = openpyxl.load_workbook(path).worksheets[0]

    assert rows[1].cells == [cell.value for cell in theirs[2]]
    assert rows[1].cells[3] == datetime(2026, 11, 2, 18)


# Where things stand in a workbook


def test_a_sheet_may_begin_anywhere(book: Book, tmp_path: Path, directory: Directory) -> None:
    """Blank rows and columns, a title, a header that is frozen and filtered, a table."""
    after = '<autoFilter ref="C6:D9"/><tableParts count="1"><tablePart r:id="rId1"/></tableParts>'
    before = (
        '<sheetPr filterMode="1"/><dimension ref="A1"/><sheetViews><sheetView workbookViewId="0">'
        '<pane ySplit="6" topLeftCell="A7" state="frozen"/></sheetView></sheetViews>'
        '<cols><col min="3" max="3" hidden="1"/></cols>'
    )
    rows = {
        3: ["", "", "Referrals in November"],
        6: ["", "", " Reference\n", NAME],
        7: ["", "", "A1", "Alex"],
        9: ["", "", "A2", "Robin"],
    }
    book.add(rows, before=before, after=after)

    found = read(book.save(tmp_path / "cases.xlsx"), directory)

    assert [(row.number, plain(row)) for row in found] == [
        (7, {"reference": "A1", NAME: "Alex"}),
        (9, {"reference": "A2", NAME: "Robin"}),
    ]


@pytest.mark.parametrize("claimed", ["", "A1", "A1:XFD1048576", "nonsense"])
def test_what_a_sheet_says_of_its_size_counts_for_nothing(
    claimed: str, book: Book, tmp_path: Path, directory: Directory
) -> None:
    before = f'<dimension ref="{claimed}"/>' if claimed else ""
    book.add([["reference", NAME], ["A1", "Alex"]], before=before)

    assert [row.number for row in read(book.save(tmp_path / "cases.xlsx"), directory)] == [2]


def test_cells_that_do_not_say_where_they_are_stand_in_order(
    book: Book, tmp_path: Path, directory: Directory
) -> None:
    book.add([["reference", PHONE, NAME], ["A1", "", "Alex"], [], ["A2", "", ""]], places=False)

    found = read(book.save(tmp_path / "cases.xlsx"), directory)

    assert [(row.number, plain(row)) for row in found] == [
        (2, {"reference": "A1", NAME: "Alex"}),
        (4, {"reference": "A2"}),
    ]


@pytest.mark.parametrize("how", [{"strict": True}, {"prefix": "x"}])
def test_the_other_dialects_of_open_xml_are_read(
    how: dict[str, Any], book: Book, tmp_path: Path, directory: Directory
) -> None:
    book.add([["reference", "incidents.1.on"], ["A1", book.number("46328", "dd/mm/yyyy")]])

    (row,) = read(book.save(tmp_path / "cases.xlsx", **how), directory)

    assert plain(row) == {"reference": "A1", "incidents.1.on": "2026-11-02"}


@pytest.mark.parametrize("name", ["/{}", "{}"])
def test_parts_are_found_however_their_names_are_packed(
    name: str, book: Book, tmp_path: Path, directory: Directory
) -> None:
    book.add([["reference", NAME], ["A1", "Alex"]])
    path, packed = tmp_path / "cases.xlsx", tmp_path / "packed.xlsx"
    with ZipFile(book.save(path)) as parts, ZipFile(packed, "w") as anew:
        for part in parts.namelist():
            anew.writestr(name.format(part).replace("/", "\\"), parts.read(part))

    assert plain(read(packed, directory)[0]) == {"reference": "A1", NAME: "Alex"}


def test_a_hidden_row_is_neither_sent_nor_lost(
    book: Book, tmp_path: Path, directory: Directory
) -> None:
    """A filter hides rows as a person does; which of the two was meant, only they can say."""
    book.add([["reference", NAME], ["A1", "Alex"], ["A2", CANARY], ["", ""]], hidden=(3, 4))

    rows = read(book.save(tmp_path / "cases.xlsx"), directory)

    assert wrong(rows) == [(3, "(the row)", "hidden")]


def test_a_row_without_height_is_hidden(book: Book, tmp_path: Path, directory: Directory) -> None:
    row = '<row r="2" ht="0" customHeight="1"><c r="A2" t="str"><v>A1</v></c></row>'
    header = '<row r="1"><c r="A1" t="str"><v>reference</v></c></row>'
    book.add_xml(f"<sheetData>{header}{row}</sheetData>")

    assert wrong(read(book.save(tmp_path / "cases.xlsx"), directory)) == [
        (2, "(the row)", "hidden")
    ]


def test_a_cell_merged_downwards_is_said_of_the_rows_that_have_no_value(
    book: Book, tmp_path: Path, directory: Directory
) -> None:
    merged = '<mergeCells count="2"><mergeCell ref="A1:B1"/><mergeCell ref="B3:B5"/></mergeCells>'
    rows = [["reference", NAME], ["A1", "Alex"], ["A2", "Robin"], ["A3"], ["A4"], ["A5", "Sam"]]
    book.add(rows, after=merged)

    found = read(book.save(tmp_path / "cases.xlsx"), directory)

    assert wrong(found) == [(4, NAME, "merged"), (5, NAME, "merged")]


def test_formatted_emptiness_to_the_last_row_is_no_row(
    book: Book, tmp_path: Path, directory: Directory
) -> None:
    blank = "".join(
        f'<row r="{n}" s="1" customFormat="1"><c r="C{n}" s="1"/></row>' for n in range(4, 20_000)
    )
    last = '<row r="1048576"><c r="XFD1048576" s="1"/></row>'
    first = "".join(
        f'<row r="{n}"><c r="A{n}" t="inlineStr"><is><t>{text}</t></is></c></row>'
        for n, text in ((1, "reference"), (2, "A1"), (3, " "))
    )
    book.add_xml(f"<sheetData>{first}{blank}{last}</sheetData>")

    assert [row.number for row in read(book.save(tmp_path / "cases.xlsx"), directory)] == [2]


# Which sheet


CASES = [["reference", NAME], ["A1", "Alex"]]


def test_the_sheet_with_cases_is_found_among_others(
    book: Book, tmp_path: Path, directory: Directory
) -> None:
    book.add([["How to fill this in"], ["reference", "the number of your case"]], "Read me")
    book.add(CASES, "old", state="hidden")
    book.add([["reference", NAME]], "Empty template")
    book.add(CASES, "Now")
    book.add([["mediation"], ["intervention"]], "Lists", state="veryHidden")

    (row,) = read(book.save(tmp_path / "cases.xlsx", charts=["Chart1"]), directory)

    assert row.raw["reference"] == "A1"


def test_a_sheet_is_one_of_cases_though_its_reference_has_a_wrong_name(
    book: Book, tmp_path: Path, directory: Directory
) -> None:
    book.add([["Case ref", NAME, PLACE], ["A1", "Alex", "here"]], "Old")
    book.add([["Notes"], ["location.place"]], "Notes")
    alone = refused(book.save(tmp_path / "one.xlsx"), directory)
    book.add(CASES, "New")

    assert "column A: has a name" in alone
    assert "more than one sheet: 1 and 3" in refused(book.save(tmp_path / "two.xlsx"), directory)


def test_cases_in_two_sheets_are_not_left_out_unsaid(
    book: Book, tmp_path: Path, directory: Directory
) -> None:
    book.add([["notes"]], "Notes")
    book.add(CASES, CANARY)
    book.add([["reference", NAME], ["B1", "Robin"]], "Ann's")
    book.add([["reference", NAME], ["H1", "Sam"]], "Kept", state="hidden")
    path = book.save(tmp_path / "cases.xlsx")

    said = refused(path, directory)
    assert "2 and 3" in said
    assert "--sheet" in said
    for sheet, reference in ((CANARY, "A1"), ("3", "B1"), (" ann's", "B1"), ("Kept", "H1")):
        assert [row.raw["reference"] for row in read(path, directory, sheet)] == [reference]
    for sheet in ("4", "0", "Anna", CANARY[1:]):
        assert "no such sheet" in refused(path, directory, sheet)


def test_only_a_workbook_has_sheets(tmp_path: Path, directory: Directory) -> None:
    assert "no sheets" in refused(saved(tmp_path, "reference\nA1\n"), directory, "1")


# Files that are none


def zipped(path: Path, **parts: str) -> Path:
    with ZipFile(path, "w") as packed:
        for name, content in parts.items():
            packed.writestr(name.replace("__", "/").replace("_", "."), content)
    return path


def test_files_of_other_programs_are_told_apart(tmp_path: Path, directory: Directory) -> None:
    ole = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
    locked = ole + "EncryptedPackage".encode("utf-16-le") + bytes(100)
    opened = "application/vnd.oasis.opendocument.spreadsheet"
    for path, said in (
        (saved(tmp_path, ole, "a.xlsx"), "old .xls"),
        (saved(tmp_path, locked, "b.xlsx"), "has a password"),
        (saved(tmp_path, "<html><table><tr><td>reference", "c.xls"), "a web page"),
        (zipped(tmp_path / "d.xlsx", mimetype=opened, content_xml="x"), "OpenDocument"),
        (zipped(tmp_path / "e.xlsx", xl__workbook_bin="x"), "binary workbook"),
        (zipped(tmp_path / "f.xlsx", Index__Document_iwa="x"), "Numbers"),
        (zipped(tmp_path / "g.xlsx", word__document_xml="x"), "packed like one"),
    ):
        assert said in refused(path, directory)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cases.xlsx", b"PK\x03\x04 not a zip"),
        ("cases.xlsx", b"reference,people.victim.name"),
        ("cases.csv", b""),
        ("cases.csv", b"\xef\xbb\xbf \r\n,,\r\n"),
        ("cases.csv", b'"reference,a\r\nX1,open\r\n'),
        ("cases.csv", b"x" * 1_200_000),
        ("cases.csv", bytes(2_000_000)),
        ("cases.csv", b"reference,\x81\r\n1,2"),
        ("cases.csv", "reference\r\nA".encode("utf-16") + b"\xd8"),
    ],
)
def test_what_is_no_file_of_cases_is_refused(
    name: str, content: bytes, tmp_path: Path, directory: Directory
) -> None:
    refused(saved(tmp_path, content, name), directory)


def test_a_nul_in_a_cell_stays_in_its_cell(tmp_path: Path, directory: Directory) -> None:
    """The check of texts says it, with row and column."""
    rows = read(saved(tmp_path, f"reference,{NAME}\nA1,Al\0ex\nA2,Robin\n"), directory)

    assert [row.raw["people"]["victim"]["name"] for row in rows] == ["Al\0ex", "Robin"]


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path, directory: Directory) -> None:
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(CaseUnreadable):
            open_rows(path, directory)


DOCTYPE = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("xl/worksheets/sheet1.xml", "<worksheet><sheetData><row"),
        ("xl/worksheets/sheet1.xml", DOCTYPE + "<worksheet/>"),
        ("xl/worksheets/sheet1.xml", "<chartsheet/>"),
        ("xl/sharedStrings.xml", DOCTYPE + "<sst><si><t>&b;</t></si></sst>"),
        ("xl/sharedStrings.xml", "<sst/>"),
        ("xl/workbook.xml", "<workbook>"),
        (
            "xl/worksheets/sheet1.xml",
            '<worksheet><sheetData><row r="2"/><row r="2"/></sheetData></worksheet>',
        ),
        (
            "xl/worksheets/sheet1.xml",
            '<worksheet><sheetData><row r="1"><c r="ZZZZ1"><v>1</v></c></row></sheetData>'
            "</worksheet>",
        ),
    ],
)
def test_a_broken_workbook_is_refused_in_our_words(
    part: str, content: str, book: Book, tmp_path: Path, directory: Directory
) -> None:
    book.add(CASES)
    path = book.save(tmp_path / "cases.xlsx", extra={part: content})

    assert "is not a workbook that can be read" in refused(path, directory)


def test_a_zip_that_claims_to_be_vast_is_not_unpacked(
    cells: dict[str, str], tmp_path: Path, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_workbook(tmp_path / "cases.xlsx", rows_of(cells, 1))
    with ZipFile(path) as packed:
        whole = sum(entry.file_size for entry in packed.infolist())
    monkeypatch.setattr("referrals.row_files._LARGEST_WORKBOOK", whole - 1)

    assert "too large" in refused(path, directory)


def test_a_row_without_end_is_not_held(book: Book, tmp_path: Path, directory: Directory) -> None:
    """40 MB that pack into 40 KB."""
    book.add(CASES)
    path = book.save(tmp_path / "cases.xlsx")
    with ZipFile(path, "a", ZIP_DEFLATED) as packed:
        packed.writestr("xl/long.xml", "<worksheet><row><c><v>" + "9" * (40 << 20))
    links = "xl/_rels/workbook.xml.rels"
    with ZipFile(path) as packed:
        parts = {name: packed.read(name) for name in packed.namelist()}
    parts[links] = parts[links].replace(b"worksheets/sheet1.xml", b"long.xml")
    with ZipFile(path, "w", ZIP_DEFLATED) as packed:
        for name, content in parts.items():
            packed.writestr(name, content)
    tracemalloc.start()
    said = refused(path, directory)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert "is not a workbook that can be read" in said
    assert peak < 40 << 20


# Memory


@pytest.mark.parametrize("name", ["cases.csv", "cases.xlsx"])
def test_memory_does_not_grow_with_the_file(
    name: str, cells: dict[str, str], tmp_path: Path, directory: Directory, book: Book,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("referrals.sheets._IN_MEMORY", 1 << 16)
    monkeypatch.setattr("referrals.sheets._MOST_SHORT", 1_000)
    rows = rows_of(cells, 600)
    for number, row in enumerate(rows):
        row["people.victim.address"] = f"{number} " + "Road, " * 1_200
    path = tmp_path / name
    if name == "cases.csv":
        path.write_text(as_csv(rows), newline="")
    else:
        book.add([list(rows[0]), *(list(row.values()) for row in rows)])
        book.save(path)
        book.texts.clear()
    tracemalloc.start()
    for _ in open_rows(path, directory).rows():
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 2_500_000


# Written out again


def test_chosen_rows_are_written_as_they_were(
    cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    rows = rows_of(cells, 3, **{"people.victim.address": '1 "The" Road\nTown; X'})
    path = saved(tmp_path, as_csv(rows, ";").encode("cp1252"))
    open_rows(path, directory).copy(tmp_path / "left.csv", {3})

    left = (tmp_path / "left.csv").read_text("utf-8-sig")
    assert left.replace("\r\n", "\n") == as_csv([rows[1]], ";", "\n")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "＝"])
def test_what_begins_like_a_formula_runs_nowhere_and_comes_back(
    start: str, tmp_path: Path, directory: Directory
) -> None:
    name = f'{start}cmd|"x"!A1'
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["reference", NAME], ["A1", name]])
    path, left = saved(tmp_path, text.getvalue()), tmp_path / "left.csv"
    open_rows(path, directory).copy(left, {2})

    assert list(csv.reader(left.read_text("utf-8-sig").splitlines(keepends=True)))[1][1][0] == "'"
    assert read(left, directory)[0].raw == read(path, directory)[0].raw
    again = tmp_path / "again.csv"
    open_rows(left, directory).copy(again, {2})
    assert read(again, directory)[0].raw == read(path, directory)[0].raw


def test_a_stray_byte_is_written_as_it_was(tmp_path: Path, directory: Directory) -> None:
    path = saved(tmp_path, f"reference,{NAME}\nA1,Zo\xeb\n".encode() + b"A2,Zo\xeb\nA3,x\n")
    left = tmp_path / "left.csv"
    open_rows(path, directory).copy(left, {3})

    assert b"A2,Zo\xeb" in left.read_bytes()
    assert wrong(read(left, directory)) == [(2, NAME, "encoding")]


def test_json_lines_are_written_as_they_were(tmp_path: Path, directory: Directory) -> None:
    content = '{"a": 1}\n\n{"b": "ë"}\nnot json\n'.encode() + b'"\xff"\n'
    path, left = saved(tmp_path, content, "cases.jsonl"), tmp_path / "left.jsonl"
    open_rows(path, directory).copy(left, {3, 4, 5})

    assert left.read_bytes() == '{"b": "ë"}\nnot json\n'.encode() + b'"\xff"\n'


def test_a_workbooks_cells_keep_their_types(
    book: Book, tmp_path: Path, directory: Directory
) -> None:
    """What is wrong stays wrong until somebody types it again; and then it stays as typed."""
    header = ["reference", PHONE, "incidents.1.on", NAME, PLACE]
    on = book.number("46328", "dd/mm/yyyy")
    row = [inline("A1"), book.number("77"), on, inline("=1+1"), formula("B9")]
    book.add([header, row, row])
    path, left = book.save(tmp_path / "cases.xlsx"), tmp_path / "left.xlsx"
    open_rows(path, directory).copy(left, {3})

    sheet = openpyxl.load_workbook(left).worksheets[0]
    assert [[cell.value for cell in row] for row in sheet.rows] == [
        header,
        ["A1", 77, datetime(2026, 11, 2), "=1+1", "#N/A"],
    ]
    name = sheet.cell(2, 4)
    assert (name.data_type, name.number_format, name.quotePrefix) == ("s", "@", True)
    before, again = read(path, directory)[1], read(left, directory)[0]
    assert [(one.where, one.code) for one in before.problems] == [
        (one.where, one.code) for one in again.problems
    ]
    assert before.raw == again.raw


def test_what_is_wrong_in_a_workbook_is_so_in_the_rows_left_out(
    book: Book, tmp_path: Path, directory: Directory
) -> None:
    """Or the file that is to be mended would pass without."""
    header = ["reference", NAME, "incidents.1.on", PLACE]
    month = book.number("46328", "mmm-yy")
    book.add(
        [
            header,
            ["A1", "Alex_x000B_Sample _x005F_x0041_"],
            ["A2", "_xD800_ _xFFFF_", month, "both"],
            ["A3", "Bo"],
        ],
        hidden=[2],
        after='<mergeCells count="1"><mergeCell ref="D3:D4"/></mergeCells>',
    )
    path, left = book.save(tmp_path / "cases.xlsx"), tmp_path / "left.xlsx"
    open_rows(path, directory).copy(left, {2, 3, 4})

    before, again = read(path, directory), read(left, directory)
    assert wrong(before) == [
        (2, "(the row)", "hidden"),
        (3, "incidents.1.on", "cell-type"),
        (4, PLACE, "merged"),
    ]
    assert wrong(again) == [*wrong(before)[:2], (4, PLACE, "cell-error")]
    assert again[0].raw["people"] == {"victim": {"name": "Alex\vSample _x0041_"}}
    assert [row.raw for row in again[:2]] == [row.raw for row in before[:2]]


def test_without_openpyxl_a_workbook_is_read_and_the_remedy_for_writing_is_said(
    cells: dict[str, str], tmp_path: Path, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_workbook(tmp_path / "cases.xlsx", rows_of(cells, 1))
    monkeypatch.setitem(sys.modules, "openpyxl", None)

    assert read(path, directory)[0].raw["reference"] == "CASE-1"
    with pytest.raises(CaseUnreadable, match=r"pip install 'referrals\[xlsx\]'"):
        open_rows(path, directory).copy(tmp_path / "left.xlsx", {2})


def test_what_is_read_from_a_csv_a_workbook_and_json_lines_is_the_same(
    cells: dict[str, str], directory: Directory, tmp_path: Path
) -> None:
    rows = rows_of(cells, 3)
    workbook = as_workbook(tmp_path / "cases.xlsx", rows)
    table = saved(tmp_path, as_csv(rows))
    lines = "\n".join(json.dumps(row.raw) for row in read(table, directory))

    found = [
        [row.raw for row in read(path, directory)]
        for path in (table, workbook, saved(tmp_path, lines, "cases.jsonl"))
    ]

    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 3
