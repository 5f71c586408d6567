"""`hold` and `release`: nothing goes to an agency until its address is right, then it all does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from referrals import bootstrap
from referrals.cli.common import json_option, print_json
from referrals.cli.held import counted, moment_words
from referrals.delivery import DeliveryStatus
from referrals.errors import OutboxError
from referrals.holding import Addressed, Hold, Reason, Rerouted, number_of
from referrals.telling import held_json, hold_json

if TYPE_CHECKING:
    from datetime import date

    from referrals.ports import Holds, Outbox
    from referrals.queueing import Held
    from referrals.releasing import Release
    from referrals.settings import Settings

_MOST_TOLD = 1_000


def _complete_agency(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from referrals.cli.directory import complete_agency

    return complete_agency(ctx, param, incomplete)


@click.command("hold")
@click.argument("agency", metavar="[AGENCY]", required=False, shell_complete=_complete_agency)
@click.option(
    "--because",
    "why",
    type=click.Choice([str(one) for one in Reason]),
    help=f"Why; the audit keeps it. [{Reason.WRONG_ADDRESS}]",
)
@json_option
def hold_command(agency: str | None, why: str | None, as_json: bool) -> None:
    """Let nothing go to AGENCY until it is released; without AGENCY, list those that are held.

    Its referrals are queued as before, and kept. What is being submitted when the hold begins is
    finished, and named. Once the address is corrected in config/, `referrals release AGENCY` sends
    what was kept there.

    \b
    Examples:
      referrals hold victim-care
      referrals hold victim-care --because agency-asked
      referrals hold
    """
    from referrals.settings_sources import read_settings

    settings = read_settings()
    if agency is None:
        if why is not None:
            raise click.UsageError("--because goes with AGENCY.")
        _list(settings, as_json)
        return
    with bootstrap.open_outbox(settings) as outbox:
        _check_known(agency, settings, outbox)
        hold, new = outbox.hold(agency, Reason(why or Reason.WRONG_ADDRESS), bootstrap.now())
        waiting = _waiting(outbox, agency)
        under_way = [
            one.reference
            for one in outbox.held(status=DeliveryStatus.SENDING)
            if one.agency == agency
        ]
    if as_json:
        print_json({**hold_json(hold), "new": new, "waiting": waiting, "under_way": under_way})
        return
    before = "" if new else "already "
    click.echo(f"{click.style(agency, bold=True)} is {before}{hold.words}.")
    click.echo(f"  {counted(waiting, 'message')} kept.")
    if under_way:
        click.echo(
            f"  {counted(len(under_way), 'message')} under way, which may still go out: "
            f"{', '.join(under_way)}."
        )
    click.echo(
        f"  Next step: correct its address in config/ (agencies.toml), `referrals directory verify "
        f"{agency}`, then `referrals release {agency}`."
    )


def _list(settings: Settings, as_json: bool) -> None:
    told = []
    if bootstrap.has_outbox(settings):
        with bootstrap.open_outbox(settings) as outbox:
            told = waiting_by_hold(outbox)
    if as_json:
        print_json(holds_json(told))
        return
    tell_holds(told)
    if not told:
        click.echo("No agency is held.")


def _check_known(name: str, settings: Settings, outbox: Outbox) -> None:
    """One that has left the directory may be held while something of its is in the outbox.

    So may any of those while config/ has a mistake: a hold is for when something is wrong.

    Raises:
        click.BadParameter: there is no such agency.
        ConfigurationError: that can't be known.
    """
    if outbox.addressed(name):
        return
    from referrals.cli.directory import known_agency

    known_agency(bootstrap.build_service(settings).directory, name)


def _waiting(outbox: Holds, agency: str) -> int:
    return number_of(one for one in outbox.addressed(agency) if one.waits)


# Releasing


@click.command("release")
@click.argument("agency", metavar="AGENCY", shell_complete=_complete_agency)
@click.option("--yes", is_flag=True, help="Do it; without, it is only said what would be done.")
@click.option(
    "--accept-unverified",
    is_flag=True,
    help="Reroute although nobody checked the address within its review time; recorded.",
)
@click.option(
    "--with-uncertain",
    is_flag=True,
    help="Reroute those, too, that the old address may have already.",
)
@click.option("--with-failed", is_flag=True, help="Reroute those, too, that have failed.")
@json_option
def release_command(
    agency: str,
    yes: bool,
    accept_unverified: bool,
    with_uncertain: bool,
    with_failed: bool,
    as_json: bool,
) -> None:
    """End the hold of AGENCY; what was kept goes to the address that config/ has for it now.

    Without --yes it only says what would be done. What was to go to another address is made anew:
    To, Date and Message-ID change and nothing else, and the old message is cancelled. What is
    uncertain or has failed at another address stays as it is, unless you take it along. Whatever
    another address has or may have is listed, since somebody has to see to that.

    Should it be broken off, run it again: it goes on, and the hold ends last.

    \b
    Examples:
      referrals release victim-care
      referrals release victim-care --yes
    """
    from referrals.cli.directory import known_agency
    from referrals.releasing import Choices, carry_out, disclosed, prepare_release
    from referrals.settings_sources import read_settings

    settings = read_settings()
    using = bootstrap.build_service(settings)
    today = using.today()
    choices = Choices(accept_unverified, with_uncertain, with_failed)
    done: list[Rerouted] = []
    with bootstrap.open_outbox(settings) as outbox:
        if agency not in holds_by_agency(outbox) and not outbox.addressed(agency):
            known_agency(using.directory, agency)
        one = using.directory.agencies.get(agency)
        release = prepare_release(outbox, agency, one, choices)
        if yes:
            done = carry_out(outbox, release, today, bootstrap.now)
        others_have = disclosed(outbox, release, limit=_MOST_TOLD)
    if as_json:
        print_json(
            {
                **hold_json(release.hold),
                "to": release.to,
                "verified": release.is_verified(today),
                "going": _addressed_json(release.plan.going),
                "rerouting": _addressed_json(release.plan.moving),
                "staying": _addressed_json(release.plan.staying),
                "under_way": _addressed_json(release.plan.under_way),
                "rerouted": [each.reference for each in done if each.new is not None],
                "not_intact": [each.reference for each in done if each.new is None],
                "others_have": [held_json(each) for each in others_have],
                "released": yes,
            }
        )
        return
    if yes:
        _tell_done(release, done)
    else:
        _tell_plan(release, today)
    _tell_disclosed(others_have)
    if not yes:
        click.echo("Nothing was changed. Add --yes to do it.")


def _tell_plan(release: Release, today: date) -> None:
    hold, plan, to = release.hold, release.plan, release.to
    click.echo(f"{click.style(hold.agency, bold=True)} is {hold.words}.")
    click.echo(f"  its address now: {to or 'none'}")
    if plan.going:
        click.echo(f"  would be released: {_numbers(plan.going)}")
    for recipient, told in _by_recipient(plan.moving):
        click.echo(f"  would be rerouted to {to}: {told}, now to {recipient}")
    for recipient, told in _by_recipient(plan.staying):
        click.echo(
            f"  would stay as it is: {told}, to {recipient}; --with-uncertain and --with-failed "
            "take them along"
        )
    for recipient, told in _by_recipient(plan.under_way):
        click.echo(f"  under way to {recipient}: {told}; the hold can't end before that is over")
    if release.needs_acceptance(today):
        click.echo(
            f"  Nobody has checked {to} lately: ask, then `referrals directory verify "
            f"{hold.agency}`; or add --accept-unverified, which is recorded."
        )


def _tell_done(release: Release, done: Sequence[Rerouted]) -> None:
    name, to = click.style(release.hold.agency, bold=True), release.to
    moved = sum(one.new is not None for one in done)
    click.echo(f"{name} is released.")
    if moved:
        click.echo(f"  rerouted to {to}: {counted(moved, 'message')}")
    if release.plan.going:
        click.echo(f"  released to {to}: {_numbers(release.plan.going)}")
    for recipient, told in _by_recipient(release.plan.staying):
        click.echo(f"  left as it is: {told}, to {recipient}")
    broken = [one.reference for one in done if one.new is None]
    if broken:
        click.echo(
            f"  failed, since it is not what was queued any more: {', '.join(broken)}. Refer "
            "again from the case."
        )
    if moved or release.plan.going:
        click.echo("  `referrals deliver` submits what waits.")


def _tell_disclosed(some: Sequence[Held]) -> None:
    """What somebody has to see to, since it may lie with a stranger."""
    if not some:
        return
    click.echo(
        f"{click.style('At another address', fg='red', bold=True)}, or perhaps, and not answered; "
        "somebody has to see to that:"
    )
    for one in some:
        when = f"relayed {moment_words(one.relayed_at)}" if one.relayed_at else "uncertain"
        click.echo(f"  {one.reference} {one.intervention}, {one.recipient}: {when}")
    if len(some) == _MOST_TOLD:
        click.echo(f"  and perhaps more: these are the newest {_MOST_TOLD:,}.")


def _by_recipient(some: Iterable[Addressed]) -> list[tuple[str, str]]:
    ordered = sorted(some, key=lambda one: one.recipient)
    return [
        (recipient, _numbers(list(group)))
        for recipient, group in groupby(ordered, key=lambda one: one.recipient)
    ]


def _numbers(some: Iterable[Addressed]) -> str:
    """`10 queued, 2 delayed`"""
    numbers: dict[str, int] = {}
    for one in some:
        numbers[str(one.status)] = numbers.get(str(one.status), 0) + one.number
    return ", ".join(f"{number:,} {status}" for status, number in numbers.items())


def _addressed_json(some: Iterable[Addressed]) -> list[dict[str, Any]]:
    return [{"to": one.recipient, "status": str(one.status), "number": one.number} for one in some]


# For other commands


def holds_by_agency(outbox: Holds) -> dict[str, Hold]:
    return {hold.agency: hold for hold in outbox.holds()}


def read_holds(settings: Settings) -> dict[str, Hold]:
    """As they are now, for what goes on without an outbox; nothing is made."""
    if not bootstrap.has_outbox(settings):
        return {}
    try:
        with bootstrap.open_outbox(settings) as outbox:
            return holds_by_agency(outbox)
    except OutboxError:
        return {}


def kept(held: Held, holds: Mapping[str, Hold]) -> Hold | None:
    """The hold that keeps a message from being tried; None if none does."""
    return holds.get(held.agency) if held.due_at is not None else None


def kept_words(hold: Hold) -> str:
    """What becomes of a message that a hold keeps."""
    return f"{hold.agency} is {hold.words}. It is kept until `referrals release {hold.agency}`."


def waiting_by_hold(outbox: Holds) -> list[tuple[Hold, int]]:
    """Each hold, and how many messages it keeps."""
    return [(hold, _waiting(outbox, hold.agency)) for hold in outbox.holds()]


def holds_json(holds: Iterable[tuple[Hold, int]]) -> list[dict[str, Any]]:
    return [{**hold_json(hold), "waiting": waiting} for hold, waiting in holds]


def tell_holds(holds: Iterable[tuple[Hold, int]]) -> None:
    for hold, waiting in holds:
        click.echo(
            f"{click.style(hold.agency, bold=True)} is {hold.words}; "
            f"{counted(waiting, 'message')} kept."
        )
