"""`backup` and `outbox restored`: a copy of the outbox, made, and brought in order."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from referrals import bootstrap
from referrals.bootstrap import open_outbox
from referrals.cli.common import json_option, print_json
from referrals.cli.held import counted, moment_words
from referrals.errors import NotPossibleNow
from referrals.settings_sources import config_folder, read_settings

if TYPE_CHECKING:
    from referrals.relay_log import RelayLog
    from referrals.restored import Copied, Settled

_MOST_SHOWN = 50


def _moment(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise click.BadParameter("give date, time and zone, such as 2026-11-24T06:00:00+00:00.")
    return moment.astimezone(UTC)


@click.command("restored")
@click.option(
    "--taken",
    multiple=True,
    metavar="FILE",
    help="The relay's log, or a list of Message-IDs; `-` for standard input. Repeatable.",
)
@click.option(
    "--log-is-complete-since",
    "complete_since",
    callback=_moment,
    metavar="TIME",
    help="The log misses nothing since then: try again what it does not name.",
)
@click.option(
    "--as-copy", is_flag=True, help="It is a copy, though nothing shows it: see docs/backup.md."
)
@click.option(
    "--nothing-lost",
    is_flag=True,
    help="It is the outbox itself, whole: moved, upgraded, or a standby that had everything.",
)
@click.option("--yes", is_flag=True, help="Do it. Without this, it only says what would be done.")
@json_option
def restored_command(
    taken: tuple[str, ...],
    complete_since: datetime | None,
    as_copy: bool,
    nothing_lost: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Bring a restored copy of the outbox in order, so that nothing is submitted twice.

    What waits in a copy may have been submitted after the copy was made. All of it is held for a
    person, as uncertain; but what the relay's own log (--taken) shows that it took becomes relayed.
    If that log is complete, what it does not name is tried again. Referrals that the relay took
    and that this copy lacks are listed.

    It may be stopped and run again; with another log, too.

    \b
    Examples:
      referrals outbox restored --taken mail.log.1.gz --taken mail.log
      referrals outbox restored --taken mail.log --log-is-complete-since 2026-11-24T00:00Z --yes
    """
    from referrals.restored import Settled, evidence_of, settle

    if nothing_lost and (taken or complete_since or as_copy):
        raise click.UsageError(
            "--nothing-lost says that there is nothing to look for: use it alone."
        )
    if complete_since is not None and not taken:
        raise click.UsageError("--log-is-complete-since needs --taken, which is that log.")
    log = _read(taken) if taken else None
    now = bootstrap.now()
    with open_outbox(read_settings()) as outbox:
        copied = outbox.copied()
        if copied is None and as_copy:
            copied = outbox.take_for_copy(now, only_say=not yes)
        if nothing_lost:
            done = Settled(was_copy=copied is not None)
            if yes:
                outbox.lost_nothing(now)
        else:
            evidence = evidence_of(outbox, log, complete_since) if log else None
            done = settle(outbox, copied, evidence, now, only_say=not yes)
        name = outbox.name
    if as_json:
        print_json(_json(copied, done, log, done_so=yes))
    elif nothing_lost:
        _tell_moved(name, copied, yes)
    else:
        _tell(name, copied, done, log, yes)


def _read(taken: tuple[str, ...]) -> RelayLog:
    from referrals.relay_log import LogUnreadable, RelayLog

    log = RelayLog()
    for name in taken:
        try:
            with ExitStack() as stack:
                file: BinaryIO = (
                    sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
                )
                log.read(file)
        except (OSError, LogUnreadable) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise NotPossibleNow(
                f"{'standard input' if name == '-' else name} can't be read: {reason}. Nothing "
                "was changed. Give the whole log."
            ) from None
    return log


def _json(
    copied: Copied | None, done: Settled, log: RelayLog | None, *, done_so: bool
) -> dict[str, Any]:
    from referrals.restored import Verdict

    return {
        "was_copy": done.was_copy,
        "as_of": copied.as_of.isoformat() if copied else None,
        "done": done_so,
        "log_lines": log.lines if log else None,
        **{str(verdict): done.counts[verdict] for verdict in Verdict},
        "not_in_this_copy": done.unknown,
    }


