"""Telling the kernel what others did: what it holds of a changed file is taken from it, and programs that wait by
inotify are told (`replay.py`).

A notice waits for the READs and WRITEs of its file that the kernel has under way. So all are given by one thread, which
serves no operation. An operation may wait until it is done with something (a lock that was just taken), but not for
long: a notice that is stuck behind a slow READ delays, and never blocks.

Owner of the queue: `queue.SimpleQueue`.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import Callable, Optional

log = logging.getLogger(__name__)

LAST_SECONDS = 5.0
"""For so long the end of the mount waits for a notice under way."""


class Notices:
    """The thread, which is made with the first notice.

    :param invalidate: has the kernel forget what it holds of a path
    """

    def __init__(self, invalidate: Callable[[str], None]) -> None:
        self.invalidate = invalidate
        self._queue: queue.SimpleQueue[Optional[Callable[[], None]]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # owns _thread and _ended
        self._thread: Optional[threading.Thread] = None
        self._ended = False

    def post(self, notice: Callable[[], None]) -> threading.Event:
        """Have something done there, after all that was posted before; the event tells when it is."""
        done = threading.Event()

        def work() -> None:
            try:
                notice()
            finally:
                done.set()

        with self._lock:
            if self._ended:
                done.set()
                return done
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="notices", daemon=True)
                self._thread.start()
        self._queue.put(work)
        return done

    def expire(self, path: str) -> threading.Event:
        """Have the kernel forget what it holds of a path."""
        return self.post(lambda: self.invalidate(path))

    def end(self) -> None:
        """The mount ends: nothing is told any more."""
        with self._lock:
            self._ended = True
            thread = self._thread
        if thread is not None:
            self._queue.put(None)
            thread.join(LAST_SECONDS)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            if self._ended:
                continue
            try:
                work()
            except Exception:
                log.exception("a notice to the kernel")
