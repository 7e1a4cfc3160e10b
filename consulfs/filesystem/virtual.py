"""The virtual trees as a branch: what Consul and the mount say of themselves, to be read."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
import time
from dataclasses import dataclass
from typing import Callable, Optional

from cachetools import LRUCache

from consulfs.consulate import Forbidden
from consulfs.filesystem.branch import Attributes, Branch, Listed, Opened, Owner, refuse_change
from consulfs.processes import process_of
from consulfs.store.inodes import Inodes
from consulfs.store.times import Times
from consulfs.tree.virtual import Directory, Document, VirtualTree
from consulfs.tree.virtual.answers import MAX_ROWS

EXPIRE_SECONDS = 0.5
"""For so long an open waits until the kernel has forgotten the attributes of another content; it hardly ever does."""


@dataclass(frozen=True)
class _Snapshot:
    """What a file held when it was opened.

    :ivar opener: the process that opened it
    """

    path: str
    opener: int
    content: bytes
    attributes: Attributes


class VirtualBranch(Branch):
    """An open file is a snapshot: it does not change under its reader.

    The kernel asks for the attributes of a descriptor by the name that was opened. So who has a file open is told of
    what it opened (last): tar(1) fails where a file shrinks under it, and `tail -F` of one that grew, but ends where
    it did, would wait for the rest for ever. A process that was handed a descriptor is told of the file as it is now.

    Owner of `_open`, `_held` and `_listed`: `_lock`.

    :param owner: its umask is not heeded; as in sysfs, the modes are those of the content
    :param caller: tells for which program's thread the present operation is
    :param expire: has the kernel forget a file's attributes: unlike a key's they are another's a moment later
    """

    def __init__(
        self,
        tree: VirtualTree,
        times: Times,
        inodes: Inodes,
        owner: Owner,
        caller: Callable[[], int],
        expire: Callable[[str], threading.Event],
    ) -> None:
        self._tree = tree
        self._times = times
        self._inodes = inodes
        self._owner = owner
        self._caller = caller
        self._expire = expire
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._open: dict[int, _Snapshot] = {}
        self._held: dict[str, list[int]] = {}
        self._listed: LRUCache[str, frozenset[str]] = LRUCache(
            MAX_ROWS, getsizeof=lambda names: min(len(names) + 1, MAX_ROWS)
        )

    def getattr(self, path: Optional[str], fh: Optional[int]) -> Attributes:
        if path is None:
            return self._snapshot(fh or 0).attributes
        found = self._tree.look(path)
        if isinstance(found, Directory):
            # Always the same: its names are looked for while it is read, and tar(1) fails where it changes meanwhile.
            start, mode = self._times.start, stat.S_IFDIR | (0o700 if found.private else 0o755)
            return self._stat(self._inodes.number(found.path), mode, 0, start, start, links=2)
        expired = self._expire(path)
        held = self._held_by_caller(path)
        if held is not None or found.listed:
            # This program's alone: what it is answered after that the kernel tells it, and does not keep.
            expired.wait(EXPIRE_SECONDS)
        if held is not None:
            return held.attributes
        try:
            content = found.content
        except Forbidden:
            content = b""  # open(2) says EACCES; `ls -l` can still show it beside the others
        return self._attributes(found, content)

    def readdir(self, path: str, plus: bool) -> list[Listed]:
        shown = []
        base = path.rstrip("/")
        entries = self._tree.entries(path)
        self._note_arrivals(base, frozenset(name for name, is_directory in entries if not is_directory))
        for name, is_directory in entries:
            kind = stat.S_IFDIR if is_directory else stat.S_IFREG
            inode = self._inodes.number if is_directory else self._inode
            shown.append(Listed(name, kind, inode(f"{base}/{name}")))
        return shown

    def open(self, path: str, flags: int, pid: int) -> Opened:
        found = self._tree.look(path)
        if flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY:
            refuse_change()
        if isinstance(found, Directory):
            raise OSError(errno.EISDIR, "is a directory")
        number, content = next(self._numbers), found.content
        opener = process_of(pid)
        snapshot = _Snapshot(path, opener, content, self._attributes(found, content))
        with self._lock:
            self._open[number] = snapshot
            self._held.setdefault(path, []).append(number)
        self._expire(path).wait(EXPIRE_SECONDS)
        return Opened(number, direct=True)

    def read(self, fh: int, size: int, offset: int) -> bytes:
        return self._snapshot(fh).content[offset : offset + size]

    def release(self, fh: int) -> None:
        with self._lock:
            found = self._open.pop(fh, None)
            if found is not None:
                held = self._held[found.path]
                held.remove(fh)
                if not held:
                    del self._held[found.path]

    def key_of(self, fh: int) -> str:
        return self._snapshot(fh).path

    def shown(self, path: str) -> str:
        return self._tree.shown(path)

    def _held_by_caller(self, path: str) -> Optional[_Snapshot]:
        """What the program that asks has open of a file; what it opened last, where that is several."""
        with self._lock:
            held = [self._open[number] for number in self._held.get(path, ())]
        caller = self._caller() if held else 0
        if not caller:  # 0 stands for all processes of other PID namespaces
            return None
        process = process_of(caller)
        return next((each for each in reversed(held) if each.opener == process), None)

    def _snapshot(self, fh: int) -> _Snapshot:
        found = self._open.get(fh)
        if found is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return found

    def _attributes(self, document: Document, content: bytes) -> Attributes:
        path, mode = document.path, stat.S_IFREG | (0o400 if document.private else 0o444)
        if document.live:
            now = time.time_ns()
            return self._stat(self._inodes.number(path), mode, len(content), now, now)
        if document.listed:  # it may be older than what others have seen: that is no change back
            mtime, ctime = self._times.get(path)
        else:
            mtime, ctime = self._times.seen(path, content)
        return self._stat(self._inode(path), mode, len(content), mtime, ctime)

    def _note_arrivals(self, path: str, names: frozenset[str]) -> None:
        """Files that were not there when their directory was last listed begin now: `ls -t` shows what failed last."""
        with self._lock:
            before = self._listed.get(path)
            self._listed[path] = names
        for name in names - before if before is not None else ():
            self._times.touch(f"{path}/{name}")

    def _inode(self, path: str) -> int:
        """A file with another content is another file, so that `tail -F` begins anew with it."""
        mtime, _ = self._times.get(path)
        return self._inodes.number(path if mtime == self._times.start else f"{path}\0{mtime}")

    def _stat(self, inode: int, mode: int, size: int, mtime: int, ctime: int, links: int = 1) -> Attributes:
        return Attributes(inode, mode, size, mtime, ctime, links, self._owner.uid, self._owner.gid)
