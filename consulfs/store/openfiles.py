"""Open files: the table of nodes and handles, and everything that is done through them.

Owner of the table (which key has which node, which handles a node has): `OpenFiles._lock`, never held across a request.
A store, a rename and a delete of one key take turns (`turns.py`); readers and writers wait for nobody.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Optional

from cachetools import TTLCache

from consulfs.consulate import ConsulateException, Record, StaleIndex
from consulfs.errors import Interrupted, LockLost, OutOfTime
from consulfs.processes import has_open
from consulfs.store import edits
from consulfs.store.backend import Backend, Uncertain
from consulfs.store.flagmemory import FlagMemory
from consulfs.store.inodes import Inodes
from consulfs.store.levels import News
from consulfs.store.node import NO_OWNER, Creation, Node, Plan, Rename
from consulfs.store.patience import Patience
from consulfs.store.publish import Moved, Publisher
from consulfs.store.records import Records
from consulfs.store.tenure import Tenure
from consulfs.store.times import Times
from consulfs.store.turns import Turns

log = logging.getLogger(__name__)

DOUBT_SECONDS = 120.0
"""For so long a request may still be held by an agent without a leader (seven seconds by its defaults) or a network."""


@dataclass
class Handle:
    """One open file description.

    :ivar opener: the process that opened it
    :ivar mode: the flags that it was opened with
    :ivar failed: the errno that every later write and close of it gets; nothing of it is stored any more
    :ivar fence: the lock that was taken through it: what it writes is stored only while that is held
    """

    number: int
    node: Node
    opener: int
    mode: int
    failed: int = 0
    fence: Optional[Tenure] = None

    def check(self) -> None:
        """Raise what failed on it before."""
        if self.failed == errno.EIO:
            raise LockLost
        if self.failed:
            raise OSError(self.failed, os.strerror(self.failed))

    def check_fence(self) -> None:
        """The same, where what is done after its lock was lost is such a failure. Holding the node's state."""
        self.discard_lost()
        self.check()

    def discard_lost(self) -> bool:
        """Forget what was written under a lock that was lost; whether it was. Holding the node's state."""
        if self.fence is None or not self.fence.lost:
            return False
        self.failed = self.failed or errno.EIO
        self.node.discard(self.number)
        return True


