"""Whether the process is up and can do its work, for whoever watches over it."""

from __future__ import annotations

from pathlib import Path

import httpx2

from referrals.settings import Settings
from referrals.web.app import build_app, build_site
from tests.web.asking import with_relay
from tests.web.conftest import HERE, Serving
from tests.web.test_metrics import STRANGER, asking


def test_a_real_server_is_live_and_ready(site_settings: Settings, serving: Serving) -> None:
    client = serving(site_settings)

    assert client.get("/health/live").json() == {"live": True}
    answer = client.get("/health/ready")
    assert answer.status_code == 200
    assert answer.json() == {
        "ready": True,
        "parts": {"configuration": "ok", "outbox": "ok", "store": "ok", "courier": "off"},
    }
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in answer.headers


def test_the_courier_runs_where_it_should(tmp_path: Path, serving: Serving) -> None:
    """Its relay can't be reached, which is no reason to take people's page away."""
    client = serving(with_relay(tmp_path, deliver=True))

    answer = client.get("/health/ready")
    assert answer.status_code == 200
    assert answer.json()["parts"]["courier"] == "ok"


def test_a_courier_that_should_run_and_does_not(tmp_path: Path) -> None:
    """Without its lifespan, the application starts none."""
    app = build_app(build_site(with_relay(tmp_path, deliver=True)))

    answer = httpx_get(app, "/health/ready")
    assert answer.status_code == 503
    assert answer.json()["parts"]["courier"] == "stopped"


def httpx_get(app: object, path: str) -> httpx2.Response:
    import asyncio

    async def get() -> httpx2.Response:
        transport = httpx2.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx2.AsyncClient(transport=transport, base_url=HERE) as client:
            return await client.get(path)

    return asyncio.run(get())


def test_an_outbox_that_can_not_be_used(site_settings: Settings) -> None:
    with asking(site_settings) as client:
        assert client.get("/health/ready").status_code == 200
        (site_settings.outbox / "outbox.sqlite3").write_bytes(b"no outbox")
        answer = client.get("/health/ready")
        assert client.get("/health/live").status_code == 200

    assert answer.status_code == 503
    assert answer.json()["parts"]["outbox"] == "outbox-unusable"
    assert str(site_settings.outbox) not in answer.text


def test_a_stranger_learns_whether_and_no_more(site_settings: Settings) -> None:
    with asking(site_settings, STRANGER) as stranger:
        assert stranger.get("/health/ready").json() == {"ready": True}
        (site_settings.outbox / "outbox.sqlite3").write_bytes(b"no outbox")
        answer = stranger.get("/health/ready")

    assert answer.status_code == 503
    assert answer.json() == {"ready": False}


def test_nothing_is_begun_by_looking(site_settings: Settings) -> None:
    with asking(site_settings) as client:
        client.get("/health/ready")
        client.get("/health/live")
        assert not client.cookies
