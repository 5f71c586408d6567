"""What drafting can't beat: bytes that are ready into files, the disk waited for now and then.

    python -m benchmarks.write_limit READY FOLDER FILES

The drafts in READY are written over and over; after each 1,000 files the file system is told to
put all of them on disk.
"""

from __future__ import annotations

import ctypes
import os
import sys
from itertools import cycle, islice
from pathlib import Path

GROUP = 1_000


def write(ready: Path, folder: Path, count: int) -> None:
    drafts = cycle([path.read_bytes() for path in sorted(ready.iterdir())])
    libc = ctypes.CDLL(None, use_errno=True)
    where = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for start in range(0, count, GROUP):
        numbers = range(start, min(start + GROUP, count))
        for number, content in zip(numbers, islice(drafts, len(numbers)), strict=True):
            handle = os.open(f"{number}.eml", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=where)
            os.write(handle, content)
            os.close(handle)
        if libc.syncfs(where):
            raise OSError(ctypes.get_errno(), "syncfs")


if __name__ == "__main__":
    _, ready, folder, count = sys.argv
    write(Path(ready), Path(folder), int(count))
