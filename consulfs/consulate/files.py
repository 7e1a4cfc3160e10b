"""A file that is replaced all at once, when its new content is whole and safe."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Optional

PREFIX = ".consulate-"
"""How a temporary file's name begins: not as the target's, which may be as long as a name can be."""


@contextmanager
def replacing(path: str, mode: Optional[int] = None, keeps_mode: bool = True) -> Iterator[IO[bytes]]:
    """A file that gets its name when all of it is written and safe; until then the old one stays, and after a failure.

    Symlinks are followed. What is no regular file, such as a FIFO or /dev/stdout, is written as it is.

    :param mode: of a new file; by the umask where none is given
    :param keeps_mode: an old file's mode is kept
    :raises OSError: it names the target
    """
    old = _stat(path)
    if old is not None and not stat.S_ISREG(old.st_mode):
        with open(path, "wb") as file:
            yield file
        return
    final = os.path.realpath(path)
    # Its name is known before it is there: a signal may come at any moment.
    temporary = os.path.join(os.path.dirname(final), PREFIX + secrets.token_hex(8))
    try:
        with _naming(path):
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            yield file
            with _naming(path):
                file.flush()
                os.fchmod(descriptor, _mode(old if keeps_mode else None, mode))
                os.fsync(descriptor)
        with _naming(path):
            os.replace(temporary, final)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    with _naming(path):
        _sync_folder(os.path.dirname(final))


def _stat(path: str) -> Optional[os.stat_result]:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _mode(old: Optional[os.stat_result], mode: Optional[int]) -> int:
    if old is not None:
        return stat.S_IMODE(old.st_mode)
    if mode is not None:
        return mode
    umask = os.umask(0o077)
    os.umask(umask)
    return 0o666 & ~umask


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """An error is about the file that was asked for; nobody knows the temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
