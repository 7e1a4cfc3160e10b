"""Many keys, written without our own client: transactions over a few connections."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.agent import Agent

OPERATIONS, BYTES = 64, 380_000
"""A transaction: as many operations as Consul 1.8 takes, and values of so many bytes, which it takes in base64."""

WRITERS = 4


def small(directories: int, files: int, root: str = "t/", size: int = 40) -> dict[str, bytes]:
    """So many directories of so many small files each."""
    return {
        f"{root}d{directory:04}/k{number:05}": (b"%d/%d " % (directory, number)).ljust(size, b".")
        for directory in range(directories)
        for number in range(files)
    }


def fill(agent: Agent, keys: Iterable[tuple[str, bytes]], token: str = "") -> int:
    """Put keys into a store, as many at once as go into a transaction; how many there were."""
    with ThreadPoolExecutor(WRITERS) as pool:
        batches, count = _batches(keys), 0
        while chunk := list(itertools.islice(batches, 16 * WRITERS)):  # a million keys need not be in memory at once
            count += sum(map(len, chunk))
            list(pool.map(lambda mine: _send(agent, mine, token), [chunk[start::WRITERS] for start in range(WRITERS)]))
    return count


def _batches(keys: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    size = 0
    for key, value in keys:
        if batch and (len(batch) == OPERATIONS or size + len(value) > BYTES):
            yield batch
            batch, size = [], 0
        batch.append((key, value))
        size += len(value)
    if batch:
        yield batch


def _send(agent: Agent, batches: list[list[tuple[str, bytes]]], token: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=60)
    for batch in batches:
        steps = [{"KV": {"Verb": "set", "Key": key, "Value": base64.b64encode(value).decode()}} for key, value in batch]
        connection.request("PUT", "/v1/txn", json.dumps(steps), {"X-Consul-Token": token})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
    connection.close()


def files_below(folder: Path) -> dict[str, bytes]:
    """What is in a folder of a local disk, or in a mount, by path."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found
