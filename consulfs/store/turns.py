"""Taking turns at a key: two stores of one key, or a store and a rename of it, must not overlap on this mount.

A turn is no lock: it is held across requests to Consul, its waiters can be interrupted, and readers and writers of
the content never ask for it. It belongs to the key, not to an open file, so it covers files that are opened meanwhile.

Owner: `Turns._free`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
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


def _overlap(one: tuple[frozenset[str], tuple[str, ...]], other: tuple[frozenset[str], tuple[str, ...]]) -> bool:
    for (keys, prefixes), (keys2, prefixes2) in ((one, other), (other, one)):
        if prefixes and (
            any(key.startswith(prefixes) for key in keys2) or any(p.startswith(prefixes) for p in prefixes2)
        ):
            return True
        if keys & keys2:
            return True
    return False
