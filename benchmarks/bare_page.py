"""A page that does nothing, in Starlette: what HTTP itself costs. Its argument is the size."""

from __future__ import annotations

import asyncio
import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route


async def serve(size: int) -> None:
    """On a port of its own, which it prints."""
    html = "<p>" + "x" * (size - 3)

    def page(_: Request) -> HTMLResponse:  # in a thread, as ours
        return HTMLResponse(html)

    # Said to be TCP, or asyncio would leave Nagle's algorithm on, and each answer wait 40 ms.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    config = uvicorn.Config(
        Starlette(routes=[Route("/", page)]),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    await uvicorn.Server(config).serve([listening])


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
