"""What the kernel holds of files: the attributes that it was told of late, and the pages that it may keep.

The kernel shows a file's size for as long as it was told to (`attr_timeout`), and cuts what it reads to that size. So a
program must not get to read a content whose size the kernel does not know: an open that would is answered ESTALE,
whereupon the kernel looks the name up and opens it once more. A file that is open goes on with the content whose
attributes were told (`Node.shown`) until others are asked for, or the kernel has been made to forget them.

Pages are kept from one open to the next while the record is the same.

Owner: `Kernel._lock`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from enum import Enum
from typing import Any, NamedTuple, Optional, TypeVar

T = TypeVar("T")

Version = Optional[tuple[int, int]]
"""Which content: see `store.node.version_of`; None where it is not stored, or nobody knows."""

SENT_SECONDS = 0.2
"""A program that asks for a file again so soon is one that was just sent back."""

NAME_SECONDS = 1.0
"""For so long at most the kernel keeps the name of a file that it was told of."""

UNDER_WAY_SECONDS = 1.0
"""For so long an answer may be on its way: the kernel counts from when it has it. And so may an open(2) that was told
that a name is there, and asks next whether it may have it."""

TOLD, OPENED = 1 << 14, 1 << 16
"""Files of which it is remembered what attributes the kernel was told of late, and which pages it has; one that is
forgotten is looked at anew, and its pages are not kept."""


class Asked(Enum):
    """What a program asks for: one system call may ask for both, and each is sent back by itself."""

    LOOK = "attributes"
    OPEN = "to open it"


class _Told(NamedTuple):
    """Attributes that it was told.

    :ivar path: by which it asked for them
    :ivar stands: it has not been made to forget them since
    """

    version: Version
    path: str
    moment: float
    stands: bool = True


_NOTHING = _Told(None, "", -math.inf, False)


class Kernel:
    """What the kernel was told.

    :param attr_timeout: seconds for which it takes attributes as true
    """

    def __init__(self, attr_timeout: float) -> None:
        self._attr_timeout = attr_timeout
        self._lock = threading.Lock()
        self._told: dict[str, _Told] = {}
        self._names: dict[str, dict[str, str]] = {}  # the keys of _told by path, by the path of their directory
        self._renamed = 0.0
        self._forgotten = -math.inf  # when it was told of the last one of which that is no longer remembered
        self._pages: dict[str, tuple[str, Version]] = {}
        self._sent_back: dict[tuple[str, int, Asked], float] = {}

    def tell(self, key: str, version: Version, path: str = "") -> None:
        """It is being told a file's attributes.

        :param path: where it asked for them by name
        """
        with self._lock:
            before = self._told.pop(key, _NOTHING)
            path = path or before.path
            if path != before.path:
                self._take_name(before.path)
                self._names.setdefault(_directory_of(path), {})[path] = key
            oldest = _make_room(self._told, TOLD)
            if oldest is not None:
                self._take_name(oldest.path)
                self._forgotten = oldest.moment
            self._told[key] = _Told(version, path, time.monotonic())

    def is_behind(self, key: str, version: Version) -> bool:
        """Whether it takes the attributes of another content as true."""
        with self._lock:
            told = self._told.get(key) or _Told(None, "", self._forgotten)
            until = told.moment + self._attr_timeout + UNDER_WAY_SECONDS
            return bool(self._attr_timeout and told.stands and told.version != version and until > time.monotonic())

    def loses(self, key: str, path: str = "") -> bool:
        """A file is gone; whether it has taken a path as there until now, or was just told so."""
        with self._lock:
            told = self._told.pop(key, _NOTHING)
            self._take_name(told.path)
            return told.path == path and told.moment > max(self._named_since(), self._renamed)

    def gone_from(self, directory: str, names: Iterable[str]) -> list[str]:
        """The keys of those names in a directory that it takes as there, with attributes, and that are not among these.

        :param directory: its path
        """
        base = directory.rstrip("/")
        with self._lock:
            told = self._names.get(base)
            if not told or not self._attr_timeout:
                return []
            oldest = self._named_since()
            there = {f"{base}/{name}" for name in names}
            keys = [key for path, key in told.items() if path not in there]
            return [key for key in keys if self._told[key].stands and self._told[key].moment > oldest]

    def renames(self) -> None:
        """It gives files other names: of none that it was told before is it known whether it still has that."""
        self._renamed = time.monotonic()

    def send_back(self, path: str, caller: int, asked: Asked) -> bool:
        """Whether a program may be answered ESTALE: not if that was just done, for it would be told so."""
        now = time.monotonic()
        with self._lock:
            before = self._sent_back.pop((path, caller, asked), 0.0)
            if before + SENT_SECONDS > now:
                return False
            _make_room(self._sent_back, TOLD)
            self._sent_back[path, caller, asked] = now
            return True

    @property
    def waits(self) -> bool:
        """Whether anybody was sent back who has not arrived."""
        return bool(self._sent_back)

    def arrives(self, path: str, caller: int, *asked: Asked) -> None:
        """A program has what it asked for, whether or not it was sent back: the next time is another one."""
        if self.waits:
            with self._lock:
                for each in asked:
                    self._sent_back.pop((path, caller, each), None)

    def opens(self, path: str, key: str, version: Version) -> bool:
        """It opens a file; whether the pages that it has of it are those of this content."""
        with self._lock:
            kept = version is not None and self._pages.get(key) == (path, version)
            _make_room(self._pages, OPENED)
            self._pages[key] = path, version
            return kept

    def forget(self, key: str, before: Optional[float] = None) -> None:
        """It knows better: a program of this mount has changed the file; or it was made to forget.

        :param before: what it was told after this moment it may have kept
        """
        with self._lock:
            told = self._told.get(key)
            if told is not None and (before is None or told.moment <= before):
                self._told[key] = told._replace(stands=False)  # it may have the name all the same
            self._pages.pop(key, None)

    def _named_since(self) -> float:
        """When it was told of the names that it may take as there without asking."""
        return time.monotonic() - min(self._attr_timeout, NAME_SECONDS) - UNDER_WAY_SECONDS

    def _take_name(self, path: str) -> None:
        names = self._names.get(_directory_of(path), {})
        names.pop(path, None)
        if not names:
            self._names.pop(_directory_of(path), None)


def _directory_of(path: str) -> str:
    return path[: path.rfind("/")]


def _make_room(table: dict[Any, T], most: int) -> Optional[T]:
    """Forget what was entered first. Not least lately used: that would cost more than it saves, at every open."""
    return table.pop(next(iter(table))) if len(table) >= most else None
