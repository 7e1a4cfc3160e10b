"""What comes back: `Response`, an answer as a whole, and `Stream`, one that is read piece by piece."""

from __future__ import annotations

import _thread
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from json import loads
from typing import Any, Callable, Optional, TypeVar, overload

import urllib3

from consulfs.consulate._failures import translated
from consulfs.consulate._secrets import without
from consulfs.consulate.exceptions import BadAnswer
from consulfs.consulate.models import Meta

T = TypeVar("T")


class Response:
    """One answer.

    :ivar status_code: the HTTP status
    :ivar content: the body's bytes
    :ivar headers: the HTTP headers, names in any case
    :ivar what: what was asked, such as "GET /v1/kv/a", for messages
    :ivar secrets: what no message may show, even where the server repeats it
    :ivar discreet: whether the answer holds secrets of its own, so that no message quotes it
    """

    __slots__ = ("content", "discreet", "headers", "secrets", "status_code", "what")

    def __init__(self, status_code: int, content: bytes, headers: Mapping[str, str], what: str = "the request") -> None:
        self.status_code = status_code
        self.content = content
        self.headers = headers
        self.what = what
        self.secrets: tuple[str, ...] = ()
        self.discreet = False

    @property
    def ok(self) -> bool:
        return 200 <= self.status_code < 300

    @property
    def body(self) -> Any:
        """The decoded JSON, or the text where it is none."""
        try:
            return loads(self.content.decode())  # not left to json, which would look for other encodings
        except (ValueError, RecursionError):
            return self.text

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")

    @property
    def meta(self) -> Meta:
        return Meta.of(self.headers)

    def as_list(self, of: type = object) -> list[Any]:
        """The JSON list; [] for null, which Consul answers where there is nothing.

        :param of: what each element must be: str or dict
        :raises BadAnswer: it is something else
        """
        found = self._json()
        elements: list[Any] = [] if found is None else self._checked(found, list)
        if of is not object and not all(isinstance(each, of) for each in elements):
            raise self.bad(f"a JSON list of {_JSON_NAMES[of]}s")
        return elements

    def as_dict(self, of: type = object) -> dict[str, Any]:
        """The JSON object; {} for null.

        :param of: what each value must be
        :raises BadAnswer: it is something else
        """
        found = self._json()
        entries: dict[str, Any] = {} if found is None else self._checked(found, dict)
        if of is not object and not all(isinstance(each, of) for each in entries.values()):
            raise self.bad(f"a JSON object of {_JSON_NAMES[of]}s")
        return entries

    def as_str(self) -> str:
        """:raises BadAnswer: it is no JSON string"""
        return self._checked(self._json(), str)

    def as_bool(self) -> bool:
        """:raises BadAnswer: it is neither true nor false"""
        return self._checked(self._json(), bool)

    def as_done(self) -> bool:
        """True, for a success of which Consul says no more: with an empty body, or some JSON.

        :raises BadAnswer: it is something else, such as a proxy's page
        """
        if self.content.strip():
            self._json()
        return True

    @overload
    def field(self, name: str) -> str: ...

    @overload
    def field(self, name: str, kind: type[T]) -> T: ...

    def field(self, name: str, kind: type[Any] = str) -> Any:
        """What has that name in the JSON object, such as the ID of what was created.

        :raises BadAnswer: there is no such thing of that kind
        """
        return self.part(self.as_dict(), name, kind)

    def part(self, row: Mapping[str, Any], name: str, kind: type[T]) -> T:
        """As `field`, of an object within the answer."""
        found = row.get(name)
        if not isinstance(found, kind):
            raise self.bad(f"a JSON object with {name}")
        return found

    def bad(self, wanted: str) -> BadAnswer:
        """The exception for an answer that is not what was wanted."""
        if self.discreet:
            came = f"{len(self.content)} bytes of something else"
        else:
            shown = without(self.content.decode("latin-1"), self.secrets)
            came = repr(shown.encode("latin-1", "replace")[:200])
        return BadAnswer(f"{self.what}: wanted {wanted}, but {self.status_code} came with {came}")

    def _json(self) -> Any:
        try:
            return loads(self.content.decode())  # not left to json, which would look for other encodings
        except (ValueError, RecursionError):
            pass  # not chained: the decoder's error carries the whole answer, and what it may repeat
        raise self.bad("JSON")

    def _checked(self, found: Any, kind: type[T]) -> T:
        if not isinstance(found, kind):
            raise self.bad(f"a JSON {_JSON_NAMES[kind]}")
        return found


_JSON_NAMES: dict[type, str] = {list: "list", dict: "object", str: "string", bool: "true or false"}


class Stream:
    """One answer whose body is read piece by piece. A context manager.

    It holds a connection until its body is at its end or has failed, it is closed, or nobody has it any more.

    :ivar what: what was asked, for messages; "" where nobody has said so
    """

    what = ""

    def __init__(self, answer: urllib3.BaseHTTPResponse, base: str, release: Callable[[], None]) -> None:
        self.status_code = answer.status
        self.headers: Mapping[str, str] = answer.headers
        self._answer = answer
        self._base = base
        self._dropped = weakref.finalize(self, _end_elsewhere, answer, release)
        self._dropped.atexit = False

    def read(self, size: Optional[int] = None) -> bytes:
        """Up to `size` bytes, fewer only at the end; everything where none is given.

        :raises ConnectionBroken: the connection ended before the body did
        """
        wanted = None if size is None or size < 0 else size
        with self._closed_by_failure(), translated(self._base, self.what):
            piece = self._answer.read(wanted)
        if wanted is None or len(piece) < wanted:
            self.close()
        return piece

    def __iter__(self) -> Iterator[bytes]:
        """The body in pieces as they arrive."""
        with self._closed_by_failure(), translated(self._base, self.what):
            yield from self._answer.stream(1 << 16)
        self.close()

    def close(self) -> None:
        ends = self._dropped.detach()  # None where it was closed before, or the garbage collector sees to it
        if ends is not None:
            _end(*ends[2])

    @contextmanager
    def _closed_by_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception:  # not where an iteration is left: the rest may be read still
            self.close()
            raise

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end(answer: urllib3.BaseHTTPResponse, release: Callable[[], None]) -> None:
    try:
        answer.close()  # what was not read would be taken for the next answer
    finally:
        release()


def _end_elsewhere(answer: urllib3.BaseHTTPResponse, release: Callable[[], None]) -> None:
    """In a thread of its own: the garbage collector may run in one that is just taking the lock for `release`."""
    with suppress(RuntimeError):  # the interpreter ends
        _thread.start_new_thread(_end, (answer, release))
