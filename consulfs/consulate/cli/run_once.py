"""`consulate run_once`: a command that runs on one machine at a time, and not more often than asked for."""

from __future__ import annotations

import argparse
import signal
import subprocess
import time
from typing import Any, Optional, Union

from consulfs.consulate.cli import terminal
from consulfs.consulate.client import Consul
from consulfs.consulate.exceptions import LockFailure
from consulfs.consulate.models import seconds

HELD = 2
"""The exit status where somebody else has the lock."""

NOT_FOUND, NOT_RUNNABLE = 127, 126
"""The exit statuses of a shell for a command that is not there or cannot be run."""


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
    interval = None if arguments.interval is None else seconds(arguments.interval)
    status: Optional[int] = None
    consul.lock.prefix("")
    try:
        with consul.lock.acquire(arguments.lock):
            if interval is not None and not _due(consul, arguments.lock, interval):
                terminal.line(f"Last run happened fewer than {arguments.interval} seconds ago. Exiting".encode())
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
        status = child.wait()
    return status if status >= 0 else 128 - status


class _Signals:
    """While the command runs, SIGTERM and SIGHUP are for the command; Ctrl-C reaches it by the terminal."""

    def __init__(self) -> None:
        self._child: Optional[subprocess.Popen[bytes]] = None
        self._early: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number, handler in (
            (signal.SIGTERM, self._hand_on),
            (signal.SIGHUP, self._hand_on),
            (signal.SIGINT, lambda *_: None),
        ):
            self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hand_to(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        for number in self._early:
            child.send_signal(number)

    def _hand_on(self, number: int, _frame: object) -> None:
        if self._child is None:
            self._early.append(number)
        else:
            self._child.send_signal(number)
