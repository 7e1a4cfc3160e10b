"""The floor: a file system in memory, over the binding and the options that a mount of consulfs has.

    python benchmarks/floor.py MOUNTPOINT DIRECTORIES FILES SIZE

What it costs is the kernel's, libfuse's and the binding's. No mount that Python serves can be faster, so this is what
consulfs is measured by. It knows all of its content, tells the kernel to keep names and attributes for a second, and
to keep the pages of a file that has not changed since they were read.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import sys
import time
from typing import Optional

from trees import Tree

from consulfs import binding
from consulfs.daemon import mount_options
from consulfs.filesystem.branch import NOW, Attributes, Listed, Opened
from consulfs.options import parse
from consulfs.source import Source

KEPT_SECONDS = 1.0


class Node:
    """A file or directory.

    :ivar content: of a file
    :ivar entries: of a directory
    """

    numbers = itertools.count(1)

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.inode = next(self.numbers)
        self.content = bytearray()
        self.entries: dict[str, Node] = {}
        self.mtime = time.time_ns()
        self.version = 0  # counts changes of the content
        self.opened = -1  # the version when it was last opened: what the kernel's pages are of

    def changed(self) -> None:
        self.version += 1
        self.mtime = time.time_ns()


class Memory:
    """What the binding asks of a file system, answered from a tree of nodes."""

    offers_locks = True
    attr_timeout = KEPT_SECONDS

    def __init__(self) -> None:
        self._root = Node(stat.S_IFDIR)
        self._open: dict[int, Node] = {}
        self._numbers = itertools.count(1)
        self._owner = os.getuid(), os.getgid()

    def begin(self) -> None:
        """An operation starts."""

    def failed(self, operation: str, code: int) -> None:
        """An operation was answered with an errno."""

    def destroy(self) -> None:
        """The mount ends."""

    def key_of(self, fh: int) -> str:
        return str(fh)

    def shown(self, path: str) -> str:
        return path

    # -- names and attributes --------------------------------------------------------------------------------

    def getattr(self, path: Optional[str], fh: Optional[int]) -> Attributes:
        return self._attributes(self._open[fh] if fh is not None else self._at(path or "/"))

    def readdir(self, path: str, plus: bool) -> list[Listed]:
        return [
            Listed(name, node.kind, node.inode, self._attributes(node) if plus else None)
            for name, node in list(self._at(path).entries.items())
        ]

    def statfs(self) -> dict[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_namemax": 255}

    def chmod(self, path: Optional[str]) -> None:
        """Modes are not kept, as consulfs keeps none."""

    def utimens(self, path: Optional[str], fh: Optional[int], mtime: Optional[int]) -> None:
        node = self._open[fh] if fh is not None else self._at(path or "/")
        if mtime is not None:
            node.mtime = time.time_ns() if mtime == NOW else mtime

    # -- making and removing ---------------------------------------------------------------------------------

    def mkdir(self, path: str) -> None:
        self._add(path, Node(stat.S_IFDIR))

    def rmdir(self, path: str) -> None:
        if self._at(path).entries:
            raise OSError(errno.ENOTEMPTY, path)
        self.unlink(path)

    def unlink(self, path: str) -> None:
        folder, _, name = path.rpartition("/")
        del self._at(folder).entries[name]

    # -- open files ------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int, pid: int) -> Opened:
        node = self._at(path)
        if flags & os.O_TRUNC:
            self._resize(node, 0)
        return self._opened(node)

    def create(self, path: str, flags: int, pid: int) -> Opened:
        node = Node(stat.S_IFREG)
        self._add(path, node)
        return self._opened(node)

    def read(self, fh: int, size: int, offset: int) -> bytes:
        return bytes(self._open[fh].content[offset : offset + size])

    def write(self, fh: int, data: bytes, offset: int, append: bool) -> int:
        node = self._open[fh]
        begin = len(node.content) if append else offset
        if begin > len(node.content):
            self._resize(node, begin)
        node.content[begin : begin + len(data)] = data
        node.changed()
        return len(data)

    def truncate(self, path: Optional[str], size: int, fh: Optional[int], pid: int) -> None:
        self._resize(self._open[fh] if fh is not None else self._at(path or "/"), size)

    def flush(self, fh: int, pid: int) -> None:
        """Nothing is held back."""

    def fsync(self, fh: int) -> None:
        """Nothing is held back."""

    def release(self, fh: int) -> None:
        del self._open[fh]

    def unlock_closed(self, fh: int, owner: int) -> None:
        """libfuse asks for it at each close; nothing is locked."""

    # -- extended attributes ---------------------------------------------------------------------------------

    def getxattr(self, path: str, name: str) -> bytes:
        raise OSError(errno.ENODATA, name)

    def listxattr(self, path: str) -> list[str]:
        return []

    # -- helpers ---------------------------------------------------------------------------------------------

    def _at(self, path: str) -> Node:
        node = self._root
        for name in path.split("/"):
            if name:
                found = node.entries.get(name)
                if found is None:
                    raise OSError(errno.ENOENT, path)
                node = found
        return node

    def _attributes(self, node: Node) -> Attributes:
        mode, links = (0o600, 1) if node.kind == stat.S_IFREG else (0o700, 2)
        size, mtime = len(node.content), node.mtime
        return Attributes(node.inode, node.kind | mode, size, mtime, mtime, links, *self._owner)

    def _add(self, path: str, node: Node) -> None:
        folder, _, name = path.rpartition("/")
        if self._at(folder).entries.setdefault(name, node) is not node:
            raise OSError(errno.EEXIST, path)

    def _opened(self, node: Node) -> Opened:
        keep, node.opened = node.opened == node.version, node.version
        number = next(self._numbers)
        self._open[number] = node
        return Opened(number, keep=keep)

    def _resize(self, node: Node, size: int) -> None:
        del node.content[size:]
        node.content.extend(bytes(size - len(node.content)))
        node.changed()


def planted(tree: Tree) -> Memory:
    """A file system that holds a tree."""
    memory = Memory()
    if tree.directories:
        memory.mkdir("/" + next(tree.folders()).partition("/")[0])
    for folder in tree.folders():
        memory.mkdir("/" + folder)
    for path in tree.paths():
        opened = memory.create("/" + path, 0, 0)
        memory.write(opened.number, tree.content, 0, False)
        memory.release(opened.number)
    return memory


def main() -> None:
    mountpoint, *numbers = sys.argv[1:]
    options = mount_options(Source("http", "floor", None), parse([], {}))
    options["subtype"] = "floor"
    memory = planted(Tree(*map(int, numbers)))
    binding.serve(memory, mountpoint, options, lambda: None)  # type: ignore[arg-type]  # it answers as a Filesystem does


if __name__ == "__main__":
    main()
