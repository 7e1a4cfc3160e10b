"""What a mount needs, of memory and until it answers, in a large store."""

from __future__ import annotations

import os
import time
from functools import partial

from report import MEMORY, SECONDS, Goal, Result
from stage import COMMAND, Stage, run, seconds_of, take_turns
from trees import ROOT, Tree

from consulfs.options import parse
from rows import DEEP, row

HUGE, EMPTY = Tree(1000, 1000), Tree(0, 0)

BASE = 60e6
"""Bytes that a mount may need before it holds anything."""


@row("memory")
def memory(stage: Stage) -> Result:
    with stage.consulfs(DEEP) as mount:
        run(["tar", "c", "-C", mount.path, ROOT], stage.output)
        cached, used = mount.stats()["consulfs_cache_bytes"], mount.memory("VmRSS")
    goal = Goal(BASE + 2 * cached, f"60 MB + 2 x {MEMORY.show(cached)} cached")
    return Result(f"memory after `tar c` of {len(DEEP):,} keys", MEMORY, used, {}, goal)


@row("million", is_slow=True)
def million(stage: Stage) -> Result:
    bound = parse([], {})["cache_size"]
    with stage.consulfs(HUGE) as mount:
        run(["ls", "-lR", mount.path / ROOT], stage.output)
        most = mount.memory("VmHWM")
    goal = Goal(BASE + 2 * bound, f"60 MB + 2 x {MEMORY.show(bound)} of cache")
    return Result(f"most memory in `ls -lR` of {len(HUGE):,} keys", MEMORY, most, {}, goal)


@row("mount", is_slow=True)
def mount(stage: Stage) -> Result:
    def product() -> float:
        with stage.point() as point:
            begin = time.perf_counter()
            # Detached, as users have it: the command returns when the mount serves.
            run([COMMAND, f"127.0.0.1:{port}", point], stage.output)
            os.listdir(point / ROOT)
            return time.perf_counter() - begin

    def floor() -> float:
        begin = time.perf_counter()
        with stage.floor(EMPTY) as mount:
            os.listdir(mount.path)
            return time.perf_counter() - begin

    port = stage.store(HUGE)
    with stage.raw(HUGE) as raw:
        names = partial(seconds_of, partial(raw.names, ROOT))
        times = take_turns(5, {"consulfs": product, "empty floor": floor, "raw names": names})
    return Result.of(f"mount to first answer, {len(HUGE):,} keys", SECONDS, times, Goal(1))
