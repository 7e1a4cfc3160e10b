"""What was read from Consul not long ago: records by key, and the names of directories.

An entry lives for a second, and this mount's own writes go through at once. Whoever knows better than a clock (a
watch) can drive it: `put`, `forget` and `forget_below` are all it needs. A lock that was taken makes all of it old.

A reply that was under way while this mount changed the same key is older than the change and must not replace it:
a reader takes a `ticket` before it asks, and what it puts under a ticket from before a change is dropped.

Owner of everything here: `Cache._lock`. It is never held across a request.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Optional, Union

from cachetools import LRUCache, TTLCache

from consulfs.consulate import Record

LIFETIME = 1.0
"""Seconds for which an answer is taken as true."""

ENTRY_COST = 300
"""Bytes counted for a record besides its value."""

_REMEMBERED_CHANGES = 1 << 16


class Missing:
    """Stands for a key that Consul does not have."""

    value = b""


MISSING = Missing()

Known = Union[Record, Missing]


@dataclass
class Listing:
    """The names of one level: components of keys, components of prefixes, and whether the level has a marker."""

    files: set[str] = field(default_factory=set)
    directories: set[str] = field(default_factory=set)
    marker: bool = False

    @classmethod
    def of(cls, prefix: str, names: Iterable[str]) -> Listing:
        """From Consul's list of full names, "a/b" a key and "a/c/" a prefix."""
        listing = cls()
        for name in names:
            rest = name[len(prefix) :]
            if rest == "":
                listing.marker = True
            elif rest.endswith("/"):
                listing.directories.add(rest[:-1])
            else:
                listing.files.add(rest)
        return listing


def place(key: str) -> tuple[str, str]:
    """The prefix whose listing shows a key, and its name there; the name is "" for a directory's own marker."""
    at = key.rfind("/") + 1
    return key[:at], key[at:]


def above(prefix: str) -> tuple[str, str]:
    """The prefix that a directory's prefix stands in, and its component there: "a/b/" -> ("a/", "b")."""
    at = prefix.rfind("/", 0, -1) + 1
    return prefix[:at], prefix[at:-1]


def lineage(key: str) -> Iterator[str]:
    """A key and every prefix above it, down to ""."""
    yield key
    prefix = place(key)[0]
    if prefix != key:
        yield prefix
    while prefix:
        prefix = above(prefix)[0]
        yield prefix


class Cache:
    """A bounded memory of records and listings."""

    def __init__(self, size: int, lifetime: float = LIFETIME) -> None:
        self._lock = threading.Lock()
        self._records: TTLCache[str, Known] = TTLCache(
            size, lifetime, getsizeof=lambda known: len(known.value) + ENTRY_COST
        )
        self._listings: TTLCache[str, Listing] = TTLCache(1024, lifetime)
        self.hits = self.misses = 0
        self._clock = 0
        self._changed: LRUCache[str, int] = LRUCache(_REMEMBERED_CHANGES)
        self._changed_before = 0

    def ticket(self) -> int:
        """Take one before asking Consul; hand it in with the answer."""
        return self._clock

    def record(self, key: str) -> Optional[Known]:
        """The record, MISSING where Consul has none, None where nothing is known."""
        with self._lock:
            known = self._records.get(key)
            self._count(known is not None)
            return known

    def put(self, key: str, known: Known, ticket: int) -> bool:
        """What Consul said of a key; False where this mount has changed it meanwhile."""
        with self._lock:
            current = self._is_current(key, ticket)
            if current:
                self._keep(key, known)
            return current

    def listing(self, prefix: str) -> Optional[Listing]:
        """A directory's names, or None where nothing is known. For `in` only: iterate over `names`."""
        with self._lock:
            listing = self._listings.get(prefix)
            self._count(listing is not None)
            return listing

    def put_listing(self, prefix: str, listing: Listing, ticket: int) -> bool:
        """What Consul said of a directory; False where this mount has changed something in it meanwhile."""
        with self._lock:
            current = self._is_current(prefix, ticket)
            if current:
                self._listings[prefix] = listing
            return current

    def snapshot(self, listing: Listing) -> tuple[list[str], list[str], bool]:
        """A listing's files, directories and marker, for iterating over."""
        with self._lock:
            return sorted(listing.files), sorted(listing.directories), listing.marker

    def stored(self, record: Record) -> None:
        """This mount has stored a key."""
        with self._lock:
            self._changes(record.key)
            self._keep(record.key, record)
            self._name(record.key)

    def removed(self, key: str) -> None:
        """This mount has deleted a key. The directory that it stood in stays."""
        with self._lock:
            self._changes(key)
            self._keep(key, MISSING)
            prefix, name = place(key)
            listing = self._listings.get(prefix)
            if listing is not None:
                if name:
                    listing.files.discard(name)
                else:
                    listing.marker = False

    def directory_removed(self, prefix: str) -> None:
        """This mount has removed a directory."""
        with self._lock:
            self._changes(prefix)
            self._listings.pop(prefix, None)
            parent, component = above(prefix)
            listing = self._listings.get(parent)
            if listing is not None:
                listing.directories.discard(component)

    def forget(self, key: str) -> None:
        """What is known of a key may no longer be true."""
        with self._lock:
            self._changes(key)
            self._records.pop(key, None)
            self._listings.pop(place(key)[0], None)

    def forget_below(self, prefix: str) -> None:
        """What is known of anything below a prefix may no longer be true."""
        with self._lock:
            self._changes(prefix)
            for key in [key for key in self._records if key.startswith(prefix)]:
                self._records.pop(key, None)
            for key in [key for key in self._listings if key.startswith(prefix)]:
                self._listings.pop(key, None)
            self._listings.pop(above(prefix)[0], None)

    def forget_all(self) -> None:
        """Nothing that was read before now, or is being read, may be taken as true."""
        with self._lock:
            self._clock += 1
            self._changed_before = self._clock
            self._records.clear()
            self._listings.clear()

    @property
    def size(self) -> float:
        """Bytes of the records, as they are counted."""
        return self._records.currsize

    def _count(self, is_known: bool) -> None:
        self.hits += is_known
        self.misses += not is_known

    def _keep(self, key: str, known: Known) -> None:
        self._records.pop(key, None)
        if len(known.value) + ENTRY_COST <= self._records.maxsize:
            self._records[key] = known

    def _name(self, key: str) -> None:
        """Enter a key into the known listings of the directories above it."""
        prefix, name = place(key)
        listing = self._listings.get(prefix)
        if listing is not None:
            if name:
                listing.files.add(name)
            else:
                listing.marker = True
        while prefix:
            parent, component = above(prefix)
            listing = self._listings.get(parent)
            if listing is not None:
                listing.directories.add(component)
            prefix = parent

    def _changes(self, key: str) -> None:
        """Note that a key changed, which changes the listings above it too."""
        self._clock += 1
        for each in lineage(key):
            if each not in self._changed and len(self._changed) >= _REMEMBERED_CHANGES:
                self._changed_before = max(self._changed_before, self._changed.popitem()[1])
            self._changed[each] = self._clock

    def _is_current(self, key: str, ticket: int) -> bool:
        return ticket >= self._changed_before and self._changed.get(key, 0) <= ticket
