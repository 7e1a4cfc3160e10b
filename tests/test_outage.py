"""Consul away, slow, or silent: every operation ends in time with the right errno, and nothing is lost."""

import errno
import os
import subprocess
import threading
import time

import pytest
from support.agent import Agent
from support.curl import Curl
from support.errors import errno_of
from support.mount import Mount
from support.proxy import Once, Proxy


@pytest.fixture
def own():
    """An agent of the test's own, which keeps its data while it is stopped."""
    with Agent() as agent:
        yield agent


def test_consul_stopped_and_back():
    with Agent(keeps_data=True) as own, Mount(own.address, "timeout=2") as mount:
        curl = Curl(own.url)
        curl.put("f", b"text")
        mount.ok("cat f; echo kept > kept")
        writer = open(mount.path / "g", "wb")
        writer.write(b"unsaved")
        writer.flush()
        own.stop()
        time.sleep(1.2)
        for call in (
            lambda: os.stat(mount.path / "f"),
            lambda: os.listdir(mount.path),
            lambda: (mount.path / "h").write_bytes(b"x"),
            lambda: os.mkdir(mount.path / "d"),
            lambda: os.rename(mount.path / "f", mount.path / "i"),
            lambda: os.setxattr(mount.path / "f", "user.consul.flags", b"1"),
            lambda: os.fsync(writer.fileno()),
        ):
            assert errno_of(call) == errno.EHOSTDOWN
        own.start()
        assert mount.ok("cat f kept; echo new > h; cat h") == "textkept\nnew\n"
        writer.close()
        assert curl.tree() == {"f": b"text", "kept": b"kept\n", "g": b"unsaved", "h": b"new\n"}


def test_consul_hangs(own):
    with Mount(own.address, "timeout=2") as mount:
        curl = Curl(own.url)
        curl.put("f", b"text")
        own.freeze()
        try:
            assert errno_of(lambda: os.stat(mount.path / "f")) == errno.ETIMEDOUT
            assert errno_of(lambda: os.listdir(mount.path)) == errno.ETIMEDOUT
        finally:
            own.resume()
        assert mount.ok("cat f") == "text"


def test_no_leader(own):
    with Proxy(own.port) as proxy, Mount(proxy.address, "timeout=1") as mount:
        proxy.fault = lambda seen: (500, b"No cluster leader")
        assert errno_of(lambda: os.stat(mount.path / "f")) == errno.EIO
        assert errno_of(lambda: (mount.path / "f").write_bytes(b"x")) == errno.EIO
        proxy.fault = lambda seen: None
        mount.ok("echo x > f")
        assert Curl(own.url).tree() == {"f": b"x\n"}


def test_a_leader_that_comes_back_in_time(own):
    with Proxy(own.port) as proxy, Mount(proxy.address, "timeout=20") as mount:
        proxy.fault = lambda seen: (500, b"No cluster leader")
        back = threading.Timer(1, lambda: setattr(proxy, "fault", lambda seen: None))
        back.start()
        mount.ok("echo x > f; cat f")
        assert Curl(own.url).tree() == {"f": b"x\n"}


@pytest.mark.parametrize("fault", ["cut", "drop", (500, b"rpc error: leadership lost while committing log")])
@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("echo new > f", {"f": b"new\n", "log": b"one\n"}),
        ("echo two >> log", {"f": b"old", "log": b"one\ntwo\n"}),
        ("echo new > g", {"f": b"old", "log": b"one\n", "g": b"new\n"}),
        (": > g", {"f": b"old", "log": b"one\n", "g": b""}),
        ("mv f g", {"g": b"old", "log": b"one\n"}),
        ("rm f", {"log": b"one\n"}),
        ("mkdir d", {"f": b"old", "log": b"one\n", "d/": b""}),
        ("truncate -s 1 f", {"f": b"o", "log": b"one\n"}),
    ],
)
def test_an_answer_that_never_comes(counted, proxy, curl, script, wanted, fault):
    curl.put("f", b"old")
    curl.put("log", b"one\n")
    counted.ok("ls -l")
    proxy.fault = Once(lambda seen: seen.is_write, fault)
    counted.ok(script)
    assert proxy.fault.done
    time.sleep(0.2)
    assert curl.tree() == wanted


def test_an_append_whose_answer_is_lost_is_not_repeated_behind_anothers(counted, proxy, curl):
    curl.put("log", b"one\n")
    counted.ok("cat log")

    def fault(seen):
        if seen.is_write:
            proxy.fault = lambda seen: None
            status, _ = curl("PUT", "txn", seen.body)
            assert status == 200
            curl.put("log", curl.get("log") + b"other\n")
            return "drop"
        return None

    proxy.fault = fault
    counted.ok("echo two >> log")
    assert curl.get("log") == b"one\ntwo\nother\n"


def test_an_uncertain_exclusive_create_fails(counted, proxy, curl):
    proxy.fault = Once(lambda seen: seen.is_write, "cut")
    assert errno_of(lambda: os.open(counted.path / "lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY)) == errno.EIO


def test_a_large_value_whose_answer_is_lost(counted, proxy, curl):
    value = os.urandom(500_000)
    proxy.fault = Once(lambda seen: seen.is_write, "cut")
    (counted.path / "f").write_bytes(value)
    assert curl.get("f") == value
    proxy.fault = Once(lambda seen: seen.is_write, "cut")
    (counted.path / "f").rename(counted.path / "g")
    time.sleep(0.2)
    assert curl.get("g") == value
    assert curl.keys() == ["g"]


def test_a_directory_rename_that_fails_half_way_loses_nothing(counted, proxy, curl):
    for number in range(100):
        curl.put(f"d/k{number:03}", b"%d" % number)
    writes = iter(range(1000))
    proxy.fault = lambda seen: (500, b"broken") if seen.is_write and next(writes) >= 2 else None
    done = subprocess.run(["mv", "d", "e"], cwd=counted.path, capture_output=True, timeout=60)
    assert done.returncode != 0
    proxy.fault = lambda seen: None
    values = sorted(curl.tree().values(), key=int)
    assert values == [b"%d" % number for number in range(100)]
    assert "stopped after" in counted.log_text()


def test_acknowledged_writes_survive_outages(own):
    """A writer that runs through outages: each write that was acknowledged is there at the end."""
    with Proxy(own.port) as proxy, Mount(proxy.address, "timeout=1") as mount:
        acknowledged, stop = {}, threading.Event()

        def write():
            number = 0
            while not stop.is_set():
                try:
                    (mount.path / f"k{number % 10}").write_bytes(b"%d" % number)
                    acknowledged[f"k{number % 10}"] = number
                except OSError:
                    pass
                number += 1

        writer = threading.Thread(target=write)
        writer.start()
        for _ in range(6):
            time.sleep(0.4)
            proxy.fault = lambda seen: (500, b"No cluster leader")
            time.sleep(0.4)
            proxy.fault = lambda seen: "cut"
            time.sleep(0.3)
            proxy.fault = lambda seen: None
        stop.set()
        writer.join(30)
        stored = Curl(own.url).tree()
    assert len(acknowledged) == 10
    for key, number in acknowledged.items():
        assert int(stored[key]) >= number
