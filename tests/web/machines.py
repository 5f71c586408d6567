"""Several web machines before one database: a `serve` each, in a folder of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import httpx2

from tests.e2e.conftest import REFERRALS

WITHIN_S = 30.0


@dataclass
class Machine:
    """`folder` is what is on its own disk."""

    folder: Path
    process: subprocess.Popen[bytes] = field(init=False, repr=False)
    port: int = field(init=False, default=0)

    def start(self, env: dict[str, str]) -> None:
        self.folder.mkdir(exist_ok=True)
        variables = {f"REFERRALS_{name}": value for name, value in env.items()}
        with self._said_in.open("wb") as sink:
            self.process = subprocess.Popen(
                [*REFERRALS, "serve", "--port", "0"],
                cwd=self.folder,
                env={**os.environ, **variables, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        """Until it answers."""
        until = time.monotonic() + WITHIN_S
        while not (found := re.search(r"http://\S+:(\d+)", self.said)):
            assert self.process.poll() is None, self.said
            assert time.monotonic() < until, "it never said where"
            time.sleep(0.05)
        self.port = int(found[1])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(WITHIN_S)

    @property
    def said(self) -> str:
        return self._said_in.read_text()

    @property
    def _said_in(self) -> Path:
        return self.folder / "said.txt"


@contextmanager
def machines(folder: Path, env: dict[str, str], count: int = 2) -> Iterator[list[Machine]]:
    made = [Machine(folder / f"machine-{number}") for number in range(count)]
    try:
        for machine in made:
            machine.start(env)
        for machine in made:
            machine.wait()
        yield made
    finally:
        for machine in made:
            machine.process.send_signal(signal.SIGTERM)
        for machine in made:
            machine.process.wait(WITHIN_S)


class Balancer(httpx2.BaseTransport):
    """The proxy in front of them: each request goes to the next one, whoever asks.

    `headers` are what it adds. `taken` counts the requests of each.
    """

    def __init__(self, to: Sequence[Machine], **headers: str) -> None:
        self._transport = httpx2.HTTPTransport()
        self._turns = cycle(range(len(to)))
        self._to = to
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.taken = [0] * len(to)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        turn = next(self._turns)
        self.taken[turn] += 1
        request.headers.update(self._headers)
        asked, request.url = request.url, request.url.copy_with(port=self._to[turn].port)
        try:
            return self._transport.handle_request(request)
        finally:
            request.url = asked  # what a browser sees

    def close(self) -> None:
        self._transport.close()


@contextmanager
def browser_at(to: Sequence[Machine], **headers: str) -> Iterator[httpx2.Client]:
    """A browser that follows no redirect and sees one address."""
    with httpx2.Client(
        transport=Balancer(to, **headers), base_url="http://127.0.0.1:8080", timeout=WITHIN_S
    ) as client:
        yield client
