"""Programs of all kinds and another host on the same keys at once: everything goes on, and all agree in the end.

A notice to the kernel waits for the READs and WRITEs of its file, and an operation that waited for a notice could wait
for itself. That shows within moments of contention or not at all: each round of these tests is hundreds of changes and
notices to files that are being read, written and locked.
"""

import http.client
import os
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import pytest
from support.child import Child
from support.mount import Mount
from support.program import Program
from support.waiting import until

KEYS = [f"d/k{number}" for number in range(4)]

WORK = """
import fcntl, os, random, select, sys

kind, *paths = sys.argv[1:]
kept = {path: os.open(path, os.O_RDWR) for path in paths}

def read(path):
    os.pread(kept[path], 1 << 20, 0)
    open(path, "rb").read()

def stat(path):
    os.stat(path), os.fstat(kept[path]), os.listdir(os.path.dirname(path))

def write(path):
    with open(path, "wb") as file:
        file.write(b"%d" % random.getrandbits(64) * random.randrange(1, 500))

def append(path):
    with open(path, "ab") as file:
        file.write(b"more")
    if os.stat(path).st_size > 100_000:
        os.truncate(path, 10)

def lock(path):
    try:
        fcntl.flock(kept[path], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    os.pread(kept[path], 100, 0)
    fcntl.flock(kept[path], fcntl.LOCK_UN)

print(flush=True)
rounds = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    path = random.choice(paths)
    try:
        globals()[kind](path)
    except (FileNotFoundError, InterruptedError):
        pass
    except OSError as error:
        # ESTALE: deleted by another host while it was written. EAGAIN, ETIMEDOUT: others were faster, each time.
        if error.errno not in (11, 110, 116):
            raise
    rounds += 1
print(rounds, flush=True)
"""


class Worker(Child):
    """Does one kind of thing to files, until it is asked how often it did."""

    def __init__(self, kind, paths):
        super().__init__("-S", "-E", "-c", WORK, kind, *map(str, paths))
        self.hear()

    def rounds(self):
        self.say("")
        return int(self.hear())


@contextmanager
def another_host(port, keys):
    """Writes, deletes and makes the keys, as fast as Consul takes it."""
    stop, written = threading.Event(), []

    def run():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while not stop.is_set():
            for key in keys:
                for method in ("PUT", "PUT", "DELETE", "PUT"):
                    body = os.urandom(len(written) % 300) if method == "PUT" else None
                    connection.request(method, f"/v1/kv/{key}", body)
                    connection.getresponse().read()
                    written.append(key)
            time.sleep(0.01)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield written
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("options", "seconds"), [("", 60), ("notify=off", 6)])
def test_everybody_at_the_same_keys(agent, curl, options, seconds):
    """Sixteen programs of two mounts, and another host."""
    for key in KEYS:
        curl.put(key, b"start")
    options = f"timeout=20,virtual=hidden,lock_ttl=10s,lock_delay=0s,{options}".rstrip(",")
    with Mount(agent.address, options) as one, Mount(agent.address, options) as other, ExitStack() as ends:
        kinds = ["read", "stat", "write", "append", "lock", "read", "stat", "write"]
        workers = [
            ends.enter_context(Worker(kind, [each.path / key for key in KEYS]))
            for each in (one, other)
            for kind in kinds
        ]
        with another_host(agent.port, KEYS) as written:
            time.sleep(seconds)
        rounds = [each.rounds() for each in workers]
        assert all(rounds), list(zip(kinds * 2, rounds))
        assert len(written) > 50
        for key in KEYS:
            curl.put(key, b"last of " + key.encode())
        for each in (one, other):
            for key in KEYS:
                wanted = b"last of " + key.encode()
                until(lambda: content(each.path / key) == wanted)  # noqa: B023 - called here
                assert os.stat(each.path / key).st_size == len(wanted)
            each.ok("echo here > d/here; flock d/here cat d/here; rm d/here; ls -l d")
            assert "Traceback" not in each.log_text()
    assert curl.tree() == {key: b"last of " + key.encode() for key in KEYS}


def content(path):
    with suppress(FileNotFoundError):
        return path.read_bytes()


class Gate:
    """A fault that holds the first request that fits back until it is opened.

    :ivar held: what it holds
    """

    def __init__(self, fits):
        self.fits, self.opened, self.held = fits, threading.Event(), []

    def __call__(self, seen):
        if self.fits(seen) and not self.held:
            self.held.append(seen)
            self.opened.wait(100)


@pytest.fixture
def held_back(proxy):
    """Makes gates, which are open when the test ends, whatever became of it."""
    with ExitStack() as stack:

        def hold(fits):
            proxy.fault = gate = Gate(fits)
            stack.callback(gate.opened.set)
            return gate

        yield hold


def others_are_answered(mount, curl):
    """Programs go on with all else, and see what another host does, while one file is stuck.

    Who asks for the size of that very file (`stat`, `ls -l`) waits in the kernel for the page that is being read.
    """
    for number in range(5):
        curl.put("d/f", b"changed %d" % number)
        curl.put("d/g", b"changed %d" % number)
    assert mount.ok("ls d; cat e/h") == "f\ng\nbeside"
    mount.ok("stat d/g d e; ls -l e; echo new > e/new; rm e/new")
    until(lambda: mount.ok("cat d/g") == "changed 4")


@pytest.fixture
def slow(proxy, curl):
    for key, value in {"d/f": b"first", "d/g": b"first", "e/h": b"beside"}.items():
        curl.put(key, value)
    with Mount(proxy.address, "timeout=60,virtual=hidden,lock_ttl=10s,lock_delay=0s") as mount:
        assert mount.ok("cat d/f d/g e/h; ls d e") == "firstfirstbeside" + "d:\nf\ng\n\ne:\nh\n"
        until(lambda: sum(each.is_watch and "index=1&" not in each.path for each in proxy.requests) > 2)
        yield mount


def test_a_slow_read_blocks_nobody_else(slow, curl, held_back):
    """A READ that asks Consul, as one does after a lock was taken: the kernel cannot forget its pages until it ends."""
    with Program(slow.path) as reader:
        reader("f := os.open('d/f', O_RDWR)")
        reader("h := os.open('e/h', O_RDWR)")
        reader("(m := __import__('mmap').mmap(f, 5, 1, 1))[:]")
        reader("fcntl.flock(h, LOCK_EX)")  # in another directory: its watch tells nothing of this one's files
        gate = held_back(lambda seen: "d/f" in f"{seen.path} {seen.body}" and not seen.is_watch)
        reader.begin("m[:]")  # a page of the map: READ comes without a question about the size
        until(lambda: gate.held)
        assert not reader.has_ended(0.2)
        others_are_answered(slow, curl)
        assert not reader.has_ended(0)
        gate.opened.set()
        assert reader.end() in [b"first", *(b"changed %d" % number for number in range(5)), b"chang"]
    until(lambda: (slow.path / "d/f").read_bytes() == b"changed 4")


def test_a_slow_store_blocks_nobody_else(slow, curl, held_back):
    with Program(slow.path) as writer:
        writer("f := os.open('d/f', O_WRONLY | O_APPEND)")
        writer("os.write(f, b' and more')")
        gate = held_back(lambda seen: seen.is_write and "d/f" in f"{seen.path} {seen.body}")
        writer.begin("os.close(f)")
        until(lambda: gate.held)
        others_are_answered(slow, curl)
        assert not writer.has_ended(0)
        gate.opened.set()
        writer.end()
    assert curl.get("d/f") == b"changed 4 and more"
    until(lambda: (slow.path / "d/f").read_bytes() == b"changed 4 and more")
