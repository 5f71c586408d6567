"""`outbox`, `deliver`, `audit`, `due` and `ack`: the queue and the account of it."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from referrals import bootstrap
from referrals.bootstrap import open_outbox
from referrals.cli.common import json_option, print_json, print_table
from referrals.cli.relay import configured_relay
from referrals.delivery import DeliveryStatus
from referrals.errors import NotInOutbox
from referrals.settings_sources import read_settings

if TYPE_CHECKING:
    from referrals.delivery import RetryPolicy
    from referrals.outboxes.sqlite import Claimed, Held, Outcome, SqliteOutbox
    from referrals.settings import DeliverySettings, RelaySettings, Settings
    from referrals.worker import DeliveryOptions, Report, Worker

_COLOURS = {
    DeliveryStatus.RELAYED: "green",
    DeliveryStatus.FAILED: "red",
    DeliveryStatus.UNCERTAIN: "yellow",
    DeliveryStatus.DELAYED: "yellow",
}
_STATUSES = click.Choice([str(status) for status in DeliveryStatus if status != "drafted"])
_REFERENCE = "REFERENCE"


def held_json(held: Held) -> dict[str, Any]:
    return {
        "reference": held.reference,
        "case_reference": held.case_reference,
        "intervention": held.intervention,
        "agency": held.agency,
        "to": held.recipient,
        "status": str(held.status),
        "attempts": held.attempts,
        "may_arrive_twice": held.maybe_doubled,
        "queued_at": held.queued_at.isoformat(),
        "due_at": held.due_at.isoformat() if held.due_at else None,
        "relayed_at": held.relayed_at.isoformat() if held.relayed_at else None,
        "acknowledge_by": held.acknowledge_by.isoformat(),
        "acknowledged_on": held.acknowledged_on.isoformat() if held.acknowledged_on else None,
        "message_id": held.message_id,
        "sha256": held.sha256,
        "size": held.size,
        "purged_at": held.purged_at.isoformat() if held.purged_at else None,
    }


def _status(status: DeliveryStatus) -> str:
    return click.style(str(status), fg=_COLOURS.get(status))


@click.group("outbox")
def outbox_command() -> None:
    """What was queued, and what became of it."""


@outbox_command.command("list")
@click.option("--status", type=_STATUSES, help="Only those of one status.")
@click.option("--case", "case_reference", help="Only those of one case reference.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@json_option
def outbox_list(status: str | None, case_reference: str | None, limit: int, as_json: bool) -> None:
    """List queued messages, the newest first, and how many there are of each status."""
    with open_outbox(read_settings()) as outbox:
        counts = outbox.counts()
        found = outbox.held(
            status=DeliveryStatus(status) if status else None,
            case_reference=case_reference.upper() if case_reference else None,
            limit=limit,
        )
    if as_json:
        print_json({"counts": counts, "messages": [held_json(one) for one in found]})
        return
    rows = [
        [
            one.reference,
            str(one.status) + (" (may arrive twice)" if one.maybe_doubled else ""),
            one.intervention,
            one.case_reference,
            f"{one.queued_at:%Y-%m-%d %H:%M}",
            str(one.attempts),
        ]
        for one in found
    ]
    print_table(["Reference", "Status", "Intervention", "Case", "Queued (UTC)", "Attempts"], rows)
    click.echo(", ".join(f"{number} {name}" for name, number in sorted(counts.items())) or "Empty.")


@outbox_command.command("show")
@click.argument("reference", metavar=_REFERENCE)
@json_option
def outbox_show(reference: str, as_json: bool) -> None:
    """Show one message: its status, each attempt and what the relay said."""
    with open_outbox(read_settings()) as outbox:
        found = outbox.held(reference=reference.upper(), limit=10)
        if not found:
            raise NotInOutbox(f"{reference.upper()} is not in the outbox.")
        attempts = {one.id: outbox.attempts(one.id) for one in found}
    if as_json:
        print_json(
            [
                held_json(one)
                | {
                    "tries": [
                        {
                            "started_at": attempt.started_at.isoformat(),
                            "ended_at": attempt.ended_at.isoformat() if attempt.ended_at else None,
                            "outcome": attempt.outcome,
                            "stage": attempt.stage,
                            "code": attempt.code,
                            "enhanced": attempt.enhanced,
                            "words": attempt.words,
                            "relay": attempt.relay,
                        }
                        for attempt in attempts[one.id]
                    ]
                }
                for one in found
            ]
        )
        return
    for one in found:
        click.echo(f"{click.style(one.reference, bold=True)} {one.intervention}")
        twice = ", may arrive twice" if one.maybe_doubled else ""
        click.echo(f"  status: {_status(one.status)}{twice}")
        click.echo(f"  case: {one.case_reference}")
        click.echo(f"  to: {one.recipient}")
        click.echo(f"  queued: {one.queued_at:%Y-%m-%d %H:%M:%S} UTC, {one.size:,} bytes")
        if one.due_at:
            click.echo(f"  next attempt: {one.due_at:%Y-%m-%d %H:%M:%S} UTC")
        answered = f"acknowledged {one.acknowledged_on}" if one.acknowledged_on else "no answer yet"
        click.echo(f"  answer asked for by {one.acknowledge_by}: {answered}")
        click.echo(f"  Message-ID: {one.message_id}")
        for number, attempt in enumerate(attempts[one.id], 1):
            said = " ".join(
                str(part) for part in (attempt.code, attempt.enhanced, attempt.words) if part
            )
            click.echo(
                f"  attempt {number}, {attempt.started_at:%Y-%m-%d %H:%M:%S} UTC, "
                f"{attempt.relay or 'relay not known'}: {attempt.outcome or 'under way'}. {said}"
            )


def _decision(verb: str) -> Any:
    @click.argument("reference", metavar=_REFERENCE)
    @json_option
    def command(reference: str, as_json: bool) -> None:
        with open_outbox(read_settings()) as outbox:
            held: Held = getattr(outbox, verb)(reference.upper(), bootstrap.now())
        if as_json:
            print_json(held_json(held))
        else:
            click.echo(f"{click.style(held.reference, bold=True)}: {_status(held.status)}")

    return command


outbox_command.command(
    "retry", help="Make a delayed, failed or uncertain message due now, for the next deliver."
)(_decision("retry"))
outbox_command.command("cancel", help="Keep a message that is not relayed from being tried again.")(
    _decision("cancel")
)


@outbox_command.command("purge")
@click.option("--days", type=click.IntRange(0), help="Instead of delivery.keep_content_days.")
@json_option
def outbox_purge(days: int | None, as_json: bool) -> None:
    """Forget the content of what was relayed or cancelled long ago, and delete old drafts.

    The account of it stays: who, when, to which agency, names of fields, never a value.
    """
    settings = read_settings()
    keep = settings.delivery.keep_content_days if days is None else days
    with open_outbox(settings) as outbox:
        purged = outbox.purge(bootstrap.now() - timedelta(days=keep), bootstrap.now())
    drafts = _purge_drafts(settings)
    if as_json:
        print_json({"purged": purged, "drafts_deleted": drafts})
    else:
        click.echo(f"{purged} messages purged, {drafts} drafts deleted.")


def _purge_drafts(settings: Settings) -> int:
    oldest = (bootstrap.now() - timedelta(days=settings.delivery.keep_drafts_days)).timestamp()
    old = [
        draft
        for draft in (settings.outbox / "drafts").glob("*.eml")
        if draft.is_file() and draft.stat().st_mtime < oldest
    ]
    for draft in old:
        draft.unlink(missing_ok=True)
    return len(old)


@outbox_command.command("export")
@click.argument("case_reference", metavar="CASE_REFERENCE")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
@json_option
def outbox_export(case_reference: str, out: Path, as_json: bool) -> None:
    """Write everything held on one case into a folder: messages, status, audit.

    For a subject access request (UK GDPR art. 15).
    """
    import json

    from referrals.drafts import save_draft

    case_reference = case_reference.upper()
    with open_outbox(read_settings()) as outbox:
        found = outbox.held(case_reference=case_reference, limit=10_000)
        entries = [entry_json(entry) for entry in outbox.audit(case_reference)]
        if not found and not entries:
            raise NotInOutbox(f"Nothing of {case_reference} is in the outbox.")
        for one in found:
            content = outbox.content(one.id)
            if content is not None:
                save_draft(out, f"{one.reference}-{one.intervention}-{one.id}.eml", content)
    account = {"messages": [held_json(one) for one in found], "audit": entries}
    text = json.dumps(account, indent=2).encode()
    save_draft(out, f"{case_reference.replace('/', '_')}.json", text, beside=True)
    if as_json:
        print_json({"messages": len(found), "audit": len(entries), "folder": str(out)})
    else:
        click.echo(f"{len(found)} messages and {len(entries)} audit entries written to {out}.")


@outbox_command.command("erase")
@click.argument("case_reference", metavar="CASE_REFERENCE")
@click.option("--yes", is_flag=True, help="Erase. Without this, only say what would go.")
@json_option
def outbox_erase(case_reference: str, yes: bool, as_json: bool) -> None:
    """Forget the content of every message of one case; the audit of it stays.

    For a request for erasure (UK GDPR art. 17). Drafts are files: delete them by hand.
    """
    case_reference = case_reference.upper()
    with open_outbox(read_settings()) as outbox:
        found = outbox.held(case_reference=case_reference, limit=10_000)
        if not found:
            raise NotInOutbox(f"Nothing of {case_reference} is in the outbox.")
        erased = outbox.erase(case_reference, bootstrap.now()) if yes else 0
    whole = [one.reference for one in found if one.purged_at is None]
    if as_json:
        print_json({"erased": erased, "found": whole})
    elif yes:
        click.echo(f"{erased} messages erased.")
    else:
        click.echo(f"{len(whole)} messages would be erased. Add --yes to erase them.")


# Delivering


def policy_of(delivery: DeliverySettings) -> RetryPolicy:
    from referrals.delivery import RetryPolicy

    return RetryPolicy(
        first_wait=timedelta(seconds=delivery.first_wait_s),
        longest_wait=timedelta(seconds=delivery.longest_wait_s),
        give_up_after=timedelta(hours=delivery.give_up_after_h),
    )


def options_of(delivery: DeliverySettings) -> DeliveryOptions:
    from referrals.worker import DeliveryOptions

    return DeliveryOptions(
        lanes=delivery.lanes,
        rate_per_minute=delivery.rate_per_minute,
        policy=policy_of(delivery),
        hold_uncertain=delivery.on_uncertain == "hold",
    )


def deliver_with(
    outbox: SqliteOutbox,
    relay: RelaySettings,
    settings: Settings,
    *,
    told: Callable[[Claimed, DeliveryStatus, Outcome], None],
) -> Worker:
    """A worker that SIGTERM or Ctrl-C stops once what is under way is done.

    A second Ctrl-C ends it at once; what it was submitting is then uncertain.
    """
    from referrals.transports.smtp import SmtpTransport
    from referrals.worker import Worker

    worker = Worker(
        outbox,
        SmtpTransport(relay),
        options_of(settings.delivery),
        now=bootstrap.now,
        jitter=lambda: random.uniform(-1, 1),  # noqa: S311 - spreads retries, no secret
        told=told,
    )
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)
        click.echo("Finishing what is under way, then stopping.", err=True)
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
    """
    from referrals.worker import Report

    settings = read_settings()
    relay = configured_relay(settings.relay)
    whole = Report()

    def told(claimed: Claimed, status: DeliveryStatus, outcome: Outcome) -> None:
        if not as_json:
            said = str(outcome.reply) if outcome.reply else outcome.words
            click.echo(f"{claimed.outgoing.reference} {_status(status)}: {said}")

    async def run() -> None:
        nonlocal whole
        with open_outbox(settings) as outbox:
            worker = deliver_with(outbox, relay, settings, told=told)
            if watch:
                await worker.watch(lambda report: _seen(report, as_json))
            else:
                whole = await worker.deliver_due()

    asyncio.run(run())
    if watch:
        return
    with open_outbox(settings) as outbox:
        counts = outbox.counts()
    if as_json:
        print_json(
            {
                "outcomes": {str(key): number for key, number in whole.outcomes.items()},
                "counts": counts,
                "relay_fault": str(whole.relay_fault) if whole.relay_fault else None,
            }
        )
    elif whole.relay_fault is None:
        click.echo(", ".join(f"{n} {name}" for name, n in sorted(counts.items())) or "Empty.")
    if whole.relay_fault is not None and not as_json:
        raise whole.relay_fault
    code = code_of(whole)
    if code:
        raise click.exceptions.Exit(code)


