"""Stores, renames and deletes of one key that meet each other, slowed down by the proxy until they must."""

import errno
import os
import threading
import time

import pytest
from support.curl import Curl
from support.mount import Mount
from support.waiting import until

STALE = 1.1


class Background:
    """A call in a thread of its own, with its outcome."""

    def __init__(self, call):
        self.error = None

        def run():
            try:
                call()
            except OSError as error:
                self.error = error

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def wait(self):
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.error


def opened(path, flags=os.O_WRONLY | os.O_APPEND, data=b""):
    descriptor = os.open(path, flags)
    if data:
        os.write(descriptor, data)
    return descriptor


def test_a_close_that_returns_0_has_stored(proxy, curl):
    """While another program's store of the same key is under way, and then fails."""
    curl.put("log", b"base\n")
    with Mount(proxy.address, "timeout=2") as mount:
        one = opened(mount.path / "log", data=b"one\n")
        two = opened(mount.path / "log", data=b"two\n")
        proxy.fault = lambda seen: (500, b"No cluster leader") if seen.is_write else None
        closing = Background(lambda: os.close(two))
        time.sleep(0.5)
        other = Background(lambda: os.close(one))
        failure_two, failure_one = closing.wait(), other.wait()
        proxy.fault = lambda seen: None
        time.sleep(0.5)
        stored = curl.get("log")
    assert failure_two is not None
    assert failure_one is not None or b"one\n" in stored


def test_both_are_stored_when_the_first_store_succeeds(counted, proxy, curl):
    curl.put("log", b"base\n")
    one = opened(counted.path / "log", data=b"one\n")
    two = opened(counted.path / "log", data=b"two\n")
    proxy.fault = lambda seen: 0.5 if seen.is_write else None
    closing = Background(lambda: os.close(two))
    time.sleep(0.2)
    os.close(one)
    assert curl.get("log") == b"base\none\ntwo\n"
    assert closing.wait() is None


def test_a_replaced_file_does_not_come_back(counted, proxy, curl):
    curl.put("f", b"old")
    curl.put("g", b"new")
    late = opened(counted.path / "f", os.O_RDWR, b"LATE")
    curl.put("f", b"changed")  # the store meets a conflict, and then reads slowly
    proxy.fault = lambda seen: 0.5 if seen.method == "GET" else None
    closing = Background(lambda: os.close(late))
    time.sleep(0.2)
    os.rename(counted.path / "g", counted.path / "f")
    closing.wait()
    time.sleep(0.3)
    assert curl.tree() == {"f": b"new"}


def test_a_deleted_file_does_not_come_back(counted, proxy, curl):
    curl.put("f", b"old")
    late = opened(counted.path / "f", os.O_WRONLY | os.O_TRUNC, b"LATE")
    proxy.fault = lambda seen: 0.5 if seen.is_write else None
    closing = Background(lambda: os.close(late))
    time.sleep(0.2)
    os.unlink(counted.path / "f")
    closing.wait()
    time.sleep(0.7)
    assert curl.tree() == {}


def test_a_store_that_meets_its_own_rename(counted, proxy, curl):
    curl.put("f", b"old")
    writer = opened(counted.path / "f", data=b" more")
    proxy.fault = lambda seen: 0.4 if seen.is_write else None
    closing = Background(lambda: os.close(writer))
    time.sleep(0.1)
    os.rename(counted.path / "f", counted.path / "g")
    assert closing.wait() is None
    time.sleep(0.5)
    assert curl.tree() == {"g": b"old more"}


def test_a_store_that_meets_the_rename_of_its_directory(counted, proxy, curl):
    for number in range(30):
        curl.put(f"d/k{number}", b"old")
    writer = opened(counted.path / "d/k7", data=b" more")
    proxy.fault = lambda seen: 0.3 if seen.is_write else None
    moving = Background(lambda: os.rename(counted.path / "d", counted.path / "e"))
    time.sleep(0.1)
    os.close(writer)
    assert moving.wait() is None
    time.sleep(0.5)
    assert not [key for key in list(curl.keys()) if key.startswith("d/")]
    assert curl.get("e/k7") == b"old more"


def test_a_reader_sees_what_was_moved(mnt, curl):
    curl.put("d/k", b"one")
    with open(mnt.path / "d/k", "rb") as reader:
        reader.read(1)
        curl.put("d/k", b"two-two")
        os.rename(mnt.path / "d", mnt.path / "e")
        assert os.stat(mnt.path / "e/k").st_size == 7
        assert (mnt.path / "e/k").read_bytes() == b"two-two"


def test_flags_are_set_whatever_becomes_of_the_writer(mnt, curl):
    curl.put("f", b"old")
    writer = opened(mnt.path / "f", os.O_WRONLY, b"new")
    # (No curl in between: a child process that closes what it inherited publishes what was written.)
    os.setxattr(mnt.path / "f", "user.consul.flags", b"9")
    with pytest.raises(OSError):
        os.pwrite(writer, b"x", 1 << 20)
    with pytest.raises(OSError):
        os.close(writer)
    assert (curl.get("f"), curl.flags("f")) == (b"old", 9)


