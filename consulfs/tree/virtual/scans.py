"""A program that goes through a directory: it reads the names, and then looks at each. Pure.

`ls -l` of 5,000 files takes longer than an answer lives, and would ask again each second. So what a listing of many
has shown is taken by its reader as it was then, each name once, for as long as its looks follow each other. A program
that looks at a name again and again gets a new answer from the second look on, and other programs do from the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, Optional, TypeVar

MANY = 100
"""Names. So many and fewer are gone through before their answer is old, and asking again costs little."""

GAP = 2.0
"""Seconds without a look after which nobody goes through the directory any more."""

LONGEST = 60.0
"""Seconds after which even one who still does gets new answers."""

T = TypeVar("T")


class Scan(Generic[T]):
    """What a listing showed, by name.

    :param now: seconds of a clock that never goes back
    :ivar size: so many names were shown
    """

    def __init__(self, shown: Mapping[str, T], now: float) -> None:
        self.size = len(shown)
        self._shown = shown
        self._taken: set[str] = set()
        self._start = self._last = now

    def is_live(self, now: float) -> bool:
        """Whether its reader goes through it."""
        return self.size > MANY and now - self._last <= GAP and now - self._start <= LONGEST

    def take(self, name: str, now: float) -> Optional[T]:
        """What the listing showed under a name, once; None where it did not, or where too much time has gone by."""
        if name in self._taken or not self.is_live(now):
            return None
        found = self._shown.get(name)
        if found is not None:
            self._taken.add(name)
            self._last = now
        return found
