"""Contents that a listing does not hold: Consul is asked for each file, and again when its row in the listing changes.

Owner of `_known`: `_lock`, never held across a request.
"""

from __future__ import annotations

import errno
import threading
from typing import Optional

from cachetools import LRUCache

from consulfs.consulate.api.base import Row
from consulfs.store.cache import ENTRY_COST
from consulfs.tree.virtual.answers import Answers
from consulfs.tree.virtual.parts import Ask
from consulfs.tree.virtual.text import render_rows

SIZE = 16 << 20
"""Bytes that are kept."""


class Details:
    """What was asked for file by file."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._lock = threading.Lock()
        self._known: LRUCache[str, tuple[list[Row], bytes]] = LRUCache(
            SIZE, getsizeof=lambda known: min(len(known[1]) + ENTRY_COST, SIZE)
        )

    def get(self, ask: Ask, path: str, rows: list[Row]) -> bytes:
        """The content of a file.

        :param rows: what the listing has of it
        :raises OSError: ENOENT where it was removed since
        """
        known = self._of(path, rows)
        if known is None:
            with self._answers.turn(path):
                known = self._of(path, rows) or self._ask(ask, path, rows)
        return known

    def _of(self, path: str, rows: list[Row]) -> Optional[bytes]:
        with self._lock:
            known = self._known.get(path)
        return known[1] if known is not None and known[0] == rows else None

    def _ask(self, ask: Ask, path: str, rows: list[Row]) -> bytes:
        found = [self._answers.fresh(ask, row).value for row in rows]
        if None in found:
            raise OSError(errno.ENOENT, "it was removed")
        content = render_rows(found)
        with self._lock:
            self._known[path] = rows, content
        return content
