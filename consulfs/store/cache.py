"""What was read from Consul not long ago: records by key, and the names of directories.

An entry is true for a second; in a directory under watch (`levels.py`) until the watch tells of a change. This mount's
own writes go through at once. A lock that was taken makes all of it old.

A reply that was under way while this mount changed the same key is older than the change and must not replace it:
a reader takes a `ticket` before it asks, and what it puts under a ticket from before a change is dropped, unless its
index says that it is newer.

Owner of everything here, the levels included: `Cache._lock`. It is never held across a request.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple, Optional, Union

from cachetools import LRUCache

from consulfs.consulate import Record
from consulfs.store.levels import Answer, Level, Listing, News

LIFETIME = 1.0
"""Seconds for which an answer is taken as true where no watch says more."""

ENTRY_COST = 300
"""Bytes counted for a record besides its value."""

MOST_LISTED = 1 << 18
"""Names of directories that are kept, all listings together."""

_REMEMBERED_CHANGES = 1 << 16


class Missing:
    """Stands for a key that Consul does not have."""

    value = b""
    modify_index = None


MISSING = Missing()

Known = Union[Record, Missing]


class Ticket(NamedTuple):
    """When a question was asked: in changes of this mount, and in seconds of the monotonic clock."""

    clock: int
    moment: float


class _Entry(NamedTuple):
    known: Known
    asked: float
    lags: bool = False  # it was read from a server that may be behind: the next change is none of it


class _Listed(NamedTuple):
    listing: Listing
    asked: float
    answered: float
    as_of: int = 0


def place(key: str) -> tuple[str, str]:
    """The prefix whose listing shows a key, and its name there; the name is "" for a directory's own marker."""
    at = key.rfind("/") + 1
    return key[:at], key[at:]


def above(prefix: str) -> tuple[str, str]:
    """The prefix that a directory's prefix stands in, and its component there: "a/b/" -> ("a/", "b")."""
    at = prefix.rfind("/", 0, -1) + 1
    return prefix[:at], prefix[at:-1]


def levels_of(key: str) -> Iterator[tuple[str, str]]:
    """Where a key shows: the prefix of each level above it with the name there, from its own up."""
    prefix, name = place(key)
    yield prefix, name
    while prefix:
        prefix, component = above(prefix)
        yield prefix, f"{component}/"


def lineage(key: str) -> Iterator[str]:
    """A key and every prefix above it, down to ""."""
    yield key
    yield from (prefix for prefix, _ in levels_of(key) if prefix != key)


