"""How long an operation may wait, and who may end its wait: the clock of each thread that serves an operation."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable, Optional

from consulfs.errors import Interrupted, OutOfTime
from consulfs.processes import Heed

SLICE = 0.04
"""Seconds between two looks at whether the caller was interrupted."""


LAST = 2.0
"""Seconds for each part of a mount's end, when an earlier part had no answer in time."""


class Patience:
    """The deadline of the operation that a thread serves. Thread-local: it needs no lock.

    :param timeout: seconds that an operation may take
    :param interrupted: whether one of such signals waits for the caller of this thread's operation
    """

    def __init__(self, timeout: float, interrupted: Callable[[Heed], bool] = lambda heed: False) -> None:
        self.timeout = timeout
        self._interrupted = interrupted
        self._local = threading.local()

    def begin(self, limit: Optional[float] = None) -> None:
        """A new operation starts on this thread.

        :param limit: seconds, where it may not take the whole timeout
        """
        seconds = self.timeout if limit is None or limit > self.timeout else limit
        self._local.deadline = time.monotonic() + seconds

    def begin_last(self) -> None:
        """What is done at the end of the mount, whatever came before it: briefly, where that has used up the time."""
        self.begin(None if self.remaining() > 0 else LAST)

    def remaining(self) -> float:
        """Seconds that are left; a thread that serves no operation has the whole timeout."""
        deadline: float = getattr(self._local, "deadline", 0.0)
        return deadline - time.monotonic() if deadline else self.timeout

    def check(self) -> None:
        """Called while something waits.

        :raises Interrupted: the caller was interrupted
        :raises OutOfTime: the operation's time is over
        """
        given_up = getattr(self._local, "given_up", None)
        if self._interrupted(getattr(self._local, "heed", Heed.ENDING)) or (given_up and given_up()):
            raise Interrupted
        if self.remaining() <= 0:
            raise OutOfTime("no answer in time")

    @contextmanager
    def steadfast(self) -> Iterator[None]:
        """What runs inside is ended by a signal that kills only: it would be done, and its program told that it is not.

        A program that catches SIGINT and tries again would meet its own new name: EEXIST, ENOENT.
        """
        before = getattr(self._local, "heed", Heed.ENDING)
        self._local.heed = Heed.FATAL
        try:
            yield
        finally:
            self._local.heed = before

    @contextmanager
    def until(self, given_up: Callable[[], bool]) -> Iterator[None]:
        """What runs inside, on a thread that serves no program, is ended when nobody wants it any more.

        It has no deadline: a blocking query waits longer than an operation may.
        """
        self._local.deadline = 0.0
        self._local.given_up = given_up
        try:
            yield
        finally:
            self._local.given_up = None

    def check_signals(self) -> None:
        """Called while a program waits for a lock, however long that may be.

        :raises Interrupted: it got a signal that ends flock(2)
        """
        if self._interrupted(Heed.CAUGHT):
            raise Interrupted

    def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than the operation may last."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, SLICE))
            self.check()

    def wait(self, condition: threading.Condition, ready: Callable[[], bool]) -> None:
        """Wait, holding the condition's lock in between, until `ready` holds."""
        while not ready():
            condition.wait(SLICE)
            self.check()
