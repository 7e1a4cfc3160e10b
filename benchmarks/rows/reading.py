"""What is read: again and again, and for the first time."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Callable

from counting import Requests
from report import MICROSECONDS, SECONDS, THROUGHPUT, Allowed, Goal, Result
from stage import Call, Failed, Stage, Words, each_of, read_file, run, seconds_of, take_turns
from trees import ROOT, Tree

from rows import COLD_ROUNDS, DEEP, LARGE, NOTHING, ROUNDS, SMALL, Prepare, over, row, settle

WIDE = Tree(1000, 100)

# -- warm ----------------------------------------------------------------------------------------------------


@row("stat")
def stat(stage: Stage) -> Result:
    def prepare(folder: Path) -> Call:
        return partial(os.stat, str(folder / SMALL.first))

    times = warm(stage, prepare, 2000)
    goal = Goal(1.2 * times["tmpfs"], "1.2 x tmpfs")
    return Result.of("stat, warm", MICROSECONDS, times, goal, again(stage, prepare), NOTHING)


@row("open")
def open_read_close(stage: Stage) -> Result:
    def prepare(folder: Path) -> Call:
        return partial(read_file, str(folder / SMALL.first))

    times = warm(stage, prepare, 300)
    goal = Goal(1.2 * times["floor"], "1.2 x floor")
    work = "open + read + close, warm, 100 bytes"
    return Result.of(work, MICROSECONDS, times, goal, again(stage, prepare), NOTHING)


@row("read")
def read_large(stage: Stage) -> Result:
    def prepare(folder: Path) -> Call:
        path = folder / "large"
        path.write_bytes(LARGE)
        return partial(read_file, str(path))

    rates = {name: len(LARGE) / seconds for name, seconds in warm(stage, prepare, 50).items()}
    goal = Goal(0.9 * rates["floor"], "0.9 x floor", at_least=True)
    return Result.of("read 512 KiB, warm", THROUGHPUT, rates, goal, again(stage, prepare), NOTHING)


def warm(stage: Stage, prepare: Prepare, calls: int) -> dict[str, float]:
    """Seconds of one call in each of the sites, after one that is not measured."""

    def measure(call: Call) -> float:
        call()
        return each_of(call, calls)

    with stage.sites(SMALL) as sites:
        works = {name: partial(measure, prepare(folder)) for name, folder in sites.items()}
        return take_turns(ROUNDS, works)


def again(stage: Stage, prepare: Prepare) -> Requests:
    """The requests while a call is made again and again for three seconds."""
    with stage.counted(SMALL) as (mount, tally):
        call = prepare(mount.path)
        settle(call)
        return over(3, tally, call)


# -- cold ----------------------------------------------------------------------------------------------------


@row("tar")
def tar(stage: Stage) -> Result:
    def words(folder: Path) -> Words:
        return ["tar", "c", "-C", folder, ROOT]

    def recurse() -> float:
        with stage.raw(DEEP) as raw:
            return seconds_of(lambda: raw.recurse(ROOT))

    times = cold(stage, DEEP, words, lambda output: output.stat().st_size, {"raw recurse": recurse})
    goal = Goal(times["floor"] + 1.5 * times["raw recurse"], "floor + 1.5 x raw")
    requests, allowed = walked(stage, DEEP, words), Allowed("at most 200", reads=200)
    return Result.of(f"`tar c` of {len(DEEP):,} cold keys", SECONDS, times, goal, requests, allowed)


@row("ls", is_slow=True)
def ls(stage: Stage) -> Result:
    def words(folder: Path) -> Words:
        return ["ls", "-lR", folder / ROOT]

    def calls() -> float:
        with stage.raw(WIDE) as raw:
            return seconds_of(lambda: [(raw.names(folder), raw.recurse(folder)) for folder in WIDE.folders()])

    times = cold(stage, WIDE, words, lambda output: output.read_bytes().count(b"\n"), {"raw calls": calls})
    goal = Goal(times["floor"] + 2 * times["raw calls"], "floor + 2 x raw")
    allowed = Allowed("at most 4 a directory", reads=4 * WIDE.directories)
    requests = walked(stage, WIDE, words)
    work = f"`ls -lR` of {len(WIDE):,} cold keys"
    return Result.of(work, SECONDS, times, goal, requests, allowed, WIDE.directories, "directory")


def cold(
    stage: Stage,
    tree: Tree,
    words: Callable[[Path], Words],
    size: Callable[[Path], int],
    others: dict[str, Callable[[], float]],
) -> dict[str, float]:
    """Seconds of a program on mounts that are fresh each time.

    :param words: the program, from the folder
    :param size: of its output; it must be the same everywhere
    :param others: the works that are no program's
    """
    sizes: set[int] = set()

    def measure(folder: Path) -> float:
        seconds = seconds_of(lambda: run(words(folder), stage.output))
        sizes.add(size(stage.output))
        if len(sizes) > 1:
            raise Failed(f"{words(folder)[0]} has not the same output everywhere")
        return seconds

    def product() -> float:
        with stage.consulfs(tree) as mount:
            return measure(mount.path)

    def floor() -> float:
        with stage.floor(tree) as mount:
            return measure(mount.path)

    with stage.local(tree) as local:
        return take_turns(COLD_ROUNDS, {"consulfs": product, "floor": floor, **others, "tmpfs": lambda: measure(local)})


def walked(stage: Stage, tree: Tree, words: Callable[[Path], Words]) -> Requests:
    """The requests of a program on a fresh mount."""
    with stage.counted(tree) as (mount, tally):
        before = tally.now()
        run(words(mount.path), stage.output)
        return tally.now() - before
