"""The operations of a mounted file system, each in the terms of paths and handles. Thin: what a path means is the
tree's business, what a file holds the store's."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import Optional

from consulfs.errors import Unlogged
from consulfs.store.ephemeral import Ephemeral
from consulfs.store.inodes import Inodes
from consulfs.store.locks import Locks
from consulfs.store.locktable import END, Claim, LockOwner
from consulfs.store.openfiles import Handle, OpenFiles
from consulfs.store.patience import Patience
from consulfs.store.times import Times
from consulfs.tree import attributes
from consulfs.tree.kv import Directory, Entry, File, KVTree
from consulfs.tree.spot import name_of

BLOCK = 4096

RENAME_NOREPLACE = 1

NOW = -1
"""A time for utimens: the moment of the call."""

# The kernel asks for these around every write, open and ls: the answer needs no look at the key.
_NEVER_SET = ("security.", "system.", "trusted.")


@dataclass(frozen=True)
class Attributes:
    """What stat(2) tells; times in nanoseconds."""

    inode: int
    mode: int
    size: int
    mtime: int
    ctime: int
    links: int
    uid: int
    gid: int


@dataclass(frozen=True)
class Owner:
    """Whom files belong to and what is masked from their mode: Consul stores neither."""

    uid: int
    gid: int
    umask: int


class Filesystem:
    """One mount.

    :param lock_mode: "consul", "local" or "off", as the option `locks=`
    :ivar offers_locks: whether the kernel is to ask here for locks; else it keeps them itself, for this mount alone
    """

    def __init__(
        self,
        tree: KVTree,
        files: OpenFiles,
        locks: Locks,
        ephemeral: Ephemeral,
        times: Times,
        inodes: Inodes,
        patience: Patience,
        owner: Owner,
        read_only: bool = False,
        exclusive_at_close: bool = False,
        lock_mode: str = "consul",
    ) -> None:
        self._tree = tree
        self._files = files
        self._locks = locks
        self._ephemeral = ephemeral
        self._has_locks = lock_mode != "off"
        self.offers_locks = lock_mode != "local"
        self._times = times
        self._inodes = inodes
        self._patience = patience
        self._owner = owner
        self._read_only = read_only
        self._exclusive_at_close = exclusive_at_close

    def begin(self) -> None:
        """An operation starts on this thread: its time runs from here."""
        self._patience.begin()

    # -- names and attributes --------------------------------------------------------------------------------

    def getattr(self, path: Optional[str], fh: Optional[int]) -> Attributes:
        if fh is not None or path is None:
            return self._attributes_of_handle(fh or 0)
        return self._attributes(self._tree.existing(path))

    def readdir(self, path: str) -> list[tuple[str, int, int]]:
        """The (name, type bits, inode) of what a directory holds."""
        prefix = self._tree.directory(path).prefix
        shown = []
        for spot, is_directory in self._tree.entries(prefix):
            kind = stat.S_IFDIR if is_directory else stat.S_IFREG
            inode = self._inodes.number(spot.prefix if is_directory else spot.key)
            shown.append((name_of(spot, self._tree.root), kind, inode))
        return shown

    def statfs(self) -> dict[str, int]:
        """A key-value store has no size that anyone can tell: what is free is a number that no tool finds small."""
        blocks = (1 << 40) // BLOCK
        return {
            "f_bsize": BLOCK,
            "f_frsize": BLOCK,
            "f_blocks": blocks,
            "f_bfree": blocks,
            "f_bavail": blocks,
            "f_files": 1 << 32,
            "f_ffree": 1 << 32,
            "f_favail": 1 << 32,
            "f_namemax": 255,
        }

    def chmod(self, path: Optional[str]) -> None:
        """Consul stores no modes and owners. Accepted, so that cp -a, tar and git go on; nothing changes."""
        self._check_writable()
        if path is not None:
            self._tree.existing(path)

    def utimens(self, path: Optional[str], fh: Optional[int], mtime: Optional[int]) -> None:
        """Remember a time of modification for the life of this mount.

        :param mtime: nanoseconds, `NOW`, or None to leave it
        """
        self._check_writable()
        if path is None:
            key = self._files.handle(fh or 0).node.key
        else:
            entry = self._tree.existing(path)
            key = entry.key if isinstance(entry, File) else entry.prefix
        if mtime == NOW:
            self._times.touch_now(key)
        else:
            self._times.set(key, mtime)

    # -- making and removing ---------------------------------------------------------------------------------

    def mkdir(self, path: str) -> None:
        self._check_writable()
        self._tree.make_directory(path)

    def rmdir(self, path: str) -> None:
        self._check_writable()
        self._tree.remove_directory(path)

    def unlink(self, path: str) -> None:
        self._check_writable()
        self._tree.remove_file(path)

    def rename(self, old: str, new: str, flags: int) -> None:
        if flags & ~RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, "names cannot be exchanged")
        self._check_writable()
        self._tree.rename(old, new, keep_target=bool(flags & RENAME_NOREPLACE))

    def mknod(self, path: str, mode: int, pid: int) -> None:
        if not stat.S_ISREG(mode):
            raise OSError(errno.EPERM, "Consul holds values, no devices, pipes or sockets")
        handle = self._files.handle(self.create(path, os.O_WRONLY | os.O_EXCL, pid))
        try:
            self._files.fsync(handle)
        finally:
            self._files.release(handle)

    # -- open files ------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int, pid: int) -> int:
        entry = self._tree.lookup(path)
        if isinstance(entry, Directory):
            raise OSError(errno.EISDIR, "is a directory")
        if entry is None:
            # Another host deleted it under a name that the kernel still has: it looks again, and creates.
            raise OSError(errno.ESTALE, "deleted by another host")
        if flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY:
            self._check_writable()
            self._tree.check_writable(entry.key)
        return self._files.open(entry.key, flags, pid).number

    def create(self, path: str, flags: int, pid: int) -> int:
        self._check_writable()
        spot = self._tree.place_for_file(path)
        self._tree.check_writable(spot.key)
        handle = self._files.create(spot.key, flags, pid, self._exclusive_at_close)
        self._tree.file_made(spot)
        return handle.number

    def read(self, fh: int, size: int, offset: int) -> bytes:
        return self._files.read(self._files.handle(fh), size, offset)

    def write(self, fh: int, data: bytes, offset: int, append: bool) -> int:
        return self._files.write(self._files.handle(fh), data, offset, append)

    def truncate(self, path: Optional[str], size: int, fh: Optional[int], pid: int) -> None:
        self._check_writable()
        if fh is not None:
            self._files.truncate(self._files.handle(fh), size)
            return
        entry = self._tree.file(path or "/")
        self._tree.check_writable(entry.key)
        self._files.truncate_now(entry.key, size, pid)

    def flush(self, fh: int, pid: int) -> None:
        self._files.flush(self._files.handle(fh), pid)

    def fsync(self, fh: int) -> None:
        self._files.fsync(self._files.handle(fh))

    def release(self, fh: int) -> None:
        handle = self._files.handle(fh)
        try:
            self._files.store_rest(handle)
            self._locks.closed(handle)
        finally:
            self._files.detach(handle)

    def destroy(self) -> None:
        """The mount ends: nothing comes after this."""
        self._files.store_all()
        self._patience.begin()
        self._locks.end()
        self._patience.begin_last()
        self._ephemeral.end()

    def key_of(self, fh: int) -> str:
        """The key of an open file, for the log."""
        return self._files.handle(fh).node.key

    # -- locks -----------------------------------------------------------------------------------------------

    def flock(self, fh: int, exclusive: Optional[bool], wait: bool, pid: int) -> None:
        """Lock a file for an open file description.

        :param exclusive: LOCK_EX, else LOCK_SH; None: LOCK_UN
        """
        handle = self._files.handle(fh)
        self._lock(handle, LockOwner(False, handle.number), exclusive, 0, END, wait, pid)

    def setlk(self, fh: int, owner: int, exclusive: Optional[bool], start: int, end: int, wait: bool, pid: int) -> None:
        """Lock a range for a process: F_SETLK and F_SETLKW.

        :param owner: the kernel's number for the process' descriptors
        :param exclusive: F_WRLCK, else F_RDLCK; None: F_UNLCK
        """
        self._lock(self._files.handle(fh), LockOwner(True, owner), exclusive, start, end, wait, pid)

    def unlock_closed(self, fh: int, owner: int) -> None:
        """A process has closed a descriptor of a file: none of its fcntl locks on it is left (fcntl(2))."""
        self._locks.release(self._files.handle(fh), LockOwner(True, owner), closing=True)

    def getlk(self, fh: int, owner: int, exclusive: bool, start: int, end: int) -> Optional[Claim]:
        """The lock that would keep a range from being locked: F_GETLK."""
        handle = self._files.handle(fh)
        claim = Claim(LockOwner(True, owner), exclusive, handle.number, 0, start, end)
        return self._locks.conflict(handle, claim) if self._has_locks else None

    def _lock(
        self, handle: Handle, owner: LockOwner, exclusive: Optional[bool], start: int, end: int, wait: bool, pid: int
    ) -> None:
        if exclusive is None:
            self._locks.release(handle, owner, start, end)
            return
        if not self._has_locks:
            raise Unlogged(errno.ENOLCK, "mounted with -o locks=off")
        if exclusive:
            self._check_writable()
        self._locks.acquire(handle, Claim(owner, exclusive, handle.number, pid, start, end), wait)

    # -- extended attributes ---------------------------------------------------------------------------------

    def getxattr(self, path: str, name: str) -> bytes:
        if name.startswith(_NEVER_SET):
            raise OSError(attributes.ABSENT, "no such attribute")
        return attributes.get(self._tree.existing(path), name, self._ephemeral)

    def listxattr(self, path: str) -> list[str]:
        return attributes.listed(self._tree.existing(path))

    def setxattr(self, path: str, name: str, value: bytes, options: int, pid: int) -> None:
        self._check_writable()
        entry = self._tree.existing(path)
        if isinstance(entry, File):
            self._tree.check_writable(entry.key)
        attributes.set(entry, name, value, options, self._files, self._ephemeral, pid)

    def removexattr(self, path: str, name: str, pid: int) -> None:
        self._check_writable()
        entry = self._tree.existing(path)
        if isinstance(entry, File):
            self._tree.check_writable(entry.key)
        attributes.remove(entry, name, self._files, self._ephemeral, pid)

    # -- helpers ---------------------------------------------------------------------------------------------

    def _check_writable(self) -> None:
        if self._read_only:
            raise OSError(errno.EROFS, "mounted with -o ro")

    def _attributes(self, entry: Entry) -> Attributes:
        if isinstance(entry, Directory):
            mtime, ctime = self._times.get(entry.prefix)
            mode = stat.S_IFDIR | (0o777 & ~self._owner.umask)
            return self._stat(entry.prefix, mode, 0, mtime, ctime, links=2)
        node, record = entry.node, entry.record
        if node is not None:
            with node.state:
                size, unsaved = len(node.content), node.unsaved
        else:
            size, unsaved = len(record.value) if record else 0, False
        if unsaved or record is None:
            mtime, ctime = self._times.get(entry.key)
        else:
            mtime, ctime = self._times.seen(entry.key, (record.value, record.flags), record.modify_index)
        return self._stat(entry.key, stat.S_IFREG | (0o666 & ~self._owner.umask), size, mtime, ctime)

    def _attributes_of_handle(self, fh: int) -> Attributes:
        node = self._files.handle(fh).node
        self._files.renew(node)
        return self._attributes(File(node.key, node, node.base))

    def _stat(self, key: str, mode: int, size: int, mtime: int, ctime: int, links: int = 1) -> Attributes:
        owner = self._owner
        return Attributes(self._inodes.number(key), mode, size, mtime, ctime, links, owner.uid, owner.gid)
