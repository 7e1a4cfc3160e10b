"""The key/value store, exactly: keys as they are, values as bytes, writes that name the index they expect.

Consul cleans URL paths: a GET or PUT of `a//b`, `/lead` or `x/../y` is redirected to another key (measured on 1.8.7),
and unprintable characters are refused. Such odd keys travel in transactions instead.

Source: https://www.consul.io/api-docs/kv
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, Optional
from urllib.parse import quote

from consulfs.consulate._secrets import without
from consulfs.consulate.adapters import Request, Response
from consulfs.consulate.api.base import Endpoint, Params, raise_for
from consulfs.consulate.api.txn import Txn, encode, operation
from consulfs.consulate.exceptions import BadAnswer, ClientError, StaleIndex, TooLarge
from consulfs.consulate.jsonlist import elements
from consulfs.consulate.models import Record

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.models import Query

Known = Callable[[], Mapping[str, Record]]
"""Gives records by their keys."""

TXN_BODY_LIMIT = 1 << 19
"""The bytes that Consul takes as a transaction's body unless limits.txn_max_req_len says otherwise."""


def travels_in_url(key: str) -> bool:
    """Whether Consul would leave this key as it is in a URL's path."""
    parts = key.split("/")
    if parts[-1] == "":
        parts.pop()
    return key.isprintable() and all(part not in ("", ".", "..") for part in parts)


class Records(Endpoint):
    """Records by their exact keys.

    :ivar txn: transactions with this endpoint's connection, datacenter and token; their answers are this endpoint's
    """

    def __init__(
        self, uri: str, adapter: Request, datacenter: Optional[str] = None, token: Optional[str] = None
    ) -> None:
        super().__init__(uri, adapter, datacenter, token)
        self.txn = Txn(uri, adapter, datacenter, token)
        self.txn._answers = self._answers

    def read(self, key: str, **query: Unpack[Query]) -> Optional[Record]:
        """One key's record, or None.

        :raises Forbidden: the token may not read it (for an odd key the transaction cannot tell: None)
        """
        answer = self._by_url(key, lambda path: self._read(path, accepted=(404,), **query))
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
        return {record.key: record for record in map(record_of, entries)}

    def names(self, prefix: str, separator: str = "", **query: Unpack[Query]) -> list[str]:
        """The keys below a prefix; with a separator only up to its next occurrence."""
        params: Params = {"keys": "", "separator": separator or None}
        answer = self._by_url(prefix, lambda path: self._read(path, params, accepted=(404,), **query))
        if answer is None:
            below = [record.key for record in self.tree(prefix, **query)]
            return _one_level(below, prefix, separator) if separator else below
        return [] if _is_nothing(answer) else answer.as_list(str)

    def tree(self, prefix: str, known: Optional[Known] = None, **query: Unpack[Query]) -> list[Record]:
        """The records of every key that begins with a prefix.

        :param known: called when the answer is there; what still has the indexes of one of these records is taken to be
            it, without a look at its value
        """
        answer = self._by_url(prefix, lambda path: self._read(path, {"recurse": ""}, (404,), **query))
        if answer is None:
            return [record_of(entry) for entry in self.txn.execute([operation("get-tree", prefix)], **query)]
        return _records(answer, known() if known is not None else None)

    def stream(self, prefix: str = "", **query: Unpack[Query]) -> Iterator[Record]:
        """As `tree`, one record after the other while the answer arrives: in bounded memory.

        One answer of one request, so it is what the store held at one moment. The connection is held until the
        iterator is at its end or closed. A prefix that does not travel in a URL is read at once.
        """
        if not (travels_in_url(prefix) and prefix.isascii()):
            yield from self.tree(prefix, **query)
            return
        params = {"recurse": "", **self._options(query)}
        answer = self._stream("GET", _path(prefix), params, timeout=self._time_for(query), accepted=(404,))
        with answer:
            if answer.status_code == 404 and _is_nothing(self._start_of(answer)):
                return
            try:
                for entry in elements(answer.read, or_null=True):
                    yield Record.of(entry)
                return
            except ValueError as error:
                problem = without(str(error), self._secrets())
            raise BadAnswer(f"{answer.what}: wanted a list of records: {problem}")  # not chained: see Response._json

    def store(
        self,
        key: str,
        value: bytes,
        flags: int,
        index: int,
        session: Optional[str] = None,
        timeout: Optional[float] = None,
        txn_limit: int = TXN_BODY_LIMIT,
    ) -> Record:
        """Set value and flags where the key still has ModifyIndex `index` (0: where it does not exist).

        :param session: and only while this session holds the key's lock
        :param txn_limit: the bytes that the server takes as a transaction's body; over it a plain PUT is used
        :return: the record as it is now; its modify_index is None after a plain PUT, which answers without one
        :raises StaleIndex: the key has another index, or the session does not hold it
        :raises TooLarge: the value is over the server's limit, or over `txn_limit` with a session or under an odd key
        """
        operations = [operation("cas", key, value, flags, index)]
        if session is not None:
            operations.insert(0, operation("check-session", key, session=session))
        body = encode(operations)
        if len(body) <= txn_limit:
            stored = self.txn.execute(operations, body, timeout=timeout)
            if len(stored) != len(operations):
                raise BadAnswer(f"PUT /v1/txn: wanted {len(operations)} records of {key!r}, not {len(stored)}")
            return record_of(stored[-1], value)
        if session is not None:  # ?acquire= would store it by session alone, and lock a key that was lost meanwhile
            raise TooLarge(f"{key!r} is locked, and its value is too large for a transaction", 413)
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
            self.txn.execute([operation("delete-tree" if recurse else "delete", key)], timeout=timeout)
        elif not answer.as_bool():
            raise answer.bad("true")

    def _by_url(self, key: str, ask: Callable[[str], Response]) -> Optional[Response]:
        """Ask with the key in the URL's path; None where it does not travel so."""
        if not travels_in_url(key):
            return None
        try:
            return ask(_path(key))
        except ClientError as error:
            # Characters newer than the server's Unicode tables are unprintable to it: 400 with an empty body.
            if error.status == 400 and not key.isascii():
                return None
            raise


