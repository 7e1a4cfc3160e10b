"""Where the time of an operation goes: the processor time of all who take part in it, and a create by its steps.

    python benchmarks/shares.py

Two tables. Much of the first overlaps: the programs, the daemon and Consul run beside each other, and the kernel
releases a file while the program goes on. "kernel" is the time of the daemon inside system calls, and that of the
kernel on its behalf.
"""

from __future__ import annotations

import itertools
import os
import resource
import statistics
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rows import DEEP, ROUNDS, SMALL, content, settle, write_file
from rows.writing import FOLDER, look, put
from stage import Call, Mount, Stage, cpu, each_of, family, read_file, run, take_turns
from trees import ROOT

from consulfs import consulate
from consulfs.consulate.api.txn import Operation, encode, operation


class Shares(NamedTuple):
    """Seconds, in the order of the columns."""

    wall: float
    python: float
    kernel: float
    program: float
    consul: float

    def __sub__(self, other: Shares) -> Shares:
        return Shares(*(mine - theirs for mine, theirs in zip(self, other)))


def main() -> None:
    with Stage() as stage:
        print(f"| an operation, us | {' | '.join(Shares._fields)} |\n|---|{'---|' * len(Shares._fields)}", flush=True)
        for name, works in (("open + read + close", opens), ("create + write + close", creates)):
            with stage.consulfs(SMALL) as mount, stage.floor(SMALL) as floor:
                settle(partial(look, mount.path / FOLDER))
                show(name, "consulfs", works(mount))
                show(name, "floor", works(floor))
        for who in ("consulfs", "floor"):
            show("tar, a file", who, [archive(stage, who) for _ in range(5)])
        show_steps(steps(stage))


def opens(mount: Mount) -> list[Shares]:
    call = partial(read_file, str(mount.path / SMALL.first))
    return [of_each(mount, call, 2000) for _ in range(ROUNDS)]


def creates(mount: Mount) -> list[Shares]:
    numbers = itertools.count()

    def call() -> None:
        write_file(f"{mount.path}/{FOLDER}/share{next(numbers)}", os.O_CREAT | os.O_TRUNC)

    return [of_each(mount, call, 200) for _ in range(ROUNDS)]


def archive(stage: Stage, who: str) -> Shares:
    with stage.consulfs(DEEP) if who == "consulfs" else stage.floor(DEEP) as mount:
        return of_each(mount, lambda: run(["tar", "c", "-C", mount.path, ROOT], stage.output), 1, len(DEEP))


def steps(stage: Stage) -> dict[str, float]:
    """Seconds of what a create is made of, each in its turn, and of the whole."""
    with (
        stage.raw(SMALL) as raw,
        consulate.Consul("127.0.0.1", stage.store(SMALL)) as consul,
        stage.floor(SMALL) as floor,
        stage.consulfs(SMALL) as mount,
    ):

        def makes() -> list[Operation]:
            return [operation("cas", f"steps/k{next(numbers)}", content(), flags=0, index=0)]

        def create(mount: Mount) -> Call:
            return lambda: write_file(f"{mount.path}/{FOLDER}/step{next(numbers)}", os.O_CREAT | os.O_TRUNC)

        numbers = itertools.count()
        works: dict[str, Call] = {
            "PUT, http.client": partial(put, raw),
            "transaction, http.client": lambda: raw.transact(encode(makes())),
            "transaction, `consul.txn`": lambda: consul.txn.execute(makes()),
            "create, floor": create(floor),
            "create, consulfs": create(mount),
        }
        settle(partial(look, mount.path / FOLDER))
        return take_turns(ROUNDS, {name: partial(each_of, call, 50) for name, call in works.items()})


def of_each(mount: Mount, call: Call, count: int, files: int = 1) -> Shares:
    """What one of many calls in a row takes, or one of the files of a single one."""
    before = now(mount)
    for _ in range(count):
        call()
    return Shares(*(each / count / files for each in now(mount) - before))


def now(mount: Mount) -> Shares:
    python, kernel = cpu(family(mount.process.pid))
    consuls = [pid for pid in family(os.getpid()) if Path(f"/proc/{pid}/comm").read_text() == "consul\n"]
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Shares(
        time.perf_counter(),
        python,
        kernel,
        sum(each.ru_utime + each.ru_stime for each in own),
        sum(cpu(consuls)),
    )


def show(work: str, who: str, shares: list[Shares]) -> None:
    """A row: the means without the least and the most, since processor time is told in hundredths of a second."""
    means = [statistics.fmean(sorted(each)[1:-1]) for each in zip(*shares)]
    print(f"| {work}, {who} | {' | '.join(f'{each * 1e6:.0f}' for each in means)} |", flush=True)


def show_steps(seconds: dict[str, float]) -> None:
    print(f"\n| median of {ROUNDS} | us |\n|---|---|")
    for name, each in seconds.items():
        print(f"| {name} | {each * 1e6:.0f} |")


if __name__ == "__main__":
    main()
