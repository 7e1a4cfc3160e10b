"""A JSON list whose elements are decoded one after the other while it arrives.

By hand on the standard library's scanner: ijson's C backend crashes the process on an integer of more digits than
Python converts, and takes all memory on deep nesting (measured on 3.6.0), and an answer may hold anything.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterator
from json import JSONDecoder
from typing import Any, Callable

CHUNK = 1 << 16

_BEHIND = frozenset(",] \t\r\n")  # an element of a list

_scan = JSONDecoder().raw_decode


def elements(read: Callable[[int], bytes]) -> Iterator[Any]:
    """The elements of a JSON list; none for null. Holds one element and a chunk at a time.

    :param read: gives up to so many bytes, and none only at the end
    :raises ValueError: it is neither; elements before the fault have been given by then
    """
    text = _Text(read)
    sign = text.sign()
    if sign == "n":
        text.back()
        sign = "]" if text.element() is None else "n"
    elif sign == "[":
        sign = text.sign()
        while sign not in ("]", ""):
            text.back()
            yield text.element()
            sign = text.sign()
            if sign == ",":
                sign = text.sign().replace("]", ",")  # a comma with nothing behind it
            elif sign != "]":
                break
    if sign != "]" or text.sign():
        raise ValueError(f"no whole JSON list, but {sign + text.rest()!r}")


class _Text:
    """What has come and is not decoded yet."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._decode = getincrementaldecoder("utf-8")().decode
        self._text = ""
        self._at = 0
        self._ended = False

    def sign(self) -> str:
        """The next character that is no white space, or "" at the end."""
        while True:
            while self._at < len(self._text):
                self._at += 1
                if self._text[self._at - 1] not in " \t\r\n":
                    return self._text[self._at - 1]
            if not self._more():
                return ""

    def back(self) -> None:
        """Before the sign that was just given."""
        self._at -= 1

    def rest(self) -> str:
        """Some of what comes next, for messages."""
        return self._text[self._at : self._at + 200]

    def element(self) -> Any:
        """The value that begins here."""
        while True:
            try:
                found, end = _scan(self._text, self._at)
            except RecursionError:
                raise ValueError("it is nested too deeply") from None
            except ValueError:
                if not self._more():
                    raise
            else:
                # A number might go on: "1", "1." and "1.5" may come one after the other.
                if self._text[end : end + 1] in _BEHIND or not self._more():
                    self._at = end
                    return found

    def _more(self) -> bool:
        """Read on: as much again as there is, so that a large element is scanned a few times only."""
        if self._ended:
            return False
        self._text, self._at = self._text[self._at :], 0
        data = self._read(max(CHUNK, len(self._text)))
        self._ended = not data
        self._text += self._decode(data, self._ended)
        return True
