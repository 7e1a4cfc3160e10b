"""A program in a mount that does one thing after another as it is told, and says what became of each.

What a test does itself is seen by the mount differently: each process that it starts closes what it has open there.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from support.child import Child, given
from support.mount import Mount

EX, NB, UN = "fcntl.flock(f, LOCK_EX)", "fcntl.flock(f, LOCK_EX | LOCK_NB)", "fcntl.flock(f, LOCK_UN)"

SCRIPT = """
import errno, fcntl, os, sys
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN
from os import O_APPEND, O_CREAT, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY
for line in sys.stdin:
    try:
        print(repr((None, eval("(" + line + ")"))), flush=True)
    except OSError as error:
        print(repr((error.errno, None)), flush=True)
"""


class Program(Child):
    """Call it with a Python expression; one that assigns is `f := os.open(...)`. Ended on exit."""

    def __init__(self, folder: Path) -> None:
        super().__init__("-c", SCRIPT, cwd=folder)

    def begin(self, expression: str) -> None:
        """Have it done, and wait for nothing."""
        self.say(expression)

    def end(self) -> Any:
        """Wait for what was begun: its value; raises what it raised."""
        return given(*eval(self.hear()))

    def __call__(self, expression: str) -> Any:
        self.begin(expression)
        return self.end()


class Programs(ExitStack):
    """Starts programs that have a file of a mount open as `f`. They end before the mount does."""

    def __call__(self, mount: Mount, name: str = "f") -> Program:
        program = self.enter_context(Program(mount.path))
        program(f"f := os.open({name!r}, O_RDWR)")
        return program
