"""The journey: from a case that is typed to letters that are drafted or queued."""

from __future__ import annotations

import dataclasses
import io
import re
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, timedelta
from email import message_from_bytes
from email.policy import default
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from referrals.bootstrap import open_outbox
from referrals.delivery import DeliveryStatus
from referrals.samples import sample_case
from referrals.service import Referral
from referrals.settings import RelaySettings, Security, Settings, WebSettings
from referrals.sink import Sink
from referrals.verification import Verification
from referrals.web.app import build_app
from referrals.web.site import Role, Site
from tests.e2e.conftest import Beside
from tests.smtp_sink import wait_until
from tests.web.signing import csrf, said
from tests.web.visiting import As, Filled, Visitor, visiting
from tests.web.walking import Form, Walker

INTERVENTIONS = (
    "fire-resistant-mailbox",
    "mediation",
    "police-dispersal-order",
    "positive-engagement",
    "repeat-victim-panel",
    "target-hardening",
    "victim-hardening",
)
ADDRESSED = tuple(one for one in INTERVENTIONS if one != "police-dispersal-order")
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}"


def settings_in(folder: Path, port: int | None = 25, **web: Any) -> Settings:
    """With a relay, which nothing is given to unless `deliver` is on."""
    relay = RelaySettings(host="127.0.0.1", port=port, security=Security.NONE)
    return Settings(
        outbox=folder / "outbox",
        relay=relay if port else RelaySettings(),
        web=WebSettings(deliver=web.pop("deliver", False), **web),
    )


@pytest.fixture
def visitor(tmp_path: Path) -> Iterator[Visitor]:
    with visiting(settings_in(tmp_path), Role.SENDER) as found:
        yield found


Walking = Callable[..., Walker]


pytestmark = pytest.mark.usefixtures("clock_stands_still")


@pytest.fixture
def walking(visitor: Visitor) -> Walking:
    """Somebody with a made-up case that is complete for these interventions."""

    def make(*interventions: str, **changes: str) -> Walker:
        walker = Walker.with_case(visitor.client, sample(visitor.site, *interventions))
        walker.cells.update(changes)
        return walker

    return make


def sample(site: Site, *interventions: str) -> dict[str, Any]:
    return sample_case(site.service.directory, interventions, site.service.today())


def referral_of(site: Site, raw: Mapping[str, Any], intervention: str) -> Referral:
    """What the core makes of the same case."""
    case, place = site.service.read(raw)
    return site.service.prepare(site.service.assess(case, place, intervention))


@contextmanager
def another(site: Site, name: str = "kim", role: Role = Role.SENDER) -> Iterator[TestClient]:
    """Somebody else at the same page."""
    other = dataclasses.replace(site, sign_in=As(role, name))
    yield TestClient(build_app(other), "http://127.0.0.1", follow_redirects=False)


def in_outbox(site: Site) -> list[str]:
    with open_outbox(site.settings) as outbox:
        return [one.recipient for one in outbox.held()]


def parts(content: bytes) -> tuple[str, str]:
    """Text and HTML of a message."""
    found = {
        part.get_content_type(): part for part in message_from_bytes(content, policy=default).walk()
    }
    return found["text/plain"].get_content(), found["text/html"].get_content()


def previewed(walker: Walker, intervention: str) -> tuple[str, str]:
    """Text and HTML as the page shows them."""
    page = walker.get(f"{walker.at}/preview/{intervention}").text
    text = re.search(r'<pre class="app-letter__text">(.*?)</pre>', page, re.DOTALL)
    assert text
    return unescape(text[1]), walker.get(f"{walker.at}/preview/{intervention}/html").text


# The whole way


@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_ends_in_the_draft_that_the_core_makes(
    visitor: Visitor, walking: Walking, intervention: str
) -> None:
    """Byte for byte, and what the preview shows is what the draft holds."""
    walker = walking(intervention)
    walker.to_check(intervention)
    referral = referral_of(visitor.site, sample(visitor.site, intervention), intervention)
    draft = walker.get(f"{walker.at}/drafts/{referral.file_name}")
    assert draft.content == visitor.site.service.draft(referral)
    assert draft.headers["content-type"] == "message/rfc822"
    assert draft.headers["content-disposition"] == f'attachment; filename="{referral.file_name}"'
    assert previewed(walker, intervention) == parts(draft.content)
    page = unescape(walker.get(f"{walker.at}/preview/{intervention}").text)
    assert referral.agency.source in page
    assert f"OFFICIAL-SENSITIVE: {referral.letter.subject}" in page
    header = draft.content.partition(b"\r\n\r\n")[0].decode().replace("\r\n", "\n")
    assert header in page


