"""Telling the kernel what others did: what it holds of a changed file is taken from it, and programs that wait by
inotify are told (`replay.py`).

A notice waits for the READs and WRITEs of its file that the kernel has under way, and what is repeated for inotify
for what a program does in the same directory: for as long as Consul takes to answer those. So none is given by a thread
that serves an operation, and what is about one file never waits for what is about another. An operation may wait until
it is done with something (a lock that was just taken), but not for ever.

Owner of everything here: `Notices._lock`, not held while a notice is given.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Callable

from consulfs import threads

log = logging.getLogger(__name__)

MOST = 16
"""Threads; as many files can be stuck at once without delaying the others."""

LAST_SECONDS = 5.0
"""For so long the end of the mount waits for the notices under way."""


class Notices:
    """The threads, which are made as they are needed.

    :param invalidate: has the kernel forget what it holds of a path
    """

    def __init__(self, invalidate: Callable[[str], None]) -> None:
        self.invalidate = invalidate
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._topics: dict[str, deque[tuple[Callable[[], object], threading.Event]]] = {}
        self._ready: deque[str] = deque()  # topics at which nobody works
        self._idle = 0
        self._threads: list[threading.Thread] = []
        self._ended = False

    def post(self, topic: str, notice: Callable[[], object]) -> threading.Event:
        """Have something done after all that was posted before about the same; the event tells when it is."""
        done = threading.Event()
        with self._lock:
            if self._ended:
                done.set()
                return done
            if topic in self._topics:
                self._topics[topic].append((notice, done))
            else:
                self._topics[topic] = deque([(notice, done)])
                self._ready.append(topic)
                self._changed.notify()
            if self._idle < len(self._ready) and len(self._threads) < MOST:
                thread = threads.begin("notices", self._run)  # without one it waits for the next notice, or thread
                self._threads += [thread] if thread is not None else []
        return done

    def expire(self, path: str) -> threading.Event:
        """Have the kernel forget what it holds of a path."""
        return self.post(path, lambda: self.invalidate(path))

    def end(self) -> None:
        """The mount ends: nothing is told any more."""
        with self._lock:
            self._ended = True
            for _, done in [each for works in self._topics.values() for each in works]:
                done.set()
            self._changed.notify_all()
        deadline = time.monotonic() + LAST_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
                while not (self._ready or self._ended):
                    self._changed.wait()
                self._idle -= 1
                if self._ended:
                    return
                topic = self._ready.popleft()
                notice, done = self._topics[topic].popleft()
            try:
                notice()
            except Exception:
                log.exception("a notice to the kernel")
            done.set()
            with self._lock:
                if self._topics[topic]:
                    self._ready.append(topic)
                else:
                    del self._topics[topic]


def wait_for(notices: Iterable[threading.Event], seconds: float) -> bool:
    """Until all of these are given; whether they were in time."""
    deadline = time.monotonic() + seconds
    return all(each.wait(max(0.0, deadline - time.monotonic())) for each in notices)
