"""A reminder goes where the referral went, or nowhere, and names nobody."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import date, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

import pytest

from referrals.delivery import DeliveryStatus
from referrals.directory import Directory
from referrals.message import Sender
from referrals.queueing import Held
from referrals.reminder import file_name, reminder, why_not
from referrals.reminder_check import check_reminder
from referrals.rendering import environment
from tests.conftest import NOW, TEMPLATES

LETTERS = environment(TEMPLATES)
HELD = Held(
    id=1,
    reference="K7QM-29TX-WCF4",
    case_reference="CASE-1",
    intervention="mediation",
    agency="nottingham-city-homes",
    recipient="community@nottinghamcityhomes.org.uk",
    message_id="<K7QM-29TX-WCF4.token@council.example.com>",
    sha256="0" * 64,
    size=1,
    status=DeliveryStatus.RELAYED,
    queued_at=NOW,
    due_at=None,
    attempts=1,
    maybe_doubled=False,
    relayed_at=NOW,
    acknowledge_by=date(2026, 12, 1),
    acknowledged_on=None,
    purged_at=NOW,
)
UNCERTAIN = replace(HELD, status=DeliveryStatus.UNCERTAIN, relayed_at=None)


def made(directory: Directory, held: Held = HELD, sender: Sender | None = None) -> EmailMessage:
    content = reminder(held, directory, LETTERS, "OFFICIAL", sender)
    return message_from_bytes(content, _class=EmailMessage, policy=default)


def text_of(message: EmailMessage, kind: str = "plain") -> str:
    part = message.get_body((kind,))
    assert part is not None
    return str(part.get_content())


def elsewhere(directory: Directory, **changes: object) -> Directory:
    agency = directory.agencies[HELD.agency].model_copy(update=changes)
    return replace(directory, agencies={**directory.agencies, HELD.agency: agency})


def test_it_is_a_draft_to_the_directory_s_address_that_follows_the_referral(
    directory: Directory,
) -> None:
    message = made(directory)
    assert message["To"] == HELD.recipient
    assert message["X-Unsent"] == "1"
    assert message["In-Reply-To"] == message["References"] == HELD.message_id
    assert message["Subject"] == "OFFICIAL: Reminder: Mediation - K7QM-29TX-WCF4"
    assert [message[name] for name in ("From", "Date", "Message-ID", "Cc", "Bcc")] == [None] * 5
    for kind in ("plain", "html"):
        told = text_of(message, kind)
        for fact in ("K7QM-29TX-WCF4", "CASE-1", "Mediation", "24 November 2026",
                     "1 December 2026", "NCH (Nottingham City Homes)"):  # fmt: skip
            assert fact in told
    assert file_name(HELD) == "K7QM-29TX-WCF4-mediation-reminder.eml"


def test_lines_end_and_fit_as_rfc_5322_wants(directory: Directory) -> None:
    content = reminder(HELD, directory, LETTERS, "OFFICIAL")
    assert content.count(b"\n") == content.count(b"\r\n")
    assert max(map(len, content.split(b"\r\n"))) <= 998
    assert content.isascii()


def test_from_is_whoever_was_named(directory: Directory) -> None:
    message = made(directory, sender=Sender("Jo Öfficer", "jo@council.example.com"))
    assert message["From"] == "Jo Öfficer <jo@council.example.com>"
    assert "jo@council.example.com" in text_of(message)
    assert "Jo Öfficer" in text_of(message, "html")


def test_days_are_those_of_the_region(directory: Directory) -> None:
    """23:30 UTC in summer is the next day in Nottingham."""
    late = datetime.fromisoformat("2026-07-01T23:30:00+00:00")
    assert "2 July 2026" in text_of(made(directory, replace(HELD, relayed_at=late)))


def test_it_is_the_same_on_every_day_and_without_the_content(directory: Directory) -> None:
    again = replace(HELD, purged_at=None, attempts=7)
    one, other = (reminder(held, directory, LETTERS, "X") for held in (HELD, again))
    assert one == other


def test_an_uncertain_one_does_not_claim_that_it_was_e_mailed(directory: Directory) -> None:
    told = text_of(made(directory, UNCERTAIN))
    assert "can't tell whether it reached you" in told
    assert "We e-mailed" not in told


def test_a_message_id_that_could_break_a_header_is_left_out(directory: Directory) -> None:
    for hostile in ("<a@b>\r\nBcc: x@example.com", "<a@b> <c@d>", "no brackets", "<ä@b>", ""):
        message = made(directory, replace(HELD, message_id=hostile))
        assert (message["In-Reply-To"], message["Bcc"]) == (None, None)


def test_nobody_is_reminded_anywhere_else(directory: Directory) -> None:
    assert why_not(HELD, directory) is None
    assert why_not(UNCERTAIN, directory) is None
    waiting = replace(UNCERTAIN, due_at=NOW + timedelta(hours=1))
    no_route = directory.interventions["mediation"].model_copy(update={"routes": {}})
    cases = {
        "still being tried": (waiting, directory),
        "the address has changed": (HELD, elsewhere(directory, email="new@example.com")),
        "no address": (HELD, elsewhere(directory, email=None)),
        "no longer sends mediation to nobody": (replace(HELD, agency="nobody"), directory),
        "no longer sends gone to": (replace(HELD, intervention="gone"), directory),
        "no longer sends mediation to nottingham-city-homes": (
            HELD,
            replace(directory, interventions={"mediation": no_route}),
        ),
        "no longer sends mediation to victim-care": (
            replace(HELD, agency="victim-care", recipient="admin@nottsvictimcare.org.uk"),
            directory,
        ),
    }
    for words, (held, known) in cases.items():
        assert words in (why_not(held, known) or ""), words


# `templates check`


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TEMPLATES, tmp_path / "email"))


def test_the_shipped_templates_pass(directory: Directory) -> None:
    assert check_reminder(directory, LETTERS) == []


@pytest.mark.parametrize(
    ("part", "old", "new", "words"),
    [
        ("subject.txt.j2", "Reminder", "Erinnerung für", "printable ASCII"),
        ("subject.txt.j2", "Reminder", "Reminder" * 20, "not too long"),
        ("subject.txt.j2", "Reminder", "{{ referral.case_reference }}", "case reference"),
        ("body.txt.j2", "{{ referral.acknowledge_by }}", "", "referral.acknowledge_by"),
        ("body.txt.j2", "{{ referral.relayed_on }}", "", "referral.relayed_on"),
        ("body.html.j2", "{{ sender.email }}", "", "sender.email"),
        ("body.html.j2", "{{ agency.title }}", "<img src='x'>", "<img>"),
        ("body.html.j2", "{{ agency.title }}", "{{ agency.title|safe }}", "safe"),
        ("body.html.j2", "{{ agency.title }}", "{{ people.victim.name }}", "people"),
        ("body.txt.j2", "{% if sender is not none %}", "{% if sender %", "not a template"),
    ],
)
def test_a_faulty_template_is_found(
    part: str, old: str, new: str, words: str, templates: Path, directory: Directory
) -> None:
    file = templates / "_reminder" / part
    source = file.read_text(encoding="utf-8")
    assert old in source
    file.write_text(source.replace(old, new), encoding="utf-8")
    problems = check_reminder(directory, environment(templates))
    assert any(words in f"{one.what} {one.remedy}" for one in problems)
    assert all(one.where.startswith(f"templates/email/_reminder/{part}") for one in problems)


def test_a_missing_template_is_found(templates: Path, directory: Directory) -> None:
    (templates / "_reminder" / "body.html.j2").unlink()
    [problem] = check_reminder(directory, environment(templates))
    assert "_reminder/body.html.j2, which is not there" in problem.what
