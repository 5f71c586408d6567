"""A page for tests: its application without a socket, or the whole server behind one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import httpx2
import pytest
import uvicorn
from argon2 import PasswordHasher
from starlette.testclient import TestClient

from referrals import bootstrap
from referrals.settings import Settings, WebSettings
from referrals.web import server as server_module
from referrals.web.app import build_app, build_site
from referrals.web.layout import environment
from tests.conftest import NOW
from tests.e2e.conftest import _cache, home, referrals  # noqa: F401  # fixtures

HERE = "http://127.0.0.1"


@pytest.fixture(autouse=True)
def _quick_hashes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2 is slow for a good reason, which is none here; `genuine_hashes` is for the rest."""
    if "genuine_hashes" not in request.fixturenames:
        quick = partial(PasswordHasher, time_cost=1, memory_cost=64, parallelism=1)
        monkeypatch.setattr("referrals.web.passwords.PasswordHasher", quick)


@pytest.fixture
def genuine_hashes() -> None:
    """Passwords cost what they cost outside of tests."""


@pytest.fixture(autouse=True)
def _templates_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page's templates are compiled once for all tests, not once for each."""
    monkeypatch.setattr("referrals.web.app.environment", _environment)


_environment = cache(environment)


@pytest.fixture
def site_settings(tmp_path: Path) -> Settings:
    """Of a page for this machine alone, without a relay."""
    return Settings(outbox=tmp_path / "outbox")


@pytest.fixture
def client(site_settings: Settings) -> Iterator[TestClient]:
    """A browser at that page. It is on this machine, so it is signed in."""
    with browsing(site_settings) as browser:
        yield browser


@contextmanager
def browsing(settings: Settings) -> Iterator[TestClient]:
    """A browser at a page with those settings; it follows no redirect, and keeps its cookies."""
    base = settings.web.address or HERE
    app = build_app(build_site(settings))
    with TestClient(app, base, raise_server_exceptions=False, follow_redirects=False) as browser:
        yield browser


def web_settings(folder: Path, **web: Any) -> Settings:
    return Settings(outbox=folder / "outbox", web=WebSettings(port=0, **web))


class Clock:
    """The page's clock, which a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now = bootstrap.now()
        monkeypatch.setattr("referrals.bootstrap.now", lambda: self._now)

    def pass_by(self, **more: float) -> None:
        self._now += timedelta(**more)


@pytest.fixture
def clock_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("referrals.bootstrap.now", lambda: NOW)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Serving(Protocol):
    def __call__(self, settings: Settings) -> httpx2.Client: ...


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    """Runs the real server beside the test, at a free port, and gives a client of it."""
    with ExitStack() as stack:

        def serve(settings: Settings) -> httpx2.Client:
            web = settings.web.model_copy(update={"port": 0})
            free = settings.model_copy(update={"web": web})
            address = stack.enter_context(_running(free, monkeypatch))
            return stack.enter_context(httpx2.Client(base_url=address, timeout=20))

        yield serve


@contextmanager
def _running(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    started = threading.Event()
    addresses: list[str] = []
    servers: list[Any] = []

    class Remembered(server_module._Server):
        def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
            super().__init__(config, on_start)
            servers.append(self)

    def ready(address: str) -> None:
        addresses.append(address)
        started.set()

    monkeypatch.setattr(server_module, "_Server", Remembered)
    thread = threading.Thread(
        target=lambda: asyncio.run(server_module.serve(settings, ready)), daemon=True
    )
    thread.start()
    assert started.wait(20)
    try:
        yield addresses[0]
    finally:
        servers[0].should_exit = True
        thread.join(20)
        assert not thread.is_alive()
