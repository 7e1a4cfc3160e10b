"""libfuse's threads: Python knows each until it ends, and the last one does not end while the kernel is being told.

When its loop has ended, libfuse frees what it looks paths up in, and calls `destroy` only after that (lib/fuse.c,
`fuse_destroy`): whoever has it look one up meanwhile crashes the daemon (measured on 3.14: 5 of 104 mounts that ended
while other hosts wrote). Before it frees anything it joins its threads, and one is joined when what it does at its end
is done: so that is where it is kept waiting.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from typing import Optional

LAST_SECONDS = 1.0
"""For so long the last thread waits: what is under way has looked its path up in microseconds, but the kernel may keep
it until the mount has ended."""

_MAIN_PROGRAM = ctypes.c_void_p(1)
"""An address that is in no library: whose destructor it is, which keeps that one from being unloaded."""

# What C++ registers the destructors of thread_local objects with (glibc, also used by Rust's). A pthread key's would
# come too late: Python's own key, by which it knows the thread, is cleared before it (glibc, nptl_deallocate_tsd.c).
# Without it no thread is kept waiting, and all goes on slower.
_at_thread_exit = getattr(ctypes.CDLL(None), "__cxa_thread_atexit_impl", lambda *_: -1)


class Workers:
    """The threads of one loop. It is to live as long as they do.

    Owner of the two numbers: `_changed`, not held while the kernel is told.

    :param last_seconds: None: the last thread waits for as long as it takes
    """

    def __init__(self, last_seconds: Optional[float] = LAST_SECONDS) -> None:
        self._last_seconds = last_seconds
        self._here = threading.local()
        self._on_end = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._end)
        self._changed = threading.Condition()
        self._threads = self._under_way = 0

    def keep(self) -> None:
        """Have Python know this thread of libfuse's until it ends.

        ctypes makes a thread state for each callback on a thread that Python did not start, and drops it after that: an
        mmap, a munmap and an interruption of the other processors a time, and all thread-locals anew. One that is held
        once more than released stays (docs.python.org, c-api/init: PyGILState_Ensure).
        """
        if getattr(self._here, "is_kept", False):
            return
        self._here.is_kept = True
        if threading.get_ident() == threading.main_thread().ident:
            return
        with self._changed:
            self._threads += 1
        if not _at_thread_exit(self._on_end, None, _MAIN_PROGRAM):
            ctypes.pythonapi.PyGILState_Ensure()

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """libfuse's loop does not end inside; whether it has not by now."""
        with self._changed:
            runs = self._threads > 0
            self._under_way += runs
        try:
            yield runs
        finally:
            with self._changed:
                self._under_way -= runs
                self._changed.notify_all()

    def _end(self, _: Optional[int]) -> None:
        """Called as a thread ends."""
        with self._changed:
            self._threads -= 1
            self._changed.wait_for(lambda: self._threads or not self._under_way, self._last_seconds)
        # What is left held then is this callback's own. PyGILState_LOCKED: it goes on holding the interpreter's lock.
        ctypes.pythonapi.PyGILState_Release(0)
