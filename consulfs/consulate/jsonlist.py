"""A JSON list whose elements are decoded one after the other while it arrives, in bounded memory. Pure.

Built on the standard library's scanner. ijson, which is made for this, was tried first; with its C parser (3.6.0) an
integer of more digits than Python converts crashes the process, deep nesting takes all memory, half of a surrogate
pair becomes a question mark, and an object where a list should be reads as an empty list.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Any, Callable, Optional

CHUNK = 1 << 16
"""Characters that are read at once."""

_SPACE = " \t\r\n"
_AFTER_ELEMENT = frozenset(",]" + _SPACE)
_LONGEST_TOKEN = 16
"""More characters than a literal or an escape has: a fault nearer to the end may be a token that goes on."""

_scan = JSONDecoder().raw_decode


class NotAList(ValueError):
    """It begins as something else than a list."""


class EndsEarly(ValueError):
    """It ends before the list does."""


def elements(read: Callable[[int], bytes], or_null: bool = False) -> Iterator[Any]:
    """The elements of a JSON list, each as soon as it is there. Holds one element and a chunk at a time.

    :param read: gives up to so many bytes, and none only at the end
    :param or_null: null is an empty list, as in Consul's answers
    :return: strings may hold halves of surrogate pairs, from such escapes or from bytes that are no UTF-8
    :raises ValueError: it is no list, or not whole, or not JSON; what stands before the fault has been given
    """
    text = _Text(read)
    sign = text.sign()
    if or_null and sign == "n":
        text.back()
        if text.element() is None and not text.sign():
            return
    if sign != "[":
        raise NotAList(f"it begins with {sign + text.rest()!r}") if sign else EndsEarly("there is nothing")
    if text.sign() != "]":
        text.back()
        yield text.element()
        while (sign := text.sign()) == ",":
            yield text.element()
        if sign != "]":
            raise ValueError("no comma and no end after an element") if sign else EndsEarly("the list is not closed")
    if text.sign():
        raise ValueError("something follows the list's end")


class _Text:
    """What has come and is not decoded yet."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        # Bytes that are no UTF-8 become halves of surrogate pairs, so that only the element with them is refused.
        self._decode = getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._text = ""
        self._at = 0
        self._ended = False

    def sign(self) -> str:
        """The next character that is no white space, or "" at the end."""
        while True:
            while self._at < len(self._text):
                self._at += 1
                if self._text[self._at - 1] not in _SPACE:
                    return self._text[self._at - 1]
            if not self._more():
                return ""

    def back(self) -> None:
        """Before the sign that was just given, if there was one."""
        self._at = max(self._at - 1, 0)

    def rest(self) -> str:
        """Some of what comes next, for messages."""
        return self._text[self._at : self._at + 100]

    def element(self) -> Any:
        """The value that comes next."""
        if not self.sign():
            raise EndsEarly("an element is missing")
        self.back()
        while True:
            try:
                found, end = _scan(self._text, self._at)
            except RecursionError:
                raise ValueError("it is nested too deeply") from None
            except JSONDecodeError as error:
                if self._is_final(error):
                    raise ValueError(error.msg) from None
                if not self._more():
                    raise EndsEarly(error.msg) from None
            else:
                # A number might go on: "1", "1." and "1.5" may come one after the other.
                if self._text[end : end + 1] in _AFTER_ELEMENT or not self._more():
                    self._at = end
                    return found

    def _is_final(self, error: JSONDecodeError) -> bool:
        """Whether no text that follows could mend this: else one wrong character would have the rest read in whole."""
        return error.pos < len(self._text) - _LONGEST_TOKEN and not error.msg.startswith("Unterminated")

    def _more(self) -> bool:
        """Read on: as much again as there is, so that a large element is scanned a few times only."""
        if self._ended:
            return False
        self._text, self._at = self._text[self._at :], 0
        data: Optional[bytes] = self._read(max(CHUNK, len(self._text)))
        if data is None:  # as Python's files do; it is not the end
            raise BlockingIOError("the source does not wait: make it blocking")
        self._ended = not data
        self._text += self._decode(data, self._ended)
        return True
