"""Which errno a caller sees for what went wrong. Pure; the table is in docs/architecture.md as well."""

from __future__ import annotations

import errno
import os

from consulfs.consulate import exceptions as consul


class Interrupted(Exception):
    """The program that waits for this operation got a signal.

    No OSError on purpose: the HTTP library would take one for a broken connection.
    """


class OutOfTime(Exception):
    """The operation's `timeout=` is over."""


class Unlogged(OSError):
    """A failure that needs no line of its own in the log."""


class WouldBlock(Unlogged):
    """LOCK_NB, and another has the lock."""

    def __init__(self) -> None:
        super().__init__(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))


class LockLost(Unlogged):
    """A lock is no longer held, and what was written under it is not stored. The log says when it was lost."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, f"{os.strerror(errno.EIO)}: the lock was lost")


# The first that fits counts, so the more special ones stand first.
_ERRNO: tuple[tuple[type[Exception], int], ...] = (
    (Interrupted, errno.EINTR),
    (OutOfTime, errno.ETIMEDOUT),
    (consul.ConnectFailed, errno.EHOSTDOWN),
    (consul.UnknownDatacenter, errno.EHOSTDOWN),
    (consul.AnswerTimeout, errno.ETIMEDOUT),
    (consul.Forbidden, errno.EACCES),
    (consul.ACLDisabled, errno.EACCES),
    (consul.TooLarge, errno.EFBIG),
    (consul.StaleIndex, errno.EAGAIN),
    (consul.ConsulateException, errno.EIO),
    (MemoryError, errno.ENOMEM),
    (UnicodeError, errno.EILSEQ),
)


def errno_of(error: BaseException) -> int:
    """The errno for an exception; EIO for what nobody foresaw."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return next((code for kind, code in _ERRNO if isinstance(error, kind)), errno.EIO)
