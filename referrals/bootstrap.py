"""Builds the parts from the settings and hands them to the service: it alone knows them all."""

from __future__ import annotations

import dataclasses
import os
import stat
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from jinja2 import FileSystemBytecodeCache
from jinja2.bccache import Bucket

from referrals.config_changes import Mark, mark_of
from referrals.directory_files import read_directory
from referrals.errors import ConfigurationError
from referrals.outboxes.sqlite.verified import Verified, read_verified
from referrals.rendering import environment, load_all
from referrals.service import Service
from referrals.settings_sources import config_folder, templates_folder

if TYPE_CHECKING:
    from referrals.delivery import DeliveryStatus
    from referrals.errors import Problem
    from referrals.outboxes.postgres.connections import Database
    from referrals.ports import Outbox, Transport
    from referrals.queueing import Claimed, Outcome
    from referrals.settings import DeliverySettings, RelaySettings, Settings
    from referrals.verification import Verification
    from referrals.worker import DeliveryOptions, Relay, Worker


def now() -> datetime:
    return datetime.now(UTC)


def build_service(settings: Settings) -> Service:
    """The service with what is known now of the addresses.

    Raises:
        ConfigurationError: with every mistake in config/ and templates/.
    """
    service = _build(settings)
    if settings.database is None:
        return _knowing(service, read_verified(outbox_file(settings)))
    with closing(_verified_of(settings)) as verified:
        return _knowing(service, verified.read())


class LiveService:
    """The service of a process that goes on, while others correct config/ and record addresses.

    Whoever keeps what `current` gave him has one directory from beginning to end.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigurationError, as `build_service` does."""
        self._settings = settings
        self._looking = threading.Lock()  # for the next two
        self._seen = self._read = self._mark()
        self._plain = _built_whole(settings)
        self._verified = _verified_of(settings)
        self._known: tuple[Service, tuple[Verification, ...], Service] = (
            self._plain,
            (),
            self._plain,
        )
        self.faults: tuple[Problem, ...] = ()
        """What is wrong in config/ and templates/ now, while the directory of before is used."""

    def current(self) -> Service:
        """With what is known now of the addresses. From any thread."""
        plain, recorded = self._plain, self.recorded()
        before, known, service = self._known
        if plain is not before or recorded != known:
            service = _knowing(plain, recorded)
            self._known = plain, recorded, service
        return service

    def recorded(self) -> tuple[Verification, ...]:
        """What the outbox has of addresses; what config/ says is not in it."""
        return self._verified.read()

    def look(self) -> bool:
        """Use what config/ and templates/ have now, if they changed and are sound as a whole.

        Only what nobody has written to since the last look is read, so that a change of several
        files, or one that is being copied, is taken whole: call it every few seconds. Returns
        whether they were read anew; `faults` then says whether what was read is used.
        """
        with self._looking:
            mark = self._mark()
            has_settled = mark == self._seen
            self._seen = mark
            if mark == self._read or not has_settled:
                return False
            plain = self._plain
            faults: tuple[Problem, ...] = ()
            try:
                plain = _built_whole(self._settings)
            except ConfigurationError as error:
                faults = error.problems
            if self._mark() != mark:
                return False
            self._read, self._plain, self.faults = mark, plain, faults
            return True

    def close(self) -> None:
        self._verified.close()

    def _mark(self) -> Mark:
        return mark_of((config_folder(self._settings), templates_folder(self._settings)))


def _build(settings: Settings) -> Service:
    templates = templates_folder(settings)
    directory = read_directory(config_folder(settings), templates)
    letters = environment(templates, CompiledTemplates.of_user())
    return Service(directory, letters, settings.mail, now)


def _built_whole(settings: Settings) -> Service:
    """With every template read, since the files may change while it is used."""
    service = _build(settings)
    problems = load_all(service.templates)
    if problems:
        raise ConfigurationError(problems)
    return service


def _knowing(service: Service, recorded: tuple[Verification, ...]) -> Service:
    if not recorded:
        return service
    from referrals.verification import with_verifications

    return dataclasses.replace(service, directory=with_verifications(service.directory, recorded))


def outbox_file(settings: Settings) -> Path:
    return settings.outbox / "outbox.sqlite3"


def has_outbox(settings: Settings) -> bool:
    """Whether there may be something in it; to open it makes the file if there is none."""
    return settings.database is not None or outbox_file(settings).exists()


