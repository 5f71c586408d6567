"""The help page says what is in force, to everybody."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from referrals.delivery import DeliveryStatus
from referrals.settings import DeliverySettings, OnUncertain, Purge, Settings, WebSettings
from referrals.web.app import build_app, build_site


def help_page(settings: Settings) -> str:
    site = build_site(settings)
    answer = TestClient(build_app(site), "http://127.0.0.1").get("/help")
    site.store.close()
    assert answer.status_code == 200
    return " ".join(re.sub(r"<[^>]+>", " ", answer.text).split())


def test_every_status_is_explained(tmp_path: Path) -> None:
    text = help_page(Settings(outbox=tmp_path / "outbox"))
    for status in DeliveryStatus:
        assert f" {status.capitalize()} " in text
    assert "delivered" not in text


def test_the_settings_in_force_are_told(tmp_path: Path) -> None:
    delivery = DeliverySettings(
        keep_content_days=1, keep_unfinished_days=17, keep_drafts_days=18, purge=Purge.BY_HAND
    )
    text = help_page(
        Settings(
            outbox=tmp_path / "outbox", delivery=delivery, web=WebSettings(keep_progress_hours=19)
        )
    )
    for told in ("after 1 day, when", "After 17 days", "after 18 days, when", "kept for 19 hours"):
        assert told in text


@pytest.mark.parametrize(
    ("how", "told"), [(OnUncertain.HOLD, "It waits for you"), (OnUncertain.RETRY, "tried again")]
)
def test_what_is_done_with_the_uncertain(how: OnUncertain, told: str, tmp_path: Path) -> None:
    text = help_page(
        Settings(outbox=tmp_path / "outbox", delivery=DeliverySettings(on_uncertain=how))
    )
    uncertain = text.partition(" Uncertain ")[2].partition(" Cancelled ")[0]

    assert told in uncertain