def _tell_moved(name: str, copied: Copied | None, yes: bool) -> None:
    if copied is None:
        click.echo(f"The outbox {name} is not a copy. Nothing is to be done.")
    elif yes:
        click.echo(f"The outbox {name} goes on from here; nothing in it was changed.")
    else:
        click.echo(
            f"The outbox {name} is taken for a copy: {copied.why}. With --yes it goes on from "
            "here. Anything that was submitted and is not in it would be submitted again, so say "
            "so only if you know that it lacks nothing."
        )


def _tell(name: str, copied: Copied | None, done: Settled, log: RelayLog | None, yes: bool) -> None:
    from referrals.restored import Verdict

    counts = done.counts
    if copied is not None:
        click.echo(
            f"The outbox {name} {'was' if yes else 'is'} a restored copy: {copied.why}. It knows "
            f"nothing after {moment_words(copied.as_of)}."
        )
    else:
        click.echo(
            f"Nothing shows that the outbox {name} is a copy. If it is one all the same (a file "
            "or a disk that was put back), use --as-copy."
        )
    if log is not None:
        click.echo(f"Read {counted(log.lines, 'line')}, which name {len(log.named):,} of our "
                   f"messages and show that the relay took {len(log.taken):,}.")  # fmt: skip
    would = "" if yes else "would be "
    click.echo(f"{would}relayed, by the relay's log: {counts[Verdict.RELAYED]:,}".capitalize())
    click.echo(f"{would}tried again, as the log is complete: {counts[Verdict.DUE]:,}".capitalize())
    click.echo(f"{would}held for you, as uncertain: {counts[Verdict.HELD]:,}".capitalize())
    if done.unknown:
        click.echo(
            f"{counted(len(done.unknown), 'referral')} that the relay took and this copy lacks: "
            f"the agency has it, and only the account of it is gone."
        )
        for reference in done.unknown[:_MOST_SHOWN]:
            click.echo(f"  {reference}")
        if len(done.unknown) > _MOST_SHOWN:
            click.echo(f"  and {len(done.unknown) - _MOST_SHOWN:,} more; --json lists all")
    if not yes:
        click.echo("Nothing was changed. Add --yes to do it.")
        return
    if counts[Verdict.HELD]:
        click.echo(
            "`referrals outbox list --status uncertain` lists them. Ask the agency; then `ack`, "
            "`outbox retry` or `outbox cancel`. Or run this again with the relay's log."
        )
    if copied is not None:
        click.echo("From here on what is due is submitted again.")


@click.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def backup_command(file: Path, as_json: bool) -> None:
    """Copy the outbox to FILE, consistent while others use it; for an outbox in a file.

    The copy is for you alone (0600), and is there whole or not at all. It knows that it is a copy:
    restored, it submits nothing before `referrals outbox restored`. It holds personal data: encrypt
    where you keep it. One in PostgreSQL is backed up with PostgreSQL's own tools: docs/backup.md.

    \b
    Example: referrals backup /backups/outbox-$(date +%F).sqlite3
    """
    settings = read_settings()
    if settings.database is not None:
        raise click.UsageError(
            "The outbox is in PostgreSQL: use pg_dump or pg_basebackup, as docs/backup.md shows."
        )
    from referrals.outboxes.sqlite.outbox import SqliteOutbox

    if not bootstrap.has_outbox(settings):
        raise NotPossibleNow(
            f"There is no outbox in {settings.outbox}, so there is nothing to copy. Set "
            "REFERRALS_OUTBOX to its folder."
        )
    with SqliteOutbox.open(bootstrap.outbox_file(settings), "backup") as outbox:
        outbox.copy_to(file)
        messages = sum(outbox.counts().values())
    besides = [
        str(path)
        for path in (
            config_folder(settings),
            settings.secrets,
            settings.outbox / "drafts",
            settings.outbox / "web.sqlite3",
        )
        if path is not None and path.exists()
    ]
    if as_json:
        print_json({"copied": str(file), "messages": messages, "not_in_it": besides})
        return
    click.echo(f"{file}: {counted(messages, 'message')}, with the audit.")
    click.echo(f"Not in it, to be kept as well: {', '.join(besides)}.")
