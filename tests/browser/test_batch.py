"""A spreadsheet in a browser: uploaded, put right, drafted, submitted."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import FilePayload, Page, expect

from referrals.case_files import flatten
from tests.browser.conftest import DESKTOP, Look, Site, both_devices
from tests.browser.officer import Officer, case_for
from tests.rows import as_csv
from tests.smtp_sink import wait_until

without_javascript_too = pytest.mark.parametrize(
    "look", [DESKTOP, Look("phone", javascript=False)], ids=str
)


@pytest.fixture
def officer(page: Page, look: Look, shoot: Callable[[str], None]) -> Officer:
    return Officer(page, look, shoot)


def rows(count: int, **wrong: str) -> list[dict[str, Any]]:
    """Cases for Victim Care; what is `wrong` is so in the last one."""
    made = [dict(flatten(case_for("victim-hardening"))) for _ in range(count)]
    made[-1].update({name.replace("__", "."): cell for name, cell in wrong.items()})
    return made


def upload(officer: Officer, made: Sequence[dict[str, Any]]) -> None:
    page = officer.page
    page.goto("/batch")
    officer.sees("Refer many people from a spreadsheet", "batch")
    file: FilePayload = {
        "name": "cases.csv", "mimeType": "text/csv", "buffer": as_csv(made).encode(),
    }  # fmt: skip
    page.get_by_label("Your spreadsheet").set_input_files(file)
    officer.presses("Upload and check")


def comes_to(officer: Officer, heading: str, picture: str) -> None:
    """By itself with JavaScript, else by looking again."""
    page = officer.page
    if not officer.look.javascript:

        def there() -> bool:
            if page.get_by_role("heading", level=1).inner_text() == heading:
                return True
            officer.follows("See how far it is")
            return False

        wait_until(there, heading)
    expect(page.get_by_role("heading", level=1)).to_have_text(heading, timeout=20_000)
    officer.sees(heading, picture)


@without_javascript_too
def test_rows_that_are_wrong_are_listed_and_may_be_left_out(officer: Officer, page: Page) -> None:
    upload(officer, [])
    upload(officer, rows(3, people__victim__name=""))
    comes_to(officer, "1 row to put right", "batch-wrong")
    table = page.get_by_role("table", name="What to put right")
    expect(table.get_by_role("row")).to_have_count(2)
    expect(table).to_contain_text("people.victim.name")
    with page.expect_download() as download:
        officer.follows("Download the whole list (1 error, CSV)")
    with Path(download.value.path()).open(encoding="utf-8-sig", newline="") as file:
        [wrong] = csv.DictReader(file)
    assert (wrong["row"], wrong["column"]) == ("4", "people.victim.name")
    officer.presses("Leave 1 row out and go on")
    comes_to(officer, "2 referrals ready", "batch-left-out")
    officer.presses("Save all as drafts")
    comes_to(officer, "2 drafts to download", "batch-drafted")
    with page.expect_download() as download:
        officer.follows(page.get_by_role("button", name=re.compile("zip")).inner_text())
    archive = zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes()))
    assert len([name for name in archive.namelist() if name.endswith(".eml")]) == 2
    officer.presses("Delete the drafts from the server")
    officer.sees("Refer many people from a spreadsheet")


@without_javascript_too
def test_good_rows_are_submitted_once_confirmed(officer: Officer, page: Page, site: Site) -> None:
    made = rows(2)
    upload(officer, made)
    comes_to(officer, "2 referrals ready", "batch-ready")
    officer.follows("Submit all")
    officer.sees("Submit 2 referrals?", "batch-submit")
    officer.presses("Submit 2 referrals")
    officer.sees("Submit 2 referrals?", "batch-submit-wrong")
    for link in page.get_by_role("alert").get_by_role("link").all():
        link.click()
        expect(page.locator("*:focus")).to_have_id((link.get_attribute("href") or "")[1:])
    page.get_by_label("Submit to these addresses anyway.").check()
    page.get_by_label("How many referrals are you submitting?").fill("2")
    officer.presses("Submit 2 referrals")
    comes_to(officer, "2 referrals queued", "batch-queued")
    wanted = {str(one["reference"]).encode() for one in made}

    def arrived() -> bool:
        content = b"".join(one.content for one in site.sink.arrived)
        return all(one in content for one in wanted)

    wait_until(arrived, "both messages")


@both_devices
def test_a_spreadsheet_to_fill_in_is_given(officer: Officer, page: Page) -> None:
    page.goto("/batch")
    officer.follows("Download a spreadsheet to fill in")
    heading = page.get_by_role("heading", level=1).inner_text()
    officer.sees(heading, "batch-template")
    officer.presses("Download the spreadsheet")
    officer.sees(heading, "batch-template-wrong")
    page.get_by_label("Target hardening", exact=True).check()
    with page.expect_download() as download:
        officer.presses("Download the spreadsheet")
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    assert text.startswith("reference,") or "reference" in text.partition("\n")[0]
