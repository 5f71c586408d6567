"""What Prometheus may know of the relays, as all processes on the outbox know them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from referrals.bootstrap import relays_of
from referrals.transports.failover import shared_name
from referrals.worker import is_gone

if TYPE_CHECKING:
    from referrals.ports import Outbox
    from referrals.settings import Settings


def relay_figures(outbox: Outbox, settings: Settings, now: datetime) -> Iterator[Metric]:
    """Of each relay of the settings; none if there is one alone, without a limit."""
    if not (settings.relays or settings.relay.connections):
        return
    states = outbox.relay_states(now)
    taken = Counter(link.relay for link in outbox.links(now, is_gone=is_gone))
    ill = GaugeMetricFamily(
        "referrals_relay_ill",
        "Whether a relay is left alone or being tried again.",
        labels=["relay"],
    )
    faults = CounterMetricFamily(
        "referrals_relay_faults", "How often a relay had to be left alone.", labels=["relay"]
    )
    returns = CounterMetricFamily(
        "referrals_relay_returns", "How often a relay was used again after that.", labels=["relay"]
    )
    links = GaugeMetricFamily(
        "referrals_relay_links",
        "Links to a relay whose number is limited, of all processes.",
        labels=["relay"],
    )
    for relay in relays_of(settings).values():
        name = shared_name(relay.name, relay.host)
        state = states.get(name)
        ill.add_metric([relay.name], int(state is not None and state.fault is not None))
        faults.add_metric([relay.name], state.faults if state else 0)
        returns.add_metric([relay.name], state.returns if state else 0)
        if relay.connections:
            links.add_metric([relay.name], taken[name])
    yield from (ill, faults, returns, links)
