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
from typing import Optional

from consulfs.mounts import mounted_at

_WATCH = re.compile(r"^inotify wd:\S+ ino:([0-9a-f]+) sdev:([0-9a-f]+)", re.MULTILINE)

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
            if self._device is None:
                mounted = mounted_at(self._mountpoint)
                self._device = mounted.device if mounted is not None else None
            if self._device is not None and time.monotonic() - self._looked > MOMENT:
                self._inodes = frozenset(inode for inode, device in _watches() if device == self._device)
                self._looked = time.monotonic()
            return self._inodes


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