@pytest.mark.parametrize("intervention", ADDRESSED)
def test_what_arrives_is_what_was_previewed(tmp_path: Path, intervention: str) -> None:
    with Beside(Sink()) as sink:
        settings = settings_in(tmp_path, sink.port, deliver=True)
        with visiting(settings, Role.SENDER) as visitor:
            walker = Walker.with_case(visitor.client, sample(visitor.site, intervention))
            walker.to_check(intervention)
            shown = previewed(walker, intervention)
            went = walker.submit(intervention).headers["location"]
            wait_until(lambda: sink.arrived, "the message")
            done = said(walker.get(went))
            agency = referral_of(
                visitor.site, sample(visitor.site, intervention), intervention
            ).agency
        [arrived] = sink.arrived
    assert arrived.recipients == (agency.email,)
    assert parts(arrived.content) == shown
    assert b"X-Unsent" not in arrived.content
    assert "Relayed" in done


def test_saves_all_drafts_as_one_zip(visitor: Visitor, walking: Walking) -> None:
    walker = walking(*INTERVENTIONS)
    walker.to_check(*INTERVENTIONS)
    archive = zipfile.ZipFile(io.BytesIO(walker.get(f"{walker.at}/drafts.zip").content))
    raw = sample(visitor.site, *INTERVENTIONS)
    referrals = [referral_of(visitor.site, raw, one) for one in INTERVENTIONS]
    assert {name: archive.read(name) for name in archive.namelist()} == {
        one.file_name: visitor.site.service.draft(one) for one in referrals
    }


def test_queues_all_that_is_ticked_at_once(visitor: Visitor, walking: Walking) -> None:
    walker = walking("mediation", "victim-hardening", "target-hardening")
    walker.to_check("mediation", "victim-hardening", "target-hardening")
    walker.submit("mediation", "victim-hardening")
    with open_outbox(visitor.site.settings) as outbox:
        held = outbox.held()
        actors = {entry.actor for entry in outbox.audit()}
        accepted = [entry.detail.get("accepted_unverified") for entry in outbox.audit()]
    assert {one.intervention for one in held} == {"mediation", "victim-hardening"}
    assert actors == {"jo"}
    assert accepted == [True, True]
    done = said(walker.get(f"{walker.at}/done"))
    assert all(one.reference in done for one in held)
    assert "Save the draft: Target hardening" in done


# What is typed


def test_asks_once_who_one_is(visitor: Visitor, walking: Walking) -> None:
    walker = walking("target-hardening")
    first = walker.post("/referrals", {}).headers["location"]
    assert first.startswith("/you?next=")
    wrong = walker.post(first, {"referrer.email": "nobody", "referrer.role": "PCSO"}, 422)
    assert "Fill in “Name”" in wrong.text
    assert "E-mail is not an e-mail address." in wrong.text
    assert 'value="PCSO"' in wrong.text
    assert "<title>Error: " in wrong.text
    assert re.fullmatch(
        r"/referrals/[\w-]+/case", walker.post(first, walker.fill(first)).headers["location"]
    )
    assert walker.post("/referrals", {}).headers["location"].endswith("/case")
    assert "Sam Officer" in walker.get("/you").text


