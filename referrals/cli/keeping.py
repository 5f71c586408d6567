"""`outbox purge`, `export` and `erase`: what is kept, for how long, and for whom."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from referrals import bootstrap
from referrals.bootstrap import open_outbox
from referrals.cli.common import json_option, print_json
from referrals.cli.held import (
    attempt_words,
    counted,
    days_words,
    moment_words,
    told_status,
)
from referrals.delivery import DeliveryStatus
from referrals.errors import NotInOutbox, ReferralsError
from referrals.settings_sources import read_settings
from referrals.telling import attempt_json, entry_json, held_json
from referrals.texts import day_words

if TYPE_CHECKING:
    from referrals.audit import Entry
    from referrals.directory import Directory
    from referrals.ports import Outbox
    from referrals.queueing import Attempt, Held
    from referrals.retention import DailyPurge, Retained
    from referrals.settings import Settings
    from referrals.web.case_kept import Kept

_EVERY = 1_000_000


@click.command("purge")
@click.option("--days", type=click.IntRange(0), help="Instead of delivery.keep_content_days.")
@click.option(
    "--unfinished",
    is_flag=True,
    help="Give up what failed or stayed uncertain for so long, too: see above.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go; nothing is changed.")
@json_option
def purge_command(days: int | None, unfinished: bool, dry_run: bool, as_json: bool) -> None:
    """Forget the content of what was relayed or cancelled long ago, and delete old drafts.

    The account of it stays: who, when, to which agency, names of fields, never a value. What was
    neither relayed nor cancelled for delivery.keep_unfinished_days is listed and kept, since it
    may be a referral that never arrived. Decide on each; or give up all that failed or stayed
    uncertain with --unfinished. What still waits for the relay is never purged.

    `deliver` does this once a day by itself, without --unfinished (delivery.purge).

    \b
    Example: referrals outbox purge --dry-run
    """
    from referrals import retention

    settings, now = read_settings(), bootstrap.now()
    with open_outbox(settings) as outbox:
        if dry_run:
            done = retention.foreseen(outbox, settings, now, keep_content_days=days)
        else:
            done = retention.purge(
                outbox, settings, now, keep_content_days=days, unfinished=unfinished
            )
    if as_json:
        print_json({"dry_run": dry_run} | _retained_json(done, now))
        return
    would = "would be " if dry_run else ""
    click.echo(
        f"Content of {counted(done.messages, 'message')} {would}forgotten, "
        f"{counted(len(done.drafts), 'old draft')} {would}deleted{':' if done.drafts else '.'}"
    )
    for path in done.drafts:
        click.echo(f"  {path}")
    if done.given_up:
        click.echo(
            f"{counted(done.given_up, 'unfinished message')} given up: the content is forgotten, "
            "the account says what happened. What is still needed has to be referred again."
        )
    _warn_of_unfinished(done, settings, now)


def _retained_json(done: Retained, now: datetime) -> dict[str, Any]:
    return {
        "purged": done.messages,
        "given_up": done.given_up,
        "drafts_deleted": len(done.drafts),
        "drafts": [str(path) for path in done.drafts],
        "unfinished": [
            held_json(one) | {"days_untouched": (now - touched).days}
            for one, touched in done.unfinished
        ],
    }


def _warn_of_unfinished(done: Retained, settings: Settings, now: datetime) -> None:
    """On standard error, so that whoever runs this by a timer gets it by mail."""
    if not done.unfinished:
        return
    word = click.style("Unfinished", fg="red", bold=True)
    days = days_words(settings.delivery.keep_unfinished_days)
    click.echo(
        f"{word}: {counted(len(done.unfinished), 'message')} neither relayed nor cancelled, and "
        f"untouched for {days} or more. The content is kept, and nobody may have had the referral:",
        err=True,
    )
    for one, touched in done.unfinished:
        click.echo(
            f"  {one.reference}  {told_status(one)}, {days_words((now - touched).days)}  "
            f"{one.intervention}  {one.case_reference}",
            err=True,
        )
    click.echo(
        "Decide on each: `referrals outbox show`, then `outbox retry`, `ack` or `outbox cancel`. "
        "To give up all that failed or is uncertain: `referrals outbox purge --unfinished`.",
        err=True,
    )


def purge_if_due(outbox: Outbox, settings: Settings) -> Retained | None:
    """The daily purge, which never keeps anybody from delivering: faults go to standard error."""
    from referrals import retention

    now = bootstrap.now()
    try:
        done = retention.purge_if_due(outbox, settings, now)
    except (ReferralsError, OSError) as error:
        _tell_not_purged(str(error))
        return None
    if done is not None:
        _warn_of_unfinished(done, settings, now)
    return done


def daily_purge(settings: Settings) -> DailyPurge:
    """The same for a process that goes on, beside its delivery."""
    from referrals.retention import DailyPurge

    return DailyPurge(
        lambda: open_outbox(settings),
        settings,
        done=lambda done, now: _warn_of_unfinished(done, settings, now),
        failed=_tell_not_purged,
    )


def _tell_not_purged(fault: str) -> None:
    click.echo(f"Old content was not purged: {fault}", err=True)


# One case


@click.command("export")
@click.argument("case_reference", metavar="CASE_REFERENCE")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE.zip",
    required=True,
    help="A folder or a .zip that is not there yet; written whole, for you alone, or not at all.",
)
@json_option
def export_command(case_reference: str, out: Path, as_json: bool) -> None:
    """Write out everything held on one case: messages, attempts, audit, drafts.

    For a subject access request (UK GDPR art. 15). index.txt is for people, index.json says the
    same to programs; messages and drafts are .eml files. Look through it before you hand it on:
    it may tell of other people too.

    \b
    Example: referrals outbox export CASE-1 --out CASE-1.zip
    """
    from referrals.case_export import as_json as encoded
    from referrals.case_export import export_folder, export_zip
    from referrals.retention import files_of
    from referrals.web.case_kept import kept_by_page

    settings = read_settings()
    case_reference = case_reference.upper()
    with open_outbox(settings) as outbox:
        found = outbox.held(case_reference=case_reference, limit=_EVERY)
        entries = list(outbox.audit(case_reference))
        directory = _directory(settings)
        beside = files_of(settings.outbox, case_reference, _interventions(found, directory))
        with kept_by_page(settings) as page:
            kept = page.of_case(case_reference, directory)
        if not found and not entries and not beside and not kept:
            raise NotInOutbox(f"Nothing of {case_reference} is in the outbox, or on the page.")
        attempts = {one.id: outbox.attempts(one.id) for one in found}
        files: dict[str, bytes] = {}
        for one in found:
            content = outbox.content(one.id)
            if content is not None:
                files[_message_file(one)] = content
    files |= {f"{path.parent.name}/{path.name.lstrip('.')}": path.read_bytes() for path in beside}
    account = {
        "case_reference": case_reference,
        "exported_at": bootstrap.now().isoformat(),
        "messages": [
            held_json(one)
            | {
                "file": _message_file(one) if _message_file(one) in files else None,
                "tries": [attempt_json(attempt) for attempt in attempts[one.id]],
            }
            for one in found
        ],
        "drafts": [name for name in files if not name.startswith("messages/")],
        "page": [_kept_json(one) | {"holds": one.content} for one in kept],
        "audit": [entry_json(entry) for entry in entries],
    }
    text = "\n".join(_index(case_reference, found, attempts, files, entries, kept))
    files |= {"index.json": encoded(account), "index.txt": text.encode()}
    if out.suffix.lower() == ".zip":
        export_zip(out, files)
    else:
        export_folder(out, files)
    counts = {
        "messages": len(found),
        "audit": len(entries),
        "drafts": len(beside),
        "page": len(kept),
    }
    if as_json:
        print_json(counts | {"out": str(out)})
    else:
        click.echo(
            f"{counted(len(found), 'message')}, {counted(len(beside), 'draft')} and "
            f"{counted(len(entries), 'audit entry', 'audit entries')} written to {out}. Drafts "
            "saved in other folders, and what mail clients hold, are not in it."
        )
        if kept:
            click.echo("With it is what the page keeps of the case, in index.json:")
            _tell_kept(kept)


def _message_file(held: Held) -> str:
    return f"messages/{held.reference}-{held.intervention}-{held.id}.eml"


def _directory(settings: Settings) -> Directory | None:
    """None if config/ has a mistake, which is no reason to hold an erasure up."""
    from referrals.directory_files import read_directory
    from referrals.errors import ConfigurationError
    from referrals.settings_sources import config_folder, templates_folder

    try:
        return read_directory(config_folder(settings), templates_folder(settings))
    except ConfigurationError:
        return None


def _interventions(found: list[Held], directory: Directory | None) -> set[str]:
    """Those that the case was referred to, and all of the directory."""
    return {one.intervention for one in found} | set(directory.interventions if directory else ())


def _kept_json(one: Kept) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "id": one.id,
        "owner": one.owner or None,
        "saved_at": one.saved_at.isoformat(),
        "expires_at": one.expires_at.isoformat(),
        "sure": one.is_sure,
    }


def _tell_kept(kept: list[Kept]) -> None:
    for one in kept:
        whose = f" of {one.owner}" if one.owner else ""
        click.echo(
            f"  {one.kind}{whose}, saved {moment_words(one.saved_at)}"
            f"{'' if one.is_sure else ', which could not be read and may hold the case'}; "
            f"expires {moment_words(one.expires_at)}"
        )


def _index(
    case_reference: str,
    found: list[Held],
    attempts: dict[int, list[Attempt]],
    files: dict[str, bytes],
    entries: list[Entry],
    kept: list[Kept],
) -> Iterator[str]:
    yield f"All that the outbox holds on {case_reference}"
    yield f"Written on {moment_words(bootstrap.now())}"
    for one in reversed(found):
        yield ""
        yield f"{one.reference} {one.intervention}, to {one.recipient}"
        yield f"  status: {told_status(one)}"
        yield f"  queued: {moment_words(one.queued_at)}"
        if one.relayed_at:
            yield f"  relayed: {moment_words(one.relayed_at)}"
        answered = day_words(one.acknowledged_on) if one.acknowledged_on else "none recorded"
        yield f"  answer: {answered}; asked for by {day_words(one.acknowledge_by)}"
        if one.purged_at:
            yield f"  content: forgotten on {day_words(one.purged_at.date())}"
        else:
            yield f"  content: {_message_file(one)}"
        for number, attempt in enumerate(attempts[one.id], 1):
            yield f"  attempt {number}: {attempt_words(attempt)}"
    if kept:
        yield "\nWhat the page keeps (all that was typed is in index.json)"
        yield from (f"  {one.kind}, saved {moment_words(one.saved_at)}" for one in kept)
    beside = sorted(name for name in files if not name.startswith("messages/"))
    if beside:
        yield "\nDrafts and other files"
        yield from (f"  {name}" for name in beside)
    yield "\nWhat was done, by whom (details in index.json)"
    for entry in entries:
        yield f"  {entry.number}. {moment_words(entry.at)}: {entry.action}, by {entry.actor}"
    yield ""


@click.command("erase")
@click.argument("case_reference", metavar="CASE_REFERENCE")
@click.option("--yes", is_flag=True, help="Erase. Without this, only say what would go.")
@json_option
def erase_command(case_reference: str, yes: bool, as_json: bool) -> None:
    """Forget the content of every message of one case, and delete its drafts; the audit stays.

    For a request for erasure (UK GDPR art. 17). Drafts are found in the outbox folder by their
    names and subjects. What the page keeps goes too: half-made referrals of the case, and
    spreadsheets with a row of it as a whole. Drafts in other folders, exports, backups and what
    mail clients hold are for you to delete.

    \b
    Example: referrals outbox erase CASE-1 --yes
    """
    from referrals.retention import delete, files_of
    from referrals.web.case_kept import at_work, kept_by_page

    settings = read_settings()
    case_reference = case_reference.upper()
    with open_outbox(settings) as outbox, kept_by_page(settings) as page:
        found = outbox.held(case_reference=case_reference, limit=_EVERY)
        directory = _directory(settings)
        beside = files_of(settings.outbox, case_reference, _interventions(found, directory))
        kept = page.of_case(case_reference, directory)
        going = [one for one in kept if one.is_sure]
        unsure = [one for one in kept if not one.is_sure]
        if not found and not beside and not kept:
            raise NotInOutbox(f"Nothing of {case_reference} is in the outbox, or on the page.")
        whole = [one for one in found if one.purged_at is None]
        waiting = [one.reference for one in whole if _waits(one)]
        erased = 0
        if yes:
            if any(one.under_way for one in going):
                raise at_work()
            erased = outbox.erase(case_reference, bootstrap.now())
            delete(beside)
            page.erase(going)
            counts = {"files": len(beside), "page": len(going)}
            if any(counts.values()):
                done = {name: number for name, number in counts.items() if number}
                outbox.note("erased", done, bootstrap.now(), case_reference=case_reference)
    if as_json:
        print_json(
            {
                "erased": erased,
                "found": [one.reference for one in whole],
                "waiting": waiting,
                "drafts": [str(path) for path in beside],
                "drafts_deleted": len(beside) if yes else 0,
                "page": [_kept_json(one) for one in kept],
                "page_removed": len(going) if yes else 0,
            }
        )
        return
    messages, drafts = counted(len(whole), "message"), counted(len(beside), "draft")
    if yes:
        click.echo(
            f"Content of {counted(erased, 'message')} erased, {drafts} deleted. Drafts in other "
            "folders, exports, backups and what mail clients hold are for you to delete."
        )
        if going:
            click.echo("Of what the page kept, these are removed:")
            _tell_kept(going)
        _tell_unsure(unsure)
        return
    click.echo(f"Content of {messages} would be erased and {drafts} deleted:")
    for one in whole:
        click.echo(f"  {one.reference} {one.intervention}: {told_status(one)}")
    for path in beside:
        click.echo(f"  {path}")
    if going:
        click.echo("Of what the page keeps would be removed, a spreadsheet as a whole:")
        _tell_kept(going)
    _tell_unsure(unsure)
    if waiting:
        click.echo(f"Cancel or deliver first what still waits: {', '.join(waiting)}.")
    click.echo("Add --yes to erase.")


def _tell_unsure(unsure: list[Kept]) -> None:
    if unsure:
        click.echo("The page keeps what is left as it is: ask whose it is, or let it expire.")
        _tell_kept(unsure)


def _waits(held: Held) -> bool:
    return held.due_at is not None or held.status is DeliveryStatus.SENDING
