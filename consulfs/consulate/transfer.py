"""Backup and restore of keys: batches, retries, progress by callbacks. It prints nothing.

A restore looks at 64 keys in a request, leaves alone what is already as it should be, and writes the rest by
transactions whose every operation names the index that was seen. So it may be run again at any time, and goes on where
it stopped. Measured on Consul 1.8.7: at most 64 operations and 512 KiB in a transaction's body.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO, Callable, Optional, TypeVar

from consulfs.consulate import rows
from consulfs.consulate.api.kv import CAS_ATTEMPTS, KV
from consulfs.consulate.api.records import TXN_BODY_LIMIT, travels_in_url
from consulfs.consulate.api.txn import Operation, encode, operation
from consulfs.consulate.client import Consul
from consulfs.consulate.exceptions import (
    BadAnswer,
    ClientError,
    ConnectFailed,
    ConsulateException,
    RequestError,
    ServerError,
    StaleIndex,
)
from consulfs.consulate.models import Record
from consulfs.consulate.rows import BadBackup, Entry

BATCH = 64
"""Operations in a transaction."""

PATIENCE = 60.0
"""Seconds for which a batch that fails is tried again."""

MAX_PAUSE = 2.0
"""Seconds between two attempts, at most."""

UNREPRESENTABLE = "\ufffd"
"""What Consul's JSON shows for each byte of a key that is not UTF-8."""

T = TypeVar("T")


class RestoreStopped(ConsulateException):
    """A restore came so far; the message says what was written and why it did not go on.

    :ivar counts: how far it came
    """

    def __init__(self, message: str, counts: Counts) -> None:
        super().__init__(message)
        self.counts = counts


class NothingFound(ConsulateException):
    """There is no key to back up, or none that the token may read. Restored with pruning, `[]` would empty a store."""


@dataclass
class Counts:
    """How far a restore has come.

    :ivar written: keys that were written
    :ivar same: keys that had their value and flags already
    :ivar kept: keys that were there and were not to be replaced
    :ivar pruned: keys that were deleted since the backup does not have them
    :ivar changed: keys that were to be deleted but had been changed meanwhile
    """

    written: int = 0
    same: int = 0
    kept: int = 0
    pruned: int = 0
    changed: int = 0

    def __str__(self) -> str:
        said = [f"{self.written} written", f"{self.same} already as in the backup"]
        optional = ((self.kept, "left as they were"), (self.pruned, "pruned"), (self.changed, "changed meanwhile"))
        return ", ".join(said + [f"{count} {words}" for count, words in optional if count])


# -- keys below a base ---------------------------------------------------------------------------------------------


def covers(base: str, key: str) -> bool:
    """Whether a key is the base itself or below it; "" is above all. `foobar` is not below `foo`."""
    return not base or key == base or key.startswith(base + "/")


def relative(base: str, key: str) -> str:
    """A key as the backup of a base names it: `a/b` of `a` is `b`, and `a` itself is "".

    Exactly one key has each name: what would begin with a slash, as `a//b`, keeps the slash before it.
    """
    if not base:
        return key
    rest = key[len(base) :]
    return rest[1:] if rest.startswith("/") and rest[1:2] not in ("", "/") else rest


def absolute(base: str, name: str) -> str:
    """The reverse of `relative`."""
    if not base:
        return name
    return base + name if not name or name.startswith("/") else f"{base}/{name}"


def is_named(kv: KV, shown: Record) -> bool:
    """Whether a key that Consul showed is one: JSON cannot name a key that is not UTF-8, and shows another.

    That other one may be there too. But each key that JSON cannot name was created by a write of its own.
    """
    if UNREPRESENTABLE not in shown.key:
        return True
    found = kv.read_many([shown.key]).get(shown.key)
    return found is not None and found.create_index == shown.create_index


# -- backup --------------------------------------------------------------------------------------------------------


def backup(
    consul: Consul,
    out: IO[bytes],
    base: str = "",
    as_base64: bool = False,
    pretty: bool = False,
    on_row: Optional[Callable[[], object]] = None,
    allow_empty: bool = False,
) -> int:
    """Write a backup of all keys, or of a base and what is below it; the number of keys.

    One answer to one request, read while it is written: the state of one moment, in bounded memory.

    :param allow_empty: where there is no key, write the empty list
    :raises BadBackup: there is a key that JSON cannot name
    :raises NothingFound: there is no key; nothing is written
    """

    def records() -> Iterator[Record]:
        found = False
        for record in consul.kv.stream(base):
            if not covers(base, record.key):
                continue
            if not is_named(consul.kv, record):
                raise BadBackup(f"the key shown as {record.key!r} is not UTF-8, so that no backup in JSON can name it")
            yield Record(relative(base, record.key), record.value, record.flags)
            found = True
            if on_row is not None:
                on_row()
        if not (found or allow_empty):
            raise NothingFound(f"no key {base!r} and none below it" if base else "there are no keys")

    return rows.write(records(), out, as_base64, pretty)