def _seen(report: Report, as_json: bool) -> None:
    if report.relay_fault is not None and not as_json:
        click.echo(f"Waiting: {report.relay_fault}", err=True)


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


# The audit and what is awaited


@click.group("audit")
def audit_command() -> None:
    """The disclosure log: who told whom what kind of thing, when and on what ground."""


def entry_json(entry: Any) -> dict[str, Any]:
    return {
        "number": entry.number,
        "at": entry.at.isoformat(),
        "actor": entry.actor,
        "action": entry.action,
        "reference": entry.reference,
        "case_reference": entry.case_reference,
        "detail": dict(entry.detail),
        "before": entry.before,
        "hash": entry.hash,
    }


@audit_command.command("list")
@click.option("--case", "case_reference", help="Only the entries of one case reference.")
@json_option
def audit_list(case_reference: str | None, as_json: bool) -> None:
    """List the entries, the oldest first."""
    with open_outbox(read_settings()) as outbox:
        entries = list(outbox.audit(case_reference.upper() if case_reference else None))
    if as_json:
        print_json([entry_json(entry) for entry in entries])
        return
    rows = [
        [str(entry.number), f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.actor, entry.action,
         entry.reference, entry.case_reference]
        for entry in entries
    ]  # fmt: skip
    print_table(["No.", "When (UTC)", "Who", "What", "Reference", "Case"], rows)


