"""libfuse's threads: the last one ends after what is being told to the kernel. Threads that Python did not start."""

from __future__ import annotations

import ctypes
import errno
import threading
import time

import pytest

from consulfs.workers import Workers

LIBC = ctypes.CDLL(None)
START = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)

# One that waits for as long as it takes, but should not, is ended by this.
pytestmark = pytest.mark.timeout(60)


class Foreign:
    """A thread of C's that is kept until it is let go."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._kept, self._ends = threading.Event(), threading.Event()
        self._start = START(lambda _: self._serve())
        self._number = ctypes.c_ulong()
        assert LIBC.pthread_create(ctypes.byref(self._number), None, self._start, None) == 0
        self._kept.wait()

    def _serve(self) -> None:
        self._workers.keep()
        self._workers.keep()
        self._kept.set()
        self._ends.wait()

    def join(self) -> None:
        """Let it go, and wait for its end: not in C, where nothing could end a test that hangs."""
        self._ends.set()
        while (failure := LIBC.pthread_tryjoin_np(self._number, None)) == errno.EBUSY:
            time.sleep(0.01)
        assert not failure


def test_the_last_thread_ends_after_what_is_being_told():
    workers, order, tells = Workers(None), [], threading.Event()
    foreign = Foreign(workers)

    def tell():
        with workers.held() as loop_runs:
            order.append(loop_runs)
            tells.set()
            time.sleep(0.5)  # what the thread does not wait for is done first
            order.append("told")

    teller = threading.Thread(target=tell)
    teller.start()
    tells.wait()
    foreign.join()
    order.append("joined")
    teller.join()
    assert order == [True, "told", "joined"]
    with workers.held() as loop_runs:
        assert not loop_runs


def test_a_thread_that_is_not_the_last_ends_at_once():
    workers = Workers(None)
    last = Foreign(workers)
    with workers.held() as loop_runs:
        assert loop_runs
        Foreign(workers).join()
    last.join()


def test_the_last_thread_does_not_wait_for_ever():
    """The kernel may keep who tells it until the mount has ended, which waits for that thread."""
    workers = Workers()
    last = Foreign(workers)
    with workers.held() as loop_runs:
        assert loop_runs
        last.join()