def test_says_every_mistake_at_once_and_loses_nothing(walking: Walking) -> None:
    """Of form and of what is missing, each linked to its field, with what was typed in place."""
    walker = walking("mediation", "target-hardening")
    walker.start()
    walker.case()
    walker.choose("mediation", "target-hardening")
    path = f"{walker.at}/details"
    filled = walker.fill(
        path,
        action="continue",
        **{
            "people.victim.name": "",
            "people.victim.address": "1 Street\x07",
            "answers.mediation.dispute": "Too short",
            "answers.mediation.domestic_abuse": "",
            "answers.target-hardening.review_on-month": "",
            "answers.target-hardening.pattern": "",
        },
    )
    answer = walker.post(path, filled, 422)
    page = unescape(answer.text)
    for text, anchor in (
        ("Person harmed: fill in “Name”", "people.victim.name"),
        ("Person harmed: address holds a control character", "people.victim.address"),
        ("Mediation: what the dispute is about is too short.", "answers.mediation.dispute"),
        ("Mediation: answer “Is there domestic abuse", "answers.mediation.domestic_abuse"),
        (
            "Target hardening: to be reviewed on needs a month",
            "answers.target-hardening.review_on-day",
        ),
        ("Target hardening: fill in “When it happens”", "answers.target-hardening.pattern"),
    ):
        assert re.search(rf'href="#{re.escape(anchor)}"[^>]*>{re.escape(text)}', page), text
        assert f'id="{anchor}"' in page
    kept = Form(answer.text, path).values
    assert {name: list(kept[name]) for name in filled if name in kept and name != "csrf"} == {
        name: [value] if isinstance(value, str) else list(value)
        for name, value in filled.items()
        if name in kept and name != "csrf"
    }
    # And it is saved.
    saved = Form(walker.get(path).text, path).values
    assert {**saved, "csrf": []} == {**kept, "csrf": []}


def test_keeps_what_is_typed_just_as_it_is(visitor: Visitor, walking: Walking) -> None:
    """Line breaks, emoji, and text from right to left."""
    words = "Zoë 👩‍👧 said:\n\n  “\u05e9\u05dc\u05d5\u05dd \u200f(abc)\u202c & <b>”\n"
    walker = walking("mediation")
    walker.cells["answers.mediation.dispute"] = words
    walker.to_check("mediation")
    path = f"{walker.at}/details"
    assert Form(walker.get(path).text, path).values["answers.mediation.dispute"] == [words]
    text, html = previewed(walker, "mediation")
    assert "Zoë 👩‍👧 said:" in text
    assert "&lt;b&gt;" in html


def test_what_is_emptied_is_gone(walking: Walking) -> None:
    """A text that is cleared, a box that is unticked."""
    walker = walking("target-hardening")
    walker.to_check("target-hardening")
    path = f"{walker.at}/details"
    values = walker.form(path).values
    values["answers.target-hardening.measures"] = ["cpo-patrols"]
    values["answers.target-hardening.tried"] = [""]
    values["answers.target-hardening.from_day-day"] = [""]
    values["answers.target-hardening.from_day-month"] = [""]
    values["answers.target-hardening.from_day-year"] = [""]
    walker.post(path, {**values, "action": "continue"})
    after = walker.form(path).values
    assert after["answers.target-hardening.measures"] == ["cpo-patrols"]
    assert after["answers.target-hardening.tried"] == [""]
    text, _ = previewed(walker, "target-hardening")
    assert "amera" not in text
    assert "Joint visits" not in text


def test_nothing_typed_is_markup_on_any_page(visitor: Visitor, walking: Walking) -> None:
    """In every text of the case, of the referrer and of a supervisor's decision."""
    walker = walking(*INTERVENTIONS)
    untouched = re.compile(
        r"location\.(area|district)|.*(email|date_of_birth|\.on|_on|person|given|how|record|strand"
        r"|basis|interventions|starts|ends|from_day|reference)$"
    )
    options = {
        f"answers.{one.id}.{question.name}"
        for one in visitor.site.service.directory.interventions.values()
        for question in one.fields
        if question.type not in ("line", "text")
    }
    for name in walker.cells:
        if not untouched.fullmatch(name) and name not in options:
            walker.cells[name] = HOSTILE + " long enough for a text that must be so"
    walker.cells["answers.mediation.domestic_abuse"] = "yes"
    walker.to_check(*INTERVENTIONS)
    walker.post(
        f"{walker.at}/set-aside/MED-004",
        {
            "overrides.1.reason": HOSTILE,
            "overrides.1.authorised_by": HOSTILE,
            **{f"overrides.1.on-{part}": value for part, value in today_parts(visitor).items()},
        },
    )
    names = ["case", "choose", "details", "check", "set-aside/MED-004", "submit", "done", "delete"]
    names += [f"preview/{one}" for one in INTERVENTIONS if one not in ("target-hardening",)]
    names += [f"preview/{one}/html" for one in ("mediation", "victim-hardening")]
    for path in ("/", "/you", *(f"{walker.at}/{name}" for name in names)):
        page = walker.client.get(path).text
        assert "<script>alert" not in page, path
        assert "<img" not in page, path
        assert "49" not in re.findall(r"onerror=alert\(2\)&gt;(\d*)", page), path
    assert HOSTILE in unescape(walker.get(f"{walker.at}/check").text)


