"""The command for tests to run: in this process with its clock stopped, or in one of its own."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import pytest

from referrals.cli import main
from referrals.directory import Directory
from referrals.samples import sample_case
from tests.conftest import NOW, TODAY
from tests.peers import Certificates

DOCUMENTED = frozenset(range(13))
REFERRALS = (sys.executable, "-m", "referrals")


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def said(self) -> str:
        return self.out + self.err


class Command:
    """`referrals` in this process. Calling it runs it and takes all that it says."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *argv: str | Path, stdin: bytes = b"") -> Done:
        self._monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        self._capsys.readouterr()
        code = main([str(word) for word in argv])
        said = self._capsys.readouterr()
        return Done(code, said.out, said.err)


@pytest.fixture(scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def home(tmp_path: Path, _cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a command runs in: empty, with no settings and a cache of its own."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(_cache))
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "SINK_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def referrals(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    monkeypatch.setattr("referrals.bootstrap.now", lambda: NOW)
    return Command(capsys, monkeypatch)


@pytest.fixture
def case_file(home: Path, directory: Directory) -> Path:
    """A case that fits all seven interventions on the day that the clock shows."""
    file = home / "case.json"
    case = sample_case(directory, sorted(directory.interventions), TODAY)
    file.write_text(json.dumps(case), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


def process(
    *argv: str | Path, stdin: bytes | None = b"", env: Mapping[str, str] | None = None
) -> Done:
    """`referrals` as a process of its own, with the real clock."""
    done = subprocess.run(
        [*REFERRALS, *map(str, argv)],
        input=stdin,
        env={**os.environ, **(env or {})},
        capture_output=True,
        check=False,
        timeout=60,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


class Server(Protocol):
    """A Sink or a ScriptedRelay."""

    port: int

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


S = TypeVar("S", bound=Server)


class Beside(Generic[S]):
    """Runs a server in a thread, since the command has a loop of its own."""

    def __init__(self, server: S) -> None:
        self._server = server
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._fault: BaseException | None = None

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        # A relay whose certificate a client refuses is what some tests are about.
        self._loop.set_exception_handler(lambda _loop, _context: None)
        try:
            async with self._server:
                self._ready.set()
                await self._stop.wait()
        except BaseException as error:
            self._fault = error
        finally:
            self._ready.set()

    def __enter__(self) -> S:
        self._thread.start()
        assert self._ready.wait(10)
        if self._fault:
            raise self._fault
        return self._server

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        assert self._fault is None


@pytest.fixture
def relay_env(monkeypatch: pytest.MonkeyPatch) -> RelayEnv:
    return RelayEnv(monkeypatch)


class RelayEnv:
    """Sets REFERRALS_RELAY_*, as an operator does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, port: int, security: str = "none", **more: str | Path) -> None:
        settings = {"host": "127.0.0.1", "port": str(port), "security": security, "timeout_s": "5"}
        for name, value in {**settings, **more}.items():
            self._monkeypatch.setenv(f"REFERRALS_RELAY_{name.upper()}", str(value))
