"""Deleting and renaming keys, with the open files on them: nothing is ever in neither place.

A file moves in one transaction: check that the source is what was read, set the target, delete the source. A value
too large for a transaction is set first and deleted afterwards, each with its own check, so that a crash in between
leaves two files and never none. A directory moves in as few transactions as its keys fit in; where one fails, what
was moved is at its new place, the rest at its old one, and the caller gets the error.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Sequence
from typing import Optional

from consulfs.consulate import Record, StaleIndex
from consulfs.consulate.api.txn import Operation, encode, operation
from consulfs.errors import Interrupted, OutOfTime
from consulfs.store import edits
from consulfs.store.backend import BATCH, Backend, Uncertain
from consulfs.store.cache import lineage
from consulfs.store.flagmemory import FlagMemory
from consulfs.store.inodes import Inodes
from consulfs.store.node import Node, Plan, Rename
from consulfs.store.openfiles import OpenFiles
from consulfs.store.patience import Patience
from consulfs.store.records import Records
from consulfs.store.times import Times

log = logging.getLogger(__name__)

MOVE_OPERATIONS = 3
"""check-index, cas, delete."""


class Moves:
    """Renames and deletes."""

    def __init__(
        self,
        backend: Backend,
        records: Records,
        files: OpenFiles,
        patience: Patience,
        times: Times,
        inodes: Inodes,
        flags: FlagMemory,
    ) -> None:
        self._backend = backend
        self._records = records
        self._files = files
        self._patience = patience
        self._times = times
        self._inodes = inodes
        self._flags = flags

    # -- delete ----------------------------------------------------------------------------------------------

    def remove(self, key: str) -> None:
        """Delete a key. Programs that have it open read on, and store nothing any more."""
        self._files.settle_rename(key)
        with self._files.turns.take(key):
            with self._patience.steadfast():
                self._delete(key)
            self._files.removed(key)
            self._records.cache.removed(key)
            self._times.forget(key)

    def _delete(self, key: str) -> None:
        """Delete what is there, by its index: a delete that arrives late must not take what came after it."""
        record = self._records.get(key) or self._records.fresh(key)
        created = record.create_index if record is not None else 0
        while record is not None:
            if record.modify_index is None:
                record = self._records.fresh(key)
                created = record.create_index if record is not None else 0
                continue
            try:
                self._backend.transaction([operation("delete-cas", key, index=record.modify_index)])
                return
            except StaleIndex:
                record = self._records.fresh(key)  # changed by another host: what is there now goes as well
            except Uncertain:
                record = self._records.fresh(key)
                if record is not None and created and record.create_index != created:
                    return  # ours was deleted, and another made since
            self._patience.sleep(0.005)

    # -- a directory's own key -------------------------------------------------------------------------------

    def make_marker(self, prefix: str) -> None:
        """Write the key that Consul's UI writes for a folder: the prefix itself.

        :raises OSError: EEXIST where it is there
        """
        operations = [operation("check-not-exists", prefix), operation("set", prefix, b"")]
        with self._files.turns.take(prefix):
            try:
                entries = self._backend.settle(operations, lambda: self._records.fresh(prefix) is not None)
            except StaleIndex as error:
                self._records.cache.forget_below(prefix)  # `mkdir -p` looks at it next
                raise OSError(errno.EEXIST, "made by another host") from error
            self._records.cache.stored(Record.of(entries[-1], b"") if entries else Record(prefix, b""))

    def remove_marker(self, prefix: str, marker: Record) -> None:
        """Delete that key, if it is still what was read."""
        delete = operation("delete-cas", prefix, index=marker.modify_index)
        with self._files.turns.take(prefix):
            self._backend.settle([delete], lambda: self._records.fresh(prefix) is None)
            self._records.cache.removed(prefix)

    # -- one file --------------------------------------------------------------------------------------------

    def move_file(self, old: str, new: str, keep_target: bool = False) -> None:
        """Rename a key.

        :param keep_target: fail with EEXIST where the new name is taken (RENAME_NOREPLACE)
        """
        self._be_certain(old)
        self._files.settle_rename(new)
        with self._files.turns.take(old, new):
            node, plan = self._files.find(old), None
            if node is not None:
                with node.state:
                    plan = node.plan()
            try:
                with self._patience.steadfast():
                    left, record = self._move_record(old, new, node, plan, keep_target)
            except BaseException:
                if node is not None and plan is not None:
                    with node.state:
                        node.keep(plan)
                raise
            self._files.rekey(old, new)
            self._moved(old, new, left, record)
            if node is not None:
                with node.state:
                    node.settle(record)

    def _be_certain(self, key: str) -> None:
        """Before a rename: what an earlier store of the file sent is there, or is not, and what a lock fences."""
        self._files.settle_rename(key)
        node = self._files.find(key)
        if node is not None and (node.doubts or self._files.is_fenced(node)):
            self._files.store(node)

    def _move_record(
        self, old: str, new: str, node: Optional[Node], plan: Optional[Plan], keep_target: bool
    ) -> tuple[int, Record]:
        """Move what is stored and what is not: (the flags that left the old name, the new record)."""
        source = node.base if node is not None else self._records.get(old)
        target = None if keep_target else self._records.get(new)
        never_stored = source is None and node is not None and node.creation is not None
        while True:
            if source is None and not never_stored:
                raise OSError(errno.ENOENT, "deleted by another host")
            if source is not None and source.session is not None:
                source = self._records.fresh(old)  # it may be free by now
                _check_not_locked(source)
            value, flags = source.value if source else b"", source.flags if source else 0
            if plan is not None:
                value = bytes(edits.replay(value, plan.edits))
                flags = plan.creation.flags if source is None and plan.creation is not None else flags
            brought = self._flags.for_rename(old, flags, target.flags if target else 0)
            sent = len(plan.edits) if plan else 0
            rename = Rename(value, brought, sent, old, new, _index(source), _index(target) or 0)
            try:
                if _has_index(source) and _has_index(target):
                    return flags, self._swap(rename)
            except StaleIndex:
                pass
            except Uncertain:
                found = self._find_moved(rename)
                if found is not None:
                    return flags, found
            try:
                self._patience.sleep(0.005)
                source, target = self._records.fresh(old), self._records.fresh(new)
            except BaseException:
                self._files.doubt_rename(rename)
                raise
            if keep_target and target is not None and not rename.is_in(target):
                raise OSError(errno.EEXIST, "the new name is taken")
            never_stored = never_stored and source is None

    def _find_moved(self, rename: Rename) -> Optional[Record]:
        """After a move whose answer never came: the record at its new place, where it was done."""
        try:
            found = self._records.fresh(rename.new)
            if found is not None and rename.is_in(found) and self._records.fresh(rename.old) is None:
                return found
            return None
        except BaseException:
            self._files.doubt_rename(rename)
            raise

    def _swap(self, rename: Rename) -> Record:
        """The move itself, if both places are still what the rename expects: the new record.

        :raises StaleIndex: one of them is not
        :raises Uncertain: nobody knows whether it was done
        """
        operations = _steps(rename)
        body = encode(operations)
        try:
            if len(body) <= self._backend.txn_limit:
                entries = self._backend.transaction(operations, body)
                return Record.of(next(entry for entry in reversed(entries) if entry["Key"] == rename.new), rename.value)
            return self._swap_large(rename)
        except (Interrupted, OutOfTime):
            self._files.doubt_rename(rename)
            raise

    def _swap_large(self, rename: Rename) -> Record:
        record = self._backend.store(rename.new, rename.value, rename.flags, rename.target_index)
        if rename.source_index is not None:
            self._backend.transaction([operation("delete-cas", rename.old, index=rename.source_index)])
        return record

    def _moved(self, old: str, new: str, left: int, record: Record) -> None:
        self._records.cache.removed(old)
        self._records.cache.stored(record)
        self._times.rename(old, new)
        self._times.stored(new, (record.value, record.flags))
        self._inodes.rename(old, new)
        self._flags.renamed(old, new, left)

    # -- a directory -----------------------------------------------------------------------------------------

    def move_tree(self, old: str, new: str) -> None:
        """Rename every key below a prefix, the open files and their unsaved edits with them.

        :raises OSError: EEXIST where another host makes one of the new names meanwhile
        """
        for node in self._files.below(old):
            self._be_certain(node.key)
        with self._files.turns.take(below=(old, new)):
            move = _TreeMove(old, new, self._records.fresh(new))
            moved: list[str] = []
            try:
                records = self._backend.tree(old)
                for record in records:
                    _check_not_locked(record)
                for batch in self._batches(records, move):
                    with self._patience.steadfast():
                        self._move_batch(batch, move)
                    moved += [record.key for record in batch]
                    self._patience.begin()  # Consul answers: the rest has its whole time too
            except BaseException as error:
                log.error("renaming %r to %r stopped after %d keys: %s", old, new, len(moved), error)
                raise
            finally:
                self._records.cache.forget_below(old)
                self._records.cache.forget_below(new)
                self._records.cache.directory_moved(old, new)
            never_stored = [node.key for node in self._files.below(old)]
            for key in never_stored:
                self._files.rekey(key, move.target(key))
            prefixes = {each for key in moved + never_stored for each in lineage(key) if each.startswith(old)} | {old}
            for name in (prefixes | set(never_stored)) - set(moved):
                self._times.rename(name, move.target(name))
                self._inodes.rename(name, move.target(name))

    def _batches(self, records: Sequence[Record], move: _TreeMove) -> Iterator[list[Record]]:
        """The records in portions that fit into a transaction; one that fits into none stands alone."""
        batch: list[Record] = []
        size = 0
        for record in records:
            cost = len(encode(move.operations(record)))
            if batch and (len(batch) >= BATCH // MOVE_OPERATIONS or size + cost > self._backend.txn_limit):
                yield batch
                batch, size = [], 0
            batch.append(record)
            size += cost
        if batch:
            yield batch

    def _move_batch(self, batch: Sequence[Record], move: _TreeMove) -> None:
        operations = [step for record in batch for step in move.operations(record)]
        body = encode(operations)
        try:
            if len(body) > self._backend.txn_limit:
                raise StaleIndex("too large for a transaction")
            entries = {entry["Key"]: entry for entry in self._backend.transaction(operations, body)}
        except (StaleIndex, Uncertain):
            # Somebody wrote one of them, or nobody knows: one at a time sorts that out.
            self._move_singly(batch, move)
        except (Interrupted, OutOfTime):
            self._doubt(batch, move)
            raise
        else:
            for record in batch:
                self._arrived(record, Record.of(entries[move.target(record.key)], record.value))

    def _move_singly(self, batch: Sequence[Record], move: _TreeMove) -> None:
        left = list(batch)
        try:
            while left:
                arrived = self._move_single(left[0], move)
                if arrived is not None:
                    self._arrived(left[0], arrived)
                left.pop(0)
        except BaseException:
            self._doubt(left, move)
            raise

    def _doubt(self, records: Sequence[Record], move: _TreeMove) -> None:
        for record in records:
            if not self._files.in_doubt(record.key):
                self._files.doubt_rename(move.rename(record, move.standing(record.key)))

    def _move_single(self, record: Record, move: _TreeMove) -> Optional[Record]:
        """Move one key; None where another host has deleted it."""
        new = move.target(record.key)
        source = self._records.fresh(record.key)
        target = move.standing(record.key)
        while source is not None:
            _check_not_locked(source)
            rename = move.rename(source, target)
            try:
                return self._swap(rename)
            except StaleIndex:
                pass
            except Uncertain:
                found = self._find_moved(rename)
                if found is not None:
                    return found
            self._patience.sleep(0.005)
            standing = self._records.fresh(new)
            # A large value is set first and its source deleted then: what stands there may be ours.
            if target is None and standing is not None and not rename.is_in(standing):
                raise OSError(errno.EEXIST, f"another host has made {new!r} meanwhile")
            source, target = self._records.fresh(record.key), standing
        found = self._records.fresh(new)
        return found if found is not None and found.value == record.value else None

    def _arrived(self, before: Record, after: Record) -> None:
        """One key of a directory is at its new place: its open file follows."""
        node = self._files.find(before.key)
        self._files.rekey(before.key, after.key)
        if node is not None:
            with node.state:
                node.rebase(after)
        self._moved(before.key, after.key, before.flags, after)


class _TreeMove:
    """From which prefix to which; `marker` is the target directory's own key, where it has one."""

    def __init__(self, old: str, new: str, marker: Optional[Record]) -> None:
        self.old, self.new, self._marker = old, new, marker

    def target(self, key: str) -> str:
        return self.new + key[len(self.old) :]

    def standing(self, key: str) -> Optional[Record]:
        """What may stand at the new place of a key: the marker of an empty directory, and nothing else."""
        return self._marker if key == self.old else None

    def rename(self, record: Record, standing: Optional[Record]) -> Rename:
        target = self.target(record.key)
        return Rename(record.value, record.flags, 0, record.key, target, _index(record), _index(standing) or 0)

    def operations(self, record: Record) -> list[Operation]:
        return _steps(self.rename(record, self.standing(record.key)))


def _steps(rename: Rename) -> list[Operation]:
    """The operations of a rename: each place is checked for what was read there."""
    arrive = operation("cas", rename.new, rename.value, rename.flags, rename.target_index)
    if rename.source_index is None:
        return [operation("check-not-exists", rename.old), arrive]
    check = operation("check-index", rename.old, index=rename.source_index)
    return [check, arrive, operation("delete", rename.old)]


def _check_not_locked(record: Optional[Record]) -> None:
    """A lock belongs to the key: under its new name a file would be locked no more, and nobody would be told."""
    if record is not None and record.session is not None:
        raise OSError(errno.EBUSY, f"{record.key!r} is locked by session {record.session}")


def _index(record: Optional[Record]) -> Optional[int]:
    return record.modify_index if record is not None else None


def _has_index(record: Optional[Record]) -> bool:
    """Whether a record can be checked for: after a plain PUT its index is not known."""
    return record is None or record.modify_index is not None
