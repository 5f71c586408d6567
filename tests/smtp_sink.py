"""Postfix's smtp-sink as a relay for tests: another maker's server, with faults on demand."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from pwd import getpwuid
from typing import Self

import pytest

SMTP_SINK = Path("/usr/sbin/smtp-sink")
_LISTENING = "0A"  # Linux, net/tcp_states.h
_ITS_HEADERS = (b"X-Client-", b"X-Helo-", b"X-Mail-", b"X-Rcpt-")


def need(*programs: Path) -> None:
    """Skip where a program is missing; in CI that is a failure."""
    for program in programs:
        if not program.exists():
            missing = f"{program} is missing: scripts/install_test_tools.sh installs it"
            if os.environ.get("CI"):
                pytest.fail(missing)
            pytest.skip(missing)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def is_listening(port: int) -> bool:
    """Whether somebody listens, without calling there: that would count as a session."""
    wanted = f":{port:04X} "
    return any(
        wanted in line and line.split()[3] == _LISTENING
        for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    )


def wait_until(true: Callable[[], object], what: str, limit_s: float = 20.0) -> None:
    until = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < until, f"waited {limit_s:g} s for {what}"
        time.sleep(0.01)


class SmtpSink:
    """One smtp-sink process; `options` are its own, see smtp-sink(1).

    It writes down whatever it got the whole of, also what it then refuses (`-r .`).
    """

    host = "127.0.0.1"

    def __init__(self, *options: str) -> None:
        need(SMTP_SINK)
        self._options = options
        self._last: list[bytes] | None = None
        self.port = free_port()

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="smtp-sink-"))
        # It insists on a user where it is started by root; its own folder stays its own.
        as_user = ["-u", getpwuid(0).pw_name] if os.geteuid() == 0 else []
        self._process = subprocess.Popen(
            [SMTP_SINK, *as_user, "-d", "message.", *self._options, f"inet:127.0.0.1:{self.port}",
             "128"],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(lambda: is_listening(self.port) or self._process.poll() is not None, "smtp-sink")
        if self._process.poll() is not None:
            shutil.rmtree(self._folder)
            raise AssertionError(f"smtp-sink {' '.join(self._options)} did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._last = self.arrived
        shutil.rmtree(self._folder)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    @property
    def arrived(self) -> list[bytes]:
        """Each content that came to its end, in the bytes that crossed the wire."""
        if self._last is not None:
            return list(self._last)
        dumps = [path.read_bytes() for path in self._folder.glob("message.*")]
        return [_content(dump) for dump in dumps if dump]


def _content(dump: bytes) -> bytes:
    """Without smtp-sink's own headers in front and its empty line behind; it writes LF for CRLF."""
    lines = dump.split(b"\n")
    while lines[0].startswith(_ITS_HEADERS):
        del lines[0]
    assert lines[0].startswith(b"Received: from ")
    del lines[:3]
    assert lines[-2:] == [b"", b""]
    return b"\r\n".join(lines[:-1])
