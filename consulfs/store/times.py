"""When this mount saw a file or directory change. Consul stores no times.

A ModifyIndex does not tell: locking a key changes it too, and storing the same value does not. So a change is a change
of value or flags, and its time is when this mount saw it, by a watch or by a look; what it never saw change has the
time of the mount. That is what `make`, editors and rsync compare. A time set by a program stands until the next change.

Owner: `Times._lock`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Optional

from cachetools import LRUCache

from consulfs.consulate import Record
from consulfs.store.levels import News

REMEMBERED = 1 << 18
"""Names whose times are kept, and names whose content is known. Of the former the longest unused is forgotten, and
shows the mount's time again; of the latter the one that was seen first, and a change of it is not noticed."""


class Times:
    """Times by key, nanoseconds since 1970; a directory's under its prefix.

    :ivar changes: another number when any has changed
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own: LRUCache[str, tuple[int, int]] = LRUCache(REMEMBERED)  # mtime and ctime, where not the mount's
        self._known: dict[str, int] = {}  # signatures: an int a name, for a walk sees them all
        self.start = time.time_ns()
        self.changes = 0

    def seen(self, key: str, content: object) -> tuple[int, int]:
        """Consul holds this content now: (mtime, ctime).

        :param content: anything hashable that differs when the file differs
        """
        signature = hash(content)
        with self._lock:
            known = self._known.get(key)
            if known != signature:
                self._know(key, signature)
                if known is not None:
                    now = time.time_ns()
                    self._set(key, now, now)
            return self._get(key)

    def heed(self, news: News, records: Mapping[str, Record]) -> None:
        """What others did: it was just now, where a watch tells of it."""
        for name in news.made:
            self.touch(news.prefix + name)
        for name in (news.made | news.changed) & records.keys():
            self.seen(news.prefix + name, (records[name].value, records[name].flags))

    def touch(self, key: str) -> None:
        """It changes or begins now; the next content seen is taken as that change."""
        now = time.time_ns()
        with self._lock:
            self._set(key, now, now)
            self._known.pop(key, None)

    def touch_now(self, key: str) -> None:
        """A program sets the time to now; the content stays what it was."""
        self.set(key, time.time_ns())

    def get(self, key: str) -> tuple[int, int]:
        with self._lock:
            return self._get(key)

    def set(self, key: str, mtime: Optional[int]) -> None:
        """A program sets the time of modification; None leaves it and sets the time of change alone."""
        now = time.time_ns()
        with self._lock:
            self._set(key, self._get(key)[0] if mtime is None else mtime, now)

    def stored(self, key: str, content: object) -> None:
        """This mount has stored this content: it is no news when it is read back."""
        now = time.time_ns()
        with self._lock:
            if key not in self._own and key not in self._known:
                self._set(key, now, now)
            self._know(key, hash(content))

    def rename(self, old: str, new: str) -> None:
        now = time.time_ns()
        with self._lock:
            mtime, _ = self._get(old)
            self._forget(new)
            if old in self._known:
                self._know(new, self._known[old])
            self._forget(old)
            self._set(new, mtime, now)

    def forget(self, key: str) -> None:
        with self._lock:
            self._forget(key)

    # -- helpers, under the lock -----------------------------------------------------------------------------

    def _get(self, key: str) -> tuple[int, int]:
        own = self._own.get(key) if self._own else None
        return own or (self.start, self.start)

    def _set(self, key: str, mtime: int, ctime: int) -> None:
        self._own[key] = mtime, ctime
        self.changes += 1

    def _know(self, key: str, signature: int) -> None:
        if len(self._known) >= REMEMBERED and key not in self._known:
            del self._known[next(iter(self._known))]
        self._known[key] = signature

    def _forget(self, key: str) -> None:
        self.changes += self._own.pop(key, None) is not None
        self._known.pop(key, None)
