"""Reading a directory's files ahead of a program that looks at one after the other.

The first file that is looked at brings those that come next, in one transaction. A program that gets to the end of
them reads the directory: from then on a thread reads ahead of it, all that is left in one request where that is not
too much (`?recurse`, where the directory holds nothing but files), else a transaction a batch.

Owner of what a scan has under way: `Scan._changed`, never held across a request.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from bisect import bisect_left
from functools import partial
from typing import Optional

from consulfs import threads
from consulfs.consulate import ConsulateException
from consulfs.errors import OutOfTime
from consulfs.store.backend import BATCH, Backend
from consulfs.store.cache import Cache, Known

log = logging.getLogger(__name__)

SCAN_BYTES = 4 << 20
"""Batches after the first are to have so many bytes at most: the answer has to be held in memory."""

WHOLE_BYTES = 16 << 20
"""A directory whose files seem to be so large together is not read in one request; and an eighth of the cache."""

AT_ONCE = 512
"""A directory of so many files is read whole for a program that looked at the files of the one before."""

AHEAD_FILES, AHEAD_BYTES = 1024, 8 << 20
"""So far is read ahead of the program, batch by batch."""


class Scan:
    """A directory that was just read.

    :param files: the names of its keys, sorted
    :param is_flat: it holds nothing but these
    """

    def __init__(self, prefix: str, files: list[str], is_flat: bool, backend: Backend, cache: Cache) -> None:
        self._prefix = prefix
        self._keys = [prefix + name for name in files]
        self._is_flat = is_flat
        self._backend = backend
        self._cache = cache
        self._asked: set[int] = set()
        self._batch = BATCH
        self._mean: Optional[float] = None
        self._changed = threading.Condition()
        self._coming: tuple[int, int] = (0, 0)

    def fetch(self, key: str) -> Optional[Known]:
        """A file that is looked at and not known, with those that come next.

        :return: None where it is to be asked for by itself
        """
        at = bisect_left(self._keys, key)
        if at == len(self._keys) or self._keys[at] != key:
            return None  # the directory did not show it
        if at in self._asked:
            return None  # a program that comes back to it: it goes through nothing
        self._asked.add(at)
        is_first = self._mean is None
        known = None if is_first else self._arrival(key, at)
        if known is not None:
            return known
        wanted = self._missing(at, at + self._batch)
        if len(wanted) < 2:  # the last one, or a program that goes backwards
            wanted = self._missing(max(0, at + 1 - self._batch), at + 1)
            return self._read(wanted).get(key) if len(wanted) > 1 else None
        if is_first or not self._run_ahead(at):
            return self._read(wanted).get(key)
        return self._arrival(key, at)

    def _arrival(self, key: str, at: int) -> Optional[Known]:
        """What is known of a file once it is not under way any more."""
        with self._changed:
            self._backend.patience.wait(self._changed, lambda: not self._coming[0] <= at < self._coming[1])
        return self._cache.record(key)

    def _missing(self, begin: int, end: int) -> list[str]:
        return [key for key in self._keys[begin:end] if self._cache.record(key) is None]

    def _read(self, keys: list[str]) -> dict[str, Known]:
        """Read a batch; what of it counts now, by key."""
        ticket = self._cache.ticket()
        found = self._backend.read_many(keys)
        size = sum(len(record.value) for record in found.values())
        self._mean = size / max(1, len(found))
        # By the mean, for a batch may have been small because little of it was missing.
        self._batch = max(4, min(BATCH, int(SCAN_BYTES / max(1.0, self._mean))))
        kept = {key: self._cache.put(key, record, ticket) for key, record in found.items()}
        return {key: known for key, known in kept.items() if known is not None}

    def read_all(self) -> None:
        """Before any of them is looked at: all of them, where they are few; they may turn out to be large."""
        missing = self._missing(0, AT_ONCE + 1)
        if len(self._keys) > AT_ONCE or len(missing) < 2:
            return
        with contextlib.suppress(ConsulateException, OutOfTime):  # whoever looks at one asks, and is told
            if self._is_flat and len(missing) > BATCH:
                self._stream(SCAN_BYTES)
            else:
                for start in range(0, len(missing), BATCH):
                    self._read(missing[start : start + BATCH])

    # -- ahead -----------------------------------------------------------------------------------------------

    def _run_ahead(self, at: int) -> bool:
        """Have a thread read from here on; whether there is one."""
        whole = self._is_flat and len(self._keys) * (self._mean or 0) <= min(WHOLE_BYTES, self._cache.limit / 8)
        end = len(self._keys) if whole else min(len(self._keys), at + AHEAD_FILES)
        if end - at <= self._batch:
            return False
        with self._changed:
            if self._coming != (0, 0):
                return False
            self._coming = (at, end)
        if threads.begin("read-ahead", partial(self._ahead, at, end, whole)) is None:
            self._arrived((0, 0))
            return False
        return True

    def _ahead(self, at: int, end: int, whole: bool) -> None:
        try:
            self._backend.patience.begin()
            if whole:
                self._stream(2 * WHOLE_BYTES)
            else:
                self._walk(at, end)
        except (ConsulateException, OutOfTime) as error:  # the program asks for itself, and is told
            log.debug("reading ahead: %s", error)
        finally:
            self._arrived((0, 0))

    def _stream(self, most: int) -> None:
        ticket, size = self._cache.ticket(), 0
        for number, record in enumerate(self._backend.stream(self._prefix)):
            self._cache.put(record.key, record, ticket)
            size += len(record.value)
            if size > most:
                self._is_flat = False  # those that come are larger than those that were seen
                return
            if number % BATCH == BATCH - 1:
                self._arrived((bisect_left(self._keys, record.key) + 1, self._coming[1]))

    def _walk(self, at: int, end: int) -> None:
        size = 0
        while at < end and size < AHEAD_BYTES:
            keys = self._keys[at : at + self._batch]
            self._read([key for key in keys if self._cache.record(key) is None] or keys[:1])
            size += int((self._mean or 0) * len(keys))
            at += len(keys)
            self._arrived((at, end))

    def _arrived(self, coming: tuple[int, int]) -> None:
        with self._changed:
            self._coming = coming
            self._changed.notify_all()
