"""A program that looks at the same paths again and again."""

from __future__ import annotations

from collections.abc import Iterator
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
