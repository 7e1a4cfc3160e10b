"""What /proc says of the processes that use the mount: whether one still has a file open, whether one is to end.

Both are answered by the kernel from what it has in memory. A stat() of an open file would come back to this daemon.
"""

from __future__ import annotations

import os
import signal
from enum import Enum
from typing import Optional

HARMLESS = frozenset({signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH})
"""What a process does not die of when it neither catches nor ignores it (signal(7)); nor stops, as by these:"""

STOPPING = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})

ENDING = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP})
"""What a program catches in order to stop what it does."""


class Heed(Enum):
    """Which of the signals that wait for a program end what it waits for."""

    ENDING = "those that end it, caught or not"
    FATAL = "only those that it does not catch"
    CAUGHT = "those that end it, and every one that it catches"


MODE = os.O_ACCMODE | os.O_APPEND


def has_open(pid: int, inode: int, name: str, mode: int) -> Optional[bool]:
    """Whether a process has this file open; None where that cannot be seen (another user's, another namespace's).

    A shell's `echo x > key` opens the file, duplicates the descriptor and closes the first before anything is written
    (measured with bash). The kernel reports that close like any other.

    :param pid: a process or thread, as the FUSE request gives it; 0 for one outside this PID namespace
    :param inode: the file's number on the mount
    :param name: the file's name, for kernels before 5.14, whose fdinfo has no inode
    :param mode: the O_ACCMODE and O_APPEND that it was opened with: a duplicate has the same
    """
    if pid <= 0:
        return None
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except FileNotFoundError:
        return False  # it has ended, and its descriptors with it
    except OSError:
        return None
    return any(_is(pid, descriptor, inode, name, mode) for descriptor in descriptors)


def process_of(thread: int) -> int:
    """The process that a thread belongs to; the thread's own number where that cannot be seen."""
    try:
        with open(f"/proc/{thread}/status", encoding="ascii", errors="replace") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("Tgid:"))
    except (OSError, StopIteration):
        return thread


def is_to_end(pid: int, heed: Heed = Heed.ENDING) -> bool:
    """Whether a signal waits for a thread that is to end its operation.

    The kernel interrupts a waiting operation for any signal. But a program whose child has ended, or whose timer has
    run, expects no EINTR from open(2) or stat(2): no local file system gives it one. From flock(2) it does: by a timer
    `flock -w 5` ends its wait.

    :return: True as well where that cannot be seen
    """
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            fields = dict(line.split(":\t", 1) for line in status if line.startswith(("Sig", "ShdPnd")))
        pending, blocked, ignored, caught = (int(fields[name], 16) for name in ("SigPnd", "SigBlk", "SigIgn", "SigCgt"))
        pending |= int(fields["ShdPnd"], 16)
    except (OSError, KeyError, ValueError):
        return True
    waiting = [number for number in range(1, 65) if (pending & ~blocked & ~ignored) >> (number - 1) & 1]
    return any(_ends(number, bool(caught >> (number - 1) & 1), heed) for number in waiting)


def _ends(number: int, caught: bool, heed: Heed) -> bool:
    if number in HARMLESS or not caught:
        return number not in HARMLESS | STOPPING
    return heed is Heed.CAUGHT or (heed is Heed.ENDING and number in ENDING)


def _is(pid: int, descriptor: str, inode: int, name: str, mode: int) -> bool:
    try:
        target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        if not target.startswith("/"):
            return False
        with open(f"/proc/{pid}/fdinfo/{descriptor}", encoding="ascii", errors="replace") as info:
            fields = dict(line.split(":", 1) for line in info if ":" in line)
    except OSError:
        return False
    if (int(fields.get("flags", "0"), 8) ^ mode) & MODE:
        return False
    if "ino" in fields:
        return int(fields["ino"]) == inode
    return os.path.basename(target).removesuffix(" (deleted)") == name
