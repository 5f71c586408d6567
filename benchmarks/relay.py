"""Postfix's own test programs: smtp-sink takes the messages, smtp-source is the limit.

Both are C, and come with Debian's `postfix`, which need not run.
"""

from __future__ import annotations

import os
import shutil
import smtplib
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HOST = "127.0.0.1"
_PATIENCE_S = 10.0
_WHERE = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
_ADDED = ("X-Client-", "X-Helo-Args", "X-Mail-Args", "X-Rcpt-Args", "Received")


def tool(name: str) -> str:
    """Raises RuntimeError if it is not installed."""
    found = shutil.which(name, path=_WHERE)
    if found is None:
        raise RuntimeError(f"No {name} here. Debian: scripts/install_test_tools.sh installs it.")
    return found


@contextmanager
def sink(expected: int, dump: Path | None = None) -> Iterator[int]:
    """A relay that takes exactly so many messages; yields its port.

    Args:
        dump: a folder to keep each message in.

    Raises:
        RuntimeError: more arrived, or fewer.
    """
    port = _free_port()
    # It ends by itself at one message more than expected, and that one is ours.
    argv = [tool("smtp-sink"), "-M", str(expected + 1)]
    if os.geteuid() == 0:
        argv += ["-u", "nobody"]
    if dump is not None:
        dump.mkdir()
        dump.chmod(0o777)
        argv += ["-d", f"{dump}/%M."]
    process = subprocess.Popen([*argv, f"{HOST}:{port}", "1000"], stdout=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield port
        if process.poll() is not None:
            raise RuntimeError(f"More than {expected} messages arrived.")
        _send_one(port)
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"Fewer than {expected} messages arrived.") from None
    finally:
        process.kill()
        process.wait()


@contextmanager
def open_sink() -> Iterator[int]:
    """A relay that takes as many as come; yields its port."""
    port = _free_port()
    argv = [tool("smtp-sink"), *(["-u", "nobody"] if os.geteuid() == 0 else [])]
    process = subprocess.Popen([*argv, f"{HOST}:{port}", "1000"], stdout=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield port
    finally:
        process.kill()
        process.wait()


def dumped(folder: Path) -> Iterator[bytes]:
    """What arrived, as it was on the wire; our own last one left out."""
    for path in sorted(folder.iterdir()):
        lines = path.read_bytes().splitlines()
        while lines and lines[0].decode("latin-1").startswith((*_ADDED, "\t", " ")):
            del lines[0]
        if lines != [b"."] and any(lines):
            yield b"".join(line + b"\r\n" for line in lines)


@contextmanager
def nobody_listens() -> Iterator[int]:
    """A port that refuses connections, and that nobody else takes meanwhile."""
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        yield int(bound.getsockname()[1])


def source(port: int, messages: int, sessions: int, length: int) -> list[str]:
    """smtp-source's command: so many messages of so many bytes over connections kept open."""
    counts = ["-m", str(messages), "-s", str(sessions), "-l", str(length)]
    names = ["-f", "source@example.com", "-t", "sink@example.com"]
    return [tool("smtp-source"), "-d", *counts, *names, f"{HOST}:{port}"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            socket.create_connection((HOST, port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _send_one(port: int) -> None:
    # It may end before it answers, which is what is wanted of it.
    with suppress(smtplib.SMTPServerDisconnected, OSError), smtplib.SMTP(HOST, port) as client:
        client.sendmail("last@example.com", ["sink@example.com"], b"\r\n")
