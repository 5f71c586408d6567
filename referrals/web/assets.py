"""The page's own files: styles, scripts, fonts. Nothing is asked of another host."""

from __future__ import annotations

import hashlib
import mimetypes
from functools import lru_cache
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

FOLDER = Path(__file__).parent / "static"
_KINDS = {".woff2": "font/woff2", ".js": "text/javascript", ".svg": "image/svg+xml"}


@lru_cache(maxsize=64)
def _file(name: str) -> tuple[bytes, str] | None:
    """Bytes and media type of a file that we ship; only names that are in the folder count."""
    for path in FOLDER.rglob("*"):
        if path.is_file() and path.relative_to(FOLDER).as_posix() == name:
            kind = _KINDS.get(path.suffix) or mimetypes.guess_type(name)[0] or "text/plain"
            return path.read_bytes(), kind
    return None


@lru_cache(maxsize=64)
def asset(name: str) -> str:
    """The path of a file, which changes when the file does, so that it may be kept for long."""
    found = _file(name)
    version = hashlib.sha256(found[0]).hexdigest()[:12] if found else "0"
    return f"/static/{name}?v={version}"


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    found = _file(name) if "\0" not in name else None
    if found is None:
        raise HTTPException(404)
    content, kind = found
    if "v" in request.query_params:
        keep = "public, max-age=31536000, immutable"
    else:  # govuk.css asks for its fonts without a version
        keep = "public, max-age=86400" if name.startswith("fonts/") else "no-cache"
    return Response(content, media_type=kind, headers={"Cache-Control": keep})


def routes() -> list[BaseRoute]:
    return [Route("/static/{name:path}", _static, methods=["GET"])]
