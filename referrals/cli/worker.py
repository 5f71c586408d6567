"""`worker`: delivers from PostgreSQL until it is stopped."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING

import click

from referrals import bootstrap
from referrals.cli.common import json_option, print_json
from referrals.cli.listening import Address, AddressType
from referrals.cli.queue import tell, watch_with
from referrals.cli.relay import with_passwords
from referrals.errors import ConfigurationError, OutboxUnusable, Problem
from referrals.settings_sources import read_settings
from referrals.supervisor import Supervisor
from referrals.vitals import Vitals

if TYPE_CHECKING:
    from referrals.delivery import DeliveryStatus
    from referrals.queueing import Claimed, Outcome
    from referrals.settings import RelaySettings, Settings
    from referrals.worker import Worker

_AGAIN_S = (1.0, 5.0, 15.0)
"""Waits before a database that went away is asked again; the last one, from then on."""


@click.command("worker")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 64),
    help="Connections to the relay at the same time. [default: delivery.lanes]",
)
@click.option(
    "--health",
    type=AddressType(),
    metavar="[HOST:]PORT",
    help="Answer there about health and figures; on this machine alone unless HOST is given.",
)
@json_option
def worker_command(concurrency: int | None, health: Address | None, as_json: bool) -> None:
    """Deliver what is due from PostgreSQL, until stopped (SIGTERM, Ctrl-C).

    Any number of them may run, on any number of machines: each message is taken by one. A stop
    finishes what is under way. What a killed one had is noticed by the others, at once on the same
    machine and within a minute elsewhere. If the database goes away it waits for it.

    --health offers /health/live, /health/ready and /metrics, as the page does; what it tells of
    its parts, and /metrics, only to this machine or to who has web.metrics_token. systemd is told
    when it is ready, and hears from it while its work gets on (Type=notify, WatchdogSec).

    Exit code 0 once stopped; 6 if the database can't be used from the start, or an outcome could
    not be recorded before it stopped. The same signal a second time ends it at once.

    With a file in place of PostgreSQL, see `referrals deliver --watch`.

    \b
    Example: referrals worker --concurrency 8 --health 9464
    """
    settings = read_settings()
    bootstrap.database_of(settings)
    settings = with_passwords(settings)
    relay = settings.relay
    if concurrency is not None:
        delivery = settings.delivery.model_copy(update={"lanes": concurrency})
        settings = settings.model_copy(update={"delivery": delivery})
    gc.enable()
    working = _Working(settings, relay, as_json)
    with _answering(health, settings, working.vitals):
        asyncio.run(working.run())


def _answering(
    health: Address | None, settings: Settings, vitals: Vitals
) -> AbstractContextManager[object]:
    if health is None:
        return nullcontext()
    try:
        from referrals.health_server import answering
    except ImportError:
        raise ConfigurationError(
            [
                Problem(
                    "--health",
                    "needs packages that are not installed.",
                    "pip install 'referrals[postgres]'",
                )
            ]
        ) from None
    return answering(health.host, health.port, settings, vitals)


class _Working:
    def __init__(self, settings: Settings, relay: RelaySettings, as_json: bool) -> None:
        self._settings = settings
        self._relay = relay
        self._as_json = as_json
        self._stopping = asyncio.Event()
        self._worker: Worker | None = None
        self.vitals = Vitals(Supervisor.of(os.environ), settings.delivery.lanes)

    async def run(self) -> None:
        """Raises OutboxUnusable if the database can't be used from the start, or at the stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        async with self.vitals.watched():
            await self._work()

    async def _work(self) -> None:
        opened = failures = 0
        while not self._stopping.is_set():
            is_delivering = False
            try:
                with bootstrap.open_outbox(self._settings) as outbox:
                    if not opened and (copied := outbox.copied()) is not None:
                        raise copied.refusal(outbox.name)
                    opened, failures = opened + 1, 0
                    self._worker = bootstrap.build_worker(
                        outbox, self._relay, self._settings, told=self._told
                    )
                    self.vitals.opened()
                    is_delivering = True
                    await watch_with(
                        outbox, self._worker, self._settings, self._as_json, self.vitals.seen
                    )
            except OutboxUnusable as error:
                # What the relay took may be unrecorded, so such a stop is no success.
                if not opened or (is_delivering and self._stopping.is_set()):
                    raise
                self.vitals.waiting()
                click.echo(f"Waiting: {error}", err=True)
                await self._stopped_within(_AGAIN_S[min(failures, len(_AGAIN_S) - 1)])
                failures += 1

    def _stop(self, number: signal.Signals) -> None:
        """The same signal again ends the process at once; what it was at is then uncertain."""
        asyncio.get_running_loop().remove_signal_handler(number)
        click.echo("Finishing what is under way, then stopping.", err=True)
        self._stopping.set()
        self.vitals.stopping()
        if self._worker is not None:
            self._worker.stop()

    async def _stopped_within(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _told(self, claimed: Claimed, status: DeliveryStatus, outcome: Outcome) -> None:
        self.vitals.recorded(status)
        if self._as_json:
            print_json({"reference": claimed.outgoing.reference, "status": str(status)})
        else:
            tell(claimed, status, outcome)
