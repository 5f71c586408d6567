"""The drafts folder: one file a referral, whole or not there, never written over."""

from __future__ import annotations

import errno
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from referrals.errors import DraftChanged, DraftUnwritable

_STALE_AFTER_S = 3600.0
_MOST_TRIES = 100
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EOPNOTSUPP}  # some network file systems sync files only


@dataclass(frozen=True)
class Draft:
    """`written` is false where the very same bytes were there already."""

    path: Path
    written: bool


def save_draft(
    folder: Path, name: str, content: bytes, *, beside: bool = False, sweep: bool = True
) -> Draft:
    """Put a draft into a folder, which is made (0700) if it is not there; the file is 0600.

    Temporary file, fsync, link to its name, fsync of the folder: after a crash there is the whole
    draft or none. A link, not a rename, since a rename would write over what somebody edited.

    Args:
        beside: where another draft has the name, write `name-2` and so on.
        sweep: look for what was left half-way; of many drafts, the first one's call is enough.

    Raises:
        DraftChanged: another draft has the name; it is left as it is.
        DraftUnwritable: the system says no; nothing is left behind.
    """
    try:
        _make_folder(folder)
        if sweep:
            _sweep(folder)
        for _ in range(_MOST_TRIES):
            path, there = _place(folder, name, content, beside)
            if there:
                return Draft(path, written=False)
            try:
                _write(path, content)
            except FileExistsError:
                continue  # somebody else took the name just now: look at what they wrote
            return Draft(path, written=True)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "the system says no"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        room = "Free some room, or choose" if full else "Choose"
        remedy = f"{room} another folder with --out"
        raise DraftUnwritable(
            f"The draft could not be saved in {folder}: {reason}. Nothing was left there. {remedy}."
        ) from None


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


def _make_folder(folder: Path) -> None:
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(mode=0o700, exist_ok=True)


def _place(folder: Path, name: str, content: bytes, beside: bool) -> tuple[Path, bool]:
    """Where to write; or where the same bytes are already, which the second value says."""
    path = folder / name
    number = 2
    while path.exists() or path.is_symlink():
        if path.is_file() and path.read_bytes() == content:
            return path, True
        if not beside:
            raise DraftChanged(
                f"{path} is there already and differs: it was edited, or the case or the day has "
                "changed since. It was kept as it is. Move or delete it, or use --beside to write "
                "the new one next to it. Take care that only one of the two is sent."
            )
        path = folder / f"{Path(name).stem}-{number}.eml"
        number += 1
    return path, False


def _write(path: Path, content: bytes) -> None:
    temporary = path.parent / f".{path.stem}.{secrets.token_hex(4)}.referral-tmp"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _name(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    try:
        _sync_folder(path.parent)
    except OSError:
        path.unlink(missing_ok=True)  # it might not last, and we say that nothing was left
        raise


def _name(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists() or path.is_symlink():
            raise FileExistsError from None
        temporary.rename(path)  # a file system without links, such as a memory stick's


def _sync_folder(folder: Path) -> None:
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
