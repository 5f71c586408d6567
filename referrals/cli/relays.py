"""`relay`: which relays there are, whether they can be used, and what is known of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from referrals.bootstrap import has_outbox, now, of_relay, open_outbox, relays_of
from referrals.cli.common import json_option, print_json, print_table
from referrals.cli.relay import NO_RELAY, with_passwords
from referrals.errors import ConfigurationError, DeliveryError, OutboxError
from referrals.settings_sources import read_settings
from referrals.telling import described

if TYPE_CHECKING:
    from referrals.relay_health import RelayState
    from referrals.settings import RelaySettings, Settings
    from referrals.transports.smtp import RelayReport


@click.group("relay")
def relay_command() -> None:
    """The relays that messages are submitted through."""


@relay_command.command("check")
@json_option
def relay_check(as_json: bool) -> None:
    """Connect to each relay, secure the link, log in and leave; no message is submitted.

    One that was left alone, and is well, is used again from then on. If one of several can't be
    used, the exit code is that of the first such.

    \b
    Example: referrals relay check
    """
    settings = with_passwords(read_settings())
    if not settings.relays:
        report = asyncio.run(_checked("relay", settings.relay))
        if as_json:
            print_json(_report_json(report))
        else:
            _print_report(report)
        return
    faults: list[DeliveryError | ConfigurationError] = []
    told: list[dict[str, Any]] = []
    well: list[RelaySettings] = []
    for key, relay in relays_of(settings).items():
        try:
            report = asyncio.run(_checked(key, relay))
        except (DeliveryError, ConfigurationError) as error:
            faults.append(error)
            told.append({"key": key, "relay": relay.name, "ok": False, "error": described(error)})
            if not as_json:
                click.echo(f"{click.style(relay.name, fg='red', bold=True)} ({key}): {error}")
        else:
            well.append(relay)
            told.append({"key": key, "ok": True} | _report_json(report))
            if not as_json:
                _print_report(report)
    _take_into_use(settings, well)
    if as_json:
        print_json({"ok": not faults, "relays": told})
    if faults:
        from referrals.cli.faults import exit_code

        raise click.exceptions.Exit(exit_code(faults[0]))


async def _checked(key: str, relay: RelaySettings) -> RelayReport:
    from referrals.transports.failover import of_key
    from referrals.transports.smtp import check

    try:
        return await check(relay)
    except ConfigurationError as error:
        raise of_relay(error, key) from None
    except DeliveryError as error:
        raise of_key(error, key) from None


def _take_into_use(settings: Settings, well: Sequence[RelaySettings]) -> None:
    """A person has seen that they are well, so nobody has to wait to try them."""
    from referrals.transports.failover import shared_name

    if not (well and has_outbox(settings)):
        return
    try:
        with open_outbox(settings) as outbox:
            states = outbox.relay_states(now())
            for relay in well:
                name = shared_name(relay.name, relay.host)
                if name in states and states[name].fault is not None:
                    asyncio.run(outbox.note_well(name, now()))
    except OutboxError as error:
        click.echo(f"That they are well could not be noted: {error}", err=True)


def _print_report(report: RelayReport) -> None:
    click.echo(f"{click.style(report.relay, bold=True)} is ready.")
    for label, value in _report_lines(report):
        click.echo(f"  {label}: {value}")


def _report_json(report: RelayReport) -> dict[str, Any]:
    shown = asdict(report)
    if report.certificate:
        shown["certificate"]["not_after"] = report.certificate.not_after.isoformat()
    return shown


def _report_lines(report: RelayReport) -> Iterator[tuple[str, str]]:
    for key, value in _report_json(report).items():
        match value:
            case dict():
                value = ", ".join(f"{name} {inner}" for name, inner in value.items())
            case tuple():
                value = ", ".join(value)
            case bool():
                value = "yes" if value else "no"
        if key != "relay" and value is not None:
            yield key.replace("_", " "), str(value)


@relay_command.command("list")
@json_option
def relay_list(as_json: bool) -> None:
    """List the relays in the order in which they are tried, with limits and health.

    The links counted are those of all processes to a relay whose `connections` are limited; health
    is known where there are several relays.

    \b
    Example: referrals relay list
    """
    settings = read_settings()
    if not settings.relay.host:
        raise ConfigurationError([NO_RELAY])
    known = _known(settings)
    relays = relays_of(settings)
    if as_json:
        print_json([_relay_json(key, relay, known) for key, relay in relays.items()])
        return
    print_table(
        ["", "Setting", "Relay", "Security", "Links", "A minute", "Health"],
        [
            [
                str(number),
                key,
                relay.name,
                str(relay.security),
                _links_words(relay, known.links.get(known.name(relay), {})),
                str(relay.rate_per_minute or "no limit"),
                _health_words(known.states.get(known.name(relay))),
            ]
            for number, (key, relay) in enumerate(relays.items(), 1)
        ],
    )


@dataclass(frozen=True)
class _Known:
    """What the outbox knows of relays: links by relay and machine, and health."""

    links: Mapping[str, Mapping[str, int]]
    states: Mapping[str, RelayState]

    @staticmethod
    def name(relay: RelaySettings) -> str:
        from referrals.transports.failover import shared_name

        return shared_name(relay.name, relay.host)


def _known(settings: Settings) -> _Known:
    from referrals.worker import is_gone

    if not has_outbox(settings):
        return _Known({}, {})
    links: dict[str, Counter[str]] = {}
    with open_outbox(settings) as outbox:
        for link in outbox.links(now(), is_gone=is_gone):
            links.setdefault(link.relay, Counter())[link.machine] += 1
        return _Known(links, outbox.relay_states(now()))


def _relay_json(key: str, relay: RelaySettings, known: _Known) -> dict[str, Any]:
    state = known.states.get(known.name(relay))
    fault = state.fault if state else None
    return {
        "key": key,
        "relay": relay.name,
        "security": str(relay.security),
        "connections": relay.connections,
        "rate_per_minute": relay.rate_per_minute,
        "links": dict(known.links.get(known.name(relay), {})),
        "well": fault is None,
        "fault": fault.words if fault else None,
        "since": state.since.isoformat() if state and state.since else None,
        "left_alone_until": state.until.isoformat() if state and state.until else None,
        "faults": state.faults if state else 0,
        "returns": state.returns if state else 0,
    }


def _links_words(relay: RelaySettings, links: Mapping[str, int]) -> str:
    if not relay.connections:
        return "no limit"
    by_machine = ", ".join(f"{count} by {machine}" for machine, count in sorted(links.items()))
    used = f"{sum(links.values())} of {relay.connections}"
    return f"{used} ({by_machine})" if links else used


def _health_words(state: RelayState | None) -> str:
    if state is None or state.fault is None:
        return (
            "well" if state is None or not state.faults else f"well; {state.faults} faults so far"
        )
    until = f", left alone until {state.until:%H:%M:%S} UTC" if state.until else ""
    since = f" since {state.since:%Y-%m-%d %H:%M} UTC" if state.since else ""
    return f"{state.fault.words}{since}{until}"
