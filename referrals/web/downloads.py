"""Files to be saved by the browser."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

from starlette.responses import Response


def eml(name: str, content: bytes) -> Response:
    """A draft, which a mail client opens. `name` is ours: references and ids, nothing typed."""
    return _saved(name, content, "message/rfc822")


def zipped(name: str, files: Mapping[str, bytes]) -> Response:
    """Several drafts in one archive, made in memory: nothing is left on the disk."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in files.items():
            archive.writestr(file, content)
    return _saved(name, whole.getvalue(), "application/zip")


def _saved(name: str, content: bytes, kind: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=kind, headers=headers)