class Cache:
    """A bounded memory of records and listings.

    :param size: bytes of records
    :param lifetime: seconds for which an answer is true; 0: only what a watch vouches for, or nothing
    :param lags: whether what is read may come from a server that lags behind: then no watch vouches for it
    :ivar version: another one when a name has come or gone: what was concluded from listings is to be concluded anew
    """

    def __init__(self, size: int, lifetime: float = LIFETIME, lags: bool = False) -> None:
        self._lock = threading.Lock()
        self.limit = size
        self.lifetime = lifetime
        self._lags = lags
        self._records: OrderedDict[str, _Entry] = OrderedDict()
        self.size = 0
        self._listings: LRUCache[str, _Listed] = LRUCache(MOST_LISTED, getsizeof=_names_in)
        self._levels: dict[str, Level] = {}
        self.hits = self.misses = 0
        self.version = 0
        self._clock = 0
        self._changed: LRUCache[str, int] = LRUCache(_REMEMBERED_CHANGES)
        self._changed_before = 0
        self._barrier = 0.0

    def ticket(self) -> Ticket:
        """Take one before asking Consul; hand it in with the answer."""
        return Ticket(self._clock, time.monotonic())

    # -- records ---------------------------------------------------------------------------------------------

    def record(self, key: str) -> Optional[Known]:
        """The record, MISSING where Consul has none, None where nothing is known."""
        with self._lock:
            entry = self._records.get(key)
            if entry is not None and self._is_true(key[: key.rfind("/") + 1], entry.asked, entry, key):
                self._records.move_to_end(key)
                self.hits += 1
                return entry.known
            self.misses += 1
            return None

    def last(self, key: str) -> Optional[Known]:
        """What was known of it last, true or not: for a request that does nothing unless it is."""
        with self._lock:
            entry = self._records.get(key)
            return entry.known if entry is not None else None

    def warm(self, prefix: str, key: str) -> Optional[Record]:
        """The record of a key in this directory, if it is there and both its names and the record are known."""
        with self._lock:
            entry = self._records.get(key)
            if (
                entry is None
                or not isinstance(entry.known, Record)
                or not self._is_true(prefix, entry.asked, entry, key)
                or self._listing(prefix) is None
            ):
                return None
            self._records.move_to_end(key)
            self.hits += 1
            return entry.known

    def put(self, key: str, known: Known, ticket: Ticket) -> Optional[Known]:
        """What Consul said of a key.

        :return: what is known of it now; None where this mount has changed it meanwhile: ask anew
        """
        with self._lock:
            prefix, name = place(key)
            entry = self._records.get(key)
            newer = _is_newer(known, entry.known if entry is not None else None)
            if not newer and not self._is_current(key, ticket):
                return None
            asked = ticket.moment
            if entry is not None and not newer and (_is_newer(entry.known, known) or entry.asked > asked):
                # A server that lags behind the one that was asked before, or a slower answer than that one's.
                if self._is_true(prefix, entry.asked, entry, key):
                    return entry.known
                if entry.asked > asked:
                    return known
            self._keep(key, known, asked, self._lags)
            level = self._levels.get(prefix)
            if level is not None and isinstance(known, Record):
                level.learn(name, known)
            self._amend(key, isinstance(known, Record), asked)
            return known

    # -- listings --------------------------------------------------------------------------------------------

    def listing(self, prefix: str) -> Optional[Listing]:
        """A directory's names, or None where nothing is known. For `in` only: iterate over `names`."""
        with self._lock:
            found = self._listing(prefix)
            self.hits += found is not None
            self.misses += found is None
            return found

    def peek(self, prefix: str) -> Optional[Listing]:
        """The same, uncounted."""
        with self._lock:
            return self._listing(prefix)

    def put_listing(self, prefix: str, listing: Listing, ticket: Ticket, index: int = 0) -> bool:
        """What Consul said of a directory; False where this mount has changed something in it meanwhile.

        :param index: as of which that is; 0 where it is not told
        """
        with self._lock:
            current = self._is_current(prefix, ticket)
            if current:
                self._list(prefix, listing, ticket.moment, index)
            return current

    def snapshot(self, listing: Listing) -> tuple[list[str], list[str], bool]:
        """A listing's files, directories and marker, for iterating over."""
        with self._lock:
            return sorted(listing.files), sorted(listing.directories), listing.marker

    def leads_on(self, prefix: str) -> bool:
        """Whether a watch says that there are keys below a prefix, and nothing newer is known of the one above it.

        Each directory is told by itself: of a key that comes with its directory, the key may be told first.
        """
        with self._lock:
            above_it = self._told_of(above(prefix)[0])
            return any(
                watched.startswith(prefix) and level.told > above_it and self._listing(watched)
                for watched, level in self._levels.items()
            )

    # -- this mount's own changes ----------------------------------------------------------------------------

    def stored(self, record: Record) -> None:
        """This mount has stored a key."""
        key = record.key
        with self._lock:
            self._changes(key)
            prefix = place(key)[0]
            level, entry = self._levels.get(prefix), self._records.get(key)
            if entry is None or not _is_newer(entry.known, record):
                # A change that was told while the store was under way may have come after it: then it is not certain.
                told = level is not None and level.index > (record.modify_index or 0)
                asked = 0.0 if told else time.monotonic()
                if entry is not None and record.modify_index == entry.known.modify_index:
                    asked = max(asked, entry.asked)  # the same value: nothing has changed, and its index neither
                self._keep(key, record, asked)
            self._name(record)

    def removed(self, key: str) -> None:
        """This mount has deleted a key. The directory that it stood in stays."""
        with self._lock:
            self._changes(key)
            self._keep(key, MISSING, time.monotonic())
            self._unname(*place(key))

    def directory_removed(self, prefix: str) -> None:
        """This mount has removed a directory."""
        with self._lock:
            self._changes(prefix)
            self.version += 1
            self._listings.pop(prefix, None)
            parent, component = above(prefix)
            self._unname(parent, f"{component}/")

    def directory_moved(self, old: str, new: str) -> None:
        """This mount has renamed a directory, or some of it, and `forget_below` was called for both."""
        with self._lock:
            self.version += 1
            for prefix in (old, new):
                parent, component = above(prefix)
                level = self._levels.get(parent)
                if level is not None:
                    level.changed_here(f"{component}/", prefix is new)

    # -- what is not certain any more ------------------------------------------------------------------------

    def forget(self, key: str) -> None:
        """What is known of a key may no longer be true."""
        with self._lock:
            self._changes(key)
            self._drop(key)
            self._doubt(place(key)[0])

    def forget_below(self, prefix: str) -> None:
        """What is known of anything below a prefix may no longer be true."""
        with self._lock:
            self._changes(prefix)
            for key in [key for key in self._records if key.startswith(prefix)]:
                self._drop(key)
            for each in {*self._listings, *self._levels}:
                if each.startswith(prefix):
                    self._doubt(each)
                    if each in self._levels:
                        self._levels[each].listing = None
            self._doubt(above(prefix)[0])

    def forget_all(self) -> None:
        """Nothing that was read before now, or is being read, may be taken as true."""
        with self._lock:
            self._clock += 1
            self._changed_before = self._clock
            self._barrier = time.monotonic()

    # -- watches ---------------------------------------------------------------------------------------------

    def watch(self, prefix: str) -> Level:
        """A directory comes under watch; until a query is sent it is as any other."""
        with self._lock:
            level = self._levels[prefix] = Level(prefix)
            known = self._listings.get(prefix)
            if known is not None and known.as_of and self._is_true(prefix, known.asked):
                level.begin(known.listing, known.as_of, known.asked)
            for name in known.listing.files if known is not None else ():
                entry = self._records.get(prefix + name)
                if entry is not None and isinstance(entry.known, Record):
                    level.learn(name, entry.known)
            return level

    def unwatch(self, level: Level) -> None:
        """Nobody watches it any more. What was vouched for until now is as good as just read."""
        with self._lock:
            if self._levels.get(level.prefix) is not level:
                return
            del self._levels[level.prefix]
            if level.is_certain and level.listing is not None:
                self._list(level.prefix, level.listing, time.monotonic() if level.live else level.listed)

    def arm(self, level: Level, waits: bool = True) -> int:
        """A query is being sent; gives the index that it is to wait for something newer than.

        :param waits: it does; else it tells what has become of the directory since nobody watched it
        """
        with self._lock:
            level.arm(time.monotonic(), waits)
            return level.index

    def disarm(self, level: Level) -> None:
        """It failed: nothing tells of changes any more."""
        with self._lock:
            level.live = False

    def differing(self, level: Level, answer: Answer) -> set[str]:
        """The names in which an answer is not what is known: changes of others, or of this mount."""
        with self._lock:
            return level.differing(answer)

    def take(self, level: Level, answer: Answer, busy: Collection[str] = ()) -> Optional[News]:
        """A query's answer; see `Level.take`."""
        now = time.monotonic()
        with self._lock:
            is_first, was_live = level.listing is None, level.live
            news = level.take(answer, now, busy)
            if news is not None:
                read = self._listings.pop(level.prefix, None)
                if read is not None and read.asked >= level.armed and read.listing != level.listing:
                    level.listed = 0.0  # either may be the newer one: programs ask until the next answer comes
                asked = self._as_of(level.armed, now)
                level.listed = min(level.listed, asked)
                self._learn(level, news, answer.without(busy).records, asked)
                level.answered = asked if was_live else 0.0
                level.same, level.vouched = answer.same.difference(busy), asked
            self.version += news is None or is_first or bool(news.made or news.gone)
            return news

    def settle(self, level: Level, answer: Answer, names: Collection[str]) -> Optional[News]:
        """The names that this mount was changing, once it is done with them; see `Level.settle`."""
        now = time.monotonic()
        with self._lock:
            news = level.settle(answer, names)
            if news is not None:
                self._learn(level, news, answer.of(names).records, self._as_of(level.armed, now))
            self.version += 1
            return news

    def compare(self, level: Level, records: Mapping[str, Record], ticket: Ticket) -> tuple[News, Mapping[str, Record]]:
        """Files of a directory, by name, that were read after an answer: what others did to them.

        :return: and those that this mount has not changed meanwhile, or not as lately
        """
        now = time.monotonic()
        with self._lock:
            records = {name: record for name, record in records.items() if self._counts(record, ticket)}
            news = level.compare(records)
            self._learn(level, news, records, self._as_of(ticket.moment, now))
            return news, records

    def spread(self, level: Level, news: News, busy: Collection[str] = ()) -> list[News]:
        """What a directory's news says of others under watch, to be told before it, in this order.

        Each directory is told by itself, sooner or later. But one that is gone has nothing in it; and one that has
        something in it is there, as are those above it.

        :param busy: the keys and prefixes below at which this mount works: told when it is done with them
        """
        with self._lock:
            gone = tuple(level.prefix + name for name in news.gone if name.endswith("/"))
            below = [each for each in self._levels.values() if gone and each.prefix.startswith(gone)]
            told = []
            for each in sorted(below, key=lambda one: len(one.prefix), reverse=True):
                at_work = Listing.below(each.prefix, [key for key in busy if key.startswith(each.prefix)])
                emptied = each.goes_with(level.index, at_work.names())
                if emptied:
                    self._learn(each, emptied, {}, 0.0)
                    told.append(emptied)
            told += self._leading_to(level) if level.listing else []
            self.version += bool(told)
            return told

    def _leading_to(self, level: Level) -> list[News]:
        """Of the directories above one that is there, down to it."""
        found, prefix = [], level.prefix
        while prefix:
            prefix, component = above(prefix)
            if prefix in self._levels:
                found.append(self._levels[prefix].comes_with(f"{component}/", level.index))
        return [each for each in reversed(found) if each]

    def known_files(self, level: Level) -> dict[str, Record]:
        """The records of a directory's files, by key, as far as its watchers know them too."""
        with self._lock:
            found = {}
            for name, known in level.known.items():
                entry = self._records.get(level.prefix + name)
                if entry is not None and isinstance(entry.known, Record) and entry.known.modify_index == known.as_of:
                    found[entry.known.key] = entry.known
            return found

    def suspects(self, level: Level, most: int) -> list[str]:
        """The keys of files that the last answer has made uncertain."""
        with self._lock:
            return [level.prefix + name for name in level.suspects(most)]

    def is_of_before(self, level: Level, records: Mapping[str, Record], index: int) -> bool:
        """Whether records say that Consul's indexes went back; see `Level.is_of_before`."""
        with self._lock:
            return level.is_of_before(records, index)

    def begin_anew(self, level: Level) -> None:
        """Consul's index went back: those that were told before say nothing any more."""
        with self._lock:
            level.forget()
            for key in [key for key in self._records if place(key)[0] == level.prefix]:
                self._drop(key)

    # -- helpers, under the lock -----------------------------------------------------------------------------

    def _is_true(self, prefix: str, asked: float, entry: Optional[_Entry] = None, key: str = "") -> bool:
        """Whether what was asked for then may be shown: names, or what is known of a key."""
        level = self._levels.get(prefix)
        if level is not None:
            if asked < level.since:
                index = entry.known.modify_index if entry is not None else None
                if level.vouches(key[len(prefix) :], index):
                    asked = level.vouched
                elif index is None or index < level.index:
                    return False
            lags = entry.lags if entry is not None else self._lags
            if asked >= self._barrier and not lags:
                if level.live:
                    return True
                asked = max(asked, level.answered)
        return asked >= self._barrier and asked + self.lifetime > time.monotonic()

    def _listing(self, prefix: str) -> Optional[Listing]:
        level = self._levels.get(prefix)
        if (
            level is not None
            and level.is_certain
            and level.listed >= self._barrier
            and (level.live or level.listed + self.lifetime > time.monotonic())
        ):
            return level.listing
        found = self._listings.get(prefix)
        if found is not None and self._is_true(prefix, found.asked):
            return found.listing
        return None

    def _told_of(self, prefix: str) -> int:
        """Consul's index of what is known of a directory's names; 0 where that is nothing."""
        level, known = self._levels.get(prefix), self._listing(prefix)
        if known is None:
            return 0
        if level is not None and known is level.listing:
            return level.told
        found = self._listings.get(prefix)
        return found.as_of if found is not None else 0

    def _list(self, prefix: str, listing: Listing, asked: float, index: int = 0) -> None:
        level = self._levels.get(prefix)
        if level is not None and asked >= level.since and level.listing == listing:
            level.listed = max(level.listed, asked)  # what was in doubt is not any more
        before = self._listings.get(prefix)
        if before is not None and before.asked > asked:
            return  # a slower answer than that
        self._listings.pop(prefix, None)
        self.version += before is None or before.listing != listing
        found = _Listed(listing, asked, time.monotonic(), index)
        if _names_in(found) <= MOST_LISTED:
            self._listings[prefix] = found

    def _amend(self, key: str, is_there: bool, asked: float) -> None:
        """Somebody has asked for a key: the names that were read before that are older.

        Else a program that has read a file by its descriptor, or was told that it is gone, would be told the contrary
        by its path, or by the listing, for the rest of the second.
        """
        for prefix, name in levels_of(key) if is_there else [place(key)]:
            listed = self._listings.get(prefix)
            if listed is not None and listed.answered < asked and (name in listed.listing) is not is_there:
                listed.listing.enter(name, is_there)
                self.version += 1

    def _doubt(self, prefix: str) -> None:
        self.version += 1
        self._listings.pop(prefix, None)
        level = self._levels.get(prefix)
        if level is not None:
            level.doubt = time.monotonic()

    def _keep(self, key: str, known: Known, asked: float, lags: bool = False) -> None:
        self._drop(key)
        self._records[key] = _Entry(known, asked, lags)
        self.size += len(known.value) + ENTRY_COST
        while self.size > self.limit:
            _, oldest = self._records.popitem(last=False)
            self.size -= len(oldest.known.value) + ENTRY_COST

    def _drop(self, key: str) -> None:
        entry = self._records.pop(key, None)
        if entry is not None:
            self.size -= len(entry.known.value) + ENTRY_COST

    def _as_of(self, asked: float, now: float) -> float:
        """When an answer counts as asked for: one from before a lock that was taken since is old at once."""
        return now if asked >= self._barrier else 0.0

    def _learn(self, level: Level, news: News, records: Mapping[str, Record], now: float) -> None:
        """What a watch has told, unless this mount has stored something newer."""
        for name in news.gone:
            self._drop(level.prefix + name)
        for name, record in records.items():
            key = level.prefix + name
            entry = self._records.get(key)
            if entry is None or not _is_newer(entry.known, record):
                self._keep(key, record, now)

    def _name(self, record: Record) -> None:
        """Enter a key into the known listings of the directories above it."""
        for prefix, name in levels_of(record.key):
            listed = self._listings.get(prefix)
            if listed is not None:
                self.version += name not in listed.listing
                listed.listing.enter(name)
            level = self._levels.get(prefix)
            if level is not None and level.is_outrun(name, record):
                self._doubt(prefix)
            elif level is not None:
                self.version += level.listing is None or name not in level.listing
                level.wrote(name, record)

    def _unname(self, prefix: str, name: str) -> None:
        self.version += 1
        listed = self._listings.get(prefix)
        if listed is not None:
            listed.listing.enter(name, False)
        level = self._levels.get(prefix)
        if level is not None:
            level.removed(name)

    def _changes(self, key: str) -> None:
        """Note that a key changed, which changes the listings above it too."""
        self._clock += 1
        for each in lineage(key):
            if each not in self._changed and len(self._changed) >= _REMEMBERED_CHANGES:
                self._changed_before = max(self._changed_before, self._changed.popitem()[1])
            self._changed[each] = self._clock

    def _counts(self, record: Record, ticket: Ticket) -> bool:
        """Whether an answer is not from before a change of this mount."""
        entry = self._records.get(record.key)
        return self._changed.get(record.key, 0) <= ticket.clock or (
            entry is not None and _is_newer(record, entry.known)
        )

    def _is_current(self, key: str, ticket: Ticket) -> bool:
        return ticket.clock >= self._changed_before and self._changed.get(key, 0) <= ticket.clock


def _names_in(listed: _Listed) -> int:
    return len(listed.listing.files) + len(listed.listing.directories) + 1


def _is_newer(known: Optional[Known], other: Optional[Known]) -> bool:
    """Whether it is certain that one was stored after the other."""
    if known is None or other is None or known.modify_index is None or other.modify_index is None:
        return False
    return known.modify_index > other.modify_index
