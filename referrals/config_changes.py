"""Whether files of config/ and templates/ have changed, without reading any."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_READ = (".toml", ".bin", ".j2")
_DEEPEST = 8
"""Of folders within folders, since links may lead in a circle."""

Mark = frozenset[tuple[str, int, int, int]]
"""Of each file its path, number, size and time of change, in nanoseconds."""


def mark_of(folders: Iterable[Path]) -> Mark:
    """The same as long as nobody has written to a file of the directory or the letters.

    What can't be looked at counts as not there: whoever reads it then says so. `settings.toml`,
    which is read once, is left out.
    """
    return frozenset(one for folder in folders for one in _files(folder, folder, _DEEPEST))


def _files(top: Path, folder: Path, depth: int) -> Iterator[tuple[str, int, int, int]]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        path = Path(entry.path)
        try:
            if entry.is_dir():
                if depth:
                    yield from _files(top, path, depth - 1)
            elif path.suffix in _READ and path != top / "settings.toml":
                about = entry.stat()
                yield entry.path, about.st_ino, about.st_size, about.st_mtime_ns
        except OSError:
            continue
