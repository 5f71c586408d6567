"""`templates` and `doctor`: looking after an installation."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from referrals.cli.common import intervention_argument, json_option, print_json
from referrals.errors import ConfigurationError, OutboxError, Problem

if TYPE_CHECKING:
    from referrals.settings import Settings


@click.group("templates")
def templates_command() -> None:
    """The letters' templates."""


@templates_command.command("check")
@intervention_argument(nargs=-1)
@json_option
def templates_check(intervention: tuple[str, ...], as_json: bool) -> None:
    """Render every letter, and the reminder, with sample and canary values, and say what is wrong.

    Fails on undefined variables, facts and fields that are not declared, unsafe HTML, a personal
    value in a subject, header or file name, and parts that do not tell the same.

    \b
    Example: referrals templates check mediation
    """
    from referrals.bootstrap import build_service
    from referrals.reminder_check import check_reminder
    from referrals.settings_sources import read_settings
    from referrals.template_check import check_intervention, unused

    using = build_service(read_settings())
    names = intervention or tuple(sorted(using.directory.interventions))
    problems: list[Problem] = []
    notes: dict[str, list[str]] = {}
    for name in names:
        one = using.directory.intervention(name)
        found = check_intervention(one, using.directory, using.templates, using.today())
        problems += found
        if not found:
            notes[name] = unused(one, using.directory, using.templates, using.today())
    if not intervention:
        problems += check_reminder(using.directory, using.templates)
    if problems:
        raise ConfigurationError(list(dict.fromkeys(problems)))
    if as_json:
        print_json({"ok": True, "checked": list(names), "untold": notes})
        return
    for name in names:
        click.echo(f"{click.style('✓', fg='green', bold=True)} {name}")
        for path in notes[name]:
            click.echo(f"  note: declared but not told in the letter: {path}")
    if not intervention:
        click.echo(f"{click.style('✓', fg='green', bold=True)} the reminder")


@templates_command.command("new")
@intervention_argument()
@json_option
def templates_new(intervention: str, as_json: bool) -> None:
    """Write a first letter for an intervention that has none yet.

    Needs config/interventions/INTERVENTION.toml; tells every fact and field that it declares.
    Files that are there already are left as they are.

    \b
    Example: referrals templates new safe-transport
    """
    from referrals.directory_files import read_intervention
    from referrals.settings_sources import config_folder, read_settings, templates_folder
    from referrals.template_check import starter

    settings = read_settings()
    one = read_intervention(config_folder(settings), templates_folder(settings), intervention)
    folder = templates_folder(settings) / one.template
    written, kept = [], []
    for name, text in starter(one).items():
        file = folder / name
        if file.exists():
            kept.append(str(file))
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        written.append(str(file))
    if as_json:
        print_json({"written": written, "kept": kept})
        return
    for path in written:
        click.echo(f"wrote {path}")
    for path in kept:
        click.echo(f"kept  {path}")
    click.echo(f"Now edit them, then: referrals templates check {intervention}")


@click.command("doctor")
@json_option
def doctor_command(as_json: bool) -> None:
    """Show the settings in force, where they may be set, and what is missing.

    Order, the first that has a value wins: the environment (REFERRALS_RELAY_HOST for
    relay.host), .env, the secrets folder (REFERRALS_SECRETS), settings.toml in the config
    folder, defaults. Secrets are masked.

    \b
    Example: referrals doctor
    """
    from referrals.settings_sources import (
        config_folder,
        read_settings,
        templates_folder,
        variable_of,
    )

    settings = read_settings()
    shown = dict(_effective(settings))
    shown["config"] = str(config_folder(settings))
    shown["templates"] = str(templates_folder(settings))
    faults, notes = _examined(settings)
    if as_json:
        print_json(
            {
                "ok": not faults,
                "settings": shown,
                "problems": [str(fault) for fault in faults],
                "missing": notes,
            }
        )
    else:
        for key, value in shown.items():
            click.echo(f"{click.style(key, bold=True)} = {value}   ({variable_of(key)})")
        click.echo()
        for fault in faults:
            click.echo(f"{click.style('problem', fg='red', bold=True)}  {fault}")
        for note in notes:
            click.echo(f"{click.style('note', fg='yellow', bold=True)}  {note}")
        if not faults and not notes:
            click.echo("Nothing is missing.")
    if faults:
        raise click.exceptions.Exit(5)


def _effective(settings: Settings) -> Iterator[tuple[str, Any]]:
    from referrals.settings_relays import keys_in_force, value_of
    from referrals.settings_sources import setting_keys

    for key in (*setting_keys(), *keys_in_force(settings)):
        value: Any = value_of(settings, key)
        if value is None:
            yield key, "(not set)"
        elif hasattr(value, "get_secret_value"):
            yield key, "(set, not shown)"
        elif isinstance(value, int | float):
            yield key, value
        else:
            yield key, str(value)


def _examined(settings: Settings) -> tuple[list[Problem], list[str]]:
    from referrals.bootstrap import build_service, relays_of

    faults: list[Problem] = []
    notes: list[str] = []
    try:
        using = build_service(settings)
    except ConfigurationError as error:
        faults += error.problems
    else:
        directory, today = using.directory, using.today()
        for agency in directory.agencies.values():
            if agency.email is None:
                notes.append(f"{agency.title}: no address in agencies.toml, drafts only.")
            elif not agency.is_verified(today):
                notes.append(
                    f"{agency.title}: {agency.email} was not verified within "
                    f"{agency.review_after_days} days. Ask, then `referrals directory verify "
                    f"{agency.id}`."
                )
    faults += _folder_faults(settings.outbox)
    if not settings.relay.host:
        notes.append("No relay (REFERRALS_RELAY_HOST): drafts work, submitting does not.")
    notes += [
        f"{key}.password is not set: it will be asked for."
        for key, relay in relays_of(settings).items()
        if relay.host and relay.username and relay.password is None
    ]
    if settings.secrets:
        notes += _open_secrets(settings.secrets)
    notes += _unfinished(settings)
    return faults, notes


def _unfinished(settings: Settings) -> Iterator[str]:
    """What nobody has had, as far as is known, and nobody has looked after."""
    from referrals.bootstrap import has_outbox, now, open_outbox

    if not has_outbox(settings):
        return
    days = settings.delivery.keep_unfinished_days
    try:
        with open_outbox(settings) as outbox:
            if (copied := outbox.copied()) is not None:
                yield str(copied.refusal(outbox.name))
            old = len(outbox.unfinished(now() - timedelta(days=days)))
    except OutboxError as error:
        yield str(error)
        return
    if old:
        yield (
            f"{old} of the messages in the outbox were neither relayed nor cancelled, and not "
            f"touched for {days} days: `referrals outbox purge --dry-run` lists them."
        )


def _folder_faults(outbox: Path) -> Iterator[Problem]:
    place = outbox
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        yield Problem(
            str(outbox), "can't be written to.", "Set REFERRALS_OUTBOX to another folder."
        )


def _open_secrets(folder: Path) -> Iterator[str]:
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield f"{file} can be read by others: chmod 600 it."
