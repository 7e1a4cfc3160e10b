"""The rows of a backup: one key each, written and read piece by piece. Pure.

A backup is a JSON list. A row is `[key, flags, value]`, where the value is text, base64 or null; or an object as
Consul's API gives it (`Key`, `Flags`, `Value`) or as `consul kv export` does (`key`, `flags`, `value`), where the
value is base64 or null. A row that holds a value which is no text is such an object.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Protocol, Union

from consulfs.consulate import jsonlist
from consulfs.consulate.exceptions import ConsulateException
from consulfs.consulate.models import Record

MAX_FLAGS = (1 << 64) - 1

Row = Union[list[Any], dict[str, Any]]


class BadBackup(ConsulateException):
    """The input is no backup, or not all of one; the message names the row."""


class Source(Protocol):
    """What rows are read from."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Entry:
    """What a row says.

    :ivar number: of the row, from 1 on
    """

    number: int
    key: str
    value: bytes
    flags: int


def write(records: Iterable[Record], out: IO[bytes], as_base64: bool = False, pretty: bool = False) -> int:
    """Write records as a JSON list, each as it comes; the number of rows."""
    count = 0
    for record in records:
        row = _row(record, as_base64)
        if pretty:
            text = json.dumps(row, sort_keys=True, indent=2, separators=(",", ": "))
            text = (",\n  " if count else "[\n  ") + text.replace("\n", "\n  ")
        else:
            text = (", " if count else "[") + json.dumps(row)
        out.write(text.encode("ascii"))
        count += 1
    out.write(b"[]\n" if not count else b"\n]\n" if pretty else b"]\n")
    return count


def read(source: Source, as_base64: bool = False) -> Iterator[Entry]:
    """The rows of a backup, each as it is read.

    :param as_base64: the values of `[key, flags, value]` are base64; those of objects are always
    :raises BadBackup: at the first row that is none, or where the list is broken
    """
    number = 0
    try:
        for row in jsonlist.elements(source.read):
            number += 1
            yield _entry(number, row, as_base64)
    except jsonlist.NotAList:
        raise BadBackup("the input is not a JSON list") from None
    except ValueError as error:
        words = "it ends too early" if isinstance(error, jsonlist.EndsEarly) else str(error)
        after = f"after row {number}" if number else "before the first row"
        raise BadBackup(f"{after}: the input is not a whole JSON list: {words}") from error


def _row(record: Record, as_base64: bool) -> Row:
    if not record.value:
        return [record.key, record.flags, None]
    if not as_base64:
        try:
            return [record.key, record.flags, record.value.decode()]
        except UnicodeDecodeError:
            pass
    encoded = base64.b64encode(record.value).decode("ascii")
    if as_base64:
        return [record.key, record.flags, encoded]
    return {"Key": record.key, "Flags": record.flags, "Value": encoded}


def _entry(number: int, row: Any, as_base64: bool) -> Entry:
    try:
        key, flags, value, encoded = _fields(row, as_base64)
        if not isinstance(key, str):
            raise ValueError(f"the key is not text but {_kind(key)}")
        try:
            key.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the key {key!a} is not Unicode text") from None
        if isinstance(flags, bool) or not isinstance(flags, int) or not 0 <= flags <= MAX_FLAGS:
            raise ValueError(f"{_named(key)}the flags are not a whole number from 0 to 2^64-1")
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{_named(key)}the value is neither text nor null but {_kind(value)}")
        return Entry(number, key, _value(key, value or "", encoded), flags)
    except ValueError as error:
        raise BadBackup(f"row {number}: {error}") from None


def _fields(row: Any, as_base64: bool) -> tuple[Any, Any, Any, bool]:
    """(key, flags, value, whether that is base64)"""
    if isinstance(row, list):
        if len(row) != 3:
            raise ValueError(f"{len(row)} fields where [key, flags, value] are three")
        return row[0], row[1], row[2], as_base64
    if not isinstance(row, dict):
        raise ValueError(f"neither a list nor an object but {_kind(row)}")
    for names in (("Key", "Flags", "Value"), ("key", "flags", "value")):
        if names[0] in row:
            missing = [name for name in names if name not in row]
            if missing:
                raise ValueError(f"no {' and no '.join(missing)}")
            return row[names[0]], row[names[1]], row[names[2]], True
    raise ValueError("no Key")


def _value(key: str, text: str, encoded: bool) -> bytes:
    if not encoded:
        try:
            return text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{_named(key)}the value is not Unicode text") from None
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError(f"{_named(key)}the value is not base64") from None


def _named(key: str) -> str:
    return f"{key!r}: "


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
