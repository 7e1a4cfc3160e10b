"""What a program did to a file's content since it was last stored, kept so that it can be done again. Pure.

A store that meets a concurrent change reads the new value and replays the edits on it: an append then lands behind
the other host's append, and a truncation to nothing makes the whole last-writer-wins, as POSIX has them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Union

COMPACT_AT = 256
"""So many edits are kept before neighbouring writes are merged: a database-like writer must not fill the memory."""


PIECE = 64
"""Bytes of a page that are compared at once."""


@dataclass
class Write:
    offset: int
    data: bytearray


@dataclass
class Append:
    data: bytearray


@dataclass
class Truncate:
    size: int


Change = Union[Write, Append, Truncate]


@dataclass
class Edit:
    """A change, and the number of the handle that made it."""

    owner: int
    change: Change


def apply(content: bytearray, change: Change) -> None:
    """Do one change in place; a gap reads as zeros, as in any file."""
    if isinstance(change, Truncate):
        if change.size <= len(content):
            del content[change.size :]
        else:
            content.extend(bytes(change.size - len(content)))
        return
    offset = len(content) if isinstance(change, Append) else change.offset
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(change.data)] = change.data


def differing(content: Union[bytes, bytearray], offset: int, page: bytes) -> list[Write]:
    """What was changed in a page that was filled with a content, and zeros behind it: the rest is not written."""
    old = bytes(content[offset : offset + len(page)]).ljust(len(page), b"\0")
    pieces = [slice(start, start + PIECE) for start in range(0, len(page), PIECE)]
    changed = [
        (at, at + 1)
        for piece in pieces
        if page[piece] != old[piece]
        for at in range(*piece.indices(len(page)))
        if page[at] != old[at]
    ]
    return [Write(offset + begin, bytearray(page[begin:end])) for begin, end in _union(changed)]


def replay(value: bytes, edits: Iterable[Edit]) -> bytearray:
    """The content that edits make of a value."""
    content = bytearray(value)
    for edit in edits:
        apply(content, edit.change)
    return content


def stands_alone(edits: Sequence[Edit]) -> bool:
    """Whether the edits mean the same on any content: after a truncation to nothing, or by appending only."""
    return any(isinstance(edit.change, Truncate) and edit.change.size == 0 for edit in edits) or all(
        isinstance(edit.change, Append) for edit in edits
    )


def only_sizes(edits: Iterable[Edit]) -> bool:
    """Whether nothing was written yet, only truncated (a shell's redirection does so before its command runs)."""
    return all(isinstance(edit.change, Truncate) for edit in edits)


def record(edits: list[Edit], owner: int, change: Change, sealed: int = 0) -> None:
    """Add a change, merged into the last edit where it continues it.

    :param sealed: so many edits at the beginning were sent to Consul once, and stay as they are
    """
    last = edits[-1] if len(edits) > sealed else None
    if last is not None and last.owner == owner and _continues(last.change, change):
        last.change.data.extend(change.data)  # type: ignore[union-attr]  # a Write, by the line above
        return
    edits.append(Edit(owner, change))
    free = len(edits) - sealed
    if free >= COMPACT_AT and free & (free - 1) == 0:  # each time that there are twice as many: linear in the end
        edits[sealed:] = compact(edits[sealed:])


def compact(edits: Sequence[Edit]) -> list[Edit]:
    """The same edits with each run of one owner's writes merged into writes that do not overlap."""
    result: list[Edit] = []
    run: list[Edit] = []
    for edit in [*edits, None]:
        if edit is not None and isinstance(edit.change, Write) and (not run or run[0].owner == edit.owner):
            run.append(edit)
            continue
        result.extend(_merge(run))
        run = []
        if edit is not None:
            (run if isinstance(edit.change, Write) else result).append(edit)
    return result


def _continues(last: Change, change: Change) -> bool:
    if isinstance(last, Write) and isinstance(change, Write):
        return change.offset == last.offset + len(last.data)
    return isinstance(last, Append) and isinstance(change, Append)


def _merge(run: Sequence[Edit]) -> list[Edit]:
    if len(run) < 2:
        return list(run)
    writes = [edit.change for edit in run if isinstance(edit.change, Write)]
    spans: list[Write] = []
    for begin, end in _union((write.offset, write.offset + len(write.data)) for write in writes):
        spans.append(Write(begin, bytearray(end - begin)))
    begins = [span.offset for span in spans]
    for write in writes:
        span = spans[bisect_right(begins, write.offset) - 1]
        start = write.offset - span.offset
        span.data[start : start + len(write.data)] = write.data
    return [Edit(run[0].owner, span) for span in spans]


def _union(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(intervals):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined
