"""The same work on many things, shared out over the processors, with the answers in order.

For work that takes processor time: Python runs one thread at a time. Children are forked, so they
have what the parent has read, and they end with it, however it ends.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

MOST = 8
"""Children there are at most."""

_FEW = 3
"""Up to so many things are done at once: to fork for them would take longer."""
_WAITING_PER_CHILD = 3
_PR_SET_PDEATHSIG = 1  # Linux, <sys/prctl.h>


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def worker_number() -> int:
    """0 in the parent, 1 and up in the children: to each a place of its own."""
    return _number


def in_order(
    work: Callable[[T], R], things: Iterable[T], *, processes: int | None = None
) -> Iterator[R]:
    """`map(work, things)`, of which a few are under way at once and no more are held.

    What a child can't do (an exception, no memory) is done here again: so an exception is raised
    where it would be without children, and a lost child costs time only.

    Args:
        work: its results can be pickled, and so can the things.
        processes: children; by default one for each processor, and none for one processor.
    """
    children = min(processors(), MOST) if processes is None else min(processes, MOST)
    rest = iter(things)
    first = list(islice(rest, _FEW + 1))
    if children < 2 or len(first) <= _FEW:
        yield from map(work, chain(first, rest))
        return
    crew = _Crew(work, children)
    try:
        under_way: deque[tuple[T, Future[Any] | None]] = deque()
        for thing in chain(first, rest):
            under_way.append((thing, crew.begin(thing)))
            if len(under_way) > children * _WAITING_PER_CHILD:
                yield crew.end(*under_way.popleft())
        while under_way:
            yield crew.end(*under_way.popleft())
    finally:
        crew.dismiss()


class _Crew:
    def __init__(self, work: Callable[[Any], Any], children: int) -> None:
        self._work = work
        self._whole = True
        forks = multiprocessing.get_context("fork")
        self._pool = ProcessPoolExecutor(
            children,
            mp_context=forks,
            initializer=_arrive,
            initargs=(work, os.getpid(), forks.Value("i", 0)),  # forked, not pickled
        )

    def begin(self, thing: Any) -> Future[Any] | None:
        if not self._whole:
            return None
        try:
            with warnings.catch_warnings():
                # Python 3.12 and later: a thread that holds a lock while we fork. The children
                # touch nothing that a thread of ours has: they compute, and answer over a pipe.
                warnings.simplefilter("ignore", DeprecationWarning)
                return self._pool.submit(_do, thing)
        except (BrokenProcessPool, OSError):
            self._whole = False
            return None

    def end(self, thing: Any, future: Future[Any] | None) -> Any:
        if future is not None:
            try:
                done, result = future.result()
            except Exception as error:  # no child, or no way to send its answer
                self._whole = self._whole and not isinstance(error, BrokenProcessPool)
            else:
                if done:
                    return result
        return self._work(thing)

    def dismiss(self) -> None:
        self._pool.shutdown(cancel_futures=True)


_at_work: Callable[[Any], Any]
_number = 0


def _arrive(work: Callable[[Any], Any], parent: int, arrived: Any) -> None:
    """In each child, first of all."""
    global _at_work, _number
    with arrived.get_lock():
        arrived.value += 1
        _number = arrived.value
    gc.freeze()  # what is there stays shared: the collector would write to every page of it
    _at_work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A child must not outlive a parent that is killed: nobody would end it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _do(thing: Any) -> tuple[bool, Any]:
    try:
        return True, _at_work(thing)
    except Exception:  # the parent meets it for itself
        return False, None
