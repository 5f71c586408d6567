"""Everything held on one case, for a subject access request: a folder or a zip, whole or not there.

index.txt    for people
index.json   the same for programs, with the audit
messages/    each message as it was queued, unless it is forgotten by now
drafts/      drafts of the case in the outbox folder, and in sink/ what a sink has kept
"""

from __future__ import annotations

import errno
import io
import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from referrals.drafts import sync_folder
from referrals.errors import DraftUnwritable

_PRIVATE_FILE = 0o100600 << 16  # the mode's place in a zip (APPNOTE 4.4.15, Unix)


def export_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a new folder (0700) of files (0600) by their paths in it.

    Raises:
        DraftUnwritable: it is there already and not empty, or the system says no. Nothing is left.
    """

    def write(temporary: Path) -> None:
        temporary.mkdir(mode=0o700)
        inner = {temporary} | {(temporary / name).parent for name in files}
        for made in sorted(inner):
            made.mkdir(mode=0o700, exist_ok=True)
        for name, content in files.items():
            _write(temporary / name, content)
        for made in inner:
            sync_folder(made)
        temporary.rename(folder)  # over an empty folder at most

    _whole(folder, write)


def export_zip(file: Path, files: Mapping[str, bytes]) -> None:
    """Write a new zip (0600).

    Raises:
        DraftUnwritable: it is there already, or the system says no. Nothing is left.
    """

    def write(temporary: Path) -> None:
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                about = zipfile.ZipInfo(name)
                about.external_attr = _PRIVATE_FILE
                about.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(about, content)
        _write(temporary, made.getvalue())
        if os.path.lexists(file):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        temporary.rename(file)

    _whole(file, write)


def as_json(account: Mapping[str, object]) -> bytes:
    return (json.dumps(account, indent=2, ensure_ascii=False) + "\n").encode()


def _whole(place: Path, write: Callable[[Path], None]) -> None:
    temporary = place.parent / f".{place.name}.{secrets.token_hex(4)}.referral-tmp"
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            write(temporary)
            sync_folder(place.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise DraftUnwritable(
                f"{place} is there already. Nothing was exported: name another with --out."
            ) from None
        reason = os.strerror(error.errno) if error.errno else "the system says no"
        raise DraftUnwritable(
            f"The export could not be written to {place}: {reason}. Nothing was left there. "
            "Choose another place with --out."
        ) from None


def _write(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
