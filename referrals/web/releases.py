"""Ending a hold beside the page: to readdress thousands of messages takes longer than a page may.

Each runs in a thread of its own, one for an agency. Where the process is ended in the middle, the
hold stands, and whoever releases the agency again goes on from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from referrals.errors import ReferralsError
from referrals.holding import Rerouted
from referrals.web.crashes import note_crash

_OURS = "There is a fault of ours in what releases. The agency is still held, and nothing is lost."


@dataclass
class Running:
    """A release that is under way or over. `fault` is why it stopped, fit to show.

    `moved` messages have another address now; `broken` are references of those that could not.
    """

    _over: threading.Event = field(default_factory=threading.Event, repr=False)
    fault: str = ""
    moved: int = 0
    broken: tuple[str, ...] = ()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def wait(self, longest_s: float) -> bool:
        """Whether it is over, after so long at most."""
        return self._over.wait(longest_s)

    def run(self, work: Callable[[], list[Rerouted]]) -> None:
        try:
            done = work()
            self.moved = sum(one.new is not None for one in done)
            self.broken = tuple(one.reference for one in done if one.new is None)
        except ReferralsError as error:
            self.fault = str(error)
        except Exception as error:  # nothing of the page may end with it
            self.fault = _OURS
            note_crash(error)
        finally:
            self._over.set()


class Releases:
    """Those of this process, by agency; of each agency the last."""

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._last: dict[str, Running] = {}

    def of(self, agency: str) -> Running | None:
        with self._gate:
            return self._last.get(agency)

    def forget(self, agency: str) -> None:
        """What came of the last one, if it is over: another hold has begun."""
        with self._gate:
            if agency in self._last and self._last[agency].is_over:
                del self._last[agency]

    def begin(self, agency: str, work: Callable[[], list[Rerouted]]) -> Running:
        """Do it in the background; if there is one under way already, that is it."""
        with self._gate:
            before = self._last.get(agency)
            if before is not None and not before.is_over:
                return before
            running = self._last[agency] = Running()
            # A daemon, so that a stop of the page waits for none: each group is whole by itself.
            threading.Thread(target=running.run, args=(work,), name="release", daemon=True).start()
        return running
