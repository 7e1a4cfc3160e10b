"""What is mounted where, as the kernel tells this process; not by stat(2), which would ask a mount's own daemon."""

from __future__ import annotations

import re
from typing import NamedTuple, Optional

_MINOR_BITS = 20
"""Of a device's number, as the kernel has it within."""


class Mounted(NamedTuple):
    """A mount.

    :ivar number: as in /proc/PID/fdinfo/FD, of a file that was opened through it
    :ivar device: the number of its device, as the kernel has it within
    :ivar kind: such as "fuse.consulfs"
    """

    number: int
    device: int
    kind: str


CONSULFS = "fuse.consulfs"
"""The kind of a mount of ours."""


def mounted_at(path: str) -> Optional[Mounted]:
    """What is mounted at a path: the last of several.

    :param path: absolute and without symbolic links
    """
    found = None
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            words = line.split()
            # A space in a path is \040 there, and so on (proc(5)).
            if re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), words[4]) == path:
                major, minor = words[2].split(":")
                found = Mounted(int(words[0]), int(major) << _MINOR_BITS | int(minor), words[words.index("-") + 1])
    return found
