"""What Consul says, as the content of a file. Pure."""

from __future__ import annotations

import json
from typing import Any


def render(value: Any) -> bytes:
    """A list of plain values is plain text, one a line, and so is one plain value; all else is indented JSON.

    Nothing gives an empty file: no value, an empty text, an empty list.
    """
    if isinstance(value, (list, tuple)) and not any(isinstance(each, (list, dict)) for each in value):
        return _encoded("".join(_line(each) for each in value))
    if isinstance(value, (list, dict)):
        return _encoded(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    return _encoded(_line(value))


def render_rows(rows: list[Any]) -> bytes:
    """A file's content: its row, or all of them where several have its name."""
    return render(rows[0] if len(rows) == 1 else rows)


def _line(value: Any) -> str:
    if value is None or value == "":
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if text.endswith("\n") else text + "\n"


def _encoded(text: str) -> bytes:
    # JSON can name half of a surrogate pair, which no UTF-8 has: "?" is better than a file that cannot be read.
    return text.encode("utf-8", "replace")
