"""One directory's watch: a blocking query that is answered when something in the directory, or below it, has changed.

    a directory of few and small files   is told with all of its records: nothing is left to ask
    any other                            is told by its names; what is known of its files is looked at again

What others did is told to the listeners. While nobody answers, what is known of the directory is true for a second, as
without a watch.

By the book (https://www.consul.io/api-docs/features/blocking): an index that goes back begins anew, and failures are
retried with growing pauses. So are answers in which nothing of the directory itself has changed: a query on a prefix
that does not exist is answered at each write to the store, one on the root at each write that is not its own.

A watch runs on a thread of its own, which no operation waits for.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Callable, Optional, Protocol

from consulfs.consulate import Consul, ConsulateException, Forbidden, Record
from consulfs.store.cache import Cache, Ticket
from consulfs.store.levels import Answer, Level, Listing, News
from consulfs.store.turns import Turns

log = logging.getLogger(__name__)

WAIT, FIRST_WAIT = 60.0, 4.0
"""Seconds after which a query is answered in any case: for so long a connection that died unseen is trusted.

The first ones wait for less, each twice as long as the one before it: Consul goes on with a query whose client has gone
away, and it counts among the connections that it admits.
"""

GUARDED_WAIT = 10.0
"""The same where there are ACLs: no query is answered because a right was taken away."""

GRACE = 5.0
"""Seconds beyond that, and beyond Consul's own spread of a sixteenth, for the answer to travel."""

FEW_FILES, FEW_BYTES = 1024, 1 << 18
"""A directory of so many files, with values of so many bytes together, and without directories, is told whole."""

KNOWN_FILES = 256
"""Of any other so many files are looked at again when something has changed in it or below it."""

BATCH = 64
"""Records that are read at once: the operations of a transaction."""

SHARE = 4.0
"""A watch rests so many times as long as its answers keep the processor busy."""

VAIN, FAILED = (0.02, 1.0), (0.1, 10.0)
"""The first and the longest pause after an answer in which nothing was new but what this mount did itself, and after a
failure; seconds."""

OWN_SECONDS = 0.5
"""For so long is waited for this mount's own change of a key, to tell it from another's."""


class Listener(Protocol):
    """Is told what others did in a directory, with records of its files, by name, as far as they were read."""

    def __call__(self, news: News, records: Mapping[str, Record]) -> None: ...


Waited = Callable[[str, Iterable[str]], Optional[set[str]]]
"""Those of a directory's files for which a program waits without asking, by inotify; None where none waits for any, nor
for the directory itself."""


class Pause:
    """Growing pauses, with some jitter."""

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self.reset()

    def reset(self) -> None:
        self._next = self._first

    def grow(self) -> float:
        """The next pause."""
        now, self._next = self._next, min(self._next * 2, self._longest)
        return now * random.uniform(0.75, 1.0)


