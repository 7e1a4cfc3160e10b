"""What watches cost, which directories have one, and what they see."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import time
from contextlib import contextmanager

import pytest
from support.agent import Agent
from support.bending import Bending, is_blocking, waiting
from support.curl import Curl
from support.mount import Mount
from support.polling import meanwhile, polled
from support.proxy import Cut, fewest
from support.waiting import until
from support.watching import Putting, content, fill, helpers_of, lives, opened, sockets_of, until_watched, watch

SLOTS = 32


@pytest.fixture
def bending(agent):
    with Bending(agent.port) as proxy:
        yield proxy


@pytest.fixture
def watching(bending, curl):
    """A mount through the proxy."""
    with Mount(bending.address) as mount:
        yield mount


NAMES = [f"d{number:02}" for number in range(SLOTS - 1)]
"""Directories that fill all slots, together with the root."""


def fill_slots(mount, proxy, curl, others=()):
    """Have them all watched, in their order.

    :param others: directories that are there, too, before the mount has seen any
    """
    fill(curl, [f"{name}/f" for name in [*NAMES, *others]])
    look_at(mount, proxy, NAMES)


def look_at(mount, proxy, names):
    for name in names:
        assert content(mount.path / name / "f") == b"x"
        until_watched(proxy, f"{name}/")
    until(lambda: is_watched_alone(proxy, NAMES))


def is_watched_alone(proxy, names):
    """Whether these, and the root, are watched, and nothing else; between two queries of one it may seem not to be."""
    seen = set()
    for _ in range(20):
        seen |= set(proxy.watched())
        time.sleep(0.02)
    return seen == {"", *(f"{name}/" for name in names)}


# -- what it costs ------------------------------------------------------------------------------------------------


def test_an_idle_mount_asks_nothing_but_its_watches(bending, watching, curl):
    fill_slots(watching, bending, curl)
    bending.ask = waiting(1)
    until(lambda: all("wait=1s" in each.path for each in list(bending.under_way)), 90)
    with bending.counting() as count:
        time.sleep(4)
    assert not count.requests, count
    assert all(is_blocking(seen) for seen in count.watches), count.watches
    assert len(count.watches) <= SLOTS * (count.seconds + 2), len(count.watches)
    assert sum(bending.watched().values()) <= SLOTS


def test_directories_are_watched_again_after_a_while_without_descriptors(bending, watching, curl):
    """The one thread that gives watches outlives what it cannot open."""
    names = [f"d{number}" for number in range(SLOTS + 8)]
    fill(curl, [f"{name}/f" for name in names])
    assert content(watching.path / names[0] / "f") == b"x"
    until_watched(bending, f"{names[0]}/")
    pid = watching.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")), hard))
    for _ in range(2):
        for name in names:
            with contextlib.suppress(OSError):
                content(watching.path / name / "f")
        time.sleep(1)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))

    def is_watched():
        content(watching.path / "d5/f")
        return "d5/" in bending.watched()

    until(is_watched)


def test_a_file_that_another_host_makes_or_changes_has_the_time_at_which_that_was_told(bending, watching, curl):
    fill(curl, ["d/old", "d/changed"])
    watch(watching, bending, "d")
    start = (watching.path / "d/old").stat().st_mtime_ns
    before = time.time_ns()
    assert start < before
    curl.put("d/new", b"x")
    curl.put("d/changed", b"other")
    until((watching.path / "d/new").exists)
    until(lambda: content(watching.path / "d/changed") == b"other")
    after = time.time_ns()
    for name in ("new", "changed"):
        times = [(watching.path / "d" / name).stat().st_mtime_ns for _ in range(2)]
        assert before < times[0] < after
        assert times[0] == times[1]
    assert (watching.path / "d/old").stat().st_mtime_ns == start


def test_writes_elsewhere_cost_the_reader_nothing(agent, bending, watching, curl):
    fill(curl, ["far/quiet/f", "top", "busy/a"])
    path = watching.path / "far/quiet/f"
    content(path)
    until_watched(bending, "", "far/", "far/quiet/")  # later the root's query waits for moments only

    def attempt():
        content(path)
        until_watched(bending, "far/", "far/quiet/")
        time.sleep(2)  # until the root is told of every second or so
        start = busy.done
        with bending.counting() as count:
            while busy.done < start + 200:
                assert path.read_bytes() == b"x"
                assert path.stat().st_size == 1
                assert os.listdir(path.parent) == ["f"]
        return count

    busy = Putting(agent.port, "busy/a", "busy/b/c")
    with meanwhile(busy):
        count = fewest(attempt)
    assert not count.requests, count
    assert len(count.watches) <= 5 + 3 * count.seconds, count.watches


def test_writes_below_cause_no_storm(agent, bending, watching, curl):
    names = [f"f{number}" for number in range(20)]
    fill(curl, [f"d/{name}" for name in names] + ["d/sub/k"])
    watch(watching, bending, "d")
    assert all(content(watching.path / "d" / name) == b"x" for name in names)
    busy = Putting(agent.port, "d/sub/k", "d/sub/l")
    with meanwhile(busy):
        assert "d/sub/" not in bending.watched()
        time.sleep(1.5)
        start = busy.done
        with bending.counting() as count:
            until(lambda: busy.done >= start + 300)
        curl.put("d/f7", b"told in the middle of it")
        until(lambda: content(watching.path / "d/f7") == b"told in the middle of it")
        curl.put("d/new", b"x")
        until(lambda: "new" in os.listdir(watching.path / "d"))
    # Both the root and the directory are told of each write; of each answer come one or two transactions at most.
    assert len(count.watches) <= 2 * (4 + 2 * count.seconds), (count.seconds, len(count.watches))
    assert len(count.requests) <= 2 * (4 + 2 * count.seconds), (count.seconds, len(count.requests))
    assert count.writes == 0


@pytest.mark.parametrize("size", [3, 1500])
def test_own_writes_cost_one_request(bending, watching, curl, size):
    """In a directory that is not told whole, what is known of its files is looked at again after each wake.

    Nothing tells whether another host has written to it, too, meanwhile.
    """
    again = 256 // 64 if size > 1024 else 0
    fill(curl, [f"d/k{number}" for number in range(size)])
    watching.ok("ls -l d; cat d/k1")
    until_watched(bending, "d/")
    numbers = iter(range(100))

    def attempt():
        time.sleep(1)
        name = f"new{next(numbers)}"
        with bending.counting() as count, open(watching.path / "d" / name, "wb") as file:
            file.write(b"content")
        assert curl.get(f"d/{name}") == b"content"
        return count

    count = fewest(attempt, 1 + again)
    assert count.writes == 1, count
    assert count.reads <= again, count

    def rewrite():
        time.sleep(1)
        with bending.counting() as count:
            watching.ok(f"echo {next(numbers)} > d/k1")
        return count

    count = fewest(rewrite, 1 + again)
    assert count.writes == 1, count
    assert count.reads <= again, count

    def append():
        time.sleep(1)
        with bending.counting() as count:
            watching.ok(f"echo {next(numbers)} >> d/k1")
        return count

    count = fewest(append, 1 + again)
    assert count.writes == 1, count
    assert count.reads <= again, count


@pytest.mark.parametrize("size", [1000, 1500])
def test_many_own_writes_do_not_read_the_directory_each_time(bending, watching, curl, size):
    """Its 200 KB as a whole, or what is known of it, come again now and then."""
    fill(curl, [f"d/k{number}" for number in range(size)], b"v" * 200)
    watching.ok("ls -l d")
    until_watched(bending, "d/")
    time.sleep(1)
    with bending.counting() as count, bending.counting_bytes() as received:
        for number in range(200):
            (watching.path / f"d/k{number % 7}").write_bytes(b"own %d" % number)
        time.sleep(0.5)
    assert count.writes == 200
    # One answer has some 350 bytes a key, whoever is asked.
    answers = received[0] / (350 * size)
    assert answers <= 5 + 6 * count.seconds, (received[0], count.seconds)
    assert len(count.watches) <= 20 + 20 * count.seconds, (len(count.watches), count.seconds)
    assert count.reads <= 20 + 20 * count.seconds, (count.reads, count.seconds)
    assert curl.get("d/k1") == content(watching.path / "d/k1")


# -- who has a slot -----------------------------------------------------------------------------------------------

libc = ctypes.CDLL(None, use_errno=True)
IN_MODIFY = 2


@contextmanager
def inotify_on(path):
    """A program that waits for changes of a file, or in a directory."""
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    assert descriptor >= 0
    try:
        assert libc.inotify_add_watch(descriptor, os.fsencode(path), IN_MODIFY) > 0
        yield
    finally:
        os.close(descriptor)


def test_the_directory_used_least_lately_gives_its_slot(bending, watching, curl):
    fill_slots(watching, bending, curl, ["e1", "e2"])
    time.sleep(2.5)
    os.listdir(watching.path / NAMES[0])  # used anew
    for names in (["e1", NAMES[0], *NAMES[2:]], ["e1", "e2", NAMES[0], *NAMES[3:]]):
        newest = watching.path / ("e2" if "e2" in names else "e1") / "f"
        until(lambda names=names, newest=newest: content(newest) and is_watched_alone(bending, names))


def test_a_directory_in_use_keeps_its_slot(bending, watching, curl):
    fill_slots(watching, bending, curl, ["e"])
    with polled(*(watching.path / name / "f" for name in NAMES)):
        time.sleep(1)
        assert content(watching.path / "e/f") == b"x"
        for _ in range(30):
            assert "e/" not in bending.watched()
            time.sleep(0.1)
        curl.put("e/f", b"another")
        until(lambda: content(watching.path / "e/f") == b"another")
        until(lambda: is_watched_alone(bending, NAMES))
    until(lambda: content(watching.path / "e/f") and "e/" in bending.watched())


@pytest.mark.parametrize("name", ["d00", "d00/f"])
def test_a_directory_that_inotify_waits_for_keeps_its_slot(bending, watching, curl, name):
    new = [f"e{number:02}" for number in range(SLOTS + 3)]
    fill(curl, [f"{each}/f" for each in [*NAMES, *new]])
    with inotify_on(watching.path / name):
        look_at(watching, bending, NAMES)
        for number in (1, 2, 3):  # the oldest but for that one go
            time.sleep(2.5)
            expected = [NAMES[0], *NAMES[number + 1 :], *new[1 : number + 1]]
            path = watching.path / new[number] / "f"
            until(lambda path=path, expected=expected: content(path) and is_watched_alone(bending, expected))
    time.sleep(2.5)
    until(lambda: content(watching.path / new[0] / "f") and "d00/" not in bending.watched())


def use_both(mount) -> bool:
    """The root, and `used`: that one is there by its own watch's word, and the root need not be asked for it."""
    assert content(mount.path / "used/f") == b"x"
    assert not (mount.path / "missing").exists()
    return True


