"""When this mount saw a file or directory change. Consul stores no times.

A ModifyIndex does not tell: locking a key changes it too, and storing the same value does not. So a change is a change
of value or flags, and its time is when this mount saw it; what it never saw change has the time of the mount. That is
what `make`, editors and rsync compare. A time set by a program stands until the next change.

Owner: `Times._lock`.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Optional

from cachetools import LRUCache

REMEMBERED = 1 << 18
"""Names whose times are kept; the longest unused is forgotten, and shows the mount's time again."""


@dataclass
class Stamp:
    """Nanoseconds since 1970, and a signature of the content that they belong to (None: whatever comes next)."""

    mtime: int
    ctime: int
    signature: Optional[int] = None
    index: Optional[int] = None


class Times:
    """Times by key; a directory's under its prefix."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stamps: LRUCache[str, Stamp] = LRUCache(REMEMBERED)
        self.start = time.time_ns()

    def seen(self, key: str, content: object, index: Optional[int] = None) -> tuple[int, int]:
        """Consul holds this content now: (mtime, ctime).

        :param content: anything hashable that differs when the file differs
        :param index: the ModifyIndex; while it stands the content need not be looked at
        """
        with self._lock:
            stamp = self._stamps.get(key)
            if stamp is None:
                stamp = self._stamps[key] = Stamp(self.start, self.start)
            if index is None or stamp.index != index or stamp.signature is None:
                signature = hash(content)
                if stamp.signature is not None and stamp.signature != signature:
                    stamp.mtime = stamp.ctime = time.time_ns()
                stamp.signature, stamp.index = signature, index
            return stamp.mtime, stamp.ctime

    def touch(self, key: str) -> None:
        """It changes or begins now; the next content seen is taken as that change."""
        now = time.time_ns()
        with self._lock:
            self._stamps[key] = Stamp(now, now)

    def touch_now(self, key: str) -> None:
        """A program sets the time to now; the content stays what it was."""
        self.set(key, time.time_ns())

    def get(self, key: str) -> tuple[int, int]:
        with self._lock:
            stamp = self._stamps.get(key)
            return (stamp.mtime, stamp.ctime) if stamp else (self.start, self.start)

    def set(self, key: str, mtime: Optional[int]) -> None:
        """A program sets the time of modification; None leaves it and sets the time of change alone."""
        now = time.time_ns()
        with self._lock:
            stamp = self._stamps.get(key) or Stamp(self.start, now)
            stamp.ctime = now
            if mtime is not None:
                stamp.mtime = mtime
            self._stamps[key] = stamp

    def stored(self, key: str, content: object, index: Optional[int]) -> None:
        """This mount has stored this content: it is no news when it is read back."""
        now = time.time_ns()
        with self._lock:
            stamp = self._stamps.get(key) or Stamp(now, now)
            stamp.signature, stamp.index = hash(content), index
            self._stamps[key] = stamp

    def rename(self, old: str, new: str) -> None:
        with self._lock:
            stamp = self._stamps.pop(old, None)
            if stamp is None:
                stamp = Stamp(self.start, self.start)
            stamp.ctime = time.time_ns()
            self._stamps[new] = stamp

    def forget(self, key: str) -> None:
        with self._lock:
            self._stamps.pop(key, None)
