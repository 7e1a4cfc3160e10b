"""Waiting for what Consul does by itself: until it is so, however long that takes, up to a bound against hanging."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(probe: Callable[[], T], seconds: float = 60) -> T:
    """The first true answer of the probe."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        assert time.monotonic() < deadline, f"not so after {seconds} s: {found!r}"
        time.sleep(0.05)
