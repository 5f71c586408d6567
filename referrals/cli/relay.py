"""`send` and `sink`: the way to the relay, and a relay to try it with."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from referrals.cli.common import (
    case_argument,
    case_options,
    intervention_argument,
    json_option,
    print_findings,
    print_json,
    read_case_file,
)
from referrals.delivery import DeliveryStatus, Reply
from referrals.errors import (
    ConfigurationError,
    DeliveryError,
    DeliveryUncertain,
    PermanentDeliveryError,
    Problem,
    TransientDeliveryError,
)
from referrals.settings import RelaySettings
from referrals.settings_sources import variable_of
from referrals.telling import referral_json, reply_json

if TYPE_CHECKING:
    from referrals.holding import Hold
    from referrals.ports import Outbox
    from referrals.queueing import Attempt, Held, Outcome
    from referrals.service import Referral
    from referrals.settings import Settings
    from referrals.sink import Arrived

NO_RELAY = Problem(
    "relay.host",
    "is not set, so nothing can be submitted; drafts work without it.",
    "Set REFERRALS_RELAY_HOST, and REFERRALS_RELAY_USERNAME and REFERRALS_RELAY_PASSWORD if it "
    "wants a login; then try `referrals relay check`.",
    "no-relay",
)


R = TypeVar("R", bound=RelaySettings)


def with_passwords(settings: Settings) -> Settings:
    """The settings, each relay with its password asked for where only the user name is set.

    Raises:
        ConfigurationError: no relay, or no password and nobody to ask.
    """
    relay = configured_relay(settings.relay)
    further = {
        name: configured_relay(one, f"relays.{name}") for name, one in settings.relays.items()
    }
    return settings.model_copy(update={"relay": relay, "relays": further})


def configured_relay(relay: R, key: str = "relay") -> R:
    """One relay, as `with_passwords` has it; `key` is what the settings call it."""
    if not relay.host:
        raise ConfigurationError([NO_RELAY])
    if relay.username and relay.password is None:
        if not sys.stdin.isatty():
            name = f"{key}.password"
            raise ConfigurationError(
                [
                    Problem(
                        name,
                        "is not set and nobody is there to ask.",
                        f"Set {variable_of(name)}, or a file {name.replace('.', '_')} in the "
                        "secrets folder.",
                    )
                ]
            )
        from pydantic import SecretStr

        typed = click.prompt(f"Password of {relay.username} at {relay.name}", hide_input=True)
        return relay.model_copy(update={"password": SecretStr(typed)})
    return relay


@click.command("send")
@intervention_argument()
@case_argument
@case_options
@click.option("--yes", is_flag=True, help="Submit it. Without this, only say what would go where.")
@click.option(
    "--accept-unverified",
    is_flag=True,
    help="Submit to an address that nobody has verified within its review time.",
)
@json_option
def send_command(
    intervention: str,
    case: str,
    row: int | None,
    changes: tuple[str, ...],
    yes: bool,
    accept_unverified: bool,
    as_json: bool,
) -> None:
    """Submit the e-mail for INTERVENTION through the relay; without --yes, only show it.

    The recipient is the directory's, and nothing in a case can change it. "Relayed" means that
    the relay has taken the message: whether it was read, only a reply can tell. It is queued
    first, so that nothing is lost if the relay can't be reached; the same referral is never queued
    twice.

    \b
    Examples:
      referrals send mediation case.json
      referrals send mediation case.json --yes
    """
    from referrals.bootstrap import build_service, now, open_outbox, relays_of
    from referrals.cli.hold import holds_by_agency, read_holds
    from referrals.cli.hold import kept as kept_by
    from referrals.cli.keeping import purge_if_due
    from referrals.settings_sources import read_settings

    settings = read_settings()
    using = build_service(settings)
    using.directory.intervention(intervention)
    found, place = read_case_file(using, case, row, changes)
    referral = using.prepare(using.assess(found, place, intervention))
    if not yes:
        hold = read_holds(settings).get(referral.agency.id)
        if as_json:
            print_json(
                referral_json(referral) | {"status": "not submitted", "held": hold is not None}
            )
            return
        click.echo(f"{click.style(referral.reference, bold=True)} {intervention}")
        click.echo(f"  would go to {referral.agency.title}, {referral.agency.email or 'nobody'}")
        names = [one.name for one in relays_of(settings).values() if one.host]
        click.echo(f"  through {', or else '.join(names) or 'no relay yet'}")
        if hold is not None:
            click.echo(f"  {hold.words}: it would be kept")
        print_findings(referral.assessment.findings)
        click.echo("Nothing was submitted. Add --yes to submit it.")
        return
    using.check_address(referral, accept_unverified=accept_unverified)
    settings = with_passwords(settings)
    relay = settings.relay
    submission = using.submission(
        referral, token=secrets.token_hex(8), accept_unverified=accept_unverified
    )
    with open_outbox(settings) as outbox:
        queued = outbox.queue([submission], now())[0]
        held = outbox.held(message_id=queued.id)[0]
        outcome = None
        hold = kept_by(held, holds_by_agency(outbox))
        if hold is None and queued.status in (DeliveryStatus.QUEUED, DeliveryStatus.DELAYED):
            try:
                outcome = asyncio.run(_deliver_one(outbox, relay, settings, held))
            except KeyboardInterrupt:
                raise DeliveryUncertain(
                    f"Stopped while {held.reference} was being submitted: "
                    f"{'a relay' if settings.relays else relay.name} may have it or not. "
                    f"`referrals outbox show {held.reference}` tells what is known.",
                    stage="content",
                ) from None
            held = outbox.held(message_id=queued.id)[0]
            hold = kept_by(held, holds_by_agency(outbox)) if outcome is None else None
        attempts = outbox.attempts(queued.id)
        purge_if_due(outbox, settings)
    fault = outcome.fault if outcome else _earlier_fault(held, attempts)
    if hold is not None:
        _say_kept(referral, held, hold, as_json=as_json)
        raise click.exceptions.Exit(8)
    if fault is not None:
        raise kept(fault) if held.status is DeliveryStatus.DELAYED else fault
    _say_sent(referral, held, outcome, as_json=as_json)


async def _deliver_one(
    outbox: Outbox, relay: RelaySettings, settings: Settings, held: Held
) -> Outcome | None:
    """Attempt one queued message now.

    Raises:
        DeliveryError: the relay could not be used at all; the message stays queued.
    """
    from referrals.cli.queue import deliver_with

    outcomes: list[Outcome] = []
    worker = deliver_with(
        outbox, relay, settings, told=lambda _claimed, _status, outcome: outcomes.append(outcome)
    )
    report = await worker.deliver_due(only=held.id)
    if report.relay_fault is not None:
        raise kept(report.relay_fault)
    return outcomes[0] if outcomes else None


def kept(fault: DeliveryError) -> DeliveryError:
    """The same fault, with what becomes of the referral."""
    text = f"{fault} The referral is kept in the outbox: `referrals deliver` tries it again."
    return type(fault)(text, stage=fault.stage, reply=fault.reply)


def _earlier_fault(held: Held, attempts: Sequence[Attempt]) -> DeliveryError | None:
    """Why the same referral, queued before, is not relayed; None if it is."""
    start = f"The same referral was queued on {held.queued_at:%d %B %Y} and is {held.status}"
    again = f"`referrals outbox retry {held.reference}` and `referrals deliver` try it again."
    last = attempts[-1] if attempts else None
    stage = (last.stage if last else None) or "content"
    code = last.code if last else None
    reply = Reply(code, last.enhanced, last.words or "") if last and code else None
    said = f": {reply}" if reply else ""
    match held.status:
        case DeliveryStatus.FAILED:
            return PermanentDeliveryError(f"{start}{said}. {again}", stage=stage, reply=reply)
        case DeliveryStatus.UNCERTAIN:
            text = f"{start}: it may have arrived, so ask the agency first. {again}"
            return DeliveryUncertain(text, stage=stage, reply=reply)
        case DeliveryStatus.SENDING:
            text = f"{start}: another process is submitting it just now."
            return TransientDeliveryError(text, stage=stage)
        case _:
            return None


def _say_kept(referral: Referral, held: Held, hold: Hold, *, as_json: bool) -> None:
    from referrals.cli.hold import kept_words

    if as_json:
        print_json(referral_json(referral) | {"status": str(held.status), "held": True})
        return
    click.echo(f"{click.style(held.reference, bold=True)} {held.intervention}: {held.status}")
    click.echo(f"  {kept_words(hold)}")


def _say_sent(referral: Referral, held: Held, outcome: Outcome | None, *, as_json: bool) -> None:
    reply = outcome.reply if outcome else None
    if as_json:
        print_json(
            referral_json(referral)
            | {
                "status": str(held.status),
                "held": False,
                "queued_before": outcome is None,
                "relay": outcome.relay if outcome else None,
                "reply": reply_json(reply) if reply else None,
            }
        )
        return
    click.echo(f"{click.style(held.reference, bold=True)} {held.intervention}: {held.status}")
    click.echo(f"  to {referral.agency.title}, {held.recipient}")
    if outcome is not None:
        click.echo(f"  {outcome.relay} said: {reply}")
    else:
        click.echo(
            f"  The same referral was queued on {held.queued_at:%d %B %Y}, so nothing was "
            f"submitted now. `referrals outbox show {held.reference}` tells more."
        )
    click.echo(f"  acknowledgement asked for by {held.acknowledge_by}")


@click.command("sink")
@click.option("--port", type=click.IntRange(0, 65535), default=2525, show_default=True)
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for what arrives, as .eml files. [default: outbox/sink]",
)
@click.option(
    "--tls", type=click.Choice(["none", "starttls", "tls"]), default="none", show_default=True
)
@click.option("--certificate", type=click.Path(path_type=Path), help="PEM file, for TLS.")
@click.option("--key", type=click.Path(path_type=Path), help="PEM file of its key.")
@click.option("--username", help="Demand this login; its password is SINK_PASSWORD, or asked.")
@click.option("--quiet", is_flag=True, help="One line a message, without its text.")
@json_option
def sink_command(
    port: int,
    keep: Path | None,
    tls: str,
    certificate: Path | None,
    key: Path | None,
    username: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run a relay on this machine that prints and keeps what arrives, and goes no further.

    \b
    Example, in two terminals:
      referrals sink
      REFERRALS_RELAY_HOST=localhost REFERRALS_RELAY_PORT=2525 \\
        REFERRALS_RELAY_SECURITY=none \\
        referrals send mediation case.json --yes --accept-unverified
    """
    import gc
    import os

    from pydantic import SecretStr

    from referrals.settings_sources import read_settings
    from referrals.sink import CertificatePair, Sink

    if (certificate is None) != (key is None):
        raise click.UsageError("--certificate and --key belong together.")
    login = None
    if username:
        typed = os.environ.get("SINK_PASSWORD")
        if not typed and not sys.stdin.isatty():
            raise click.UsageError("--username needs a password: set SINK_PASSWORD.")
        typed = typed or click.prompt("Password", hide_input=True)
        login = (username, SecretStr(typed))
    pair = CertificatePair(certificate, key) if certificate and key else None

    async def run() -> None:
        sink = Sink(
            port=port,
            keep=keep or read_settings().outbox / "sink",
            tls=tls,  # type: ignore[arg-type]  # click has checked the choice
            certificate=pair,
            login=login,
            on_message=lambda arrived: _tell_arrived(arrived, quiet=quiet, as_json=as_json),
        )
        async with sink:
            click.echo(
                f"Listening on {sink.host}:{sink.port}; nothing is passed on. Ctrl-C stops.",
                err=True,
            )
            await asyncio.Event().wait()

    gc.enable()
    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)


