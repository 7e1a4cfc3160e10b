"""The only module that knows the FUSE library: from libfuse's callbacks to the methods of `Filesystem`.

mfusepy 3.1 is subclassed where it keeps something back that a file system which loses nothing must know (measured
on 3.1.1): ftruncate, chmod and utimens arrive without their handle, rename without its flags, UTIME_NOW and
UTIME_OMIT as odd nanoseconds, and a path that libfuse does not know any more (an unlinked open file) is an error.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import errno
import fcntl
import itertools
import logging
import os
import stat
import threading
import warnings
from typing import TYPE_CHECKING, Any, Callable, Optional

from consulfs.consulate import ConsulateException
from consulfs.errors import Interrupted, Unlogged, errno_of
from consulfs.filesystem import NOW
from consulfs.processes import Heed, is_to_end
from consulfs.store.locktable import END
from consulfs.workers import Workers

if ctypes.util.find_library("fuse3"):
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")  # mfusepy takes libfuse 2 where both are installed

import mfusepy  # type: ignore[import-untyped]  # it brings no annotations

if TYPE_CHECKING:
    from consulfs.filesystem import Attributes, Filesystem

log = logging.getLogger(__name__)

MAX_THREADS = 2000
"""libfuse's loop has 10 threads by default: eleven operations that wait would stop the whole mount."""

IDLE_THREADS = 20
"""Threads that are kept between operations. (Said because libfuse 3.14 complains of its own default.)"""

LOOP_ENDED = 8
"""What fuse_main returns when a signal has ended its loop (libfuse, lib/helper.c): a clean end."""

UNKNOWN_INODE = 0xFFFFFFFF
"""libfuse's own, for a name in a listing whose number is not known (lib/fuse.c)."""

LONGEST_NAME = 1.0
"""Seconds for which the kernel takes a name as there, however long attributes stand: nothing can make it forget one."""

READDIR_PLUS, FILL_DIR_PLUS = 1, 2
"""The kernel takes attributes along with names, and here they are (fuse.h): then it does not ask for each."""

UTIME_NOW, UTIME_OMIT = 0x3FFFFFFF, 0x3FFFFFFE

EXPECTED = frozenset(
    getattr(errno, name)
    for name in (
        "ENOENT ENODATA EEXIST ENOTEMPTY EISDIR ENOTDIR EROFS EINVAL ENOTSUP EPERM ESTALE ERANGE EINTR EBUSY".split()
    )
)
"""What programs get every day and no log needs to tell."""

_fuse = mfusepy._libfuse
_fuse.fuse_interrupted.restype = ctypes.c_int
_fuse.fuse_get_session.restype = ctypes.c_void_p
_fuse.fuse_get_session.argtypes = [ctypes.c_void_p]
_fuse.fuse_session_exited.argtypes = [ctypes.c_void_p]
_fuse.fuse_invalidate_path.restype = ctypes.c_int
_fuse.fuse_invalidate_path.argtypes = [ctypes.c_void_p, ctypes.c_char_p]

_loop: Optional[int] = None
"""libfuse's session, from `init` on; there is one a process."""

_mount: Optional[int] = None
"""libfuse's mount, from `init` on."""

_thread = threading.local()

_workers = Workers()

WITHOUT_REQUEST = ("init_fuse_3", "destroy")

OPERATIONS = (
    "getattr readdir opendir releasedir statfs chmod chown utimens mkdir rmdir unlink rename mknod link symlink open"
    " create read write truncate fallocate flush fsync release destroy getxattr listxattr setxattr removexattr init"
).split()

LOCK_OPERATIONS = ("flock", "lock")
"""Where these two are not offered, the kernel keeps the locks itself, for this mount alone."""

MAX_WAITERS = MAX_THREADS - 200
"""Locks that are waited for at once: each has a thread, and some must be left for all else."""


def interrupted(heed: Heed) -> bool:
    """Whether the operation that this thread serves is to end: by Ctrl-C or another signal, or since the mount does.

    libfuse waits for all of its threads before it calls `destroy`, so one that waits for a lock would keep a daemon
    that was told to end from ending (lib/fuse_loop_mt.c).

    libfuse looks into the thread's request without asking whether there is one: outside an operation, in `init`
    and in `destroy` it would crash (measured on 3.14).
    """
    if not getattr(_thread, "in_request", False):
        return False
    if heed is Heed.CAUGHT and _fuse.fuse_session_exited(_loop):
        return True
    return bool(_fuse.fuse_interrupted()) and is_to_end(_pid(), heed)