@pytest.mark.timeout(400)
def test_a_walk_through_5000_directories(tmp_path):
    """An agent admits 200 connections an address, and keeps one for each query until that has its answer."""
    walked, step = 5000, 100
    with Agent() as own, Bending(own.port) as proxy, Mount(proxy.address) as mount:
        curl = Curl(own.url)
        names = [f"d{number:04}" for number in range(walked)]
        fill(curl, [f"{name}/f" for name in names] + ["used/f"])
        for number, name in enumerate(names):
            assert (mount.path / name / "f").read_bytes() == b"x"
            assert (mount.path / "used/f").read_bytes() == b"x"
            if number % step == step - 1:
                watched = proxy.watched()
                assert len(watched) <= SLOTS
                assert set(watched.values()) == {1}
                until(lambda: use_both(mount) and {"", "used/"} <= set(proxy.watched()))
                assert len(os.listdir(f"/proc/{mount.process.pid}/task")) <= 2 * SLOTS + 20
                assert sockets_of(mount.process.pid) <= 2 * SLOTS
                assert sockets_of(own.process.pid) <= 4 * SLOTS
                curl.put(f"{name}/f", b"another")
                until(lambda name=name: content(mount.path / name / "f") == b"another")
                curl.put("used/f", b"x")
        content(mount.path / names[-1] / "f")
        until_watched(proxy, "", "used/", f"{names[-1]}/")
        curl.put(f"{names[-1]}/f", b"last")
        until(lambda: content(mount.path / names[-1] / "f") == b"last")
        assert "Traceback" not in mount.log_text()


