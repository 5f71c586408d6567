"""`outbox` and `deliver`: what waits for the relay, and what became of it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from referrals import bootstrap
from referrals.bootstrap import open_outbox
from referrals.cli.common import json_option, print_json, print_table
from referrals.cli.held import (
    COLOURS,
    attempt_words,
    counted,
    days_words,
    moment_words,
    next_step,
    told_status,
)
from referrals.cli.hold import (
    holds_by_agency,
    holds_json,
    kept,
    kept_words,
    tell_holds,
    waiting_by_hold,
)
from referrals.cli.keeping import (
    daily_purge,
    erase_command,
    export_command,
    purge_command,
    purge_if_due,
)
from referrals.cli.relay import with_passwords
from referrals.cli.restored import restored_command
from referrals.delivery import DeliveryStatus
from referrals.errors import NotInOutbox
from referrals.settings_sources import read_settings
from referrals.telling import attempt_json, held_json
from referrals.texts import day_words

if TYPE_CHECKING:
    from referrals.ports import Outbox
    from referrals.queueing import Claimed, Held, Outcome
    from referrals.retention import Retained
    from referrals.settings import RelaySettings, Settings
    from referrals.worker import Report, Worker

_STATUSES = click.Choice([str(status) for status in DeliveryStatus if status != "drafted"])
_REFERENCE = "REFERENCE"


@click.group("outbox")
def outbox_command() -> None:
    """What was queued, and what became of it."""


outbox_command.add_command(purge_command)
outbox_command.add_command(export_command)
outbox_command.add_command(erase_command)
outbox_command.add_command(restored_command)


@outbox_command.command("list")
@click.option("--status", type=_STATUSES, help="Only those of one status.")
@click.option("--case", "case_reference", help="Only those of one case reference.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@json_option
def outbox_list(status: str | None, case_reference: str | None, limit: int, as_json: bool) -> None:
    """List queued messages, the newest first, and how many there are of each status.

    \b
    Example: referrals outbox list --status failed
    """
    settings = read_settings()
    days = settings.delivery.keep_unfinished_days
    with open_outbox(settings) as outbox:
        counts = outbox.counts()
        found = outbox.held(
            status=DeliveryStatus(status) if status else None,
            case_reference=case_reference.upper() if case_reference else None,
            limit=limit,
        )
        old = len(outbox.unfinished(bootstrap.now() - timedelta(days=days)))
        holds = waiting_by_hold(outbox)
    if as_json:
        print_json(
            {
                "counts": counts,
                "unfinished_and_old": old,
                "messages": [held_json(one) for one in found],
                "holds": holds_json(holds),
            }
        )
        return
    by_agency = {hold.agency: hold for hold, _ in holds}
    rows = [
        [
            one.reference,
            told_status(one) + (", held" if kept(one, by_agency) else ""),
            one.intervention,
            one.case_reference,
            f"{one.queued_at:%Y-%m-%d %H:%M}",
            str(one.attempts),
        ]
        for one in found
    ]
    print_table(["Reference", "Status", "Intervention", "Case", "Queued (UTC)", "Attempts"], rows)
    filtered = status is not None or case_reference is not None
    if filtered and not found:
        click.echo("None like that.")
    elif len(found) == limit:
        click.echo(f"The newest {limit:,}; --limit shows more.")
    _print_counts(counts, "In the outbox: " if filtered else "")
    tell_holds(holds)
    if old:
        click.echo(
            f"{click.style('Unfinished', fg='red', bold=True)}: {counted(old, 'message')} neither "
            f"relayed nor cancelled, and untouched for {days_words(days)} or more. "
            "`referrals outbox purge --dry-run` lists them.",
            err=True,
        )


def _print_counts(counts: Mapping[str, int], before: str = "") -> None:
    told = ", ".join(f"{number:,} {name}" for name, number in sorted(counts.items()))
    click.echo(f"{before}{told}." if told else "Empty.")


@outbox_command.command("show")
@click.argument("reference", metavar=_REFERENCE)
@json_option
def outbox_show(reference: str, as_json: bool) -> None:
    """Show one message: its status, what to do next, each attempt and what the relay said.

    \b
    Example: referrals outbox show K7QM-29TX-WCF4
    """
    with open_outbox(read_settings()) as outbox:
        found = outbox.held(reference=reference.upper(), limit=10)
        if not found:
            raise NotInOutbox(f"{reference.upper()} is not in the outbox.")
        attempts = {one.id: outbox.attempts(one.id) for one in found}
        holds = holds_by_agency(outbox)
    if as_json:
        print_json(
            [
                {
                    **held_json(one),
                    "held": kept(one, holds) is not None,
                    "tries": [attempt_json(attempt) for attempt in attempts[one.id]],
                }
                for one in found
            ]
        )
        return
    for one in found:
        click.echo(f"{click.style(one.reference, bold=True)} {one.intervention}")
        click.echo(f"  status: {_status(one)}")
        hold = kept(one, holds)
        click.echo(f"  next step: {kept_words(hold) if hold else _next_step(one)}")
        click.echo(f"  case: {one.case_reference}")
        click.echo(f"  to: {one.recipient}")
        click.echo(f"  queued: {moment_words(one.queued_at)}, {one.size:,} bytes")
        if one.due_at:
            click.echo(f"  next attempt: {moment_words(one.due_at)} or later")
        if one.relayed_at:
            click.echo(f"  relayed: {moment_words(one.relayed_at)}")
        answered = (
            f"recorded on {day_words(one.acknowledged_on)}"
            if one.acknowledged_on
            else "none recorded"
        )
        click.echo(f"  answer: {answered}; asked for by {day_words(one.acknowledge_by)}")
        if one.purged_at:
            click.echo(f"  content: forgotten on {day_words(one.purged_at.date())}")
        click.echo(f"  Message-ID: {one.message_id}")
        for number, attempt in enumerate(attempts[one.id], 1):
            click.echo(f"  attempt {number}: {attempt_words(attempt)}")


def _next_step(held: Held) -> str:
    return next_step(held, bootstrap.now().date())


def _status(held: Held) -> str:
    return click.style(told_status(held), fg=COLOURS.get(held.status))


def _decision(verb: str) -> Any:
    @click.argument("reference", metavar=_REFERENCE)
    @json_option
    def command(reference: str, as_json: bool) -> None:
        with open_outbox(read_settings()) as outbox:
            if verb == "retry":
                _check_not_moved(outbox, reference.upper())
            held: Held = getattr(outbox, verb)(reference.upper(), bootstrap.now())
            hold = kept(held, holds_by_agency(outbox))
        if as_json:
            print_json(held_json(held))
        else:
            click.echo(
                f"{click.style(held.reference, bold=True)} {held.intervention}: {_status(held)}. "
                + (kept_words(hold) if hold else f"Next step: {_next_step(held)}.")
            )

    return command


def _check_not_moved(outbox: Outbox, reference: str) -> None:
    from referrals.cli.common import service
    from referrals.holding import check_not_moved

    for held in outbox.held(reference=reference, limit=1):
        check_not_moved(held, service().directory.agencies.get(held.agency))


outbox_command.command(
    "retry", help="Make a delayed, failed or uncertain message due now, for the next deliver."
)(_decision("retry"))
outbox_command.command("cancel", help="Keep a message that is not relayed from being tried again.")(
    _decision("cancel")
)


# Delivering


def deliver_with(
    outbox: Outbox,
    relay: RelaySettings,
    settings: Settings,
    *,
    told: Callable[[Claimed, DeliveryStatus, Outcome], None],
    stopping: Callable[[], None] = lambda: None,
) -> Worker:
    """A worker that SIGTERM or Ctrl-C stops once what is under way is done.

    A second Ctrl-C ends it at once; what it was submitting is then uncertain.
    """
    worker = bootstrap.build_worker(outbox, relay, settings, told=told)
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)
        click.echo("Finishing what is under way, then stopping.", err=True)
        stopping()
        worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    return worker


@click.command("deliver")
@click.option("--watch", is_flag=True, help="Go on until stopped (SIGTERM, Ctrl-C).")
@json_option
def deliver_command(watch: bool, as_json: bool) -> None:
    """Try every message that is due; with --watch, whatever becomes due.

    Exit code 0 if all that was due is relayed; 8 if some are delayed, 9 if some failed, 10 if
    some are uncertain, 11 if the relay refused us. A stop finishes what is under way first.

    Once a day it forgets old content afterwards, as `outbox purge` does (delivery.purge).
    """
    from referrals.supervisor import Supervisor
    from referrals.vitals import Vitals
    from referrals.worker import Report

    settings = with_passwords(read_settings())
    relay = settings.relay
    vitals = Vitals(Supervisor.of(os.environ if watch else {}), settings.delivery.lanes)
    whole = Report()
    purged: Retained | None = None
    held = settings.delivery.on_uncertain == "hold"
    after = {
        DeliveryStatus.DELAYED: "It is tried again later.",
        DeliveryStatus.FAILED: "It is not tried again: see `referrals outbox show`.",
        DeliveryStatus.UNCERTAIN: (
            "It waits for you: see `referrals outbox show`."
            if held
            else "It is tried again later, and may arrive twice."
        ),
    }

    def told(claimed: Claimed, status: DeliveryStatus, outcome: Outcome) -> None:
        vitals.recorded(status)
        if not as_json:
            tell(claimed, status, outcome)
            if status in after:
                click.echo(f"  {after[status]}")

    async def run() -> None:
        nonlocal whole, purged
        with open_outbox(settings) as outbox:
            worker = deliver_with(outbox, relay, settings, told=told, stopping=vitals.stopping)
            if watch:
                gc.enable()
                async with vitals.watched():
                    vitals.opened()
                    await watch_with(outbox, worker, settings, as_json, vitals.seen)
            else:
                whole = await worker.deliver_due()
                purged = purge_if_due(outbox, settings)

    asyncio.run(run())
    if watch:
        return
    with open_outbox(settings) as outbox:
        counts = outbox.counts()
        holds = waiting_by_hold(outbox)
    if as_json:
        print_json(
            {
                "outcomes": {str(key): number for key, number in whole.outcomes.items()},
                "counts": counts,
                "relay_fault": str(whole.relay_fault) if whole.relay_fault else None,
                "purged": purged.messages if purged else 0,
                "drafts_deleted": len(purged.drafts) if purged else 0,
                "holds": holds_json(holds),
            }
        )
    else:
        if purged and (purged.messages or purged.drafts):
            click.echo(
                f"By age, the content of {counted(purged.messages, 'message')} was forgotten and "
                f"{counted(len(purged.drafts), 'draft')} deleted."
            )
        if whole.relay_fault is None:
            _print_counts(counts, "In the outbox: ")
        tell_holds(holds)
    if whole.relay_fault is not None and not as_json:
        raise whole.relay_fault
    code = code_of(whole)
    if code:
        raise click.exceptions.Exit(code)


async def watch_with(
    outbox: Outbox,
    worker: Worker,
    settings: Settings,
    as_json: bool,
    seen: Callable[[Report], None],
) -> None:
    """Deliver whatever becomes due, and purge daily beside it, until the worker is stopped.

    `seen` is told of each round.
    """
    loop = asyncio.get_running_loop()
    purging = daily_purge(settings)
    fault = ""

    def looked(report: Report) -> None:
        nonlocal fault
        seen(report)
        before, fault = fault, str(report.relay_fault or "")
        if fault and fault != before and not as_json:
            click.echo(f"Waiting: {fault}", err=True)
        purging.look(bootstrap.now())

    def heard() -> None:
        loop.call_soon_threadsafe(worker.wake)

    try:
        with outbox.listening(heard):
            await worker.watch(looked)
    finally:
        purging.stop()


def tell(claimed: Claimed, status: DeliveryStatus, outcome: Outcome) -> None:
    said = str(outcome.reply) if outcome.reply else outcome.words
    word = click.style(str(status), fg=COLOURS.get(status))
    click.echo(f"{claimed.outgoing.reference} {word}: {said}")


def code_of(report: Report) -> int:
    from referrals.errors import RelayRefused

    if report.relay_fault is not None:
        return 11 if isinstance(report.relay_fault, RelayRefused) else 8
    for status, code in (
        (DeliveryStatus.UNCERTAIN, 10),
        (DeliveryStatus.FAILED, 9),
        (DeliveryStatus.DELAYED, 8),
    ):
        if report.outcomes[status]:
            return code
    return 0
