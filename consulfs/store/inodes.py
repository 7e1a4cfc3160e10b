"""Inode numbers: the same for a name on every mount and after every remount, and carried along by a rename.

Owner: `Inodes._lock`.
"""

from __future__ import annotations

import hashlib
import itertools
import threading

from cachetools import LRUCache


class Inodes:
    """Numbers by key; a directory's under its prefix.

    :param space: told apart from other spaces, where names are the same in several
    :ivar changes: counts the renames
    """

    def __init__(self, space: str = "") -> None:
        self._space = space and f"{space}\0\0"
        self._lock = threading.Lock()
        # A renamed file keeps its number, and its old name then needs another: with one for both, `cp a b` would
        # take two files for one.
        self._moved: LRUCache[str, int] = LRUCache(1 << 16)
        self._fresh = itertools.count(1)
        self.changes = 0

    def number(self, key: str) -> int:
        with self._lock:
            return self._moved.get(key) or self._hash(key)

    def rename(self, old: str, new: str) -> None:
        with self._lock:
            number = self._moved.get(old) or self._hash(old)
            self._moved[new] = number
            self._moved[old] = self._hash(f"{old}\0{next(self._fresh)}")
            self.changes += 1

    def _hash(self, text: str) -> int:
        digest = hashlib.blake2b((self._space + text).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1 | 1 << 62
