"""What is changed by others, and what a mount costs that nobody uses."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from threading import Event, Thread
from typing import Callable

from latency import Watch, delay_of, fresh_read, inotify, raw_wait
from report import MICROSECONDS, MILLISECONDS, PERCENT, Goal, Result
from stage import COMMAND, Call, Mount, Raw, Stage, each_of, read_file, take_turns
from trees import Tree

from rows import DEEP, NOTHING, ROUNDS, content, over, row, settle
from rows.writing import look

MANY = Tree(32, 100)

IDLE_SECONDS, BEGUN_SECONDS = 20, 10
"""So long it is measured; and so long waited before it, until the watches of more directories than there may be have
taken turns: one that another makes room for begins when that one's query has ended.
"""

CHANGES = 15

RATE = 100
"""Writes a second elsewhere."""

FIRST = DEEP.first
FOLDER = FIRST.rpartition("/")[0]


@row("remote-read")
def remote_read(stage: Stage) -> Result:
    return remote(stage, "a remote change, until read() gives it", lambda mount: fresh_read(mount.path / FIRST))


@row("remote-inotify")
def remote_inotify(stage: Stage) -> Result:
    work = "a remote change, until inotify tells it"
    usage = subprocess.run([COMMAND, "--help"], stdout=subprocess.PIPE, check=True).stdout
    if b"notify=" not in usage:
        return Result(work, note="not offered")
    return remote(stage, work, lambda mount: inotify(mount.path / FIRST))


def remote(stage: Stage, work: str, watch: Callable[[Mount], Watch]) -> Result:
    """Another client changes a key."""
    port = stage.store(DEEP)
    with Raw(port) as raw, stage.consulfs(DEEP) as mount:
        change = partial(raw.put, FIRST)
        settle(partial(look, mount.path / FOLDER))
        watches = {"consulfs": watch(mount), "raw blocking query": raw_wait(port, FOLDER)}
        times = take_turns(CHANGES, {name: partial(delay_of, each, change) for name, each in watches.items()})
    return Result.of(work, MILLISECONDS, times, Goal(times["raw blocking query"] + 0.01, "raw + 10 ms"))


@row("elsewhere")
def elsewhere(stage: Stage) -> Result:
    def reading(mount: Mount) -> Call:
        """A call that the mount knows."""
        call = partial(read_file, f"{mount.path}/{FIRST}")
        settle(call)
        return call

    with writes_elsewhere(stage.store(DEEP)):
        with stage.consulfs(DEEP) as mount, stage.floor(DEEP) as floor:
            calls = {"consulfs": reading(mount), "floor": reading(floor)}
            times = take_turns(ROUNDS, {name: partial(each_of, call, 300) for name, call in calls.items()})
        with stage.counted(DEEP) as (mount, tally):
            requests = over(5, tally, reading(mount))
    work = f"warm open + read + close, {RATE} writes/s elsewhere"
    return Result.of(work, MICROSECONDS, times, None, requests, NOTHING)


@contextmanager
def writes_elsewhere(port: int) -> Iterator[None]:
    """Another client writes all the time, at a steady pace."""
    stop = Event()

    def write() -> None:
        with Raw(port) as raw:
            begin, number = time.monotonic(), 0
            while not stop.wait(max(0, begin + number / RATE - time.monotonic())):
                raw.put(f"elsewhere/k{number % 100}", content())
                number += 1

    thread = Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@row("idle")
def idle(stage: Stage) -> Result:
    with stage.counted(MANY) as (mount, tally):
        for _ in range(2):
            for folder in MANY.folders():
                look(mount.path / folder)
            time.sleep(2)
        time.sleep(BEGUN_SECONDS)
        before, used, begin = tally.now(), mount.cpu(), time.monotonic()
        time.sleep(IDLE_SECONDS)
        part = (mount.cpu() - used) / (time.monotonic() - begin)
        requests, watches = tally.now() - before, mount.stats()["consulfs_watches"]
    work = f"idle after `ls -l` of {MANY.directories} directories, {watches:.0f} watches: CPU"
    return Result(work, PERCENT, part, {}, Goal(0.01), requests, NOTHING)
