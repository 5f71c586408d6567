"""What the commands share: reading the case, printing, the service."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from referrals.errors import CaseInvalid, CaseUnreadable
from referrals.rules import Finding, Level

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from referrals.case import Case
    from referrals.directory import Directory, Place
    from referrals.service import Service
    from referrals.tables import Row

_Command = TypeVar("_Command", bound=Callable[..., Any])
_COLOURS = {Level.BLOCK: "red", Level.ADVISE: "yellow", Level.INFO: "blue"}


def json_option(command: _Command) -> _Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def case_argument(command: _Command) -> _Command:
    return click.argument("case", metavar="CASE", type=click.Path(path_type=str))(command)


def case_options(command: _Command) -> _Command:
    """Options of every command that reads a case."""
    command = click.option(
        "--row",
        type=click.IntRange(1),
        help="Which row of a spreadsheet; 1 is the first after the names.",
    )(command)
    return click.option(
        "--set",
        "changes",
        multiple=True,
        metavar="NAME=VALUE",
        help="Give or replace one value, such as answers.mediation.began='May'. Repeatable.",
    )(command)


def service() -> Service:
    from referrals.bootstrap import build_service
    from referrals.settings_sources import read_settings

    return build_service(read_settings())


def read_case_file(
    using: Service, case: str, row: int | None, changes: Sequence[str]
) -> tuple[Case, Place]:
    """The case from a file or standard input (`-`), with the changes made.

    Raises:
        CaseUnreadable: no such file, not a case, or several rows and none chosen.
        CaseInvalid: with every problem, those of a spreadsheet's cells among them.
    """
    from referrals.case_files import name_in_file

    found = _chosen(_rows_in(case, using.directory), case, row)
    raw, numbers = dict(found.raw), found.numbers
    problems = list(found.problems)
    if changes:
        raw, set_anew = _changed(raw, changes)
        numbers = {}
        problems = [one for one in problems if not f"{one.where}.".startswith(set_anew)]
    try:
        read = using.read(raw)
    except CaseInvalid as error:
        said = {one.where for one in problems}
        named = [replace(one, where=name_in_file(one.where, numbers)) for one in error.problems]
        raise CaseInvalid([*problems, *(one for one in named if one.where not in said)]) from None
    if problems:
        raise CaseInvalid(problems)
    return read


def _rows_in(case: str, directory: Directory) -> Iterator[Row]:
    from referrals.case_files import LARGEST_FILE, is_table, parse

    if case == "-":
        content = sys.stdin.buffer.read(LARGEST_FILE + 1)
    else:
        try:
            with Path(case).open("rb") as file:
                content = file.read(LARGEST_FILE + 1)
        except OSError as error:
            raise CaseUnreadable(f"{case} can't be read: {error.strerror}.") from None
        if Path(case).is_file() and is_table(content, case):
            from referrals.row_files import open_rows

            for found in open_rows(Path(case), directory).rows():
                raw = {key: value for key, value in found.raw.items() if key != "intervention"}
                yield replace(found, raw=raw)
            return
    from referrals.tables import Row

    for number, given in enumerate(parse(content, _named(case)), 1):
        yield Row(number, (), given)


def _named(case: str) -> str:
    return "standard input" if case == "-" else case


def _chosen(rows: Iterator[Row], case: str, wanted: int | None) -> Row:
    """Counted from 1, blank rows left out."""
    count = 0
    found: Row | None = None
    for count, row in enumerate(rows, 1):
        if wanted == count:
            return row
        found = found or row
    name = _named(case)
    if found is None:
        raise CaseUnreadable(f"{name} has no row with a case under its column names.")
    if wanted is not None:
        raise CaseUnreadable(f"{name} has {count} rows: there is no row {wanted}.")
    if count > 1:
        raise CaseUnreadable(f"{name} has {count} rows: choose one with --row.")
    return found


def _changed(raw: dict[str, Any], changes: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The case with values given or replaced, and the starts of their names."""
    from referrals.case_files import flatten, unflatten

    cells = dict(flatten(raw))
    keys = []
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise click.UsageError("--set needs NAME=VALUE.")
        for old in [old for old in cells if old == key or old.startswith(f"{key}.")]:
            del cells[old]
        cells[key.strip()] = value
        keys.append(f"{key.strip()}.")
    changed = unflatten(cells.items())
    asked, answers = raw.get("answers"), changed.setdefault("answers", {})
    if isinstance(asked, dict) and isinstance(answers, dict):
        changed["answers"] = {name: {} for name in asked} | answers
    return changed, tuple(keys)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_findings(findings: Iterable[Finding], indent: str = "  ") -> None:
    for finding in findings:
        awaited = finding.blocks and finding.missing
        word, colour = str(finding.level), _COLOURS[finding.level]
        if awaited:
            word, colour = "needs", "yellow"
        elif finding.override:
            word, colour = "aside", "yellow"
        level = click.style(f"{word:<6}", fg=colour, bold=True)
        overridden = " (set aside by a supervisor)" if finding.override else ""
        where = f" [{finding.where}]" if finding.where else ""
        click.echo(f"{indent}{level} {finding.code}  {finding.text}{overridden}{where}")
        if finding.level is Level.BLOCK:
            click.echo(f"{indent}       source: {finding.source}")
            if finding.overridable and not finding.override:
                click.echo(
                    f"{indent}       a supervisor may set it aside: add it to the case's "
                    "overrides (code, reason, authorised_by, on)"
                )


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table that fits the terminal; elsewhere, one line a row with tabs between."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(row))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def complete_intervention(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[str]:
    """Names of interventions for the shell; silent if the configuration is broken."""
    from referrals.errors import ReferralsError

    try:
        names = service().directory.interventions
    except ReferralsError:
        return []
    return [name for name in sorted(names) if name.startswith(incomplete)]


def complete_intervention_or_case(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """For `draft`, whose last word is a file."""
    from click.shell_completion import CompletionItem

    names = complete_intervention(ctx, param, incomplete)
    return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="file")]


def intervention_argument(**options: Any) -> Callable[[_Command], _Command]:
    return click.argument("intervention", shell_complete=complete_intervention, **options)
