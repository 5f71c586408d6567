"""A program that asks the API, with a token of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2

from referrals.bootstrap import now
from referrals.settings import RelaySettings, Security, Settings, WebSettings
from referrals.web.site import Role
from referrals.web.store import open_store
from tests.web.conftest import browsing

ADMINISTRATOR = Role.ADMINISTRATOR


@dataclass
class Api:
    """The API for somebody with a token of one role."""

    client: httpx2.Client
    settings: Settings
    token: str

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return self.client.get(f"/api/v1/{path}", headers=self._headers(headers))

    def post(self, path: str, case: Any = None, **headers: str) -> httpx2.Response:
        body = {} if case is None else {"json": case}
        return self.client.post(f"/api/v1/{path}", headers=self._headers(headers), **body)

    def raw(self, path: str, content: bytes, **headers: str) -> httpx2.Response:
        given = {"content_type": "application/json", **headers}
        return self.client.post(f"/api/v1/{path}", headers=self._headers(given), content=content)

    def case(self, *interventions: str) -> Any:
        return self.get(f"sample/{','.join(interventions or ('mediation',))}").json()

    def _headers(self, given: dict[str, str]) -> dict[str, str]:
        named = {name.replace("_", "-"): value for name, value in given.items()}
        return {"Authorization": f"Bearer {self.token}", **named}


def token_of(settings: Settings, role: Role, days: float = 1) -> str:
    store = open_store(settings)
    try:
        made = store.add_token(f"{role}-{days:g}", role, "jo", now(), timedelta(days=days))
        assert made is not None
        return made
    finally:
        store.close()


@contextmanager
def api_of(settings: Settings, role: Role = ADMINISTRATOR) -> Iterator[Api]:
    with browsing(settings) as client:
        yield Api(client, settings, token_of(settings, role))


def with_relay(folder: Path, port: int = 9, *, deliver: bool = False) -> Settings:
    return Settings(
        outbox=folder / "outbox",
        relay=RelaySettings(host="127.0.0.1", port=port, security=Security.NONE, timeout_s=5),
        web=WebSettings(deliver=deliver),
    )
