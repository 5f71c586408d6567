"""A fault of ours, told to the log."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

log = logging.getLogger(__name__)

_PACKAGE = str(Path(__file__).parents[1])


def note_crash(error: BaseException) -> None:
    """To the log: what and where. Its text and a traceback could hold personal data."""
    places = [
        f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
    ]
    ours = [place for place in places if place.startswith(_PACKAGE)]
    log.error("%s at %s", type(error).__name__, ", ".join(dict.fromkeys(ours[-1:] + places[-1:])))
