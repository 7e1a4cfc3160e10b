"""The KV store as a branch: directories and files made of keys."""

from __future__ import annotations

import errno
import logging
import os
import stat
from typing import Callable, NamedTuple, Optional, Union

from consulfs.consulate import ConsulateException, Record
from consulfs.errors import OutOfTime, Unlogged
from consulfs.filesystem.branch import NOW, Attributes, Branch, Listed, Opened, Owner
from consulfs.filesystem.kernel import Asked, Kernel, Version
from consulfs.store.ephemeral import Ephemeral
from consulfs.store.inodes import Inodes
from consulfs.store.locks import Locks
from consulfs.store.locktable import END, Claim, LockOwner
from consulfs.store.node import Node, version_of
from consulfs.store.openfiles import Handle, OpenFiles
from consulfs.store.patience import Patience
from consulfs.store.times import Times
from consulfs.tree import attributes
from consulfs.tree.kv import Directory, Entry, File, KVTree

log = logging.getLogger(__name__)

RENAME_NOREPLACE = 1

REVISED_SECONDS = 1.0
"""For so long is asked whether an open file has changed; a program reads on in what it has where nobody answers."""

MADE, SMALL = 1 << 11, 1 << 12
"""Files whose attributes are remembered, and the bytes that one may have: what they were made of is held, too."""


class _Made(NamedTuple):
    """The attributes of a file, and what they were made of: they are the same while that is.

    :ivar changes: so many times any of the times and the inode numbers had changed by then
    """

    record: Record
    content: Union[bytes, bytearray]
    changes: int
    version: Version
    attributes: Attributes


# The kernel asks for these around every write, open and ls: the answer needs no look at the key.
_NEVER_SET = ("security.", "system.", "trusted.")


