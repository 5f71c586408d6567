"""The other pages in a browser: outbox, answers due, directory, audit, letters, help."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from unittest import mock

import pytest
from playwright.sync_api import Page, expect

from referrals.bootstrap import now
from referrals.delivery import DeliveryStatus, Reply
from referrals.settings import Settings
from tests.browser.conftest import Look, Site, both_devices, serving
from tests.browser.officer import INTERVENTIONS, SERVICE, Officer, dated, title_of
from tests.smtp_sink import wait_until
from tests.web.visiting import ADDRESS, Filled

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """An outbox with something of every kind, as of today."""
    made = Filled(Settings(outbox=tmp_path_factory.mktemp("filled") / "outbox"))
    with mock.patch("tests.web.visiting.NOW", now()), ThreadPoolExecutor(1) as another_thread:
        another_thread.submit(_fill, made).result()  # the browser's loop runs in this one
    return made


def _fill(made: Filled) -> None:
    refused = Reply(550, "5.1.1", "No such mailbox here")
    for number in range(52):
        made.add(f"cancelled-{number}", DeliveryStatus.CANCELLED, ago=20 * DAY)
    for kind in ("late", "later"):
        made.add(kind, DeliveryStatus.RELAYED, ago=9 * DAY)
    for kind in ("soon", "answered-desktop", "answered-phone"):
        made.add(kind, DeliveryStatus.RELAYED, ago=DAY)
    made.add("held", DeliveryStatus.UNCERTAIN, ago=10 * DAY, hold=True)
    for look in ("desktop", "phone"):
        made.add(f"retried-{look}", DeliveryStatus.FAILED, ago=DAY, reply=refused)
        made.add(f"given-up-{look}", DeliveryStatus.FAILED, ago=DAY, reply=refused)


@pytest.fixture(scope="module")
def site(filled: Filled, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    outbox = {"REFERRALS_OUTBOX": str(filled.settings.outbox)}
    with serving(tmp_path_factory.mktemp("site"), outbox) as running:
        yield running


@pytest.fixture
def officer(page: Page, look: Look, shoot: Callable[[str], None]) -> Officer:
    return Officer(page, look, shoot)


@both_devices
def test_what_was_submitted_is_found_and_seen_to(
    officer: Officer, page: Page, filled: Filled, look: Look
) -> None:
    page.goto("/outbox")
    officer.sees("Outbox", "outbox")
    officer.follows("Next page")
    officer.sees("Outbox", "outbox-second")
    page.get_by_label("Status").select_option("failed")
    officer.presses("Show")
    officer.sees("Outbox", "outbox-failed")
    page.get_by_label("Reference or case reference").fill("nothing like it")
    officer.presses("Show")
    expect(page.get_by_role("main")).to_contain_text("There is nothing like that.")

    reference = filled.reference(f"retried-{look}")
    page.get_by_label("Reference or case reference").fill(filled.cases[f"retried-{look}"].lower())
    page.get_by_label("Status").select_option("")
    officer.presses("Show")
    page.get_by_role("link", name=reference).click()
    officer.sees(f"Referral {reference}", "outbox-one-failed")
    expect(page.get_by_role("main")).to_contain_text("5.1.1 No such mailbox here")
    officer.presses("Try again now")
    expect(page.locator(".govuk-notification-banner")).to_be_visible()
    wait_until(lambda: page.reload() and page.get_by_text("Relayed").count(), "the relay")
    officer.sees(f"Referral {reference}", "outbox-one-relayed")

    reference = filled.reference(f"given-up-{look}")
    page.goto(f"/outbox/{reference}")
    officer.follows("Cancel it")
    officer.sees("Cancel this referral?", "outbox-cancel")
    officer.follows("No, go back")
    officer.follows("Cancel it")
    officer.presses("Yes, cancel it")
    expect(page.get_by_role("main").locator(".govuk-tag").first).to_have_text("Cancelled")

    page.goto(f"/outbox/{filled.reference(f'answered-{look}')}")
    officer.follows("Record an answer")
    officer.sees("Has the agency answered?", "outbox-answered")
    officer.presses("Yes, record the answer")
    expect(page.get_by_role("main")).to_contain_text("Recorded on")


@both_devices
def test_answers_due_give_reminders_to_send(officer: Officer, page: Page, filled: Filled) -> None:
    page.goto("/due")
    officer.sees("Answers due", "due")
    officer.presses("Download reminders of those chosen")
    officer.sees("Answers due", "due-wrong")
    page.get_by_role("alert").get_by_role("link").click()
    expect(page.locator("*:focus")).to_have_attribute("type", "checkbox")
    for box in page.get_by_role("checkbox").all():
        box.check()
    with page.expect_download() as download:
        officer.presses("Download reminders of those chosen")
    with zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())) as archive:
        letters = [
            message_from_bytes(archive.read(one), policy=default) for one in archive.namelist()
        ]
    assert len(letters) == 3
    assert {letter["To"] for letter in letters} == {ADDRESS}
    assert {letter["X-Unsent"] for letter in letters} == {"1"}
    with page.expect_download() as download:
        officer.follows(f"Draft a reminder of {filled.reference('late')}")
    assert download.value.suggested_filename.startswith(filled.reference("late"))


@both_devices
def test_an_address_is_recorded_as_checked_and_taken_back(officer: Officer, page: Page) -> None:
    page.goto("/directory")
    officer.sees("Directory", "directory")
    agency = SERVICE.directory.agencies["victim-care"]
    officer.follows(agency.title)
    officer.sees(agency.title, "directory-agency")
    officer.presses("Record it")
    officer.sees(agency.title, "directory-agency-wrong")
    for link in page.get_by_role("alert").get_by_role("link").all():
        link.click()
        expect(page.locator("*:focus")).to_have_id((link.get_attribute("href") or "")[1:])
    for part, text in dated(str(SERVICE.today())).items():
        page.get_by_label(part, exact=True).fill(text)
    page.get_by_label("Who asked them?").fill("Kim Clerk")
    officer.presses("Record it")
    officer.sees(agency.title, "directory-agency-checked")
    expect(page.get_by_role("main")).to_contain_text("Kim Clerk")
    officer.presses("Take the record back")
    expect(page.get_by_role("main")).not_to_contain_text("Kim Clerk")


@both_devices
def test_the_audit_is_verified_and_saved(officer: Officer, page: Page, filled: Filled) -> None:
    page.goto("/audit")
    officer.sees("Audit", "audit")
    officer.presses("Verify it now")
    expect(page.get_by_role("main")).to_contain_text("the log is whole")
    case = filled.cases["late"]
    page.get_by_label("Case reference").fill(case)
    officer.presses("Show")
    officer.sees("Audit", "audit-case")
    with page.expect_download() as download:
        officer.follows("for a spreadsheet (CSV)")
    assert download.value.suggested_filename.endswith(".csv")
    lines = Path(download.value.path()).read_text(encoding="utf-8-sig").splitlines()
    assert "," in lines[0]
    assert all(case in line for line in lines[1:])


@both_devices
def test_every_letter_is_shown_with_its_rules(officer: Officer, page: Page, look: Look) -> None:
    page.goto("/letters")
    officer.sees("What you can refer people to", "letters")
    # Half of them at each width: they are all made of one template.
    for one in INTERVENTIONS[look.device == "phone" :: 2]:
        officer.follows(title_of(one))
        officer.sees(title_of(one), f"letter-{one}")
        expect(page.frame_locator("iframe").get_by_text("SAMPLE-001").first).to_be_attached()
        officer.follows("Back to letters")
        officer.sees("What you can refer people to", "letters")


@both_devices
def test_help_and_pages_that_are_not_there(officer: Officer, page: Page) -> None:
    page.goto("/")
    officer.follows("Help, accessibility and privacy")
    officer.sees("Help, accessibility and privacy", "help")
    for path in ("/nowhere", "/outbox/none-such", "/referrals/none-such/check"):
        page.goto(path)
        officer.sees(page.get_by_role("heading", level=1).inner_text(), "not-there")
        officer.follows("Back to the first page")
        expect(page.get_by_role("heading", level=1)).to_have_text("Refer somebody for help")


@both_devices
def test_the_first_page_tells_of_what_waits(officer: Officer, page: Page) -> None:
    page.goto("/")
    officer.sees("Refer somebody for help", "home-with-work")
    page.get_by_role("link", name=re.compile("answers? (is|are) late")).click()
    officer.sees("Answers due")


@pytest.mark.parametrize("look", [Look("phone"), Look("phone", javascript=False)], ids=str)
def test_every_section_is_reached_from_a_phone(officer: Officer, page: Page, look: Look) -> None:
    page.goto("/help")
    for name in ("Outbox", "Answers due", "Spreadsheet", "Directory", "Letters", "Audit"):
        if look.javascript:
            page.get_by_role("button", name="Menu").click()
        page.get_by_role("navigation").get_by_role("link", name=name, exact=True).click()
        expect(page.locator("[aria-current]").get_by_text(name)).to_be_attached()
