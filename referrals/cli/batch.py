"""`batch`: every row of a file checked; then drafted, or queued and submitted."""

from __future__ import annotations

import asyncio
import filecmp
import gc
import os
import secrets
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from referrals.cli.common import json_option, print_json, print_table
from referrals.cli.faults import exit_code, report
from referrals.delivery import DeliveryStatus
from referrals.errors import (
    DeliveryError,
    DraftChanged,
    DraftError,
    DraftUnwritable,
    ReferralsError,
)
from referrals.telling import described, problem_json

if TYPE_CHECKING:
    from referrals.batch import Made, Make, RowError, Survey
    from referrals.delivery import Submission
    from referrals.drafts import Staging
    from referrals.ports import Outbox
    from referrals.row_files import RowFile
    from referrals.service import Referral, Service
    from referrals.settings import RelaySettings, Settings

GROUP = 500
"""Referrals that are queued in one transaction, so with one wait for the disk."""

_MOST_IN_JSON = 10_000
_EVERY = 1_000
_STILL_OPEN = {DeliveryStatus.QUEUED, DeliveryStatus.DELAYED, DeliveryStatus.SENDING}


@click.command("batch")
@click.argument("file", metavar="FILE")
@click.option(
    "--sheet",
    metavar="NAME",
    help="The sheet of a workbook: its name, or its number from the left.",
)
@click.option("--draft", is_flag=True, help="Save a draft for every referral.")
@click.option("--send", is_flag=True, help="Queue every referral and submit what is due.")
@click.option("--dry-run", is_flag=True, help="Only say what would go where, as without it.")
@click.option("--out", metavar="DIR", help="Folder for the drafts. [default: outbox/drafts]")
@click.option("--beside", is_flag=True, help="If another draft has the name, write name-2.")
@click.option(
    "--errors",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write what is wrong here: a CSV with row, column, what and remedy.",
)
@click.option("--skip-invalid", is_flag=True, help="Go on with the rows that are right.")
@click.option(
    "--skipped",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where --skip-invalid writes the rows that it left out, as they are.",
)
@click.option(
    "--accept-unverified",
    is_flag=True,
    help="Submit to addresses that nobody has verified within their review time.",
)
@json_option
def batch_command(
    file: str,
    sheet: str | None,
    draft: bool,
    send: bool,
    dry_run: bool,
    out: str | None,
    beside: bool,
    errors: Path | None,
    skip_invalid: bool,
    skipped: Path | None,
    accept_unverified: bool,
    as_json: bool,
) -> None:
    """Check every row of FILE; then draft or send them all, or none while one is wrong.

    FILE is CSV, JSON lines or XLSX, with columns as `referrals new --csv` prints them. A column
    `intervention` (one, or `one; two`) says what a row asks for; without it, a row asks for what
    it has answers for. Without --draft or --send, nothing is made. The same command run again goes
    on where it was stopped, and makes nothing twice.

    \b
    Examples:
      referrals batch cases.csv --errors errors.csv
      referrals batch cases.csv --draft --out drafts
      referrals batch cases.xlsx --send --skip-invalid --skipped left-out.xlsx
    """
    from referrals.batch import Made, Survey, check_addresses
    from referrals.bootstrap import build_service
    from referrals.cli.hold import read_holds
    from referrals.cli.relay import with_passwords
    from referrals.drafts import Staging, drafts_folder
    from referrals.row_files import open_rows
    from referrals.settings_sources import read_settings

    if file == "-":
        raise click.UsageError("FILE is read twice, so it can't be standard input. Save it first.")
    if draft + send + dry_run > 1:
        raise click.UsageError("Choose one of --draft, --send and --dry-run.")
    if skip_invalid != (skipped is not None):
        raise click.UsageError("--skip-invalid and --skipped FILE belong together.")
    if (out or beside) and not draft:
        raise click.UsageError("--out and --beside go with --draft.")
    named = [path.resolve() for path in (Path(file), errors, skipped) if path]
    if len(set(named)) < len(named):
        raise click.UsageError("FILE, --errors and --skipped must be different files.")
    # Unlike other commands, this one lives long enough to need it; but what is there stays, and
    # rows leave few cycles: to look for them after every 700 objects costs a tenth of the time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    gc.enable()
    settings = read_settings()
    using = build_service(settings)
    rows = open_rows(Path(file), using.directory, sheet)

    folder = Path(out) if out else drafts_folder(settings.outbox)
    job = _Job(rows, using, settings, _Progress(as_json=as_json), Survey())

    with ExitStack() as working:
        make: Make | None = None
        made = staging = None
        if send:
            make = _submission(using)
        elif draft:
            working.enter_context(_ended_by_sigterm())
            staging = working.enter_context(Staging(folder))
            make = _draft(using, staging)
        if make is not None:
            made = working.enter_context(Made(settings.outbox if send else folder))
        shown = _check(job, errors, make, made, submitting=send, despite=skip_invalid)
        seen = job.seen
        held = frozenset(read_holds(settings))
        result: dict[str, Any] = {
            "rows": seen.rows,
            "rows_wrong": len(seen.wrong),
            "referrals": seen.referrals,
            "errors": shown,
            "errors_left_off": seen.errors - len(shown),
            "by_agency": _agencies_json(seen, using, held),
        }
        if not as_json:
            _print_survey(seen, using, errors, held)
        if made is None or (seen.wrong and not skip_invalid):
            result |= {"ok": not seen.wrong, "status": "nothing made"}
            if as_json:
                print_json(result)
            elif not seen.wrong:
                click.echo("Nothing was made. Add --draft or --send.")
            else:
                click.echo("Nothing was made. Put the rows right" + _or_skip(skip_invalid))
            raise click.exceptions.Exit(3 if seen.wrong else 0)
        if send and not accept_unverified:
            check_addresses(seen, using)
        relay = None
        if send:
            settings = with_passwords(settings)
            relay, job = settings.relay, replace(job, settings=settings)
        if skipped and seen.wrong:
            _write_skipped(rows, seen, skipped)
            result["skipped"] = str(skipped)
            if not as_json:
                click.echo(f"{_rows(len(seen.wrong))} left out, written to {skipped}.")
        if staging is not None:
            code = _publish(job, made, staging, result, folder, beside=beside)
        elif relay is not None:
            code = _send(job, made, relay, result)
    code = code or (3 if seen.wrong else 0)
    if as_json:
        print_json(result | {"ok": code == 0})
    if code:
        raise click.exceptions.Exit(code)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends us as Ctrl-C does: what was not published is removed first."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _rows(count: int) -> str:
    return f"{count:,} row" + ("" if count == 1 else "s")


