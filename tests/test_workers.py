"""libfuse's threads: the last one ends after what is being told to the kernel. Threads that Python did not start."""

from __future__ import annotations

import ctypes
import threading

import pytest

from consulfs import workers

LIBC = ctypes.CDLL(None)
START = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)


class Foreign:
    """A thread of C's that runs a callback and ends."""

    def __init__(self, work) -> None:
        self._start = START(lambda _: work())
        self._number = ctypes.c_ulong()
        assert LIBC.pthread_create(ctypes.byref(self._number), None, self._start, None) == 0

    def join(self) -> None:
        assert LIBC.pthread_join(self._number, None) == 0


@pytest.fixture
def patient(monkeypatch):
    monkeypatch.setattr(workers, "LAST_SECONDS", 60.0)


@pytest.mark.timeout(120)
def test_the_last_thread_ends_after_what_is_being_told(patient):
    order, told, kept, ends = [], threading.Event(), threading.Event(), threading.Event()

    def tell():
        kept.wait()
        with workers.held() as loop_runs:
            order.append(loop_runs)
            ends.set()
            told.wait(0.5)  # what the thread does not wait for is done first
            order.append("told")

    def serve():
        workers.keep()
        workers.keep()
        kept.set()
        ends.wait()

    teller = threading.Thread(target=tell)
    teller.start()
    foreign = Foreign(serve)
    foreign.join()
    order.append("joined")
    teller.join()
    assert order == [True, "told", "joined"]
    with workers.held() as loop_runs:
        assert not loop_runs


@pytest.mark.timeout(120)
def test_a_thread_that_is_not_the_last_ends_at_once(patient):
    kept, ends = threading.Event(), threading.Event()

    def serve():
        workers.keep()
        kept.set()
        ends.wait()

    last = Foreign(serve)
    kept.wait()
    with workers.held() as loop_runs:
        assert loop_runs
        Foreign(workers.keep).join()
        ends.set()
    last.join()


@pytest.mark.timeout(120)
def test_the_last_thread_does_not_wait_for_ever(monkeypatch):
    """The kernel may keep who tells it until the mount has ended, which waits for that thread."""
    monkeypatch.setattr(workers, "LAST_SECONDS", 0.2)
    kept, ends = threading.Event(), threading.Event()

    def serve():
        workers.keep()
        kept.set()
        ends.wait()

    last = Foreign(serve)
    kept.wait()
    with workers.held():
        ends.set()
        last.join()
