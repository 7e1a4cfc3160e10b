"""A store of very many keys: what is done in one place costs nothing for all the others."""

import contextlib
import os
import re
import time

import pytest
from support.agent import Agent
from support.curl import Curl
from support.gauge import Gauge
from support.mount import Mount
from support.polling import meanwhile
from support.program import Program
from support.trees import fill
from support.waiting import until

LARGE = bool(os.environ.get("CONSULFS_LARGE"))

KEYS = 1_000_000 if LARGE else 200_000
"""A million takes the agent 2 GB and a minute. A fifth of it says as much every day: nothing may grow with it."""

WIDTH, FILES = 100, 100
"""Each of the directories at the top has so many directories, of so many files each."""

CACHE = 64 << 20
"""The default. What a mount knows beside the records, such as names, is bounded whatever the cache's size."""

OWN = 60 << 20
"""Bytes that a mount may need for itself."""

WALK = 60
"""Seconds for which is walked."""

pytestmark = pytest.mark.timeout(900)


def name(number: int) -> str:
    top, rest = divmod(number, WIDTH * FILES)
    return f"top{top:03}/mid{rest // FILES:03}/key{rest % FILES:03}"


def value(number: int) -> bytes:
    return b"value %d" % number


@pytest.fixture(scope="module")
def agent():
    # A query that nobody waits for any more keeps its connection at the agent for a minute, and here each test's stay.
    with Agent({"limits": {"http_max_conns_per_client": 2000}}) as agent:
        assert fill(agent, ((name(number), value(number)) for number in range(KEYS))) == KEYS
        yield agent


@pytest.fixture
def other(agent) -> Curl:
    """The independent client; the store stays as it is."""
    return Curl(agent.url)


@pytest.fixture
def gauge(agent):
    with Gauge(agent.port) as gauge:
        yield gauge


@contextlib.contextmanager
def mounted(gauge, options=""):
    with Mount(gauge.address, f"timeout=30,virtual=hidden{options}") as mount:
        yield mount


def names_of(count: int, what: str = "top") -> list[str]:
    return [f"{what}{number:03}" for number in range(count)]


def memory(mount) -> int:
    with open(f"/proc/{mount.process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


@pytest.mark.parametrize("cache", ["watch", "ttl", "off"])
def test_what_a_mount_costs_does_not_grow_with_the_store(gauge, cache):
    with gauge.counting() as count, mounted(gauge, f",cache={cache}") as mount:
        assert sorted(os.listdir(mount.path)) == names_of(KEYS // (WIDTH * FILES))
        number = KEYS - 7
        assert (mount.path / name(number)).read_bytes() == value(number)
        assert sorted(os.listdir(mount.path / "top003")) == names_of(WIDTH, "mid")
        assert (mount.path / name(5)).stat().st_size == len(value(5))
        assert not (mount.path / "none").exists()
    # The agent's own description; then names of four levels, and values of at most 64 keys.
    assert len(count.requests) <= 2 + (60 if cache == "off" else 20) + 4 * count.expiries, count
    assert gauge.received < 500_000 + 10_000 * (count.expiries + (50 if cache == "off" else 0)), gauge.received
    whole = [seen for seen in count.requests + count.watches if re.search(r"kv/(top\d+/)?\?.*recurse", seen.path)]
    assert not whole, whole
    assert all("separator=" in seen.path for seen in count.requests + count.watches if "keys=" in seen.path), count


def test_a_watched_directory_of_a_large_store(gauge, other):
    folder, first = "top001/mid002", name(WIDTH * FILES + 2 * FILES)
    with mounted(gauge) as mount, Program(mount.path) as program:
        before = other.get(first)
        try:
            assert program(f"open({first!r}, 'rb').read()") == before == value(WIDTH * FILES + 2 * FILES)
            until(lambda: not quiet(gauge, lambda: program(f"open({first!r}, 'rb').read()")))
            other.put(first, b"changed")
            until(lambda: program(f"open({first!r}, 'rb').read()") == b"changed")
            other.put(f"{folder}/made", b"new")
            until(lambda: program(f"os.path.exists('{folder}/made')"))
            with gauge.counting() as count:  # what goes on elsewhere is nothing to it
                for number in range(10):
                    other.put("top000/mid001/elsewhere", b"%d" % number)
                    assert program(f"open({first!r}, 'rb').read()") == b"changed"
            assert not [seen for seen in count.requests if folder in seen.path], count
            program(f"open('{folder}/mine', 'wb').write(b'x')")
            assert other.get(f"{folder}/mine") == b"x"
        finally:
            other.put(first, before)
            for key in (f"{folder}/made", f"{folder}/mine", "top000/mid001/elsewhere"):
                other.delete(key)


def quiet(gauge, action) -> list:
    """What an action asks of Consul."""
    with gauge.counting() as count:
        action()
    return count.requests


@pytest.mark.xfail(
    LARGE,
    reason="libfuse keeps 184 bytes for each name that the kernel knows, 184 MB; docs/benchmarks.md",
    strict=False,
)
@pytest.mark.parametrize("tool", ["ls -lR", "find", "tar c"])
def test_the_memory_of_a_walk_is_bounded(gauge, other, tool):
    """As far as a walk comes in its time; each time is another part of the store."""
    script = {"ls -lR": "ls -lR .", "find": "find . -name none", "tar c": "tar c ."}[tool]
    with mounted(gauge) as mount:
        seconds = WALK * (10 if LARGE else 1) / 3
        mount.sh(f"timeout {seconds} {script} | cat > /dev/null", limit=seconds + 60)
        assert memory(mount) < OWN + 2 * CACHE, memory(mount) >> 20
        assert (mount.path / name(KEYS - 1)).read_bytes() == value(KEYS - 1)


def test_a_walk_beside_changes(gauge, other, tmp_path):
    """What is changed during a walk elsewhere does not hold it up, and what it gets is right."""

    def change():
        status, text = other("PUT", "kv/top001/mid000/moving", b"%f" % time.monotonic())
        assert status == 200, (status, text)
        time.sleep(0.1)

    with mounted(gauge) as mount:
        try:
            with meanwhile(change):
                sums = mount.ok("cat top000/*/key*").encode()
        finally:
            other.delete("top001/mid000/moving")
    assert sums == b"".join(value(number) for number in range(WIDTH * FILES))