def _or_skip(skip_invalid: bool) -> str:
    return ", or --draft or --send the others." if skip_invalid else ", or see --skip-invalid."


@dataclass(frozen=True)
class _Job:
    rows: RowFile
    using: Service
    settings: Settings
    progress: _Progress
    seen: Survey

    def groups(self, made: Made, what: str) -> Iterator[list[Any]]:
        """What was made of the sound rows, a group at a time; it counts as done once we go on."""
        things = made.but(self.seen.wrong)
        with self.progress.over(what, self.seen.referrals) as step:
            while group := list(islice(things, GROUP)):
                yield group
                for _ in group:
                    step()


def _draft(using: Service, staging: Staging) -> Make:
    return lambda referral: staging.put(referral.file_name, using.draft(referral))


def _submission(using: Service) -> Make:
    """`check_addresses` asks whether unverified ones were accepted, before any is queued."""

    def make(referral: Referral) -> Submission:
        made = using.submission(referral, token=secrets.token_hex(8), accept_unverified=True)
        _ = made.sha256  # worked out here, where several processors are at it
        return made

    return make


# Checking


def _check(
    job: _Job,
    errors: Path | None,
    make: Make | None,
    made: Made | None,
    *,
    submitting: bool,
    despite: bool,
) -> list[dict[str, Any]]:
    """Say each error as it is found; the first of them as JSON."""
    from referrals.batch import survey

    shown: list[dict[str, Any]] = []
    progress = job.progress
    found = survey(
        job.rows,
        job.using,
        job.seen,
        submitting=submitting,
        make=make,
        made=made,
        despite_errors=despite,
    )
    with _error_file(errors) as write, progress.over("Checking", None) as step:
        for error in found:
            if error is None:
                step()
                continue
            write(error)
            if progress.as_json:
                if len(shown) < _MOST_IN_JSON:
                    shown.append({"row": error.row} | problem_json(error.problem))
            else:
                progress.say(f"row {error.row}: {error.problem}")
    return shown


