"""Files to be saved by the browser."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from datetime import date

from starlette.responses import Response

_PRIVATE_FILE = 0o100600 << 16  # the mode's place in a zip (APPNOTE 4.4.15, Unix)


def eml(name: str, content: bytes) -> Response:
    """A draft, which a mail client opens. `name` is ours: references and ids, nothing typed."""
    return _saved(name, content, "message/rfc822")


def zipped(name: str, files: Mapping[str, bytes], today: date) -> Response:
    """Several drafts in one archive, made in memory: nothing is left on the disk.

    Args:
        today: see `entry`.
    """
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in files.items():
            archive.writestr(entry(file, today), content)
    return _saved(name, whole.getvalue(), "application/zip")


def entry(file: str, today: date) -> zipfile.ZipInfo:
    """A file of an archive: for its owner alone, and of the region's day."""
    about = zipfile.ZipInfo(file, (today.year, today.month, today.day, 0, 0, 0))
    about.external_attr = _PRIVATE_FILE
    about.compress_type = zipfile.ZIP_DEFLATED
    return about


def _saved(name: str, content: bytes, kind: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=kind, headers=headers)