def today_parts(visitor: Visitor) -> dict[str, str]:
    today: date = visitor.site.service.today()
    return {"day": str(today.day), "month": str(today.month), "year": str(today.year)}


def test_takes_no_field_that_the_form_has_not(visitor: Visitor, walking: Walking) -> None:
    """Least of all a recipient."""
    forged = {
        "to": "thief@evil.example",
        "agency": "thief@evil.example",
        "email": "thief@evil.example",
        "agency.email": "thief@evil.example",
        "answers.mediation.to": "thief@evil.example",
        "answers.mediation.agency": "thief@evil.example",
        "answers.unknown.x": "thief@evil.example",
        "people.victim.secret": "thief@evil.example",
        "consents.1.recipient": "thief@evil.example",
        "referrer.name": "thief@evil.example",
        "mail.sender": "thief@evil.example",
        "To": "thief@evil.example",
    }
    walker = walking("mediation")
    walker.start()
    path = f"{walker.at}/case"
    walker.case()
    walker.post(path, walker.fill(path, action="continue", **forged))
    walker.post(f"{walker.at}/choose", {"chosen": ["mediation", "no-such"], **forged})
    walker.post(
        f"{walker.at}/details", walker.fill(f"{walker.at}/details", action="continue", **forged)
    )
    values = {**walker.seen(), "submit": "mediation", "accept": "mediation", **forged}
    walker.post(f"{walker.at}/submit", values)
    assert in_outbox(visitor.site) == ["community@nottinghamcityhomes.org.uk"]
    stored = (visitor.site.settings.outbox / "web.sqlite3").read_bytes()
    for file in visitor.site.settings.outbox.glob("web.sqlite3*"):
        stored += file.read_bytes()
    assert b"thief@evil.example" not in stored
    draft = walker.get(f"{walker.at}/drafts.zip").content
    assert b"thief" not in draft


def test_two_hundred_incidents_are_no_trouble(visitor: Visitor, walking: Walking) -> None:
    walker = walking("repeat-victim-panel")
    walker.start()
    walker.case()
    walker.choose("repeat-victim-panel")
    walker.details()
    first = {name: cell for name, cell in walker.cells.items() if name.startswith("incidents.1.")}
    many = {
        name.replace("incidents.1.", f"incidents.{number}."): cell
        for number in range(1, 201)
        for name, cell in first.items()
    }
    form: dict[str, str] = {}
    for name, cell in many.items():
        if name.endswith(".on"):
            year, month, day = cell.split("-")
            form |= {f"{name}-day": day, f"{name}-month": month, f"{name}-year": year}
        else:
            form[name] = cell
    path = f"{walker.at}/case"
    basics = {"reference": "SAMPLE-001", "location.area": "city", "action": "continue"}
    walker.post(path, {**basics, **form})
    page = walker.get(path).text
    assert page.count('-day" name="incidents.') == 200
    assert "Add another incident" not in page
    text, _ = previewed(walker, "repeat-victim-panel")
    assert "200. " in text


def test_incidents_are_added_and_removed_without_a_script(walking: Walking) -> None:
    walker = walking("repeat-victim-panel")
    walker.start()
    path = f"{walker.at}/case"
    went = walker.post(path, walker.fill(path, action="add-incident")).headers["location"]
    assert went == f"{path}#incidents.2"
    walker.post(path, walker.fill(path, action="add-incident"))
    values = Form(walker.get(path).text, path).values
    assert [values[f"incidents.{number}.what"] for number in (1, 2)] == [
        [walker.cells["incidents.1.what"]],
        [walker.cells["incidents.2.what"]],
    ]
    assert values["incidents.3.what"] == [""]
    walker.post(path, {**values, "action": "remove-incidents.1"})
    after = Form(walker.get(path).text, path).values
    assert after["incidents.1.what"] == [walker.cells["incidents.2.what"]]
    assert "incidents.3.what" not in after