def database_of(settings: Settings) -> Database:
    """Where the outbox is, if it is in PostgreSQL.

    Raises:
        ConfigurationError: `database` is not set, not PostgreSQL's, or the packages are missing.
    """
    from referrals.errors import Problem

    if settings.database is None:
        raise ConfigurationError(
            [Problem("database", "is not set.", "Set REFERRALS_DATABASE to postgresql://…")]
        )
    try:
        from referrals.outboxes.postgres.connections import Database
    except ImportError:
        raise ConfigurationError(
            [
                Problem(
                    "database",
                    "needs packages that are not installed.",
                    "pip install 'referrals[postgres]'",
                )
            ]
        ) from None
    password = settings.database_password
    try:
        return Database.of(
            settings.database.get_secret_value(), password.get_secret_value() if password else None
        )
    except ValueError:
        raise ConfigurationError(
            [
                Problem(
                    "database",
                    "is no URL that PostgreSQL understands.",
                    "Give postgresql://user@host:port/name; % and @ within a part as %25 and %40.",
                )
            ]
        ) from None


class _Addresses(Protocol):
    """Where it is read which addresses somebody has asked about."""

    def read(self) -> tuple[Verification, ...]: ...

    def close(self) -> None: ...


def _verified_of(settings: Settings) -> _Addresses:
    if settings.database is None:
        return Verified(outbox_file(settings))
    database = database_of(settings)
    from referrals.outboxes.postgres.verified import PostgresVerified

    return PostgresVerified(database)


def open_outbox(settings: Settings, actor: str | None = None) -> Outbox:
    """The queue, opened; close it, or use it as a context manager.

    Args:
        actor: in whose name the audit records what is done; by default the system's user.

    Raises:
        OutboxUnusable: the system or the database says no.
        ConfigurationError: see `database_of`.
    """
    import getpass

    if actor is None:
        try:
            actor = getpass.getuser()
        except (KeyError, OSError):
            actor = f"uid {os.getuid()}"
    if settings.database is not None:
        database = database_of(settings)
        from referrals.outboxes.postgres.outbox import PostgresOutbox

        return PostgresOutbox.open(database, actor)
    from referrals.outboxes.sqlite.outbox import SqliteOutbox

    return SqliteOutbox.open(outbox_file(settings), actor)


class CompiledTemplates(FileSystemBytecodeCache):
    """Jinja's own cache, in the user's cache folder; without a private one, no cache.

    As with Python's __pycache__, whoever can write there can run code here.
    """

    @classmethod
    def of_user(cls) -> CompiledTemplates | None:
        try:
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            # Numbered anew whenever we compile them otherwise, as `rendering._ShortWays` does.
            folder = Path(base, "referrals", "templates-3")
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


def options_of(delivery: DeliverySettings) -> DeliveryOptions:
    from referrals.delivery import RetryPolicy
    from referrals.worker import DeliveryOptions

    return DeliveryOptions(
        lanes=delivery.lanes,
        rate_per_minute=delivery.rate_per_minute,
        policy=RetryPolicy(
            first_wait=timedelta(seconds=delivery.first_wait_s),
            longest_wait=timedelta(seconds=delivery.longest_wait_s),
            give_up_after=timedelta(hours=delivery.give_up_after_h),
        ),
        hold_uncertain=delivery.on_uncertain == "hold",
    )


def build_relay(outbox: Outbox, relay: RelaySettings, settings: Settings) -> Relay:
    """The way to the relay; where there are several, or limits, to whichever can be used.

    Raises:
        ConfigurationError: as `SmtpTransport` does, naming the relay.
    """
    from referrals.transports.smtp import SmtpTransport

    if not (settings.relays or relay.connections or relay.rate_per_minute):
        return SmtpTransport(relay)
    from referrals.transports.failover import Choice, Failover, Limits, shared_name

    choices = []
    for key, each in relays_of(settings, relay).items():
        try:
            transport = SmtpTransport(each)
        except ConfigurationError as error:
            raise of_relay(error, key) from None
        limits = Limits(each.connections, each.rate_per_minute)
        choices.append(Choice(key, transport, shared_name(each.name, each.host), limits))
    return Failover(choices, outbox, now)


def relays_of(settings: Settings, first: RelaySettings | None = None) -> dict[str, RelaySettings]:
    """Every relay by its key in the settings, in the order in which they are tried."""
    further = {f"relays.{name}": one for name, one in settings.relays.items()}
    return {"relay": first or settings.relay, **further}


def of_relay(error: ConfigurationError, key: str) -> ConfigurationError:
    """The same problems, naming the settings of the relay that has them."""
    return ConfigurationError(
        [
            dataclasses.replace(one, where=key + one.where.removeprefix("relay"))
            if one.where.startswith("relay.")
            else one
            for one in error.problems
        ]
    )


def build_worker(
    outbox: Outbox,
    relay: RelaySettings,
    settings: Settings,
    *,
    told: Callable[[Claimed, DeliveryStatus, Outcome], None] = lambda *_: None,
) -> Worker:
    """To be built in the loop that it runs in."""
    import random

    from referrals.worker import Worker

    return Worker(
        outbox,
        build_relay(outbox, relay, settings),
        options_of(settings.delivery),
        now=now,
        jitter=lambda: random.uniform(-1, 1),  # noqa: S311 - spreads retries, no secret
        told=told,
    )
