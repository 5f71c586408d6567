"""The private folder of one spreadsheet on the server: the upload, how far it is, what came of it.

Folders are 0700 and files 0600, with names of ours, never the user's. One process at a time works
in a folder. It holds a lock that the system takes back however it ends, so that nobody waits for
one that was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any

import referrals

UPLOAD = "upload"
ERRORS = "errors.csv"
LEFT_OUT = "left-out"
DRAFTS = "drafts.zip"
_STOP = "stop"
_LOCK = "lock"
_STATUS = "status.json"
_PART = ".part"
_PIECE = 1 << 20
_TRIES = 100
_A_MOMENT_S = 0.02
_LEFT_BEHIND = timedelta(minutes=1)
"""How old a workplace is before it is taken for one whose process was killed."""


class BatchFolder:
    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def upload(self) -> Path:
        return self.path / UPLOAD

    # The page's side

    def receive(self, file: IO[bytes]) -> None:
        """Make the folder and keep what was uploaded. OSError: nothing is left of it."""
        for folder in (self.path.parent, self.path):
            folder.mkdir(mode=0o700, parents=True, exist_ok=folder != self.path)
        handle = self._lock(self.path / _LOCK)
        try:
            with self.writing(UPLOAD) as kept:
                shutil.copyfileobj(file, kept, _PIECE)
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise
        finally:
            if handle is not None:
                os.close(handle)

    def start(self, order: Mapping[str, Any], ended: Callable[[], None] = lambda: None) -> bool:
        """Run `batch_job` on it in a process of its own; False if one is at work already.

        Args:
            order: what to do, as JSON's kind of values; see `batch_job.Order`.
            ended: called from another thread once the process has ended, however it did.
        """
        for _ in range(_TRIES):
            handle = self._lock(self.path / _LOCK)
            if handle is not None:
                break
            time.sleep(_A_MOMENT_S)  # perhaps somebody only asked whether it is running
        else:
            return False
        try:
            self.tidy(_STOP)
            self.tell({"step": "waiting"})
            self._spawn(order, handle, ended)
        finally:
            os.close(handle)
        return True

    def _spawn(self, order: Mapping[str, Any], handle: int, ended: Callable[[], None]) -> None:
        # Our own package, whatever lies in the working directory.
        root = str(Path(referrals.__file__).parents[1])
        process = subprocess.Popen(  # noqa: S603 - nothing in it was typed
            [sys.executable, "-P", "-m", "referrals.web.batch_job", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[handle],  # it has the lock for as long as it lives
            start_new_session=True,  # Ctrl-C is the server's to answer
            env=os.environ | {"PYTHONPATH": root},
        )

        def wait() -> None:
            content = json.dumps({**order, "parent": os.getpid()}).encode()
            with suppress(BrokenPipeError):
                process.communicate(content)
            process.wait()
            ended()

        threading.Thread(target=wait, name="batch", daemon=True).start()

    def status(self) -> dict[str, Any]:
        """What was last told. `running`: whether a process is at work; if not, that is final."""
        running = self.is_running  # asked first: what is told before the end is read after it
        try:
            told: dict[str, Any] = json.loads((self.path / _STATUS).read_text("utf-8"))
        except (OSError, ValueError):
            told = {"step": "lost"}
        return told | {"running": running}

    @property
    def is_running(self) -> bool:
        try:
            handle = self._lock(self.path / _LOCK)
        except OSError:
            return False
        if handle is None:
            return True
        os.close(handle)
        return False

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def opened(self, name: str) -> tuple[int, Iterator[bytes]] | None:
        """How long a file is, and what is in it, piece by piece; None if there is none."""
        try:
            file = (self.path / name).open("rb")
        except OSError:
            return None

        def pieces() -> Iterator[bytes]:
            with file:
                while piece := file.read(_PIECE):
                    yield piece

        return os.fstat(file.fileno()).st_size, pieces()

    def stop(self) -> None:
        """Ask whoever is at work to end without having made anything."""
        (self.path / _STOP).touch(0o600)

    def remove(self) -> bool:
        """Remove it with all in it, unless a process is at work there."""
        if self.is_running:
            return False
        shutil.rmtree(self.path, ignore_errors=True)
        return True

    # The job's side

    def begin(self) -> None:
        """Called first of all, once."""

    def end(self) -> None:
        """Called last of all, if the process can."""

    @property
    def is_to_stop(self) -> bool:
        return self.has(_STOP)

    def tell(self, status: Mapping[str, Any]) -> None:
        with self.writing(_STATUS) as file:
            file.write(json.dumps(status).encode())

    @contextmanager
    def placing(self, name: str) -> Iterator[Path]:
        """An empty file (0600), to be written to, that has its name once it is whole."""
        part = self.path / f"{name}{_PART}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            os.close(os.open(part, flags, 0o600))
            yield part
            part.replace(self.path / name)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        with self.placing(name) as path, path.open("wb") as file:
            yield file

    def tidy(self, *more: str) -> None:
        """Remove what was left half-made, and these."""
        for path in [*self.path.glob(f"*{_PART}"), *(self.path / name for name in more)]:
            path.unlink(missing_ok=True)

    @contextmanager
    def turn(self, waiting: Callable[[], None]) -> Iterator[None]:
        """One file is worked on at a time, since one takes all processors.

        Args:
            waiting: called again and again until it is our turn; it waits a little.
        """
        path = self.path.parent / "turn"
        while (handle := self._lock(path)) is None:
            waiting()
        try:
            yield
        finally:
            os.close(handle)

    def _lock_own(self) -> int:
        handle = self._lock(self.path / _LOCK)
        if handle is None:
            raise OSError(f"{self.path} is used by another process")
        return handle

    @staticmethod
    def _lock(path: Path) -> int | None:
        """A handle that has the lock until it is closed; None if another has it."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        return handle


def folders(outbox: Path) -> Path:
    """Where all of them are."""
    return outbox / "web"


def workplace(outbox: Path, batch_id: str, worker: str) -> Path:
    """The folder in which one process works on what lies in the database."""
    return folders(outbox) / f"{batch_id}.{worker}"


def is_workplace(path: Path) -> bool:
    """Whether nothing in it is of any use once that process has ended. No id has a dot."""
    return "." in path.name


def sweep(outbox: Path, now: datetime, keep: timedelta) -> None:
    """Remove the folders that nothing has happened in for so long, and what is left half-made."""
    oldest, unused = (now - keep).timestamp(), (now - _LEFT_BEHIND).timestamp()
    with suppress(OSError):  # there is none yet
        for path in folders(outbox).iterdir():
            with suppress(OSError):
                folder = BatchFolder(path)
                if not path.is_dir():
                    continue
                if path.stat().st_mtime < (unused if is_workplace(path) else oldest):
                    folder.remove()
                elif not folder.is_running:
                    folder.tidy()