def test_flags_set_while_a_file_is_being_stored(counted, proxy, curl):
    proxy.fault = lambda seen: 0.4 if seen.is_write else None
    with open(counted.path / "f", "w") as file:
        file.write("text")
        file.flush()
        storing = Background(lambda: os.fsync(file.fileno()))
        time.sleep(0.1)
        os.setxattr(counted.path / "f", "user.consul.flags", b"9")
        storing.wait()
    assert (curl.get("f"), curl.flags("f")) == (b"text", 9)


def test_many_small_writes_around_an_uncertain_store(proxy, curl):
    curl.put("f", bytes(4000))
    wanted = bytearray(4000)
    with Mount(proxy.address, "timeout=1") as mount:
        writer = os.open(mount.path / "f", os.O_WRONLY)

        def write(number):
            os.pwrite(writer, b"%d" % (number % 10), number * 2)
            wanted[number * 2 : number * 2 + 1] = b"%d" % (number % 10)

        for number in range(10):
            write(number)
        proxy.fault = lambda seen: "cut"  # it lands, and nobody hears of it
        with pytest.raises(OSError):
            os.fsync(writer)
        proxy.fault = lambda seen: None
        for number in range(10, 900):
            write(number * 7 % 1990)
        os.close(writer)
    assert curl.get("f") == wanted


def test_a_part_of_a_large_key_that_was_deleted_elsewhere(mnt, curl):
    (mnt.path / "f").write_bytes(b"x" * 450_000)
    writer = os.open(mnt.path / "f", os.O_WRONLY)
    curl.delete("f")
    os.pwrite(writer, b"X", 5)
    with pytest.raises(OSError) as caught:
        os.close(writer)
    assert caught.value.errno == errno.ESTALE
    assert curl.keys() == []


def test_large_values_from_two_mounts(agent, curl):
    value = os.urandom(450_000)
    with Mount(agent.address) as one, Mount(agent.address) as other:
        (one.path / "f").write_bytes(value)
        first, second = os.open(one.path / "f", os.O_WRONLY), os.open(other.path / "f", os.O_WRONLY)
        os.pwrite(first, b"ONE", 10)
        os.pwrite(second, b"TWO", 449_000)
        os.setxattr(other.path / "f", "user.consul.flags", b"5")
        os.close(first)
        os.close(second)
    wanted = bytearray(value)
    wanted[10:13], wanted[449_000:449_003] = b"ONE", b"TWO"
    assert (curl.get("f"), curl.flags("f")) == (bytes(wanted), 5)


def test_a_reader_of_a_key_that_was_deleted_elsewhere(mnt, curl):
    curl.put("d/k", b"text")
    with open(mnt.path / "d/k", "rb") as reader:
        assert reader.read(2) == b"te"
        curl.delete("d/k")
        time.sleep(STALE)
        assert not (mnt.path / "d").exists()
        mnt.ok("mkdir d; ls -l d; rmdir d")


def test_an_exclusive_create_under_a_reader_of_a_deleted_key(mnt, curl):
    curl.put("k", b"text")
    with open(mnt.path / "k", "rb"):
        curl.delete("k")
        time.sleep(STALE)
        mnt.ok("set -C; echo new > k")
    assert curl.tree() == {"k": b"new\n"}


def test_renames_that_cross(mnt, curl):
    """a -> b and b -> a at once, again and again: nobody waits for somebody who waits for him."""
    curl.put("a", b"1")
    curl.put("d/b", b"2")

    def swap(old, new):
        for _ in range(30):
            try:
                os.rename(mnt.path / old, mnt.path / new)
            except FileNotFoundError:
                pass

    there, back = Background(lambda: swap("a", "d/b")), Background(lambda: swap("d/b", "a"))
    assert there.wait() is None
    assert back.wait() is None
    assert len(curl.tree()) in (1, 2)
    assert isinstance(curl, Curl)


@pytest.mark.parametrize("options", ["", "notify=off", "cache=ttl", "attr_timeout=0"])
def test_a_file_that_another_host_has_just_deleted_is_made_anew(agent, curl, options):
    """The kernel still has its name, and asks whether the program may write it: it may not be told that it is gone."""
    with Mount(agent.address, options) as mount:
        path = mount.path / "d" / "f"
        curl.put("d/g", b"")
        for number in range(60):
            curl.put("d/f", b"old" * (number % 3 + 1))
            until(path.exists)
            curl.put("d/f", b"changed" * (number % 2 + 1))
            if number % 4:
                time.sleep(0.005 * (number % 7))
            curl.delete("d/f")
            if number % 2:
                time.sleep(0.003 * (number % 5))
            with open(path, "ab") as file:
                file.write(b"new")
            assert curl.get("d/f").endswith(b"new"), number


def test_a_name_that_was_given_up_here_can_be_a_directory_at_once(mnt):
    mnt.ok(
        "for n in 1 2 3; do echo x > f; cat f; mv f g; mkdir f; rmdir f; mv g f; cat f; rm f; mkdir f; rmdir f; done"
    )
    mnt.ok("for n in 1 2 3; do mkdir d; echo x > d/f; cat d/f; mv d e; mkdir d; mkdir d/f; rmdir d/f d; rm -r e; done")
