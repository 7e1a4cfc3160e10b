"""Which files programs wait for by inotify, as far as the kernel tells: it does not tell the file system.

/proc/PID/fdinfo/FD of an inotify descriptor names the inode and the device of each of its watches (proc(5)). Only
processes that the daemon may look into are seen: root's daemon sees all, a user's those of that user.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from typing import Callable, Optional

from consulfs import threads
from consulfs.mounts import mounted_at

_WATCH = re.compile(r"^inotify wd:\S+ ino:([0-9a-f]+) sdev:([0-9a-f]+)", re.MULTILINE)

SHARE = 50
"""Who glances rests so many times as long as it took: where there are very many processes it takes a while."""

MOMENT = 0.1
"""Seconds for which a look counts."""


class Watched:
    """The files of one mount that programs wait for.

    :param mountpoint: its absolute path
    """

    def __init__(self, mountpoint: str) -> None:
        self._mountpoint = mountpoint
        self._lock = threading.Lock()  # owns what follows
        self._device: Optional[int] = None
        self._looked = 0.0
        self._inodes: frozenset[int] = frozenset()

    def inodes(self) -> frozenset[int]:
        """Their inode numbers."""
        with self._lock:
            with contextlib.suppress(OSError):  # no file can be opened just now: as they were
                self._look()
            return self._inodes

    def _look(self) -> None:
        if self._device is None:
            mounted = mounted_at(self._mountpoint)
            self._device = mounted.device if mounted is not None else None
        if self._device is not None and time.monotonic() - self._looked > MOMENT:
            self._inodes = frozenset(inode for inode, device in _watches() if device == self._device)
            self._looked = time.monotonic()


class Glance:
    """Finds out who waits for the root of a mount, which has no name to look up: a moment after its attributes were
    asked for, and again when the kernel no longer has them: who began to wait in between, or later, had them asked for.

    :param attr_timeout: seconds for which the kernel has them
    :param is_open: whether it is still to be found out
    :param is_waited_for: whether somebody waits for the root
    :param use: called when somebody does
    """

    def __init__(
        self,
        attr_timeout: float,
        is_open: Callable[[], bool],
        is_waited_for: Callable[[], bool],
        use: Callable[[], None],
    ) -> None:
        self._moments = (MOMENT, attr_timeout)
        self._is_open = is_open
        self._is_waited_for = is_waited_for
        self._use = use
        self._lock = threading.Lock()  # owns _again and _thread
        self._again = False
        self._thread: Optional[threading.Thread] = None

    def __call__(self) -> None:
        """The attributes are being asked for."""
        if self._is_open():
            with self._lock:
                self._again = True
                if self._thread is None:
                    self._thread = threads.begin("glance", self._look)

    def _look(self) -> None:
        while True:
            with self._lock:
                if not (self._again and self._is_open()):
                    self._thread = None
                    return
                self._again = False
            for moment in self._moments:
                time.sleep(moment + MOMENT / 10)
                begin = time.thread_time()
                if self._is_open() and self._is_waited_for():
                    self._use()
                time.sleep(SHARE * (time.thread_time() - begin))


def _watches() -> Iterator[tuple[int, int]]:
    """The inode and device of every inotify watch that can be seen."""
    for process in os.listdir("/proc"):
        if not process.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            for descriptor in os.listdir(f"/proc/{process}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{process}/fd/{descriptor}") == "anon_inode:inotify":
                        with open(f"/proc/{process}/fdinfo/{descriptor}") as info:
                            for inode, device in _WATCH.findall(info.read()):
                                yield int(inode, 16), int(device, 16)
