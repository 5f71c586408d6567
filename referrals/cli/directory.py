"""`list`, `show` and `directory`: what there is, who takes it, and whether addresses are right."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

import click

from referrals.cli.common import (
    intervention_argument,
    json_option,
    print_json,
    print_table,
    service,
)
from referrals.telling import address_json, intervention_json, routes_of, whole_intervention_json

if TYPE_CHECKING:
    from referrals.directory import Agency, Directory
    from referrals.verification import Verification


@click.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List the interventions, where they are offered, and who takes them.

    \b
    Example: referrals list
    """
    using = service()
    directory, today = using.directory, using.today()
    interventions = sorted(directory.interventions.values(), key=lambda one: one.id)
    if as_json:
        print_json([intervention_json(one, directory, today) for one in interventions])
        return
    rows = []
    for one in interventions:
        agencies: dict[str, list[str]] = {}
        for place_id, agency in routes_of(one, directory):
            address = agency.email or "no address: drafts only"
            agencies.setdefault(f"{agency.title}, {address}", []).append(place_id)
        for agency_text, place_ids in agencies.items():
            rows.append([one.id, ", ".join(place_ids), agency_text])
    print_table(["Intervention", "Area", "Agency"], rows)


@click.command("show")
@intervention_argument()
@json_option
def show_command(intervention: str, as_json: bool) -> None:
    """Show one intervention: what it is, who takes it, its fields and its rules.

    \b
    Example: referrals show mediation
    """
    using = service()
    directory, today = using.directory, using.today()
    one = directory.intervention(intervention)
    if as_json:
        print_json(whole_intervention_json(one, directory, today))
        return
    click.echo(click.style(one.title, bold=True) + f"  ({one.id})")
    click.echo(f"{one.summary}\nSource: {one.source}\n")
    for place_id, agency in routes_of(one, directory):
        click.echo(f"{place_id}: {agency.title}, {agency.email or 'no address: drafts only'}")
        if agency.phone:
            click.echo(f"  phone: {agency.phone}")
        checked = f"checked {agency.verified_on}" if agency.verified_on else "never checked by us"
        click.echo(f"  {checked}; source: {agency.source}")
        if agency.alert:
            click.echo(f"  note: {agency.alert}")
    click.echo(f"\n{click.style('Facts of the case it needs', bold=True)}")
    for path in one.facts.required:
        click.echo(f"  {path}")
    click.echo(click.style("and is told if they are there", bold=True))
    for path in one.facts.optional:
        click.echo(f"  {path}")
    click.echo(f"\n{click.style('Its own fields', bold=True)} (answers.{one.id}.…)")
    for question in one.fields:
        required = "required" if question.required else "optional"
        click.echo(f"  {question.name}  ({question.type}, {required}) {question.label}")
        if question.hint:
            click.echo(f"      {question.hint}")
        for option in question.options:
            note = "  [no address]" if option.no_address else ""
            click.echo(f"      {option.value}: {option.label}{note}")
    click.echo(f"\n{click.style('Rules', bold=True)}")
    for rule in one.rules:
        lenient = "; a supervisor may set it aside" if rule.override == "supervisor" else ""
        click.echo(f"  {rule.code} {rule.level}{lenient}: {rule.text}")


# Addresses


@click.group("directory")
def directory_command() -> None:
    """Who is written to, at which address, and whether somebody has checked it."""


@directory_command.command("list")
@json_option
def directory_list(as_json: bool) -> None:
    """List every agency: its address, what is sent there, and who checked it when.

    \b
    Example: referrals directory list
    """
    from referrals.addresses import addresses

    using = service()
    today = using.today()
    found = addresses(using.directory, today)
    if as_json:
        print_json([address_json(one, today) for one in found])
        return
    rows = [
        [
            one.agency.id,
            ", ".join(part for part in (one.agency.email, one.agency.phone) if part),
            ", ".join(each.intervention.id for each in one.receives),
            one.words,
        ]
        for one in found
    ]
    print_table(["Agency", "Address", "Receives", "Checked"], rows)


