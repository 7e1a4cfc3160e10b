"""What a thousand programs that wait for one lock cost the others on their mount: one table.

    python benchmarks/waiters.py [WAITERS]

Starts a Consul in memory and a mount of its own. The same work is done without anybody waiting and with all of them;
then a few are interrupted, and the rest get their turn.
"""

from __future__ import annotations

import fcntl
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Callable

from consulfs.devagent import DevAgent

ROUNDS = 200
INTERRUPTED = 20


def main() -> None:
    waiters = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with ExitStack() as stack:
        agent = DevAgent(os.environ.get("CONSUL", "consul"))
        agent.start()
        stack.callback(agent.stop)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="consulfs-bench-")))
        mount = folder / "mnt"
        mount.mkdir()
        command = Path(sys.executable).with_name("consulfs")
        subprocess.run([command, f"127.0.0.1:{agent.port}", mount], check=True)
        stack.callback(subprocess.run, ["fusermount3", "-u", mount], check=True)
        measure(mount, waiters)


def measure(mount: Path, waiters: int) -> None:
    """Print the table."""
    (mount / "key").write_text("value")
    (mount / "lock").touch()
    idle = medians(mount)
    with open(mount / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        processes = [subprocess.Popen(["flock", mount / "lock", "true"]) for _ in range(waiters)]
        try:
            while not all(is_waiting(process.pid) for process in processes):
                time.sleep(0.1)
            crowded = medians(mount)
            latency = [interrupt(process) for process in processes[:INTERRUPTED]]
            begin = time.perf_counter()
            fcntl.flock(lock, fcntl.LOCK_UN)
            for process in processes[INTERRUPTED:]:
                process.wait()
            passed = time.perf_counter() - begin
        finally:
            for process in processes:
                process.kill()
                process.wait()
    print(f"| median of {ROUNDS} | us, nobody waits | us, {waiters} wait | ratio |\n|---|---|---|---|")
    for name, before in idle.items():
        after = crowded[name]
        print(f"| {name} | {before * 1e6:.0f} | {after * 1e6:.0f} | {after / before:.2f} |")
    middle, slowest = statistics.median(latency), max(latency)
    print(f"\nOf {INTERRUPTED} that were interrupted half had ended after {middle:.2f} s, all after {slowest:.2f} s.")
    print(f"The {waiters - INTERRUPTED} others had their turn in {passed:.1f} s.")


def medians(mount: Path) -> dict[str, float]:
    """Seconds of each kind of work."""
    work: dict[str, Callable[[], object]] = {
        "`ls`: list the directory": lambda: os.listdir(mount),
        "`cat`: open, read, close": (mount / "key").read_text,
        "`echo >`: open, write, close": lambda: (mount / "other").write_text("value"),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, do in work.items():
            begin = time.perf_counter()
            do()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(measured) for name, measured in times.items()}


def is_waiting(pid: int) -> bool:
    """Whether a process waits for an answer of its mount."""
    return Path(f"/proc/{pid}/wchan").read_text() == "request_wait_answer"


def interrupt(process: subprocess.Popen[bytes]) -> float:
    """Seconds from Ctrl-C to the end of a process."""
    begin = time.perf_counter()
    process.send_signal(signal.SIGINT)
    process.wait()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
