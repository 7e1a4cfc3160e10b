"""Two mounts of one store, and writers that are no mounts at all."""

import errno
import mmap
import os
import subprocess
import threading
import time

import pytest
from support.mount import Mount
from support.waiting import until

FLAGS = "user.consul.flags"


@pytest.fixture
def two(agent, curl):
    with Mount(agent.address) as one, Mount(agent.address) as other:
        yield one, other


def at_once(*calls):
    """Run calls in threads that start together; raises what one raised."""
    gate, failures = threading.Barrier(len(calls)), []

    def run(call):
        gate.wait()
        try:
            call()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


def test_appends_from_both_are_all_there(two, curl):
    at_once(
        *[
            lambda mount=mount, name=name: mount.ok(f"for n in $(seq 200); do echo {name}$n >> log || exit 1; done")
            for mount, name in zip(two, "ab")
        ]
    )
    lines = curl.get("log").split()
    assert len(lines) == 400
    assert set(lines) == {b"%c%d" % (name, n) for name in b"ab" for n in range(1, 201)}
    for name in b"ab":
        own = [line for line in lines if line[0] == name]
        assert own == [b"%c%d" % (name, n) for n in range(1, 201)]


@pytest.mark.parametrize("options", ["", "cache=ttl", "notify=off"])
def test_a_program_reads_its_own_text_behind_another_hosts(agent, curl, options):
    """The kernel reckons a size without what the other host has appended."""
    with Mount(agent.address, options) as mount:
        curl.put("log", b"")
        until((mount.path / "log").exists)
        descriptor = os.open(mount.path / "log", os.O_RDWR | os.O_APPEND)
        try:
            for number in range(50):
                os.fstat(descriptor)
                curl.put("log", curl.get("log") + b"[theirs %d]" % number)
                os.write(descriptor, b"<ours %d>" % number)
                os.fsync(descriptor)
                assert os.pread(descriptor, 1 << 16, 0) == curl.get("log")
                assert curl.get("log").endswith(b"[theirs %d]<ours %d>" % (number, number))
        finally:
            os.close(descriptor)


OTHERS = {
    "append": lambda base: base + b"B" * 6000,
    "a byte of the same page": lambda base: base[:50] + b"B" + base[51:],
    "a byte of the next page": lambda base: base[:4200] + b"B" + base[4201:],
    "shorter": lambda base: base[:40],
}


@pytest.mark.parametrize("options", ["", "cache=ttl", "notify=off"])
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("told", [False, True], ids=["at once", "told before"])
def test_a_memory_map_stores_what_its_program_changed(agent, curl, options, name, told):
    """Not what stands around it on its pages, which others have changed meanwhile."""
    base = b"a" * 5000
    with Mount(agent.address, options) as mount:
        curl.put("d/f", base)
        until((mount.path / "d/f").exists)
        time.sleep(0.3)  # until that was told
        descriptor = os.open(mount.path / "d/f", os.O_RDWR)
        with mmap.mmap(descriptor, len(base)) as mapped:
            assert mapped[:] == base
            mapped[0:1] = mapped[7:8] = b"X"
            if name != "shorter":  # what is cut off is cut off in the map, too
                mapped[4999:5000] = b"X"
            theirs = bytearray(OTHERS[name](curl.get("d/f")))  # the kernel may have written some of it already
            curl.put("d/f", bytes(theirs))
            if told:
                time.sleep(1.1)  # longer than anything is taken as true
                os.stat(mount.path / "d/f")
            mapped.flush()
        os.close(descriptor)
        theirs[0:1] = theirs[7:8] = b"X"
        if name != "shorter":
            theirs[4999:5000] = b"X"
        until(lambda: curl.get("d/f") == bytes(theirs))


def test_an_exclusive_create_has_one_winner(two, curl):
    for number in range(100):
        outcomes = []

        def create(mount, mark, number=number, outcomes=outcomes):
            try:
                descriptor = os.open(mount.path / f"lock{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                os.write(descriptor, mark)
                os.close(descriptor)
                outcomes.append(mark)
            except OSError as error:
                assert error.errno == errno.EEXIST
                outcomes.append(None)

        at_once(lambda: create(two[0], b"one"), lambda: create(two[1], b"two"))
        winners = [mark for mark in outcomes if mark]
        assert len(winners) == 1
        assert curl.get(f"lock{number}") == winners[0]


def test_an_exclusive_create_decided_at_close(agent, curl):
    with Mount(agent.address, "exclusive=close") as one, Mount(agent.address, "exclusive=close") as other:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        first, second = os.open(one.path / "f", flags), os.open(other.path / "f", flags)
        os.write(first, b"one")
        os.write(second, b"two")
        os.close(first)
        with pytest.raises(FileExistsError):
            os.close(second)
        assert curl.get("f") == b"one"


def test_flags_and_value_from_two_sides(two, curl):
    curl.put("f", b"start")

    def set_flags():
        for number in range(1, 201):
            os.setxattr(two[0].path / "f", FLAGS, str(number).encode())

    def set_value():
        for number in range(1, 201):
            (two[1].path / "f").write_bytes(b"%d" % number)

    at_once(set_flags, set_value)
    assert (curl.get("f"), curl.flags("f")) == (b"200", 200)


def test_overwrites_keep_the_flags_that_curl_sets(mnt, curl):
    curl.put("f", b"x")

    def overwrite():
        for number in range(50):
            (mnt.path / "f").write_bytes(b"%d" % number)

    def elsewhere():
        for number in range(1, 21):
            record = curl.record("f")
            curl.txn(
                {"Verb": "cas", "Key": "f", "Value": record["Value"], "Flags": number, "Index": record["ModifyIndex"]}
            )

    at_once(overwrite, elsewhere)
    flags = curl.flags("f")
    assert curl.get("f") == b"49" or flags
    mnt.ok("echo end >> f")
    assert curl.flags("f") == flags


def test_a_file_renamed_while_another_host_appends(two, curl):
    curl.put("f", b"")
    stop = threading.Event()
    written = []

    def append():
        number = 0
        while not stop.is_set():
            line = b"%d\n" % number
            done = subprocess.run(["bash", "-c", f"echo {number} >> f"], cwd=two[0].path, capture_output=True)
            assert done.returncode == 0, done.stderr
            written.append(line)
            number += 1

    def move():
        try:
            for number in range(20):
                two[1].sh(f"mv f g{number}")
        finally:
            stop.set()

    at_once(append, move)
    everything = b"".join(value for _, value in sorted(curl.tree().items()))
    assert sorted(everything.split()) == sorted(b"".join(written).split())


def test_a_directory_renamed_while_another_host_writes_in_it(two, curl):
    for number in range(60):
        curl.put(f"d/k{number}", b"old")

    def write():
        for number in range(60):
            two[0].sh(f"echo new > d/k{number}")

    at_once(write, lambda: two[1].ok("mv d e"))
    tree = curl.tree()
    assert {key.split("/")[1] for key in tree} == {f"k{number}" for number in range(60)}
    assert all(value in (b"old", b"new\n") for value in tree.values())
