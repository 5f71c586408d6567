"""aiosmtplib by itself: messages that are ready, over connections that stay open.

    python -m benchmarks.peers.bare_aiosmtplib FOLDER PORT MESSAGES CONNECTIONS

FOLDER holds the messages, which are sent over and over. Nothing is kept of what was sent.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from email import message_from_bytes
from itertools import cycle, islice
from pathlib import Path

import aiosmtplib

from benchmarks.peers.job import HOST


async def lane(port: int, messages: Iterator[tuple[str, str, bytes]]) -> None:
    async with aiosmtplib.SMTP(hostname=HOST, port=port, start_tls=False) as client:
        for sender, recipient, content in messages:  # the lanes take from one iterator
            await client.sendmail(sender, [recipient], content)


def read(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        header = message_from_bytes(content.partition(b"\r\n\r\n")[0])
        yield header["Reply-To"], header["To"], content


async def send(folder: Path, port: int, count: int, connections: int) -> None:
    messages = islice(cycle(list(read(folder))), count)
    await asyncio.gather(*(lane(port, messages) for _ in range(connections)))


if __name__ == "__main__":
    _, folder, port, count, connections = sys.argv
    asyncio.run(send(Path(folder), int(port), int(count), int(connections)))