class KVBranch(Branch):
    """The keys of one datacenter.

    :param kernel: what the kernel was told
    :param caller: tells for which program's thread the present operation is
    :param expire: has it forget what it holds of open files, one of which was locked; returns when it has
    :param forget_gone: has it forget the attributes of files that are gone; returns when it has
    :param has_locks: whether flock and fcntl can lock a file
    :param has_sessions: whether a key can end with this mount
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
        kernel: Kernel,
        caller: Callable[[], int],
        expire: Callable[[list[Node], Node], None],
        forget_gone: Callable[[list[str]], None],
        read_only: bool = False,
        exclusive_at_close: bool = False,
        has_locks: bool = True,
        has_sessions: bool = True,
    ) -> None:
        self._tree = tree
        self._files = files
        self._locks = locks
        self._ephemeral = ephemeral
        self._has_locks = has_locks
        self._has_sessions = has_sessions
        self._times = times
        self._inodes = inodes
        self._patience = patience
        self._owner = owner
        self._kernel = kernel
        self._caller = caller
        self._expire = expire
        self._forget_gone = forget_gone
        self._read_only = read_only
        self._file_mode = stat.S_IFREG | (0o666 & ~owner.umask)
        self._made: dict[str, _Made] = {}
        self._exclusive_at_close = exclusive_at_close

    # -- names and attributes --------------------------------------------------------------------------------

    def getattr(self, path: Optional[str], fh: Optional[int]) -> Attributes:
        if fh is not None or path is None:
            return self._attributes_of_handle(fh or 0)
        try:
            found = self.look(path)
        except FileNotFoundError:
            if self._looks_again(path):
                raise OSError(errno.ESTALE, "deleted by another host") from None
            self._has_looked(path)
            raise
        self._has_looked(path)
        return found

    def look(self, path: str) -> Attributes:
        """What is there."""
        found = self._tree.lookup(path)
        if found is None:
            raise OSError(errno.ENOENT, "no such key or prefix")
        return self._attributes(found, path)

    def _looks_again(self, path: str) -> bool:
        """Whether a program is to look again, once: another host has deleted a file whose name the kernel has. Told
        ENOENT at once by the look at its rights, open(2) would not create it (measured); it is told so the next time.
        """
        try:
            spot = self._tree.locate(path)
        except OSError:
            return False
        loses = spot is not None and self._kernel.loses(spot.key, path)
        return loses and self._kernel.send_back(path, self._caller(), Asked.LOOK)

    def _has_looked(self, path: str) -> None:
        if self._kernel.waits:
            self._kernel.arrives(path, self._caller(), Asked.LOOK)

    def readdir(self, path: str, plus: bool) -> list[Listed]:
        shown, names = [], self._tree.names_in(path, plus)
        gone = self._kernel.gone_from(path, [name for name, _, _ in names])
        if gone:
            self._forget_gone(gone)
        for name, spot, is_directory in names:
            found = None if is_directory or not plus else self._tree.known_file(spot)
            if found is not None:
                attributes = self._attributes(found, f"{path.rstrip('/')}/{name}")
                shown.append(Listed(name, stat.S_IFREG, attributes.inode, attributes))
            else:
                inode = self._inodes.number(spot.prefix if is_directory else spot.key)
                shown.append(Listed(name, stat.S_IFDIR if is_directory else stat.S_IFREG, inode))
        return shown

    def chmod(self, path: str) -> None:
        """Consul stores no modes and owners. Accepted, so that cp -a, tar and git go on; nothing changes."""
        self._check_writable()
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
        self._kernel.loses(self._tree.remove_file(path))

    def rename(self, old: str, new: str, flags: int) -> None:
        if flags & ~RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, "names cannot be exchanged")
        self._check_writable()
        self._kernel.renames()
        self._tree.rename(old, new, keep_target=bool(flags & RENAME_NOREPLACE))

    def mknod(self, path: str, mode: int, pid: int) -> None:
        if not stat.S_ISREG(mode):
            raise OSError(errno.EPERM, "Consul holds values, no devices, pipes or sockets")
        handle = self._files.handle(self.create(path, os.O_WRONLY | os.O_EXCL, pid).number)
        try:
            self._files.fsync(handle)
        finally:
            self._files.release(handle)

    # -- open files ------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int, pid: int) -> Opened:
        try:
            handle = self._open(path, flags, pid)
        except OSError as error:
            if error.errno == errno.ESTALE and not self._kernel.send_back(path, pid, Asked.OPEN):
                raise OSError(errno.ENOENT, "deleted by another host, while the kernel looked") from error
            raise
        key = handle.node.key
        with handle.node.state:
            version = handle.node.opened_version
        reads = flags & os.O_ACCMODE != os.O_WRONLY and not flags & os.O_TRUNC
        behind = reads and version is not None and self._kernel.is_behind(key, version)
        if behind and self._kernel.send_back(path, pid, Asked.OPEN):
            self._files.detach(handle)
            raise OSError(errno.ESTALE, "changed by another host: the kernel looks at its size anew")
        self._kernel.arrives(path, pid, *Asked)
        # One that was sent back before and changed again meanwhile is read past the kernel, whatever size it has.
        return Opened(handle.number, direct=behind, keep=self._kernel.opens(path, key, version))

    def _open(self, path: str, flags: int, pid: int) -> Handle:
        """A new handle; ESTALE where another host has deleted a name that the kernel still has: it looks again, and
        creates it, if it may."""
        entry = self._tree.lookup(path)
        if not isinstance(entry, File):
            raise OSError(errno.ESTALE, "deleted by another host")
        if flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY:
            self._check_writable()
            self._tree.check_writable(entry.key)
        return self._files.open(entry.key, flags, pid, entry.record)

    def create(self, path: str, flags: int, pid: int) -> Opened:
        self._check_writable()
        spot = self._tree.place_for_file(path)
        self._tree.check_writable(spot.key)
        handle = self._files.create(spot.key, flags, pid, self._exclusive_at_close)
        self._kernel.arrives(path, pid, *Asked)
        self._kernel.forget(spot.key)
        self._tree.file_made(spot)
        return Opened(handle.number)

    def read(self, fh: int, size: int, offset: int) -> bytes:
        return self._files.read(self._files.handle(fh), size, offset)

    def write(self, fh: int, data: bytes, offset: int, append: bool) -> int:
        handle = self._files.handle(fh)
        self._kernel.forget(handle.node.key)
        return self._files.write(handle, data, offset, append)

    def write_page(self, fh: int, page: bytes, offset: int) -> int:
        handle = self._files.handle(fh)
        self._kernel.forget(handle.node.key)
        return self._files.write_page(handle, page, offset)

    def truncate(self, path: Optional[str], size: int, fh: Optional[int], pid: int) -> None:
        self._check_writable()
        if fh is not None:
            handle = self._files.handle(fh)
            self._kernel.forget(handle.node.key)
            self._files.truncate(handle, size)
            return
        entry = self._tree.file(path or "/")
        self._kernel.forget(entry.key)
        self._tree.check_writable(entry.key)
        self._files.truncate_now(entry.key, size, pid)

    def flush(self, fh: int, pid: int) -> None:
        self._files.flush(self._files.handle(fh), pid)

    def fsync(self, fh: int) -> None:
        handle = self._files.handle(fh)
        self._files.fsync(handle)
        if handle.node.take_merged():
            # The kernel has the size that it reckoned, and would cut what the program has just stored.
            self._expire([handle.node], handle.node)

    def release(self, fh: int) -> None:
        handle = self._files.handle(fh)
        try:
            self._files.store_rest(handle)
            self._locks.closed(handle)
        finally:
            self._files.detach(handle)

    def destroy(self) -> None:
        self._files.store_all()
        self._patience.begin()
        self._locks.end()
        self._patience.begin_last()
        self._ephemeral.end()

    def key_of(self, fh: int) -> str:
        return self._files.handle(fh).node.key

    # -- locks -----------------------------------------------------------------------------------------------

    def flock(self, fh: int, exclusive: Optional[bool], wait: bool, pid: int) -> None:
        handle = self._files.handle(fh)
        self._lock(handle, LockOwner(False, handle.number), exclusive, 0, END, wait, pid)

    def setlk(self, fh: int, owner: int, exclusive: Optional[bool], start: int, end: int, wait: bool, pid: int) -> None:
        self._lock(self._files.handle(fh), LockOwner(True, owner), exclusive, start, end, wait, pid)

    def unlock_closed(self, fh: int, owner: int) -> None:
        if not self._locks.is_idle:  # every close(2) comes here
            self._locks.release(self._files.handle(fh), LockOwner(True, owner), closing=True)

    def getlk(self, fh: int, owner: int, exclusive: bool, start: int, end: int) -> Optional[Claim]:
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
        held = self._files.held_by_kernel()
        if held:
            self._expire(held, handle.node)

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
        if name == attributes.EPHEMERAL and not self._has_sessions:
            raise OSError(errno.ENOTSUP, "a session belongs to a node, and this mount has none in that datacenter")
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

    def _attributes(self, entry: Entry, path: str = "") -> Attributes:
        if isinstance(entry, Directory):
            if path.strip("/"):  # the root is in no listing
                self._kernel.tell(entry.prefix, None, path)
            mtime, ctime = self._times.get(entry.prefix)
            mode = stat.S_IFDIR | (0o777 & ~self._owner.umask)
            return self._stat(entry.prefix, mode, 0, mtime, ctime, links=2)
        key, node, record = entry
        content: Union[bytes, bytearray] = record.value if record is not None else b""
        unsaved, version = False, None
        if node is not None:
            with node.state:
                (content, version), unsaved = node.tell(), node.unsaved
        if unsaved or record is None:
            self._kernel.tell(key, version, path)
            mtime, ctime = self._times.get(key)
            return self._stat(key, self._file_mode, len(content), mtime, ctime)
        made = self._made.get(key)
        changes = self._times.changes + self._inodes.changes
        if made is None or made.record is not record or made.content is not content or made.changes != changes:
            mtime, ctime = self._times.seen(key, (record.value, record.flags))
            found = self._stat(key, self._file_mode, len(content), mtime, ctime)
            made = _Made(record, content, changes, version_of(record), found)
            if len(content) <= SMALL:
                if len(self._made) >= MADE:
                    self._made.clear()
                self._made[key] = made
        self._kernel.tell(key, made.version if node is None else version, path)
        return made.attributes

    def _attributes_of_handle(self, fh: int) -> Attributes:
        node = self._files.handle(fh).node
        if not (node.unsaved or node.gone):
            self._patience.begin(REVISED_SECONDS)
            try:
                self._files.revise(node)
            except (ConsulateException, OutOfTime) as error:
                log.debug("%r is shown as it was: %s", node.key, error)
            self._patience.begin()
        return self._attributes(File(node.key, node, node.base))

    def _stat(self, key: str, mode: int, size: int, mtime: int, ctime: int, links: int = 1) -> Attributes:
        owner = self._owner
        return Attributes(self._inodes.number(key), mode, size, mtime, ctime, links, owner.uid, owner.gid)
