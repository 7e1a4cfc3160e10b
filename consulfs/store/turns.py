"""Taking turns at a key: two stores of one key, or a store and a rename of it, must not overlap on this mount.

A turn is no lock: it is held across requests to Consul, its waiters can be interrupted, and readers and writers of
the content never ask for it. It belongs to the key, not to an open file, so it covers files that are opened meanwhile.

Owner: `Turns._free`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from consulfs.store.patience import Patience


class Turns:
    """Who works on which keys."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._free = threading.Condition()
        self._taken: list[tuple[frozenset[str], tuple[str, ...]]] = []

    @contextmanager
    def take(self, *keys: str, below: Sequence[str] = ()) -> Iterator[None]:
        """Be the only one that stores, renames or deletes these keys, and all below these prefixes.

        All are taken at once, so that nobody waits for somebody who waits for him.

        :raises Interrupted: the program that waits was interrupted
        :raises OutOfTime: its time was over
        """
        mine = (frozenset(keys), tuple(below))
        with self._free:
            self._patience.wait(self._free, lambda: not any(_overlap(mine, other) for other in self._taken))
            self._taken.append(mine)
        try:
            yield
        finally:
            with self._free:
                self._taken.remove(mine)
                self._free.notify_all()

    def taken(self, keys: Iterable[str]) -> list[str]:
        """Those of some keys, and of prefixes ending in "/", at which somebody works, or below which."""
        with self._free:
            at = {key for keys, _ in self._taken for key in keys}
            below = tuple(prefix for _, prefixes in self._taken for prefix in prefixes)
        if not at and not below:
            return []
        return [
            key
            for key in keys
            if key in at
            or key.startswith(below)
            or (key.endswith("/") and any(each.startswith(key) for each in (*at, *below)))
        ]

    def taken_below(self, prefix: str) -> list[str]:
        """The keys and prefixes below one at which somebody works."""
        with self._free:
            return [each for keys, below in self._taken for each in (*keys, *below) if each.startswith(prefix)]

    def wait_free(self, keys: Sequence[str], seconds: float) -> None:
        """Wait until nobody works at any of them, but not for long."""
        end = time.monotonic() + seconds
        while self.taken(keys) and (left := end - time.monotonic()) > 0:
            with self._free:
                self._free.wait(min(left, 0.01))  # a turn may have ended just before


def _overlap(one: tuple[frozenset[str], tuple[str, ...]], other: tuple[frozenset[str], tuple[str, ...]]) -> bool:
    for (keys, prefixes), (keys2, prefixes2) in ((one, other), (other, one)):
        if prefixes and (
            any(key.startswith(prefixes) for key in keys2) or any(p.startswith(prefixes) for p in prefixes2)
        ):
            return True
        if keys & keys2:
            return True
    return False