def test_the_enter_key_goes_on(walking: Walking) -> None:
    """The first button of each long form does what the green one does."""
    walker = walking("mediation")
    walker.start()
    walker.case()
    walker.choose("mediation")
    for name in ("case", "details"):
        page = walker.get(f"{walker.at}/{name}").text
        first = re.search(r'<button[^>]*name="action"[^>]*value="([^"]+)"', page)
        assert first
        assert first[1] == "continue"


def test_can_be_left_and_taken_up_again(visitor: Visitor, walking: Walking) -> None:
    walker = walking("mediation")
    walker.start()
    path = f"{walker.at}/case"
    assert walker.post(path, {"reference": "AB", "action": "save"}).headers["location"] == "/"
    home = walker.get("/").text
    assert f'href="{path}"' in home
    assert Form(walker.get(path).text, path).values["reference"] == ["AB"]
    # What is wrong in it is said on the way on, and only then.
    assert "There is a problem" not in walker.get(path).text
    went = walker.client.get(f"{walker.at}/check", follow_redirects=False).headers["location"]
    assert went == f"{path}?show=problems"
    assert "is not a case reference" in walker.get(went).text


def test_is_deleted_once_confirmed(walking: Walking) -> None:
    walker = walking("mediation")
    walker.start()
    walker.case()
    assert "SAMPLE-001" in walker.get(f"{walker.at}/delete").text
    assert "SAMPLE-001" in walker.get("/").text
    walker.post(f"{walker.at}/delete", {})
    assert walker.client.get(f"{walker.at}/case").status_code == 404
    assert "SAMPLE-001" not in walker.get("/").text


def test_two_journeys_go_side_by_side(visitor: Visitor, walking: Walking) -> None:
    one, two = walking("mediation"), walking("target-hardening")
    two.cells["reference"] = "SAMPLE-002"
    one.start()
    two.start()
    one.case()
    two.case()
    one.choose("mediation")
    two.choose("target-hardening")
    two.details()
    one.details()
    assert "SAMPLE-001" in previewed(one, "mediation")[0]
    assert "SAMPLE-002" in previewed(two, "target-hardening")[0]
    assert two.client.get(f"{two.at}/preview/mediation").status_code == 404


def test_nobody_else_sees_it(visitor: Visitor, walking: Walking) -> None:
    walker = walking("mediation")
    walker.to_check("mediation")
    file = referral_of(visitor.site, sample(visitor.site, "mediation"), "mediation").file_name
    shown = ["case", "choose", "details", "check", "preview", "preview/mediation",
             "preview/mediation/html", "drafts.zip", f"drafts/{file}", "submit", "done", "delete",
             "set-aside/MED-004"]  # fmt: skip
    posted = ["case", "choose", "details", "remove", "submit", "delete", "set-aside/MED-004"]
    with another(visitor.site) as other:
        for name in shown:
            assert other.get(f"{walker.at}/{name}").status_code == 404, name
        for name in posted:
            answer = other.post(
                f"{walker.at}/{name}", data={"csrf": csrf(other.get("/")), "action": "x"}
            )
            assert answer.status_code == 404, name
        assert "SAMPLE-001" not in other.get("/").text
        other.post(f"/you?next={walker.at.split('/')[2]}", data={"csrf": csrf(other.get("/"))})
    assert walker.get(f"{walker.at}/check").status_code == 200


@pytest.mark.parametrize(
    "name", ["../../outbox.sqlite3", "..%2f..%2foutbox.sqlite3", "x.eml", "%00.eml", "drafts.zip"]
)
def test_a_draft_is_found_by_its_name_alone(walking: Walking, name: str) -> None:
    walker = walking("target-hardening")
    walker.to_check("target-hardening")
    assert walker.client.get(f"{walker.at}/drafts/{name}").status_code == 404


# What fits


def test_offers_what_fits_and_says_why_others_do_not(walking: Walking) -> None:
    """Nothing is ticked; what is not served here can't be ticked."""
    walker = walking("target-hardening")
    walker.cells |= {"location.area": "county", "location.district": "gedling"}
    walker.start()
    walker.case()
    page = walker.get(f"{walker.at}/choose").text
    form = Form(page, f"{walker.at}/choose")
    assert "mediation" not in form.offered["chosen"]
    assert set(form.offered["chosen"]) == set(INTERVENTIONS) - {"mediation"}
    assert "chosen" not in form.values
    assert "Mediation is available in Nottingham City only." in page
    assert "The directory has no address for Inspector" in page
    assert "Nobody has checked this address." in page
    answer = walker.post(f"{walker.at}/choose", {"chosen": "mediation"}, 422)
    assert "Choose at least one kind of help." in answer.text


