"""Programs that look at one thing of a mount all the time, and what they have seen: what was there, in its order."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from support.child import Child

OBSERVING = str(Path(__file__).with_name("observing.py"))

HANGS = 30
"""Seconds after which the last change does not come any more."""

PAGE = 4096
"""What the kernel reads at once and holds as one. A value of more pages can be replaced between two of them."""


class Observer(Child):
    """A process that has begun to look.

    :param kind: at what, a function of `observing.py`
    :param more: what that function takes beside the path
    """

    def __init__(self, kind: str, path: Path, *more: object) -> None:
        super().__init__("-S", "-E", OBSERVING, kind, str(path), *map(str, more))
        self.kind = kind
        try:
            self.hear()
        except BaseException:
            self.__exit__()
            raise

    def seen(self, last: Any) -> list[Any]:
        """What it saw until it saw the last thing: bytes, numbers, lists of names, None where nothing was there."""
        self.say(json.dumps([_plain(last), HANGS]))
        seen = [_given(each) for each in json.loads(self.hear())]
        assert seen[-1] == last, f"{self.kind}: the last is {seen[-1]!r:.80} and not {last!r:.80}"
        return seen


class Observers(ExitStack):
    """Starts observers. They end before the mount does."""

    def __call__(self, kind: str, path: Path, *more: object) -> Observer:
        return self.enter_context(Observer(kind, path, *more))


def assert_in_order(seen: Iterable[Any], written: Sequence[Any]) -> None:
    """Whether all that was seen had been written, and nothing was seen after what came later."""
    seen, at = list(seen), 0
    for each in seen:
        ahead = [number for number in range(at, len(written)) if written[number] == each]
        if not ahead:
            known = [number for number in range(len(written)) if written[number] == each]
            order = [_number(one, written) for one in seen]
            raise AssertionError(f"{each!r:.120} (written as {known}) is seen after number {at}: {order}")
        at = ahead[0]


def assert_pages_in_order(seen: Iterable[bytes], written: Sequence[bytes]) -> None:
    """The same of values of several pages: each page is one that was written, and none is seen after a later one."""
    pages = max(map(len, written)) // PAGE + 1
    seen = list(seen)
    for page in range(pages):
        place = slice(page * PAGE, (page + 1) * PAGE)
        assert_in_order(_changes(each[place] for each in seen), _changes(each[place] for each in written))


def _changes(values: Iterable[Any]) -> list[Any]:
    """Without what comes twice in a row."""
    found: list[Any] = []
    for each in values:
        if not found or found[-1] != each:
            found.append(each)
    return found


def _number(value: Any, written: Sequence[Any]) -> int | None:
    return written.index(value) if value in written else None


def _plain(value: Any) -> Any:
    return {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _given(value: Any) -> Any:
    return base64.b64decode(value["bytes"]) if isinstance(value, dict) and "bytes" in value else value
