"""`audit`: the disclosure log, listed, written out and verified."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import click

from referrals.bootstrap import open_outbox
from referrals.cli.common import json_option, print_json, print_table
from referrals.cli.held import counted
from referrals.settings_sources import read_settings
from referrals.telling import chain_json, entry_json

if TYPE_CHECKING:
    from referrals.audit import Entry, Noted

_Command = TypeVar("_Command")


@click.group("audit")
def audit_command() -> None:
    """The disclosure log: who told whom what kind of thing, when and on what ground."""


def _filters(command: _Command) -> _Command:
    since = click.option(
        "--since",
        type=click.DateTime(["%Y-%m-%d"]),
        metavar="YYYY-MM-DD",
        help="Only entries of that day (UTC) and later.",
    )
    case = click.option("--case", "case_reference", help="Only the entries of one case reference.")
    return case(since(command))  # type: ignore[type-var]


def _chosen(case_reference: str | None, since: datetime | None) -> Iterator[Entry]:
    start = since.replace(tzinfo=UTC) if since else None
    with open_outbox(read_settings()) as outbox:
        for entry in outbox.audit(case_reference.upper() if case_reference else None):
            if start is None or entry.at >= start:
                yield entry


@audit_command.command("list")
@_filters
@json_option
def audit_list(case_reference: str | None, since: datetime | None, as_json: bool) -> None:
    """List the entries, the oldest first.

    \b
    Example: referrals audit list --case CASE-1 --since 2026-11-01
    """
    entries = list(_chosen(case_reference, since))
    if as_json:
        print_json([entry_json(entry) for entry in entries])
        return
    rows = [
        [str(entry.number), f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.actor, entry.action,
         entry.reference, entry.case_reference]
        for entry in entries
    ]  # fmt: skip
    print_table(["No.", "When (UTC)", "Who", "What", "Reference", "Case"], rows)
    if not entries:
        click.echo("No entries.")


@audit_command.command("export")
@_filters
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="A line of JSON an entry; or CSV, in which nothing is a formula.",
)
@json_option
def audit_export(
    case_reference: str | None,
    since: datetime | None,
    form: str,
    as_json: bool,
) -> None:
    """Print every entry, the oldest first, for other programs.

    \b
    Example: referrals audit export --format csv --since 2026-11-01 > audit.csv
    """
    import json

    from referrals.audit import as_csv

    if as_json and form == "csv":
        raise click.UsageError("--json and --format csv exclude each other.")
    entries = _chosen(case_reference, since)
    if form == "csv":
        for line in as_csv(entries):
            click.echo(line, nl=False)
        return
    for entry in entries:
        click.echo(json.dumps(entry_json(entry), sort_keys=True))


def _noted(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Noted | None:
    from referrals.audit import Noted

    if value is None:
        return None
    try:
        return Noted.parse(value)
    except ValueError:
        raise click.BadParameter(
            "give NUMBER:HASH as `audit verify` prints it; 16 digits of the hash are enough."
        ) from None


@audit_command.command("verify")
@click.option(
    "--expect",
    metavar="NUMBER:HASH",
    callback=_noted,
    help="An entry that has to be there, as an earlier `audit verify` printed it.",
)
@json_option
def audit_verify(expect: Noted | None, as_json: bool) -> None:
    """Prove that no entry was altered, taken out or put in; exit code 12 if one was.

    Prints the number and hash of the last entry. Note them elsewhere and give them to --expect
    later: a log that was cut short at its end, or made anew as a whole, shows nothing by itself.

    \b
    Example: referrals audit verify --expect 1204:5f3c0a8e91d2b764
    """
    with open_outbox(read_settings()) as outbox:
        chain = chain_json(outbox.audit(), expect)
    if as_json:
        print_json(chain)
    else:
        for one in chain["breaks"]:
            where = f"{click.style('broken', fg='red', bold=True)} at {one['number']}"
            click.echo(f"{where}: {one['what']}")
        entries = counted(chain["entries"], "entry", "entries")
        if chain["ok"]:
            click.echo(f"The log is whole: {entries}.")
        elif expect:
            click.echo(f"The log was tampered with, or the note is another log's: {entries}.")
        else:
            click.echo(f"The log was tampered with: {entries}.")
        if chain["ok"]:
            click.echo(f"Its end, to note elsewhere and give to --expect later: {chain['noted']}")
    if not chain["ok"]:
        raise click.exceptions.Exit(12)
