"""Procrastinate by itself: its own worker, with a task that does nothing, or submits a letter.

    python -m benchmarks.peers.procrastinate_jobs defer DSN COUNT
    python -m benchmarks.peers.procrastinate_jobs work DSN CONCURRENCY [PORT FOLDER]

`work` ends when nothing is left, and prints when each job was done, in seconds since the epoch.
With PORT, each job submits one of the messages in FOLDER over a link that stays open, which is
what a worker does that keeps no account. A job that is done is deleted, as ours are.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import cycle
from pathlib import Path

import aiosmtplib
from procrastinate import App, PsycopgConnector
from procrastinate.types import JSONDict

from benchmarks.peers.bare_aiosmtplib import read
from benchmarks.peers.job import HOST

_GROUP = 1_000


def app_of(
    dsn: str, connections: int, done: list[float], submit: Callable[[], Awaitable[None]]
) -> App:
    app = App(
        connector=PsycopgConnector(
            conninfo=dsn,
            kwargs={"options": "-c search_path=procrastinate"},
            min_size=1,
            max_size=connections,
        )
    )

    @app.task(name="bench", queue="bench", pass_context=False)
    async def bench(message: int) -> None:  # noqa: ARG001 - as ours: a job is a number
        await submit()
        done.append(time.time())

    return app


async def nothing() -> None:
    """What the bare task does."""


class Links:
    """As many open links as are used at the same time."""

    def __init__(self, port: int, folder: Path) -> None:
        self._port = port
        self._free: list[aiosmtplib.SMTP] = []
        self._messages = cycle(list(read(folder)))

    async def submit(self) -> None:
        link = self._free.pop() if self._free else None
        if link is None:
            link = aiosmtplib.SMTP(hostname=HOST, port=self._port, start_tls=False)
            await link.connect()
        sender, recipient, content = next(self._messages)
        await link.sendmail(sender, [recipient], content)
        self._free.append(link)

    async def close(self) -> None:
        for link in self._free:
            await link.quit()


async def defer(dsn: str, count: int) -> None:
    app = app_of(dsn, 2, [], nothing)
    async with app.open_async():
        for start in range(0, count, _GROUP):
            some = range(start, min(start + _GROUP, count))
            jobs: list[JSONDict] = [{"message": one} for one in some]
            await app.tasks["bench"].batch_defer_async(*jobs)


async def work(dsn: str, concurrency: int, links: Links | None) -> None:
    done: list[float] = []
    app = app_of(dsn, concurrency + 2, done, links.submit if links else nothing)
    async with app.open_async():
        await app.run_worker_async(
            queues=["bench"], concurrency=concurrency, wait=False, delete_jobs="always"
        )
    if links:
        await links.close()
    print(json.dumps(done))


if __name__ == "__main__":
    what, dsn, number, *relay = sys.argv[1:]
    if what == "defer":
        asyncio.run(defer(dsn, int(number)))
    else:
        made = Links(int(relay[0]), Path(relay[1])) if relay else None
        asyncio.run(work(dsn, int(number), made))
