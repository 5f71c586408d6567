"""Work shared out over processes: in order, whole, and nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from referrals.processes import in_order, processors

MANY = range(40)


@pytest.mark.parametrize("processes", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 40])
def test_every_answer_comes_in_order(processes: int, count: int) -> None:
    found = in_order(lambda number: number * number, range(count), processes=processes)

    assert list(found) == [number * number for number in range(count)]


def test_children_do_the_work() -> None:
    ids = set(in_order(lambda _: os.getpid(), MANY, processes=2))

    assert os.getpid() not in ids
    assert 1 <= len(ids) <= 2


def test_few_things_are_done_here() -> None:
    assert set(in_order(lambda _: os.getpid(), range(3), processes=2)) == {os.getpid()}


def test_an_exception_is_met_where_it_would_be_without_children() -> None:
    def work(number: int) -> int:
        if number == 20:
            raise ValueError("the twentieth")
        return number

    found = in_order(work, MANY, processes=2)

    assert [next(found) for _ in range(20)] == list(range(20))
    with pytest.raises(ValueError, match="the twentieth"):
        next(found)


def test_what_can_not_be_sent_back_is_done_here() -> None:
    def work(number: int) -> object:
        return (lambda: number) if number == 20 else number

    found = list(in_order(work, MANY, processes=2))

    assert [one() if callable(one) else one for one in found] == list(MANY)


def test_children_that_are_killed_cost_time_only() -> None:
    parent = os.getpid()

    def work(number: int) -> int:
        if number == 10 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    assert list(in_order(work, MANY, processes=2)) == list(MANY)


def test_no_more_is_taken_than_is_under_way() -> None:
    taken: list[int] = []

    def things() -> Iterator[int]:
        for number in range(1_000):
            taken.append(number)
            yield number

    found = in_order(abs, things(), processes=2)
    for number in range(100):
        assert next(found) == number
        assert len(taken) < number + 12
    found.close()  # type: ignore[attr-defined]


ORPHANS = """
import os, sys, time
from pathlib import Path
from referrals.processes import in_order

def work(number):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(0.01)
    return number

for _ in in_order(work, range(100_000), processes=2):
    pass
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_with_their_parent(tmp_path: Path, how: signal.Signals) -> None:
    """However it ends: they hold what the rows hold."""
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS, str(tmp_path)])
    until = time.monotonic() + 20
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    children = [int(path.name) for path in tmp_path.iterdir()]
    parent.send_signal(how)
    parent.wait(20)

    assert len(children) == 2
    while any(map(alive, children)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(map(alive, children))


def alive(pid: int) -> bool:
    """A zombie is not: it only waits to be asked how it ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return False
    return fields[0] != "Z"


def test_there_is_a_processor() -> None:
    assert 1 <= processors() <= (os.cpu_count() or 1)
