"""Tries what is queued, in the background of the page's process, as `deliver --watch` does."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from referrals import bootstrap
from referrals.errors import ReferralsError
from referrals.retention import DailyPurge
from referrals.settings_sources import variable_of
from referrals.web.crashes import note_crash

if TYPE_CHECKING:
    from referrals.settings import Settings
    from referrals.worker import Report, Worker

log = logging.getLogger(__name__)

_GRACE_S = 7.0
"""How long a stop waits for a relay's last word; what has none by then is uncertain."""
_AGAIN_S = (2.0, 10.0, 60.0)
"""Waits before an outbox that can't be used is opened again; the last one, from then on."""


class Courier:
    """Runs while its `async with` block does, in a thread and a loop of its own.

    So a page never waits for a relay. Other couriers and `deliver --watch` may run besides: each
    message is claimed before it is tried.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._gate = threading.Lock()  # for the next three
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker: Worker | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._again = threading.Event()
        self._fault = ""
        self._purging = DailyPurge(
            lambda: bootstrap.open_outbox(settings),
            settings,
            failed=lambda fault: log.warning("Old content was not purged: %s", fault),
        )

    @property
    def should_run(self) -> bool:
        """Whether the settings want it: there is a relay, and `web.deliver` is on."""
        return self._settings.web.deliver and bool(self._settings.relay.host)

    @property
    def runs(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def fault(self) -> str:
        """Why nothing can be relayed just now, fit to show; "" if nothing speaks against it."""
        return self._fault

    async def __aenter__(self) -> Self:
        if not self.should_run:
            return self
        for key, relay in bootstrap.relays_of(self._settings).items():
            if relay.username and relay.password is None:
                name = f"{key}.password"
                self._fault = (
                    f"{name} is not set. Set {variable_of(name)}, or a file "
                    f"{name.replace('.', '_')} in the secrets folder, and start again."
                )
                return self
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._thread is None:
            return
        self._stopping.set()
        self._again.set()
        self._tell_worker(stop=True)
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._purging.stop)
        self._thread = None

    def kick(self) -> None:
        """Something was queued, or is due again: look now. From any thread."""
        self._again.set()
        self._tell_worker(stop=False)

    def _tell_worker(self, *, stop: bool) -> None:
        with self._gate:
            loop, worker, task = self._loop, self._worker, self._task
            if loop is None or worker is None or task is None:
                return
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(worker.stop if stop else worker.wake)
                if stop:
                    loop.call_soon_threadsafe(lambda: loop.call_later(_GRACE_S, task.cancel))

    # In its own thread

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._again.clear()
            try:
                asyncio.run(self._watch())
            except asyncio.CancelledError:
                log.warning("Stopped while the relay's answer was awaited: see the outbox.")
            except (ReferralsError, OSError) as error:
                self._fault = str(error)
                log.warning("%s", error)
            except Exception as error:
                # Whatever it is, pages go on; nothing is lost, since each message has its lease.
                self._fault = "There is a fault of ours in what submits. It is tried again."
                note_crash(error)
            else:
                failures = 0
                continue
            if self._stopping.is_set():
                break
            self._again.wait(_AGAIN_S[min(failures, len(_AGAIN_S) - 1)])
            failures += 1

    async def _watch(self) -> None:
        """Raises OutboxUnusable."""
        with bootstrap.open_outbox(self._settings) as outbox:
            worker = bootstrap.build_worker(outbox, self._settings.relay, self._settings)
            with self._gate:
                self._loop, self._worker = asyncio.get_running_loop(), worker
                self._task = asyncio.current_task()
            try:
                if not self._stopping.is_set():  # else `stop` was said before there was a worker
                    with outbox.listening(self.kick):
                        await worker.watch(self._seen)
            finally:
                with self._gate:
                    self._loop = self._worker = self._task = None

    def _seen(self, report: Report) -> None:
        """After each round: keep the relay's fault, and purge once a day."""
        fault = str(report.relay_fault or "")
        if fault and fault != self._fault:
            log.warning("Waiting: %s", fault)
        self._fault = fault
        self._purging.look(bootstrap.now())
