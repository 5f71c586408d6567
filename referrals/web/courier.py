"""Tries what is queued, in the background of the page's process."""

from __future__ import annotations

from typing import Self

from referrals.settings import Settings


class Courier:
    """Runs while its `async with` block does."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def kick(self) -> None:
        """Something was queued, or is due again: look now. From any thread."""
