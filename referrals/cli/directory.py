"""`list` and `show`: what there is."""

from __future__ import annotations

from datetime import date
from typing import Any

import click

from referrals.cli.common import (
    intervention_argument,
    json_option,
    print_json,
    print_table,
    service,
)
from referrals.directory import Agency, Directory, Intervention, Question


def _routes(intervention: Intervention, directory: Directory) -> list[tuple[str, Agency]]:
    return [
        (place_id, directory.agencies[agency_id])
        for place_id, agency_id in intervention.routes.items()
    ]


def _agency_json(agency: Agency, today: date) -> dict[str, Any]:
    return {
        "id": agency.id,
        "title": agency.title,
        "email": agency.email,
        "phone": agency.phone,
        "source": agency.source,
        "verified_on": agency.verified_on.isoformat() if agency.verified_on else None,
        "verified": agency.is_verified(today),
        "alert": agency.alert or None,
    }


def _question_json(question: Question) -> dict[str, Any]:
    return {
        "name": question.name,
        "label": question.label,
        "type": str(question.type),
        "required": question.required,
        "hint": question.hint,
        "sensitivity": str(question.sensitivity),
        "options": [
            {"value": option.value, "label": option.label, "no_address": option.no_address}
            for option in question.options
        ],
    }


def _intervention_json(
    intervention: Intervention, directory: Directory, today: date
) -> dict[str, Any]:
    return {
        "id": intervention.id,
        "title": intervention.title,
        "summary": intervention.summary,
        "source": intervention.source,
        "areas": list(intervention.areas),
        "routes": {
            place_id: _agency_json(agency, today)
            for place_id, agency in _routes(intervention, directory)
        },
        "acknowledge_within_days": intervention.acknowledge_within_days,
    }


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
        print_json([_intervention_json(one, directory, today) for one in interventions])
        return
    rows = []
    for one in interventions:
        agencies: dict[str, list[str]] = {}
        for place_id, agency in _routes(one, directory):
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
        shown = _intervention_json(one, directory, today)
        shown["facts"] = {
            "required": list(one.facts.required),
            "optional": list(one.facts.optional),
        }
        shown["fields"] = [_question_json(question) for question in one.fields]
        shown["rules"] = [rule.model_dump(mode="json") for rule in one.rules]
        print_json(shown)
        return
    click.echo(click.style(one.title, bold=True) + f"  ({one.id})")
    click.echo(f"{one.summary}\nSource: {one.source}\n")
    for place_id, agency in _routes(one, directory):
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
