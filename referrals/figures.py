"""What Prometheus may know of an outbox, whoever is asked: the page or a worker.

Counts and times; never a person, a reference or a path.
"""

from __future__ import annotations

import hmac
from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from prometheus_client import disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from pydantic import SecretStr

from referrals import __version__, bootstrap
from referrals.delivery import DeliveryStatus
from referrals.errors import ReferralsError
from referrals.relay_figures import relay_figures
from referrals.settings import Settings

# They are a second line for each series, which nobody asks after.
disable_created_metrics()  # type: ignore[no-untyped-call]  # theirs

TEXT = "text/plain; version=0.0.4; charset=utf-8"
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
"""Headers of a request that somebody passes on, perhaps for somebody far away."""


@dataclass(frozen=True)
class Sight:
    """What was seen of an outbox. `code` is `ok`, or why nothing was seen."""

    code: str
    counts: Mapping[str, int] = field(default_factory=dict)
    oldest_due: datetime | None = None
    relays: tuple[Metric, ...] = ()
    held_agencies: int = 0
    is_copy: bool = False


def look(settings: Settings, actor: str, now: datetime, *, count: bool = True) -> Sight:
    """Open the outbox and look. `count` goes over all messages; the rest costs little."""
    try:
        with bootstrap.open_outbox(settings, actor) as outbox:
            due = outbox.oldest_due(now)
            if not count:
                return Sight("ok", oldest_due=due)
            relays = tuple(relay_figures(outbox, settings, now))
            held = len(outbox.holds())
            return Sight("ok", outbox.counts(), due, relays, held, outbox.copied() is not None)
    except ReferralsError as error:
        return Sight(error.code)


def of_outbox(sight: Sight, now: datetime) -> Iterator[Metric]:
    yield gauge("referrals_outbox_usable", "Whether the outbox can be read.", sight.code == "ok")
    if sight.code != "ok":
        return
    counts = Tally(sight.counts)
    messages = GaugeMetricFamily(
        "referrals_outbox_messages", "Messages in the outbox.", labels=["status"]
    )
    for status in DeliveryStatus:
        if status is not DeliveryStatus.DRAFTED:
            messages.add_metric([status], counts[status])
    yield messages
    yield gauge(
        "referrals_outbox_oldest_due_seconds",
        "How long the message that is due longest has been so; 0 where none is.",
        (now - sight.oldest_due).total_seconds() if sight.oldest_due else 0.0,
    )
    yield from sight.relays
    yield gauge(
        "referrals_agencies_held", "Agencies that nothing goes to for now.", sight.held_agencies
    )
    yield gauge(
        "referrals_outbox_is_restored_copy",
        "Whether nothing is submitted, since it is a copy that nobody brought in order.",
        sight.is_copy,
    )


def of_program() -> Metric:
    return InfoMetricFamily("referrals", "Which version runs.", {"version": __version__})


def gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=float(value))


def has_token(authorization: str, token: SecretStr | None) -> bool:
    """Whether a request's Authorization header bears the operator's token."""
    if token is None or authorization[:7].lower() != "bearer ":
        return False
    return hmac.compare_digest(
        authorization[7:].strip().encode(), token.get_secret_value().encode()
    )
