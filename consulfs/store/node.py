"""An open key: the record it was read from, the edits made since, and the content that both give. No I/O.

What is written and not yet stored belongs to the node, not to one handle: it answers every reader of this mount, and
whoever stores takes all of it. A store takes a `Plan`, and settles it or gives it back.

Owner of a node's content: `Node.state`. It is never held across a request.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Optional, Union

from consulfs.consulate import Record
from consulfs.store import edits
from consulfs.store.edits import Edit

NO_OWNER = 0


@dataclass
class Creation:
    """A file that exists on this mount and not yet in Consul."""

    owner: int
    exclusive: bool
    flags: int = 0


@dataclass
class Doubt:
    """What was sent to Consul and never answered, and how many of the pending edits it held."""

    value: bytes
    flags: int
    edits: int

    def is_in(self, record: Record) -> bool:
        """Whether this is what Consul holds now."""
        return (record.value, record.flags) == (self.value, self.flags)


@dataclass
class Rename(Doubt):
    """A rename, what it brings along, and the indexes that it expects (None: a source that was never stored)."""

    old: str
    new: str
    source_index: Optional[int]
    target_index: int

    def fate(self, source: Optional[Record], target: Optional[Record]) -> Optional[bool]:
        """Whether it was applied, from what stands at both names now; None where it still may be, late."""
        source_now = source.modify_index if source is not None else None
        target_now = (target.modify_index or 0) if target is not None else 0
        if source_now == self.source_index and target_now == self.target_index:
            return None
        moved = source is None and target is not None and target_now != self.target_index
        # Where the source had been stored and is gone, a target of other content was changed after the rename.
        return moved and ((target is not None and self.is_in(target)) or self.source_index is not None)


@dataclass
class Plan:
    """What one store is to bring to Consul; taken from the node, and given back where the store fails."""

    key: str
    base: Optional[Record]
    edits: list[Edit]
    creation: Optional[Creation]
    doubts: list[Doubt]
    flags: Optional[int] = None
    session: Optional[str] = None  # to be stored only while this one holds the key

    def flags_on(self, base: Optional[Record]) -> int:
        """The flags to store: those that were set, else those that stand, else those that the name had."""
        if self.flags is not None:
            return self.flags
        if base is not None:
            return base.flags
        if self.creation is not None:
            return self.creation.flags
        return self.base.flags if self.base else 0


def version_of(record: Optional[Record]) -> Optional[tuple[int, int]]:
    """Which content a record has, whatever comes in between: a value may come back, and so may a ModifyIndex, where a
    cluster was restored."""
    if record is None or record.modify_index is None:
        return None
    return record.modify_index, hash(record.value)


class Node:
    """An open key."""

    def __init__(self, key: str, base: Optional[Record], creation: Optional[Creation] = None) -> None:
        self.key = key
        self.handles: set[int] = set()  # owned by the table's lock
        self.state = threading.Lock()  # owns all that follows
        self.gone = False
        self.base = base
        self.creation = creation
        self.content: Union[bytes, bytearray] = base.value if base else b""  # copied where it is changed
        self.pending: list[Edit] = []
        self.in_flight: list[Edit] = []
        self.sealed = 0  # so many of the pending edits were sent once and may not be merged with later ones
        self.doubts: list[Doubt] = []
        # What programs read until the kernel has been told the size of another content; None: that is this one.
        self.shown: Optional[Union[bytes, bytearray]] = None
        self.shown_version: Optional[tuple[int, int]] = None
        # What the kernel's pages were filled with, where that is another content; None: with this one.
        self.mapped: Optional[Union[bytes, bytearray]] = None
        self.held = False  # what is shown goes on being so, whoever asks, until the kernel has been made to forget
        self.asked = False  # the kernel was told of what is held
        self.is_bare = False  # the kernel was made to forget all of it, and has had nothing of it since
        self.held_by_kernel = False  # what is outdated, as far as the kernel may show it without asking
        self.outdated = False  # another host may have changed it before a lock was taken here
        # What was written here met what others had done: the kernel cannot reckon its size.
        self.merged = False
        self.failed: set[int] = set()  # handles of which nothing is to be stored any more

    @property
    def dirty(self) -> bool:
        """Whether there is something to store."""
        return bool(self.pending or self.creation)

    @property
    def unsaved(self) -> bool:
        """Whether the content is another than Consul's, as far as this mount can know."""
        return bool(self.pending or self.creation or self.in_flight) and not self.gone

    @property
    def exists(self) -> bool:
        """Whether the file is there for this mount's programs, stored or not."""
        return not self.gone and (self.base is not None or self.creation is not None)

    def owes(self, owner: int) -> bool:
        """Whether this handle has done something that is not stored, or not known to be."""
        if not (self.creation or self.pending or self.in_flight):
            return False
        created = self.creation is not None and self.creation.owner == owner
        return created or any(edit.owner == owner for edit in self.in_flight + self.pending)

    @property
    def version(self) -> Optional[tuple[int, int]]:
        """Which content it shows; None where that is not stored, or not known."""
        return None if self.unsaved else version_of(self.base)

    def hold(self) -> bool:
        """Another host has changed it: what is shown stays so until `let_go`; whether that is another content."""
        self.held = self.shown is not None
        return self.held

    def let_go(self) -> None:
        """The kernel has forgotten it: who asks next is told of the content as it is."""
        self.held, self.mapped = False, None
        self.show_resembling()

    def show_resembling(self) -> None:
        """The content is shown as it is, if the kernel knows its size."""
        if self.shown is not None and not self.held and len(self.shown) == len(self.content):
            self.show()

    def show(self) -> None:
        """The content is shown as it is."""
        self.shown, self.held = None, False

    def bare(self) -> None:
        """The kernel knows nothing of it, and nothing from before is shown any more: a lock was taken, or a store has
        brought what others did."""
        self.show()
        self.mapped, self.is_bare = None, True

    def tell(self) -> tuple[Union[bytes, bytearray], Optional[tuple[int, int]]]:
        """The kernel is told of the content, and its version: of the content as it is, unless another one is held."""
        if self.held and self.shown is not None:
            self.asked = True
            return self.shown, self.shown_version
        self.show()
        self.is_bare = False
        return self.content, self.version

    @property
    def opened_version(self) -> Optional[tuple[int, int]]:
        """The version of what a program reads that opens it now."""
        return self.shown_version if self.held else self.version

    def change(self, owner: int, change: edits.Change) -> None:
        self.show()
        self.is_bare = False  # the kernel has the page that was written
        if isinstance(self.content, bytes):
            self.content = bytearray(self.content)
        edits.apply(self.content, change)
        edits.record(self.pending, owner, change, self.sealed)

    def discard(self, owner: int) -> None:
        """Forget what one handle did, as though it had never been."""
        self.failed.add(owner)
        for doubt in self.doubts if not self.in_flight else ():  # else `keep` comes here again
            doubt.edits = sum(edit.owner != owner for edit in self.pending[: doubt.edits])
        self.sealed = sum(edit.owner != owner for edit in self.pending[: self.sealed])
        self.pending = [edit for edit in self.pending if edit.owner != owner]
        if self.creation is not None and self.creation.owner == owner:
            self.creation = None
        self.content = edits.replay(self.base.value if self.base else b"", self.in_flight + self.pending)

    def readmit(self, owner: int) -> None:
        """What a handle does from now on is to be stored again."""
        self.failed.discard(owner)

    def is_before(self, record: Record) -> bool:
        """Whether a record that was read now is from before the one that is known: a server lags behind, the answer
        was slow, or Consul's indexes began anew."""
        if self.unsaved or self.gone or self.base is None:
            return False
        old, new = self.base.modify_index, record.modify_index
        if old is None or new is None:
            return False
        return new < old or (new == old and self.base.value != record.value)

    def adopt(self, record: Record) -> None:
        """A newer record was read, and nothing is unsaved: go on from there."""
        if self.unsaved or self.gone:
            return
        old = self.base.modify_index if self.base is not None else None
        new = record.modify_index
        if self.base is None or (new is not None and (old is None or new > old)):
            if self.base is None or self.base.value != record.value:
                if not self.is_bare:
                    if self.shown is None and self.base is not None:
                        self.shown, self.shown_version = self.content, version_of(self.base)
                    self.mapped = self.content if self.mapped is None else self.mapped
                self.content = record.value
            self.base = record

    def refresh(self, record: Record) -> None:
        """A newer record was read under the key's lock: go on from there, with what is unsaved.

        Not while it is unknown what became of something that was sent: that is found out by the record it was sent on.
        """
        old = self.base.modify_index if self.base is not None else None
        newer = old is not None and record.modify_index is not None and record.modify_index > old
        if newer and self.pending and not (self.gone or self.in_flight or self.doubts or self.creation):
            self.rebase(record)
        else:
            self.adopt(record)

    def begin_anew(self) -> None:
        """Consul's indexes went back: the one of the record says nothing of those to come."""
        if self.base is not None:
            self.base = self.base._replace(modify_index=None)

    def plan(self) -> Optional[Plan]:
        """Take what is to be stored, or None where there is nothing."""
        if self.gone or not self.dirty:
            return None
        self.in_flight, self.pending = self.pending, []
        return Plan(self.key, self.base, self.in_flight, self.creation, self.doubts)

    def take_merged(self) -> bool:
        """Whether it was, since this was asked last."""
        with self.state:
            merged, self.merged = self.merged, False
        return merged

    def keep(self, plan: Plan) -> None:
        """The store failed: what it held is pending again, less what was found to be applied."""
        self.creation, self.doubts = plan.creation, plan.doubts
        self.pending = plan.edits + self.pending
        self.in_flight, self.sealed = [], len(plan.edits)
        if plan.base is not None and plan.base is not self.base:
            self.rebase(plan.base)
        for owner in self.failed & {edit.owner for edit in plan.edits}:
            self.discard(owner)

    def settle(self, record: Record) -> bool:
        """The store succeeded; whether the content is another now, since others had changed the file, too."""
        self.creation = None
        self.in_flight, self.sealed, self.doubts = [], 0, []
        return self.rebase(record)

    def rebase(self, record: Record) -> bool:
        """Go on from a newer record, with what is unsaved; whether the content is another now."""
        before, unsaved = self.content, self.in_flight + self.pending
        self.base = record
        if not unsaved and before == record.value:
            return False
        self.content = edits.replay(record.value, unsaved)
        has_changed = self.content != before
        if has_changed:
            self.merged = True
            self.mapped = before if self.mapped is None else self.mapped
        return has_changed
