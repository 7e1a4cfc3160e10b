"""Flags through an editor's save. Consul's flags belong to the key; editors replace the file.

Two dances are known, and both would reset the flags to 0:

    sed -i, rsync, git      write a new file, rename it over the old one
    vim                     rename the old file away, write a new one under its name

So a file that was created here and whose flags nobody set takes over those of the file that it replaces, and a file
that is created under a name which was renamed away a moment ago takes over the flags that left.

Owner: `FlagMemory._lock`.
"""

from __future__ import annotations

import threading

from cachetools import LRUCache, TTLCache

MOMENT = 5.0
"""Seconds between an editor's rename and its new file."""


class FlagMemory:
    """Which keys have flags that nobody chose, and which flags just left a name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unchosen: LRUCache[str, bool] = LRUCache(1 << 14)
        self._left: TTLCache[str, int] = TTLCache(1 << 12, MOMENT)

    def created(self, key: str) -> int:
        """A file is created here: the flags that it starts with."""
        with self._lock:
            self._unchosen[key] = True
            return int(self._left.pop(key, 0))

    def chosen(self, key: str) -> None:
        """Somebody set the key's flags."""
        with self._lock:
            self._unchosen.pop(key, None)

    def for_rename(self, old: str, flags: int, replaced: int) -> int:
        """The flags that a file brings along to a name whose file has the flags `replaced`."""
        with self._lock:
            return replaced if flags == 0 and old in self._unchosen else flags

    def renamed(self, old: str, new: str, flags: int) -> None:
        """The rename is done; `flags` left the old name."""
        with self._lock:
            if self._unchosen.pop(old, False):
                self._unchosen[new] = True
            else:
                self._unchosen.pop(new, None)
            if flags:
                self._left[old] = flags
