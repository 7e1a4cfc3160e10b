"""What is written."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Callable

from counting import Requests
from report import MICROSECONDS, SECONDS, Allowed, Goal, Result
from stage import Call, Raw, Stage, each_of, run, seconds_of, take_turns
from trees import ROOT

from rows import ROUNDS, SMALL, Prepare, content, row, settle, write_file

CALLS = 20

COPIES, COPY_ROUNDS = 1000, 5

FOLDER = f"{ROOT}/d0000"

ONE_WRITE = Allowed("1 write, no read", writes=CALLS)


@row("create")
def create(stage: Stage) -> Result:
    def prepare(folder: Path) -> Call:
        numbers = itertools.count()
        return lambda: write_file(f"{folder}/{FOLDER}/new{next(numbers)}", os.O_CREAT | os.O_TRUNC)

    times = calls(stage, prepare)
    goal = Goal(1.5 * (times["floor"] + times["raw PUT"]), "1.5 x (floor + PUT)")
    work = "create + write + close, 100 bytes"
    return Result.of(work, MICROSECONDS, times, goal, counted(stage, prepare), ONE_WRITE, CALLS, "file")


@row("rewrite")
def rewrite(stage: Stage) -> Result:
    return old_file(stage, "rewrite, 100 bytes", os.O_TRUNC)


@row("append")
def append(stage: Stage) -> Result:
    return old_file(stage, "append, 100 bytes", os.O_APPEND)


def old_file(stage: Stage, work: str, flags: int) -> Result:
    """A file that is there is opened and written."""

    def prepare(folder: Path) -> Call:
        # In turns, so that none of those that are appended to grows large.
        paths = itertools.cycle([str(folder / path) for path in SMALL.paths() if path.startswith(FOLDER)])
        return lambda: write_file(next(paths), flags)

    times, requests = calls(stage, prepare), counted(stage, prepare)
    return Result.of(work, MICROSECONDS, times, None, requests, ONE_WRITE, CALLS, "file")


def calls(stage: Stage, prepare: Prepare) -> dict[str, float]:
    """Seconds of one call in each of the sites, where the directory is known, and of a PUT."""
    with stage.raw(SMALL) as raw, stage.sites(SMALL) as sites:
        works = {name: prepare(folder) for name, folder in sites.items()}
        for folder in sites.values():
            settle(partial(look, folder / FOLDER))
        works["raw PUT"] = partial(put, raw)
        return take_turns(ROUNDS, {name: partial(each_of, call, CALLS) for name, call in works.items()})


def counted(stage: Stage, prepare: Prepare) -> Requests:
    """The requests of so many calls in a directory that is known, and was changed before: its first change lets the
    watch read it whole, once."""
    with stage.counted(SMALL) as (mount, tally):
        call = prepare(mount.path)
        look(mount.path / FOLDER)
        settle(call)
        look(mount.path / FOLDER)
        before = tally.now()
        for _ in range(CALLS):
            call()
        return tally.settled() - before


def put(raw: Raw) -> None:
    """Write a hundred bytes to a key, one of a hundred in turn."""
    value = content()
    raw.put(f"raw/k{int(value) % 100}", value)


def look(folder: Path) -> None:
    """List a directory, with attributes."""
    for entry in os.scandir(folder):
        entry.stat()


# -- cp ------------------------------------------------------------------------------------------------------


@row("cp")
def cp(stage: Stage) -> Result:
    return copies(stage, "", 2)


@row("cp-close")
def cp_close(stage: Stage) -> Result:
    return copies(stage, "exclusive=close", 1)


def copies(stage: Stage, options: str, writes: int) -> Result:
    """`cp -r` of small files into a directory that is known.

    :param writes: requests that a file may cost
    """
    work = f"`cp -r` of {COPIES:,} small files in" + (f", `{options}`" if options else "")
    with small_files(stage) as source, stage.raw(SMALL) as raw, stage.sites(SMALL, options) as sites:

        def copy(numbers: Iterator[int], folder: Path) -> float:
            look(folder / FOLDER)
            target = folder / FOLDER / f"copy{next(numbers)}"
            return seconds_of(lambda: run(["cp", "-r", source, target], stage.output))

        def puts() -> float:
            return each_of(partial(put, raw), COPIES * writes) * COPIES * writes

        works: dict[str, Callable[[], float]] = {
            name: partial(copy, itertools.count(), folder) for name, folder in sites.items()
        }
        works["raw PUTs"] = puts
        times = take_turns(COPY_ROUNDS, works)
        goal = Goal(1.5 * (times["floor"] + times["raw PUTs"]), "1.5 x (floor + PUTs)")
        requests = counted_copy(stage, source, options)
    a_file = f"{writes} write{'s' * (writes > 1)} a file"
    # One write more for the directory; a few reads for all of them together.
    allowed = Allowed(f"{a_file}, no read", reads=COPIES // 100, writes=COPIES * writes + 1)
    return Result.of(work, SECONDS, times, goal, requests, allowed, COPIES, "file")


def counted_copy(stage: Stage, source: Path, options: str) -> Requests:
    with stage.counted(SMALL, options) as (mount, tally):
        settle(partial(look, mount.path / FOLDER))
        before = tally.now()
        run(["cp", "-r", source, mount.path / FOLDER / "counted"], stage.output)
        return tally.settled() - before


@contextmanager
def small_files(stage: Stage) -> Iterator[Path]:
    """A folder with the files to copy."""
    folder = stage.memory / "source"
    folder.mkdir()
    try:
        for number in range(COPIES):
            (folder / f"k{number:04}").write_bytes(content())
        yield folder
    finally:
        shutil.rmtree(folder)
