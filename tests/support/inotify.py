"""inotify(7) for tests, straight from the C library: what the kernel tells, exactly as it tells it."""

from __future__ import annotations

import ctypes
import itertools
import os
import select
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

from support.curl import Curl

if TYPE_CHECKING:
    from typing_extensions import Self

LIMIT = 60
"""Seconds after which an event does not come any more."""

NAMES = {
    0x1: "ACCESS", 0x2: "MODIFY", 0x4: "ATTRIB", 0x8: "CLOSE_WRITE", 0x10: "CLOSE_NOWRITE", 0x20: "OPEN",
    0x40: "MOVED_FROM", 0x80: "MOVED_TO", 0x100: "CREATE", 0x200: "DELETE", 0x400: "DELETE_SELF", 0x800: "MOVE_SELF",
    0x2000: "UNMOUNT", 0x4000: "Q_OVERFLOW", 0x8000: "IGNORED",
}  # fmt: skip

ISDIR = 0x40000000

ALL = 0xFFF

CHANGES = sum(mask for mask, name in NAMES.items() if name in {"MODIFY", "CLOSE_WRITE", "CREATE", "DELETE"})
"""What others can do to a directory and its files."""

DELETE_SELF = 0x400

WRITTEN = ["MODIFY", "CLOSE_WRITE"]
"""What a changed value or changed flags are told as."""

_HEAD = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


def _done(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class Watcher:
    """An inotify descriptor. An event is a line such as "CREATE|ISDIR d/sub", with a path below the root.

    :ivar heard: all that was read of it
    """

    def __init__(self, root: Path, mask: int = CHANGES) -> None:
        self.root = root
        self.mask = mask
        self.heard: list[str] = []
        self._paths: dict[int, str] = {}
        self.descriptor = _done(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def add(self, path: str = "") -> Self:
        """Wait for a file or directory, too."""
        number = _done(_libc.inotify_add_watch(self.descriptor, os.fsencode(self.root / path), self.mask))
        self._paths[number] = path
        return self

    def add_all(self) -> Self:
        """Wait for every directory that is there."""
        for folder, _, _ in os.walk(self.root):
            self.add("" if folder == str(self.root) else os.path.relpath(folder, self.root))
        return self

    def pending(self) -> list[str]:
        """What is there to read now."""
        events = []
        while select.select([self.descriptor], [], [], 0)[0]:
            events += self._parse(os.read(self.descriptor, 1 << 16))
        self.heard += events
        return events

    def read(self, seconds: float = LIMIT) -> list[str]:
        """The same, and it waits for something to be there; nothing where that takes too long."""
        select.select([self.descriptor], [], [], seconds)
        return self.pending()

    def wait(self, event: str) -> None:
        """Until this event was heard, at any time."""
        deadline = time.monotonic() + LIMIT
        while event not in self.heard:
            assert time.monotonic() < deadline, f"{event!r} did not come, but {self.heard[-20:]}"
            self.read(1)

    def _parse(self, data: bytes) -> list[str]:
        events, at = [], 0
        while at < len(data):
            number, mask, _, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
            at += length
            path = "/".join(filter(None, (self._paths.get(number, ""), name)))
            events.append(f"{describe(mask)} {path}".rstrip())
        return events


def describe(mask: int) -> str:
    """A mask's name."""
    return (NAMES.get(mask & ~ISDIR) or hex(mask)) + ("|ISDIR" if mask & ISDIR else "")


_numbers = itertools.count(1)


class Told:
    """What a program is told of what others do in one directory. Nothing of this mount is used but inotify.

    That nothing more comes shows by what comes after it: keys that are made for this, twice, since one answer of
    Consul may bring what is made before what was changed.

    :param prefix: the keys' prefix of the directory
    :ivar beacons: the keys that were made for it
    """

    def __init__(self, watcher: Watcher, curl: Curl, path: str = "", prefix: str | None = None) -> None:
        self.watcher = watcher
        self._curl = curl
        self._path = path
        self._prefix = prefix if prefix is not None else path + "/" if path else ""
        self.beacons: list[str] = []
        self._number = next(_numbers)
        watcher.add(path)
        self._begin()

    def events(self) -> list[str]:
        """All since the last call."""
        for _ in range(2):
            self.watcher.wait(f"CLOSE_WRITE {self._beacon()}")
        heard, self.watcher.heard = self.watcher.heard, []
        return [event for event in heard if "~" not in event]

    def _begin(self) -> None:
        """The watch of the directory begins a moment after somebody has waited for it: until it has."""
        deadline = time.monotonic() + LIMIT
        while not self.watcher.heard:
            assert time.monotonic() < deadline, "nothing is told"
            self._beacon()
            self.watcher.read(0.3)
        self.events()

    def _beacon(self) -> str:
        name = f"~{self._number}.{len(self.beacons)}"
        self._curl.put(self._prefix + name)
        self.beacons.append(self._prefix + name)
        return f"{self._path}/{name}".lstrip("/")
