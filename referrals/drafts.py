"""The drafts folder: one file a referral, whole or not there, never written over."""

from __future__ import annotations

import errno
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from referrals.errors import DraftChanged, DraftUnwritable

_STALE_AFTER_S = 3600.0
_MOST_TRIES = 100
_FLUSH_EVERY_S = 0.5
_WRITING = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EOPNOTSUPP}  # some network file systems sync files only


@dataclass(frozen=True)
class Draft:
    """`written` is false where the very same bytes were there already."""

    path: Path
    written: bool


def save_draft(folder: Path, name: str, content: bytes, *, beside: bool = False) -> Draft:
    """Put a draft into a folder, which is made (0700) if it is not there; the file is 0600.

    Args:
        beside: where another draft has the name, write `name-2` and so on.

    Raises:
        DraftChanged: another draft has the name; it is left as it is.
        DraftUnwritable: the system says no; nothing is left behind.
    """
    (saved,) = save_drafts(folder, [(name, content)], beside=beside)
    if isinstance(saved, DraftChanged):
        raise saved
    return saved


def save_drafts(
    folder: Path, drafts: Sequence[tuple[str, bytes]], *, beside: bool = False
) -> list[Draft | DraftChanged]:
    """Put several into a folder, waiting for the disk once; a name that is taken stops no other.

    Temporary files, all made to last, then linked to their names, then the folder made to last:
    after a crash there is the whole of a draft or none of it. Links, not renames, since a rename
    would write over what somebody edited.

    Args:
        drafts: name and content of each; a few hundred at most, as all are open at once.

    Raises:
        DraftUnwritable: the system says no; none of these is left behind.
    """
    with _saying(folder, len(drafts)):
        _make_folder(folder)
        _sweep(folder)
        with _Group(folder) as group:
            return group.save(drafts, beside)


@contextmanager
def _saying(folder: Path, count: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "the system says no"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        room = "Free some room, or choose" if full else "Choose"
        remedy = f"{room} another folder with --out"
        what = "The draft" if count == 1 else f"{count} drafts" if count else "The drafts"
        of_it = "Nothing" if count == 1 else "None of these"
        raise DraftUnwritable(
            f"{what} could not be saved in {folder}: {reason}. {of_it} was left there. {remedy}."
        ) from None


class Staging:
    """Many drafts: written at once, under hidden names, and given their own once all is right.

    So the disk works while the next ones are made. What was not published is removed in the end;
    what a killed process left is swept like any draft that was left half-way.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._token = secrets.token_hex(4)
        self._made: list[Path] = []
        self._ending = threading.Event()
        self._flusher = threading.Thread(target=self._keep_flushing, daemon=True)

    def __enter__(self) -> Self:
        with _saying(self._folder, 0):
            self._made = _make_folder(self._folder)
            _sweep(self._folder)
            self._handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._flusher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._flusher.join()
        os.close(self._handle)
        with suppress(OSError):  # gone, or not ours any more: it is swept later
            for left in self._folder.glob(f".*.{self._token}.referral-tmp"):
                left.unlink(missing_ok=True)
            for folder in reversed(self._made):
                folder.rmdir()  # if nothing is in it

    def _keep_flushing(self) -> None:
        with suppress(OSError):  # `publish` meets the fault again, and says so
            while not self._ending.wait(_FLUSH_EVERY_S) and _sync_file_system(self._handle):
                pass

    def put(self, name: str, content: bytes) -> str:
        """Write one, from whichever process. Returns its name.

        Two of one name are two rows for one referral, so that neither will be published.

        Raises:
            DraftUnwritable: the system says no.
        """
        with _saying(self._folder, 1):
            handle = os.open(self._hidden(name), _WRITING | os.O_TRUNC, 0o600)
            try:
                while content:
                    content = content[os.write(handle, content) :]
            finally:
                os.close(handle)
        return name

    def publish(self, names: Sequence[str], *, beside: bool = False) -> list[Draft | DraftChanged]:
        """Give a few hundred of them their names, as `save_drafts` does."""
        with _saying(self._folder, len(names)), _Group(self._folder) as group:
            return group.adopt([(name, self._hidden(name)) for name in names], beside, self._handle)

    def _hidden(self, name: str) -> str:
        return _hidden(str(self._folder), name, self._token)


class _Group:
    """Drafts that are written together: each has its name in the end, or none has.

    Paths are texts here, as most of the time goes into the system's calls and making Paths.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._handles: list[int] = []
        self._temporary: list[str] = []
        self._named: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, fault: object, *_: object) -> None:
        for handle in self._handles:
            os.close(handle)
        # What might not last goes too, as we say that none was left.
        for path in [*self._temporary, *(self._named if fault is not None else ())]:
            with suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108

    def save(self, drafts: Sequence[tuple[str, bytes]], beside: bool) -> list[Draft | DraftChanged]:
        """Write what is not there yet, and name it."""

        def compared(content: bytes) -> Callable[[Path], bool]:
            return lambda path: path.read_bytes() == content

        wanted = [(name, compared(content)) for name, content in drafts]
        placed = [_placed(self._folder, name, same, beside) for name, same in wanted]
        written = {
            number: self._write(*drafts[number])
            for number, place in enumerate(placed)
            if isinstance(place, Draft) and place.written
        }
        _flush(self._handles)
        for number, temporary in written.items():
            placed[number] = self._name(temporary, placed[number], *wanted[number], beside)
        self._sync()
        return placed

    def adopt(
        self, drafts: Sequence[tuple[str, str]], beside: bool, folder: int
    ) -> list[Draft | DraftChanged]:
        """Name what was written already, by name and hidden path.

        Args:
            folder: its handle, opened before they were written.
        """
        self._temporary += (temporary for _, temporary in drafts)
        if not _sync_file_system(folder):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._handles += (os.open(temporary, flags) for temporary in self._temporary)
            for handle in self._handles:
                os.fsync(handle)
        import filecmp

        placed = []
        for name, temporary in drafts:
            same = partial(filecmp.cmp, temporary, shallow=False)
            place = _placed(self._folder, name, same, beside)
            placed.append(self._name(temporary, place, name, same, beside))
        self._sync()
        return placed

    def _sync(self) -> None:
        if self._named:
            sync_folder(self._folder)

    def _write(self, name: str, content: bytes) -> str:
        temporary = _hidden(self._folder, name, secrets.token_hex(4))
        handle = os.open(temporary, _WRITING | os.O_EXCL, 0o600)
        self._temporary.append(temporary)
        self._handles.append(handle)
        while content:
            content = content[os.write(handle, content) :]
        return temporary

    def _name(
        self,
        temporary: str,
        place: Draft | DraftChanged,
        name: str,
        same: Callable[[Path], bool],
        beside: bool,
    ) -> Draft | DraftChanged:
        for _ in range(_MOST_TRIES):
            if isinstance(place, DraftChanged) or not place.written:
                return place
            path = str(place.path)
            try:
                _name(temporary, path)
            except FileExistsError:
                # Somebody else took the name just now: look at what they wrote.
                place = _placed(self._folder, name, same, beside)
                continue
            self._named.append(path)
            return place
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _hidden(folder: str, name: str, token: str) -> str:
    return f"{folder}/.{name.removesuffix('.eml')}.{token}.referral-tmp"


