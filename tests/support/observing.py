"""A program that looks at one thing of a mount again and again, for an Observer: `observing.py KIND PATH [LENGTH]`.

It says "" when it has looked once. A line tells it in JSON what it is to see last: when it has, it answers with all
that it saw, one after another, without what it saw twice in a row.
"""

import base64
import errno
import json
import mmap
import os
import select
import sys
import time

MOST = 1 << 20
PAUSE = 0.002


def keep(path):
    """The bytes, through one descriptor."""
    descriptor = os.open(path, os.O_RDONLY)
    return lambda: os.pread(descriptor, MOST, 0)


def reopen(path):
    """The bytes, through a descriptor of its own each time."""

    def look():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return os.read(descriptor, MOST)
        finally:
            os.close(descriptor)

    return look


def stat(path):
    """The size, by name."""
    return lambda: os.stat(path).st_size


def fstat(path):
    """The size, through one descriptor."""
    descriptor = os.open(path, os.O_RDONLY)
    return lambda: os.fstat(descriptor).st_size


def memory(path, length):
    """The bytes, in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    mapped = mmap.mmap(descriptor, int(length), mmap.MAP_SHARED, mmap.PROT_READ)
    return lambda: bytes(mapped)


def listing(path):
    """The names in a directory."""
    return lambda: sorted(os.listdir(path))


def either(path):
    """The bytes of a file, or the names in a directory."""
    files, directories = reopen(path), listing(path)

    def look():
        try:
            return files()
        except IsADirectoryError:
            return directories()

    return look


KINDS = {each.__name__: each for each in (keep, reopen, stat, fstat, memory, listing, either)}


def seen_by(look):
    """What is seen, as JSON carries it; None where there is nothing."""
    try:
        found = look()
    except OSError as error:
        return None if error.errno == errno.ENOENT else {"error": error.errno}
    return {"bytes": base64.b64encode(found).decode()} if isinstance(found, bytes) else found


def main(kind, *arguments):
    look = KINDS[kind](*arguments)
    seen = [seen_by(look)]
    print(flush=True)
    while not select.select([sys.stdin], [], [], PAUSE)[0]:
        found = seen_by(look)
        if found != seen[-1]:
            seen.append(found)
    last, seconds = json.loads(sys.stdin.readline())
    deadline = time.monotonic() + seconds
    while seen[-1] != last and time.monotonic() < deadline:
        time.sleep(PAUSE)
        found = seen_by(look)
        if found != seen[-1]:
            seen.append(found)
    print(json.dumps(seen), flush=True)


main(*sys.argv[1:])