def test_offers_what_an_answer_may_still_make_fit(walking: Walking) -> None:
    """A panel for one incident needs a reason, which is asked for later, in the page's words."""
    walker = walking("repeat-victim-panel")
    walker.cells = {
        name: cell for name, cell in walker.cells.items() if not name.startswith("incidents.2.")
    }
    walker.cells["answers.repeat-victim-panel.fewer_incidents_reason"] = "The risk is high now."
    walker.start()
    walker.case()
    page = unescape(walker.get(f"{walker.at}/choose").text)
    assert "say in “Why the panel is needed with fewer than two incidents” why" in page
    walker.choose("repeat-victim-panel")
    walker.details()
    assert "The risk is high now." in previewed(walker, "repeat-victim-panel")[0]


def test_says_what_an_agreement_that_was_refused_stops(walking: Walking) -> None:
    walker = walking("mediation", "target-hardening")
    walker.cells |= {"consents.1.given": "no"}
    page = unescape(walker.to_check("mediation", "target-hardening"))
    assert "They were asked and did not agree." in page
    assert "MED-002. Source: interventions document, Mediation" in page
    assert (
        walker.client.get(f"{walker.at}/preview/mediation", follow_redirects=False)
        .headers["location"]
        .endswith("/check")
    )
    assert walker.client.get(f"{walker.at}/preview/mediation/html").status_code == 404
    assert "Go on" not in page
    assert "You can go on with Target hardening." in page
    walker.post(f"{walker.at}/submit", {**walker.seen(), "submit": "mediation"}, 422)
    # One may leave it out, and go on with the others.
    went = walker.post(f"{walker.at}/remove", {"intervention": "mediation"}).headers["location"]
    assert went == f"{walker.at}/check"
    assert "Mediation" not in said(walker.get(went))


def test_no_two_groups_of_questions_have_the_same_name(walking: Walking) -> None:
    """What is asked of a person stands apart from what that person agreed to."""
    walker = walking(*INTERVENTIONS)
    check = walker.to_check(*INTERVENTIONS)
    legends = re.findall(r"<h[23] class=\"govuk-fieldset__heading\">(.*?)</h[23]>",
                         walker.get(f"{walker.at}/details").text)  # fmt: skip
    assert {"Person harmed", "Agreement of the person harmed"} < set(legends)
    titles = re.findall(r'class="govuk-summary-card__title">\s*(.*?)\s*<', check)
    assert "Agreement of the person harmed" in titles
    for names in (legends, titles):
        assert len(names) == len(set(names)), names


def test_a_second_record_of_a_persons_agreement_counts(walking: Walking) -> None:
    """The newest one does; both stay recorded."""
    walker = walking("victim-hardening")
    walker.start()
    walker.case()
    walker.choose("victim-hardening")
    path = f"{walker.at}/details"
    went = walker.post(path, walker.fill(path, action="add-consents.victim")).headers["location"]
    assert went == f"{path}#consents.2"
    older = walker.fill(path)
    assert "consents.2.person" in older
    second = {
        "consents.2.interventions": "victim-hardening",
        "consents.2.given": "no",
        "consents.2.on-day": older["consents.1.on-day"],
        "consents.2.on-month": older["consents.1.on-month"],
        "consents.2.on-year": older["consents.1.on-year"],
        "consents.2.how": "phone",
        "consents.2.recorded_by": "Sam Officer",
    }
    walker.post(path, {**older, **second, "action": "continue"})
    page = walker.get(f"{walker.at}/check").text
    assert "They were asked and did not agree." in page
    values = Form(walker.get(path).text, path).values
    walker.post(path, {**values, "action": "remove-consents.2"})
    assert "They were asked" not in walker.get(f"{walker.at}/check").text


