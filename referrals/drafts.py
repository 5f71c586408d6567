"""The drafts folder: one file a referral, whole or not there, never written over."""

from __future__ import annotations

import errno
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from referrals.errors import DraftChanged, DraftUnwritable

_STALE_AFTER_S = 3600.0
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True)
class Draft:
    """`written` is false where the very same bytes were there already."""

    path: Path
    written: bool


def save_draft(folder: Path, name: str, content: bytes, *, beside: bool = False) -> Draft:
    """Put a draft into a folder, which is made (0700) if it is not there; the file is 0600.

    Temporary file, fsync, link to its name, fsync of the folder: after a crash there is the whole
    draft or none. A link, not a rename, since a rename would write over what somebody edited.

    Args:
        beside: where another draft has the name, write `name-2` and so on.

    Raises:
        DraftChanged: another draft has the name; it is left as it is.
        DraftUnwritable: the system says no; nothing is left behind.
    """
    try:
        _make_folder(folder)
        _sweep(folder)
        path = _place(folder, name, content, beside)
        if path.exists():
            return Draft(path, written=False)
        _write(path, content)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "the system says no"
        raise DraftUnwritable(
            f"The draft could not be saved in {folder}: {reason}. Nothing was left there. Free "
            "some room or choose another folder with --out."
        ) from None
    return Draft(path, written=True)


def _make_folder(folder: Path) -> None:
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(mode=0o700, exist_ok=True)


def _place(folder: Path, name: str, content: bytes, beside: bool) -> Path:
    """Where to write; or where the same bytes are already."""
    path = folder / name
    number = 2
    while path.exists() or path.is_symlink():
        if path.is_file() and path.read_bytes() == content:
            return path
        if not beside:
            raise DraftChanged(
                f"{path} is there already and differs: it was edited, or the case or the day has "
                "changed since. It was kept as it is. Move or delete it, or use --beside to write "
                "the new one next to it. Take care that only one of the two is sent."
            )
        path = folder / f"{Path(name).stem}-{number}.eml"
        number += 1
    return path


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
    _sync_folder(path.parent)


def _name(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise DraftChanged(f"{path} was made by somebody else just now. Try again.") from None
    except OSError as error:
        if error.errno not in _NO_LINKS or path.exists():
            raise
        temporary.rename(path)  # a file system without links, such as a memory stick's


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
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
