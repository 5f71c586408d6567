"""Nothing that waits for the store holds up the others whom the page answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

from referrals.bootstrap import build_service
from referrals.samples import sample_case
from referrals.settings import RelaySettings, Security, Settings
from referrals.web.site import Role
from referrals.web.store_file import StoreFile
from tests.web.asking import token_of
from tests.web.conftest import browsing, web_settings
from tests.web.provider import CLIENT, SECRET, Provider
from tests.web.signing import add_account, sign_in
from tests.web.test_sign_in import come_back
from tests.web.walking import Walker

Opened = Callable[..., AbstractContextManager[Any]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each use of the store, whether an event loop had to wait for it."""
    found: list[bool] = []

    def watched(genuine: Opened) -> Opened:
        def use(*given: Any, **more: Any) -> AbstractContextManager[Any]:
            loop = None
            with suppress(RuntimeError):
                loop = asyncio.get_running_loop()
            found.append(loop is not None)
            return genuine(*given, **more)

        return use

    for name in ("reading", "writing"):
        monkeypatch.setattr(StoreFile, name, watched(getattr(StoreFile, name)))
    return found


def test_the_journey_with_accounts_and_the_api(tmp_path: Path, asked: list[bool]) -> None:
    relay = RelaySettings(host="127.0.0.1", port=9, security=Security.NONE)
    settings = web_settings(tmp_path, login="accounts", deliver=False)
    settings = settings.model_copy(update={"relay": relay})
    add_account(settings)
    service = build_service(Settings())
    raw = sample_case(service.directory, ["mediation"], service.today())
    token = token_of(settings, Role.SENDER)
    with browsing(settings) as browser:
        sign_in(browser)
        walker = Walker.with_case(browser, raw)
        walker.to_check("mediation")
        walker.submit("mediation")
        for path in (f"{walker.at}/done", "/batch", "/accounts", "/audit", "/health/ready"):
            assert browser.get(path).status_code == 200
        given = {"Authorization": f"Bearer {token}"}
        assert browser.get("/api/v1/interventions", headers=given).status_code == 200
        assert browser.get("/metrics").status_code in (200, 404)
        browser.get("/sign-out")
    assert len(asked) > 100
    assert not any(asked)


def test_signing_in_at_a_provider(tmp_path: Path, asked: list[bool]) -> None:
    with Provider() as provider:
        settings = web_settings(
            tmp_path,
            login="oidc",
            oidc_issuer=provider.issuer,
            oidc_client_id=CLIENT,
            oidc_client_secret=SECRET,
        )
        with browsing(settings) as browser:
            assert come_back(browser).status_code == 303
            assert browser.get("/sign-in/back").status_code == 403
    assert asked
    assert not any(asked)
