"""Writes that land after the program was told that they failed, and renames that stop in the middle.

No curl between a write and the step under test: a child process that closes what it inherited is a flush.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from support.errors import errno_of
from support.mount import Mount

TIMEOUT = 2


@pytest.fixture
def quick(proxy, curl):
    with Mount(proxy.address, f"timeout={TIMEOUT}") as mount:
        yield mount


def holding(proxy, seconds, fits=lambda seen: seen.is_write):
    """Writes reach Consul only after so many seconds: an agent that waits for a leader holds them like this."""
    proxy.fault = lambda seen: seconds if fits(seen) else None


def released(proxy):
    proxy.fault = lambda seen: None


def taken_over(proxy, curl, key):
    """The next write is dropped unsent, and another host deletes the key and makes it anew meanwhile."""

    def fault(seen):
        if not seen.is_write:
            return None
        released(proxy)
        curl.delete(key)
        curl.put(key, b"another host's")
        return "drop"

    proxy.fault = fault


def test_a_late_delete_spares_what_came_after_it(quick, proxy, curl):
    curl.put("f", b"old")
    quick.ok("cat f")
    holding(proxy, TIMEOUT + 1)
    assert errno_of(lambda: os.unlink(quick.path / "f")) == errno.ETIMEDOUT
    released(proxy)
    (quick.path / "f").write_bytes(b"acknowledged")
    time.sleep(TIMEOUT)
    assert curl.get("f") == b"acknowledged"


def test_a_late_rename_spares_what_came_after_it(quick, proxy, curl):
    curl.put("f", b"F")
    curl.put("g", b"G")
    quick.ok("cat f g")
    holding(proxy, TIMEOUT + 1)
    assert errno_of(lambda: os.rename(quick.path / "f", quick.path / "g")) == errno.ETIMEDOUT
    released(proxy)
    (quick.path / "g").write_bytes(b"acknowledged")
    time.sleep(TIMEOUT)
    assert curl.get("g") == b"acknowledged"


def test_a_retried_delete_spares_anothers_new_key(counted, proxy, curl):
    curl.put("lock", b"mine")
    counted.ok("cat lock")
    taken_over(proxy, curl, "lock")
    os.unlink(counted.path / "lock")
    assert curl.get("lock") == b"another host's"


def doubtful_append(mount, proxy, curl, key):
    """A descriptor whose append landed, though fsync said that it failed."""
    curl.put(key, b"one\n")
    descriptor = os.open(mount.path / key, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"two\n")
    holding(proxy, TIMEOUT + 0.5)
    assert errno_of(lambda: os.fsync(descriptor)) == errno.ETIMEDOUT
    released(proxy)
    time.sleep(1)
    return descriptor


@pytest.mark.parametrize(
    ("old", "new", "stored"),
    [(None, None, "d/log"), ("d/log", "d/new", "d/new"), ("d", "e", "e/log")],
)
def test_a_doubtful_append_is_stored_once(quick, proxy, curl, old, new, stored):
    descriptor = doubtful_append(quick, proxy, curl, "d/log")
    if old:
        os.rename(quick.path / old, quick.path / new)
    os.close(descriptor)
    assert curl.tree() == {stored: b"one\ntwo\n"}


def test_a_doubtful_append_of_a_large_value_is_stored_once(quick, proxy, curl):
    large = b"x" * 420_000
    descriptor = os.open(quick.path / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, large)
    os.fsync(descriptor)
    os.write(descriptor, b"two\n")
    holding(proxy, TIMEOUT + 0.5)
    assert errno_of(lambda: os.fsync(descriptor)) == errno.ETIMEDOUT
    released(proxy)
    time.sleep(1)
    os.close(descriptor)
    assert curl.get("log") == large + b"two\n"


class Renamer:
    """A process that renames when it is told to, and can be interrupted."""

    def __init__(self, old, new):
        script = "import os, sys; sys.stdin.readline(); os.rename(*sys.argv[1:])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, old, new], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        time.sleep(0.3)  # it has started before the test opens a file that it would inherit and close

    def go(self):
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def end(self, number):
        self.process.send_signal(number)
        self.process.wait(30)
        self.process.stdin.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_rename_of_an_open_file(counted, proxy, curl, number):
    curl.put("f", b"0123456789")
    renamer = Renamer(counted.path / "f", counted.path / "g")
    descriptor = os.open(counted.path / "f", os.O_RDWR)
    os.pwrite(descriptor, b"NEW", 3)
    holding(proxy, 1)
    renamer.go()
    time.sleep(0.4)
    renamer.end(number)
    time.sleep(1)
    released(proxy)
    os.pwrite(descriptor, b"LAST", 6)
    os.close(descriptor)
    time.sleep(0.3)
    assert list(curl.tree().values()) == [b"012NEWLAST"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_rename_over_an_open_file(counted, proxy, curl, number):
    curl.put("f", b"source")
    curl.put("g", b"target")
    renamer = Renamer(counted.path / "f", counted.path / "g")
    descriptor = os.open(counted.path / "g", os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"+more")
    holding(proxy, 1)
    renamer.go()
    time.sleep(0.4)
    renamer.end(number)
    time.sleep(1)
    released(proxy)
    os.close(descriptor)
    time.sleep(0.3)
    assert curl.tree() in ({"g": b"source"}, {"f": b"source", "g": b"target+more"})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_rename_of_a_directory(counted, proxy, curl, number):
    curl.put("d/f", b"0123456789")
    curl.put("d/log", b"one\n")
    renamer = Renamer(counted.path / "d", counted.path / "e")
    one = os.open(counted.path / "d/f", os.O_RDWR)
    os.pwrite(one, b"NEW", 3)
    two = os.open(counted.path / "d/log", os.O_WRONLY | os.O_APPEND)
    os.write(two, b"two\n")
    holding(proxy, 1)
    renamer.go()
    time.sleep(0.4)
    renamer.end(number)
    time.sleep(1)
    released(proxy)
    os.close(one)
    os.close(two)
    time.sleep(0.3)
    assert sorted(curl.tree().values()) == [b"012NEW6789", b"one\ntwo\n"]


def test_unsaved_data_follows_a_directory_that_stops_half_way(counted, proxy, curl):
    curl.put("d/a", b"a-old")
    curl.put("d/b", b"b-old")
    descriptor = os.open(counted.path / "d/a", os.O_RDWR)
    os.pwrite(descriptor, b"PRECIOUS", 2)
    moves = []
    conflict = json.dumps({"Results": None, "Errors": [{"OpIndex": 0, "What": 'failed index check for key "d/a"'}]})

    def fault(seen):
        if not (seen.path.startswith("/v1/txn") and b'"delete"' in seen.body):
            return None
        moves.append(seen)
        return {1: (409, conflict.encode()), 2: None}.get(len(moves), (400, b"broken"))

    proxy.fault = fault
    with pytest.raises(OSError):
        os.rename(counted.path / "d", counted.path / "e")
    released(proxy)
    os.close(descriptor)
    time.sleep(0.3)
    assert curl.tree() == {"e/a": b"a-PRECIOUS", "d/b": b"b-old"}


def test_a_directory_rename_spares_what_another_host_makes_there(counted, proxy, curl):
    for number in range(60):
        curl.put(f"d/k{number:02}", b"mine")
    moves = []

    def fault(seen):
        if b'"delete"' in seen.body:
            moves.append(seen)
            if len(moves) == 2:
                curl.put("e/k50", b"another host's")

    proxy.fault = fault
    assert errno_of(lambda: os.rename(counted.path / "d", counted.path / "e")) == errno.EEXIST
    released(proxy)
    values = list(curl.tree().values())
    assert (values.count(b"mine"), values.count(b"another host's")) == (60, 1)


def test_a_slow_answer_does_not_bring_an_older_value_back(counted, proxy, curl):
    curl.put("f", b"old" * 100_000)
    descriptor = os.open(counted.path / "f", os.O_RDWR)
    time.sleep(1.2)
    forward, slow = proxy.forward, []

    def late(request, body):
        answer = forward(request, body)
        if request.command == "GET" and request.path.startswith("/v1/kv/f") and not slow:
            slow.append(request)
            time.sleep(1)
        return answer

    proxy.forward = late
    reader = subprocess.Popen(["stat", counted.path / "f"], stdout=subprocess.DEVNULL, close_fds=True)
    time.sleep(0.4)
    new = os.urandom(450_000)
    os.pwrite(descriptor, new, 0)
    os.fsync(descriptor)
    reader.wait(30)
    assert os.fstat(descriptor).st_size == len(new)
    assert os.pread(descriptor, len(new), 0) == new
    os.close(descriptor)
    assert curl.get("f") == new


def test_a_truncation_beside_a_reader_is_stored_at_close(quick, proxy, curl):
    curl.put("f", b"text")
    quick.ok("cat f")
    reader = os.open(quick.path / "f", os.O_RDONLY)
    writer = os.open(quick.path / "f", os.O_WRONLY | os.O_TRUNC)
    os.close(writer)
    assert curl.get("f") == b""
    os.close(reader)


def killed_during_rename(mount, proxy, old, new):
    """The program of a rename is killed while it waits; the rename is applied all the same. Call `go` on the answer."""
    renamer = Renamer(mount.path / old, mount.path / new)

    def go():
        holding(proxy, 0.8)
        renamer.go()
        time.sleep(0.4)
        renamer.end(signal.SIGKILL)
        time.sleep(0.8)
        released(proxy)

    return go


def test_both_files_of_a_doubtful_rename_know_what_became_of_it(counted, proxy, curl):
    curl.put("f", b"source")
    curl.put("g", b"target")
    go = killed_during_rename(counted, proxy, "f", "g")
    source = os.open(counted.path / "f", os.O_RDWR)
    target = os.open(counted.path / "g", os.O_WRONLY | os.O_APPEND)
    os.write(target, b"+more")
    go()
    os.close(target)
    os.pwrite(source, b"LATER", 0)
    os.close(source)
    time.sleep(0.3)
    assert curl.tree() == {"g": b"LATERe"}


def test_a_new_file_under_the_old_name_of_a_doubtful_rename(counted, proxy, curl):
    curl.put("f", b"0123456789")
    go = killed_during_rename(counted, proxy, "f", "g")
    descriptor = os.open(counted.path / "f", os.O_RDWR)
    os.pwrite(descriptor, b"A", 0)
    go()
    with open(counted.path / "f", "wb") as new:
        new.write(b"new")
    os.pwrite(descriptor, b"B", 1)
    os.close(descriptor)
    time.sleep(0.3)
    assert curl.tree() == {"f": b"new", "g": b"AB23456789"}


@pytest.mark.parametrize("beyond", [0.5, 1.0])
def test_a_rename_that_timed_out_and_landed(quick, proxy, curl, beyond):
    curl.put("f", b"one\n")
    descriptor = os.open(quick.path / "f", os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"two\n")
    holding(proxy, TIMEOUT + beyond)
    assert errno_of(lambda: os.rename(quick.path / "f", quick.path / "g")) == errno.ETIMEDOUT
    released(proxy)
    time.sleep(1.5)
    os.write(descriptor, b"three\n")
    os.close(descriptor)
    time.sleep(0.3)
    assert curl.tree() in ({"g": b"one\ntwo\nthree\n"}, {"f": b"one\ntwo\nthree\n"})


def test_a_directory_rename_that_timed_out_and_landed(quick, proxy, curl):
    for number in range(4):
        curl.put(f"d/log{number}", b"one\n")
    descriptors = []
    for number in range(4):
        descriptors.append(os.open(quick.path / f"d/log{number}", os.O_WRONLY | os.O_APPEND))
        os.write(descriptors[-1], b"two\n")
    holding(proxy, TIMEOUT + 0.5)
    assert errno_of(lambda: os.rename(quick.path / "d", quick.path / "e")) == errno.ETIMEDOUT
    released(proxy)
    time.sleep(1.5)
    for descriptor in descriptors:
        os.close(descriptor)
    time.sleep(0.3)
    assert sorted(curl.tree().values()) == [b"one\ntwo\n"] * 4


def test_a_late_rename_of_a_file_that_was_stored_meanwhile(quick, proxy, curl):
    descriptor = os.open(quick.path / "f", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"v1")
    holding(proxy, TIMEOUT + 1)
    assert errno_of(lambda: os.rename(quick.path / "f", quick.path / "g")) == errno.ETIMEDOUT
    released(proxy)
    os.write(descriptor, b"v2")
    os.close(descriptor)
    time.sleep(1.5)
    assert curl.tree() == {"f": b"v1v2"}


def test_a_retried_delete_of_a_large_value_spares_anothers_new_key(counted, proxy, curl):
    (counted.path / "lock").write_bytes(b"x" * 450_000)
    taken_over(proxy, curl, "lock")
    os.unlink(counted.path / "lock")
    assert curl.get("lock") == b"another host's"
