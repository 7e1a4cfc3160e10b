"""`consulate run_once`: a command that runs on one machine at a time, and not more often than asked for."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
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
    """Run the command to its end; its exit status as a shell tells it. SIGTERM and SIGHUP are handed on to it."""
    # The original runs its first word by the shell, so that a whole command in quotes works there.
    shell = len(command) == 1
    words: Union[str, list[str]] = command[0] if shell else command
    try:
        child = subprocess.Popen(words, shell=shell)
    except OSError as error:
        terminal.note(f"{command[0]}: {error.strerror}")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE
    with _handing_on(child):
        status = child.wait()
    return status if status >= 0 else 128 - status


@contextmanager
def _handing_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """While the command runs, what is to end this process is for the command; Ctrl-C reaches it by the terminal."""

    def hand_on(number: int, _frame: Optional[FrameType]) -> None:
        if child.poll() is None:
            os.kill(child.pid, number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
