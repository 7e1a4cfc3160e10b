"""A program in a mount that does one thing after another as it is told, and says what became of each.

What a test does itself is seen by the mount differently: each process that it starts closes what it has open there.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from support.agent import die_with_parent
from support.mount import Mount

LIMIT = 60
"""Seconds after which an answer does not come any more."""

EX, NB, UN = "fcntl.flock(f, LOCK_EX)", "fcntl.flock(f, LOCK_EX | LOCK_NB)", "fcntl.flock(f, LOCK_UN)"

SCRIPT = """
import errno, fcntl, os, sys
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN
from os import O_APPEND, O_CREAT, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY
for line in sys.stdin:
    try:
        print(repr((0, eval("(" + line + ")"))), flush=True)
    except OSError as error:
        print(repr((error.errno, None)), flush=True)
"""


class Program:
    """Call it with a Python expression; one that assigns is `f := os.open(...)`. Ended on exit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Program:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=die_with_parent,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def begin(self, expression: str) -> None:
        """Have it done, and wait for nothing."""
        self.process.stdin.write(expression.encode() + b"\n")
        self.process.stdin.flush()

    def is_done(self, seconds: float = 0) -> bool:
        """Whether what was begun is done."""
        return bool(select.select([self.process.stdout], [], [], seconds)[0])

    def end(self) -> Any:
        """Wait for what was begun: its value; raises what it raised."""
        assert self.is_done(LIMIT), "it hangs"
        code, value = eval(self.process.stdout.readline())
        if code:
            raise OSError(code, os.strerror(code))
        return value

    def __call__(self, expression: str) -> Any:
        self.begin(expression)
        return self.end()

    def error(self, expression: str) -> int:
        """The errno of one that must fail."""
        try:
            value = self(expression)
        except OSError as error:
            return error.errno
        raise AssertionError(f"{expression}: {value!r}")


class Programs(ExitStack):
    """Starts programs that have a file of a mount open as `f`. They end before the mount does."""

    def __call__(self, mount: Mount, name: str = "f") -> Program:
        program = self.enter_context(Program(mount.path))
        program(f"f := os.open({name!r}, O_RDWR)")
        return program
