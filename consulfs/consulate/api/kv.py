"""The key/value store: a dict for people, and exact records for programs that must not lose a byte.

The dict face follows the consulate library, which strips a leading slash. The methods under "exact" take and give
keys as they are. Consul cleans URL paths: a GET or PUT of `a//b`, `/lead` or `x/../y` is redirected to another key
(measured on 1.8.7), and unprintable characters are refused. Such odd keys travel in transactions instead.

Source: https://www.consul.io/api-docs/kv
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, Optional, Union
from urllib.parse import quote

from consulfs.consulate._lists import elements
from consulfs.consulate.adapters import Request, Response
from consulfs.consulate.api.base import Endpoint, Params
from consulfs.consulate.api.txn import Txn, encode, operation
from consulfs.consulate.exceptions import (
    BadAnswer,
    ClientError,
    ConcurrentChange,
    KeyMissing,
    NotFound,
    StaleIndex,
    TooLarge,
)
from consulfs.consulate.models import Record

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.models import Query

CAS_ATTEMPTS = 32

TXN_BODY_LIMIT = 1 << 19
"""The bytes that Consul takes as a transaction's body unless limits.txn_max_req_len says otherwise."""


def travels_in_url(key: str) -> bool:
    """Whether Consul would leave this key as it is in a URL's path."""
    parts = key.split("/")
    if parts[-1] == "":
        parts.pop()
    return key.isprintable() and all(part not in ("", ".", "..") for part in parts)


