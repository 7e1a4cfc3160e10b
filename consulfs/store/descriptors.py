"""Whether a process still has a file open: what /proc says.

A shell's `echo x > key` opens the file, duplicates the descriptor and closes the first before anything is written
(measured with bash). The kernel reports that close like any other, so the daemon asks whether it was the last one.
"""

from __future__ import annotations

import os
from typing import Optional


def has_open(pid: int, inode: int, name: str) -> Optional[bool]:
    """Whether a process has this file open; None where that cannot be seen (another user's, another namespace's).

    :param pid: a process or thread, as the FUSE request gives it; 0 for one outside this PID namespace
    :param inode: the file's number on the mount
    :param name: the file's name, for kernels before 5.14, whose fdinfo has no inode
    """
    if pid <= 0:
        return None
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except FileNotFoundError:
        return False  # it has ended, and its descriptors with it
    except OSError:
        return None
    return any(_is(pid, descriptor, inode, name) for descriptor in descriptors)


def _is(pid: int, descriptor: str, inode: int, name: str) -> bool:
    # Both are answered by the kernel from what it has in memory. A stat() would come back to this daemon.
    try:
        target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        if not target.startswith("/"):
            return False
        with open(f"/proc/{pid}/fdinfo/{descriptor}", encoding="ascii", errors="replace") as info:
            fields = dict(line.split(":", 1) for line in info if ":" in line)
    except OSError:
        return False
    if "ino" in fields:
        return int(fields["ino"]) == inode
    return os.path.basename(target).removesuffix(" (deleted)") == name
