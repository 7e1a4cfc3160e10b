"""What every branch of a mount answers to. As it stands here, a branch can be read and nothing else."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, Optional

from consulfs.errors import Unlogged
from consulfs.store.locktable import Claim

NOW = -1
"""A time for utimens: the moment of the call."""


@dataclass
class Attributes:
    """What stat(2) tells; times in nanoseconds. Not changed once it is made.

    :ivar packed: what the binding has made of it: the next one who asks is given the same
    """

    inode: int
    mode: int
    size: int
    mtime: int
    ctime: int
    links: int
    uid: int
    gid: int
    packed: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Owner:
    """Whom files belong to and what is masked from their mode: Consul stores neither."""

    uid: int
    gid: int
    umask: int


class Listed(NamedTuple):
    """What a directory holds.

    :ivar kind: the type's bits of the mode
    :ivar attributes: where they are known: the kernel then need not ask for them
    """

    name: str
    kind: int
    inode: int
    attributes: Optional[Attributes] = None


class Opened(NamedTuple):
    """An open file.

    :ivar number: its handle
    :ivar direct: each handle has a content of its own, so the kernel is to keep no pages of the file
    :ivar keep: the pages that the kernel has of the file are those of this content
    """

    number: int
    direct: bool = False
    keep: bool = False


def refuse_change() -> NoReturn:
    """What can only be read is not changed."""
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


class Branch:
    """Paths begin at the branch's own root, handles are its own numbers."""

    # -- names and attributes --------------------------------------------------------------------------------

    def getattr(self, path: Optional[str], fh: Optional[int]) -> Attributes:
        raise NotImplementedError

    def readdir(self, path: str, plus: bool) -> list[Listed]:
        """What a directory holds.

        :param plus: whether the kernel takes attributes along
        """
        raise NotImplementedError

    def chmod(self, path: str) -> None:
        refuse_change()

    def utimens(self, path: Optional[str], fh: Optional[int], mtime: Optional[int]) -> None:
        """Set the time of modification.

        :param mtime: nanoseconds, `NOW`, or None to leave it
        """
        refuse_change()

    # -- making and removing ---------------------------------------------------------------------------------

    def mkdir(self, path: str) -> None:
        refuse_change()

    def rmdir(self, path: str) -> None:
        refuse_change()

    def unlink(self, path: str) -> None:
        refuse_change()

    def rename(self, old: str, new: str, flags: int) -> None:
        refuse_change()

    def mknod(self, path: str, mode: int, pid: int) -> None:
        refuse_change()

    # -- open files ------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int, pid: int) -> Opened:
        raise NotImplementedError

    def create(self, path: str, flags: int, pid: int) -> Opened:
        refuse_change()

    def read(self, fh: int, size: int, offset: int) -> bytes:
        raise NotImplementedError

    def write(self, fh: int, data: bytes, offset: int, append: bool) -> int:
        refuse_change()

    def write_page(self, fh: int, page: bytes, offset: int) -> int:
        """A part of a file that a program has changed in memory, with what stands around it."""
        refuse_change()

    def truncate(self, path: Optional[str], size: int, fh: Optional[int], pid: int) -> None:
        refuse_change()

    def fallocate(self, fh: int) -> None:
        """Make room for a part of a file: Consul has no such thing, and a program that wants it writes zeros."""
        raise OSError(errno.ENOTSUP, "no room can be kept")

    def flush(self, fh: int, pid: int) -> None:
        """A descriptor is closed: there is nothing to store."""

    def fsync(self, fh: int) -> None:
        """There is nothing to store."""

    def release(self, fh: int) -> None:
        raise NotImplementedError

    def destroy(self) -> None:
        """The mount ends: nothing comes after this."""

    def key_of(self, fh: int) -> str:
        """What an open file is called, for the log."""
        raise NotImplementedError

    def shown(self, path: str) -> str:
        """A path as the log may have it."""
        return path

    # -- locks -----------------------------------------------------------------------------------------------

    def flock(self, fh: int, exclusive: Optional[bool], wait: bool, pid: int) -> None:
        """Lock a file for an open file description.

        :param exclusive: LOCK_EX, else LOCK_SH; None: LOCK_UN
        """
        self._refuse_lock(exclusive)

    def setlk(self, fh: int, owner: int, exclusive: Optional[bool], start: int, end: int, wait: bool, pid: int) -> None:
        """Lock a range for a process: F_SETLK and F_SETLKW.

        :param owner: the kernel's number for the process' descriptors
        :param exclusive: F_WRLCK, else F_RDLCK; None: F_UNLCK
        """
        self._refuse_lock(exclusive)

    def unlock_closed(self, fh: int, owner: int) -> None:
        """A process has closed a descriptor of a file: none of its fcntl locks on it is left (fcntl(2))."""

    def getlk(self, fh: int, owner: int, exclusive: bool, start: int, end: int) -> Optional[Claim]:
        """The lock that would keep a range from being locked: F_GETLK."""
        return None

    @staticmethod
    def _refuse_lock(exclusive: Optional[bool]) -> None:
        if exclusive is not None:
            raise Unlogged(errno.ENOLCK, "no locks here")

    # -- extended attributes ---------------------------------------------------------------------------------

    def getxattr(self, path: str, name: str) -> bytes:
        raise OSError(errno.ENODATA, "no such attribute")

    def listxattr(self, path: str) -> list[str]:
        return []

    def setxattr(self, path: str, name: str, value: bytes, options: int, pid: int) -> None:
        refuse_change()

    def removexattr(self, path: str, name: str, pid: int) -> None:
        refuse_change()
