"""Processes that lock files: each a child that does what it is told, one call at a time."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support.agent import die_with_parent

FILES = str(Path(__file__).with_name("locked_files.py"))

LIMIT = 60

OFD_GETLK, OFD_SETLK = 36, 37


class Locker:
    """A child process with numbered descriptors. A call that fails raises the child's OSError.

    :param inherited: a descriptor of this process that it has as its number 1
    """

    def __init__(self, inherited: int | None = None) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-S", "-E", FILES, *([] if inherited is None else [str(inherited)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            pass_fds=[] if inherited is None else [inherited],
            preexec_fn=die_with_parent,
        )
        self.pid = self.child.pid

    def __enter__(self) -> Locker:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()
        self.child.stdin.close()
        self.child.stdout.close()

    def __call__(self, name: str, *arguments: object) -> object:
        self.begin(name, *arguments)
        return self.end()

    def begin(self, name: str, *arguments: object) -> None:
        """Have a call made, and do not wait for its end."""
        self.child.stdin.write(json.dumps([name, *arguments], default=str) + "\n")

    def end(self) -> object:
        """What the call has answered."""
        assert self.has_ended(LIMIT), "it hangs"
        line = self.child.stdout.readline()
        assert line, f"the child has ended: {self.child.wait(LIMIT)}"
        answer = json.loads(line)
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        return answer["answer"]

    def has_ended(self, seconds: float = 0) -> bool:
        return bool(select.select([self.child.stdout], [], [], seconds)[0])

    def begin_wait(self, name: str, *arguments: object) -> None:
        """Begin a call that is to wait for an answer of the mount."""
        self.begin(name, *arguments)
        deadline = time.monotonic() + LIMIT
        while not waits_for_mount(self.pid):
            assert time.monotonic() < deadline, "it does not wait"
            time.sleep(0.005)
        assert not self.has_ended(0.1)

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.child.send_signal(number)
        self.child.wait(LIMIT)


@contextmanager
def opened(*paths: Path) -> Iterator[list[Locker]]:
    """A process for each of these, which has it open as number 1."""
    with ExitStack() as stack:
        lockers = [stack.enter_context(Locker()) for _ in paths]
        for each, path in zip(lockers, paths):
            each("open", 1, path)
        yield lockers


def waits_for_mount(pid: int | str) -> bool:
    """Whether a process waits for an answer of a mount: that is done in this function of the kernel."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text() == "request_wait_answer"
    except OSError:
        return False  # it has ended
