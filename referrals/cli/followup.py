"""`due` and `ack`: whose answer is late, a reminder to them, and that it has come."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from referrals import bootstrap
from referrals.bootstrap import open_outbox
from referrals.cli.common import json_option, print_json
from referrals.cli.held import counted, days_words
from referrals.cli.hold import holds_by_agency
from referrals.delivery import DeliveryStatus
from referrals.errors import DraftError, NotInOutbox, NotPossibleNow
from referrals.telling import agency_title, held_json, late_json, when_late
from referrals.texts import day_words

if TYPE_CHECKING:
    from referrals.directory import Directory
    from referrals.drafts import Draft
    from referrals.holding import Hold
    from referrals.message import Sender
    from referrals.ports import Outbox
    from referrals.queueing import Held
    from referrals.service import Service


@dataclass(frozen=True)
class _Reminded:
    """What became of the reminder of one referral; a draft, or why there is none."""

    draft: Draft | None
    why_not: str | None = None
    fault: DraftError | None = None


@click.command("due")
@click.argument("references", metavar="[REFERENCE]...", nargs=-1)
@click.option("--draft", "drafting", is_flag=True, help="Draft a reminder to each.")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the drafts. [default: outbox/drafts]",
)
@click.option("--beside", is_flag=True, help="If another draft has the name, write name-2.")
@click.option("--from", "address", metavar="EMAIL", help="From of the drafts; see above.")
@click.option("--name", default="", help="Name beside --from.")
@json_option
def due_command(
    references: tuple[str, ...],
    drafting: bool,
    out: Path | None,
    beside: bool,
    address: str | None,
    name: str,
    as_json: bool,
) -> None:
    """List referrals whose answer is late, or only those named; with --draft, draft reminders.

    A reminder is an .eml draft that opens ready to edit and send. It gives our reference, the case
    reference, the intervention and the days, and names nobody, so it can be made after the
    content was forgotten. It goes to the address that the referral went to, and only while the
    directory still has that address; where not, nothing is drafted and the reason is said (exit
    code 7). Without --from it has no From: your mail client fills in whoever opens it.

    \b
    Examples:
      referrals due
      referrals due --draft
      referrals due --draft K7QM-29TX-WCF4 --out reminders
    """
    from referrals.cli.common import service
    from referrals.settings_sources import read_settings

    if not drafting and (out or beside or address or name):
        raise click.UsageError("--out, --beside, --from and --name go with --draft.")
    if name and not address:
        raise click.UsageError("--name goes with --from.")
    settings, using = read_settings(), service()
    today = using.today()
    with open_outbox(settings) as outbox:
        late = outbox.unacknowledged(today)
        if references:
            late = _named(references, late, outbox)
        holds = holds_by_agency(outbox)
    reminded: dict[str, _Reminded] = {}
    if drafting:
        from referrals.drafts import drafts_folder

        folder = out or drafts_folder(settings.outbox)
        going = [one for one in late if one.agency not in holds]
        reminded = {
            one.reference: _Reminded(None, why_not=f"{_held_words(holds[one.agency])}.")
            for one in late
            if one.agency in holds
        } | _draft(going, using, folder, _sender(address, name), beside=beside)
    if as_json:
        print_json(
            [
                {**_late_json(one, using.directory, today, reminded), "held": one.agency in holds}
                for one in late
            ]
        )
    elif drafting:
        _print_drafts(late, using.directory, reminded)
    else:
        _print_late(late, using.directory, today, holds)
    _exit(reminded)


def _named(references: tuple[str, ...], late: list[Held], outbox: Outbox) -> list[Held]:
    """Those of the late ones that were named.

    Raises:
        NotInOutbox, NotPossibleNow: one is not late, and why.
    """
    wanted = dict.fromkeys(reference.upper() for reference in references)
    for reference in wanted:
        if any(one.reference == reference for one in late):
            continue
        found = outbox.held(reference=reference, limit=1)
        if not found:
            raise NotInOutbox(f"{reference} is not in the outbox.")
        [held] = found
        if held.acknowledged_on:
            why = f"was answered: recorded on {day_words(held.acknowledged_on)}"
        elif held.status in (DeliveryStatus.RELAYED, DeliveryStatus.UNCERTAIN):
            why = f"is not late: an answer was asked for by {day_words(held.acknowledge_by)}"
        else:
            why = f"is {held.status}, so nobody can have answered it"
        raise NotPossibleNow(f"{reference} {why}.")
    return [one for one in late if one.reference in wanted]


def _sender(address: str | None, name: str) -> Sender | None:
    from referrals.message import Sender
    from referrals.texts import check_email

    if address is None:
        return None
    try:
        return Sender(name, check_email(address))
    except ValueError:
        raise click.BadParameter("is not an e-mail address.", param_hint="--from") from None


def _draft(
    late: list[Held], using: Service, folder: Path, sender: Sender | None, *, beside: bool
) -> dict[str, _Reminded]:
    """By reference. One that can't be made or saved does not keep the others from it."""
    from referrals.drafts import save_draft
    from referrals.reminder import file_name, reminder, why_not

    newest = {one.reference: one for one in sorted(late, key=lambda one: one.id)}
    reminded: dict[str, _Reminded] = {}
    for reference, one in newest.items():
        why = why_not(one, using.directory)
        if why is not None:
            reminded[reference] = _Reminded(None, why_not=why)
            continue
        content = reminder(one, using.directory, using.templates, using.mail.marking, sender)
        try:
            draft = save_draft(folder, file_name(one), content, beside=beside)
        except DraftError as error:
            reminded[reference] = _Reminded(None, why_not=str(error), fault=error)
        else:
            reminded[reference] = _Reminded(draft)
    return reminded