class KV(Endpoint):
    """The key/value store. Writes use compare-and-set, as the consulate library's do.

    :ivar txn: transactions with this endpoint's connection, datacenter and token; their answers are this endpoint's
    """

    def __init__(
        self, uri: str, adapter: Request, datacenter: Optional[str] = None, token: Optional[str] = None
    ) -> None:
        super().__init__(uri, adapter, datacenter, token)
        self.txn = Txn(uri, adapter, datacenter, token)
        self.txn._answers = self._answers

    # -- a dict ----------------------------------------------------------------------------------------------

    def __contains__(self, item: str) -> bool:
        return self.read(item.lstrip("/")) is not None

    def __getitem__(self, item: str) -> Union[str, bytes]:
        """:raises KeyMissing: there is no such key (it is a KeyError and an AttributeError)"""
        record = self.read(item.lstrip("/"))
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

    def keys(self) -> list[str]:
        return sorted(self.names(""))

    def items(self) -> dict[str, Union[str, bytes]]:
        """Every key with its value."""
        return dict(self.iteritems())

    def iteritems(self) -> Iterator[tuple[str, Union[str, bytes]]]:
        for record in self.tree(""):
            yield record.key, decode(record.value)

    def values(self) -> list[Union[str, bytes]]:
        return [value for _, value in self.iteritems()]

    def get(self, item: str, default: Any = None, raw: bool = False, **query: Unpack[Query]) -> Union[str, bytes, Any]:
        """A key's value: str where it is UTF-8, else bytes; `default` where there is no such key."""
        record = self.read(item.lstrip("/"), **query)
        return default if record is None else decode(record.value)

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
        record = self.read(item.lstrip("/"), **query)
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
        item = item.lstrip("/")
        if value is not None:
            item = item.rstrip("/")
        self._store_safely(item, _encode(value), None, replace=True)

    def set_record(self, item: str, flags: int = 0, value: Any = None, replace: bool = True) -> bool:
        """Set a key's value and flags; with `replace=False` only where there is no such key.

        :return: False where the key stood and was not to be replaced
        """
        return self._store_safely(item, _encode(value), flags, replace)

    def delete(self, item: str, recurse: bool = False) -> bool:
        """Delete a key, or every key that begins with `item`. A missing key is no error."""
        self.remove(item.lstrip("/"), recurse)
        return True

    def acquire_lock(
        self, item: str, session: str, value: Any = None, cas: Optional[int] = None, flags: Optional[int] = None
    ) -> bool:
        """Take the key's lock for a session. As in Consul itself this WRITES the value and the flags."""
        params: Params = {"acquire": session, "cas": cas, "flags": flags}
        return self._write(_path(item.lstrip("/")), _encode(value), params).as_bool()

    def release_lock(self, item: str, session: str) -> bool:
        """Give the key's lock back. As in Consul itself this WRITES an empty value and no flags."""
        return self._write(_path(item.lstrip("/")), None, {"release": session}).as_bool()

    def _store_safely(self, key: str, value: bytes, flags: Optional[int], replace: bool) -> bool:
        for attempt in range(CAS_ATTEMPTS):
            old = self.read(key)
            if old is not None and not replace:
                return False
            kept = (old.flags if old else 0) if flags is None else flags
            try:
                self.store(key, value, kept, old.modify_index or 0 if old else 0)
                return True
            except StaleIndex:
                time.sleep(random.uniform(0, 0.002 * (attempt + 1)))
        raise ConcurrentChange(f"{key}: {CAS_ATTEMPTS} writes in a row met a concurrent change")

    # -- exact -----------------------------------------------------------------------------------------------

    def read(self, key: str, **query: Unpack[Query]) -> Optional[Record]:
        """One key's record, or None.

        :raises Forbidden: the token may not read it (for an odd key the transaction cannot tell: None)
        """
        answer = self._by_url(key, lambda path: self._read(path, **query))
        if answer is None:
            return self.read_many([key], **query).get(key)
        found = _records(answer)
        return found[0] if found else None

    def read_many(self, keys: Sequence[str], **query: Unpack[Query]) -> dict[str, Record]:
        """The records of up to 64 keys in one request. Keys that are missing or may not be read are left out."""
        if not keys:
            return {}
        try:
            return self._get_together(keys, **query)
        except StaleIndex as error:
            # A get of a missing key fails the whole; all of them are named, so one more request is enough.
            missing = {index for index, _ in error.errors}
            rest = [key for index, key in enumerate(keys) if index not in missing]
            return self.read_many(rest, **query) if len(rest) < len(keys) else {}

    def _get_together(self, keys: Sequence[str], **query: Unpack[Query]) -> dict[str, Record]:
        entries = self.txn.execute([operation("get", key) for key in keys], **query)
        return {record.key: record for record in map(_of_txn, entries)}

    def names(self, prefix: str, separator: str = "", **query: Unpack[Query]) -> list[str]:
        """The keys below a prefix; with a separator only up to its next occurrence."""
        params: Params = {"keys": "", "separator": separator or None}
        answer = self._by_url(prefix, lambda path: self._read(path, params, **query))
        if answer is None:
            below = [record.key for record in self.tree(prefix, **query)]
            return _one_level(below, prefix, separator) if separator else below
        return answer.as_list(str)

    def tree(self, prefix: str, **query: Unpack[Query]) -> list[Record]:
        """The records of every key that begins with a prefix."""
        answer = self._by_url(prefix, lambda path: self._read(path, {"recurse": ""}, **query))
        if answer is None:
            return [_of_txn(entry) for entry in self.txn.execute([operation("get-tree", prefix)], **query)]
        return _records(answer)

    def stream(self, prefix: str = "", **query: Unpack[Query]) -> Iterator[Record]:
        """As `tree`, one record after the other while the answer arrives: in bounded memory.

        One answer of one request, so it is what the store held at one moment. The connection is held until the
        iterator is at its end or closed. A prefix that does not travel in a URL is read at once.
        """
        if prefix and not (travels_in_url(prefix) and prefix.isascii()):
            yield from self.tree(prefix, **query)
            return
        params = {"recurse": "", **self._options(query)}
        what = f"GET /v1/{_path(prefix)}"
        try:
            with self._stream("GET", _path(prefix), params, timeout=self._time_for(query)) as answer:
                for entry in elements(answer.read):
                    yield Record.of(entry)
        except NotFound:
            return
        except ValueError as error:
            raise BadAnswer(f"{what}: wanted a list of records: {error}") from error

    def store(
        self,
        key: str,
        value: bytes,
        flags: int,
        index: int,
        timeout: Optional[float] = None,
        txn_limit: int = TXN_BODY_LIMIT,
    ) -> Record:
        """Set value and flags where the key still has ModifyIndex `index` (0: where it does not exist).

        :param txn_limit: the bytes that the server takes as a transaction's body; over it a plain PUT is used
        :return: the record as it is now; its modify_index is None after a plain PUT, which answers without one
        :raises StaleIndex: the key has another index
        :raises TooLarge: the value is over the server's limit, or over `txn_limit` under an odd key
        """
        operations = [operation("cas", key, value, flags, index)]
        body = encode(operations)
        if len(body) <= txn_limit:
            query: Any = {} if timeout is None else {"timeout": timeout}
            stored = self.txn.execute(operations, body, **query)
            if len(stored) != 1:
                raise BadAnswer(f"PUT /v1/txn: wanted the record of {key!r} alone, not {len(stored)}")
            return _of_txn(stored[0], value)
        params: Params = {"cas": index, "flags": flags}
        answer = self._by_url(key, lambda path: self._write(path, value, params, timeout=timeout))
        if answer is None:
            raise TooLarge(f"{key!r} can be stored by transaction only, and its value is too large for one", 413)
        if not answer.as_bool():
            raise StaleIndex(f"PUT /v1/kv: {key} has another index than {index}")
        return Record(key, value, flags)

    def remove(self, key: str, recurse: bool = False, timeout: Optional[float] = None) -> None:
        """Delete a key, or all that begin with it."""
        params: Params = {"recurse": "" if recurse else None}
        answer = self._by_url(key, lambda path: self._write(path, None, params, "DELETE", timeout))
        if answer is None:
            query: Any = {} if timeout is None else {"timeout": timeout}
            self.txn.execute([operation("delete-tree" if recurse else "delete", key)], **query)
        elif not answer.as_bool():
            raise answer.bad("true")

    def _by_url(self, key: str, ask: Callable[[str], Response]) -> Optional[Response]:
        """Ask with the key in the URL's path; None where it does not travel so."""
        if key and not travels_in_url(key):
            return None
        try:
            return ask(_path(key))
        except ClientError as error:
            # Characters newer than the server's Unicode tables are unprintable to it: 400 with an empty body.
            if error.status == 400 and not key.isascii():
                return None
            raise


def decode(value: bytes) -> Union[str, bytes]:
    """str where the value is UTF-8, else the bytes."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _records(answer: Response) -> list[Record]:
    try:
        return [Record.of(entry) for entry in answer.as_list()]
    except ValueError as error:
        raise answer.bad("a list of records") from error


def _of_txn(entry: Mapping[str, Any], value: Optional[bytes] = None) -> Record:
    try:
        return Record.of(entry, value)
    except ValueError as error:
        raise BadAnswer(f"PUT /v1/txn: wanted a record: {error}") from error


def _encode(value: Any) -> bytes:
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else json.dumps(value)).encode()


def _path(key: str) -> str:
    return "kv/" + quote(key, safe="/")


def _one_level(keys: Iterable[str], prefix: str, separator: str) -> list[str]:
    names = dict.fromkeys(
        key if (end := key.find(separator, len(prefix))) < 0 else key[: end + len(separator)] for key in keys
    )
    return list(names)
