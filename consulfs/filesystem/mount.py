"""A mount: which branch a path or a handle belongs to."""

from __future__ import annotations

import errno
import threading
from dataclasses import dataclass
from typing import Callable, Optional

from consulfs.consulate import ConsulateException
from consulfs.errors import OutOfTime, Unlogged
from consulfs.filesystem.branch import Attributes, Branch, Listed, Opened, refuse_change
from consulfs.filesystem.replay import Replay
from consulfs.metrics import Metrics
from consulfs.store.locktable import Claim
from consulfs.store.patience import Patience
from consulfs.tree.virtual import DATACENTERS

BLOCK = 4096

_NUMBER_BITS = 48
"""A handle's lower bits are its branch's number for it, the upper ones the branch's place among the branches."""


@dataclass(frozen=True)
class Datacenter:
    """The branches of one datacenter.

    :ivar virtual: None where there are no virtual trees
    :ivar reserved: the names at its root that belong to `virtual`, whether or not they are there
    :ivar is_listed: whether a listing of its root shows them
    :ivar is_read_only: whether its keys are only read
    """

    keys: Branch
    virtual: Optional[Branch]
    reserved: frozenset[str]
    is_listed: bool
    is_read_only: bool

    @property
    def branches(self) -> list[Branch]:
        return [self.keys] if self.virtual is None else [self.keys, self.virtual]

    def branch(self, path: str) -> Branch:
        """Whom a path below this datacenter's root belongs to."""
        if self.virtual is not None and path.split("/", 2)[1] in self.reserved:
            return self.virtual
        return self.keys


