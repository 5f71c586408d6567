"""An agency whose address was found wrong, in a browser: held, released, what waits meanwhile."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from referrals.bootstrap import now, open_outbox
from referrals.holding import Reason
from referrals.relay_health import RelayFault
from referrals.settings import Settings
from referrals.transports.failover import shared_name
from tests.browser.conftest import DESKTOP, Look, Site, serving
from tests.browser.officer import SERVICE, Officer
from tests.conftest import CONFIG
from tests.peers import run
from tests.smtp_sink import wait_until
from tests.web.held import AGENCY, FAILED, NEW, RELAYED, UNCERTAIN, correct, put, reference

TITLE = SERVICE.directory.agencies[AGENCY].title
ANOTHER = SERVICE.directory.agencies["nottingham-city-homes"].title


@dataclass
class Place:
    """Where a page's process has its files. What is done here is done beside it."""

    folder: Path

    @property
    def settings(self) -> Settings:
        return Settings(outbox=self.folder / "outbox")

    def do(self, work: Callable[[], None]) -> None:
        """In another thread, since the browser's loop runs in this one."""
        with ThreadPoolExecutor(1) as another:
            another.submit(work).result()

    def fill(self) -> None:
        """Something of every kind, to the address that was wrong; the agency is held."""
        then = now() - timedelta(hours=3)
        put(self.settings, 1, RELAYED, at=then)
        put(self.settings, 2, FAILED, at=then)
        put(self.settings, 3, UNCERTAIN, on_hold=True, at=then)
        with open_outbox(self.settings, "jo.bloggs") as outbox:
            outbox.hold(AGENCY, Reason.WRONG_ADDRESS, then)
        put(self.settings, 4)
        put(self.settings, 5)

    def lose_a_relay(self) -> None:
        with open_outbox(self.settings) as outbox:
            name, then = shared_name("127.0.0.1:9", "127.0.0.1"), now()
            run(outbox.note_fault(name, RelayFault("connect"), then, on_trial=False))

    def restore(self) -> None:
        with open_outbox(self.settings) as outbox:
            outbox.take_for_copy(now())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.do(made.fill)
    return made


@pytest.fixture
def site(place: Place) -> Iterator[Site]:
    """Its config/ has the right address by now."""
    config = place.folder / "config"
    shutil.copytree(CONFIG, config)
    correct(config)
    another_relay = {
        "REFERRALS_RELAYS_BACKUP_HOST": "127.0.0.1", "REFERRALS_RELAYS_BACKUP_PORT": "9",
        "REFERRALS_RELAYS_BACKUP_SECURITY": "none", "REFERRALS_CONFIG": str(config),
    }  # fmt: skip
    with serving(place.folder, another_relay) as running:
        yield running


@pytest.mark.parametrize("look", [DESKTOP, Look("phone", javascript=False)], ids=str)
def test_an_agency_is_held_and_released(
    page: Page, look: Look, shoot: Callable[[str], None], site: Site, place: Place
) -> None:
    officer, main = Officer(page, look, shoot), page.get_by_role("main")
    place.do(place.lose_a_relay)
    page.goto("/outbox")
    officer.sees("Outbox", "holds-outbox")
    expect(main).to_contain_text("The others are used meanwhile.")
    page.get_by_label("Status").select_option("kept")
    officer.presses("Show")
    officer.sees("Outbox", "holds-outbox-kept")
    page.get_by_role("link", name=reference(4)).click()
    officer.sees(f"Referral {reference(4)}", "holds-one-kept")
    expect(main).to_contain_text("it is kept")

    # One more is held.
    page.goto("/directory")
    officer.sees("Directory", "holds-directory")
    page.get_by_role("link", name=ANOTHER, exact=True).click()
    officer.follows("Hold this agency")
    officer.sees("Hold this agency?", "holds-hold")
    officer.presses("Hold it")
    officer.sees("Hold this agency?", "holds-hold-wrong")
    link = page.get_by_role("alert").get_by_role("link")
    link.click()
    expect(page.locator("*:focus")).to_have_attribute("type", "radio")
    page.get_by_label("The agency asked for it").check()
    officer.presses("Hold it")
    officer.sees(ANOTHER, "holds-held")
    expect(page.locator(".govuk-notification-banner")).to_contain_text("The agency is held.")

    # Before a referral is submitted there.
    officer.comes_to_check("mediation")
    officer.sees("Check your answers", "holds-check")
    expect(main).to_contain_text("What is submitted now is queued and kept.")
    officer.follows("See the e-mail")
    officer.follows("Go on to submit")
    officer.sees("Submit", "holds-submit")
    for box in page.get_by_role("checkbox").all():
        box.check()
    officer.presses("Submit")
    officer.sees("What came of it", "holds-done")
    expect(main).to_contain_text("It is kept safely: the agency is held")

    # The other has its right address by now, and is released.
    page.goto("/directory")
    page.get_by_role("link", name=TITLE, exact=True).click()
    officer.follows("See what would be released")
    officer.sees("Release this agency?", "holds-release")
    officer.presses("Release it")
    officer.sees("Release this agency?", "holds-release-wrong")
    page.get_by_role("alert").get_by_role("link").click()
    expect(page.locator("*:focus")).to_have_id("accept")
    page.get_by_label("Reroute to it all the same").check()
    page.get_by_label("1 failed one").check()
    officer.presses("Release it")
    officer.sees(TITLE, "holds-released")
    wait_until(lambda: len(site.sink.arrived) == 3, "what was kept")
    assert {recipient for one in site.sink.arrived for recipient in one.recipients} == {NEW}
    officer.follows("Referrals that went to another address")
    officer.sees("Referrals at another address", "holds-elsewhere")
    page.goto(f"/outbox/{reference(4)}")
    officer.sees(f"Referral {reference(4)}", "holds-one-rerouted")
    page.get_by_role("link", name="the message that replaced it").click()
    expect(page).to_have_url(re.compile(r"#message-\d+$"))

    place.do(place.restore)
    page.goto("/outbox")
    officer.sees("Outbox", "holds-restored")
    expect(main).to_contain_text("This outbox is a restored copy")
