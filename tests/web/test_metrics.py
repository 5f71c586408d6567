"""What Prometheus may know, and who may ask."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from referrals import __version__
from referrals.bootstrap import now, open_outbox
from referrals.delivery import DeliveryStatus
from referrals.directory import Directory
from referrals.settings import Settings, WebSettings
from referrals.verification import Verification
from referrals.web.app import build_app, build_site
from referrals.web.metrics import Measured, count_sign_in
from tests.queued import submission
from tests.web.asking import Api, api_of, with_relay
from tests.web.conftest import HERE

TOKEN = "figures-for-us-alone"
LOOPBACK = ("127.0.0.1", 50_000)
STRANGER = ("192.0.2.7", 50_000)


@pytest.fixture
def api_here(tmp_path: Path) -> Iterator[Api]:
    with api_of(with_relay(tmp_path)) as made:
        yield made


def asking(settings: Settings, peer: tuple[str, int] = LOOPBACK) -> TestClient:
    """A client of the page, as from that address."""
    app = build_app(build_site(settings))
    return TestClient(measured(app), settings.web.address or HERE, client=peer)


def measured(app: ASGIApp) -> ASGIApp:
    return app if isinstance(app, Measured) else Measured(app)


def figures(answer: httpx2.Response) -> dict[tuple[str, ...], float]:
    """Value by name, route, method and status."""
    assert answer.status_code == 200
    names = ("route", "method", "status", "le")
    return {
        (sample.name, *(sample.labels[each] for each in names if each in sample.labels)): (
            sample.value
        )
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_the_version_and_addresses_that_nobody_verified(
    tmp_path: Path, directory: Directory
) -> None:
    settings = with_relay(tmp_path)
    [one, *others] = [agency for agency in directory.agencies.values() if agency.email]
    name = "referrals_directory_unverified_addresses"
    with asking(settings) as client:
        answer = client.get("/metrics")
        assert f'referrals_info{{version="{__version__}"}} 1.0' in answer.text
        assert figures(answer)[name,] == len(others) + 1
        with open_outbox(settings, "tester") as outbox:
            today = now().date()
            outbox.verify(Verification.of(one, today - timedelta(days=1), "Sam", today), now())
        assert figures(client.get("/metrics"))[name,] == len(others)


def test_requests_are_counted_by_the_template_of_their_path(tmp_path: Path) -> None:
    settings = with_relay(tmp_path)
    with asking(settings) as client:
        for reference in ("K7QM-29TX-WCF4", "XXXX-XXXX-XXXX"):
            client.get(f"/api/v1/outbox/{reference}")
        client.get("/health/live")
        client.get("/nowhere/at/all/John-Smith?name=John")
        answer = client.get("/metrics")

    told = figures(answer)
    name = "referrals_http_requests_total"
    assert told[name, "/api/v1/outbox/{reference}", "GET", "401"] == 2
    assert told[name, "/health/live", "GET", "200"] == 1
    assert told[name, "(none)", "GET", "404"] == 1
    count = "referrals_http_request_seconds_count"
    assert told[count, "/api/v1/outbox/{reference}", "GET"] == 2
    assert not re.search("K7QM|XXXX|John|nowhere|127\\.0\\.0\\.1", answer.text)


def test_what_is_refused_at_the_door_is_counted_too(site_settings: Settings) -> None:
    with asking(site_settings) as client:
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 421
        client.request("BREW", "/health/live")
        told = figures(client.get("/metrics"))

    name = "referrals_http_requests_total"
    assert told[name, "(none)", "GET", "421"] == 1
    assert {key[2] for key in told if key[0] == name} <= {"GET", "other"}


def test_a_request_that_breaks_is_counted_as_a_fault() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError

    app = Measured(broken)
    with pytest.raises(RuntimeError):
        asyncio.run(app({"type": "http", "method": "GET"}, Any, Any))  # type: ignore[arg-type]
    assert app._metrics.registry.get_sample_value(
        "referrals_http_requests_total", {"route": "(none)", "method": "GET", "status": "500"}
    )


def test_the_outbox_is_counted_by_status(api_here: Api) -> None:
    settings, then = api_here.settings, now()
    with open_outbox(settings, "jo") as outbox:
        outbox.queue([submission(1), submission(2)], then - timedelta(hours=2))
        outbox.queue([submission(3)], then)
        outbox.cancel(submission(1).outgoing.reference, then)
    with asking(settings) as client:
        told = figures(client.get("/metrics"))

    messages = "referrals_outbox_messages"
    assert told[messages, "queued"] == 2
    assert told[messages, "cancelled"] == 1
    assert told[messages, "relayed"] == 0
    statuses = {key[1] for key in told if key[0] == messages}
    assert statuses == set(DeliveryStatus) - {DeliveryStatus.DRAFTED}
    assert told["referrals_outbox_oldest_due_seconds",] == pytest.approx(7_200, abs=60)
    assert told["referrals_outbox_usable",] == 1
    assert told["referrals_courier_runs",] == 0
    assert told["referrals_sessions",] == 0


def test_an_outbox_that_can_not_be_used_is_told(site_settings: Settings) -> None:
    with asking(site_settings) as client:
        (site_settings.outbox / "outbox.sqlite3").write_bytes(b"no outbox")
        told = figures(client.get("/metrics"))

    assert told["referrals_outbox_usable",] == 0
    assert not any(key[0] == "referrals_outbox_messages" for key in told)


def test_attempts_to_sign_in_are_counted_by_outcome() -> None:
    async def signing_in(scope: Scope, receive: Receive, send: Send) -> None:
        count_sign_in(Request(scope), "refused")
        await PlainTextResponse("")(scope, receive, send)

    app = Measured(signing_in)
    client = TestClient(app)
    client.get("/")
    client.get("/")
    sign_ins = app._metrics.registry.get_sample_value
    assert sign_ins("referrals_sign_ins_total", {"outcome": "refused"}) == 2


def test_counting_does_no_harm_where_nobody_measures() -> None:
    count_sign_in(Request({"type": "http"}), "refused")


def with_token(folder: Path, **web: Any) -> Settings:
    return Settings(outbox=folder / "outbox", web=WebSettings(metrics_token=TOKEN, **web))  # type: ignore[arg-type]


BEARER = {"Authorization": f"Bearer {TOKEN}"}


def test_only_this_machine_may_ask(site_settings: Settings) -> None:
    with asking(site_settings, STRANGER) as stranger:
        assert stranger.get("/metrics").status_code == 404
        assert stranger.get("/metrics", headers=BEARER).status_code == 404
    with asking(site_settings) as client:
        assert client.get("/metrics").status_code == 200


@pytest.mark.parametrize("name", ["Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"])
def test_what_a_proxy_passes_on_is_not_from_this_machine(
    name: str, site_settings: Settings
) -> None:
    with asking(site_settings) as client:
        assert client.get("/metrics", headers={name: "192.0.2.7"}).status_code == 404


def test_behind_an_address_only_the_token_counts(tmp_path: Path) -> None:
    """A proxy on this machine may say nothing of whom it speaks for."""
    address = "https://referrals.example.org"
    with asking(Settings(outbox=tmp_path / "a", web=WebSettings(address=address))) as client:
        assert client.get("/metrics").status_code == 404
    with asking(with_token(tmp_path, address=address)) as client:
        assert client.get("/metrics").status_code == 404
        assert client.get("/metrics", headers=BEARER).status_code == 200


@pytest.mark.parametrize("given", ["Bearer other", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x"])
def test_another_token_opens_nothing(given: str, tmp_path: Path) -> None:
    with asking(with_token(tmp_path), STRANGER) as stranger:
        assert stranger.get("/metrics", headers=BEARER).status_code == 200
        assert stranger.get("/metrics", headers={"Authorization": given}).status_code == 404


def test_a_token_of_the_api_is_none_for_this(api_here: Api) -> None:
    with asking(api_here.settings, STRANGER) as stranger:
        header = {"Authorization": f"Bearer {api_here.token}"}
        assert stranger.get("/metrics", headers=header).status_code == 404
