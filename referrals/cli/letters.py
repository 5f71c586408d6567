"""`preview` and `draft`: the e-mail on the screen, and as a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from referrals.cli.cases import print_assessment
from referrals.cli.common import (
    case_argument,
    case_options,
    complete_intervention_or_case,
    intervention_argument,
    json_option,
    print_findings,
    print_json,
    read_case_file,
    service,
)
from referrals.cli.faults import exit_code, report
from referrals.drafts import Draft, drafts_folder, save_draft
from referrals.errors import DraftError, ReferralsError
from referrals.service import Referral
from referrals.telling import assessment_json, described, headers_of, referral_json


@click.command("preview")
@intervention_argument()
@case_argument
@case_options
@click.option(
    "--part",
    type=click.Choice(["all", "text", "html", "eml"]),
    default="all",
    help="What to print: header and text (all), or one part as it is.",
)
@click.option("--mailto", is_flag=True, help="Print a mailto: link instead, where it fits.")
@json_option
def preview_command(
    intervention: str,
    case: str,
    row: int | None,
    changes: tuple[str, ...],
    part: str,
    mailto: bool,
    as_json: bool,
) -> None:
    """Show the e-mail that would be made; nothing is saved or submitted.

    \b
    Examples:
      referrals preview mediation case.json
      referrals preview --part html mediation case.json > letter.html
    """
    using = service()
    using.directory.intervention(intervention)
    found, place = read_case_file(using, case, row, changes)
    referral = using.prepare(using.assess(found, place, intervention))
    link = using.mailto(referral)
    if as_json:
        print_json(
            referral_json(referral)
            | {
                "text": referral.letter.text,
                "html": referral.letter.html,
                "headers": headers_of(using.draft(referral)),
                "mailto": link,
            }
        )
        return
    if mailto:
        if link is None:
            click.echo(
                "The text is too long for a mailto: link (1,800 characters). Save a draft "
                "instead: referrals draft.",
                err=True,
            )
            raise click.exceptions.Exit(6)
        click.echo(link)
        return
    match part:
        case "text":
            click.echo(referral.letter.text, nl=False)
        case "html":
            click.echo(referral.letter.html, nl=False)
        case "eml":
            sys.stdout.buffer.write(using.draft(referral))
        case _:
            for name, value in headers_of(using.draft(referral)).items():
                click.echo(f"{click.style(name, bold=True)}: {value}")
            if not referral.agency.email:
                click.echo(f"{click.style('To', bold=True)}: (empty: for you to address)")
            click.echo(f"\n{referral.letter.text}", nl=False)
            if referral.assessment.findings and sys.stdout.isatty():
                click.echo("\n" + click.style("Not part of the e-mail:", bold=True))
                print_findings(referral.assessment.findings)


@click.command("draft")
@click.argument(
    "arguments",
    metavar="[INTERVENTION]... CASE",
    nargs=-1,
    required=True,
    shell_complete=complete_intervention_or_case,
)
@click.option("--all", "every", is_flag=True, help="Every intervention that fits the case.")
@click.option(
    "--out",
    metavar="DIR",
    help="Folder for the drafts, or - for standard output. [default: outbox/drafts]",
)
@click.option("--open", "open_it", is_flag=True, help="Open the draft in your mail client.")
@click.option("--beside", is_flag=True, help="If another draft has the name, write name-2.")
@case_options
@json_option
def draft_command(
    arguments: tuple[str, ...],
    every: bool,
    out: str | None,
    open_it: bool,
    beside: bool,
    row: int | None,
    changes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Save an e-mail as an .eml draft for each INTERVENTION, ready to edit and send.

    CASE is a JSON or CSV file, or - for standard input. Files are named by reference and
    intervention, never by a person, and a draft that is there is never written over.

    \b
    Examples:
      referrals draft mediation case.json
      referrals draft --all case.json --out drafts
      referrals new mediation | referrals draft mediation - --out -
    """
    from referrals.bootstrap import build_service
    from referrals.settings_sources import read_settings

    *names, case = arguments
    if every == bool(names):
        raise click.UsageError(
            "Name an intervention and a case, as in `referrals draft mediation case.json`; or give "
            "--all and a case."
        )
    if out == "-" and (every or len(names) > 1 or open_it or as_json):
        raise click.UsageError("--out - is for one draft, without --open and --json.")
    settings = read_settings()
    using = build_service(settings)
    for name in names:
        using.directory.intervention(name)
    found, place = read_case_file(using, case, row, changes)
    if every:
        assessments = using.suggest(found, place)
        chosen = [one for one in assessments if one.ready]
        others = [one for one in assessments if not one.ready]
    else:
        chosen = [using.assess(found, place, name) for name in dict.fromkeys(names)]
        others = []
    referrals = [using.prepare(assessment) for assessment in chosen]
    contents = [using.draft(referral) for referral in referrals]
    if out == "-":
        sys.stdout.buffer.write(contents[0])
        return
    folder = Path(out) if out else drafts_folder(settings.outbox)
    drafts, fault = _save(folder, referrals, contents, beside=beside)
    if as_json:
        shown: dict[str, Any] = {
            "drafts": [
                referral_json(referral)
                | {
                    "status": "drafted",
                    "path": str(draft.path),
                    "written": draft.written,
                    "mailto": using.mailto(referral),
                }
                for referral, draft in drafts
            ]
        }
        if every:
            shown["not_drafted"] = [assessment_json(one) for one in others]
        if fault:
            shown |= {"ok": False, "error": described(fault)}
        print_json(shown)
    else:
        for referral, draft in drafts:
            _print_draft(referral, draft)
        if others:
            click.echo(click.style("\nNot drafted:", bold=True))
        for assessment in others:
            print_assessment(assessment, brief=True, case=case)
        if fault:
            report(fault, as_json=False)
    if open_it:
        for _, draft in drafts:
            click.launch(str(draft.path))
    if fault:
        raise click.exceptions.Exit(exit_code(fault))
    if not referrals:
        raise click.exceptions.Exit(4)


def _save(
    folder: Path, referrals: list[Referral], contents: list[bytes], *, beside: bool
) -> tuple[list[tuple[Referral, Draft]], ReferralsError | None]:
    """Save each; one that can't be saved does not keep the others from it."""
    saved: list[tuple[Referral, Draft]] = []
    faults: list[DraftError] = []
    for referral, content in zip(referrals, contents, strict=True):
        try:
            draft = save_draft(folder, referral.file_name, content, beside=beside)
        except DraftError as error:
            faults.append(error)
        else:
            saved.append((referral, draft))
    if not faults:
        return saved, None
    if len(faults) == 1:
        return saved, faults[0]
    return saved, type(faults[0])("\n".join(map(str, faults)))


def _print_draft(referral: Referral, draft: Draft) -> None:
    state = "drafted" if draft.written else "drafted before, unchanged"
    click.echo(f"{click.style(referral.reference, bold=True)} {referral.intervention_id}: {state}")
    click.echo(f"  {draft.path}")
    address = referral.agency.email or "(empty: for you to address)"
    click.echo(f"  to {referral.agency.title}, {address}")
    click.echo(f"  acknowledgement asked for by {referral.acknowledge_by}")
    print_findings(referral.assessment.findings)
