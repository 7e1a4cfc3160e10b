"""The operations of a mounted file system. Thin: what a path means is the tree's business, what a file holds the
store's.

A mount has *branches*: the keys of its datacenter, the virtual trees beside them, and the same two of each other
datacenter that was asked for. `Filesystem` finds the branch that a path or a handle belongs to.
"""

from consulfs.filesystem.branch import NOW, Attributes, Branch, Opened, Owner
from consulfs.filesystem.kernel import Kernel
from consulfs.filesystem.kv import KVBranch
from consulfs.filesystem.mount import Datacenter, Filesystem
from consulfs.filesystem.notices import Notices
from consulfs.filesystem.others import Others
from consulfs.filesystem.replay import Replay
from consulfs.filesystem.virtual import VirtualBranch

__all__ = [
    "NOW",
    "Attributes",
    "Branch",
    "Datacenter",
    "Filesystem",
    "KVBranch",
    "Kernel",
    "Notices",
    "Opened",
    "Others",
    "Owner",
    "Replay",
    "VirtualBranch",
]
