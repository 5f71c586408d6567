"""What each peer is asked to do: `python -m benchmarks.peers.NAME ACTION FOLDER PORT`.

ACTION is `prepare`, which is not timed, or `send`. FOLDER holds rows.csv, with a column for each
hole of the templates in its folder `letter`, and is the peer's own to keep files in. The relay is
on this machine at PORT, without TLS or login. A peer that fails exits otherwise than with 0.

These modules run on the peers' Python, so they import nothing of `referrals`.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Job:
    folder: Path
    port: int

    @property
    def letter(self) -> Path:
        return self.folder / "letter"

    def part(self, name: str) -> str:
        return (self.letter / name).read_text(encoding="utf-8")

    def rows(self) -> Iterator[dict[str, str]]:
        with (self.folder / "rows.csv").open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)


def _nothing(_: Job) -> None:
    pass


def run(send: Callable[[Job], None] = _nothing, prepare: Callable[[Job], None] = _nothing) -> None:
    _, action, folder, port = sys.argv
    {"prepare": prepare, "send": send}[action](Job(Path(folder), int(port)))