def _exit(reminded: dict[str, _Reminded]) -> None:
    if any(one.fault for one in reminded.values()):
        raise click.exceptions.Exit(6)
    if any(one.why_not for one in reminded.values()):
        raise click.exceptions.Exit(7)


def _late_json(
    held: Held, directory: Directory, today: date, reminded: dict[str, _Reminded]
) -> dict[str, Any]:
    told: dict[str, Any] = {**late_json(held, directory, today)}
    if held.reference in reminded:
        one = reminded[held.reference]
        draft = one.draft
        told["reminder"] = {"path": str(draft.path), "written": draft.written} if draft else None
        told["not_drafted"] = one.why_not
    return told


def _held_words(hold: Hold) -> str:
    return f"{hold.agency} is {hold.words}"


def _print_late(
    late: list[Held], directory: Directory, today: date, holds: Mapping[str, Hold]
) -> None:
    """A block each, since a row would break the references; elsewhere one line with tabs."""
    if not late:
        click.echo("Nothing is overdue.")
        return
    for one in late:
        agency = agency_title(one, directory)
        overdue = f"{days_words((today - one.acknowledge_by).days)} late"
        hold = holds.get(one.agency)
        next_step = _held_words(hold) if hold else when_late(one, directory)
        if sys.stdout.isatty():
            click.echo(f"{click.style(agency, bold=True)}: {overdue}")
            click.echo(f"  {one.reference} {one.intervention}, case {one.case_reference}")
            click.echo(f"  next step: {next_step}")
        else:
            told = (agency, overdue, one.reference, one.intervention, one.case_reference, next_step)
            click.echo("\t".join(told))
    click.echo(
        "`referrals due --draft` drafts reminders; `referrals ack REFERENCE` records an answer."
    )


def _print_drafts(late: list[Held], directory: Directory, reminded: dict[str, _Reminded]) -> None:
    by_reference = {one.reference: one for one in late}
    for reference, one in reminded.items():
        held = by_reference[reference]
        agency = directory.agencies.get(held.agency)
        state = "not drafted"
        if one.draft is not None:
            state = "reminder drafted" if one.draft.written else "drafted before, unchanged"
        click.echo(f"{click.style(reference, bold=True)} {held.intervention}: {state}")
        if one.draft is not None:
            click.echo(f"  {one.draft.path}")
            click.echo(f"  to {agency_title(held, directory)}, {held.recipient}")
        else:
            click.echo(f"  {one.why_not}")
        if agency is not None and agency.alert:
            click.echo(f"  note: {agency.alert}")
    made = [one.draft for one in reminded.values() if one.draft is not None]
    if not late:
        click.echo("Nothing is overdue.")
    elif made:
        click.echo(f"{counted(len(made), 'reminder')} to look over and send yourself.")


@click.command("ack")
@click.argument("reference", metavar="REFERENCE")
@json_option
def ack_command(reference: str, as_json: bool) -> None:
    """Record that the agency has answered for a referral.

    \b
    Example: referrals ack K7QM-29TX-WCF4
    """
    from referrals.cli.common import service
    from referrals.settings_sources import read_settings

    today = service().today()
    with open_outbox(read_settings()) as outbox:
        held = outbox.acknowledge(reference.upper(), today, bootstrap.now())
    if as_json:
        print_json(held_json(held))
    else:
        click.echo(
            f"{click.style(held.reference, bold=True)} {held.intervention}: answered, recorded on "
            f"{day_words(today)}"
        )
