"""A letter's HTML as a frame of its own, which can do nothing: no script, no image, no link out."""

from __future__ import annotations

from email import message_from_bytes
from email.policy import default

from starlette.responses import HTMLResponse, Response

_HEADERS = {
    # `sandbox` holds also where somebody opens the frame by itself.
    "Content-Security-Policy": (
        "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src 'none'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "X-Frame-Options": "SAMEORIGIN",
}

_SHOWN = ("From", "Reply-To", "To", "Subject", "X-Protective-Marking")


def letter_frame(html: str) -> Response:
    """The letter, to be shown by `<iframe sandbox title="…" src="…">` on a page of ours."""
    return HTMLResponse(html, headers=_HEADERS)


def header_lines(content: bytes) -> list[tuple[str, str]]:
    """The header of a message as a mail client shows it: names and decoded values."""
    message = message_from_bytes(content, policy=default)
    return [(name, str(message[name])) for name in _SHOWN if message[name]]
