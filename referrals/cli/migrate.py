"""`migrate`: the tables in PostgreSQL, made or brought up to date."""

from __future__ import annotations

import click

from referrals.bootstrap import database_of
from referrals.cli.common import json_option, print_json
from referrals.cli.held import counted
from referrals.settings_sources import read_settings


@click.command("migrate")
@json_option
def migrate_command(as_json: bool) -> None:
    """Make the outbox's tables in PostgreSQL, or bring them up to date.

    For a database that is there already (REFERRALS_DATABASE), in the role that owns it. It may be
    run again, by several at once, and while workers run: a step that would be in the way of an
    older version waits until no worker is left, and is made when you run this again.

    \b
    Example: REFERRALS_DATABASE=postgresql://owner@db/referrals referrals migrate
    """
    database = database_of(read_settings())
    from referrals.outboxes.postgres.steps import migrate

    migrated = migrate(database)
    if as_json:
        print_json({"done": migrated.done, "waiting": migrated.waiting})
        return
    if migrated.done:
        click.echo(f"{counted(len(migrated.done), 'step')} made in {database.name}.")
    elif not migrated.waiting:
        click.echo(f"{database.name} is up to date.")
    if migrated.waiting:
        click.echo(
            f"{counted(len(migrated.waiting), 'step')} can be made once no worker runs: stop them, "
            "wait a minute, run this again, and start the new ones."
        )
