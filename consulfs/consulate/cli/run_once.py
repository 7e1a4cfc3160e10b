"""`consulate run_once`: a command that runs on one machine at a time, and not more often than asked for."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from typing import Any, Optional, Union

from consulfs.consulate.cli import terminal
from consulfs.consulate.client import Consul
from consulfs.consulate.exceptions import LockFailure
from consulfs.consulate.models import seconds

HELD = 2
"""The exit status where somebody else has the lock."""

NOT_FOUND, NOT_RUNNABLE = 127, 126
"""The exit statuses of a shell for a command that is not there or cannot be run."""

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def add_commands(commands: Any) -> None:
    run = commands.add_parser("run_once", help="run a command under a lock in Consul")
    run.add_argument("-i", "--interval", help="do nothing if it was run within so many seconds (or such as 5m)")
    run.add_argument("lock", type=terminal.key, help="the lock's key")
    run.add_argument(
        "command_to_run",
        metavar="command",
        nargs=argparse.REMAINDER,
        help="the command with its arguments; a single word is given to the shell",
    )
    run.set_defaults(run=_run)


def _run(consul: Consul, arguments: argparse.Namespace) -> int:
    command = arguments.command_to_run
    command = command[1:] if command[:1] == ["--"] else command
    if not command:
        raise ValueError("run_once needs a command")
    if not arguments.lock.strip("/"):
        raise ValueError("run_once needs the name of a lock")
    interval = None if arguments.interval is None else seconds(arguments.interval)
    status: Optional[int] = None
    consul.lock.prefix("")
    try:
        with consul.lock.acquire(arguments.lock):
            if interval is not None and not _due(consul, arguments.lock, interval):
                terminal.line(f"Last run happened fewer than {interval:.15g} seconds ago. Exiting".encode())
                return 0
            status = execute(command)
    except LockFailure as error:
        if status is None:
            terminal.note(f"Cannot obtain the required lock. Exiting ({error})")
            return HELD
        terminal.note(str(error))
    return status or 0


def _due(consul: Consul, lock: str, interval: float) -> bool:
    """Whether the last run is long enough ago; if so, this one is noted, before it begins."""
    key, now = f"{lock}_last_run", int(time.time())
    last = consul.kv.get(key)
    if last:
        try:
            began = int(last)
        except ValueError:
            raise ValueError(f"{key} holds no time; delete it or set it to 0") from None
        if began + interval > now:
            return False
    consul.kv[key] = str(now)
    return True


def execute(command: list[str]) -> int:
    """Run the command to its end; its exit status as a shell tells it."""
    # The original runs its first word by the shell, so that a whole command in quotes works there.
    shell = len(command) == 1
    words: Union[str, list[str]] = command[0] if shell else command
    with _Signals() as signals:
        try:
            child = subprocess.Popen(words, shell=shell)
        except OSError as error:
            terminal.note(f"{command[0]}: {error.strerror}")
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE
        signals.hand_to(child)
        status = _wait(child, signals)
    return status if status >= 0 else 128 - status


def _wait(child: subprocess.Popen[bytes], signals: _Signals) -> int:
    """Until the command has ended; if it was ended by a signal from here, until all that it had started has."""
    status: Optional[int] = None
    while status is None or signals.handed_on:
        try:
            pid, raw = os.waitpid(-1, 0)  # orphans come to this process, so they are collected too
        except ChildProcessError:
            break
        if pid == child.pid:
            status = child.returncode = os.waitstatus_to_exitcode(raw)
        signals.tell_orphans()
    return status or 0


class _Signals:
    """While the command runs, SIGTERM and SIGHUP are for it and all that it has started; Ctrl-C reaches it by the
    terminal. What was ignored (nohup) stays so.

    No process group of its own: the command would not be in the terminal's foreground, and what is piped to or from it
    not either. Instead this process adopts orphans while the command runs, so that none is out of sight.
    """

    def __init__(self) -> None:
        self.handed_on: list[int] = []
        self._child: Optional[subprocess.Popen[bytes]] = None
        self._told: set[int] = set()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        _adopt_orphans(True)
        for number, handler in (
            (signal.SIGTERM, self._hand_on),
            (signal.SIGHUP, self._hand_on),
            (signal.SIGINT, lambda *_: None),
        ):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        _adopt_orphans(False)

    def hand_to(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        for number in self.handed_on:
            self._tell(number, [child.pid])

    def tell_orphans(self) -> None:
        """A signal that was handed on is for those too that were started just then, if nobody else looks after them."""
        if self.handed_on and self._child is not None:
            own = [pid for pid, parent in _parents().items() if parent == os.getpid() and pid != self._child.pid]
            self._tell(self.handed_on[-1], [pid for pid in own if pid not in self._told])

    def _hand_on(self, number: int, _frame: object) -> None:
        self.handed_on.append(number)
        if self._child is not None:
            command = {self._child.pid} if self._child.returncode is None else set()
            self._tell(number, command | _descendants())

    def _tell(self, number: int, pids: Iterable[int]) -> None:
        for pid in pids:
            self._told.add(pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended, or is another user's
                os.kill(pid, number)


def _adopt_orphans(whether: bool) -> None:
    """Become the parent of every descendant whose own parent ends: prctl(2). Where there is no such call, do not."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(whether), 0, 0, 0)


def _descendants() -> set[int]:
    """The processes that this one has started, and those that they have."""
    parents = _parents()
    found: set[int] = set()
    new = {os.getpid()}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new}
        found |= new
    return found


def _parents() -> dict[int, int]:
    """Each process and its parent, where there is /proc."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                # pid (name) state parent, where the name may hold anything: proc(5)
                found[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    return found