class Filesystem:
    """One mount.

    :param home: the datacenter that is mounted
    :param visit: makes the branches of another datacenter; a name comes here only if `home` lists it in `_dc`
    :param lock_mode: "consul", "local" or "off", as the option `locks=`
    :param attr_timeout: seconds for which the kernel may take names and attributes as told
    :param replay: what the helper that repeats the changes of others finds
    :param caller: tells for which program's thread the present operation is
    :param end: ends what runs beside the operations
    :ivar begin: called when an operation starts on a thread: its time runs from there
    :ivar offers_locks: whether the kernel is to ask here for locks; else it keeps them itself, for this mount alone
    """

    def __init__(
        self,
        home: Datacenter,
        visit: Callable[[str], Datacenter],
        patience: Patience,
        metrics: Metrics,
        lock_mode: str = "consul",
        attr_timeout: float = 0.0,
        replay: Optional[Replay] = None,
        caller: Callable[[], int] = lambda: 0,
        end: Callable[[], None] = lambda: None,
    ) -> None:
        self.offers_locks = lock_mode != "local"
        self.attr_timeout = attr_timeout
        self._home = home
        self._visit = visit
        self.begin = patience.begin
        self._patience = patience
        self._metrics = metrics
        self._lock = threading.Lock()  # owns _others, and adding to _branches
        self._others: dict[str, Datacenter] = {}
        self._replay = replay
        self._caller = caller
        self._end = end
        self._branches = home.branches + ([replay] if replay is not None else [])

    def failed(self, operation: str, code: int) -> None:
        """An operation was answered with an errno."""
        self._metrics.failed(operation, code)

    # -- names and attributes --------------------------------------------------------------------------------

    def getattr(self, path: Optional[str], fh: Optional[int]) -> Attributes:
        if fh is not None or path is None:
            branch, number = self._held(fh or 0)
            return branch.getattr(None, number)
        branch, path = self._at(path)
        return branch.getattr(path, None)

    def readdir(self, path: str, plus: bool) -> list[Listed]:
        """What a directory holds; see `Branch.readdir`."""
        datacenter, path = self._find(path)
        shown = datacenter.branch(path).readdir(path, plus)
        if path == "/" and datacenter.virtual is not None and datacenter.is_listed:
            shown = shown + [each for each in datacenter.virtual.readdir("/", plus) if each.name != DATACENTERS]
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
        if path is None:  # an unlinked file, open: there is no mode to change
            return
        branch, path = self._at(path, changes=True)
        branch.chmod(path)

    def utimens(self, path: Optional[str], fh: Optional[int], mtime: Optional[int]) -> None:
        if path is None:
            branch, number = self._held(fh or 0)
            branch.utimens(None, number, mtime)
        else:
            branch, path = self._at(path, changes=True)
            branch.utimens(path, None, mtime)

    # -- making and removing ---------------------------------------------------------------------------------

    def mkdir(self, path: str) -> None:
        branch, path = self._at(path, changes=True)
        branch.mkdir(path)

    def rmdir(self, path: str) -> None:
        branch, path = self._at(path, changes=True)
        branch.rmdir(path)

    def unlink(self, path: str) -> None:
        branch, path = self._at(path, changes=True)
        branch.unlink(path)

    def rename(self, old: str, new: str, flags: int) -> None:
        if self._replay is not None and self._caller() == self._replay.pid:
            refuse_change()
        (here, old), (there, new) = self._find(old), self._find(new)
        source, target = here.branch(old), there.branch(new)
        if source is target:
            source.rename(old, new, flags)
            return
        # After EXDEV mv(1) copies, and removes what it has copied: where it could not do both, it must not begin.
        if source is not here.keys or target is not there.keys or here.is_read_only or there.is_read_only:
            refuse_change()
        if "/" in (old, new):
            raise OSError(errno.EBUSY, "the root of a datacenter")
        raise Unlogged(errno.EXDEV, "the new name is in another datacenter")

    def mknod(self, path: str, mode: int, pid: int) -> None:
        branch, path = self._at(path, changes=True)
        branch.mknod(path, mode, pid)

    # -- open files ------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int, pid: int) -> Opened:
        branch, path = self._at(path, changes=True, caller=pid)
        return self._handed_out(branch, branch.open(path, flags, pid))

    def create(self, path: str, flags: int, pid: int) -> Opened:
        branch, path = self._at(path, changes=True, caller=pid)
        return self._handed_out(branch, branch.create(path, flags, pid))

    def read(self, fh: int, size: int, offset: int) -> bytes:
        branch, number = self._held(fh)
        return branch.read(number, size, offset)

    def write(self, fh: int, data: bytes, offset: int, append: bool) -> int:
        branch, number = self._held(fh)
        return branch.write(number, data, offset, append)

    def write_page(self, fh: int, page: bytes, offset: int) -> int:
        branch, number = self._held(fh)
        return branch.write_page(number, page, offset)

    def truncate(self, path: Optional[str], size: int, fh: Optional[int], pid: int) -> None:
        if fh is not None:
            branch, number = self._held(fh)
            branch.truncate(None, size, number, pid)
        else:
            branch, path = self._at(path or "/", changes=True)
            branch.truncate(path, size, None, pid)

    def fallocate(self, fh: int) -> None:
        branch, number = self._held(fh)
        branch.fallocate(number)

    def flush(self, fh: int, pid: int) -> None:
        branch, number = self._held(fh)
        branch.flush(number, pid)

    def fsync(self, fh: int) -> None:
        branch, number = self._held(fh)
        branch.fsync(number)

    def release(self, fh: int) -> None:
        branch, number = self._held(fh)
        branch.release(number)

    def destroy(self) -> None:
        """The mount ends: nothing comes after this."""
        self._end()
        for branch in self._branches:
            self._patience.begin()
            branch.destroy()

    def key_of(self, fh: int) -> str:
        """The key of an open file, for the log."""
        branch, number = self._held(fh)
        return branch.key_of(number)

    def shown(self, path: str) -> str:
        """A path, or what stands for one, as the log may have it."""
        parts = path.split("/", 3)
        inside = "/" + parts[3] if parts[:2] == ["", DATACENTERS] and len(parts) > 3 else path
        virtual = self._home.virtual
        return path if virtual is None else path[: len(path) - len(inside)] + virtual.shown(inside)

    # -- locks -----------------------------------------------------------------------------------------------

    def flock(self, fh: int, exclusive: Optional[bool], wait: bool, pid: int) -> None:
        branch, number = self._held(fh)
        branch.flock(number, exclusive, wait, pid)

    def setlk(self, fh: int, owner: int, exclusive: Optional[bool], start: int, end: int, wait: bool, pid: int) -> None:
        branch, number = self._held(fh)
        branch.setlk(number, owner, exclusive, start, end, wait, pid)

    def unlock_closed(self, fh: int, owner: int) -> None:
        branch, number = self._held(fh)
        branch.unlock_closed(number, owner)

    def getlk(self, fh: int, owner: int, exclusive: bool, start: int, end: int) -> Optional[Claim]:
        branch, number = self._held(fh)
        return branch.getlk(number, owner, exclusive, start, end)

    # -- extended attributes ---------------------------------------------------------------------------------

    def getxattr(self, path: str, name: str) -> bytes:
        branch, path = self._at(path)
        return branch.getxattr(path, name)

    def listxattr(self, path: str) -> list[str]:
        branch, path = self._at(path)
        return branch.listxattr(path)

    def setxattr(self, path: str, name: str, value: bytes, options: int, pid: int) -> None:
        branch, path = self._at(path, changes=True)
        branch.setxattr(path, name, value, options, pid)

    def removexattr(self, path: str, name: str, pid: int) -> None:
        branch, path = self._at(path, changes=True)
        branch.removexattr(path, name, pid)

    # -- helpers ---------------------------------------------------------------------------------------------

    def _at(self, path: str, changes: bool = False, caller: int = 0) -> tuple[Branch, str]:
        """The branch of a path, and the path there.

        :param changes: something is to be changed: by the helper never, whatever it does and when
        :param caller: the program's thread, where that is known already
        """
        replay = self._replay
        if replay is not None and (changes or replay.is_under_way) and (caller or self._caller()) == replay.pid:
            return replay, path
        datacenter, path = self._find(path)
        return datacenter.branch(path), path

    def _find(self, path: str) -> tuple[Datacenter, str]:
        """The datacenter that a path leads to, and the path below its root."""
        virtual, parts = self._home.virtual, path.split("/", 3)
        if virtual is None or parts[1] != DATACENTERS or len(parts) < 3:
            return self._home, path
        name = parts[2]
        try:
            virtual.getattr(f"/{DATACENTERS}/{name}", None)
        except FileNotFoundError:
            if len(parts) > 3:
                raise
            return self._home, path  # where none can be made either
        except (ConsulateException, OutOfTime):
            with self._lock:
                if name not in self._others:
                    raise  # one that was visited answers for itself
        with self._lock:
            if name not in self._others:
                self._others[name] = self._visit(name)
                self._branches += self._others[name].branches
            return self._others[name], "/" + "".join(parts[3:])

    def _handed_out(self, branch: Branch, opened: Opened) -> Opened:
        number, direct, keep = opened
        return Opened(self._branches.index(branch) << _NUMBER_BITS | number, direct, keep)

    def _held(self, fh: int) -> tuple[Branch, int]:
        """The branch of a handle, and its own number for it."""
        return self._branches[fh >> _NUMBER_BITS], fh & ((1 << _NUMBER_BITS) - 1)
