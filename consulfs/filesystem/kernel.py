"""What the kernel holds of files: the attributes that it was told of late, and the pages that it may keep.

The kernel shows a file's size for as long as it was told to (`attr_timeout`), and cuts what it reads to that size. So a
program must not get to read a content whose size the kernel does not know: an open that would is answered ESTALE,
whereupon the kernel looks the name up and opens it once more. A file that is open goes on with the content whose
attributes were told (`Node.shown`) until others are asked for, or the kernel has been made to forget them.

Pages are kept from one open to the next while the record is the same.

Owner: `Kernel._lock`.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Any, Optional, TypeVar

T = TypeVar("T")

Version = Optional[tuple[int, int]]
"""Which content: see `store.node.version_of`; None where it is not stored, or nobody knows."""

SENT_SECONDS = 0.2
"""A program that asks for a file again so soon is one that was just sent back."""

NAME_SECONDS = 1.0
"""For so long at most the kernel keeps the name of a file that it was told of."""

OPEN_SECONDS = 1.0
"""For so long an open(2) may be under way that was told that a name is there, and asks next whether it may have it."""

TOLD, OPENED = 1 << 14, 1 << 16
"""Files of which it is remembered what attributes the kernel was told of late, and which pages it has; one that is
forgotten is looked at anew, and its pages are not kept."""


class Kernel:
    """What the kernel was told.

    :param attr_timeout: seconds for which it takes attributes as true
    """

    def __init__(self, attr_timeout: float) -> None:
        self._attr_timeout = attr_timeout
        self._lock = threading.Lock()
        # Of which path, when, and whether it has not forgotten it since.
        self._told: dict[str, tuple[Version, str, float, bool]] = {}
        self._renamed = 0.0
        self._forgotten = -math.inf  # when it was told of the last one of which that is no longer remembered
        self._pages: dict[str, tuple[str, Version]] = {}
        self._sent_back: dict[tuple[str, int], float] = {}

    def tell(self, key: str, version: Version, path: str = "") -> None:
        """It is being told a file's attributes.

        :param path: where it asked for them by name
        """
        with self._lock:
            before = self._told.pop(key, None)
            path = path or (before[1] if before is not None else "")
            forgotten = _make_room(self._told, TOLD)
            self._forgotten = forgotten[2] if forgotten is not None else self._forgotten
            self._told[key] = version, path, time.monotonic(), True

    def is_behind(self, key: str, version: Version) -> bool:
        """Whether it takes the attributes of another content as true."""
        with self._lock:
            told, _, moment, stands = self._told.get(key, (None, "", self._forgotten, True))
            return stands and told != version and moment + self._attr_timeout > time.monotonic()

    def loses(self, key: str, path: str = "") -> bool:
        """A file is gone; whether it has taken a path as there until now, or was just told so."""
        with self._lock:
            _, had, moment, _ = self._told.pop(key, (None, "", 0.0, False))
            oldest = time.monotonic() - min(self._attr_timeout, NAME_SECONDS) - OPEN_SECONDS
            return had == path and moment > max(oldest, self._renamed)

    def renames(self) -> None:
        """It gives files other names: of none that it was told before is it known whether it still has that."""
        self._renamed = time.monotonic()

    def send_back(self, path: str, caller: int) -> bool:
        """Whether a program may be answered ESTALE: not if that was just done, for it would be told so."""
        now = time.monotonic()
        with self._lock:
            before = self._sent_back.pop((path, caller), 0.0)
            if before + SENT_SECONDS > now:
                return False
            _make_room(self._sent_back, TOLD)
            self._sent_back[path, caller] = now
            return True

    def arrives(self, path: str, caller: int) -> None:
        """A program has what it asked for, whether or not it was sent back."""
        if self._sent_back:
            with self._lock:
                self._sent_back.pop((path, caller), None)

    def opens(self, path: str, key: str, version: Version) -> bool:
        """It opens a file; whether the pages that it has of it are those of this content."""
        with self._lock:
            kept = version is not None and self._pages.get(key) == (path, version)
            _make_room(self._pages, OPENED)
            self._pages[key] = path, version
            return kept

    def forget(self, key: str, before: Optional[float] = None) -> None:
        """It knows better: a program of this mount has changed the file; or it was made to forget.

        :param before: what it was told after this moment it may have kept
        """
        with self._lock:
            told = self._told.get(key)
            if told is not None and (before is None or told[2] <= before):
                self._told[key] = *told[:3], False  # it may have the name all the same
            self._pages.pop(key, None)


def _make_room(table: dict[Any, T], most: int) -> Optional[T]:
    """Forget what was entered first. Not least lately used: that would cost more than it saves, at every open."""
    return table.pop(next(iter(table))) if len(table) >= most else None
