"""What the commands share: exact output, input and output files, the progress bar."""

from __future__ import annotations

import argparse
import os
import select
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Optional, Protocol

from tqdm import tqdm

from consulfs.consulate.files import replacing

SECRET = 0o600
"""The mode of a file that others must not read."""

PIECE = 1 << 16
"""Bytes that are read at once."""


def key(text: str) -> str:
    """A key among the arguments."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!a} is not UTF-8") from None
    return text


def line(*words: bytes) -> None:
    """Write a line of exact bytes."""
    sys.stdout.buffer.write(b"".join((*words, b"\n")))


def note(text: str) -> None:
    print(f"consulate: {text}", file=sys.stderr)


@contextmanager
def output(path: Optional[str], mode: Optional[int] = None) -> Iterator[IO[bytes]]:
    """The file, which appears when it is whole, or stdout."""
    if path is None:
        yield sys.stdout.buffer
    else:
        with replacing(path, mode) as file:
            yield file


class Source(Protocol):
    """What is read by the commands."""

    def read(self, size: int = -1, /) -> bytes: ...

    def fileno(self) -> int: ...


class Stdin:
    """Stdin, waited for where another process has made it non-blocking; Python's own then gives None."""

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            return b"".join(iter(lambda: self.read(PIECE), b""))
        while True:
            try:
                return os.read(self.fileno(), size)
            except BlockingIOError:
                select.select([self], [], [])

    def fileno(self) -> int:
        return sys.stdin.fileno()


@contextmanager
def source(path: Optional[str]) -> Iterator[Source]:
    """The file, or stdin."""
    if path is None:
        yield Stdin()
    else:
        with open(path, "rb") as file:
            yield file


@contextmanager
def bar(what: str, total: Optional[int] = None, unit: str = " keys", hidden: bool = False) -> Iterator[tqdm[Any]]:
    """A progress bar on stderr, where that is a terminal."""
    hidden = hidden or not sys.stderr.isatty()
    with tqdm(desc=what, total=total, unit=unit, unit_scale=True, file=sys.stderr, disable=hidden) as made:
        yield made


def line_beside_bar(*words: bytes) -> None:
    """A line while a bar is shown, perhaps on the same terminal."""
    with tqdm.external_write_mode(file=sys.stdout):
        line(*words)
        sys.stdout.flush()


class Measured:
    """A file that tells a bar how much of it was read."""

    def __init__(self, file: Source, progress: tqdm[Any]) -> None:
        self._file = file
        self._progress = progress

    def read(self, size: int = -1, /) -> bytes:
        piece = self._file.read(size)
        self._progress.update(len(piece))
        return piece


def size_of(file: Source) -> Optional[int]:
    """The bytes of a regular file; None of what has no size."""
    found = os.fstat(file.fileno())
    return found.st_size if stat.S_ISREG(found.st_mode) else None
