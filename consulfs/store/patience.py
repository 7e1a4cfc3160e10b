"""How long an operation may wait, and who may end its wait: the clock of each thread that serves an operation."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

from consulfs.errors import Interrupted, OutOfTime

SLICE = 0.04
"""Seconds between two looks at whether the caller was interrupted."""


class Patience:
    """The deadline of the operation that a thread serves. Thread-local: it needs no lock.

    :param timeout: seconds that an operation may take
    :param interrupted: whether the caller of this thread's operation is to end; with True, whether it must
    """

    def __init__(self, timeout: float, interrupted: Callable[[bool], bool] = lambda fatal: False) -> None:
        self.timeout = timeout
        self._interrupted = interrupted
        self._local = threading.local()

    def begin(self) -> None:
        """A new operation starts on this thread."""
        self._local.deadline = time.monotonic() + self.timeout

    def remaining(self) -> float:
        """Seconds that are left; a thread that serves no operation has the whole timeout."""
        deadline: float = getattr(self._local, "deadline", 0.0)
        return deadline - time.monotonic() if deadline else self.timeout

    def check(self) -> None:
        """Called while something waits.

        :raises Interrupted: the caller was interrupted
        :raises OutOfTime: the operation's time is over
        """
        if self._interrupted(getattr(self._local, "steadfast", False)):
            raise Interrupted
        if self.remaining() <= 0:
            raise OutOfTime("no answer in time")

    @contextmanager
    def steadfast(self) -> Iterator[None]:
        """What runs inside is ended by a signal that kills only: it would be done, and its program told that it is not.

        A program that catches SIGINT and tries again would meet its own new name: EEXIST, ENOENT.
        """
        before = getattr(self._local, "steadfast", False)
        self._local.steadfast = True
        try:
            yield
        finally:
            self._local.steadfast = before

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
