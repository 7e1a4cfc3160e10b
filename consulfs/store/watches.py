"""Which directories are under watch: those that programs use, as many as there are slots.

Owner of the slots and of the directories that wait for one: `Watches._lock`, never held across a request. What the
watches tell, one after the other, is told under `Watches._order`; who is told asks nothing and waits for nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from functools import partial
from typing import Callable, NamedTuple, Optional

from cachetools import TTLCache

from consulfs import threads
from consulfs.consulate import Consul, Forbidden
from consulfs.consulate.api.records import travels_in_url
from consulfs.store.cache import Cache
from consulfs.store.turns import Turns
from consulfs.store.watch import GRACE, WAIT, Listener, Waited, Watch

log = logging.getLogger(__name__)

SLOTS = 32
"""Directories under watch at once: a Consul agent admits 200 connections an address.

At most so many more are those of queries that nobody waits for any more, which Consul goes on with until their time is
over: no watch gives way to another as long as there are so many.
"""

STAY = 2.0
"""Seconds for which a directory keeps its slot after it was last used, whoever waits for one."""

MOMENT = 0.02
"""Seconds after which a directory that is used gets its watch."""

REFUSED = 30.0
"""Seconds for which no watch is tried on a directory that may not be listed."""

FRESH = 5.0
"""Seconds for which a directory that was used waits for a slot."""


RETURN = 1.0
"""Seconds after which a directory is used again that is in use, and not one of many that are gone through."""


class _Want(NamedTuple):
    """When a directory that has no slot was first used, and last."""

    first: float
    last: float

    @property
    def is_over(self) -> bool:
        return time.monotonic() - self.last > FRESH


class Watches:
    """The watches of one datacenter's keys.

    :param client: makes a client with connections of its own, whose waits are not interrupted
    :param consistency: of the queries
    :param waited_for: directories with something that is keep their slots
    :param wait: seconds after which a query is answered in any case
    """

    def __init__(
        self,
        client: Callable[[], Consul],
        cache: Cache,
        turns: Turns,
        consistency: str = "default",
        waited_for: Waited = lambda prefix, names: None,
        wait: float = WAIT,
        slots: int = SLOTS,
    ) -> None:
        self._client = client
        self._cache = cache
        self._turns = turns
        self._consistency = consistency
        self._waited_for = waited_for
        self._wait = wait
        self._most = slots
        self._listeners: list[Listener] = []
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._order = threading.Lock()
        self._slots: dict[str, Watch] = {}
        self._left: list[float] = []  # when Consul is done with the queries of watches that have ended
        self._wanted: OrderedDict[str, _Want] = OrderedDict()
        self._refused: TTLCache[str, bool] = TTLCache(1024, REFUSED)
        self._keeper: Optional[threading.Thread] = None
        self._threads: list[threading.Thread] = []
        self._ended = False

    def __len__(self) -> int:
        """The directories under watch."""
        return len(self._slots)

    def __contains__(self, prefix: str) -> bool:
        """Whether a directory is under watch."""
        return prefix in self._slots

    def listen(self, listener: Listener) -> None:
        """Have somebody told of what others do. Before the first directory is used."""
        self._listeners.append(listener)

    def use(self, prefix: str) -> None:
        """A program uses a directory."""
        slot = self._slots.get(prefix)
        if slot is not None:
            slot.used = time.monotonic()
        elif travels_in_url(prefix):
            with self._lock:
                if prefix in self._refused:
                    return
                is_new = prefix not in self._wanted or self._keeper is None
                now = time.monotonic()
                first = self._wanted[prefix].first if prefix in self._wanted else now
                self._wanted[prefix] = _Want(first, now)
                self._wanted.move_to_end(prefix)
                if len(self._wanted) > 2 * self._most:
                    self._wanted.popitem(last=False)
                if is_new:
                    self._begin()
                    self._changed.notify()

    def end(self) -> None:
        """End all watches; returns when none of their threads will tell anybody anything any more."""
        with self._lock:
            self._ended = True
            self._changed.notify_all()
            slots, threads = list(self._slots.values()), list(self._threads)
        for slot in slots:
            slot.end()
        for thread in threads:
            thread.join(GRACE)

    # -- who is watched --------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._keeper is None and not self._ended:
            self._keeper = threads.begin("watches", self._keep)

    def _keep(self) -> None:
        """Give slots to those that want one. Sleeps while nobody does."""
        while True:
            with self._lock:
                while not (self._wanted or self._ended):
                    self._changed.wait()
                if self._ended:
                    return
            time.sleep(MOMENT)  # a program that looks at a directory may list it next: its watch goes on from there
            try:
                has_given = self._give_one()
            except Exception as error:  # there is no other keeper: files, memory or threads may be there again later
                log.warning("no directory can be watched: %s", error)
                has_given = False
            if not has_given:
                time.sleep(STAY / 4)

    def _give_one(self) -> bool:
        """Whether somebody got a slot."""
        with self._lock:
            for prefix in [each for each, want in self._wanted.items() if want.is_over or each in self._slots]:
                del self._wanted[prefix]
            wanted = list(reversed(self._wanted.items()))
            is_full = len(self._slots) >= self._most
        chosen = next((prefix for prefix, want in wanted if not is_full or self._deserves(prefix, want)), None)
        if chosen is None or (is_full and not self._make_room()):
            return False
        with self._lock:
            self._wanted.pop(chosen, None)
        return self._start(chosen)

    def _deserves(self, prefix: str, want: _Want) -> bool:
        """Whether another's watch may end for it: who goes through many directories comes to none a second time."""
        return want.last - want.first >= RETURN or self._is_waited_for(prefix)

    def _is_waited_for(self, prefix: str) -> bool:
        listing = self._cache.peek(prefix)
        return self._waited_for(prefix, self._cache.snapshot(listing)[0] if listing is not None else ()) is not None

    def _make_room(self) -> bool:
        """End the watch that was used least lately, unless each was used just now."""
        now = time.monotonic()
        idle = now - STAY
        with self._lock:
            self._left = [end for end in self._left if end > now]
            if len(self._left) >= self._most:
                return False
            slots = sorted((slot for slot in self._slots.values() if slot.used < idle), key=lambda slot: slot.used)
        for slot in slots:
            if not self._is_waited_for(slot.prefix):
                self._drop(slot)
                slot.end()
                self._left.append(slot.busy_until)
                return True
        return False

    def _start(self, prefix: str) -> bool:
        client = self._client()
        watch = Watch(
            self._cache.watch(prefix),
            client,
            self._cache,
            self._turns,
            self._consistency,
            self._listeners,
            self._waited_for,
            self._order,
            self._wait,
        )
        with self._lock:
            if self._ended:
                return False
            self._slots[prefix] = watch
            thread = threads.begin(f"watch {prefix}", partial(self._run, watch))
            if thread is not None:
                self._threads = [each for each in self._threads if each.is_alive()] + [thread]
        if thread is None:
            self._drop(watch)
            watch.end()
        return thread is not None

    def _run(self, watch: Watch) -> None:
        try:
            watch.run()
        except Forbidden as error:
            log.info("not watched: %s", error)  # which names the directory, as a log may have it
            with self._lock:
                self._refused[watch.prefix] = True
        except Exception:
            if not watch.has_ended:
                log.exception("a watch has ended")
        finally:
            self._drop(watch)
            watch.end()

    def _drop(self, watch: Watch) -> None:
        """From now on the directory is as any other."""
        with self._lock:
            if self._slots.get(watch.prefix) is watch:
                del self._slots[watch.prefix]
        self._cache.unwatch(watch.level)
