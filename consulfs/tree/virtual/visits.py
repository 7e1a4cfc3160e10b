"""Who goes through which directory: a listing of many is good for its reader's first look at each name.

Owner of `_visits`: `_lock`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

from cachetools import LRUCache

from consulfs.tree.virtual.answers import MAX_ROWS
from consulfs.tree.virtual.scans import Scan

EVERYBODY = 0
"""As a caller: one of those that are in another PID namespace, and cannot be told apart."""


class _Visit(NamedTuple):
    scan: Scan[Any]
    groups: tuple[str, ...]


class Visits:
    """The scans under way, by caller and path."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._visits: LRUCache[tuple[int, str], _Visit] = LRUCache(
            MAX_ROWS, getsizeof=lambda visit: min(visit.scan.size, MAX_ROWS)
        )

    def begin(self, caller: int, path: str, groups: tuple[str, ...], shown: Mapping[str, Any]) -> None:
        """A program has listed a directory, and may go through it.

        :param groups: the raw names that lead there
        """
        now = time.monotonic()
        scan = Scan(shown, now)
        if caller == EVERYBODY or not scan.is_live(now):
            return
        with self._lock:
            for ended in [key for key, visit in self._visits.items() if not visit.scan.is_live(now)]:
                del self._visits[ended]
            self._visits[caller, path] = _Visit(scan, groups)

    def take(self, caller: int, path: str, name: str) -> Any:
        """What a program's own listing of a directory showed under a name, if it still counts."""
        with self._lock:
            visit = self._visits.get((caller, path))
            return visit.scan.take(name, time.monotonic()) if visit is not None else None

    def inside(self, caller: int, path: str) -> Optional[str]:
        """The raw name of a group that a program goes through: while it looks at the files there, it is there."""
        with self._lock:
            visit = self._visits.get((caller, path))
            return visit.groups[-1] if visit is not None and visit.scan.is_live(time.monotonic()) else None
