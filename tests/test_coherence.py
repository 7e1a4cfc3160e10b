"""No stale read after a watch has fired: what programs of a mount see while another host writes.

All of them look at one key all the time, each in its own way. What each sees was written, and in that order; it never
goes back, and ends with what was written last.
"""

from __future__ import annotations

import base64
import errno
import http.client
import json
import mmap
import os
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.mount import Mount
from support.observer import HANGS, PAGE, Observers, assert_in_order, assert_pages_in_order
from support.polling import meanwhile
from support.program import Programs
from support.proxy import After
from support.waiting import until

OPTIONS = "timeout=20,virtual=hidden"

STALE_HANDLE = {"error": errno.ESTALE}


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
    """One after another, at the pace at which programs write; `test_a_size_cuts_no_content` does it faster."""
    for each in written:
        curl.put(key, each)
        time.sleep(0.04)


def without_torn(seen: list, written: list[bytes], most: int) -> list:
    """What was seen whole, and no more than so many times not.

    A read(2) asks for the size, and then for the content, in two requests. The kernel drops a size that it is told
    while it is told to forget the file; a reader which asks in those microseconds gets the content cut to the size
    before, or filled up with NULs to it. Its next look is whole.
    """
    whole = [each for each in seen if each is None or each in written]
    assert len(seen) - len(whole) <= most, [(each[:16], len(each)) for each in seen if each not in written]
    return whole


def without_torn_pages(seen: list, written: list[bytes], most: int) -> list:
    """The same where it is whole pages that are from one value each."""
    pages = {one[at : at + PAGE] for one in written for at in range(0, len(one), PAGE)}
    whole = [each for each in seen if all(each[at : at + PAGE] in pages for at in range(0, len(each), PAGE))]
    assert len(seen) - len(whole) <= most, [(each[:16], len(each)) for each in seen if each not in whole]
    return whole


def without_replayed(seen: list) -> list:
    """Without a size that is seen once more after the file was seen gone: its removal is repeated for inotify then."""
    kept: list = []
    for each in seen:
        if not (each is not None and kept and kept[-1] is None and each in kept):
            kept.append(each)
    return kept


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
            assert_in_order(without_torn(each, written, 1), written)
        else:
            assert_pages_in_order(without_torn_pages(each, written, 1), written)
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


@pytest.mark.parametrize("options", ["", "notify=off"])
@pytest.mark.parametrize("kinds", [["keep"], ["reopen"], ["keep", "reopen", "stat"]], ids="+".join)
def test_a_size_cuts_no_content(scenery, curl, agent, options, kinds):
    """A hundred times as many changes of the size as any of the tests above."""
    written = values(*[18, 999] * 150)
    path = scenery(Scene("d/f", ("d/g",), options=options), written[0])
    with Observers() as observe, closing(http.client.HTTPConnection("127.0.0.1", agent.port)) as writer:
        observers = [observe(kind, path) for kind in kinds]
        for each in written[1:]:
            writer.request("PUT", "/v1/kv/d/f", each)
            assert writer.getresponse().read() == b"true\n"
            time.sleep(0.02)
        seen = {each.kind: each.seen(len(written[-1]) if each.kind == "stat" else written[-1]) for each in observers}
    assert_in_order(seen.pop("stat", []), [len(each) for each in written])
    for each in seen.values():
        assert len(each) > 100
        assert_in_order(without_torn(each, written, 4), written)


def test_a_file_that_grows_under_a_memory_map(scenery, curl):
    """Its new part is there once the size has been told, by inotify's helper or by stat(2)."""
    path = scenery(SCENES["flat"], value(0, 3000))
    with Observers() as observe:
        mapped = observe("memory", path, 3000)
        curl.put("d/f", value(1, 9000))
        assert_in_order(mapped.seen(value(1, 9000)[:3000]), [value(0, 3000), value(1, 9000)[:3000]])
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 9000, mmap.MAP_SHARED, mmap.PROT_READ) as whole:
        assert whole[:] == value(1, 9000)
        curl.put("d/f", value(2, 9000))
        until(lambda: whole[:] == value(2, 9000), HANGS)
        curl.put("d/f", value(3, 12000))
        until(lambda: os.stat(path).st_size == 12000, HANGS)
        until(lambda: whole[:] == value(3, 12000)[:9000], HANGS)


def test_a_memory_map_of_a_file_that_nobody_asks_about(scenery, curl):
    """Without inotify's helper nobody asks for the size after a change: the new content is mapped all the same."""
    path = scenery(SCENES["no inotify"], value(0, 3000))
    with Observers() as observe:
        mapped = observe("memory", path, 3000)
        curl.put("d/f", value(1, 4000))
        assert_in_order(mapped.seen(value(1, 4000)[:3000]), [value(0, 3000), value(1, 4000)[:3000]])