def caller() -> int:
    """The thread of a program that this thread's operation is for; 0 where it serves none."""
    return _pid() if getattr(_thread, "in_request", False) else 0


def invalidate(path: str) -> None:
    """Have the kernel forget the attributes and the pages of a file, and the attributes of a directory.

    It waits for the READs and WRITEs of that file that are under way: no operation, and no thread that one waits for,
    may call it. What the kernel does not know is no error, nor a mount that has ended.
    """
    with _workers.held() as loop_runs:
        if loop_runs:
            _fuse.fuse_invalidate_path(_mount, path.encode("utf-8", "surrogateescape"))


def require_libfuse3() -> None:
    """:raises OSError: the library that was found is too old"""
    if mfusepy.fuse_version_major < 3:
        raise OSError(errno.ENOSYS, "libfuse 3 is needed (Debian: apt-get install fuse3)")


def serve(filesystem: Filesystem, mountpoint: str, options: dict[str, Any], on_ready: Callable[[], None]) -> None:
    """Mount and serve until the mount ends.

    :param options: for mount(8) and libfuse, such as {"ro": True, "fsname": "consulfs"}
    :param on_ready: called when the kernel has accepted the mount
    :raises RuntimeError: the mount could not be made (libfuse has said why on stderr)
    """
    if (mfusepy.fuse_version_major, mfusepy.fuse_version_minor) >= (3, 12):
        options = {"max_threads": MAX_THREADS, "max_idle_threads": IDLE_THREADS, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            _Session(_Names(filesystem.offers_locks), filesystem, on_ready, mountpoint, options)
        except RuntimeError as error:
            if error.args != (LOOP_ENDED,):
                raise


class _Names:
    """Tells mfusepy which callbacks to register; they are answered by `_Session` itself."""

    use_ns = True

    def __init__(self, offers_locks: bool) -> None:
        for name in OPERATIONS + (list(LOCK_OPERATIONS) if offers_locks else []):
            setattr(self, name, True)


def _name(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _pid() -> int:
    return int(_fuse.fuse_get_context().contents.pid)


def _handle(info: Any) -> Optional[int]:
    return int(info.contents.fh) if info else None


class _Session(mfusepy.FUSE):  # type: ignore[misc]  # the base has no annotations
    """libfuse's callbacks. Each takes C values, calls one method, and gives C values back."""

    def __init__(
        self,
        names: _Names,
        filesystem: Filesystem,
        on_ready: Callable[[], None],
        mountpoint: str,
        options: dict[str, Any],
    ) -> None:
        self._fs = filesystem
        self._on_ready = on_ready
        self._directories: dict[int, str] = {}
        self._numbers = itertools.count(1)
        super().__init__(names, mountpoint, raw_fi=True, foreground=True, **options)

    def _wrapper(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
        """Every callback runs through here: exceptions become errnos, and the log says what an errno cannot."""
        _workers.keep()
        try:
            _thread.in_request = func.__name__ not in WITHOUT_REQUEST
            self._fs.begin()
            return func(*args, **kwargs) or 0
        except Exception as error:
            code = errno_of(error)
            operation = func.__name__.replace("_fuse_3", "")
            self._fs.failed(operation, code)
            everyday = isinstance(error, OSError) and code in EXPECTED
            if not (everyday or isinstance(error, (Interrupted, Unlogged))):
                foreseen = code != errno.EIO or isinstance(error, (OSError, ConsulateException))
                about = self._about(operation, args)
                log.warning("%s %r: %s: %s", operation, about, os.strerror(code), error, exc_info=not foreseen)
            if code == errno.EINTR and not _fuse.fuse_interrupted():
                # The mount ends. The kernel has flock(2) begin anew after EINTR, which needs a signal: where there
                # was none, programs got errno 512, which no header knows (measured on Linux 6.18).
                return -errno.ENOTCONN
            return -code
        finally:
            _thread.in_request = False

    def _about(self, operation: str, args: tuple[Any, ...]) -> str:
        """What an operation is about: its path, or the key of its handle, since one that is open comes without."""
        for arg in args:
            if isinstance(arg, bytes):
                return self._fs.shown(_name(arg))
            if isinstance(arg, ctypes.POINTER(mfusepy.fuse_file_info)) and arg:
                if operation == "readdir":
                    return self._directories.get(int(arg.contents.fh), "")
                with contextlib.suppress(OSError):
                    return self._fs.shown(self._fs.key_of(arg.contents.fh))
        return ""

    # -- life ------------------------------------------------------------------------------------------------

    def init_fuse_3(self, connection: Any, config: Any) -> None:
        settings = config.contents
        settings.nullpath_ok = 1  # an unlinked open file has no path any more
        settings.hard_remove = 1  # no .fuse_hidden keys
        settings.use_ino = 1
        settings.attr_timeout = self._fs.attr_timeout
        settings.entry_timeout = min(self._fs.attr_timeout, LONGEST_NAME)
        settings.negative_timeout = 0.0  # a name that another host makes is there at once
        global _loop, _mount
        _mount = _fuse.fuse_get_context().contents.fuse
        _loop = _fuse.fuse_get_session(_mount)
        self._on_ready()

    def destroy(self, private_data: Any) -> None:
        self._fs.destroy()

    # -- names and attributes --------------------------------------------------------------------------------

    def getattr_fuse_3(self, path: Optional[bytes], buffer: Any, info: Any) -> None:
        buffer[0] = _stat(self._fs.getattr(None if path is None else _name(path), _handle(info)))

    def opendir(self, path: bytes, info: Any) -> None:
        # The handle carries the path: with nullpath_ok readdir comes without one.
        number = next(self._numbers)
        self._directories[number] = _name(path)
        info.contents.fh = number

    def releasedir(self, path: Optional[bytes], info: Any) -> None:
        self._directories.pop(int(info.contents.fh), None)

    def readdir_fuse_3(self, path: Optional[bytes], buffer: Any, fill: Any, offset: int, info: Any, flags: int) -> None:
        entry = mfusepy.c_stat()
        entry.st_mode, entry.st_ino = stat.S_IFDIR, UNKNOWN_INODE  # readdir(3) leaves out a name whose number is 0
        for name in (b".", b".."):
            fill(buffer, name, entry, 0, 0)
        for shown in self._fs.readdir(self._directories[int(info.contents.fh)], bool(flags & READDIR_PLUS)):
            if shown.attributes is None:
                entry.st_mode, entry.st_ino = shown.kind, shown.inode
                full = fill(buffer, shown.name.encode(), entry, 0, 0)
            else:
                full = fill(buffer, shown.name.encode(), _stat(shown.attributes), 0, FILL_DIR_PLUS)
            if full:
                break

    def statfs(self, path: bytes, buffer: Any) -> None:
        for name, value in self._fs.statfs().items():
            setattr(buffer.contents, name, value)

    def chmod_fuse_3(self, path: Optional[bytes], mode: int, info: Any) -> None:
        self._fs.chmod(None if path is None else _name(path))

    def chown_fuse_3(self, path: Optional[bytes], uid: int, gid: int, info: Any) -> None:
        self._fs.chmod(None if path is None else _name(path))

    def utimens_fuse_3(self, path: Optional[bytes], times: Any, info: Any) -> None:
        mtime: Optional[int] = NOW
        if times:
            given = times.contents.modtime
            mtime = {UTIME_NOW: NOW, UTIME_OMIT: None}.get(given.tv_nsec, given.tv_sec * 10**9 + given.tv_nsec)
        self._fs.utimens(None if path is None else _name(path), _handle(info), mtime)

    # -- making and removing ---------------------------------------------------------------------------------

    def mkdir(self, path: bytes, mode: int) -> None:
        self._fs.mkdir(_name(path))

    def rmdir(self, path: bytes) -> None:
        self._fs.rmdir(_name(path))

    def unlink(self, path: bytes) -> None:
        self._fs.unlink(_name(path))

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> None:
        self._fs.rename(_name(old), _name(new), flags)
        for number, path in list(self._directories.items()):  # those that are open go along
            if (path + "/").startswith(_name(old) + "/"):
                self._directories[number] = _name(new) + path[len(_name(old)) :]

    def mknod(self, path: bytes, mode: int, device: int) -> None:
        self._fs.mknod(_name(path), mode, _pid())

    def link(self, source: bytes, target: bytes) -> int:
        return -errno.EPERM

    def symlink(self, source: bytes, target: bytes) -> int:
        return -errno.EPERM

    # -- open files ------------------------------------------------------------------------------------------

    def open(self, path: bytes, info: Any) -> None:
        fields = info.contents
        fields.fh, fields.direct_io, fields.keep_cache = self._fs.open(_name(path), fields.flags, _pid())

    def create(self, path: bytes, mode: int, info: Any) -> None:
        fields = info.contents
        fields.fh, fields.direct_io, fields.keep_cache = self._fs.create(_name(path), fields.flags, _pid())

    def read(self, path: Optional[bytes], buffer: Any, size: int, offset: int, info: Any) -> int:
        data = self._fs.read(info.contents.fh, size, offset)
        ctypes.memmove(buffer, data, len(data))
        return len(data)

    def write(self, path: Optional[bytes], buffer: Any, size: int, offset: int, info: Any) -> int:
        fields = info.contents
        data = ctypes.string_at(buffer, size)
        if fields.writepage:  # it has its place, whatever the descriptor was opened with
            return self._fs.write_page(fields.fh, data, offset)
        return self._fs.write(fields.fh, data, offset, bool(fields.flags & os.O_APPEND))

    def truncate_fuse_3(self, path: Optional[bytes], size: int, info: Any) -> None:
        self._fs.truncate(None if path is None else _name(path), size, _handle(info), _pid())

    def fallocate(self, path: Optional[bytes], mode: int, offset: int, size: int, info: Any) -> None:
        self._fs.fallocate(info.contents.fh)

    def flush(self, path: Optional[bytes], info: Any) -> None:
        self._fs.flush(info.contents.fh, _pid())

    def fsync(self, path: Optional[bytes], datasync: int, info: Any) -> None:
        self._fs.fsync(info.contents.fh)

    def release(self, path: Optional[bytes], info: Any) -> None:
        self._fs.release(info.contents.fh)

    # -- locks -----------------------------------------------------------------------------------------------

    def flock(self, path: Optional[bytes], info: Any, how: int) -> None:
        wait = not how & fcntl.LOCK_NB
        kind = {fcntl.LOCK_EX: True, fcntl.LOCK_SH: False}.get(how & ~fcntl.LOCK_NB)
        self._fs.flock(info.contents.fh, kind, wait, _pid())

    def lock(self, path: Optional[bytes], info: Any, command: int, lock: Any) -> None:
        fields, wanted = info.contents, lock.contents
        if fields.flush:  # libfuse unlocks at each close
            self._fs.unlock_closed(fields.fh, fields.lock_owner)
            return
        kind = {fcntl.F_WRLCK: True, fcntl.F_RDLCK: False}.get(wanted.l_type)
        start, end = wanted.l_start, wanted.l_start + wanted.l_len - 1 if wanted.l_len else END
        if command != fcntl.F_GETLK:
            self._fs.setlk(fields.fh, fields.lock_owner, kind, start, end, command == fcntl.F_SETLKW, _pid())
            return
        found = self._fs.getlk(fields.fh, fields.lock_owner, bool(kind), start, end)
        if found is None:
            wanted.l_type = fcntl.F_UNLCK
            return
        wanted.l_type = fcntl.F_WRLCK if found.exclusive else fcntl.F_RDLCK
        wanted.l_start, wanted.l_pid = found.start, found.pid
        wanted.l_len = 0 if found.end == END else found.end - found.start + 1

    # -- extended attributes ---------------------------------------------------------------------------------

    def getxattr(self, path: bytes, name: bytes, buffer: Any, size: int, *_: Any) -> int:
        return _give(self._fs.getxattr(_name(path), _name(name)), buffer, size)

    def listxattr(self, path: bytes, buffer: Any, size: int) -> int:
        names = self._fs.listxattr(_name(path))
        return _give(b"".join(name.encode() + b"\0" for name in names), buffer, size)

    def setxattr(self, path: bytes, name: bytes, value: Any, size: int, options: int, *_: Any) -> None:
        self._fs.setxattr(_name(path), _name(name), ctypes.string_at(value, size), options, _pid())

    def removexattr(self, path: bytes, name: bytes) -> None:
        self._fs.removexattr(_name(path), _name(name), _pid())


def _stat(found: Attributes) -> Any:
    """Attributes as C has them, to be copied."""
    if found.packed is None:
        found.packed = _packed(found)
    return found.packed


def _packed(found: Attributes) -> Any:
    out = mfusepy.c_stat()
    out.st_ino, out.st_mode, out.st_nlink = found.inode, found.mode, found.links
    out.st_size, out.st_uid, out.st_gid = found.size, found.uid, found.gid
    out.st_blksize, out.st_blocks = 4096, (found.size + 511) // 512
    for timespec, value in (
        (out.st_mtimespec, found.mtime),
        (out.st_ctimespec, found.ctime),
        (out.st_atimespec, found.mtime),
    ):
        timespec.tv_sec, timespec.tv_nsec = divmod(value, 10**9)
    return out


def _give(data: bytes, buffer: Any, size: int) -> int:
    """An attribute's bytes; their number where no buffer is given, ERANGE where it is too small."""
    if not buffer or not size:
        return len(data)
    if len(data) > size:
        return -errno.ERANGE
    ctypes.memmove(buffer, data, len(data))
    return len(data)
