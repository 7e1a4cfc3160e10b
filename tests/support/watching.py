"""Directories that a mount watches: making them, and what a program sees of their files."""

from __future__ import annotations

import base64
import http.client
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support.bending import Bending
from support.curl import Curl
from support.mount import Mount
from support.waiting import until


def fill(curl: Curl, keys: Iterable[str], value: bytes = b"x") -> None:
    """Make many keys of one value."""
    wanted, coded = list(keys), base64.b64encode(value).decode()
    for start in range(0, len(wanted), 50):
        part = [{"Verb": "set", "Key": key, "Value": coded} for key in wanted[start : start + 50]]
        assert curl.txn(*part) is not None


def content(path: Path) -> bytes | None:
    """What a program reads that opens a file; None where there is none."""
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return None


class Opened:
    """A program that has a file open all the time."""

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_RDONLY)

    def __call__(self) -> bytes:
        """What it reads, of the size that it is told."""
        return os.pread(self.file, os.fstat(self.file).st_size, 0)

    def close(self) -> None:
        os.close(self.file)


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    file = Opened(path)
    try:
        yield file
    finally:
        file.close()


def until_watched(proxy: Bending, *prefixes: str) -> None:
    """Until a query waits for changes of each."""
    until(lambda: proxy.watched().keys() >= set(prefixes))


def watch(mount: Mount, proxy: Bending, name: str) -> None:
    """Have a directory of the mount watched, and its files looked at; not the directories in it."""
    for each in os.scandir(mount.path / name):
        if each.is_file():
            content(Path(each.path))
    until_watched(proxy, f"{name}/")


def until_vouched(proxy: Bending, path: Path) -> None:
    """Until reading a file costs nothing, however old what is known of it becomes: its directory's watch works."""

    def costs_nothing() -> bool:
        with proxy.counting() as count:
            for _ in range(16):
                content(path)
                time.sleep(0.1)
        return not count.requests

    until(costs_nothing)


class Putting:
    """Each call writes another one of some keys, a hundred times a second.

    :ivar done: how many it has written
    """

    def __init__(self, port: int, *keys: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port)
        self.keys = keys
        self.done = 0

    def __call__(self) -> None:
        key = self.keys[self.done % len(self.keys)]
        self.done += 1
        self.connection.request("PUT", f"/v1/kv/{key}", b"%d" % self.done)
        answer = self.connection.getresponse()
        assert answer.read() == b"true\n", answer.status
        time.sleep(0.009)


def helpers_of(pid: int) -> list[int]:
    """The processes that a daemon has forked off."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def lives(pid: int) -> bool:
    """Whether a process has not ended, be it that nobody has asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def sockets_of(pid: int) -> int:
    """How many a process has."""
    found = 0
    for each in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            found += os.readlink(f"/proc/{pid}/fd/{each}").startswith("socket:")
    return found
