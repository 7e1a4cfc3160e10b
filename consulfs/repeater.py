"""A process that does to a mount what it is told: the other half of `filesystem/replay.py`.

It is forked off before there is a mount or a thread, so it has no hold of the mount's end, and lives as long as the
socket to it. A line of JSON asks for a deed, a line answers with an errno, or 0. One that was killed is made anew when
it is needed: by then there are threads and a mount, so this module is run as a program of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from typing import Optional

from consulfs.mounts import CONSULFS, mounted_at

log = logging.getLogger(__name__)

PR_SET_NAME = 15
FALLOC_FL_KEEP_SIZE = 1

_libc = ctypes.CDLL(None)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate  # musl has one, which takes 64 bits
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Deed(enum.Enum):
    """What can be repeated."""

    CREATE = "create"
    MODIFY = "modify"
    UNLINK = "unlink"
    MKDIR = "mkdir"
    RMDIR = "rmdir"
    LOOK = "look"


class Repeater:
    """The process, from here.

    :param root: what the paths are below: the mount point
    :ivar pid: its number
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._closed = False
        self._is_proven = True
        self._program: Optional[subprocess.Popen[bytes]] = None
        self._socket, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            _live(root, theirs)
        theirs.close()
        self._answers = self._socket.makefile("rb")

    def repeat(self, deed: Deed, path: str) -> int:
        """Have it done; 0, or the errno that it failed with. For one thread."""
        answer = self._ask(deed, path)
        if answer is None and self._make_anew():
            answer = self._ask(deed, path)
        if answer is None:
            return errno.EPIPE
        self._is_proven = True
        return answer

    def close(self) -> None:
        """End it, and whoever waits for it."""
        self._closed = True
        self._end()

    def _ask(self, deed: Deed, path: str) -> Optional[int]:
        """What it answers; None where it is no more."""
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps([deed.value, path]).encode() + b"\n")
            answer = self._answers.readline()
            return int(answer) if answer else None
        return None

    def _make_anew(self) -> bool:
        """Not where one has never done anything before it ended: the next would not either."""
        if self._closed or not self._is_proven:
            return False
        self._end()
        self._is_proven = False
        self._socket, theirs = socket.socketpair()
        self._answers = self._socket.makefile("rb")
        program = f"import sys; sys.path[:] = {sys.path!r}; from consulfs.repeater import main; main()"
        command = [sys.executable, "-I", "-c", program, self._root, str(theirs.fileno())]
        try:
            self._program = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd="/", start_new_session=True)
        except OSError as error:
            log.error("the process that tells of changes by inotify was killed, and none can be made: %s", error)
            return False
        finally:
            theirs.close()
        self.pid = self._program.pid
        log.warning("the process that tells of changes by inotify was killed: there is a new one")
        return True

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._answers.close()
        self._socket.close()
        if self._program is not None:
            self._program.wait()
            return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _live(root: str, theirs: socket.socket) -> None:
    """The process' whole life."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # sent to the daemon's whole group; it ends when the daemon has
        _libc.prctl(PR_SET_NAME, b"consulfs-repeat")
        _keep_only(theirs.fileno())
        os.chdir("/")
        hand = _Hand(root)
        with theirs.makefile("rb") as asked:
            for line in asked:
                deed, path = json.loads(line)
                theirs.sendall(b"%d\n" % hand.failure(Deed(deed), path.lstrip("/")))
    except BaseException:  # nothing of the daemon's may run in here: no handler, no cleaning up
        os._exit(1)
    os._exit(0)


def _keep_only(descriptor: int) -> None:
    """Let go of every other file: who reads the daemon's output waits for its end."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != descriptor:
            with contextlib.suppress(OSError):
                os.close(int(name))


class _Hand:
    """Does it, on the mount and nowhere else: when that has ended, its directory may be another's.

    :param root: the mount point
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._mount: Optional[int] = None

    def failure(self, deed: Deed, path: str) -> int:
        """Do it; 0, or the errno that it failed with."""
        try:
            root = os.open(self._root, os.O_PATH | os.O_DIRECTORY)
            try:
                self._check(root)
                _do(deed, path, root)
            finally:
                os.close(root)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _check(self, root: int) -> None:
        """Whether this is a directory of the mount, which cannot end while it is open."""
        if self._mount is None:
            mounted = mounted_at(self._root)
            self._mount = mounted.number if mounted is not None and mounted.kind == CONSULFS else None
        with open(f"/proc/self/fdinfo/{root}") as info:
            if self._mount is None or f"mnt_id:\t{self._mount}\n" not in info.readlines():
                raise OSError(errno.ENOTCONN, "the mount has ended")


def _do(deed: Deed, path: str, root: int) -> None:
    if deed is Deed.MKDIR:
        os.mkdir(path, dir_fd=root)
    elif deed is Deed.RMDIR:
        os.rmdir(path, dir_fd=root)
    elif deed is Deed.LOOK:
        os.stat(path, dir_fd=root)
    elif deed is Deed.UNLINK:
        os.unlink(path, dir_fd=root)
    else:
        # MODIFY and CLOSE_WRITE, and the kernel learns the size anew.
        # Not by ftruncate: as long as that is under way the kernel drops the size that a program is just being told,
        # and cuts what it reads to the one before (Linux, fs/fuse: FUSE_I_SIZE_UNSTABLE; measured).
        new = os.O_CREAT | os.O_EXCL if deed is Deed.CREATE else 0
        file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | new, 0o600, dir_fd=root)
        try:
            os.fstat(file)
            _fallocate(file, FALLOC_FL_KEEP_SIZE, 0, 1)
        finally:
            os.close(file)


def main() -> None:
    """The process that was made anew."""
    _live(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
