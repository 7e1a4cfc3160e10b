"""Open files: what is written and not yet stored belongs to the key's node, not to one handle.

    Node     a key that is open: the record it was read from, the edits made since, the content that both give
    Handle   one open file description, and what went wrong on it

A node's edits answer every reader of this mount at once and reach Consul in one transaction when a writer flushes.

Locks. `OpenFiles._lock` owns the table: which key has which node, and which handles a node has. `Node.state` owns
a node's content. Neither is held across a request: a store takes its turn at the key (`turns.py`).
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Optional

from consulfs.consulate import ConsulateException, Record, StaleIndex, TooLarge
from consulfs.errors import Interrupted, OutOfTime
from consulfs.processes import has_open
from consulfs.store import edits
from consulfs.store.backend import Backend, Uncertain
from consulfs.store.edits import Edit
from consulfs.store.flagmemory import FlagMemory
from consulfs.store.inodes import Inodes
from consulfs.store.patience import Patience
from consulfs.store.records import Records
from consulfs.store.times import Times
from consulfs.store.turns import Turns

log = logging.getLogger(__name__)

NO_OWNER = 0


@dataclass
class Creation:
    """A file that exists on this mount and not yet in Consul."""

    owner: int
    exclusive: bool
    flags: int = 0


@dataclass
class Doubt:
    """What a store sent whose answer never came, and how many of the pending edits it held."""

    value: bytes
    flags: int
    edits: int

    def brought(self, record: Record) -> bool:
        """Whether this is what it would have brought to the new name."""
        return (record.value, record.flags) == (self.value, self.flags)


@dataclass
class Rename:
    """A rename whose answer never came, and what it brought along: `edits` of the source's pending ones too."""

    old: str
    new: str
    value: bytes
    flags: int
    edits: int

    def brought(self, record: Record) -> bool:
        """Whether this is what it would have brought to the new name."""
        return (record.value, record.flags) == (self.value, self.flags)


@dataclass
class Plan:
    """What one store is to bring to Consul; taken from the node, and given back where the store fails."""

    key: str
    base: Optional[Record]
    edits: list[Edit]
    creation: Optional[Creation]
    doubts: list[Doubt]
    flags: Optional[int] = None


class Node:
    """An open key."""

    def __init__(self, key: str, base: Optional[Record], creation: Optional[Creation] = None) -> None:
        self.key = key
        self.handles: set[int] = set()  # owned by the table's lock
        self.state = threading.Lock()  # owns all that follows
        self.gone = False
        self.base = base
        self.creation = creation
        self.content = bytearray(base.value if base else b"")
        self.pending: list[Edit] = []
        self.in_flight: list[Edit] = []
        self.sealed = 0  # so many of the pending edits were sent once and may not be merged with later ones
        self.doubts: list[Doubt] = []
        self.failed: set[int] = set()  # handles of which nothing is to be stored any more
        self.rename: Optional[Rename] = None  # one that may have been applied

    @property
    def dirty(self) -> bool:
        """Whether there is something to store."""
        return bool(self.pending or self.creation)

    @property
    def unsaved(self) -> bool:
        """Whether the content is another than Consul's, as far as this mount can know."""
        return not self.gone and (self.dirty or bool(self.in_flight))

    @property
    def exists(self) -> bool:
        """Whether the file is there for this mount's programs, stored or not."""
        return not self.gone and (self.base is not None or self.creation is not None)

    def owes(self, owner: int) -> bool:
        """Whether this handle has done something that is not stored, or not known to be."""
        created = self.creation is not None and self.creation.owner == owner
        return created or any(edit.owner == owner for edit in self.in_flight + self.pending)

    def change(self, owner: int, change: edits.Change) -> None:
        edits.apply(self.content, change)
        edits.record(self.pending, owner, change, self.sealed)

    def discard(self, owner: int) -> None:
        """Forget what one handle did, as though it had never been."""
        self.failed.add(owner)
        for doubt in self.doubts:
            doubt.edits = sum(edit.owner != owner for edit in self.pending[: doubt.edits])
        self.sealed = sum(edit.owner != owner for edit in self.pending[: self.sealed])
        self.pending = [edit for edit in self.pending if edit.owner != owner]
        if self.creation is not None and self.creation.owner == owner:
            self.creation = None
        self.content = edits.replay(self.base.value if self.base else b"", self.in_flight + self.pending)

    def adopt(self, record: Record) -> None:
        """A newer record was read, and nothing is unsaved: go on from there."""
        if self.unsaved or self.gone:
            return
        old = self.base.modify_index if self.base is not None else None
        new = record.modify_index
        if self.base is None or (new is not None and (old is None or new > old)):
            if self.base is None or self.base.value != record.value:
                self.content = bytearray(record.value)
            self.base = record

    def plan(self) -> Optional[Plan]:
        """Take what is to be stored, or None where there is nothing."""
        if self.gone or not self.dirty:
            return None
        self.in_flight, self.pending = self.pending, []
        return Plan(self.key, self.base, self.in_flight, self.creation, self.doubts)

    def keep(self, plan: Plan) -> None:
        """The store failed: what it held is pending again."""
        self.base, self.creation, self.doubts = plan.base, plan.creation, plan.doubts
        self.pending = plan.edits + self.pending
        self.in_flight, self.sealed = [], len(plan.edits)
        for owner in self.failed & {edit.owner for edit in plan.edits}:
            self.discard(owner)

    def settle(self, record: Record) -> None:
        """The store succeeded."""
        self.creation = None
        self.in_flight, self.sealed, self.doubts = [], 0, []
        self.rebase(record)

    def rebase(self, record: Record) -> None:
        """Go on from a newer record, with what is unsaved."""
        self.base = record
        unsaved = self.in_flight + self.pending
        if unsaved or self.content != record.value:
            self.content = edits.replay(record.value, unsaved)


