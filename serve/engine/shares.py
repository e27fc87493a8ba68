"""Decides whose turn it is among several that share a resource: the one that has used least of it."""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
MAX_REMEMBERED = 1000
"""Number of keys from which on those that have no disadvantage over a new key are forgotten."""


class Shares(Generic[Key]):
    """How much each key has used so far, in any unit (start-time fair queueing).

    A key that was absent for a while gets no credit for that time: on its return it counts as having used as much as
    the key that had the last turn, or more if it did use more.
    """

    def __init__(self) -> None:
        self._used: dict[Key, float] = {}
        self._level = 0.0
        """What the key of the last turn had used when it got that turn."""

    def enter(self, key: Key) -> None:
        """Call this when a key begins to wait for a turn."""
        if len(self._used) > MAX_REMEMBERED:
            self._used = {one: used for one, used in self._used.items() if used > self._level}
        self._used[key] = max(self._used.get(key, 0.0), self._level)

    def charge(self, key: Key, amount: float) -> None:
        """Adds to what a key has used."""
        self._used[key] = self._used.get(key, self._level) + amount

    def first(self, waiting: Iterable[Key]) -> Key:
        """The key whose turn it is; of those that have used equally little, the first in ``waiting``."""
        key = min(waiting, key=lambda one: self._used.get(one, self._level))
        self._level = max(self._level, self._used.get(key, 0.0))
        return key
