"""Many cases: what is wrong with which row, and what is made of those that are right."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from referrals.batch import Made, Make, RowError, Survey, check_row, survey
from referrals.case_files import flatten
from referrals.directory import Directory
from referrals.errors import DraftUnwritable
from referrals.row_files import open_rows
from referrals.samples import sample_case
from referrals.service import Referral, Service
from referrals.tables import Row
from tests.conftest import TODAY
from tests.rows import as_csv, rows_of

CANARY = "Canary Quillfeather"


@pytest.fixture(scope="session")
def cells(directory: Directory) -> dict[str, str]:
    """A row for mediation, by column."""
    return dict(flatten(sample_case(directory, ["mediation"], TODAY)))


def errors_of(
    path: Path, service: Service, *, submitting: bool = False
) -> tuple[list[RowError], Survey]:
    seen = Survey()
    file = open_rows(path, service.directory)
    found = survey(file, service, seen, submitting=submitting)
    return [one for one in found if one], seen


def where(errors: Sequence[RowError]) -> list[tuple[int, str, str]]:
    return [(one.row, one.problem.where, one.problem.code) for one in errors]


# Checking


def test_what_a_row_asks_for(cells: dict[str, str], service: Service) -> None:
    def asked(named: str | None) -> tuple[tuple[str, ...], list[str]]:
        row = dict(cells) if named is None else {**cells, "intervention": named}
        from referrals.case_files import unflatten

        checked, _ = check_row(Row(2, (), unflatten(row.items())), service)
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

    checked, _ = check_row(Row(2, (), raw), service)

    assert "intervention" in [problem.where for problem in checked.problems]
    assert checked.going == ()


def test_what_is_missing_is_said_by_columns_that_there_can_be(
    cells: dict[str, str], tmp_path: Path, service: Service
) -> None:
    """No file has a column `referrer`."""
    row = {k: "" if k.startswith(("referrer.", "location.")) else v for k, v in cells.items()}
    path = tmp_path / "cases.csv"
    path.write_text(as_csv([row]), newline="")

    errors, _ = errors_of(path, service)

    needed = ("name", "role", "organisation", "email")
    assert [column for _, column, _ in where(errors)] == [
        *(f"referrer.{one}" for one in needed),
        "location",
    ]
    assert "Give an area" in errors[-1].problem.remedy


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


def test_a_column_keeps_its_number_where_one_before_it_is_blank(
    cells: dict[str, str], tmp_path: Path, service: Service
) -> None:
    """A case closes the gaps of a list up; whoever mends the file looks for its own columns."""
    row = {name.replace("consents.2.", "consents.4."): text for name, text in cells.items()}
    row |= {"incidents.1.on": "", "incidents.1.what": "", "incidents.2.on": "2026-01-31"}
    row |= {"consents.2.person": "", "consents.3.person": "other_party"}
    row |= {"incidents.2.what": "", "consents.4.on": "Easter", "consents.1.how": "by pigeon"}
    path = tmp_path / "cases.csv"
    path.write_text(as_csv([row]), newline="")

    errors, _ = errors_of(path, service)

    assert {column for _, column, _ in where(errors)} == {
        "incidents.2.what",
        "consents.1.how",
        *(f"consents.3.{one}" for one in ("interventions", "given", "on", "recorded_by", "how")),
        "consents.4.on",
    }


ON, BORN = "consents.1.on", "people.victim.date_of_birth"


@pytest.mark.parametrize(
    ("dates", "in_doubt"),
    [
        (["02/13/2026", "02/03/2026", "04/04/2026", "2026-03-02"], [(3, ON), (4, BORN)]),
        (["2/13/2026", "10/11/2025", "1/2/2026", "12/09/2025"], [(3, ON), (5, ON), (4, BORN)]),
        (["02/13/2026", "02/03/2026", "13/02/2026", "04/03/2026"], []),
        (["Easter", "02/03/2026", "04/03/2026", "04/03/2026"], []),
        (["13/13/2026", "02/03/2026", "04/03/2026", "04/03/2026"], []),
    ],
)
def test_a_date_of_an_american_export_is_not_taken_for_ours(
    dates: list[str],
    in_doubt: list[tuple[int, str]],
    cells: dict[str, str],
    tmp_path: Path,
    service: Service,
) -> None:
    """Once one date can only have the month first, those that may have it are in doubt."""
    rows = [{**row, ON: on} for row, on in zip(rows_of(cells, 4), dates, strict=True)]
    for row, born in zip(rows, ["", "", "05/06/1990", "07/07/1991"], strict=True):
        row[BORN] = born
    path = tmp_path / "cases.csv"
    path.write_text(as_csv(rows), newline="")

    errors, seen = errors_of(path, service)

    found = [(row, column) for row, column, code in where(errors) if code == "day-or-month"]
    assert found == in_doubt
    assert seen.wrong >= {row for row, _ in found}
    assert seen.errors == len(errors)


def test_what_a_spreadsheet_program_made_of_an_american_export_is_in_doubt(
    cells: dict[str, str], tmp_path: Path, service: Service
) -> None:
    """It swaps day and month where it can, and leaves the rest as text."""
    rows = rows_of(cells, 3)
    book = openpyxl.Workbook()
    book.worksheets[0].append(list(rows[0]))
    for row, on in zip(rows, ["02/13/2026", date(2026, 3, 2), date(2026, 2, 2)], strict=True):
        book.worksheets[0].append(list({**row, ON: on}.values()))
    path = tmp_path / "cases.xlsx"
    book.save(path)

    errors, _ = errors_of(path, service)

    assert where(errors) == [(2, ON, "date"), (3, ON, "day-or-month")]


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
    assert sum(seen.by_agency(service.directory).values()) == 1


def test_a_wrong_row_counts_as_a_repetition_too(
    cells: dict[str, str], tmp_path: Path, service: Service
) -> None:
    """Put right later, it would go out beside the other."""
    rows = rows_of(cells, 2, reference="CASE-1")
    rows[0]["people.victim.name"] = ""
    path = tmp_path / "cases.csv"
    path.write_text(as_csv(rows), newline="")

    assert errors_of(path, service)[1].wrong == {2, 3}


# Making


def made_of(
    path: Path,
    service: Service,
    make: Make = lambda referral: referral.reference,
    *,
    processes: int = 1,
    despite_errors: bool = False,
) -> tuple[list[Any], Survey]:
    seen = Survey()
    file = open_rows(path, service.directory)
    with Made(path.parent) as made:
        for _ in survey(
            file,
            service,
            seen,
            make=make,
            made=made,
            processes=processes,
            despite_errors=despite_errors,
        ):
            pass
        return list(made.but(seen.wrong)), seen


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_what_is_made_is_made_once_and_in_order(
    cells: dict[str, str], tmp_path: Path, service: Service, processes: int
) -> None:
    path = tmp_path / "cases.csv"
    path.write_text(as_csv(rows_of(cells, 400)), newline="")

    def make(referral: Referral) -> tuple[str, int, bytes]:
        return referral.case.reference, os.getpid(), service.draft(referral)

    made, seen = made_of(path, service, make, processes=processes)

    assert [reference for reference, _, _ in made] == [f"CASE-{n}" for n in range(1, 401)]
    assert seen.rows == seen.referrals == 400
    assert all(reference.encode() in draft for reference, _, draft in made)
    makers = {maker for _, maker, _ in made}
    assert makers == {os.getpid()} if processes == 1 else os.getpid() not in makers


def test_of_a_wrong_row_nothing_comes(
    cells: dict[str, str], tmp_path: Path, service: Service
) -> None:
    """Nor of a row that another one turns out to repeat, though it was right when it was seen."""
    rows = rows_of(cells, 5)
    rows[1]["people.victim.name"] = ""
    rows[4]["reference"] = rows[2]["reference"]
    path = tmp_path / "cases.csv"
    path.write_text(as_csv(rows), newline="")

    made, seen = made_of(
        path, service, lambda referral: referral.case.reference, despite_errors=True
    )

    assert seen.wrong == {3, 4, 6}
    assert made == ["CASE-1", "CASE-4"]


def test_once_a_row_is_wrong_no_more_is_made(
    cells: dict[str, str], tmp_path: Path, service: Service
) -> None:
    rows = rows_of(cells, 500)
    rows[0]["people.victim.name"] = ""
    path = tmp_path / "cases.csv"
    path.write_text(as_csv(rows), newline="")
    made: list[str] = []

    def make(referral: Referral) -> str:
        made.append(referral.reference)
        return referral.reference

    seen = made_of(path, service, make)[1]

    assert seen.rows == 500
    assert len(made) < 250, "what was under way when it was found"


def test_what_waits_has_no_name_and_vanishes(tmp_path: Path) -> None:
    """It is what people told us: a kill must not leave it behind."""
    with Made(tmp_path / "not" / "there") as made:
        for number in range(30):
            made.note(made.keep([(number, bytes(1 << 20))]))
        assert list(tmp_path.iterdir()) == []
        assert [len(thing) for thing in made.but({0, 29})] == [1 << 20] * 28
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with (
            Made(tmp_path) as made,
            pytest.raises(DraftUnwritable, match=r"File too large. Nothing was made"),
        ):
            made.keep([(1, bytes(1 << 21))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