@dataclass
class Handle:
    """One open file description.

    :ivar opener: the process that opened it
    :ivar mode: the flags that it was opened with
    :ivar failed: the errno that every later write and close of it gets; after EFBIG nothing of it is stored
    """

    number: int
    node: Node
    writable: bool
    opener: int
    mode: int
    failed: int = 0


class OpenFiles:
    """The table of open files, and everything that is done through them."""

    def __init__(
        self, backend: Backend, records: Records, patience: Patience, times: Times, inodes: Inodes, flags: FlagMemory
    ) -> None:
        self._backend = backend
        self._records = records
        self._patience = patience
        self._times = times
        self._inodes = inodes
        self._flags = flags
        self.turns = Turns(patience)
        self._lock = threading.Lock()
        self._nodes: dict[str, Node] = {}
        self._handles: dict[int, Handle] = {}
        self._numbers = itertools.count(1)

    # -- the table -------------------------------------------------------------------------------------------

    def find(self, key: str) -> Optional[Node]:
        """The node of an open key."""
        with self._lock:
            return self._nodes.get(key)

    def below(self, prefix: str) -> list[Node]:
        """The nodes of the open keys below a prefix."""
        with self._lock:
            return [node for key, node in self._nodes.items() if key.startswith(prefix)]

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
            writable = flags & os.O_ACCMODE != os.O_RDONLY
            handle = self._handles[number] = Handle(number, node, writable, opener, flags)
        with node.state:
            if base is not None:
                node.adopt(base)
            if flags & os.O_TRUNC:
                node.change(number, edits.Truncate(0))
                self._times.touch(key)
        return handle

    def _detach(self, handle: Handle) -> None:
        with self._lock:
            self._handles.pop(handle.number, None)
            node = handle.node
            node.handles.discard(handle.number)
            if not node.handles and self._nodes.get(node.key) is node:
                del self._nodes[node.key]

    # -- opening ---------------------------------------------------------------------------------------------

    def open(self, key: str, flags: int, opener: int) -> Handle:
        """Open a key that exists.

        :raises OSError: ESTALE where it does not: the kernel then looks the name up again, and creates it if it may
        """
        while True:
            node = self.find(key)
            unsaved = node is not None and node.unsaved
            record = None if unsaved else self._records.get(key)
            if record is None and not unsaved:
                raise OSError(errno.ESTALE, "deleted by another host")
            handle = self._attach(key, record, None, flags, opener)
            if handle is not None:
                return handle

    def create(self, key: str, flags: int, opener: int, exclusive_at_close: bool) -> Handle:
        """Create a key. With O_EXCL it is stored at once, unless that is to be decided at close."""
        inherited = self._flags.created(key)
        exclusive = bool(flags & os.O_EXCL)
        node = self.find(key)
        if node is not None and node.unsaved:
            if exclusive:
                raise OSError(errno.EEXIST, "being created here already")
            return self.open(key, flags, opener)
        if node is not None:
            self.abandon(node)  # another host deleted it under its readers
        record, creation = None, None
        marker = self._records.get(key) if key.endswith("/") else None
        if marker is not None and not (marker.value or marker.flags):
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
            with self._patience.steadfast():
                record = self._backend.store(key, b"", flags, 0)
        except StaleIndex as error:
            self._records.cache.forget(key)
            raise OSError(errno.EEXIST, "created by another host") from error
        except Uncertain as error:
            # Another host's empty file looks the same as ours, and two owners of a lock file would be worse than
            # one failure.
            raise OSError(errno.EIO, f"unknown whether it was created: {error}") from error
        self._records.cache.stored(record)
        return record

    # -- content ---------------------------------------------------------------------------------------------

    def read(self, handle: Handle, size: int, offset: int) -> bytes:
        with handle.node.state:
            return bytes(handle.node.content[offset : offset + size])

    def write(self, handle: Handle, data: bytes, offset: int, append: bool) -> int:
        """Change the content in memory.

        :param append: write at the end as it is now; the offset is then the kernel's guess from a size that it had
        """
        node = handle.node
        with node.state:
            end = (len(node.content) if append else offset) + len(data)
            self._admit(handle, end)
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
                record = self._publish(node, plan)
                if record is not None:
                    self._stored(record)
                    with node.state:
                        node.rebase(record)
        finally:
            self._flags.chosen(key)
            self._touch(node)
            self._detach(handle)

    def _touch(self, node: Node) -> None:
        if not node.gone:  # its name may be another file's by now
            self._times.touch(node.key)

    def _admit(self, handle: Handle, size: int) -> None:
        """Refuse what would grow the value past the server's limit, and all that this handle did before it."""
        if handle.failed:
            raise OSError(handle.failed, os.strerror(handle.failed))
        if size > self._backend.value_limit:
            handle.failed = errno.EFBIG
            handle.node.discard(handle.number)
            raise OSError(errno.EFBIG, f"over the server's limit of {self._backend.value_limit} bytes")

    # -- storing ---------------------------------------------------------------------------------------------

    def flush(self, handle: Handle, caller: int) -> None:
        """A descriptor was closed: store, unless it is a shell that has not written yet."""
        if handle.failed:
            raise OSError(handle.failed, os.strerror(handle.failed))
        node = handle.node
        with node.state:
            if not node.owes(handle.number):
                return
            unwritten = edits.only_sizes(node.in_flight + node.pending)
        if unwritten and self._is_open_elsewhere(handle, caller):
            return
        self.store(node)

    def fsync(self, handle: Handle) -> None:
        if handle.failed:
            raise OSError(handle.failed, os.strerror(handle.failed))
        self.store(handle.node)

    def release(self, handle: Handle) -> None:
        """The last descriptor is gone: store what came after the last flush (mmap), or what that one left."""
        node = handle.node
        try:
            with node.state:
                owes = node.owes(handle.number)
            if owes and not handle.failed:
                self.store(node)
        except (OSError, ConsulateException, Interrupted, OutOfTime) as error:
            log.error("%r: %d bytes could not be stored and are lost: %s", node.key, len(node.content), error)
            with node.state:
                node.discard(handle.number)
        finally:
            self._detach(handle)

    def store_all(self) -> None:
        """The mount ends: store whatever is unsaved, as long as Consul takes it."""
        self._patience.begin()
        for node in self.below(""):
            try:
                self.store(node)
                self._patience.begin()  # it answers: the next one has its whole time too
            except Exception as error:
                log.error("%r: %d bytes could not be stored and are lost: %s", node.key, len(node.content), error)

    def store(self, node: Node) -> None:
        """Bring everything that is unsaved to Consul, in one write."""
        self.settle_rename(node)
        with self.turn(node):
            with node.state:
                plan = node.plan()
            if plan is None:
                return
            try:
                record = self._publish(node, plan)
            except BaseException:
                with node.state:
                    node.keep(plan)
                raise
            if record is None:
                self._records.cache.forget(plan.key)
                return
            self._stored(record)
            with node.state:
                node.settle(record)

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
        self._times.stored(record.key, (record.value, record.flags), record.modify_index)

    def _publish(self, node: Node, plan: Plan) -> Optional[Record]:
        """Compare-and-set until it holds: on a conflict read again and replay the edits on what is there now.

        :return: the record as stored; None where the file was deleted or replaced meanwhile
        """
        base, attempt = plan.base, 0
        try:
            while True:
                if base is not None and base.modify_index is None:
                    base = self._records.fresh(plan.key)  # a plain PUT told no index
                    if base is not None and plan.doubts and self._is_done(plan, base):
                        return base
                    self._check_meaning(plan, base)
                if node.gone:
                    return None
                stored = self._try(plan, base)
                if stored is not None:
                    return stored
                attempt += 1
                self._patience.sleep(random.uniform(0, min(0.001 * 2**attempt, 0.1)))
                base = self._records.fresh(plan.key)
                if base is not None and self._is_done(plan, base):
                    return base
                self._check_meaning(plan, base)
        except OutOfTime as error:
            if attempt and not plan.doubts:
                raise OSError(errno.EAGAIN, f"{attempt} conflicts with other writers in a row") from error
            raise

    def _try(self, plan: Plan, base: Optional[Record]) -> Optional[Record]:
        """One compare-and-set; None where it met another state, or where nobody knows."""
        value = bytes(edits.replay(base.value if base else b"", plan.edits))
        flags = _flags_for(plan, base)
        try:
            return self._backend.store(plan.key, value, flags, (base.modify_index or 0) if base else 0)
        except TooLarge as error:
            raise OSError(errno.EFBIG, str(error)) from error
        except StaleIndex:
            return None
        except (Uncertain, Interrupted, OutOfTime) as error:
            plan.doubts.append(Doubt(value, flags, len(plan.edits)))
            if isinstance(error, Uncertain):
                return None
            raise

    @staticmethod
    def _is_done(plan: Plan, fresh: Record) -> bool:
        """Whether nothing is left to store: all of it was applied by a store whose answer never came, or was
        nothing but the creation of a file that another host has created."""
        for doubt in plan.doubts:
            sent, rest = plan.edits[: doubt.edits], plan.edits[doubt.edits :]
            same = fresh.value == doubt.value and fresh.flags == doubt.flags
            # Somebody else's append may have followed ours.
            followed = bool(sent) and all(isinstance(edit.change, edits.Append) for edit in sent)
            if same or (followed and fresh.value.startswith(doubt.value)):
                plan.base, plan.edits, plan.creation = fresh, rest, None
                plan.doubts = []
                break
        exclusive = plan.creation is not None and plan.creation.exclusive
        return not plan.edits and not exclusive and plan.flags in (None, fresh.flags)

    @staticmethod
    def _check_meaning(plan: Plan, fresh: Optional[Record]) -> None:
        """After a conflict: whether the edits still mean something on what is there now."""
        if fresh is not None and plan.creation is not None and plan.creation.exclusive:
            raise OSError(errno.EEXIST, "created by another host")
        if fresh is None and plan.base is not None and not (plan.edits and edits.stands_alone(plan.edits)):
            raise OSError(errno.ESTALE, "deleted by another host")

    def _is_open_elsewhere(self, handle: Handle, caller: int) -> bool:
        """Whether the caller or the opener still has the file open; where that cannot be seen, release stores."""
        inode, name = self._inodes.number(handle.node.key), handle.node.key.rsplit("/", 1)[-1]
        return any(has_open(pid, inode, name, handle.mode) is not False for pid in {caller, handle.opener})

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

    def settle_rename(self, node: Node) -> None:
        """Before anything is stored: learn what became of a rename whose answer never came."""
        rename = node.rename
        if rename is None:
            return
        moved = self._records.fresh(rename.new)
        if moved is not None and rename.brought(moved) and self._records.fresh(rename.old) is None:
            renamed = self.find(rename.old)
            self.rekey(rename.old, rename.new)
            if renamed is not None:
                with renamed.state:
                    renamed.creation, renamed.doubts, renamed.sealed = None, [], 0
                    renamed.pending = renamed.pending[rename.edits :]
                    renamed.rebase(moved)
        node.rename = None

    def doubt_rename(self, rename: Rename) -> None:
        """A rename may have been applied: whoever stores one of its two files next looks first."""
        for key in (rename.old, rename.new):
            node = self.find(key)
            if node is not None:
                node.rename = rename
            self._records.cache.forget(key)

    def abandon(self, node: Node) -> None:
        """The file was deleted: its handles read on and store nothing."""
        with node.state:
            node.gone = True
        with self._lock:
            if self._nodes.get(node.key) is node:
                del self._nodes[node.key]


def _flags_for(plan: Plan, base: Optional[Record]) -> int:
    """The flags to store: those that were set, else those that stand, else those that the name had."""
    if plan.flags is not None:
        return plan.flags
    if base is not None:
        return base.flags
    if plan.creation is not None:
        return plan.creation.flags
    return plan.base.flags if plan.base else 0
