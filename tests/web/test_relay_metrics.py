"""What Prometheus may know of several relays."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from referrals.bootstrap import now, open_outbox
from referrals.relay_health import RelayFault
from referrals.settings import FurtherRelay, Security, Settings
from referrals.transports.failover import shared_name
from referrals.worker import owner_name
from tests.web.asking import with_relay
from tests.web.test_metrics import asking


def figures(settings: Settings) -> dict[tuple[str, str], float]:
    with asking(settings) as client:
        text = client.get("/metrics").text
    return {
        (sample.name, sample.labels["relay"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "relay" in sample.labels
    }


def test_one_relay_without_a_limit_has_none(tmp_path: Path) -> None:
    assert figures(with_relay(tmp_path)) == {}


def test_health_and_links_of_each_are_told(tmp_path: Path) -> None:
    backup = FurtherRelay(host="127.0.0.1", port=10, security=Security.NONE, connections=5)
    settings = with_relay(tmp_path).model_copy(update={"relays": {"backup": backup}})

    async def happen() -> None:
        with open_outbox(settings) as outbox:
            first = shared_name("127.0.0.1:9", "127.0.0.1")
            await outbox.note_fault(first, RelayFault("connect"), now(), on_trial=False)
            await outbox.note_well(first, now())
            await outbox.note_fault(first, RelayFault("connect"), now(), on_trial=False)
            await outbox.take_link(
                shared_name(backup.name, backup.host),
                f"{owner_name()}/0",
                "desk",
                5,
                now(),
                is_gone=lambda _: False,
            )

    asyncio.run(happen())
    assert figures(settings) == {
        ("referrals_relay_ill", "127.0.0.1:9"): 1,
        ("referrals_relay_ill", "127.0.0.1:10"): 0,
        ("referrals_relay_faults_total", "127.0.0.1:9"): 2,
        ("referrals_relay_faults_total", "127.0.0.1:10"): 0,
        ("referrals_relay_returns_total", "127.0.0.1:9"): 1,
        ("referrals_relay_returns_total", "127.0.0.1:10"): 0,
        ("referrals_relay_links", "127.0.0.1:10"): 1,
    }
