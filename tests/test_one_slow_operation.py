"""What waits for Consul in one place keeps nothing back elsewhere: what others change, and what a lock promises."""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
from contextlib import contextmanager

import pytest
from support.bending import Bending
from support.inotify import Told, Watcher
from support.mount import Mount
from support.program import Program
from support.waiting import until
from support.watching import content, fill, watch

OPTIONS = "timeout=120,virtual=hidden"

SOON = 30
"""Seconds after which what is kept back keeps back others; it lasts longer itself."""


@pytest.fixture(params=["", "notify=off"])
def scene(request, agent, curl):
    """(the proxy, a mount with two watched directories and an open file in the second, that file)"""
    fill(curl, ["a/f", "b/f", "b/g"], b"value 1")
    with Bending(agent.port) as proxy, Mount(proxy.address, f"{OPTIONS},{request.param}".rstrip(",")) as mount:
        for name in "ab":
            watch(mount, proxy, name)
        descriptor = os.open(mount.path / "b/f", os.O_RDWR)
        try:
            assert os.pread(descriptor, 99, 0) == b"value 1"
            yield proxy, mount, descriptor
        finally:
            proxy.fault = lambda seen: None
            os.close(descriptor)


@contextmanager
def held(proxy, fits):
    """The first request that fits is kept back; yields what tells that there is one, and what ends it."""
    found, end = threading.Event(), threading.Event()

    def fault(seen):
        if fits(seen, f"{seen.path} {seen.body}") and not found.is_set():
            found.set()
            end.wait(100)

    proxy.fault = fault
    try:
        yield found, end
    finally:
        end.set()


SLOW = {
    "mkdir": (["mkdir", "a/sub"], lambda seen, text: seen.is_write and "a/sub" in text),
    "create": (["sh", "-c", "set -C; echo x > a/new"], lambda seen, text: seen.is_write and "a/new" in text),
    "ls after a lock": (["flock", "b/g", "ls", "a"], lambda seen, text: not seen.is_watch and "kv/a/" in text),
}


@pytest.mark.parametrize("name", SLOW)
def test_what_others_change_elsewhere_is_shown_and_locks_keep_their_word(scene, curl, name):
    proxy, mount, descriptor = scene
    command, fits = SLOW[name]
    with held(proxy, fits) as (found, end):
        slow = subprocess.Popen(command, cwd=mount.path, stdout=subprocess.DEVNULL)
        assert found.wait(60)
        curl.put("a/made", b"x")  # inotify is told by making it once more, in a directory that is locked by now
        curl.put("b/f", b"value 2")
        until(lambda: os.pread(descriptor, 99, 0) == b"value 2" == content(mount.path / "b/f"), SOON)
        curl.put("b/f", b"the third value")
        until(lambda: mount.path.joinpath("b/f").stat().st_size == len(b"the third value"), SOON)
        for number in range(4, 8):
            curl.put("b/f", b"%d" % number)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            assert os.pread(descriptor, 99, 0) == b"%d" % number == content(mount.path / "b/f")
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        assert slow.poll() is None
        end.set()
        assert slow.wait(60) == 0
    until(lambda: "made" in os.listdir(mount.path / "a"))


def test_a_memory_map_that_waits_for_its_page(scene, curl):
    proxy, mount, descriptor = scene
    with Program(mount.path) as reader:
        reader("f := os.open('a/f', O_RDWR)")
        reader("g := os.open('b/g', O_RDWR)")
        reader("(m := __import__('mmap').mmap(f, 5, 1, 1))[:]")
        reader("fcntl.flock(g, LOCK_EX)")
        with held(proxy, lambda seen, text: "a/f" in text and not seen.is_watch) as (found, _):
            reader.begin("m[:]")
            assert found.wait(60)
            curl.put("a/f", b"changed")
            curl.put("b/f", b"changed, too")
            until(lambda: os.pread(descriptor, 99, 0) == b"changed, too" == content(mount.path / "b/f"), SOON)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            assert os.pread(descriptor, 99, 0) == b"changed, too"
        reader.end()


def test_own_changes_are_told_once_however_long_consul_takes(agent, curl):
    fill(curl, [f"d/{name}" for name in ("a", "b", "c", "e")])
    with Bending(agent.port) as proxy, Mount(proxy.address, OPTIONS) as mount, Watcher(mount.path) as watcher:
        told = Told(watcher, curl, "d")
        for script, events in (
            ("echo x > d/new", ["CREATE d/new", "MODIFY d/new", "CLOSE_WRITE d/new"]),
            ("echo x > d/a", ["MODIFY d/a", "CLOSE_WRITE d/a"]),
            ("mv d/b d/moved", []),  # MOVED_FROM and MOVED_TO, for which nobody waits here
            ("mv d/c d/e", []),
            ("rm d/a", ["DELETE d/a"]),
        ):
            with held(proxy, lambda seen, text: seen.is_write) as (found, _):
                program = subprocess.Popen(["sh", "-c", script], cwd=mount.path)
                assert found.wait(60)
                curl.put("d/beside", os.urandom(9))  # the watch is told while the program waits for its answer
                watcher.wait("CLOSE_WRITE d/beside")
            assert program.wait(60) == 0
            assert [event for event in told.events() if "beside" not in event] == events