class Watch:
    """The watch of one directory.

    :param consul: a client with connections of its own
    :param order: held from when news is taken until it is told, so that all watches' news is told in one order
    :ivar used: when a program last used the directory
    :ivar busy_until: when Consul is done with the query under way, whether or not somebody waits for it
    """

    def __init__(
        self,
        level: Level,
        consul: Consul,
        cache: Cache,
        turns: Turns,
        consistency: str,
        listeners: Sequence[Listener],
        waited_for: Waited,
        order: threading.Lock,
        wait: float = WAIT,
    ) -> None:
        self.level = level
        self.prefix = level.prefix
        self.used = time.monotonic()
        self.busy_until = 0.0
        self._wait = FIRST_WAIT
        self._consul = consul
        self._cache = cache
        self._turns = turns
        self._consistency = consistency
        self._listeners = listeners
        self._waited_for = waited_for
        self._order = order
        self._longest_wait = wait
        self._ended = threading.Event()
        self._vain, self._failed = Pause(*VAIN), Pause(*FAILED)
        # An answer was older than what is known: the next one is asked of a majority, and believed.
        self._in_doubt = self._asks_majority = False
        known = cache.peek(self.prefix)
        few = known is not None and not known.directories and 0 < len(known.files) <= BATCH
        self._is_whole = self._has_looked = few

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def end(self) -> None:
        """Have `run` return, whatever it waits for."""
        self._ended.set()
        self._consul.abort()

    def run(self) -> None:
        """Until `end`.

        :raises Forbidden: the directory may not be listed
        """
        anew = not self.level.index
        while not self.has_ended:
            index = self._cache.arm(self.level, not anew)
            self._asks_majority, self._in_doubt = self._in_doubt, False
            begin, sent = time.thread_time(), time.monotonic()
            try:
                answer = self._ask(1 if anew else index)
                renewed = answer.index == index and not anew
                pause, anew = self._heed(answer, index, renewed)
                anew = anew or self._in_doubt
                if renewed and time.monotonic() - sent > VAIN[1]:
                    pause, self._wait = 0.0, min(self._wait * 2, self._longest_wait)
                    self._vain.reset()
                self._failed.reset()
            except Forbidden:
                self._cache.disarm(self.level)
                raise
            except ConsulateException as error:
                self._cache.disarm(self.level)
                log.debug("a watch: %s", error)
                pause, anew = self._failed.grow(), True
                self._in_doubt = self._in_doubt or self._asks_majority
            self._ended.wait(max(pause, SHARE * (time.thread_time() - begin)))

    def _heed(self, answer: Answer, index: int, renewed: bool) -> tuple[float, bool]:
        """Make of an answer what is known now: (seconds to rest, whether the next query is to be answered at once).

        :param renewed: nothing was written meanwhile; what the token may see can be another all the same
        """
        is_old = answer.index < index or self._cache.is_of_before(self.level, answer.records, answer.index)
        if is_old and not self._have_begun_anew():
            return self._vain.grow(), True
        differing = self._cache.differing(self.level, answer)
        busy = {key[len(self.prefix) :] for key in self._turns.taken(self.prefix + name for name in differing)}
        busy |= Listing.below(self.prefix, self._turns.taken_below(self.prefix)).names()
        with self._order:
            news = self._cache.take(self.level, answer, busy)
            told = news is not None and self._tell(news, answer.without(busy).records)
        if news is None:
            return self._vain.grow(), True
        if busy:
            still = self._wait_free(busy)
            with self._order:
                late = self._cache.settle(self.level, answer, busy - still)
                told |= late is not None and self._tell(late, answer.of(busy - still).records)
            if late is None or still:
                return self._vain.grow(), True
        if not (self._is_whole or renewed):
            told |= self._look_again(answer.listing)
        if told:
            self._vain.reset()
            return 0.0, False
        return self._vain.grow(), False

    def _wait_free(self, names: set[str]) -> set[str]:
        """Wait for this mount to be done with some names, but not for long; those with which it is not."""
        keys = [self.prefix + name for name in names]
        self._turns.wait_free(keys, OWN_SECONDS)
        return {key[len(self.prefix) :] for key in self._turns.taken(keys)}

    def _have_begun_anew(self) -> bool:
        """Whether Consul's indexes have, as it seems; a server that lags behind seems so, too, so a majority tells."""
        if not self._asks_majority:
            self._in_doubt = True
            return False
        self._cache.begin_anew(self.level)
        with self._order:
            self._tell(News(self.prefix, anew=True), {})
        return True

    def _tell(self, news: News, records: Mapping[str, Record]) -> bool:
        """Tell the listeners; whether there is news."""
        for each in self._cache.spread(self.level, news, self._turns.taken_below(self.prefix)):
            self._tell_one(each, {})
        if news or news.anew or records:
            self._tell_one(news, records)
        return bool(news)

    def _tell_one(self, news: News, records: Mapping[str, Record]) -> None:
        for listener in self._listeners:
            listener(news, records)

    @property
    def _mode(self) -> str:
        return "consistent" if self._asks_majority else self._consistency

    # -- questions -------------------------------------------------------------------------------------------

    def _ask(self, index: int) -> Answer:
        """The query itself; with 1 it is answered at once."""
        kv, wait, mode = self._consul.kv, f"{self._wait:g}s", self._mode
        self.busy_until = time.monotonic() + self._wait * 17 / 16
        if not self._is_whole:
            names = kv.names(self.prefix, "/", index=index, wait=wait, timeout=GRACE, consistency=mode)
            return Answer(kv.meta.index or 0, Listing.of(self.prefix, names), {})
        known: dict[str, Record] = {}

        def know() -> dict[str, Record]:
            if index > 1:  # else indexes may have begun anew, and the same one says nothing
                known.update(self._cache.known_files(self.level))
            return known

        found = kv.tree(self.prefix, know, index=index, wait=wait, timeout=GRACE, consistency=mode)
        listing = Listing.below(self.prefix, [record.key for record in found])
        size = sum(len(record.value) for record in found)
        self._is_whole = not (listing.directories or len(found) > FEW_FILES or size > FEW_BYTES)
        return Answer(kv.meta.index or 0, listing, self._here(found)).apart(known)

    def _look_again(self, listing: Listing) -> bool:
        """After an answer of names alone: what has become of the files; whether there is news.

        The first time, a directory that is small enough is read whole.
        """
        if not self._has_looked:
            self._has_looked = True
            ticket = self._cache.ticket()
            loaded = self._load(listing)
            if loaded:
                return self._tell_compared(loaded, ticket)
        told = False
        suspects = self._cache.suspects(self.level, KNOWN_FILES)
        # Whom the kernel tells is found out by looking at all processes: not for nothing.
        waited_for = self._waited_for(self.prefix, listing.files) if listing.files else None
        if waited_for is not None:
            first = listing.files if len(listing.files) <= KNOWN_FILES else waited_for
            keys = dict.fromkeys([self.prefix + name for name in sorted(first)] + suspects)
            suspects = list(keys)[:KNOWN_FILES]
        for start in range(0, len(suspects), BATCH):
            ticket = self._cache.ticket()
            told |= self._tell_compared(self._read(suspects[start : start + BATCH]), ticket)
        return told

    def _load(self, listing: Listing) -> dict[str, Record]:
        """The files of a directory that has few and small ones, and nothing else; none of another."""
        if listing.directories or len(listing.files) > FEW_FILES:
            return {}
        records, size, mode = [], 0, self._mode
        for record in self._consul.kv.stream(self.prefix, index=1, wait="1s", timeout=GRACE, consistency=mode):
            records.append(record)
            size += len(record.value)
            if size > FEW_BYTES or len(records) > FEW_FILES:
                return {}
        self._is_whole = True
        return self._here(records)

    def _read(self, keys: Sequence[str]) -> dict[str, Record]:
        """Records by name, as a leader has them: a server that lags behind may not know yet what has changed."""
        mode = "default" if self._mode == "stale" else self._mode
        return self._here(self._consul.kv.read_many(keys, timeout=GRACE, consistency=mode).values())

    def _tell_compared(self, records: Mapping[str, Record], ticket: Ticket) -> bool:
        if self._cache.is_of_before(self.level, records, self.level.index) and not self._have_begun_anew():
            return False
        busy = self._turns.taken(self.prefix + name for name in records)
        self._turns.wait_free(busy, OWN_SECONDS)
        with self._order:
            return self._tell(*self._cache.compare(self.level, records, ticket))

    def _here(self, records: Iterable[Record]) -> dict[str, Record]:
        """Those that stand in the directory itself, by name."""
        at = len(self.prefix)
        named = [(record.key[at:], record) for record in records]
        return {name: record for name, record in named if "/" not in name}
