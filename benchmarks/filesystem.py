"""What the file system costs, beside what stands beneath it: one table and one chart.

    python benchmarks/filesystem.py [--quick] [--only ROW] [--write]

Starts Consuls in memory, and mounts of its own. What stands beside a row is measured in the same run, in turns with
it; docs/benchmarks.md explains the rows. Requests are counted in runs of their own.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from report import Result, heading, row_of, write
from rows import ROWS, SLOW
from stage import Failed, Stage

from consulfs.consulate import ConsulateException
from consulfs.devagent import NoAgent

DOCS = Path(__file__).resolve().parent.parent / "docs"


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all that was made is taken away
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(1))
    names = arguments.only or [name for name in ROWS if not (arguments.quick and name in SLOW)]
    where, results = conditions(), []
    print(heading(), flush=True)
    with Stage() as stage:
        for name in names:
            results.append(_measured(name, stage))
            print(row_of(results[-1]), flush=True)
    print(f"\n{where}")
    if arguments.write:
        write(DOCS, results, where)
    return int(any(result.failed for result in results))


def _measured(name: str, stage: Stage) -> Result:
    """A row; one that cannot be measured does not keep the others from it."""
    try:
        return ROWS[name](stage)
    except (Failed, OSError, subprocess.SubprocessError, NoAgent, ConsulateException) as error:
        return Result(name, note=f"failed: {error}", failed=True)


def conditions() -> str:
    """Where and when it was measured."""
    command = os.environ.get("CONSUL", "consul")
    if shutil.which(command) is None:
        sys.exit(f"no {command!r} command: let CONSUL tell where it is")
    version = subprocess.run([command, "version"], stdout=subprocess.PIPE, check=True).stdout.decode().split("\n")[0]
    kernel = platform.release().split("-")[0]
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Linux {kernel}, Python {platform.python_version()},"
        f" {version} in memory on loopback."
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"without the rows that take minutes: {', '.join(SLOW)}")
    parser.add_argument("--only", action="append", choices=ROWS, metavar="ROW", help=f"only: {', '.join(ROWS)}")
    parser.add_argument("--write", action="store_true", help="put the table and the chart into docs/")
    arguments = parser.parse_args()
    if arguments.write and (arguments.only or arguments.quick):
        parser.error("the page shows whole runs")
    return arguments


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
