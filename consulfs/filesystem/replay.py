"""inotify for changes that others made: a helper repeats them on the mount, where they are answered and do nothing.

The kernel tells programs of what is done through it, and of nothing else. So a helper process does it once more:
creates the file that another host has created, has room made for what the one that was changed has already, removes
the one that is gone. Its operations come here. It is answered as things stood before the change, else the kernel would
have nothing to do: a file that is there already is not created.

The helper is a process of its own, which has no hold of the mount's end: a daemon that is killed inside a call on its
own mount could not die.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
import threading
from dataclasses import dataclass, replace
from typing import Callable, Optional

from consulfs.filesystem.branch import Attributes, Branch, Opened
from consulfs.repeater import Deed, Repeater

log = logging.getLogger(__name__)


@dataclass
class _Event:
    """What is being repeated.

    :ivar size: what the file had, if it is gone
    :ivar on_shown: called when the kernel is told that a file is there which is gone
    :ivar on_done: called when the kernel asks for it
    :ivar done: whether it has
    """

    deed: Deed
    path: str
    size: int = 0
    on_shown: Callable[[], object] = lambda: None
    on_done: Callable[[], object] = lambda: None
    done: bool = False


class Replay(Branch):
    """What the helper finds: everything as it is, but for the one thing that it is to do.

    Owner of `_event`: the thread that calls `repeat`; the operations that it causes only look at it, and set `done`.

    :param look: what is at a path, as the other programs see it
    """

    def __init__(self, look: Callable[[str], Attributes], repeater: Repeater) -> None:
        self._look = look
        self._repeater = repeater
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # one event after the other
        self._event: Optional[_Event] = None
        self._works: Optional[bool] = None

    @property
    def pid(self) -> int:
        """The helper's process."""
        return self._repeater.pid

    @property
    def is_under_way(self) -> bool:
        """Whether something is being repeated."""
        return self._event is not None

    def repeat(self, deed: Deed, path: str) -> None:
        """Have the helper do it; returns when it is done. For a thread that serves no operation."""
        self._repeat(_Event(deed, path))

    def remove(self, path: str, size: int, on_shown: Callable[[], object], on_done: Callable[[], object]) -> None:
        """Have the helper remove a file that is gone: until the kernel has removed the name, others may look at it.

        :param size: that it had
        :param on_shown: called when the kernel is told that it is there
        :param on_done: called when the kernel asks for it
        """
        self._repeat(_Event(Deed.UNLINK, path, size, on_shown, on_done))

    def _repeat(self, event: _Event) -> None:
        with self._lock:
            if self._works is None:
                self._works = self._probe()
            if self._works:
                failure, _ = self._have_done(event)
                if failure:
                    log.debug("%s %r could not be repeated: %s", event.deed.name, event.path, os.strerror(failure))

    def _probe(self) -> bool:
        """Whether the helper is known when it comes: its process has another number in another PID namespace.

        One that was taken for a program would do what it is only to repeat.
        """
        _, seen = self._have_done(_Event(Deed.LOOK, "/.consulfs-probe"))
        if not seen:
            log.warning("inotify tells nothing of other hosts' changes: the helper's operations cannot be told apart")
        return seen

    def _have_done(self, event: _Event) -> tuple[int, bool]:
        """(the errno that it failed with or 0, whether it came here)"""
        self._event = event
        try:
            return self._repeater.repeat(event.deed, event.path), event.done
        finally:
            self._event = None

    # -- what the helper does --------------------------------------------------------------------------------

    def getattr(self, path: Optional[str], fh: Optional[int]) -> Attributes:
        event = self._event
        if event is None:
            raise OSError(errno.ENOENT, "nothing is repeated")
        path = event.path if path is None else path
        if path == event.path:
            return self._as_before(event)
        if event.path.startswith(path.rstrip("/") + "/"):
            return self._directory(path)
        return self._look(path)

    def open(self, path: str, flags: int, pid: int) -> Opened:
        if self._event is None or path != self._event.path:
            raise OSError(errno.EPERM, "nothing else is repeated")
        return Opened(next(self._numbers))

    def create(self, path: str, flags: int, pid: int) -> Opened:
        self._do(path)
        return Opened(next(self._numbers))

    def fallocate(self, fh: int) -> None:
        """The room is there."""

    def mkdir(self, path: str) -> None:
        self._do(path)

    def unlink(self, path: str) -> None:
        self._do(path)

    def rmdir(self, path: str) -> None:
        self._do(path)

    def read(self, fh: int, size: int, offset: int) -> bytes:
        return b""

    def release(self, fh: int) -> None:
        """There is nothing to keep of it."""

    def key_of(self, fh: int) -> str:
        return self._event.path if self._event is not None else ""

    def _do(self, path: str) -> None:
        event = self._event
        if event is None or path != event.path:
            raise OSError(errno.EPERM, "nothing else is repeated")
        event.on_done()
        event.done = True

    def _as_before(self, event: _Event) -> Attributes:
        if event.deed is Deed.LOOK:
            event.done = True
        made = event.deed in (Deed.CREATE, Deed.MKDIR)
        if event.deed is Deed.LOOK or (event.deed is not Deed.MODIFY and made is not event.done):
            # It is not there yet, or not any more.
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if event.deed in (Deed.MKDIR, Deed.RMDIR):
            return self._directory(event.path)
        try:
            found = self._look(event.path)
            if stat.S_ISREG(found.mode):
                return found
        except OSError:
            if event.deed is not Deed.UNLINK:  # gone again: nobody is to see a file that never was
                raise
        event.on_shown()
        root = self._look("/")
        mode = stat.S_IFREG | (root.mode & 0o666)
        return replace(root, inode=root.inode + 1, mode=mode, size=event.size, links=1, packed=None)

    def _directory(self, path: str) -> Attributes:
        try:
            found = self._look(path)
            if stat.S_ISDIR(found.mode):
                return found
        except OSError:
            pass
        return self._look("/")
