"""Files of many cases: as programs write them, row by row; and what is wrong with which row."""

# ruff: noqa: DTZ001 - the cells of a workbook have no time zone

from __future__ import annotations

import csv
import io
import json
import sys
import tracemalloc
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import openpyxl
import pytest

from referrals.batch import RowError, Survey, check_row, sound, survey
from referrals.case_files import flatten
from referrals.directory import Directory
from referrals.errors import CaseInvalid, CaseUnreadable
from referrals.row_files import Row, as_cell_text, open_rows, wanted_of
from referrals.samples import sample_case
from referrals.service import Service
from tests.conftest import TODAY

CANARY = "Canary Quillfeather"


@pytest.fixture(scope="session")
def cells(directory: Directory) -> dict[str, str]:
    """A row for mediation, by column."""
    return dict(flatten(sample_case(directory, ["mediation"], TODAY)))


def rows_of(cells: Mapping[str, str], count: int, **changes: str) -> list[dict[str, str]]:
    return [{**cells, "reference": f"CASE-{number}", **changes} for number in range(1, count + 1)]


def as_csv(rows: Sequence[Mapping[str, Any]], delimiter: str = ",", end: str = "\r\n") -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_workbook(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    sheet.append(columns)
    for row in rows:
        sheet.append([row.get(column) for column in columns])
    book.save(path)
    return path


def read(path: Path, directory: Directory) -> list[Row]:
    return list(open_rows(path, directory).rows())


def errors_of(
    path: Path, service: Service, *, submitting: bool = False
) -> tuple[list[RowError], Survey]:
    seen = Survey()
    file = open_rows(path, service.directory)
    found = survey(file, service, seen, submitting=submitting)
    return [one for one in found if one], seen


def where(errors: Sequence[RowError]) -> list[tuple[int, str, str]]:
    return [(one.row, one.problem.where, one.problem.code) for one in errors]


# Reading


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_a_csv_reads_alike_however_excel_saved_it(
    encoding: str, delimiter: str, cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    name = "Zoë O’Neill"
    rows = rows_of(cells, 2, **{"people.victim.name": name})
    path = tmp_path / "cases.csv"
    path.write_bytes(as_csv(rows, delimiter).encode(encoding))

    first, second = read(path, directory)

    assert (first.number, second.number) == (2, 3)
    assert first.raw["people"]["victim"]["name"] == name
    assert first.raw["people"]["victim"]["address"] == cells["people.victim.address"]
    assert first.problems == ()


def test_one_cp1252_letter_at_the_very_end_decides_for_the_whole(
    cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    rows = rows_of(cells, 1500)
    rows[-1]["people.victim.name"] = "Zoë"
    path = tmp_path / "cases.csv"
    path.write_bytes(as_csv(rows).encode("cp1252"))
    assert path.stat().st_size > 1 << 20, "or it is read in one piece"

    assert read(path, directory)[-1].raw["people"]["victim"]["name"] == "Zoë"


def test_rows_are_numbered_as_the_spreadsheet_shows_them(
    cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    """Lines within a cell make no rows; blank rows do."""
    lines = as_csv(rows_of(cells, 2, **{"people.victim.address": "1 Road\n\nTown"})).split("\r\n")
    path = tmp_path / "cases.csv"
    path.write_text("\r\n".join([lines[0], lines[1], ",,,,", "", lines[2], ""]), newline="")

    assert [row.number for row in read(path, directory)] == [2, 5]


def test_what_excel_leaves_behind_is_no_column_and_no_row(
    cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    lines = as_csv(rows_of(cells, 1)).splitlines()
    text = "\r\n".join([lines[0] + ",,,", *lines[1:-1], lines[-1] + ",,,", ",,,", ",,,"])
    path = tmp_path / "cases.csv"
    path.write_text(text, newline="")

    (row,) = read(path, directory)

    assert row.problems == ()
    assert row.raw["reference"] == "CASE-1"


def test_a_line_that_names_the_separator_is_no_row(
    cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    path = tmp_path / "cases.csv"
    path.write_text("sep=;\r\n" + as_csv(rows_of(cells, 1), ";"), newline="")

    assert [row.number for row in read(path, directory)] == [2]


def test_more_cells_than_columns_are_an_error_of_that_row_alone(
    cells: dict[str, str], tmp_path: Path, service: Service
) -> None:
    lines = as_csv(rows_of(cells, 2)).split("\r\n")
    lines[1] += f",{CANARY}"
    path = tmp_path / "cases.csv"
    path.write_text("\r\n".join(lines), newline="")

    errors, seen = errors_of(path, service)

    assert where(errors) == [(2, "(the row)", "cells")]
    assert seen.rows == 2
    assert CANARY not in str(errors)


def test_json_lines_are_numbered_as_lines_and_each_fails_alone(
    directory: Directory, tmp_path: Path, service: Service
) -> None:
    case = sample_case(directory, ["mediation"], TODAY)
    lines = [json.dumps({**case, "reference": "CASE-1", "intervention": ["mediation"]}), "",
             f'{{"{CANARY}": ', f'["{CANARY}"]',
             json.dumps({**case, "reference": "CASE-2"})]  # fmt: skip
    path = tmp_path / "cases.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())

    errors, seen = errors_of(path, service)

    assert where(errors) == [(3, "(the line)", "json"), (4, "(the line)", "json")]
    assert (seen.rows, seen.referrals) == (4, 2)
    assert CANARY not in str(errors)


# Workbooks


def test_typed_cells_read_as_one_would_type_them(
    cells: dict[str, str], tmp_path: Path, service: Service
) -> None:
    row: dict[str, Any] = {
        **cells,
        "consents.1.given": True,
        "consents.1.on": datetime(2026, 11, 2),
    }
    path = as_workbook(tmp_path / "cases.xlsx", [row])

    (read_row,) = read(path, service.directory)

    assert read_row.raw["consents"][0]["on"] == "2026-11-02"
    assert read_row.raw["consents"][0]["given"] == "yes"
    assert errors_of(path, service)[0] == []


@pytest.mark.parametrize(
    ("value", "wanted", "text", "wrong"),
    [
        (None, "text", "", False),
        ("0115", "text", "0115", False),
        (7700900123, "text", "7700900123", True),
        (7700900123.0, "text", "7700900123", True),
        (datetime(2026, 5, 1), "text", "2026-05-01", True),
        (time(10, 0), "text", "10:00:00", True),
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
        ("two_x000D_\nlines", "text", "two\nlines", False),
        ("#N/A", "other", "#N/A", True),
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


def test_a_phone_that_is_a_number_is_said_and_not_guessed(
    cells: dict[str, str], tmp_path: Path, service: Service
) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in rows_of(cells, 2)]
    rows[1]["people.victim.phone"] = 7700900123
    path = as_workbook(tmp_path / "cases.xlsx", rows)

    errors, seen = errors_of(path, service)

    assert where(errors) == [(3, "people.victim.phone", "cell-type")]
    assert seen.wrong == {3}
    assert "7700900123" not in str(errors)


def test_a_workbook_of_formatted_emptiness_has_the_rows_that_it_has(
    cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    path = as_workbook(tmp_path / "cases.xlsx", rows_of(cells, 1))
    book = openpyxl.load_workbook(path)
    sheet = book.worksheets[0]
    sheet.cell(40, 3).value = " "
    sheet.cell(50_000, 90).number_format = "0.00"
    book.create_sheet("Notes").append(["reference"])
    book.save(path)

    assert [row.number for row in read(path, directory)] == [2]


def test_a_hidden_sheet_is_not_read(
    cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    path = as_workbook(tmp_path / "cases.xlsx", rows_of(cells, 1))
    book = openpyxl.load_workbook(path)
    hidden = book.create_sheet("lists", 0)
    hidden.append(["nothing"])
    hidden.sheet_state = "hidden"
    book.save(path)

    assert read(path, directory)[0].raw["reference"] == "CASE-1"


def test_without_openpyxl_the_remedy_is_said(
    cells: dict[str, str], tmp_path: Path, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_workbook(tmp_path / "cases.xlsx", rows_of(cells, 1))
    monkeypatch.setitem(sys.modules, "openpyxl", None)

    with pytest.raises(CaseUnreadable, match=r"pip install 'referrals\[xlsx\]'"):
        read(path, directory)


# Files that are none


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cases.xlsx", b"PK\x03\x04 not a zip"),
        ("cases.xlsx", b"reference,people.victim.name"),
        ("cases.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)),
        ("cases.csv", b""),
        ("cases.csv", b'reference,a\r\nX1,"open\r\n' + b"text," * 40_000),
        ("cases.csv", b'reference,a\r\nX1,"one"two\r\n'),
        ("cases.csv", b"x" * 1_200_000),
        ("cases.csv", b"reference,\x81\r\n1,2"),
        ("cases.jsonl", b'{"reference": "\xff"}'),
    ],
)
def test_what_is_no_file_of_cases_is_refused(
    name: str, content: bytes, tmp_path: Path, directory: Directory
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises((CaseUnreadable, CaseInvalid)):
        read(path, directory)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path, directory: Directory) -> None:
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(CaseUnreadable):
            open_rows(path, directory)


def test_a_zip_that_claims_to_be_vast_is_not_unpacked(
    cells: dict[str, str],
    tmp_path: Path,
    directory: Directory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = as_workbook(tmp_path / "cases.xlsx", rows_of(cells, 1))
    with ZipFile(path) as packed:
        whole = sum(entry.file_size for entry in packed.infolist())
    monkeypatch.setattr("referrals.row_files._LARGEST_WORKBOOK", whole - 1)

    with pytest.raises(CaseUnreadable, match="too large"):
        read(path, directory)


@pytest.mark.parametrize("header", [f"reference,{CANARY}", "reference,a,a", "reference,9999.a"])
def test_columns_that_are_none_are_refused_without_repeating_them(
    header: str, tmp_path: Path, directory: Directory
) -> None:
    path = tmp_path / "cases.csv"
    path.write_text(f"{header}\n1,2,3\n")

    with pytest.raises(CaseInvalid) as caught:
        read(path, directory)

    assert CANARY not in str(caught.value)


# Checking


def test_what_a_row_asks_for(cells: dict[str, str], service: Service) -> None:
    def asked(named: str | None) -> tuple[tuple[str, ...], list[str]]:
        row = dict(cells) if named is None else {**cells, "intervention": named}
        from referrals.case_files import unflatten

        checked = check_row(Row(2, (), unflatten(row.items())), service)
        return checked.asked, [problem.where for problem in checked.problems]

    assert asked(None) == (("mediation",), [])
    assert asked("") == (("mediation",), [])
    assert asked(" Mediation ") == (("mediation",), [])
    assert asked("mediation; mediation") == (("mediation",), [])
    assert asked("meditation") == ((), ["intervention"])
    both, problems = asked("mediation; victim-hardening")
    assert both == ("mediation", "victim-hardening")
    assert problems, "its own answers and records are missing"
    assert not any(where.startswith("answers.mediation") for where in problems)


def test_a_row_that_asks_for_nothing_is_wrong(cells: dict[str, str], service: Service) -> None:
    raw = {"reference": "CASE-1"}

    checked = check_row(Row(2, (), raw), service)

    assert "intervention" in [problem.where for problem in checked.problems]
    assert checked.ready == ()


def test_every_error_of_every_row_is_found(
    cells: dict[str, str], tmp_path: Path, service: Service
) -> None:
    rows = rows_of(cells, 4)
    rows[0]["people.victim.name"] = ""
    rows[1]["consents.1.given"] = "no"
    rows[1]["consents.2.given"] = "no"
    rows[3]["referrer.email"] = CANARY
    rows[3]["consents.1.on"] = CANARY
    path = tmp_path / "cases.csv"
    path.write_text(as_csv(rows), newline="")

    errors, seen = errors_of(path, service)

    assert seen.wrong == {2, 3, 5}
    assert (2, "people.victim.name", "missing") in where(errors)
    assert {code for row, _, code in where(errors) if row == 3} == {"MED-002", "MED-003"}
    assert {column for row, column, _ in where(errors) if row == 5} == {
        "referrer.email",
        "consents.1.on",
    }
    assert all(one.problem.what and one.problem.remedy for one in errors)
    assert CANARY not in str(errors)
    assert seen.referrals == 1


def test_two_rows_for_one_referral_are_both_wrong(
    cells: dict[str, str], tmp_path: Path, service: Service
) -> None:
    rows = rows_of(cells, 3)
    rows[2]["reference"] = "case-1"
    path = tmp_path / "cases.csv"
    path.write_text(as_csv(rows), newline="")

    errors, seen = errors_of(path, service)

    assert where(errors) == [(4, "reference", "repeated"), (2, "reference", "repeated")]
    assert seen.referrals == 1
    assert sum(seen.by_agency().values()) == 1


def test_a_wrong_row_counts_as_a_repetition_too(
    cells: dict[str, str], tmp_path: Path, service: Service
) -> None:
    """Put right later, it would go out beside the other."""
    rows = rows_of(cells, 2, reference="CASE-1")
    rows[0]["people.victim.name"] = ""
    path = tmp_path / "cases.csv"
    path.write_text(as_csv(rows), newline="")

    assert errors_of(path, service)[1].wrong == {2, 3}


def test_a_row_that_changes_between_the_passes_makes_nothing(
    cells: dict[str, str], tmp_path: Path, service: Service
) -> None:
    path = tmp_path / "cases.csv"
    path.write_text(as_csv(rows_of(cells, 2)), newline="")
    seen = errors_of(path, service)[1]
    path.write_text(as_csv(rows_of(cells, 2, **{"people.victim.name": ""})), newline="")

    with pytest.raises(CaseUnreadable, match="Row 2 changed"):
        list(sound(open_rows(path, service.directory), service, seen))


def test_memory_does_not_grow_with_the_file(
    cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    path = tmp_path / "cases.csv"
    path.write_text(as_csv(rows_of(cells, 4_000)), newline="")
    tracemalloc.start()
    for _ in open_rows(path, directory).rows():
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert path.stat().st_size > 4_000_000
    assert peak < 1_000_000 + 2 * (1 << 20)


# Written out again


def test_chosen_rows_are_written_as_they_were(
    cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    rows = rows_of(cells, 3, **{"people.victim.address": '1 "The" Road\nTown; X', "note": "=1+1"})
    path, left = tmp_path / "cases.csv", tmp_path / "left.csv"
    path.write_text(as_csv(rows, ";"), newline="", encoding="cp1252")

    open_rows(path, directory).copy(left, {3})

    assert left.read_text("utf-8-sig").replace("\r\n", "\n") == as_csv([rows[1]], ";", "\n")


def test_json_lines_are_written_as_they_were(
    cells: dict[str, str], tmp_path: Path, directory: Directory
) -> None:
    path, left = tmp_path / "cases.jsonl", tmp_path / "left.jsonl"
    path.write_text('{"a": 1}\n\n{"b": "\u00eb"}\nnot json\n')

    open_rows(path, directory).copy(left, {3, 4})

    assert left.read_text() == '{"b": "\u00eb"}\nnot json\n'


def test_a_workbooks_cells_keep_their_types(tmp_path: Path, directory: Directory) -> None:
    """A number that lost its zero stays wrong until somebody types it again."""
    rows = [{"reference": "A1", "phone": 77, "on": datetime(2026, 5, 1), "text": "=1+1"}] * 2
    path, left = as_workbook(tmp_path / "cases.xlsx", rows), tmp_path / "left.xlsx"
    book = openpyxl.load_workbook(path)
    for number in (2, 3):
        book.worksheets[0].cell(number, 4).data_type = "s"
    book.save(path)

    open_rows(path, directory).copy(left, {3})

    sheet = openpyxl.load_workbook(left).worksheets[0]
    assert [[cell.value for cell in row] for row in sheet.rows] == [
        ["reference", "phone", "on", "text"],
        ["A1", 77, datetime(2026, 5, 1), "=1+1"],
    ]
    assert sheet.cell(2, 4).data_type == "s"
