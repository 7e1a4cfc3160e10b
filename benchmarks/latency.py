"""How long it takes until somebody sees a change that was made elsewhere."""

from __future__ import annotations

import ctypes
import os
import random
import select
import struct
import time
from pathlib import Path
from threading import Event, Thread
from typing import Callable

from stage import Failed, Raw, read_file

LIMIT = 5
"""Seconds after which a change that is not seen will not be."""

IN_MODIFY, IN_CLOSE_WRITE = 0x2, 0x8

_libc = ctypes.CDLL(None, use_errno=True)

Watch = Callable[[Event, bytes], float]
"""Sets the event when it watches; returns the moment, by perf_counter, at which it has seen the value. What it closes
after that does not count: the kernel takes tens of milliseconds to end an inotify instance (synchronize_srcu)."""


def delay_of(watch: Watch, change: Callable[[bytes], None]) -> float:
    """Seconds from the beginning of a change, at any moment of the watching, until it is seen."""
    value = b"%020d" % random.getrandbits(60)
    armed, seen = Event(), [0.0]

    def watching() -> None:
        seen[0] = watch(armed, value)

    thread = Thread(target=watching, daemon=True)
    thread.start()
    if not armed.wait(LIMIT):
        raise Failed("the watch has not begun")
    time.sleep(0.1 + random.random())
    begin = time.perf_counter()
    change(value)
    thread.join(LIMIT)
    if not seen[0]:
        raise Failed(f"a change was not seen in {LIMIT} seconds")
    return seen[0] - begin


def raw_wait(port: int, folder: str) -> Watch:
    """A blocking query on a directory."""

    def watch(armed: Event, value: bytes) -> float:
        with Raw(port) as raw:
            _, index = raw.get(f"{folder}/?keys&separator=/")
            armed.set()
            while raw.get(f"{folder}/?keys&separator=/&index={index}&wait={LIMIT}s")[1] == index:
                pass
            return time.perf_counter()

    return watch


def fresh_read(path: Path) -> Watch:
    """A program that opens and reads a file twice a millisecond."""

    def watch(armed: Event, value: bytes) -> float:
        end = time.monotonic() + 2 * LIMIT
        while read_file(str(path)) != value and time.monotonic() < end:
            armed.set()
            time.sleep(0.0005)
        return time.perf_counter()

    return watch


def inotify(path: Path) -> Watch:
    """A program that is told by the kernel, and then reads."""

    def watch(armed: Event, value: bytes) -> float:
        os.listdir(path.parent)
        number = _libc.inotify_init1(os.O_CLOEXEC)
        try:
            _libc.inotify_add_watch(number, os.fsencode(path.parent), IN_MODIFY | IN_CLOSE_WRITE)
            time.sleep(0.5)  # as a program that has watched for a while
            armed.set()
            end = time.monotonic() + 2 * LIMIT
            while time.monotonic() < end:
                told = select.select([number], [], [], 0.1)[0] and path.name in _names(os.read(number, 65536))
                if told and read_file(str(path)) == value:
                    break
            return time.perf_counter()
        finally:
            os.close(number)

    return watch


def _names(events: bytes) -> list[str]:
    """The names in what inotify(7) gives."""
    names = []
    while events:
        length = struct.unpack_from("iIII", events)[3]
        names.append(os.fsdecode(events[16 : 16 + length].rstrip(b"\0")))
        events = events[16 + length :]
    return names