@directory_command.command("check")
@click.option(
    "--within",
    "days",
    type=click.IntRange(0),
    default=30,
    show_default=True,
    metavar="DAYS",
    help="Tell of addresses that are to be checked again so soon.",
)
@json_option
def directory_check(days: int, as_json: bool) -> None:
    """Check config/, and say which addresses somebody has to ask about.

    Exit code 7 if an address was never checked or not within its review time; 5 if config/ has
    mistakes, with all of them; else 0. Alerts, and what is to be checked soon, are only said.

    \b
    Example: referrals directory check --within 14
    """
    from referrals.addresses import Standing, addresses
    from referrals.cli.hold import read_holds
    from referrals.settings_sources import read_settings

    using = service()
    today = using.today()
    found = addresses(using.directory, today, days)
    wanting = [one for one in found if one.is_wanting]
    holds = read_holds(read_settings())
    if as_json:
        agencies = [{**address_json(one, today), "held": one.agency.id in holds} for one in found]
        print_json({"ok": not wanting, "agencies": agencies})
    else:
        for one in found:
            agency = one.agency
            word, colour = ("ask", "red") if one.is_wanting else ("ok", "green")
            if one.standing in (Standing.REVIEW_SOON, Standing.NO_ADDRESS):
                word, colour = "note", "yellow"
            address = f" {agency.email}:" if agency.email else ""
            click.echo(
                f"{click.style(f'{word:<5}', fg=colour, bold=True)}"
                f"{agency.id}:{address} {one.words}"
            )
            if agency.id in holds:
                click.echo(f"     {holds[agency.id].words}")
            if agency.alert:
                click.echo(f"     note: {agency.alert}")
        if wanting:
            click.echo(
                "Ask each agency whether the address is right, then: "
                "referrals directory verify AGENCY"
            )
    if wanting:
        raise click.exceptions.Exit(7)


def complete_agency(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from referrals.errors import ReferralsError

    try:
        return [
            name for name in sorted(service().directory.agencies) if name.startswith(incomplete)
        ]
    except ReferralsError:
        return []


def known_agency(directory: Directory, name: str) -> Agency:
    """Raises click.BadParameter, with those that there are."""
    try:
        return directory.agencies[name]
    except KeyError:
        from difflib import get_close_matches

        close = get_close_matches(name, directory.agencies, 1)
        hint = f"Did you mean {close[0]}? " if close else ""
        known = ", ".join(directory.agencies)
        raise click.BadParameter(
            f"there is no such agency. {hint}There are: {known}.", param_hint="AGENCY"
        ) from None


@directory_command.command("verify")
@click.argument("agency", metavar="AGENCY", shell_complete=complete_agency)
@click.option(
    "--on", metavar="DATE", help="When they were asked: 2026-01-31 or 31/01/2026. [today]"
)
@click.option("--by", metavar="NAME", help="Who asked them. [you]")
@click.option("--withdraw", is_flag=True, help="Take back what was recorded of its address.")
@json_option
def directory_verify(
    agency: str, on: str | None, by: str | None, withdraw: bool, as_json: bool
) -> None:
    """Record that somebody of yours asked AGENCY, and that its address is right.

    It is kept in the outbox, with an entry in the audit, and holds for this very address: if
    config/ has another one later, that was never checked. The later of it and of verified_on in
    agencies.toml counts.

    \b
    Examples:
      referrals directory verify victim-care --on 2026-01-31 --by "Jo Bloggs"
      referrals directory verify victim-care --withdraw
    """
    from referrals import bootstrap
    from referrals.addresses import addresses
    from referrals.errors import NoAddress
    from referrals.settings_sources import read_settings

    if withdraw and (on or by):
        raise click.UsageError("--on and --by do not go with --withdraw.")
    settings, using = read_settings(), service()
    today, now = using.today(), bootstrap.now()
    one = known_agency(using.directory, agency)
    if one.email is None:
        raise NoAddress(f"The directory has no address for {one.title}: there is none to verify.")
    with bootstrap.open_outbox(settings) as outbox:
        if withdraw:
            outbox.withdraw(one.id, one.email, now)
        else:
            outbox.verify(_verification(one, on or today, by or outbox.actor, today), now)
    after = service().directory
    [told] = [each for each in addresses(after, today) if each.agency.id == one.id]
    if as_json:
        print_json(address_json(told, today))
        return
    click.echo(f"{click.style(one.id, bold=True)} {one.email}: {told.words}.")
    if told.agency.alert:
        click.echo(f"  note: {told.agency.alert}")


def _verification(agency: Agency, on: date | str, by: str, today: date) -> Verification:
    from pydantic import ValidationError

    from referrals.problems import problems_of
    from referrals.verification import Verification

    try:
        return Verification.of(agency, on, by, today)
    except ValidationError as error:
        [problem, *_] = problems_of(error)
        text = f"{problem.what} {problem.remedy}"
        raise click.BadParameter(text, param_hint=f"--{problem.where}") from None