def test_directories_that_others_make_take_no_slot(bending, watching, curl):
    """Though a helper makes them once more, for inotify."""
    fill(curl, ["used/f"])
    watch(watching, bending, "used")
    others = [f"made{number:02}" for number in range(40)]
    fill(curl, [f"{name}/f" for name in others])
    until(lambda: set(os.listdir(watching.path)) == {"used", *others})
    for _ in range(20):
        assert set(bending.watched()) <= {"", "used/"}
        time.sleep(0.1)


# -- what is seen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [2, 1500])
def test_a_key_comes_and_goes(bending, watching, curl, beside):
    fill(curl, [f"d/k{number}" for number in range(beside)])
    watch(watching, bending, "d") if beside == 2 else watching.ok("ls -l d")
    until_watched(bending, "d/")
    path = watching.path / "d/f"
    with polled(path, path.parent):
        for number in range(60):
            curl.put("d/f", b"number %d" % number)
            curl.delete("d/f")
        until(lambda: content(path) is None and "f" not in os.listdir(path.parent))
        for number in range(60):
            curl.delete("d/f")
            curl.put("d/f", b"anew %d" % number)
        until(lambda: content(path) == b"anew 59" and "f" in os.listdir(path.parent))
    time.sleep(1.5)
    assert content(path) == b"anew 59"
    assert len(os.listdir(path.parent)) == beside + 1


