"""`suggest`, `new`, `schema` and `check`: writing a case and judging it."""

from __future__ import annotations

import json

import click

from referrals.cli.common import (
    case_argument,
    case_options,
    complete_intervention,
    intervention_argument,
    json_option,
    print_findings,
    print_json,
    read_case_file,
    service,
)
from referrals.eligibility import Assessment
from referrals.telling import assessment_json

_OF_THE_ADDRESS = ("GEN-004", "GEN-005")


def print_assessment(assessment: Assessment, *, brief: bool = False, case: str = "CASE") -> None:
    """What we know of one intervention; `brief` leaves out what concerns the address alone."""
    one = assessment.intervention
    if not assessment.may_fit:
        mark, word = click.style("✗", fg="red", bold=True), "does not fit"
    elif not assessment.ready:
        mark, word = click.style("…", fg="yellow", bold=True), "may fit: something is missing"
    else:
        mark, word = click.style("✓", fg="green", bold=True), "fits"
    click.echo(f"{mark} {click.style(one.id, bold=True)}: {word}")
    if assessment.agency and assessment.may_fit:
        address = assessment.agency.email or "no address: drafts only"
        click.echo(f"  to {assessment.agency.title}, {address}")
    findings = assessment.blocks if brief and not assessment.fits else assessment.findings
    if brief:
        findings = tuple(one for one in findings if one.code not in _OF_THE_ADDRESS)
    print_findings(findings)
    problems = assessment.problems
    if brief and len(problems) > 3:
        click.echo(
            f"  needs {len(problems)} more facts: referrals check {case} {one.id} lists them"
        )
    else:
        for problem in problems:
            click.echo(f"  needs  {problem}")


@click.command("suggest")
@case_argument
@case_options
@json_option
def suggest_command(case: str, row: int | None, changes: tuple[str, ...], as_json: bool) -> None:
    """Say for each intervention whether it fits the case and, if not, why.

    CASE is a JSON or CSV file, or - for standard input.

    \b
    Example: referrals suggest case.json
    """
    using = service()
    assessments = using.suggest(*read_case_file(using, case, row, changes))
    if as_json:
        print_json([assessment_json(assessment) for assessment in assessments])
        return
    for assessment in sorted(assessments, key=lambda one: (not one.ready, not one.may_fit)):
        print_assessment(assessment, brief=True, case=case)
    if any(finding.code in _OF_THE_ADDRESS for one in assessments for finding in one.findings):
        click.echo("\nSome addresses were not verified lately or have a note: `check` shows them.")


@click.command("check")
@case_argument
@intervention_argument(nargs=-1)
@case_options
@json_option
def check_command(
    case: str,
    intervention: tuple[str, ...],
    row: int | None,
    changes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check a case for the interventions named, or for those that it has answers for.

    Says every problem and every rule's finding. Exit code 3 if something has to be put right, 4
    if a rule blocks.

    \b
    Examples:
      referrals check case.json
      referrals check case.csv --row 2 mediation
    """
    using = service()
    found, place = read_case_file(using, case, row, changes)
    asked = list(dict.fromkeys(intervention or found.answers))
    if not asked:
        raise click.UsageError(
            "The case has answers for no intervention: name one, as in "
            "`referrals check case.json mediation`."
        )
    assessments = [using.assess(found, place, name) for name in asked]
    if as_json:
        print_json([assessment_json(assessment) for assessment in assessments])
    else:
        for assessment in assessments:
            print_assessment(assessment)
    if any(assessment.problems for assessment in assessments):
        raise click.exceptions.Exit(3)
    if not all(assessment.fits for assessment in assessments):
        raise click.exceptions.Exit(4)


@click.command("new")
@intervention_argument(nargs=-1)
@click.option("--csv", "as_csv", is_flag=True, help="Print it as a CSV with one row.")
@json_option
def new_command(intervention: tuple[str, ...], as_csv: bool, as_json: bool) -> None:
    """Print a made-up case, complete for the interventions named (or for all).

    \b
    Examples:
      referrals new mediation > case.json
      referrals new --csv victim-hardening > case.csv
    """
    from referrals.samples import sample_case

    if as_csv and as_json:
        raise click.UsageError("Choose one of --csv and --json.")
    using = service()
    chosen = intervention or tuple(sorted(using.directory.interventions))
    case = sample_case(using.directory, chosen, using.today())
    if not as_csv:
        click.echo(json.dumps(case, indent=2, ensure_ascii=False))
        return
    import csv
    import io

    from referrals.case_files import flatten

    cells = dict(flatten(case))
    rows = io.StringIO(newline="")
    writer = csv.writer(rows)
    writer.writerow(cells)
    writer.writerow(cells.values())
    click.echo(rows.getvalue(), nl=False)


@click.command("schema")
@click.argument("intervention", required=False, shell_complete=complete_intervention)
@json_option
def schema_command(
    intervention: str | None,
    as_json: bool,  # noqa: ARG001 - it is JSON either way
) -> None:
    """Print the JSON Schema (2020-12) of a case; for one intervention, with what it needs.

    \b
    Example: referrals schema mediation
    """
    from referrals.schema import case_schema

    using = service()
    chosen = using.directory.intervention(intervention) if intervention else None
    print_json(case_schema(using.directory, chosen))