def _tell_arrived(arrived: Arrived, *, quiet: bool, as_json: bool) -> None:
    """As text, or as one line of JSON a message."""
    if not as_json:
        print_arrived(arrived, quiet=quiet)
        return
    import json

    envelope = {"from": arrived.sender, "to": list(arrived.recipients)}
    facts = {"size": len(arrived.content), "tls": arrived.secured, "login": arrived.logged_in}
    kept_as = str(arrived.kept_as) if arrived.kept_as else None
    click.echo(
        json.dumps({"at": arrived.arrived_at.isoformat(), **envelope, **facts, "kept_as": kept_as})
    )


def print_arrived(arrived: Arrived, *, quiet: bool = False) -> None:
    """Envelope, header and text of a message, as somebody at the agency would read it."""
    from email import message_from_bytes
    from email.policy import default

    when = datetime.now(UTC).strftime("%H:%M:%S")
    secured = "over TLS" if arrived.secured else "without TLS"
    recipients = ", ".join(arrived.recipients)
    click.echo(
        click.style(f"{when} from {arrived.sender} to {recipients}, ", bold=True)
        + f"{len(arrived.content):,} bytes, {secured}"
    )
    if arrived.kept_as:
        click.echo(f"kept as {arrived.kept_as}")
    if quiet:
        return
    message = message_from_bytes(arrived.content, policy=default)
    for name, value in message.items():
        click.echo(f"{name}: {value}")
    part = message.get_body(("plain",))
    if part is not None:
        click.echo("\n" + str(part.get_content()))
