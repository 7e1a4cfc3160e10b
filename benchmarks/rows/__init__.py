"""The rows of the table.

To add one, write a function into one of these modules and put `@row(NAME)` over it. It gets a `Stage`, makes what it
needs there, and returns a `Result`.
"""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Callable

from counting import Requests, Tally
from report import Allowed, Result
from stage import MOST, Call, Stage
from trees import Tree

Row = Callable[[Stage], Result]

Prepare = Callable[[Path], Call]
"""From the folder that is measured to the call that is measured there."""

SMALL, DEEP = Tree(2, 10), Tree(10, 1000)

LARGE = b"x" * MOST

ROUNDS, COLD_ROUNDS = 15, 3

SETTLED = 1.5
"""Seconds after which a mount that was used knows what it wants to know: answers live for one of them."""

NOTHING = Allowed("0")

ROWS: dict[str, Row] = {}

SLOW: set[str] = set()
"""The rows that take minutes."""


def row(name: str, is_slow: bool = False) -> Callable[[Row], Row]:
    """Make a function a row of the table, by a name for the command line."""

    def add(function: Row) -> Row:
        ROWS[name] = function
        if is_slow:
            SLOW.add(name)
        return function

    return add


def over(seconds: float, tally: Tally, call: Call) -> Requests:
    """The requests while a call is made every few milliseconds."""
    before, end = tally.now(), time.monotonic() + seconds
    while time.monotonic() < end:
        call()
        time.sleep(0.005)
    return tally.now() - before


def settle(call: Call) -> None:
    """Make a call that the mount has had before: what it costs once is not counted."""
    call()
    time.sleep(SETTLED)
    call()


_numbers = itertools.count()


def content() -> bytes:
    """A hundred bytes, other ones each time: where Consul has a value already, writing it again changes nothing."""
    return b"%0100d" % next(_numbers)


def write_file(path: str, flags: int) -> None:
    file = os.open(path, os.O_WRONLY | flags, 0o600)
    try:
        os.write(file, content())
    finally:
        os.close(file)


# They register themselves, in the order of the table.
from rows import reading, writing, watching, scale  # noqa: E402, F401, I001
