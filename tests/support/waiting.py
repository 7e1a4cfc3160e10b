"""Waiting for what Consul does by itself: until it is so, however long that takes, up to a bound against hanging."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TypeVar

from support.curl import Curl

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


def place_nodes(curl: Curl, **seconds: float) -> None:
    """Say how far from a common point nodes are, which is what `near` goes by; until the servers know it."""
    for node, distance in seconds.items():
        coordinate = {"Vec": [distance] + [0] * 7, "Error": 0.1, "Adjustment": 0, "Height": 0.00001}
        body = json.dumps({"Node": node, "Coord": coordinate}).encode()
        assert curl("PUT", "coordinate/update", body)[0] == 200
        until(lambda node=node: curl("GET", f"coordinate/node/{node}")[0] == 200)
