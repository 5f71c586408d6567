"""Builds the parts from the settings and hands them to the service: it alone knows them all."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import FileSystemBytecodeCache
from jinja2.bccache import Bucket

from referrals.directory_files import read_directory
from referrals.rendering import environment
from referrals.service import Service
from referrals.settings_sources import config_folder, templates_folder

if TYPE_CHECKING:
    from referrals.outboxes.sqlite import SqliteOutbox
    from referrals.ports import Transport
    from referrals.settings import RelaySettings, Settings


def now() -> datetime:
    return datetime.now(UTC)


def build_service(settings: Settings) -> Service:
    """Raises ConfigurationError with every mistake in config/ and templates/."""
    templates = templates_folder(settings)
    directory = read_directory(config_folder(settings), templates)
    letters = environment(templates, CompiledTemplates.of_user())
    return Service(directory, letters, settings.mail, now)


def open_outbox(settings: Settings, actor: str | None = None) -> SqliteOutbox:
    """The queue, opened; close it, or use it as a context manager.

    Args:
        actor: in whose name the audit records what is done; by default the system's user.

    Raises:
        OutboxUnusable: the system or SQLite says no.
    """
    import getpass

    from referrals.outboxes.sqlite import SqliteOutbox

    if actor is None:
        try:
            actor = getpass.getuser()
        except (KeyError, OSError):
            actor = f"uid {os.getuid()}"
    return SqliteOutbox.open(settings.outbox / "outbox.sqlite3", actor)


class CompiledTemplates(FileSystemBytecodeCache):
    """Jinja's own cache, in the user's cache folder; without a private one, no cache.

    As with Python's __pycache__, whoever can write there can run code here.
    """

    @classmethod
    def of_user(cls) -> CompiledTemplates | None:
        try:
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            # Numbered anew whenever we compile them otherwise, as `rendering._OneCall` does.
            folder = Path(base, "referrals", "templates-2")
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            about = folder.stat()
        except (OSError, RuntimeError):  # RuntimeError: there is no home
            return None
        private = about.st_uid == os.getuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return cls(str(folder)) if private else None

    def dump_bytecode(self, bucket: Bucket) -> None:
        with suppress(OSError):  # a full disk only costs time
            super().dump_bytecode(bucket)


def build_transport(relay: RelaySettings) -> Transport:
    from referrals.transports.smtp import SmtpTransport

    return SmtpTransport(relay)
