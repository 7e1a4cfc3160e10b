"""Processes that lock files: each a child that does what it is told, one call at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support.child import Child, given
from support.waiting import until

FILES = str(Path(__file__).with_name("locked_files.py"))

OFD_GETLK, OFD_SETLK = 36, 37


class Locker(Child):
    """A child process with numbered descriptors. A call that fails raises the child's OSError.

    :param inherited: a descriptor of this process that it has as its number 1
    """

    def __init__(self, inherited: int | None = None) -> None:
        descriptors = [] if inherited is None else [inherited]
        super().__init__("-S", "-E", FILES, *map(str, descriptors), pass_fds=descriptors)

    def __call__(self, name: str, *arguments: object) -> object:
        self.begin(name, *arguments)
        return self.end()

    def begin(self, name: str, *arguments: object) -> None:
        """Have a call made, and do not wait for its end."""
        self.say(json.dumps([name, *arguments], default=str))

    def end(self) -> object:
        """What the call has answered."""
        return given(*json.loads(self.hear()))

    def begin_wait(self, name: str, *arguments: object) -> None:
        """Begin a call that is to wait for an answer of the mount."""
        self.begin(name, *arguments)
        until(lambda: waits_for_mount(self.pid))
        assert not self.has_ended(0.1)


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