@pytest.mark.parametrize("name", SCENES)
def test_a_file_that_goes_and_comes(scenery, curl, name):
    scene = SCENES[name]
    written: list[bytes | None] = [value(0, 100)]
    path = scenery(scene, value(0, 100))
    with Observers() as observe:
        content, size, kept = observe("reopen", path), observe("stat", path), observe("keep", path)
        for number in range(1, 9):
            curl.delete(scene.key)
            time.sleep(0.03)
            curl.put(scene.key, value(number, 100 + number))
            time.sleep(0.03)
            written += [None, value(number, 100 + number)]
        seen = content.seen(written[-1])
        assert_in_order(without_torn([each for each in seen if each != STALE_HANDLE], written, 1), written)
        assert_in_order(without_replayed(size.seen(len(written[-1]))), [each and len(each) for each in written])
        kept.say(json.dumps([None, 0]))
        kept.hear()  # it reads on, whatever that is
    curl.delete(scene.key)
    until(lambda: not path.exists(), HANGS)


def test_an_open_file_that_is_deleted_reads_on(scenery, curl):
    path = scenery(SCENES["flat"], b"before")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        curl.delete("d/f")
        until(lambda: not path.exists(), HANGS)
        assert os.pread(descriptor, 100, 0) == b"before"
        assert sorted(os.listdir(path.parent)) == ["g", "h"]
        assert os.pread(descriptor, 100, 0) == b"before"
    finally:
        os.close(descriptor)


def found(path: Path) -> object:
    """What stands there; None where that cannot be told yet."""
    try:
        return os.listdir(path) if path.is_dir() else path.read_bytes()
    except OSError:
        return None


def test_a_file_that_becomes_a_directory_and_back(scenery, curl):
    path = scenery(Scene("d/f", ("d/g",)), b"file")
    states: list = [b"file"]
    with Observers() as observe:
        either = observe("either", path)
        for number in range(4):
            assert curl.txn({"Verb": "delete", "Key": "d/f"}, {"Verb": "set", "Key": f"d/f/{number}", "Value": "eA=="})
            until(lambda: found(path) == [str(number)], HANGS)  # noqa: B023 - called here
            value = f"file {number}".encode()
            assert curl.txn(
                {"Verb": "delete", "Key": f"d/f/{number}"},
                {"Verb": "set", "Key": "d/f", "Value": base64.b64encode(value).decode()},
            )
            until(lambda: found(path) == value, HANGS)  # noqa: B023 - called here
            states += [None, [str(number)], None, value]
        seen = either.seen(states[-1])
    # Under a name that the kernel still has, what it has become may be an error for a second. Each directory is told
    # by itself: of one that is known to be there the names may be still to come, or gone already.
    assert_in_order([each for each in seen if not isinstance(each, dict) and each != []], states)


@pytest.mark.parametrize(
    "name", ["flat", "nested", "root with directories", "many", "prefix", "no inotify", "ttl", "off"]
)
def test_a_listing_follows_what_comes_and_goes(scenery, curl, name):
    scene = SCENES[name]
    path = scenery(scene, b"x")
    first = sorted(os.listdir(path.parent))
    states, folder = [first], scene.key[: -len("f")]
    with Observers() as observe:
        names = observe("listing", path.parent)
        for number in range(6):
            curl.put(f"{folder}new{number}", b"x")
            states.append(sorted([*states[-1], f"new{number}"]))
            time.sleep(0.03)
        for number in range(0, 6, 2):
            curl.delete(f"{folder}new{number}")
            states.append(sorted(set(states[-1]) - {f"new{number}"}))
            time.sleep(0.03)
        assert_in_order(names.seen(states[-1]), states)


