"""The key/value store as a dict for people, and its locks.

It follows the consulate library, which strips a leading slash: a name that begins with one means the key of just that
name where there is one (the exact face beneath, `records`, can store it), else the key without the slash.

Source: https://www.consul.io/api-docs/kv
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Optional, Union, overload

from consulfs.consulate.api.records import TXN_BODY_LIMIT, Records, record_of
from consulfs.consulate.api.txn import Operation, encode, operation
from consulfs.consulate.exceptions import (
    BadAnswer,
    ConcurrentChange,
    KeyMissing,
    StaleIndex,
    TooLarge,
    TransactionFailed,
)
from consulfs.consulate.models import Record

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.models import Query

CAS_ATTEMPTS = 32

# How Consul 1.8 ends its words where a lock is refused (agent/consul/state/txn.go); a key's name stands before them.
NOT_NOW = ("lock is already held", "due to lock delay")


@dataclass(frozen=True)
class Taken:
    """What a transaction that locked a key found there, and what it wrote.

    :ivar before: None where there was no such key
    :ivar after: its modify_index is None as long as no answer has said it
    """

    session: str
    before: Optional[Record]
    after: Record

    def undoing(self, index: int) -> list[Operation]:
        """The operations that make the key what it was and free, where it still has the index that the lock made."""
        key, old = self.after.key, self.before
        check = operation("check-session", key, session=self.session)
        if old is None or not old.carries:
            return [check, operation("delete-cas", key, index=index)]
        unlock = operation("unlock", key, old.value, old.flags, session=self.session)
        return [check, operation("check-index", key, index=index), unlock]


class KV(Records):
    """The key/value store. Writes use compare-and-set, as the consulate library's do."""

    def __contains__(self, item: str) -> bool:
        return self._find(item) is not None

    def __getitem__(self, item: str) -> Union[str, bytes]:
        """:raises KeyMissing: there is no such key (it is a KeyError and an AttributeError)"""
        record = self._find(item)
        if record is None:
            raise KeyMissing(f"Key not found ({item})")
        return decode(record.value)

    def __setitem__(self, item: str, value: Any) -> None:
        self.set(item, value)

    def __delitem__(self, item: str) -> None:
        self.delete(item)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.names(""))

    def keys(self, **query: Unpack[Query]) -> list[str]:
        return sorted(self.names("", **query))

    def items(self, **query: Unpack[Query]) -> dict[str, Union[str, bytes]]:
        """Every key with its value."""
        return dict(self.iteritems(**query))

    def iteritems(self, **query: Unpack[Query]) -> Iterator[tuple[str, Union[str, bytes]]]:
        for record in self.tree("", **query):
            yield record.key, decode(record.value)

    def values(self, **query: Unpack[Query]) -> list[Union[str, bytes]]:
        return [value for _, value in self.iteritems(**query)]

    def get(self, item: str, default: Any = None, raw: bool = False, **query: Unpack[Query]) -> Union[str, bytes, Any]:
        """A key's value: str where it is UTF-8, else bytes; `default` where there is no such key."""
        record = self._find(item, **query)
        return default if record is None else decode(record.value)

    @overload
    def find(self, prefix: str, separator: None = None, **query: Unpack[Query]) -> dict[str, Union[str, bytes]]: ...

    @overload
    def find(self, prefix: str, separator: str, **query: Unpack[Query]) -> list[str]: ...

    def find(
        self, prefix: str, separator: Optional[str] = None, **query: Unpack[Query]
    ) -> Union[dict[str, Union[str, bytes]], list[str]]:
        """The keys below a prefix with their values; with a separator the names of that one level."""
        prefix = prefix.lstrip("/")
        if separator:
            return self.names(prefix, separator, **query)
        return {record.key: decode(record.value) for record in self.tree(prefix, **query)}

    def records(self, key: Optional[str] = None, **query: Unpack[Query]) -> list[tuple[str, int, Union[str, bytes]]]:
        """(key, flags, value) of every key, or of those below a prefix."""
        return [(each.key, each.flags, decode(each.value)) for each in self.tree(key or "", **query)]

    def get_record(self, item: str, **query: Unpack[Query]) -> Optional[dict[str, Any]]:
        """Consul's record as a dict with the value decoded, or None where there is no such key."""
        record = self._find(item, **query)
        if record is None:
            return None
        entry: dict[str, Any] = {
            "Key": record.key,
            "Value": decode(record.value),
            "Flags": record.flags,
            "CreateIndex": record.create_index,
            "ModifyIndex": record.modify_index,
            "LockIndex": record.lock_index,
        }
        if record.session:
            entry["Session"] = record.session
        return entry

    def set(self, item: str, value: Any) -> None:
        """Set a key's value and keep its flags. What is not a string or bytes is stored as JSON."""
        key = self._key(item)
        self._store_safely(key if value is None else key.rstrip("/"), _encode(value), None, replace=True)

    def set_record(self, item: str, flags: int = 0, value: Any = None, replace: bool = True) -> bool:
        """Set a key's value and flags; with `replace=False` only where there is no such key. The key is taken as it is.

        :return: False where the key stood and was not to be replaced
        """
        return self._store_safely(item, _encode(value), flags, replace)

    def delete(self, item: str, recurse: bool = False) -> bool:
        """Delete a key, or every key that begins with `item` (without its leading slash). A missing key is no error."""
        self.remove(item.lstrip("/") if recurse else self._key(item), recurse)
        return True

    def acquire_lock(
        self, item: str, session: str, value: Any = None, cas: Optional[int] = None, flags: Optional[int] = None
    ) -> bool:
        """Take the key's lock for a session; one that has it already keeps it.

        Consul's own request writes its body and flags whenever it takes a lock, an empty body too. Here the lock is
        taken in a transaction that leaves what is not given as it stands, even if others write at the same time.

        :param value: set with the lock; None leaves the key's value
        :param cas: take it only where the key has this ModifyIndex; 0: where there is no such key
        :param flags: set with the lock; None leaves the key's flags
        :return: False where another session holds it, its lock-delay runs, or `cas` did not fit
        :raises UnknownSession: there is no such session
        :raises TooLarge: the value does not fit into a transaction (about 390 KB)
        :raises ConcurrentChange: the key changed again and again
        """
        return self._take(self._key(item), session, value, cas, flags)

    def release_lock(self, item: str, session: str) -> bool:
        """Give the key's lock back; the value and the flags stay, unlike with Consul's own request.

        :return: False where this session does not hold it
        :raises ConcurrentChange: the key changed again and again
        """
        return self._release(self._key(item), session)

    def _find(self, item: str, **query: Unpack[Query]) -> Optional[Record]:
        """The record that a name means."""
        stripped = item.lstrip("/")
        found = self.read(item, **query) if item != stripped else None
        return found or self.read(stripped, **query)

    def _key(self, item: str) -> str:
        """The key that a name means."""
        stripped = item.lstrip("/")
        return item if item != stripped and self.read(item) is not None else stripped

    def _take(
        self,
        key: str,
        session: str,
        value: Any = None,
        cas: Optional[int] = None,
        flags: Optional[int] = None,
        note: Callable[[Taken], None] = lambda taken: None,
    ) -> bool:
        """As `acquire_lock`.

        :param note: called before each transaction with what it will write, and once more when it is known to be done
        """

        def attempt() -> bool:
            old = self.read(key)
            if cas is not None and cas != _index_of(old):
                return False
            if old is not None and old.session not in (None, session):
                return False
            kept = old or Record(key, b"")
            new = Record(key, kept.value if value is None else _encode(value), kept.flags if flags is None else flags)
            note(Taken(session, old, new))
            try:
                stored = self._exchange("lock", old, new, session)
            except TransactionFailed as error:
                if any(what.endswith(NOT_NOW) for _, what in error.errors):
                    return False
                raise
            note(Taken(session, old, stored))
            return True

        return _settled(key, attempt)

    def _release(self, key: str, session: str, **query: Unpack[Query]) -> bool:
        """As `release_lock`."""

        def attempt() -> bool:
            old = self.read(key, **query)
            if old is None or old.session != session:
                return False
            self._exchange("unlock", old, old, session, **query)
            return True

        return _settled(key, attempt)

    def _undo(self, taken: Taken, **query: Unpack[Query]) -> bool:
        """Make a key what it was before it was locked, and free; what others wrote since stays, and is free too.

        :return: False where the session does not hold it
        """
        key, index = taken.after.key, taken.after.modify_index
        if index is None:  # the lock's answer was lost: who wrote just the same cannot be told from the lock
            now = self.read(key, **query)
            same = now is not None and (now.value, now.flags) == (taken.after.value, taken.after.flags)
            index = _index_of(now) if same else 0
        try:
            self.txn.execute(taken.undoing(index), **query)
            return True
        except StaleIndex:
            return self._release(key, taken.session, **query)

    def _exchange(self, verb: str, old: Optional[Record], new: Record, session: str, **query: Unpack[Query]) -> Record:
        """Lock or unlock a key that is still as it was read; the record as it is then."""
        index = _index_of(old)
        check = operation("check-index", new.key, index=index) if index else operation("check-not-exists", new.key)
        operations = [check, operation(verb, new.key, new.value, new.flags, session=session)]
        entries = self.txn.execute(operations, fitting(new.key, operations), **query)
        if not entries:
            raise BadAnswer(f"PUT /v1/txn: wanted the record of {new.key!r}")
        return record_of(entries[-1], new.value)  # the last: a check-index answers with a record too

    def _store_safely(self, key: str, value: bytes, flags: Optional[int], replace: bool) -> bool:
        def attempt() -> bool:
            old = self.read(key)
            if old is not None and not replace:
                return False
            kept = (old.flags if old else 0) if flags is None else flags
            self.store(key, value, kept, _index_of(old))
            return True

        return _settled(key, attempt)


def fitting(key: str, operations: list[Operation]) -> bytes:
    """The body of a transaction; raises TooLarge where Consul would not take it."""
    body = encode(operations)
    if len(body) > TXN_BODY_LIMIT:
        raise TooLarge(f"{key}: too large to be locked without the risk of losing another's write", 413)
    return body


def _settled(key: str, attempt: Callable[[], bool]) -> bool:
    """The result of a read and a write that belong together, tried anew where others changed the key in between."""
    for number in range(CAS_ATTEMPTS):
        try:
            return attempt()
        except StaleIndex:
            time.sleep(random.uniform(0, 0.002 * (number + 1)))
    raise ConcurrentChange(f"{key}: {CAS_ATTEMPTS} writes in a row met a concurrent change")


def _index_of(record: Optional[Record]) -> int:
    """What compare-and-set expects: 0 where there is no key."""
    return (record.modify_index or 0) if record else 0


def decode(value: bytes) -> Union[str, bytes]:
    """str where the value is UTF-8, else the bytes."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _encode(value: Any) -> bytes:
    if value is None:
        return b""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    return (value if isinstance(value, str) else json.dumps(value)).encode()
