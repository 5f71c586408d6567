"""What many tests share: the shipped directory, and a service whose clock stands still."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import settings

from referrals.directory import Directory
from referrals.directory_files import read_directory
from referrals.rendering import environment
from referrals.service import Service
from referrals.settings import MailSettings

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config"
TEMPLATES = ROOT / "templates" / "email"
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
TODAY = date(2026, 11, 24)

# The same examples on every run and every machine, however slow it is.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("REFERRALS_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def directory() -> Directory:
    return read_directory(CONFIG, TEMPLATES)


@pytest.fixture(scope="session")
def service(directory: Directory) -> Service:
    return Service(directory, environment(TEMPLATES), MailSettings(), lambda: NOW)