class OpenFiles:
    """The table of open files, and everything that is done through them."""

    def __init__(
        self,
        backend: Backend,
        records: Records,
        patience: Patience,
        turns: Turns,
        times: Times,
        inodes: Inodes,
        flags: FlagMemory,
    ) -> None:
        self._backend = backend
        self._records = records
        self._patience = patience
        self._times = times
        self._inodes = inodes
        self._flags = flags
        self._publisher = Publisher(backend, records, patience)
        self.turns = turns
        self._lock = threading.Lock()
        self._nodes: dict[str, Node] = {}
        self._handles: dict[int, Handle] = {}
        self._numbers = itertools.count(1)
        self._on_removed: list[Callable[[str], None]] = []
        self._on_moved: list[Callable[[str, str], None]] = []
        self._on_merged: list[Callable[[Node], None]] = []
        # Renames whose answer never came, under both names.
        self._doubtful: TTLCache[str, Rename] = TTLCache(1 << 12, DOUBT_SECONDS)
        self.has_doubts = False  # of any, ever: what is asked at each open is to cost nothing

    def listen(
        self,
        on_removed: Optional[Callable[[str], None]] = None,
        on_moved: Optional[Callable[[str, str], None]] = None,
        on_merged: Optional[Callable[[Node], None]] = None,
    ) -> None:
        """Have somebody told of what becomes of names, in their turn.

        :param on_removed: of a key that is deleted
        :param on_moved: of a file's old name and its new one, where it has taken another's place if one stood there
        :param on_merged: of a file whose store has brought what others did to it, too
        """
        self._on_removed += [on_removed] if on_removed is not None else []
        self._on_moved += [on_moved] if on_moved is not None else []
        self._on_merged += [on_merged] if on_merged is not None else []

    # -- the table -------------------------------------------------------------------------------------------

    def find(self, key: str) -> Optional[Node]:
        """The node of an open key."""
        with self._lock:
            return self._nodes.get(key)

    def below(self, prefix: str) -> list[Node]:
        """The nodes of the open keys below a prefix."""
        with self._lock:
            return [node for key, node in self._nodes.items() if key.startswith(prefix)]

    def __len__(self) -> int:
        """The open files."""
        return len(self._handles)

    def handle(self, number: int) -> Handle:
        with self._lock:
            handle = self._handles.get(number)
        if handle is None:
            raise OSError(errno.EBADF, "no such handle")
        return handle

    def _attach(
        self, key: str, base: Optional[Record], creation: Optional[Creation], flags: int, opener: int
    ) -> Optional[Handle]:
        """A new handle on the key's node, which is made where there is none.

        :return: None where there is no node any more and nothing to make one of
        """
        number = next(self._numbers)
        if creation is not None:
            creation.owner = number
        with self._lock:
            node = self._nodes.get(key)
            if node is None:
                if base is None and creation is None:
                    return None
                node = self._nodes[key] = Node(key, base, creation)
            node.handles.add(number)
            handle = self._handles[number] = Handle(number, node, opener, flags)
        if base is not None and node.base is not base:
            self.adopt(node, base)
        if flags & os.O_TRUNC:
            with node.state:
                node.change(number, edits.Truncate(0))
            self._times.touch(key)
        return handle

    def detach(self, handle: Handle) -> None:
        """Forget a handle, and the node with its last one."""
        with self._lock:
            self._handles.pop(handle.number, None)
            node = handle.node
            node.handles.discard(handle.number)
            if not node.handles and self._nodes.get(node.key) is node:
                del self._nodes[node.key]

    # -- opening ---------------------------------------------------------------------------------------------

    def open(self, key: str, flags: int, opener: int, found: Optional[Record] = None) -> Handle:
        """Open a key that exists.

        :param found: its record, if that was read just now
        :raises OSError: ESTALE where it does not: the kernel then looks the name up again, and creates it if it may
        """
        self.settle_rename(key)
        while True:
            node = self.find(key)
            unsaved = node is not None and node.unsaved
            record = None if unsaved else found or self._records.get(key)
            found = None
            if record is None and not unsaved:
                raise OSError(errno.ESTALE, "deleted by another host")
            handle = self._attach(key, record, None, flags, opener)
            if handle is not None:
                return handle

    def create(self, key: str, flags: int, opener: int, exclusive_at_close: bool) -> Handle:
        """Create a key. With O_EXCL it is stored at once, unless that is to be decided at close."""
        self.settle_rename(key)
        inherited = self._flags.created(key)
        exclusive = bool(flags & os.O_EXCL)
        node = self.find(key)
        if node is not None and node.unsaved:
            if exclusive:
                raise OSError(errno.EEXIST, "being created here already")
            return self.open(key, flags, opener)
        if node is not None:
            with self.turns.take(key):
                self.removed(key)  # another host deleted it under its readers
        record, creation = None, None
        marker = self._records.get(key) if key.endswith("/") else None
        if marker is not None and not marker.carries:
            record = marker  # the directory's own key, with nothing in it yet
        elif exclusive and not exclusive_at_close:
            record, flags = self._create_now(key, inherited), flags & ~os.O_TRUNC
        else:
            creation = Creation(NO_OWNER, exclusive, inherited)
        handle = self._attach(key, record, creation, flags, opener)
        if handle is None:
            raise AssertionError("a new node has a record or a creation")
        self._times.touch(key)
        return handle

    def _create_now(self, key: str, flags: int) -> Record:
        try:
            with self.turns.take(key), self._patience.steadfast():
                record = self._backend.store(key, b"", flags, 0)
                self._records.cache.stored(record)
        except StaleIndex as error:
            self._records.cache.forget(key)
            raise OSError(errno.EEXIST, "created by another host") from error
        except Uncertain as error:
            # Another host's empty file looks the same as ours, and two owners of a lock file would be worse than
            # one failure.
            raise OSError(errno.EIO, f"unknown whether it was created: {error}") from error
        return record

    # -- content ---------------------------------------------------------------------------------------------

    def read(self, handle: Handle, size: int, offset: int) -> bytes:
        self.renew(handle.node)
        node = handle.node
        with node.state:
            content = node.content if node.shown is None else node.shown
            node.asked, node.is_bare = True, False
            node.mapped = node.mapped if node.held else None
            return bytes(content[offset : offset + size])

    def write_page(self, handle: Handle, page: bytes, offset: int) -> int:
        """Change the content as a memory map was changed, of which the kernel tells whole pages: what others did to the
        rest of a page stays."""
        node = handle.node
        with node.state:
            for change in edits.differing(node.content if node.mapped is None else node.mapped, offset, page):
                self._admit(handle, change.offset + len(change.data))
                node.change(handle.number, change)
                self._touch(node)
        return len(page)

    def write(self, handle: Handle, data: bytes, offset: int, append: bool) -> int:
        """Change the content in memory.

        :param append: write at the end as it is now; the offset is then the kernel's guess from a size that it had
        """
        node = handle.node
        with node.state:
            end = (len(node.content) if append else offset) + len(data)
            self._admit(handle, end)
            node.merged = node.merged or (append and offset != len(node.content))
            change = edits.Append(bytearray(data)) if append else edits.Write(offset, bytearray(data))
            node.change(handle.number, change)
            self._touch(node)
        return len(data)

    def truncate(self, handle: Handle, size: int) -> None:
        node = handle.node
        with node.state:
            self._admit(handle, size)
            node.change(handle.number, edits.Truncate(size))
            self._touch(node)

    def truncate_now(self, key: str, size: int, opener: int) -> None:
        """truncate(2): by name, and stored when it returns."""
        handle = self.open(key, os.O_WRONLY, opener)
        try:
            self.truncate(handle, size)
            self.store(handle.node)
        finally:
            self.release(handle)

    def set_flags(self, key: str, flags: int, opener: int) -> None:
        """Set the key's flags, at once and with the value that is stored; of a file that is not, with its own store."""
        handle = self.open(key, os.O_WRONLY, opener)
        node = handle.node
        try:
            if node.doubts:
                self.store(node)  # first be certain of what was sent
            with self.turn(node):
                with node.state:
                    if node.base is None and node.creation is not None:
                        node.creation.flags = flags
                        return
                    plan = Plan(node.key, node.base, [], None, [], flags)
                record = self._publisher.publish(node, plan, lambda key: False)
                if record is not None:
                    self._stored(record)
                    with node.state:
                        node.rebase(record)
        finally:
            self._flags.chosen(key)
            self._touch(node)
            self.detach(handle)

    def _touch(self, node: Node) -> None:
        if not node.gone:  # its name may be another file's by now
            self._times.touch(node.key)

    def _admit(self, handle: Handle, size: int) -> None:
        """Refuse what would grow the value past a limit, and all that this handle did before it."""
        handle.check_fence()
        limit = self._backend.value_limit
        if handle.fence is not None:  # what is larger could not be unlocked any more
            limit = min(limit, self._backend.lock_limit(handle.node.key))
        if size > limit:
            handle.failed = errno.EFBIG
            handle.node.discard(handle.number)
            raise OSError(errno.EFBIG, f"over the limit of {limit} bytes{' of a locked file' * bool(handle.fence)}")

    def heed(self, news: News, records: Mapping[str, Record]) -> list[Node]:
        """Others have changed something in a directory: the open files of which the content is another now.

        :param records: by name
        """
        changed = []
        for node in self.below(news.prefix):
            name = node.key[len(news.prefix) :]
            record = records.get(name)
            with node.state:
                if news.anew and "/" not in name:
                    node.begin_anew()
                if record is not None:
                    node.adopt(record)
                    if node.hold():
                        changed.append(node)
                    if name in news.made:
                        node.show()  # it was gone: what it was before must not come again
        return changed

    def held_by_kernel(self) -> list[Node]:
        """The files that are open and of which the kernel may hold what is old. Each is given once."""
        with self._lock:
            nodes = [node for node in self._nodes.values() if node.held_by_kernel]
            for node in nodes:
                node.held_by_kernel = False
        return nodes

    def outdate(self) -> None:
        """What was read before now may be old in files that are open, too: a lock was taken."""
        with self._lock:
            for node in self._nodes.values():
                node.outdated = node.held_by_kernel = True

    def renew(self, node: Node) -> None:
        """Before a file's content is shown: go on from what Consul has, where that may be newer."""
        if node.outdated and not node.gone:
            self.revise(node)
            with node.state:
                node.let_go()

    def revise(self, node: Node) -> None:
        """Go on from what Consul has, as far as that may be newer."""
        record = self._records.get(node.key)
        with node.state:
            node.outdated = False
        if record is not None:
            self.adopt(node, record, Node.refresh)

    def adopt(self, node: Node, record: Record, how: Callable[[Node, Record], None] = Node.adopt) -> None:
        """A record was read: go on from there, if it is newer than the one that is known.

        One that is older may be right, where a cluster was restored or came back empty. What a majority of the servers
        says after the newer one was read can only be older then (https://www.consul.io/api-docs/features/consistency).
        """
        with node.state:
            base = node.base
            if not node.is_before(record):
                how(node, record)
                return
        try:
            now = self._records.fresh(node.key, consistent=True)
        except (ConsulateException, OutOfTime) as error:
            log.debug("%r is shown as it was: %s", node.key, error)
            return
        with node.state:
            if now is not None and node.base is base:
                if node.is_before(now):
                    node.begin_anew()
                how(node, now)

    # -- storing ---------------------------------------------------------------------------------------------

    def flush(self, handle: Handle, caller: int) -> None:
        """A descriptor was closed: store, unless it is a shell that has not written yet."""
        handle.check()
        node = handle.node
        with node.state:
            if not node.owes(handle.number):
                return
            unwritten = edits.only_sizes(node.in_flight + node.pending)
        if unwritten and self.seen_open(handle, caller) is not False:  # where it cannot be seen, release stores
            return
        self.store(node)
        handle.check()

    def fsync(self, handle: Handle) -> None:
        handle.check()
        self.store(handle.node)
        handle.check()

    def release(self, handle: Handle) -> None:
        """Store what the handle left, and forget it."""
        try:
            self.store_rest(handle)
        finally:
            self.detach(handle)

    def store_rest(self, handle: Handle) -> None:
        """The last descriptor is gone: store what came after the last flush (mmap), or what that one left."""
        node = handle.node
        try:
            with node.state:
                owes = node.owes(handle.number)
            if owes and not handle.failed:
                self.store(node)
        except (OSError, ConsulateException, Interrupted, OutOfTime) as error:
            _report_loss(node, error)
            with node.state:
                node.discard(handle.number)

    def store_all(self) -> None:
        """The mount ends: store whatever is unsaved, as long as Consul takes it."""
        self._patience.begin()
        for node in self.below(""):
            try:
                self.store(node)
                self._patience.begin()  # it answers: the next one has its whole time too
            except Exception as error:
                _report_loss(node, error)

    def store(self, node: Node) -> None:
        """Bring everything that is unsaved to Consul, in one write."""
        while True:
            self.settle_rename(node.key)
            try:
                return self._store(node)
            except Moved:
                self._patience.sleep(0.01)
            except LockLost:  # less what was written under that lock, it is tried again
                self._patience.sleep(0.01)

    def _store(self, node: Node) -> None:
        with self.turn(node):
            self._refuse_lost(node)
            with node.state:
                plan = node.plan()
            if plan is None:
                return
            plan.session = self._session_of(plan)
            try:
                record = self._publisher.publish(node, plan, self.in_doubt)
            except BaseException as error:
                with node.state:
                    node.keep(plan)
                if isinstance(error, LockLost):
                    self._lose(node, plan.session)
                raise
            if record is None:
                self._records.cache.forget(plan.key)
                return
            self._stored(record)
            with node.state:
                merged = node.settle(record)
            for listener in self._on_merged if merged else ():
                listener(node)

    @contextmanager
    def turn(self, node: Node) -> Iterator[None]:
        """Take the turn at a node's key, whatever it is called by then."""
        while True:
            key = node.key
            with self.turns.take(key):
                if node.key == key:
                    yield
                    return

    def _stored(self, record: Record) -> None:
        self._records.cache.stored(record)
        self._times.stored(record.key, (record.value, record.flags))

    def seen_open(self, handle: Handle, pid: int) -> Optional[bool]:
        """Whether this process or the opener still has the file open; None where that cannot be seen."""
        inode, name = self._inodes.number(handle.node.key), handle.node.key.rsplit("/", 1)[-1]
        seen = {has_open(each, inode, name, handle.mode) for each in {pid, handle.opener}}
        return True if True in seen else None if None in seen else False

    # -- locks -----------------------------------------------------------------------------------------------

    def restore(self, handle: Handle) -> None:
        """The program is told that its lock was lost: what it writes from now on counts again, and nothing before."""
        with self.turn(handle.node), handle.node.state:  # a store that is under way would keep what is discarded
            if handle.discard_lost():
                handle.fence = None
            if handle.failed == errno.EIO:
                handle.failed = 0
                handle.node.readmit(handle.number)

    def _fences(self, node: Node) -> list[Handle]:
        """The handles of a node that have unsaved edits and a lock."""
        with self._lock:
            handles = [self._handles[number] for number in node.handles]
        with node.state:
            return [each for each in handles if each.fence is not None and node.owes(each.number)]

    def _session_of(self, plan: Plan) -> Optional[str]:
        """The session under whose lock one of the plan's edits was made."""
        owners = {edit.owner for edit in plan.edits}
        with self._lock:
            handles = [self._handles[number] for number in owners if number in self._handles]
        return next((each.fence.session for each in handles if each.fence is not None), None)

    def refuse_lost(self, key: str) -> None:
        """A lock was lost: what was written under it is nobody's to see."""
        node = self.find(key)
        if node is not None:
            self._refuse_lost(node)

    def _refuse_lost(self, node: Node) -> None:
        """What was written under a lock that was lost is not stored: its writer gets EIO."""
        for handle in self._fences(node):
            with node.state:
                handle.discard_lost()

    def _lose(self, node: Node, session: Optional[str]) -> None:
        """The servers would not store under a lock: it is another's by now."""
        for handle in self._fences(node):
            if handle.fence is not None and handle.fence.session == session:
                handle.fence.lose()

    def is_fenced(self, node: Node) -> bool:
        """Whether something unsaved is to be stored only while a lock is held."""
        return bool(self._fences(node))

    # -- renames and deletes ---------------------------------------------------------------------------------

    def rekey(self, old: str, new: str) -> None:
        """A rename carries the open files along; those of a replaced file never store again."""
        with self._lock:
            node, replaced = self._nodes.pop(old, None), self._nodes.pop(new, None)
            if node is not None:
                node.key = new
                self._nodes[new] = node
        if replaced is not None and replaced is not node:
            with replaced.state:
                replaced.gone = True
        for listener in self._on_moved:
            listener(old, new)

    def in_doubt(self, key: str) -> bool:
        """Whether a rename from or to this name was sent and never answered."""
        with self._lock:
            return key in self._doubtful

    def doubt_rename(self, rename: Rename) -> None:
        """A rename may have been applied, or may be yet: whoever does something with one of its files looks first."""
        with self._lock:
            if rename.old in self._nodes or rename.new in self._nodes:
                self._doubtful[rename.old] = self._doubtful[rename.new] = rename
                self.has_doubts = True
        for key in (rename.old, rename.new):
            self._records.cache.forget(key)

    def settle_rename(self, key: str) -> None:
        """Learn what became of a rename whose answer never came, and let the open files follow it."""
        if not self.has_doubts:
            return
        with self._lock:
            rename = self._doubtful.get(key)
        if rename is None:
            return
        with self.turns.take(rename.old, rename.new):
            with self._lock:
                if self._doubtful.get(key) is not rename:
                    return
            source, target = self._records.fresh(rename.old), self._records.fresh(rename.new)
            applied = rename.fate(source, target)
            if applied is None:
                return
            if applied and target is not None:
                self._follow(rename, target)
            with self._lock:
                for name in (rename.old, rename.new):
                    if self._doubtful.get(name) is rename:
                        self._doubtful.pop(name, None)

    def _follow(self, rename: Rename, target: Record) -> None:
        node = self.find(rename.old)
        self.rekey(rename.old, rename.new)
        if node is not None:
            with node.state:
                node.creation, node.doubts, node.sealed = None, [], 0
                node.pending = node.pending[rename.edits :]
                node.rebase(target)

    def removed(self, key: str) -> None:
        """A key was deleted: its handles read on and store nothing. The caller has the turn at it."""
        with self._lock:
            node = self._nodes.pop(key, None)
        if node is not None:
            with node.state:
                node.gone = True
        for listener in self._on_removed:
            listener(key)


def _report_loss(node: Node, error: Exception) -> None:
    log.error("%r: %d bytes could not be stored and are lost: %s", node.key, len(node.content), error)
