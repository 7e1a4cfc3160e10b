"""Reading Consul through the cache: a record, and a directory's names.

Owner of the scans: `Records._lock`, never held across a request.
"""

from __future__ import annotations

import threading
from typing import Callable, Optional

from cachetools import TTLCache

from consulfs.consulate import Record
from consulfs.store.backend import Backend
from consulfs.store.cache import MISSING, Cache, Known, Missing, above, place
from consulfs.store.levels import Listing
from consulfs.store.scan import Scan
from consulfs.store.times import Times

SCAN_LIFETIME = 30.0
"""Seconds after a directory was read in which its files are expected to be looked at in turn."""

ATTEMPTS = 5
"""So often is asked again where this mount changed what it asked for while the answer was under way."""


class Records:
    """What Consul holds: as a watch vouches for it, else as of at most a second ago.

    :param caller: tells for which program's thread the present operation is
    :param use: told of each directory that a program uses
    :param glance: told when somebody asks for the attributes of the mount's root
    """

    def __init__(
        self,
        backend: Backend,
        cache: Cache,
        times: Times,
        caller: Callable[[], int] = lambda: 0,
        use: Callable[[str], None] = lambda prefix: None,
        glance: Callable[[], None] = lambda: None,
    ) -> None:
        self._backend = backend
        self.cache = cache
        self._times = times
        self._caller = caller
        self.use = use
        self.glance = glance
        self._lock = threading.Lock()
        self._scans: TTLCache[str, Scan] = TTLCache(64, SCAN_LIFETIME)
        # Whose programs have looked at the files of a directory that they had read.
        self._lookers: TTLCache[int, bool] = TTLCache(64, SCAN_LIFETIME)

    def get(self, key: str) -> Optional[Record]:
        """A key's record, or None.

        :raises Forbidden: it may not be read
        """
        prefix = place(key)[0]
        self.use(prefix)
        known = self.cache.record(key)
        if known is None:
            known = self._fetch_in_scan(prefix, key) or self._fetch(key)
        return None if isinstance(known, Missing) else known

    def warm(self, prefix: str, key: str) -> Optional[Record]:
        """The record of a key in this directory, as far as all of it is known without asking."""
        self.use(prefix)
        return self.cache.warm(prefix, key)

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
        self.use(prefix)
        listing = self.cache.listing(prefix)
        attempts = 0
        while listing is None:
            ticket = self.cache.ticket()
            names, index = self._backend.level(prefix)
            found = Listing.of(prefix, names)
            attempts += 1
            if self.cache.put_listing(prefix, found, ticket, index) or attempts >= ATTEMPTS:
                listing = found
                self.times_of(prefix, found)
        return listing

    def times_of(self, prefix: str, listing: Listing) -> None:
        """A directory holds these names now: its time changes with them."""
        files, directories, _ = self.cache.snapshot(listing)
        self._times.seen(prefix, (tuple(files), tuple(directories)))

    def is_surely_directory(self, prefix: str) -> bool:
        """Whether a watch says that there are keys below, where the listing that is known does not show it."""
        parent, component = above(prefix)
        known = self.cache.peek(parent)
        return (known is None or component not in known.directories) and self.cache.leads_on(prefix)

    def expect_scan(self, prefix: str, listing: Listing, files: list[str], looks: bool) -> None:
        """A program has read this directory: it may well look at each file next (`ls -l`, `tar`, `rsync`).

        :param files: the names of its keys, sorted
        :param looks: read them now, if the program did so in the directory before this one
        """
        if not self.cache.lifetime:  # nothing that is read ahead would be shown
            return
        scan = Scan(prefix, files, not listing.directories, self._backend, self.cache)
        with self._lock:
            self._scans[prefix] = scan
            looks = looks and self._caller() in self._lookers
        if looks:
            scan.read_all()

    def _fetch(self, key: str, consistent: bool = False) -> Known:
        attempts = 0
        while True:
            ticket = self.cache.ticket()
            record = self._backend.read(key, consistent)
            known: Known = MISSING if record is None else record
            attempts += 1
            kept = self.cache.put(key, known, ticket)
            if kept is not None or attempts >= ATTEMPTS:
                return kept if kept is not None and not consistent else known

    def _fetch_in_scan(self, prefix: str, key: str) -> Optional[Known]:
        with self._lock:
            scan = self._scans.get(prefix)
            if scan is not None and (caller := self._caller()):
                self._lookers[caller] = True
        return scan.fetch(key) if scan is not None else None