def drafts_folder(outbox: Path) -> Path:
    """The outbox's own folder for drafts, closed to others if it is there already.

    A checkout comes with one as open as the umask made it; a folder of the user's own choosing
    (--out) is left as it is.
    """
    folder = outbox / "drafts"
    for own in (outbox, folder):
        with suppress(OSError):  # not there yet, or not ours to change: saving will say more
            if own.stat().st_mode & 0o077:
                own.chmod(0o700)
    return folder


def _make_folder(folder: Path) -> list[Path]:
    """Returns those that were made, the outermost first."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(mode=0o700, exist_ok=True)
    return missing[::-1]


def _placed(
    folder: str, name: str, same: Callable[[Path], bool], beside: bool
) -> Draft | DraftChanged:
    """Where to write it; or where the same bytes are already, or why it has no place."""
    path = f"{folder}/{name}"
    number = 2
    while os.path.lexists(path):
        there = Path(path)
        if there.is_file() and same(there):
            return Draft(there, written=False)
        if not beside:
            return DraftChanged(
                f"{path} is there already and differs: it was edited, or the case or the day has "
                "changed since. It was kept as it is. Move or delete it, or use --beside to write "
                "the new one next to it. Take care that only one of the two is sent."
            )
        path = f"{folder}/{name.removesuffix('.eml')}-{number}.eml"
        number += 1
    return Draft(Path(path), written=True)


def _flush(handles: Sequence[int]) -> None:
    """Wait until files are on the disk: of many, once for all of them where the system can."""
    if len(handles) > 1 and _sync_file_system(handles[0]):
        return
    for handle in handles:
        os.fsync(handle)


def _sync_file_system(handle: int) -> bool:
    """Write out the whole file system that a file is on; false where that can't be relied on.

    An fsync for each file waits for the device each time. Source: syncfs(2): since Linux 5.8 it
    reports every fault since the handle was opened.
    """
    import ctypes

    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None or _linux() < (5, 8):
        return False
    if syncfs(handle):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return True


def _linux() -> tuple[int, ...]:
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return tuple(map(int, release.groups())) if release else ()


def _name(temporary: str, path: str) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):
            raise FileExistsError from None
        os.rename(temporary, path)  # noqa: PTH104  # a file system without links, such as a memory stick's


def sync_folder(folder: str | Path) -> None:
    """Wait until the names in a folder are on the disk, where its file system can be asked to."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove what a process that was killed half-way left here long ago."""
    for stale in folder.glob(".*.referral-tmp"):
        try:
            if time.time() - stale.stat().st_mtime > _STALE_AFTER_S:
                stale.unlink()
        except OSError:
            continue  # somebody else's; it harms nobody
