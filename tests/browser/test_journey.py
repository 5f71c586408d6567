"""The journey in a browser: from nothing typed to drafts on disk and a message at the relay."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Mapping
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from referrals.sink import Arrived
from referrals.web.fields import Kind
from referrals.web.forms import case_form, override_form
from tests.browser.conftest import DESKTOP, LOOKS, PHONE, Look, Site
from tests.browser.officer import INTERVENTIONS, SERVICE, Officer, case_for, dated, fill, title_of
from tests.smtp_sink import wait_until

WALKS = [(intervention, look) for intervention in INTERVENTIONS for look in LOOKS]
PLAIN_PHONE = Look("phone", javascript=False)
without_javascript_too = pytest.mark.parametrize("look", [DESKTOP, PLAIN_PHONE], ids=str)
plain_phone = pytest.mark.parametrize("look", [PLAIN_PHONE], ids=str)


@pytest.fixture
def officer(page: Page, look: Look, shoot: Callable[[str], None]) -> Officer:
    return Officer(page, look, shoot)


def saved(officer: Officer, link: str) -> bytes:
    """The file that a link gives."""
    with officer.page.expect_download() as download:
        officer.follows(link)
    return Path(download.value.path()).read_bytes()


def parts(content: bytes) -> tuple[str, str]:
    """Text and HTML of a message."""
    found = {
        part.get_content_type(): part for part in message_from_bytes(content, policy=default).walk()
    }
    return found["text/plain"].get_content(), found["text/html"].get_content()


def agency_of(case: Mapping[str, Any], intervention: str) -> Any:
    return SERVICE.assess(*SERVICE.read(case), intervention).agency


def arrived(site: Site, reference: str) -> list[Arrived]:
    return [one for one in site.sink.arrived if reference.encode() in one.content]


# The whole way


@pytest.mark.parametrize(("intervention", "look"), WALKS, ids=str)
def test_from_nothing_to_the_relay(officer: Officer, site: Site, intervention: str) -> None:
    """The draft is what was shown, and so is what is queued and what the relay gets.

    An address that nobody has checked is accepted first.
    """
    page, title = officer.page, title_of(intervention)
    officer.case = case_for(intervention)
    officer.starts()
    officer.tells_the_case("case")
    officer.sees("What would help", "choose")
    officer.chooses(intervention)
    officer.gives_details(f"details-{intervention}")
    officer.sees("Check your answers", f"check-{intervention}")
    with page.expect_response(re.compile(r"/html$")) as framed:
        officer.follows("See the e-mail")
    html = framed.value.body().decode()
    officer.sees(f"{title}: the e-mail", f"preview-{intervention}")
    page.mouse.wheel(0, 640)
    officer.shoot(f"letters-{intervention}")
    expect(page.frame_locator("iframe").locator("body")).to_contain_text(officer.case["reference"])
    text = page.get_by_role("region", name="As plain text").locator("pre").text_content() or ""
    shown = text.replace("\n", "\r\n"), html  # a browser reads each end of a line as LF
    page.get_by_text("Every line of its header").click()
    header = page.get_by_role("group").locator("pre").inner_text()

    draft = saved(officer, "Save this draft (.eml)")
    assert draft.partition(b"\r\n\r\n")[0].decode() == header.replace("\n", "\r\n")
    assert parts(draft) == shown
    agency = agency_of(officer.case, intervention)
    expect(page.get_by_role("main")).to_contain_text(agency.source)
    if agency.email is None:
        assert message_from_bytes(draft, policy=default)["To"] is None
        assert not page.get_by_text("Go on to submit").count()
        officer.follows("I have my drafts")
        officer.sees("Your drafts", "drafted")
        return

    officer.follows("Go on to submit")
    officer.sees("Submit", "submit")
    page.get_by_label(title, exact=True).check()
    officer.presses("Submit")
    officer.sees("Submit", "submit-wrong")
    page.get_by_role("alert").get_by_role("link").click()
    accept = page.get_by_label("I accept that the address is not checked")
    expect(accept).to_be_focused()
    expect(page.get_by_label(title, exact=True)).to_be_checked()
    accept.check()
    officer.presses("Submit")
    officer.sees("What came of it", "done")
    officer.follows(f"Follow it in the outbox: {title}")
    reference = page.url.rpartition("/")[2]
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Referral {reference}")
    page.get_by_text("To find it in the mail server’s log").click()
    queued = re.search(r"SHA-256 (\w+)", page.get_by_role("main").inner_text())
    wait_until(lambda: arrived(site, reference), "the message")
    [message] = arrived(site, reference)
    assert queued
    assert hashlib.sha256(message.content).hexdigest() == queued[1]
    assert message.recipients == (agency.email,)
    assert parts(message.content) == shown


def test_several_at_once_make_a_zip_of_their_drafts(officer: Officer, page: Page) -> None:
    chosen = ("police-dispersal-order", "target-hardening", "victim-hardening")
    officer.comes_to_check(*chosen)
    officer.sees("Check your answers", "check-several")
    officer.follows("See the e-mails")
    drafts = {}
    for number, one in enumerate(chosen):
        officer.sees(f"{title_of(one)}: the e-mail", "preview-several" if not number else "")
        with page.expect_download() as download:
            officer.follows("Save this draft (.eml)")
        drafts[download.value.suggested_filename] = Path(download.value.path()).read_bytes()
        if number + 1 < len(chosen):
            officer.follows(f"Next e-mail: {title_of(chosen[number + 1]).lower()}")
    archive = zipfile.ZipFile(io.BytesIO(saved(officer, "Save all 3 drafts (.zip)")))
    assert {name: archive.read(name) for name in archive.namelist()} == drafts
    officer.follows("Go on to submit")
    officer.sees("Submit", "submit-several")
    expect(page.get_by_role("checkbox", name=title_of(chosen[0]), exact=True)).to_have_count(0)
    expect(page.get_by_role("main")).to_contain_text("the directory has no address for Inspector")


# What is wrong


@without_javascript_too
def test_every_mistake_is_told_at_once_and_links_to_its_field(officer: Officer, page: Page) -> None:
    officer.case = case_for("mediation")
    officer.starts()
    officer.presses("Save and continue")
    officer.sees("The case", "case-wrong")
    assert page.title().startswith("Error: ")
    summary = page.get_by_role("alert")
    expect(summary.get_by_role("link")).to_have_text(
        [
            "Fill in “Case reference”",
            "Say where help is needed: choose an area or a district, or give a postcode.",
        ]
    )
    officer.tells_the_case()
    officer.chooses("mediation")
    officer.cells["answers.mediation.dispute"] = "Too short"
    officer.cells["consents.1.on"] = "2026-13-45"
    for name in ("people.victim.name", "answers.mediation.court_proceedings"):
        del officer.cells[name]
    officer.gives_details()
    officer.sees("Details", "details-wrong")
    if officer.look.javascript:
        expect(page.locator(".govuk-error-summary")).to_be_focused()
    links = page.get_by_role("alert").get_by_role("link")
    expect(links).to_have_text(
        [
            re.compile("Person harmed.*Name"),
            re.compile("Agreement.*person harmed.*date is not a real day", re.IGNORECASE),
            re.compile("What the dispute is about is too short", re.IGNORECASE),
            re.compile("Are court proceedings open between them?"),
        ]
    )
    for link in links.all():
        field = (link.get_attribute("href") or "").removeprefix("#")
        link.click()
        focused = page.locator("*:focus")
        expect(focused).to_have_id(field)
        described = (focused.get_attribute("aria-describedby") or "") + (
            focused.locator("xpath=ancestor::fieldset[1]").get_attribute("aria-describedby") or ""
        )
        assert f"{field.removesuffix('-day')}-error" in described
    # What was typed is still there.
    expect(page.get_by_label("What the dispute is about", exact=True)).to_have_value("Too short")
    expect(page.get_by_label("Address", exact=True).first).to_have_value(
        officer.cells["people.victim.address"]
    )
    record = page.get_by_role("group", name="Date", exact=True).first
    expect(record.get_by_label("Month")).to_have_value("13")
    officer.presses("Check your answers without these")
    officer.sees("Check your answers", "check-incomplete")
    expect(page.get_by_role("region", name="Still to do").get_by_role("listitem")).to_have_count(4)
    expect(page.get_by_text("See the e-mail")).to_have_count(0)


BLOCKED = {
    "mediation": (
        {"consents.1.given": "no"},
        "Party A (the victim in the case) must consent to mediation",
    ),
    "positive-engagement": (
        {"people.young_person.date_of_birth": "2001-01-15"},
        "Positive engagement is for under 18 year olds",
    ),
    "victim-hardening": ({"consents.1.withdrawn_on": "today"}, "permission"),
}


@pytest.mark.parametrize(
    ("intervention", "look"),
    list(zip(BLOCKED, (DESKTOP, PHONE, PLAIN_PHONE), strict=True)),
    ids=str,
)
def test_what_a_rule_stops_says_why_and_goes_no_further(
    officer: Officer, page: Page, intervention: str
) -> None:
    changes, why = BLOCKED[intervention]
    officer.case = case_for(intervention)
    today = str(SERVICE.today())
    officer.cells.update(
        {name: today if cell == "today" else cell for name, cell in changes.items()}
    )
    officer.comes_to_check(intervention)
    officer.sees("Check your answers", f"check-{intervention}-blocked")
    card = page.get_by_role("region", name=title_of(intervention))
    expect(card).to_contain_text(re.compile("Stops it|Needed"))
    expect(card).to_contain_text(why)
    expect(page.get_by_role("main")).to_contain_text("No e-mail can be made yet")
    for step in ("preview", "submit", f"preview/{intervention}"):
        page.goto(page.url.rpartition("/")[0] + f"/{step}")
        officer.sees("Check your answers")


def test_what_is_for_the_city_does_not_fit_the_county(officer: Officer, page: Page) -> None:
    officer.case = case_for("mediation")
    del officer.cells["location.district"]
    officer.cells["location.area"] = "county"
    officer.starts()
    officer.tells_the_case()
    officer.sees("What would help", "choose-county")
    expect(page.get_by_role("checkbox", name="Mediation", exact=True)).to_have_count(0)
    page.get_by_text("Why mediation does not fit").click()
    expect(page.get_by_role("main")).to_contain_text(
        "Mediation is available in Nottingham City only."
    )


@plain_phone
def test_a_supervisor_may_set_a_rule_aside(officer: Officer, page: Page) -> None:
    officer.case = case_for("mediation")
    officer.cells["answers.mediation.court_proceedings"] = "yes"
    officer.comes_to_check("mediation")
    officer.follows("A supervisor sets this aside: MED-006")
    officer.sees("A supervisor sets a rule aside", "aside")
    officer.presses("Save the decision")
    officer.sees("A supervisor sets a rule aside", "aside-wrong")
    decision = {
        "reason": "The proceedings are about something else.",
        "authorised_by": "Kim Chief",
        "on": str(SERVICE.today()),
    }
    for one in override_form(1).fields:
        fill(page, one, decision[one.leaf])
    officer.presses("Save the decision")
    officer.sees("Check your answers", "check-aside")
    expect(page.get_by_role("main")).to_contain_text("Decided by Kim Chief")
    officer.follows("See the e-mail")
    expect(page.get_by_role("region", name="As plain text")).to_contain_text(
        "The proceedings are about something else."
    )


# To and fro


@plain_phone
def test_every_change_link_leads_to_its_field(officer: Officer, page: Page) -> None:
    officer.comes_to_check("victim-hardening")
    check = page.url
    links = page.get_by_role("link", name=re.compile("^Change "))
    leads = [link.get_attribute("href") or "" for link in links.all()]
    assert len(leads) > 20
    for path in dict.fromkeys(lead.partition("#")[0] for lead in leads):
        page.goto(path)
        for lead in leads:
            if lead.startswith(f"{path}#"):
                expect(page.locator(f"[id='{lead.partition('#')[2]}']")).to_be_editable()
    page.goto(check)
    officer.follows("Change safe times (Person harmed)")
    times = page.get_by_label("Safe times", exact=True)
    expect(times).to_be_focused()
    expect(times).to_be_in_viewport()
    times.fill("Never before noon")
    officer.presses("Save and continue")
    officer.sees("Check your answers")
    expect(page.get_by_role("main")).to_contain_text("Never before noon")
    officer.follows("Change role (You)")
    page.get_by_label("Role", exact=True).fill("Sergeant")
    officer.presses("Save and continue")
    officer.sees("Check your answers")
    expect(page.get_by_role("main")).to_contain_text("Sergeant")


def test_the_back_link_goes_back_step_by_step(officer: Officer, page: Page) -> None:
    officer.case = case_for("target-hardening")
    officer.starts()
    officer.tells_the_case()
    officer.chooses("target-hardening")
    officer.sees("Details")
    for heading in ("What would help", "The case", "Refer somebody for help"):
        officer.follows("Back")
        officer.sees(heading)
    officer.follows(f"Continue ({officer.case['reference']})")
    officer.gives_details()
    officer.follows("See the e-mail")
    officer.follows("Back to your answers")
    officer.sees("Check your answers")
    for heading in ("Details", "What would help", "The case", "Refer somebody for help"):
        officer.follows("Back")
        officer.sees(heading)
    officer.follows(f"Continue ({officer.case['reference']})")
    officer.sees("Check your answers")
    officer.follows("Change case reference (The case)")
    officer.sees("The case")
    officer.follows("Back")
    officer.sees("Check your answers")


@plain_phone
def test_incidents_are_added_and_removed(officer: Officer, page: Page) -> None:
    officer.starts()
    for number in (1, 2, 3):
        if number > 1:
            officer.presses("Add another incident")
        box = page.get_by_role("group", name=f"Incident {number}", exact=True)
        box.get_by_label("What happened").fill(f"The {number}. thing")
    officer.sees("The case", "case-incidents")
    officer.presses("Remove incident 2")
    told = page.get_by_label("What happened")
    expect(told).to_have_count(2)
    assert [one.input_value() for one in told.all()] == ["The 1. thing", "The 3. thing"]


@pytest.mark.parametrize("look", [PHONE], ids=str)
def test_one_may_come_back_later(officer: Officer, page: Page) -> None:
    """What was typed so far is kept, wrong or not; the first page leads back to it."""
    officer.case = case_for("target-hardening")
    officer.starts()
    officer.tells_the_case()
    officer.chooses("target-hardening")
    page.get_by_label("When it happens", exact=True).fill("Late")
    officer.presses("Save and come back later")
    officer.sees("Refer somebody for help", "home")
    reference = officer.case["reference"]
    expect(page.get_by_role("heading", name=reference)).to_be_visible()
    officer.follows(f"Continue ({reference})")
    officer.sees("Details")
    expect(page.get_by_label("When it happens", exact=True)).to_have_value("Late")
    page.goto("/")
    officer.follows(f"Delete ({reference})")
    officer.sees("Delete what you typed?", "delete")
    officer.presses("Delete what I typed")
    expect(page.get_by_role("heading", name=reference)).to_have_count(0)


def test_two_tabs_are_two_referrals(officer: Officer, page: Page) -> None:
    other = Officer(page.context.new_page(), officer.look)
    tabs = {"target-hardening": officer, "victim-hardening": other}
    for intervention, one in tabs.items():
        one.case = case_for(intervention)
        one.starts()
        one.tells_the_case()
    for intervention, one in tabs.items():
        one.page.bring_to_front()
        one.chooses(intervention)
        one.gives_details()
    for intervention, one in tabs.items():
        one.page.bring_to_front()
        one.follows("See the e-mail")
        one.sees(f"{title_of(intervention)}: the e-mail")
        letter = one.page.get_by_role("region", name="As plain text")
        expect(letter).to_contain_text(one.case["reference"])


# Hostile text


CANARY = (
    "<script>canary=1</script>\"'><img src=x onerror=canary=1>{{7*7}}${7*7}<svg/onload=canary=1>"
)


def test_nothing_typed_is_ever_run(officer: Officer, page: Page) -> None:
    """In every text field, it is read back as it was typed, in the letter too."""
    officer.case = case_for(*INTERVENTIONS)
    officer.chosen = INTERVENTIONS
    groups = [*case_form(SERVICE.directory, {"incidents.1.on": [""]}), *officer.details]
    hostile = set()
    for _, one, column in officer.answers(groups):
        if one.kind in (Kind.LINE, Kind.TEXT) and one.leaf not in ("reference", "postcode"):
            officer.cells[column] = f"{CANARY} and a few words more"
            hostile.add(column)
    assert len(hostile) > 40
    officer.comes_to_check(*INTERVENTIONS)
    main = page.get_by_role("main")
    expect(main.get_by_text(f"{CANARY} and a few words more").first).to_be_visible()
    assert main.inner_text().count(CANARY) >= len(hostile)
    assert page.evaluate("typeof canary") == "undefined"
    officer.follows("See the e-mails")
    seen = 0
    for link in page.get_by_role("navigation", name="E-mails of this referral").all():
        for href in [one.get_attribute("href") for one in link.get_by_role("link").all()]:
            page.goto(str(href))
            text = page.get_by_role("region", name="As plain text").locator("pre").inner_text()
            seen += CANARY in text
            assert text.count("{{7*7}}${7*7}") == text.count("<script>canary=1</script>")
            assert page.evaluate("typeof canary") == "undefined"
            assert page.frames[1].evaluate("typeof canary") == "undefined"
            expect(page.frame_locator("iframe").locator("script, img, svg")).to_have_count(0)
    assert seen


# By keyboard


def test_the_keyboard_alone_is_enough(officer: Officer, page: Page, site: Site) -> None:
    """Tab, Space, the arrows, Enter and letters, from the first page to the relay."""
    officer.case = case_for("target-hardening")
    officer.chosen = ("target-hardening",)
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.locator("*:focus")).to_have_text("Skip to main content")
    page.keyboard.press("Enter")
    tab_to(page, "Start a referral")
    if "/you" in page.url:
        tab_through(page, {f"referrer.{k}": v for k, v in officer.case["referrer"].items()})
    tab_through(
        page,
        {
            "reference": officer.case["reference"],
            "location.area": "city",
            "location.place": officer.cells["location.place"],
        },
    )
    officer.sees("What would help")
    tab_through(page, {"chosen": "target-hardening"})
    officer.sees("Details")
    tab_through(page, dict(inputs(officer)))
    officer.sees("Check your answers")
    tab_to(page, "See the e-mail")
    tab_to(page, "Go on to submit")
    tab_through(page, {"submit": "target-hardening", "accept": "target-hardening"}, "Submit")
    officer.sees("What came of it")
    wait_until(lambda: arrived(site, officer.case["reference"]), "the message")


def inputs(officer: Officer) -> Any:
    """What is typed on the page of details, by the name of each input."""
    for _, one, column in officer.answers(officer.details):
        cell = officer.cells[column]
        if one.kind is Kind.DATE:
            yield from zip(one.inputs, dated(cell).values(), strict=True)
        else:
            yield one.name, cell


def focused(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate(
        """() => {
            const one = document.activeElement, shown = getComputedStyle(one);
            return {
                name: one.name ?? "", value: one.value ?? "", type: one.type ?? "",
                text: one.textContent.trim().split("\\n")[0],
                checked: one.checked ?? false,
                box: one.getBoundingClientRect().toJSON(),
            };
        }"""
    )
    return found


def tab_to(page: Page, text: str) -> None:
    """And press Enter there."""
    for _ in range(150):
        page.keyboard.press("Tab")
        if focused(page)["text"] == text:
            with page.expect_navigation():
                page.keyboard.press("Enter")
            return
    raise AssertionError(f"Tab never came to {text}")


def tab_through(page: Page, typed: dict[str, str], button: str = "Save and continue") -> None:
    """Fill in each field as Tab comes to it, and press Enter on the button."""
    left = dict(typed)
    for _ in range(200):
        page.keyboard.press("Tab")
        at = focused(page)
        name = at["name"]
        if at["text"] == button and at["type"] == "submit" and not left:
            with page.expect_navigation():
                page.keyboard.press("Enter")
            return
        if name not in left:
            continue
        if at["type"] == "radio":
            for _ in range(12):
                page.keyboard.press("Space")
                if focused(page)["value"] == left[name]:
                    break
                page.keyboard.press("ArrowDown")
            assert focused(page)["checked"]
            del left[name]
        elif at["type"] == "checkbox":
            wanted = left[name].split("; ")
            if at["value"] in wanted:
                page.keyboard.press("Space")
                assert focused(page)["checked"]
                wanted.remove(at["value"])
            left[name] = "; ".join(wanted)
            if not wanted:
                del left[name]
        elif at["type"].startswith("select"):
            for _ in range(12):
                if focused(page)["value"] == left[name]:
                    break
                page.keyboard.press("ArrowDown")
            assert focused(page)["value"] == left.pop(name)
        else:
            page.keyboard.type(left.pop(name))
    raise AssertionError(f"Tab never came to {list(left) or button}")
