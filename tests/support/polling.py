"""What is done again and again, while a test does something else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support.child import Child

SCRIPT = """
import os, stat, sys, time

def look(path):
    if stat.S_ISDIR(os.stat(path).st_mode):
        os.listdir(path)
    else:
        open(path, "rb").read()

print(flush=True)
while True:
    for path in sys.argv[1:]:
        try:
            look(path)
        except FileNotFoundError:
            pass
    time.sleep(0.02)
"""


@contextmanager
def polled(*paths: Path) -> Iterator[None]:
    """A process lists, or reads, what is there all the time, meanwhile. No error but ENOENT may come of it."""
    with Child("-S", "-E", "-c", SCRIPT, *map(str, paths)) as child:
        child.hear()
        yield
        assert child.process.poll() is None


@contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    """A thread does something over and over. What it raises, the test does."""
    stop, failures = threading.Event(), []

    def run() -> None:
        try:
            while not stop.is_set():
                action()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
    if failures:
        raise failures[0]