@audit_command.command("export")
@json_option
def audit_export(as_json: bool) -> None:  # noqa: ARG001 - it is JSON either way
    """Print every entry as a line of JSON."""
    import json

    with open_outbox(read_settings()) as outbox:
        for entry in outbox.audit():
            click.echo(json.dumps(entry_json(entry), sort_keys=True))


@audit_command.command("verify")
@json_option
def audit_verify(as_json: bool) -> None:
    """Prove that no entry was altered, taken out or put in; exit code 12 if one was.

    Prints the number and the hash of the last entry: keep them elsewhere, and a log that was cut
    short is noticed too.
    """
    from referrals.audit import FIRST, Entry, verify

    last: list[Entry] = []

    def watched(entries: Any) -> Any:
        for entry in entries:
            last[:] = [entry]
            yield entry

    with open_outbox(read_settings()) as outbox:
        breaks = list(verify(watched(outbox.audit())))
    number, digest = (last[0].number, last[0].hash) if last else (0, FIRST)
    if as_json:
        print_json(
            {
                "ok": not breaks,
                "entries": number,
                "last_hash": digest,
                "breaks": [{"number": one.number, "what": one.what} for one in breaks],
            }
        )
    else:
        for one in breaks:
            click.echo(f"{click.style('broken', fg='red', bold=True)} at {one.number}: {one.what}")
        state = "is whole" if not breaks else "was tampered with"
        click.echo(f"The log {state}: {number} entries, the last with hash {digest}.")
    if breaks:
        raise click.exceptions.Exit(12)


@click.command("due")
@json_option
def due_command(as_json: bool) -> None:
    """List referrals whose answer is overdue."""
    from referrals.cli.common import service

    today = service().today()
    with open_outbox(read_settings()) as outbox:
        found = outbox.unacknowledged(today)
    if as_json:
        print_json([held_json(one) for one in found])
        return
    rows: Sequence[Sequence[str]] = [
        [one.reference, one.intervention, one.case_reference, one.recipient,
         f"since {one.acknowledge_by}"]
        for one in found
    ]  # fmt: skip
    print_table(["Reference", "Intervention", "Case", "Agency", "Overdue"], rows)
    if not found:
        click.echo("Nothing is overdue.")


@click.command("ack")
@click.argument("reference", metavar=_REFERENCE)
@json_option
def ack_command(reference: str, as_json: bool) -> None:
    """Record that the agency has answered for a referral."""
    from referrals.cli.common import service

    today = service().today()
    with open_outbox(read_settings()) as outbox:
        held = outbox.acknowledge(reference.upper(), today, bootstrap.now())
    if as_json:
        print_json(held_json(held))
    else:
        click.echo(f"{click.style(held.reference, bold=True)}: acknowledged {today}")