def test_agreement_to_what_is_left_out_stays_recorded(walking: Walking) -> None:
    walker = walking("mediation", "victim-hardening")
    walker.to_check("mediation", "victim-hardening")
    walker.post(f"{walker.at}/remove", {"intervention": "mediation"})
    path = f"{walker.at}/details"
    walker.post(path, {**Form(walker.get(path).text, path).values, "action": "continue"})
    walker.choose("mediation", "victim-hardening")
    assert Form(walker.get(path).text, path).values["consents.1.interventions"] == [
        "mediation",
        "victim-hardening",
    ]
    assert "SAMPLE-001" in previewed(walker, "mediation")[0]


def test_a_supervisor_may_set_a_rule_aside(visitor: Visitor, walking: Walking) -> None:
    walker = walking("mediation", **{"answers.mediation.court_proceedings": "yes"})
    page = walker.to_check("mediation")
    path = f"{walker.at}/set-aside/MED-006"
    assert f'href="{path}"' in page
    wrong = walker.post(path, {"overrides.1.reason": "short"}, 422)
    assert "is too short" in wrong.text
    assert "Fill in “Supervisor”" in wrong.text
    assert ">\nshort</textarea>" in wrong.text
    given = {
        "overrides.1.reason": "The hearing is on another matter.",
        "overrides.1.authorised_by": "Inspector Example",
        **{f"overrides.1.on-{part}": value for part, value in today_parts(visitor).items()},
    }
    walker.post(path, given)
    text, _ = previewed(walker, "mediation")
    assert "The hearing is on another matter." in text
    assert "Inspector Example" in text
    walker.submit("mediation")
    with open_outbox(visitor.site.settings) as outbox:
        [entry] = outbox.audit()
    assert entry.detail["overrides"] == ["MED-006"]
    walker.post(path, {"action": "put-back"})
    assert f'href="{path}"' in walker.get(f"{walker.at}/check").text
    walker.cells["consents.1.given"] = "no"
    walker.details()
    for other in ("MED-001", "MED-002", "VIC-001", "NO-1"):
        assert walker.client.get(f"{walker.at}/set-aside/{other}").status_code == 404


# Submitting


def test_what_has_no_address_is_drafted_only(visitor: Visitor, walking: Walking) -> None:
    walker = walking("police-dispersal-order", "target-hardening")
    walker.to_check("police-dispersal-order", "target-hardening")
    page = walker.get(f"{walker.at}/submit").text
    assert "police-dispersal-order" not in Form(page, f"{walker.at}/submit").offered["submit"]
    answer = walker.submit("police-dispersal-order", expected=422)
    assert "the directory has no address" in answer.text
    assert in_outbox(visitor.site) == []


def test_an_unchecked_address_has_to_be_accepted(visitor: Visitor, walking: Walking) -> None:
    walker = walking("victim-hardening")
    walker.to_check("victim-hardening")
    answer = walker.submit("victim-hardening", accept=(), expected=422)
    assert 'href="#accept-victim-hardening"' in answer.text
    assert in_outbox(visitor.site) == []
    # Acceptance of one is not that of another.
    walker.submit("victim-hardening", accept="mediation", expected=422)
    assert in_outbox(visitor.site) == []


def test_a_checked_address_asks_for_nothing(visitor: Visitor, walking: Walking) -> None:
    site = visitor.site
    agency = site.service.directory.agencies["victim-care"]
    today = site.service.today()
    with open_outbox(site.settings) as outbox:
        outbox.verify(Verification.of(agency, today, "Jo Bloggs", today), site.now)
    walker = walking("victim-hardening")
    walker.to_check("victim-hardening")
    form = walker.form(f"{walker.at}/submit")
    assert "accept" not in form.offered
    assert "Jo Bloggs" in walker.get(f"{walker.at}/preview/victim-hardening").text
    walker.submit("victim-hardening", accept=())
    assert in_outbox(site) == ["admin@nottsvictimcare.org.uk"]


def test_is_queued_once_however_often_it_is_submitted(visitor: Visitor, walking: Walking) -> None:
    walker = walking("victim-hardening")
    walker.to_check("victim-hardening")
    walker.submit("victim-hardening")
    assert "queued before" not in said(walker.get(f"{walker.at}/done"))
    walker.submit("victim-hardening")
    assert "had been queued before" in said(walker.get(f"{walker.at}/done"))
    assert len(in_outbox(visitor.site)) == 1


