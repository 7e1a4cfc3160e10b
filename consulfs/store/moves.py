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
from consulfs.store import edits
from consulfs.store.backend import BATCH, Backend, Uncertain
from consulfs.store.flagmemory import FlagMemory
from consulfs.store.inodes import Inodes
from consulfs.store.nodes import Node, OpenFiles, Plan
from consulfs.store.patience import Patience
from consulfs.store.records import Records
from consulfs.store.times import Times

log = logging.getLogger(__name__)

MOVE_OPERATIONS = 3
"""check-index, set, delete."""


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
        with self._files.turns.take(key):
            self._backend.remove(key)
            node = self._files.find(key)
            if node is not None:
                self._files.abandon(node)
            self._records.cache.removed(key)
            self._times.forget(key)

    # -- a directory's own key -------------------------------------------------------------------------------

    def make_marker(self, prefix: str) -> None:
        """Write the key that Consul's UI writes for a folder: the prefix itself.

        :raises OSError: EEXIST where it is there
        """
        operations = [operation("check-not-exists", prefix), operation("set", prefix, b"")]
        try:
            self._backend.settle(operations, lambda: self._records.fresh(prefix) is not None)
        except StaleIndex as error:
            self._records.cache.forget(prefix)
            raise OSError(errno.EEXIST, "made by another host") from error
        self._records.cache.stored(Record(prefix, b""))

    def remove_marker(self, prefix: str, marker: Record) -> None:
        """Delete that key, if it is still what was read."""
        delete = operation("delete-cas", prefix, index=marker.modify_index)
        self._backend.settle([delete], lambda: self._records.fresh(prefix) is None)
        self._records.cache.removed(prefix)

    # -- one file --------------------------------------------------------------------------------------------

    def move_file(self, old: str, new: str, keep_target: bool = False) -> None:
        """Rename a key.

        :param keep_target: fail with EEXIST where the new name is taken (RENAME_NOREPLACE)
        """
        with self._files.turns.take(old, new):
            node, plan = self._files.find(old), None
            if node is not None:
                with node.state:
                    plan = node.plan()
            try:
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

    def _move_record(
        self, old: str, new: str, node: Optional[Node], plan: Optional[Plan], keep_target: bool
    ) -> tuple[int, Record]:
        """Move what is stored and what is not: (the flags that left the old name, the new record)."""
        source = node.base if node is not None else self._records.get(old)
        never_stored = node is not None and node.base is None and node.creation is not None
        while True:
            if source is None and not never_stored:
                raise OSError(errno.ENOENT, "deleted by another host")
            if source is not None and source.modify_index is None:
                source = self._records.fresh(old)
                continue
            value = source.value if source else b""
            flags = source.flags if source else 0
            if plan is not None:
                value = bytes(edits.replay(value, plan.edits))
                if source is None and plan.creation is not None:
                    flags = plan.creation.flags
            target = None if keep_target else self._records.get(new)
            brought = self._flags.for_rename(old, flags, target.flags if target else 0)
            try:
                return flags, self._swap(source, new, value, brought, keep_target)
            except (StaleIndex, Uncertain) as error:
                if self._arrived(old, new, value, brought, error):
                    return flags, self._records.fresh(new) or Record(new, value, brought)
                if keep_target and self._records.fresh(new) is not None:
                    raise OSError(errno.EEXIST, "the new name is taken") from error
                self._patience.sleep(0.005)
                source = self._records.fresh(old)
                never_stored = never_stored and source is None

    def _swap(self, source: Optional[Record], new: str, value: bytes, flags: int, keep_target: bool) -> Record:
        operations: list[Operation] = []
        if keep_target:
            operations.append(operation("check-not-exists", new))
        if source is not None:
            operations.append(operation("check-index", source.key, index=source.modify_index))
        operations.append(operation("set", new, value, flags))
        if source is not None:
            operations.append(operation("delete", source.key))
        body = encode(operations)
        if len(body) <= self._backend.txn_limit:
            entries = self._backend.transaction(operations, body)
            return Record.of(next(entry for entry in reversed(entries) if entry["Key"] == new), value)
        return self._swap_large(source, new, value, flags, keep_target)

    def _swap_large(self, source: Optional[Record], new: str, value: bytes, flags: int, keep_target: bool) -> Record:
        target = None if keep_target else self._records.fresh(new)
        record = self._backend.store(new, value, flags, (target.modify_index or 0) if target else 0)
        if source is not None:
            self._backend.transaction([operation("delete-cas", source.key, index=source.modify_index)])
        return record

    def _arrived(self, old: str, new: str, value: bytes, flags: int, error: Exception) -> bool:
        """After a move whose answer never came: whether it was done."""
        if not isinstance(error, Uncertain):
            return False
        target = self._records.fresh(new)
        done = target is not None and (target.value, target.flags) == (value, flags)
        return done and self._records.fresh(old) is None

    def _moved(self, old: str, new: str, left: int, record: Record) -> None:
        self._records.cache.removed(old)
        self._records.cache.stored(record)
        self._times.rename(old, new)
        self._times.stored(new, (record.value, record.flags), record.modify_index)
        self._inodes.rename(old, new)
        self._flags.renamed(old, new, left)

    # -- a directory -----------------------------------------------------------------------------------------

    def move_tree(self, old: str, new: str) -> None:
        """Rename every key below a prefix, the open files and their unsaved edits with them."""
        with self._files.turns.take(below=(old, new)):
            nodes = {node.key: node for node in self._files.below(old)}
            moved = 0
            try:
                for batch in self._batches(self._backend.tree(old), old, new):
                    self._move_batch(batch, old, new, nodes)
                    moved += len(batch)
                    self._patience.begin()  # Consul answers: the rest has its whole time too
            except BaseException as error:
                log.error("renaming %r to %r stopped after %d keys: %s", old, new, moved, error)
                raise
            for key, node in nodes.items():
                if node.key == key:  # never stored, so nothing of it was moved
                    self._files.rekey(key, new + key[len(old) :])
            self._records.cache.forget_below(old)
            self._records.cache.forget_below(new)
            self._times.rename(old, new)
            self._inodes.rename(old, new)

    def _batches(self, records: Sequence[Record], old: str, new: str) -> Iterator[list[Record]]:
        """The records in portions that fit into a transaction; one that fits into none stands alone."""
        batch: list[Record] = []
        size = 0
        for record in records:
            cost = len(encode(_move_operations(record, new + record.key[len(old) :])))
            if batch and (len(batch) >= BATCH // MOVE_OPERATIONS or size + cost > self._backend.txn_limit):
                yield batch
                batch, size = [], 0
            batch.append(record)
            size += cost
        if batch:
            yield batch

    def _move_batch(self, batch: Sequence[Record], old: str, new: str, nodes: dict[str, Node]) -> None:
        operations = [step for each in batch for step in _move_operations(each, new + each.key[len(old) :])]
        body = encode(operations)
        try:
            if len(batch) > 1 or len(body) <= self._backend.txn_limit:
                entries = {entry["Key"]: entry for entry in self._backend.transaction(operations, body)}
                arrived = [Record.of(entries[new + each.key[len(old) :]], each.value) for each in batch]
            else:
                each = batch[0]
                arrived = [self._swap_large(each, new + each.key[len(old) :], each.value, each.flags, False)]
        except (StaleIndex, Uncertain):
            # Somebody wrote one of them, or nobody knows: one at a time sorts that out.
            arrived = [self._move_single(each, new + each.key[len(old) :]) for each in batch]
        for before, after in zip(batch, arrived):
            self._files.rekey(before.key, after.key)
            node = nodes.get(before.key)
            if node is not None:
                with node.state:
                    node.rebase(after)
            self._moved(before.key, after.key, before.flags, after)

    def _move_single(self, record: Record, new: str) -> Record:
        source: Optional[Record] = self._records.fresh(record.key)
        while source is not None:
            try:
                return self._swap(source, new, source.value, source.flags, keep_target=False)
            except (StaleIndex, Uncertain):
                self._patience.sleep(0.005)
                source = self._records.fresh(record.key)
        return self._records.fresh(new) or record


def _move_operations(record: Record, new: str) -> list[Operation]:
    return [
        operation("check-index", record.key, index=record.modify_index),
        operation("set", new, record.value, record.flags),
        operation("delete", record.key),
    ]