@contextmanager
def _error_file(path: Path | None) -> Iterator[Callable[[RowError], None]]:
    """A CSV of the errors; it replaces the one of an earlier run."""
    from referrals.batch import error_writer

    if path is None:
        yield lambda _: None
        return
    with (
        _replacing(path) as temporary,
        temporary.open("w", encoding="utf-8-sig", newline="") as file,
    ):
        yield error_writer(file)


@contextmanager
def _replacing(path: Path, *, keep: bool = False) -> Iterator[Path]:
    """A temporary file (0600) that takes the name at the end, whole or not at all.

    Args:
        keep: leave another file that has the name alone, unless it is the very same.

    Raises:
        DraftChanged: another is there that differs.
        DraftUnwritable: the system says no.
    """
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(".referral-tmp", f".{path.stem}.", path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        if keep and path.exists():
            if not filecmp.cmp(temporary, path, shallow=False):
                raise DraftChanged(
                    f"{path} is there already and differs: somebody may be mending it. Choose "
                    "another name, or move it. Nothing was made."
                )
            return
        temporary.replace(path)
    except BrokenPipeError:
        raise  # whoever reads what we say has gone
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "the system says no"
        raise DraftUnwritable(f"{path} can't be written: {reason}. Nothing was made.") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _write_skipped(rows: RowFile, seen: Survey, skipped: Path) -> None:
    with _replacing(skipped, keep=True) as temporary:
        rows.copy(temporary, seen.wrong)


def _print_survey(seen: Survey, using: Service, errors: Path | None, held: Container[str]) -> None:
    table = []
    for (agency, intervention), count in sorted(
        seen.by_agency(using.directory).items(), key=lambda one: (one[0][0].title, one[0][1])
    ):
        note = ""
        if agency.email is None:
            note = "can only be drafted"
        elif not agency.is_verified(using.today()):
            note = "not verified lately"
        if agency.id in held:
            note = f"held, {note}" if note else "held"
        table.append([f"{count:,}", agency.title, agency.email or "(no address)", intervention,
                      note])  # fmt: skip
    if table:
        print_table(["Referrals", "Agency", "Address", "Intervention", "Note"], table)
    click.echo(f"{_rows(seen.rows)}, {seen.referrals:,} referrals.")
    if seen.wrong:
        where = f", listed in {errors}" if errors else ""
        click.echo(f"{_rows(len(seen.wrong))} to put right{where}.")


def _agencies_json(seen: Survey, using: Service, held: Container[str]) -> list[dict[str, Any]]:
    return [
        {
            "agency": agency.id,
            "title": agency.title,
            "to": agency.email,
            "verified": agency.is_verified(using.today()),
            "held": agency.id in held,
            "intervention": intervention,
            "referrals": count,
        }
        for (agency, intervention), count in seen.by_agency(using.directory).items()
    ]


# Drafting and sending


def _publish(
    job: _Job, made: Made, staging: Staging, result: dict[str, Any], folder: Path, *, beside: bool
) -> int:
    """Give each its name; one that somebody edited does not keep the others from theirs."""
    written = unchanged = 0
    faults: list[ReferralsError] = []
    for group in job.groups(made, "Drafting"):
        try:
            saved = staging.publish(group, beside=beside)
        except DraftError as error:
            faults.append(error)  # a full disk is full for the others too
            break
        for one in saved:
            if isinstance(one, DraftChanged):
                faults.append(one)
            else:
                written += one.written
                unchanged += not one.written
    result |= {
        "status": "drafted",
        "folder": str(folder),
        "drafted": written,
        "drafted_before": unchanged,
        "faults": [described(fault) for fault in faults],
    }
    if not job.progress.as_json:
        before = f"; {unchanged:,} drafted before, unchanged" if unchanged else ""
        click.echo(f"{written:,} drafted in {folder}{before}.")
        for fault in faults:
            report(fault, as_json=False)
    return exit_code(faults[-1]) if faults else 0


@dataclass
class _Queued:
    """What became of the referrals when they were put into the queue."""

    new: int = 0
    before: Counter[DeliveryStatus] = field(default_factory=Counter)


def _queue(job: _Job, made: Made, outbox: Outbox) -> _Queued:
    """In groups: while one goes to the disk, the next is read."""
    from referrals.bootstrap import now

    queued = _Queued()
    things = made.but(job.seen.wrong)
    with job.progress.over("Queueing", job.seen.referrals) as step:
        group = list(islice(things, GROUP))
        while group:
            answer = outbox.queue_soon(group, now())
            group = list(islice(things, GROUP))
            for one in answer.result():
                queued.new += one.new
                if not one.new:
                    queued.before[one.status] += 1
                step()
    return queued


def _send(job: _Job, made: Made, relay: RelaySettings, result: dict[str, Any]) -> int:
    """Queue them in groups, all of them before the first is submitted; then what is due."""
    from referrals.bootstrap import open_outbox
    from referrals.cli.hold import holds_json, tell_holds, waiting_by_hold
    from referrals.cli.keeping import purge_if_due
    from referrals.cli.queue import code_of, deliver_with
    from referrals.cli.relay import kept

    as_json = job.progress.as_json
    with open_outbox(job.settings) as outbox:
        queued = _queue(job, made, outbox)
        result |= {
            "queued": queued.new,
            "queued_before": {str(status): count for status, count in queued.before.items()},
        }
        if not as_json:
            click.echo(f"{queued.new:,} queued{_before(queued)}.")

        async def run() -> Any:
            waiting = sum(outbox.counts().get(str(one), 0) for one in ("queued", "delayed"))
            with job.progress.over("Submitting", waiting) as step:

                def told(claimed: Any, status: DeliveryStatus, outcome: Any) -> None:
                    if status is not DeliveryStatus.RELAYED and not as_json:
                        said = str(outcome.reply) if outcome.reply else outcome.words
                        job.progress.say(f"{claimed.outgoing.reference} {status}: {said}")
                    step()

                return await deliver_with(outbox, relay, job.settings, told=told).deliver_due()

        delivered = asyncio.run(run())
        holds = [(hold, number) for hold, number in waiting_by_hold(outbox) if number]
        purge_if_due(outbox, job.settings)
        in_doubt = outbox.counts().get(str(DeliveryStatus.UNCERTAIN), 0)
    cut_short = min(queued.before[DeliveryStatus.SENDING], delivered.recovered, in_doubt)
    fault: DeliveryError | None = delivered.relay_fault
    code = code_of(delivered) or (10 if cut_short else _earlier_code(queued))
    result |= {
        "status": "queued and delivered",
        "outcomes": {str(status): count for status, count in delivered.outcomes.items()},
        "relay_fault": described(fault) if fault else None,
        "holds": holds_json(holds),
    }
    if not as_json:
        tell_holds(holds)
        outcomes = sorted(delivered.outcomes.items())
        click.echo(", ".join(f"{n:,} {name}" for name, n in outcomes) or "Nothing was submitted.")
        if cut_short:
            click.echo(
                f"{cut_short:,} uncertain: the process that was submitting them ended. See "
                "`referrals outbox list`.",
                err=True,
            )
        if fault is not None:
            report(kept(fault), as_json=False)
    return code


def _before(queued: _Queued) -> str:
    if not queued.before:
        return ""
    listed = ", ".join(f"{count:,} {status}" for status, count in sorted(queued.before.items()))
    return f"; queued before: {listed}"


def _earlier_code(queued: _Queued) -> int:
    """The same file again must not hide that some of it failed the first time."""
    if queued.before[DeliveryStatus.UNCERTAIN]:
        return 10
    return 9 if queued.before[DeliveryStatus.FAILED] else 0


# Progress


class _Progress:
    """A bar on standard error for whoever looks at it; elsewhere a line now and then."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._bar: Any = None

    @contextmanager
    def over(self, what: str, total: int | None) -> Iterator[Callable[[], None]]:
        if not sys.stderr.isatty():
            yield _plain(what, total)
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            self._bar = bar
            try:
                yield lambda: bar.advance(task)
            finally:
                self._bar = None

    def say(self, line: str) -> None:
        if self._bar is None:
            click.echo(line, err=True)
            return
        from rich.text import Text

        self._bar.console.print(Text(line), soft_wrap=True)


def _plain(what: str, total: int | None) -> Callable[[], None]:
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if done % _EVERY == 0:
            # What a dead process was at is taken up besides.
            of = f" of {max(total, done):,}" if total else ""
            click.echo(f"{what}: {done:,}{of}", err=True)

    return step
