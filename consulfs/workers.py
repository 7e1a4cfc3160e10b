"""libfuse's threads: Python knows each until it ends, and the last one does not end while the kernel is being told.

When its loop has ended, libfuse frees what it looks paths up in, and calls `destroy` only after that (lib/fuse.c,
`fuse_destroy`): whoever has it look one up meanwhile crashes the daemon (measured on 3.14: 4 of 80 mounts that ended
while other hosts wrote). Before it frees anything it joins its threads, and one is joined when what it does at its end
is done: so that is where it is kept waiting.

Owner of the numbers: `_changed`, not held while the kernel is told.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Iterator
from typing import Optional

LAST_SECONDS = 1.0
"""For so long the last thread waits: what is under way has looked its path up in microseconds, but the kernel may keep
it until the mount has ended."""

_here = threading.local()
_changed = threading.Condition()
_workers = 0
_under_way = 0


def keep() -> None:
    """Have Python know this thread of libfuse's until it ends.

    ctypes makes a thread state for each callback on a thread that Python did not start, and drops it after that: an
    mmap, a munmap and an interruption of the other processors a time, and all thread-locals anew. One that is held
    once more than released stays (docs.python.org, c-api/init: PyGILState_Ensure).
    """
    if getattr(_here, "is_kept", False):
        return
    _here.is_kept = True
    if threading.get_ident() == threading.main_thread().ident:
        return
    global _workers
    with _changed:
        _workers += 1
    if not _at_thread_exit(_on_end, None, _MAIN_PROGRAM):
        ctypes.pythonapi.PyGILState_Ensure()


@contextlib.contextmanager
def held() -> Iterator[bool]:
    """libfuse's loop does not end inside; whether it has not by now."""
    global _under_way
    with _changed:
        runs = _workers > 0
        _under_way += runs
    try:
        yield runs
    finally:
        with _changed:
            _under_way -= runs
            _changed.notify_all()


def _end(_: Optional[int]) -> None:
    """Called as a thread ends."""
    global _workers
    with _changed:
        _workers -= 1
        deadline = time.monotonic() + LAST_SECONDS
        while _under_way and not _workers and time.monotonic() < deadline:
            _changed.wait(deadline - time.monotonic())
    # What is left held then is this callback's own. PyGILState_LOCKED: it goes on holding the interpreter's lock.
    ctypes.pythonapi.PyGILState_Release(0)


_MAIN_PROGRAM = ctypes.c_void_p(1)
"""An address that is in no library: whose destructor it is, which keeps that one from being unloaded."""

_on_end = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_end)

# What C++ registers the destructors of thread_local objects with (glibc, also used by Rust's). A pthread key's would
# come too late: Python's own key, by which it knows the thread, is cleared before it (glibc, nptl_deallocate_tsd.c).
# Without it no thread is kept waiting, and all goes on slower.
_at_thread_exit = getattr(ctypes.CDLL(None), "__cxa_thread_atexit_impl", lambda *_: -1)