def test_two_clicks_at_once_queue_it_once(visitor: Visitor, walking: Walking) -> None:
    walker = walking("victim-hardening")
    walker.to_check("victim-hardening")
    values = {**walker.seen(), "csrf": csrf(walker.get("/"))}
    values |= {"submit": "victim-hardening", "accept": "victim-hardening"}
    answers: list[Response] = []

    def click() -> None:
        answers.append(
            walker.client.post(f"{walker.at}/submit", data=values, follow_redirects=False)
        )

    clicks = [threading.Thread(target=click) for _ in range(4)]
    for one in clicks:
        one.start()
    for one in clicks:
        one.join()
    assert [one.status_code for one in answers] == [303] * 4
    assert len(in_outbox(visitor.site)) == 1


def test_a_letter_that_has_changed_is_shown_again(visitor: Visitor, walking: Walking) -> None:
    """Nothing goes that was not seen."""
    walker = walking("victim-hardening")
    walker.to_check("victim-hardening")
    seen = walker.seen()
    walker.cells["people.victim.phone"] = "07700 900999"
    walker.details()
    answer = walker.submit("victim-hardening", expected=422, **seen)
    assert "has changed since this page was shown" in answer.text
    assert in_outbox(visitor.site) == []
    walker.submit("victim-hardening")
    assert len(in_outbox(visitor.site)) == 1


def test_ticking_nothing_is_a_mistake(visitor: Visitor, walking: Walking) -> None:
    walker = walking("victim-hardening")
    walker.to_check("victim-hardening")
    assert "Choose what to submit." in walker.submit(expected=422).text
    assert "submit" not in walker.form(f"{walker.at}/submit").values


def test_a_referrer_drafts_and_does_not_submit(tmp_path: Path) -> None:
    with visiting(settings_in(tmp_path), Role.REFERRER) as visitor:
        walker = Walker.with_case(visitor.client, sample(visitor.site, "victim-hardening"))
        walker.to_check("victim-hardening")
        assert "may make drafts but not submit" in walker.get(f"{walker.at}/submit").text
        values = {"submit": "victim-hardening", "accept": "victim-hardening"}
        walker.post(f"{walker.at}/submit", values, 403)
        assert in_outbox(visitor.site) == []


def test_without_a_relay_there_are_drafts_only(tmp_path: Path) -> None:
    with visiting(settings_in(tmp_path, None), Role.SENDER) as visitor:
        walker = Walker.with_case(visitor.client, sample(visitor.site, "victim-hardening"))
        walker.to_check("victim-hardening")
        assert "no mail relay" in walker.get(f"{walker.at}/submit").text
        assert "no mail relay" in walker.get(f"{walker.at}/preview/victim-hardening").text
        values = {"submit": "victim-hardening", "accept": "victim-hardening"}
        walker.post(f"{walker.at}/submit", values, 409)
        assert in_outbox(visitor.site) == []
        assert "Nothing was submitted." in walker.get(f"{walker.at}/done").text


def test_the_html_frame_can_do_nothing(walking: Walking) -> None:
    walker = walking("victim-hardening")
    walker.to_check("victim-hardening")
    page = walker.get(f"{walker.at}/preview/victim-hardening")
    assert re.search(r'<iframe[^>]*sandbox=""[^>]*title="[^"]+"', page.text)
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    frame = walker.get(f"{walker.at}/preview/victim-hardening/html")
    policy = frame.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'")
    assert frame.headers["x-frame-options"] == "SAMEORIGIN"
    assert frame.headers["cache-control"] == "no-store"


def test_home_tells_of_what_waits_for_a_person(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    filled = Filled(settings)
    old = timedelta(days=9)
    with visiting(settings, Role.SENDER) as visitor:
        assert "Needs a look" not in visitor.get("/").text
        filled.add("queued", DeliveryStatus.QUEUED)
        assert "Needs a look" not in visitor.get("/").text
        filled.add("failed", DeliveryStatus.FAILED)
        filled.add("held", DeliveryStatus.UNCERTAIN, hold=True)
        filled.add("late", DeliveryStatus.RELAYED, ago=old)
        filled.add("later", DeliveryStatus.RELAYED, ago=old)
        page = visitor.get("/").text
    for text, href in (
        ("1 referral failed", "/outbox?status=failed"),
        ("1 referral is uncertain", "/outbox?status=uncertain"),
        ("2 answers are late", "/due"),
    ):
        assert f'href="{href}">{text}</a>' in page
