"""Whose answer is late, and reminders of it, on the page."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import pytest

from referrals.delivery import DeliveryStatus
from referrals.web.site import Role
from tests.conftest import CONFIG, NOW
from tests.queued import SENDER
from tests.web.conftest import web_settings
from tests.web.signing import said
from tests.web.visiting import ADDRESS, Filled, Visitor, visiting

DAY = timedelta(days=1)
NO_REMINDER = "No reminder can be made."


pytestmark = pytest.mark.usefixtures("clock_stands_still")


@pytest.fixture
def filled(tmp_path: Path) -> Filled:
    made = Filled(web_settings(tmp_path))
    made.add("late", DeliveryStatus.RELAYED, ago=9 * DAY)
    made.add("later", DeliveryStatus.RELAYED, ago=12 * DAY)
    made.add("held", DeliveryStatus.UNCERTAIN, ago=10 * DAY, hold=True)
    made.add("tried", DeliveryStatus.UNCERTAIN, ago=10 * DAY)
    made.add("today", DeliveryStatus.RELAYED, ago=7 * DAY)
    made.add("soon", DeliveryStatus.RELAYED)
    made.add("failed", DeliveryStatus.FAILED, ago=10 * DAY)
    made.add("answered", DeliveryStatus.RELAYED, ago=10 * DAY)
    with made.open() as outbox:
        outbox.acknowledge(made.reference("answered"), NOW.date(), NOW)
    return made


@pytest.fixture
def visitor(filled: Filled) -> Iterator[Visitor]:
    with visiting(filled.settings, Role.SENDER) as one:
        yield one


def test_those_late_come_first_and_then_those_that_are_due_soon(
    filled: Filled, visitor: Visitor
) -> None:
    answer = visitor.get("/due")
    text = said(answer)
    late, _, soon = text.partition("In the next 7 days (2)")
    assert "Late (4)" in late
    for kind in ("late", "later", "held", "tried"):
        assert (filled.reference(kind) in late, filled.reference(kind) in soon) == (True, False)
    for kind in ("today", "soon"):
        assert (filled.reference(kind) in late, filled.reference(kind) in soon) == (False, True)
    for kind in ("failed", "answered"):
        assert filled.reference(kind) not in text
    assert late.index("Victim Care: 5 days late") < late.index("Victim Care: 2 days late")
    assert "24 November 2026" in soon
    assert SENDER not in answer.text


def test_who_waits_for_nobody_is_told_so(tmp_path: Path) -> None:
    with visiting(web_settings(tmp_path)) as one:
        text = said(one.get("/due"))
    assert "Nothing is late." in text
    assert "Download reminders" not in text


def test_a_reminder_opens_ready_to_edit_and_names_nobody(filled: Filled, visitor: Visitor) -> None:
    reference = filled.reference("late")
    answer = visitor.get(f"/due/{reference}/reminder.eml")
    message = message_from_bytes(answer.content, policy=default)
    assert answer.headers["content-type"] == "message/rfc822"
    assert answer.headers["cache-control"] == "no-store"
    assert (
        f'filename="{reference}-victim-hardening-reminder.eml"'
        in answer.headers["content-disposition"]
    )
    assert (message["To"], message["From"], message["X-Unsent"]) == (ADDRESS, None, "1")
    assert reference in message["Subject"]


def test_it_is_from_whoever_has_said_who_they_are(filled: Filled, visitor: Visitor) -> None:
    typed = {"name": "Jo Bloggs", "role": "Officer", "organisation": "Council",
             "email": "jo@council.example.com", "phone": "01632 960001"}  # fmt: skip
    sent = visitor.post("/you", {f"referrer.{name}": value for name, value in typed.items()})
    assert sent.status_code == 303
    assert "It is from you, Jo Bloggs." in said(visitor.get("/due"))
    answer = visitor.get(f"/due/{filled.reference('late')}/reminder.eml")
    message = message_from_bytes(answer.content, policy=default)
    assert message["From"] == "Jo Bloggs <jo@council.example.com>"


def test_several_come_in_one_archive_and_one_as_it_is(filled: Filled, visitor: Visitor) -> None:
    wanted = [filled.reference(kind) for kind in ("late", "held")]
    answer = visitor.post("/due/reminders", {"reference": wanted})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        names = archive.namelist()
        messages = [message_from_bytes(archive.read(name), policy=default) for name in names]
    assert sorted(names) == sorted(f"{one}-victim-hardening-reminder.eml" for one in wanted)
    assert {message["To"] for message in messages} == {ADDRESS}
    alone = visitor.post("/due/reminders", {"reference": wanted[:1]})
    assert alone.headers["content-type"] == "message/rfc822"
    assert alone.content == visitor.get(f"/due/{wanted[0]}/reminder.eml").content


def test_to_choose_none_is_an_error_with_a_link(visitor: Visitor) -> None:
    answer = visitor.post("/due/reminders")
    assert answer.status_code == 422
    assert '<a href="#reference">' in answer.text
    assert 'id="reference"' in answer.text
    assert "<title>Error: Answers due" in answer.text


@pytest.mark.parametrize("kind", ["tried", "today", "answered", "failed"])
def test_what_is_not_to_be_reminded_of_is_not(kind: str, filled: Filled, visitor: Visitor) -> None:
    reference = filled.reference(kind)
    assert visitor.get(f"/due/{reference}/reminder.eml").status_code in (404, 409)
    assert visitor.post("/due/reminders", {"reference": [reference]}).status_code == 409
    assert f"/due/{reference}/reminder.eml" not in visitor.get("/due").text


def test_what_is_still_tried_says_why_not(visitor: Visitor) -> None:
    text = said(visitor.get("/due"))
    assert f"{NO_REMINDER} It is still being tried" in text
    assert "referrals deliver" not in text


def test_a_changed_address_gets_no_reminder(filled: Filled, tmp_path: Path) -> None:
    """Whatever the form says: the referral may have gone to somebody who no longer reads it."""
    import shutil

    config = tmp_path / "config"
    shutil.copytree(CONFIG, config)
    agencies = config / "regions" / "nottinghamshire" / "agencies.toml"
    agencies.write_text(agencies.read_text().replace(ADDRESS, "new@victimcare.example.com"))
    settings = filled.settings.model_copy(update={"config": config})
    with visiting(settings) as one:
        text = said(one.get("/due"))
        assert "The address has changed" in text
        assert "Download reminders" not in text
        wanted = {"reference": [filled.reference("late")], "to": "me@example.com"}
        assert one.post("/due/reminders", wanted).status_code == 409


def test_a_referrer_reminds_and_does_not_record(filled: Filled) -> None:
    with visiting(filled.settings, Role.REFERRER) as one:
        page = one.get("/due").text
        assert "/answered" not in page
        assert one.get(f"/due/{filled.reference('late')}/reminder.eml").status_code == 200


def test_no_request_gives_a_reminder_another_recipient(filled: Filled, visitor: Visitor) -> None:
    forged: dict[str, str | list[str]] = dict.fromkeys(
        ("to", "email", "agency", "recipient", "bcc"), "me@example.com"
    )
    forged["reference"] = filled.reference("late")
    content = visitor.post("/due/reminders", forged).content
    assert message_from_bytes(content, policy=default)["To"] == ADDRESS
    assert b"me@example.com" not in content
