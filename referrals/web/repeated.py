"""What is done now and then in the background of the page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress


@asynccontextmanager
async def repeated(work: Callable[[], None], every_s: float) -> AsyncIterator[None]:
    """While the block runs, work is done in a thread, at once and then every so often."""

    async def repeat() -> None:
        while True:
            await asyncio.to_thread(work)
            await asyncio.sleep(every_s)

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