def test_nothing_is_done_beneath_a_mount_that_ends(proxy, curl, tmp_path):
    """What inotify is told of just then is not made, nor removed, in the folder that the mount stood on."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d/gone").write_bytes(b"mine")
    for _ in range(8):
        curl.put("d/gone", b"x")
        with Mount(proxy.address, OPTIONS, place=tmp_path) as mount:
            assert (mount.path / "d/gone").read_bytes() == b"x"
            until(lambda: proxy.requests and proxy.requests[-1].is_watch and "index=1&" not in proxy.requests[-1].path)
            with meanwhile(lambda: (curl.put(f"d/{os.urandom(4).hex()}"), curl.delete("d/gone"), curl.put("d/gone"))):
                mount.stop()
        assert (os.listdir(tmp_path), os.listdir(tmp_path / "d")) == (["d"], ["gone"])
        curl.delete_all()


@pytest.fixture
def two(agent, curl):
    with Mount(agent.address, OPTIONS) as one, Mount(agent.address, OPTIONS) as other:
        yield one, other


def test_two_mounts_that_answer_each_other(two, curl):
    """Each writes when it has seen what the other wrote, while both sides are looked at."""
    curl.put("d/f", value(0, 64))
    rounds = [value(number, 64) for number in range(41)]  # a file that is cut before it is written shows that, here
    paths = [each.path / "d/f" for each in two]
    with Observers() as observe:
        observers = [observe(kind, path) for path in paths for kind in ("keep", "reopen")]
        for number, each in enumerate(rounds[1:], 1):
            path = paths[number % 2]
            until(lambda: path.read_bytes() == rounds[number - 1], HANGS)  # noqa: B023 - called here
            with open(path, "r+b") as file:
                file.write(each)
            assert path.read_bytes() == each
        for each in observers:
            assert_in_order(each.seen(rounds[-1]), rounds)


def test_an_open_reader_sees_the_appends_of_two_hosts(two, curl):
    curl.put("d/log", b"start\n")
    with Programs() as programs:
        readers = [programs(each, "d/log") for each in two]
        for number in range(10):
            for mount, name in zip(two, "ab"):
                with open(mount.path / "d/log", "a") as log:
                    log.write(f"{name}{number}\n")
        stored = curl.get("d/log")
        assert sorted(stored.split()) == sorted([b"start", *(b"%c%d" % (n, k) for n in b"ab" for k in range(10))])
        for each in readers:
            until(lambda: each("os.pread(f, 10000, 0)") == stored, HANGS)  # noqa: B023 - called here
            assert each("os.fstat(f).st_size") == len(stored)
        for each in two:
            until(lambda: (each.path / "d/log").read_bytes() == stored, HANGS)  # noqa: B023 - called here


@pytest.mark.parametrize("lock", ["d/f", "locks/l"], ids=["the file itself", "another file"])
def test_what_was_written_under_a_lock_is_read_under_the_next(agent, proxy, curl, lock):
    """At once, though the watch comes far too late: by a descriptor, a name, a size and a memory map from before."""
    curl.put("d/f", value(0, 100))
    curl.put(lock, value(0, 100))
    options = f"{OPTIONS},lock_ttl=10s,lock_delay=0s"
    with Mount(agent.address, options) as one, Mount(proxy.address, options) as other, Programs() as programs:
        writer, reader = programs(one, "d/f"), programs(other, "d/f")
        for each in (writer, reader):
            each(f"lock := os.open({lock!r}, O_RDWR)")
        reader("(m := __import__('mmap').mmap(f, 100, 1, 1))[:]")
        assert reader("(os.pread(f, 5000, 0), m[:], os.stat('d/f').st_size)") == (value(0, 100), value(0, 100), 100)
        until(lambda: is_watched(proxy, SCENES["alone"] if lock == "locks/l" else Scene("d/f")), HANGS)
        proxy.fault = lambda seen: After(60) if seen.is_watch else None
        time.sleep(0.5)
        for number, size in enumerate([100, 300, 50, 120, 120], 1):
            now = value(number, size)
            writer("fcntl.flock(lock, LOCK_EX)")
            writer(f"(os.ftruncate(f, 0), os.pwrite(f, {now!r}, 0), os.fsync(f))")
            writer("fcntl.flock(lock, LOCK_UN)")
            reader("fcntl.flock(lock, LOCK_EX)")
            if size == 100:
                assert reader("m[:]") == now
            assert reader("os.pread(f, 5000, 0)") == now
            assert reader("open('d/f', 'rb').read()") == now
            assert reader("(os.stat('d/f').st_size, os.fstat(f).st_size)") == (size, size)
            reader("fcntl.flock(lock, LOCK_UN)")


@pytest.mark.parametrize("options", ["notify=off", "cache=ttl,attr_timeout=5"])
@pytest.mark.parametrize("gone", ["d/f", "d/f/g"], ids=["file", "directory"])
def test_what_a_listing_does_not_show_is_not_there_by_its_name(agent, curl, options, gone):
    """The kernel has the name, and its attributes, for a second more (with notify=off it showed them 60 of 60 times).
    Where removals are repeated for inotify it has them for milliseconds, until that is done."""
    curl.put("d/other", b"")
    with Mount(agent.address, f"{OPTIONS},{options}") as mount:
        folder, path, there = mount.path / "d", mount.path / "d/f", 0
        for number in range(6 if "ttl" in options else 20):
            curl.put(gone, b"%d" % number)
            until(lambda: "f" in os.listdir(folder), HANGS)
            assert os.lstat(path).st_size == (0 if path.is_dir() else len(b"%d" % number))
            curl.delete(gone)
            until(lambda: "f" not in os.listdir(folder), HANGS)
            there += os.path.lexists(path)
            until(lambda: not os.path.lexists(path), HANGS)
        assert there == 0
