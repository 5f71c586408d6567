"""Proves what the reminder's templates do, as `template_check` does for the letters."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime

from jinja2.sandbox import ImmutableSandboxedEnvironment

from referrals.delivery import DeliveryStatus
from referrals.directory import Directory
from referrals.errors import ConfigurationError, MessageRefused, Problem
from referrals.message import LONGEST_SUBJECT, Sender, compose_draft
from referrals.queueing import Held
from referrals.reminder import FOLDER, reminder_letter
from referrals.rendering import Letter, shown
from referrals.template_check import Page, parsed_parts, unsafe_parts

_QUEUED = datetime(1901, 2, 3, 12, tzinfo=UTC)
_RELAYED = datetime(1902, 3, 4, 12, tzinfo=UTC)
_BY = date(1903, 4, 5)
_SENDER = Sender("Canary Sender", "canary@example.com")
_LONGEST_MARKING = "M" * 60


def check_reminder(directory: Directory, templates: ImmutableSandboxedEnvironment) -> list[Problem]:
    """Every problem with the reminder's templates; none if they may be used."""
    problems = list(_read_statically(templates))
    if not problems:
        for held in _examples(directory):
            for sender in (None, _SENDER):
                problems += _rendered(held, directory, templates, sender)
    return list(dict.fromkeys(problems))


def _read_statically(templates: ImmutableSandboxedEnvironment) -> Iterator[Problem]:
    for name, tree in parsed_parts(templates, FOLDER):
        if isinstance(tree, Problem):
            yield tree
        else:
            yield from unsafe_parts(name, tree)


def _examples(directory: Directory) -> Iterator[Held]:
    """The one with the longest title, relayed and uncertain."""
    intervention = max(directory.interventions.values(), key=lambda one: len(one.title))
    for status in (DeliveryStatus.RELAYED, DeliveryStatus.UNCERTAIN):
        yield Held(
            id=1,
            reference="K7QM-29TX-WCF4",
            case_reference="CANARY-1",
            intervention=intervention.id,
            agency=next(iter(intervention.routes.values())),
            recipient="to@example.com",
            message_id="<canary@example.com>",
            sha256="",
            size=0,
            status=status,
            queued_at=_QUEUED,
            due_at=None,
            attempts=1,
            maybe_doubled=False,
            relayed_at=_RELAYED if status is DeliveryStatus.RELAYED else None,
            acknowledge_by=_BY,
            acknowledged_on=None,
            purged_at=None,
        )


def _rendered(
    held: Held,
    directory: Directory,
    templates: ImmutableSandboxedEnvironment,
    sender: Sender | None,
) -> Iterator[Problem]:
    try:
        letter = reminder_letter(held, directory, templates, "MARKING", sender)
    except ConfigurationError as error:
        yield from error.problems
        return
    yield from _subject(letter)
    page = Page()
    page.feed(letter.html)
    page.close()
    for what in sorted(page.faults):
        yield _problem("body.html.j2", what, "Mail clients drop or distrust it: take it out.")
    for what, text in _told(held, directory, sender):
        for part, content in (("body.txt.j2", letter.text), ("body.html.j2", page.text)):
            if text not in content:
                yield _problem(part, f"does not tell {what}.", "Tell the same facts in both.")


def _subject(letter: Letter) -> Iterator[Problem]:
    try:
        compose_draft(letter, _SENDER, None, _LONGEST_MARKING)
    except MessageRefused:
        yield _problem(
            "subject.txt.j2",
            "must give one line of printable ASCII, not too long.",
            f"Use {LONGEST_SUBJECT - len(_LONGEST_MARKING)} characters at most.",
        )
    if "CANARY-1" in letter.subject:
        yield _problem(
            "subject.txt.j2",
            "puts the case reference into the subject.",
            "Take it out: subjects are shown on locked screens and kept in logs.",
        )


def _told(held: Held, directory: Directory, sender: Sender | None) -> Iterator[tuple[str, str]]:
    yield "referral.reference", held.reference
    yield "referral.case_reference", held.case_reference
    yield "referral.acknowledge_by", str(shown(held.acknowledge_by))
    if held.relayed_at:
        yield "referral.relayed_on", str(shown(held.relayed_at.date()))
    yield "intervention.title", directory.interventions[held.intervention].title
    yield "agency.title", directory.agencies[held.agency].title
    if sender is not None:
        yield "sender.name", sender.name
        yield "sender.email", sender.address


def _problem(part: str, what: str, remedy: str) -> Problem:
    return Problem(f"templates/email/{FOLDER}/{part}", what, remedy, "reminder")