# -- restore -------------------------------------------------------------------------------------------------------


def restore(
    consul: Consul,
    source: rows.Source,
    base: str = "",
    as_base64: bool = False,
    replace: bool = True,
    prune: bool = False,
    patience: float = PATIENCE,
    on_row: Optional[Callable[[], object]] = None,
    on_prune: Optional[Callable[[str], object]] = None,
) -> Counts:
    """Write the rows of a backup, below a base where one is given.

    :param as_base64: the values of `[key, flags, value]` are base64
    :param replace: whether keys that are there get another value
    :param prune: when everything is written, delete the keys (below the base) that the backup does not have. What was
        created or changed since the restore began stays.
    :param patience: seconds for which a batch is tried again while it fails in a way that may pass
    :raises RestoreStopped: it could not be finished; what was written stays
    """
    job = Restore(consul, base, replace, patience, on_row)
    job.introduce()
    began = job.index() if prune else 0
    kept = job.load(rows.read(source, as_base64), remember=prune)
    if prune:
        job.prune(kept, began, on_prune)
    return job.counts


class Restore:
    """One restore, step by step: `introduce`, `load`, `prune`. The parameters are those of `restore`."""

    def __init__(
        self,
        consul: Consul,
        base: str = "",
        replace: bool = True,
        patience: float = PATIENCE,
        on_row: Optional[Callable[[], object]] = None,
    ) -> None:
        self.counts = Counts()
        self.txn_limit = TXN_BODY_LIMIT
        self._consul = consul
        self._kv = consul.kv
        self._base = base
        self._replace = replace
        self._patience = patience
        self._on_row = on_row
        self._expect_none = False  # the last batch met no key, so that the next is tried without looking

    def introduce(self) -> None:
        """Ask for the server's limit. Nobody there is told at once, before anything is done."""
        try:
            said = self._patiently(self._consul.agent.self, is_first=True)
        except ClientError:
            return  # no agent:read for this token, or only keys can be reached: Consul's default
        config = said.get("DebugConfig")
        limit = config.get("TxnMaxReqLen") if isinstance(config, dict) else None
        if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
            self.txn_limit = limit

    def index(self) -> int:
        """An index that no key (below the base) exceeds now."""

        def ask() -> Optional[int]:
            self._kv.names(self._base if travels_in_url(self._base) and self._base.isascii() else "", "/")
            return self._kv.meta.index

        index = self._patiently(ask)
        if index is None:
            raise BadAnswer("Consul tells no index, so that nothing can be pruned safely")
        return index

    def load(self, entries: Iterator[Entry], remember: bool = False) -> set[bytes]:
        """Write them.

        :return: the digests of their keys, where they are to be remembered
        """
        kept: set[bytes] = set()
        batch: dict[str, Entry] = {}
        size = 0
        for key, entry in self._until_bad(entries, batch):
            length = len(key) + len(entry.value)
            if key in batch or len(batch) == BATCH or size + length > self.txn_limit:
                self._write_batch(batch)
                size = 0
            batch[key] = entry
            size += length
            if remember:
                kept.add(_digest(key))
        self._write_batch(batch)
        return kept

    def _until_bad(self, entries: Iterator[Entry], batch: dict[str, Entry]) -> Iterator[tuple[str, Entry]]:
        """The entries with their keys; what stands before a bad one is written first."""
        try:
            for entry in entries:
                key = absolute(self._base, entry.key)
                if not key:
                    raise BadBackup(f"row {entry.number}: the key is empty")
                yield key, entry
        except BadBackup as error:
            self._write_batch(batch)
            raise self._stopped(str(error)) from error

    def prune(self, kept: set[bytes], began: int, on_prune: Optional[Callable[[str], object]] = None) -> None:
        """Delete what is not kept, has not changed since `began`, and does not change before it is deleted."""
        try:
            doomed, nameless = self._patiently(lambda: self._doomed(kept, began))
            for group in self._groups(operation("delete-cas", key, index=index) for key, index in doomed):
                for key in self._delete(group):
                    self.counts.pruned += 1
                    if on_prune is not None:
                        on_prune(key)
            if nameless:
                raise ConsulateException(f"the key shown as {nameless[0]!r} is not UTF-8 and cannot be named in JSON")
        except ConsulateException as error:
            words = f"all rows are restored, but not all else is pruned: {error}"
            raise self._stopped(words, again=may_pass(error)) from error

    def _doomed(self, kept: set[bytes], began: int) -> tuple[list[tuple[str, int]], list[str]]:
        """Key and index of what is to be deleted; and the keys that cannot be, since they have no name in JSON."""
        found, nameless = [], []
        self.counts.changed = 0
        for record in self._kv.stream(self._base):
            if not covers(self._base, record.key):
                continue
            if not is_named(self._kv, record):
                nameless.append(record.key)
            elif _digest(record.key) in kept:
                continue
            elif record.modify_index is None or record.modify_index > began:
                self.counts.changed += 1
            else:
                found.append((record.key, record.modify_index))
        return found, nameless

    def _delete(self, operations: list[Operation]) -> list[str]:
        """The keys that are gone."""
        while operations:
            try:
                self._patiently(partial(self._kv.txn.execute, operations))
                return [each["KV"]["Key"] for each in operations]
            except StaleIndex as error:
                changed = {index for index, _ in error.errors}
                self.counts.changed += len(changed)
                operations = [each for index, each in enumerate(operations) if index not in changed]
        return []

    # -- one batch ---------------------------------------------------------------------------------------------

    def _write_batch(self, batch: dict[str, Entry]) -> None:
        """Write a batch and empty it. Where one of its keys is refused, those before it are written."""
        try:
            self._settle(batch)
        except ConsulateException as error:
            if not isinstance(error, ClientError) or may_pass(error):
                number = min(entry.number for entry in batch.values())
                raise self._stopped(f"row {number}: {error}", again=may_pass(error)) from error
            for key, entry in list(batch.items()):
                self._write_alone(key, entry)
            batch.clear()

    def _write_alone(self, key: str, entry: Entry) -> None:
        try:
            self._settle({key: entry})
        except ConsulateException as error:
            raise self._stopped(f"row {entry.number}: {key!r}: {error}", again=may_pass(error)) from error

    def _settle(self, left: dict[str, Entry]) -> None:
        """Until nothing is left of the batch; somebody may write the same keys at the same time."""
        sent: set[str] = set()
        for _ in range(CAS_ATTEMPTS):
            try:
                self._patiently(lambda: self._attempt(left, sent))
                return
            except StaleIndex as error:
                self._expect_none = False
                failed = error
        raise failed

    def _attempt(self, left: dict[str, Entry], sent: set[str]) -> None:
        """Look at what is left, write it, and take out of `left` what is done.

        :param sent: keys of writes whose answer never came: they may have been applied
        """
        found: dict[str, Record] = {}
        if left and (sent or not self._expect_none):
            found = self._kv.read_many(list(left))
            self._expect_none = not found
        for key, record in found.items():
            entry = left[key]
            if (record.value, record.flags) == (entry.value, entry.flags):
                self._done(left, key, "written" if key in sent else "same")
            elif not self._replace:
                self._done(left, key, "kept")
        for group in self._groups(self._writes(left, found)):
            keys = [each["KV"]["Key"] for each in group]
            sent.update(keys)
            try:
                self._write(group, left)
            except ClientError:
                sent.difference_update(keys)
                raise
            for key in keys:
                self._done(left, key, "written")

    def _writes(self, left: dict[str, Entry], found: dict[str, Record]) -> Iterator[Operation]:
        for key, entry in list(left.items()):
            record = found.get(key)
            index = (record.modify_index or 0) if record else 0
            yield operation("cas", key, entry.value, entry.flags, index)

    def _write(self, group: list[Operation], left: dict[str, Entry]) -> None:
        body = encode(group)
        if len(group) == 1 and len(body) > self.txn_limit:
            key = group[0]["KV"]["Key"]
            entry = left[key]
            self._kv.store(key, entry.value, entry.flags, group[0]["KV"]["Index"], txn_limit=self.txn_limit)
        else:
            self._kv.txn.execute(group, body)

    def _groups(self, operations: Iterable[Operation]) -> Iterator[list[Operation]]:
        """What fits into one transaction each; an operation that fits into none is alone."""
        group: list[Operation] = []
        size = 2
        for each in operations:
            length = len(encode([each])) - 1
            if group and (len(group) == BATCH or size + length > self.txn_limit):
                yield group
                group, size = [], 2
            group.append(each)
            size += length
        if group:
            yield group

    def _done(self, left: dict[str, Entry], key: str, as_what: str) -> None:
        del left[key]
        setattr(self.counts, as_what, getattr(self.counts, as_what) + 1)
        if self._on_row is not None:
            self._on_row()

    # -- patience ----------------------------------------------------------------------------------------------

    def _patiently(self, act: Callable[[], T], is_first: bool = False) -> T:
        """Do it again while it fails in a way that may pass, until `patience` is over.

        :param is_first: where the very first request meets nobody, the address may be wrong: that is told at once
        """
        pause, deadline = 0.1, time.monotonic() + self._patience
        while True:
            try:
                return act()
            except ConsulateException as error:
                if not may_pass(error) or time.monotonic() + pause > deadline:
                    raise
                if is_first and isinstance(error, ConnectFailed):
                    raise
                is_first = False
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, MAX_PAUSE)

    def _stopped(self, why: str, again: bool = False) -> RestoreStopped:
        go_on = "; run the same restore again to go on" if again else ""
        return RestoreStopped(f"{why} ({self.counts}{go_on})", self.counts)


def may_pass(error: ConsulateException) -> bool:
    """Whether the same request may succeed in a while: no answer, 5xx, 429. A page that Consul never sent stays."""
    if isinstance(error, ClientError):
        return error.status == 429
    return isinstance(error, (RequestError, ServerError)) and not isinstance(error, BadAnswer)


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
