"""A child process that does one thing after another as it is told: a line says what, a line answers."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from support.agent import die_with_parent

if TYPE_CHECKING:
    from typing_extensions import Self

LIMIT = 60
"""Seconds after which an answer does not come any more."""


class Child:
    """A Python process, killed on exit.

    :param arguments: for Python
    :param options: for subprocess.Popen
    """

    def __init__(self, *arguments: str, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            preexec_fn=die_with_parent,
            **options,
        )
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(LIMIT)

    def say(self, line: str) -> None:
        """Have it do something, and wait for nothing."""
        self.process.stdin.write(line + "\n")

    def hear(self) -> str:
        """Wait for the line that answers."""
        assert self.has_ended(LIMIT), "it hangs"
        line = self.process.stdout.readline()
        assert line, f"the child has ended: {self.process.wait(LIMIT)}"
        return line

    def has_ended(self, seconds: float = 0) -> bool:
        """Whether what it was told to do is done."""
        return bool(select.select([self.process.stdout], [], [], seconds)[0])


def given(code: int | None, value: Any) -> Any:
    """What a call has given in the child; raises its OSError."""
    if code:
        raise OSError(code, os.strerror(code))
    return value