def _is_nothing(answer: Response) -> bool:
    """Whether Consul says that there is no such key.

    Its 404 bears an index and no body (measured on 1.8.7); any other is of a wrong port or a proxy, and is raised: it
    would make a full store look empty.
    """
    if answer.status_code != 404:
        return False
    if "X-Consul-Index" not in answer.headers or answer.content.strip():
        raise_for(answer)
    return True


def _records(answer: Response, known: Optional[Mapping[str, Record]] = None) -> list[Record]:
    if _is_nothing(answer):
        return []
    try:
        return [(known and _known(entry, known)) or Record.of(entry) for entry in answer.as_list()]
    except ValueError as error:
        raise answer.bad("a list of records") from error


def _known(entry: Any, known: Mapping[str, Record]) -> Optional[Record]:
    record = known.get(str(entry.get("Key"))) if isinstance(entry, dict) else None
    if record is None:
        return None
    is_same = (
        record.modify_index == entry.get("ModifyIndex")
        and record.create_index == entry.get("CreateIndex")
        and record.session == entry.get("Session")
    )
    return record if is_same else None


def record_of(entry: Mapping[str, Any], value: Optional[bytes] = None) -> Record:
    """The record in a transaction's answer; `value` stands in where the answer leaves it out."""
    try:
        return Record.of(entry, value)
    except ValueError as error:
        raise BadAnswer(f"PUT /v1/txn: wanted a record: {error}") from error


def _path(key: str) -> str:
    return "kv/" + quote(key, safe="/")


def _one_level(keys: Iterable[str], prefix: str, separator: str) -> list[str]:
    names = dict.fromkeys(
        key if (end := key.find(separator, len(prefix))) < 0 else key[: end + len(separator)] for key in keys
    )
    return list(names)
