"""What an outbox writes with whatever it writes next, since nobody waits for it by itself."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Owed(Generic[K, T]):
    """Things by key, each owed until a transaction that had it is kept. From any thread."""

    def __init__(self) -> None:
        self._things: dict[K, T] = {}
        self._paying: list[K] = []

    def __bool__(self) -> bool:
        return bool(self._things)

    def add(self, key: K, thing: T) -> None:
        self._things[key] = thing

    def pay(self) -> list[T]:
        """All that is owed, for the transaction that has just begun."""
        items = list(self._things.items())
        self._paying = [key for key, _ in items]
        return [thing for _, thing in items]

    def paid(self) -> None:
        """What `pay` gave last has been kept."""
        for key in self._paying:
            self._things.pop(key, None)
        self._paying = []