@pytest.mark.parametrize("beside", [0, 1500])
def test_fifty_keys_are_rewritten_quickly(bending, watching, curl, beside):
    keys = [f"d/f{number}" for number in range(50)]
    fill(curl, [f"d/k{number}" for number in range(beside)])
    fill(curl, keys, b"first")
    watching.ok("cat d/f*")
    until_watched(bending, "d/")
    with opened(watching.path / keys[0]) as file:
        for round in range(30):
            fill(curl, keys, b"round %d" % round)
        until(lambda: file() == b"round 29")  # nobody looks at it by its name
    until(lambda: {content(watching.path / key) for key in keys} == {b"round 29"})
    time.sleep(1.5)
    assert {content(watching.path / key) for key in keys} == {b"round 29"}


def test_a_prefix_is_deleted_whole_and_made_again(agent, bending, watching, curl):
    fill(curl, ["busy/a", "busy/b"])
    for round in range(3):
        value = b"round %d" % round
        fill(curl, ["a/b/f", "a/b/g", "a/b/c/h", "top"], value)
        until(lambda value=value: content(watching.path / "a/b/f") == value)
        # Each directory is told by itself, and one that was gone may rest for a second.
        until(lambda value=value: content(watching.path / "a/b/c/h") == value)
        until_watched(bending, "", "a/", "a/b/", "a/b/c/")
        assert curl("DELETE", "kv/a/?recurse")[0] == 200
        until(lambda: os.listdir(watching.path) == ["busy", "top"])
        # The kernel goes by a name that it has looked up for a second.
        until(lambda: not any(os.path.lexists(watching.path / name) for name in ("a/b/f", "a/b/c/h", "a/b", "a")))
    busy = Putting(agent.port, "busy/a", "busy/b")
    with meanwhile(busy):  # a query about what is not there is answered at each write
        time.sleep(2)
        start = busy.done
        with bending.counting() as count:
            until(lambda: busy.done >= start + 300)
        assert len(count.watches) <= 4 * (2 + 3 * count.seconds), count.watches
        assert not count.requests, count
        fill(curl, ["a/b/f"], b"once more")
        until(lambda: content(watching.path / "a/b/f") == b"once more")


# -- its end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["umount", signal.SIGTERM, signal.SIGKILL], ids=str)
@pytest.mark.parametrize("state", ["waiting", "busy", "swallowed", "refused"])
def test_a_mount_ends_with_its_watches(agent, bending, curl, end, state):
    with Mount(bending.address, "timeout=5,virtual=hidden") as mount:
        fill_slots(mount, bending, curl)
        curl.put("d00/g", b"told")
        until(lambda: content(mount.path / "d00/g") == b"told")
        pid, helpers = mount.process.pid, helpers_of(mount.process.pid)
        assert helpers
        cut, busy = Cut(), Putting(agent.port, *(f"{name}/f" for name in NAMES))
        if state == "swallowed":
            bending.fault = cut
            fill(curl, [f"{name}/f" for name in NAMES], b"y")  # each asks once more
        elif state == "refused":
            bending.fault = lambda seen: "drop"
            fill(curl, [f"{name}/f" for name in NAMES], b"y")
        with meanwhile(busy if state == "busy" else lambda: time.sleep(0.1)):
            time.sleep(0.5)
            begin = time.monotonic()
            if end == "umount":
                # It is busy for moments in which a change is repeated for inotify.
                command = ["fusermount3", "-u", str(mount.path)]
                until(lambda: subprocess.run(command, capture_output=True, timeout=60).returncode == 0)
            else:
                mount.process.send_signal(end)
            status = mount.process.wait(60)
            assert status == {signal.SIGKILL: -signal.SIGKILL}.get(end, 0)
            assert time.monotonic() - begin < 20  # it would wait for so long that it is of no use
            until(lambda: not any(map(lives, helpers)), 20)
            until(lambda: not bending.watched(), 20)
            assert not lives(pid)
        cut.heal()
        assert "Traceback" not in mount.log_text()
