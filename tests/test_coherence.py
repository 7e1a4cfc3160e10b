"""No stale read after a watch has fired: what programs of a mount see while another host writes.

All of them look at one key all the time, each in its own way. What each sees was written, and in that order; it never
goes back, and ends with what was written last.
"""

from __future__ import annotations

import base64
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.mount import Mount
from support.observer import Observers, assert_in_order, assert_pages_in_order
from support.waiting import until

OPTIONS = "timeout=20,virtual=hidden"


@dataclass
class Scene:
    """Where the key that is looked at stands.

    :ivar beside: the other keys
    :ivar path: of its file, where that is not the key
    :ivar below: what is mounted, of the store
    :ivar is_told: whether what becomes of it is told with its content, so that nobody has to ask
    """

    key: str
    beside: tuple[str, ...] = ()
    path: str = ""
    below: str = ""
    options: str = ""
    is_told: bool = True

    @property
    def is_watched(self) -> bool:
        return "cache=" not in self.options


SCENES = {
    "flat": Scene("d/f", ("d/g", "d/h", "e")),
    "alone": Scene("d/f"),
    "many": Scene("d/f", tuple(f"d/k{number}" for number in range(1500)), is_told=False),
    "nested": Scene("d/f", ("d/sub/x", "d/sub/deep/y", "d/g"), is_told=False),
    "root": Scene("f", ("g", "h")),
    "root with directories": Scene("f", ("d/g", "e/h"), is_told=False),
    "prefix": Scene("app/d/f", ("app/d/g", "other"), path="d/f", below="/app"),
    "encoded": Scene("d/.", ("d/g",), path="d/%2E"),
    "beside its directory": Scene("foo", ("foo/bar",), path="foo%value", is_told=False),
    "no inotify": Scene("d/f", ("d/g",), options="notify=off"),
    "ttl": Scene("d/f", ("d/g",), options="cache=ttl", is_told=False),
    "off": Scene("d/f", ("d/g",), options="cache=off", is_told=False),
}
WATCHED = {name: scene for name, scene in SCENES.items() if scene.is_watched}


def value(number: int, size: int) -> bytes:
    """A value of which each part says which it is."""
    return (b"%07d %07d\n" % (number, size) * (size // 16 + 1))[:size]


def values(*sizes: int) -> list[bytes]:
    return [value(number, size) for number, size in enumerate(sizes)]


SMALL = values(100, 20, 300, 301, 301, 301, 17, 4000, 100, 0, 1000, 4096, 18, 999, 999, 50, 2000, 3000, 64)
"""Growing, shrinking, of equal length, empty: each fits into a page."""

LARGE = values(5000, 100, 100_000, 5001, 0, 100_000, 90_000, 5000, 4097, 100_000, 20, 5002)


def fill(curl, keys: tuple[str, ...]) -> None:
    for start in range(0, len(keys), 60):
        assert curl.txn(
            *[
                {"Verb": "set", "Key": key, "Value": base64.b64encode(key.encode()).decode()}
                for key in keys[start : start + 60]
            ]
        )


@pytest.fixture
def scenery(agent, proxy, curl):
    """Mounts where a scene is set; gives the file that is looked at."""
    with ExitStack() as mounts:

        def set_scene(scene: Scene, first: bytes) -> Path:
            fill(curl, (*scene.beside, scene.key))
            curl.put(scene.key, first)
            options = f"{OPTIONS},{scene.options}" if scene.options else OPTIONS
            mount = mounts.enter_context(Mount(proxy.address + scene.below, options))
            path = mount.path / (scene.path or scene.key)
            assert path.read_bytes() == first
            if scene.is_watched:
                # It is under watch, and told what it is told.
                until(lambda: is_watched(proxy, scene))
            return path

        yield set_scene


def is_watched(proxy, scene: Scene) -> bool:
    """Whether a query waits for the next change of the key's directory."""
    folder = scene.key.rpartition("/")[0]
    waiting = [each for each in proxy.requests if each.is_watch and "index=1&" not in each.path + "&"]
    fits = [each for each in waiting if each.path.partition("?")[0].strip("/") == f"v1/kv/{folder}".strip("/")]
    return any(("recurse" in each.path) is scene.is_told for each in fits)


def write_all(curl, key: str, written: list[bytes]) -> None:
    """One after another, some at once and some when the one before is seen by now."""
    for number, each in enumerate(written):
        curl.put(key, each)
        if number % 4 == 3:
            until(lambda each=each: curl.get(key) == each)


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("written", [SMALL, LARGE], ids=["small", "large"])
def test_every_reader_sees_what_was_written_in_its_order(scenery, proxy, curl, name, written):
    scene = SCENES[name]
    path = scenery(scene, written[0])
    with Observers() as observe:
        contents = [observe("keep", path), observe("reopen", path)]
        sizes = [observe("stat", path), observe("fstat", path)]
        with proxy.counting() as count:
            write_all(curl, scene.key, written[1:])
            seen = [each.seen(written[-1]) for each in contents]
            lengths = [each.seen(len(written[-1])) for each in sizes]
    for each in lengths:
        assert_in_order(each, [len(one) for one in written])
    for each in seen:
        if written is SMALL:
            assert_in_order(each, written)
        else:
            assert_pages_in_order(each, written)
    if scene.is_told:
        assert not count.requests, count
    else:
        assert not count.writes, count


@pytest.mark.parametrize("name", WATCHED)
def test_a_memory_map_shows_what_was_written_in_its_order(scenery, proxy, curl, name):
    scene, written = WATCHED[name], values(*[3000] * 12)
    path = scenery(scene, written[0])
    with Observers() as observe:
        observers = [observe("memory", path, 3000), observe("keep", path)]
        with proxy.counting() as count:
            write_all(curl, scene.key, written[1:])
            seen = [each.seen(written[-1]) for each in observers]
    for each in seen:
        assert_in_order(each, written)
    assert not (count.requests if scene.is_told else count.writes), count
