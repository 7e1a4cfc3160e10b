"""The names of what virtual trees show: no two things in a directory have one name. Pure.

As the names of keys (`consulfs.names`), and in addition:

    %2F     a "/", anywhere in a name
    %3A     a ":" in a part that another part follows, as in NODE:CHECK
    %252F   a literal "%2F"; likewise "%253A"
"""

from __future__ import annotations

import re

from consulfs import names

_LITERAL = re.compile("%((?:25)*)(2F|3A)")


def file_name(*parts: str, separator: str = ":") -> str:
    """One name for what several parts tell apart, such as a node and an ID that is unique on that node alone."""
    *first, last = (_LITERAL.sub(r"%25\1\2", _in_utf8(part)).replace("/", "%2F") for part in parts)
    return names.encode(separator.join([*(part.replace(":", "%3A") for part in first), last]))


def _in_utf8(text: str) -> str:
    """JSON can name half of a surrogate pair, which no UTF-8 has."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
