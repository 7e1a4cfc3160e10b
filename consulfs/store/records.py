"""Reading Consul through the cache: a record, a directory's names, and many records at once for a scan.

Owner of the scans: `Records._lock`, never held across a request.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import Optional

from cachetools import TTLCache

from consulfs.consulate import Record
from consulfs.store.backend import BATCH, Backend
from consulfs.store.cache import MISSING, Cache, Listing, Missing, place
from consulfs.store.times import Times

SCAN_LIFETIME = 30.0
"""Seconds after a directory was read in which its files are expected to be looked at in turn."""

SCAN_BYTES = 4 << 20
"""A batch over this many bytes makes the next ones smaller: the answer has to be held in memory."""


ATTEMPTS = 5
"""So often is asked again where this mount changed what it asked for while the answer was under way."""


class Scan:
    """A directory that was just read: its keys in the order of the names, and how many to fetch at once."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys
        self.batch = BATCH

    def from_(self, key: str) -> list[str]:
        """The key and those that come next, or nothing where the directory did not show it."""
        at = bisect_left(self.keys, key)
        found = at < len(self.keys) and self.keys[at] == key
        return self.keys[at : at + self.batch] if found else []


class Records:
    """What Consul holds, as of at most a second ago."""

    def __init__(self, backend: Backend, cache: Cache, times: Times) -> None:
        self._backend = backend
        self.cache = cache
        self._times = times
        self._lock = threading.Lock()
        self._scans: TTLCache[str, Scan] = TTLCache(64, SCAN_LIFETIME)

    def get(self, key: str) -> Optional[Record]:
        """A key's record, or None.

        :raises Forbidden: it may not be read
        """
        known = self.cache.record(key)
        if known is None:
            known = self._fetch_in_scan(key) or self._fetch(key)
        return None if isinstance(known, Missing) else known

    def fresh(self, key: str, consistent: bool = False) -> Optional[Record]:
        """A key's record as of now.

        :param consistent: as a majority of the servers has it, whoever thinks to be their leader
        """
        known = self._fetch(key, consistent)
        return None if isinstance(known, Missing) else known

    def listing(self, prefix: str) -> Listing:
        """A directory's names.

        :raises Forbidden: they may not be listed
        """
        listing = self.cache.listing(prefix)
        attempts = 0
        while listing is None:
            ticket = self.cache.ticket()
            found = Listing.of(prefix, self._backend.names(prefix))
            content = frozenset(found.files | {name + "/" for name in found.directories})
            attempts += 1
            if self.cache.put_listing(prefix, found, ticket) or attempts >= ATTEMPTS:
                listing = found
                self._times.seen(prefix, content)
        return listing

    def expect_scan(self, prefix: str, files: list[str]) -> None:
        """A program has read this directory: it may well look at each file next (`ls -l`, `tar`, `rsync`).

        :param files: the names of its keys, sorted
        """
        with self._lock:
            self._scans[prefix] = Scan([prefix + name for name in files])

    def _fetch(self, key: str, consistent: bool = False) -> Record | Missing:
        attempts = 0
        while True:
            ticket = self.cache.ticket()
            record = self._backend.read(key, consistent)
            known = MISSING if record is None else record
            attempts += 1
            if self.cache.put(key, known, ticket) or attempts >= ATTEMPTS:
                return known

    def _fetch_in_scan(self, key: str) -> Optional[Record]:
        prefix = place(key)[0]
        with self._lock:
            scan = self._scans.get(prefix)
        if scan is None:
            return None
        keys = [each for each in scan.from_(key) if self.cache.record(each) is None]
        if len(keys) < 2:
            return None
        ticket = self.cache.ticket()
        found = self._backend.read_many(keys)
        outdated = {record.key for record in found.values() if not self.cache.put(record.key, record, ticket)}
        size = sum(len(record.value) for record in found.values())
        scan.batch = max(4, scan.batch // 2) if size > SCAN_BYTES else min(BATCH, scan.batch * 2)
        return None if key in outdated else found.get(key)
