"""flock and fcntl locks on one mount: Linux's own rules, and what Consul shows of them."""

import contextlib
import errno
import fcntl
import os
import random
from fcntl import F_GETLK, F_RDLCK, F_SETLK, F_UNLCK, F_WRLCK, LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN

import pytest
from support.errors import errno_of
from support.locker import OFD_GETLK, OFD_SETLK, Locker, opened
from support.mount import Mount
from support.sessions import holder, sessions
from support.waiting import until


@pytest.fixture(scope="module")
def mounted(agent):
    with Mount(agent.address, "lock_ttl=10s,lock_delay=0s") as mount:
        yield mount


@pytest.fixture
def mount(mounted, curl):
    """The module's mount, of an empty store."""
    return mounted


@pytest.fixture
def path(mount, curl):
    """A file with a value and flags, which no test of locks changes."""
    yield placed(mount, curl, "f", b"value", 7)
    until(lambda: holder(curl, "f") is None)
    record = curl.record("f")
    if record is not None:
        assert (curl.get("f"), record["Flags"]) == (b"value", 7)


@pytest.fixture
def lockers(path):
    """Three processes that each have the file open as number 1."""
    with opened(path, path, path) as lockers:
        yield lockers


def placed(mount, curl, key, value=b"", flags=0, name=None):
    """The path of a new key, when the mount knows of it: that takes up to a second."""
    curl.put(key, value, flags)
    path = mount.path / (name or key)
    until(path.exists)
    return path


EX_NB, SH_NB = LOCK_EX | LOCK_NB, LOCK_SH | LOCK_NB

TO_END = 0
"""As the length of a range."""


def test_an_exclusive_flock_keeps_others_out(lockers, curl):
    one, two, _ = lockers
    one("flock", 1, LOCK_EX)
    assert holder(curl, "f")
    assert errno_of(two, "flock", 1, EX_NB) == errno.EWOULDBLOCK
    assert errno_of(two, "flock", 1, SH_NB) == errno.EWOULDBLOCK
    one("flock", 1, LOCK_UN)
    assert holder(curl, "f") is None, "unlocked, and Consul has it back when the call returns"
    two("flock", 1, EX_NB)


def test_a_shared_flock_is_shared(lockers):
    one, two, three = lockers
    one("flock", 1, LOCK_SH)
    two("flock", 1, SH_NB)
    assert errno_of(three, "flock", 1, EX_NB) == errno.EWOULDBLOCK
    one("flock", 1, LOCK_UN)
    assert errno_of(three, "flock", 1, EX_NB) == errno.EWOULDBLOCK
    two("flock", 1, LOCK_UN)
    three("flock", 1, EX_NB)


def test_a_flock_is_converted_both_ways(lockers, curl):
    one, two, _ = lockers
    one("flock", 1, LOCK_EX)
    two.begin_wait("flock", 1, LOCK_SH)
    one("flock", 1, LOCK_SH)
    two.end()
    session = holder(curl, "f")
    two("flock", 1, LOCK_UN)
    one("flock", 1, LOCK_EX)
    assert holder(curl, "f") == session
    assert errno_of(two, "flock", 1, SH_NB) == errno.EWOULDBLOCK


def test_an_upgrade_that_fails_loses_the_lock_as_on_any_file(lockers):
    one, two, three = lockers
    one("flock", 1, LOCK_SH)
    two("flock", 1, LOCK_SH)
    assert errno_of(one, "flock", 1, EX_NB) == errno.EWOULDBLOCK
    two("flock", 1, LOCK_UN)
    three("flock", 1, EX_NB)


def test_an_upgrade_waits_for_the_other_reader(lockers):
    one, two, three = lockers
    one("flock", 1, LOCK_SH)
    two("flock", 1, LOCK_SH)
    one.begin_wait("flock", 1, LOCK_EX)
    two("flock", 1, LOCK_UN)
    one.end()
    assert errno_of(three, "flock", 1, SH_NB) == errno.EWOULDBLOCK


def test_two_descriptors_of_one_process_exclude_each_other(path):
    with open(path) as one, open(path) as two:
        fcntl.flock(one, LOCK_EX)
        assert errno_of(fcntl.flock, two, EX_NB) == errno.EWOULDBLOCK
        fcntl.flock(one, LOCK_UN)
        fcntl.flock(two, EX_NB)


def test_a_duplicated_descriptor_has_the_same_lock(lockers):
    one, two, _ = lockers
    one("flock", 1, LOCK_EX)
    one("dup", 1, 2)
    one("flock", 2, EX_NB)
    one("close", 1)
    assert errno_of(two, "flock", 1, EX_NB) == errno.EWOULDBLOCK
    one("flock", 2, LOCK_UN)
    two("flock", 1, EX_NB)


def test_a_child_has_its_parents_flock_and_not_its_fcntl_lock(lockers, path):
    _, two, _ = lockers
    with open(path, "r+") as file, Locker(file.fileno()) as child:
        fcntl.flock(file, EX_NB)
        child("flock", 1, EX_NB)
        fcntl.lockf(file, EX_NB)
        assert errno_of(child, "lockf", 1, EX_NB) == errno.EAGAIN
        fcntl.lockf(file, LOCK_UN)
        child("lockf", 1, EX_NB)
        child.kill()
        two("lockf", 1, EX_NB)
        assert errno_of(two, "flock", 1, EX_NB) == errno.EWOULDBLOCK
    two("flock", 1, EX_NB)


@pytest.mark.parametrize("end", ["close", "exit", "kill"])
@pytest.mark.parametrize("call", ["flock", "lockf"])
def test_a_lock_ends_with_its_holder(lockers, curl, call, end):
    one, two, three = lockers
    one(call, 1, LOCK_EX)
    two.begin_wait(call, 1, LOCK_EX)
    if end == "close":
        one("close", 1)
    elif end == "exit":
        one.process.stdin.close()
    else:
        one.kill()
    two.end()
    two("close", 1)
    until(lambda: holder(curl, "f") is None)
    three(call, 1, EX_NB)


@pytest.mark.parametrize("end", ["close", "kill"])
@pytest.mark.parametrize("call", ["flock", "lockf"])
def test_one_that_does_not_wait_gets_the_lock_of_a_holder_that_has_ended(lockers, call, end):
    one, two, three = lockers
    for holding, asking in ((one, two), (two, three)):
        holding(call, 1, EX_NB)
        if end == "close":
            holding("close", 1)
        else:
            holding.kill()
        asking(call, 1, EX_NB)


def test_ranges_are_exact_between_processes(lockers):
    one, two, three = lockers
    one("lockf", 1, LOCK_EX, 10, 0)
    two("lockf", 1, LOCK_EX, 10, 10)
    three("lockf", 1, LOCK_EX, TO_END, 30)
    assert errno_of(two, "lockf", 1, EX_NB, 1, 9) == errno.EAGAIN
    assert errno_of(one, "lockf", 1, EX_NB, 1, 19) == errno.EAGAIN
    assert errno_of(one, "lockf", 1, EX_NB, 1, 1 << 40) == errno.EAGAIN
    one("lockf", 1, EX_NB, 10, 20)
    one("lockf", 1, LOCK_UN, 5, 3)
    two("lockf", 1, EX_NB, 5, 3)
    assert errno_of(two, "lockf", 1, EX_NB, 1, 2) == errno.EAGAIN
    three.begin_wait("lockf", 1, LOCK_EX, 2, 2)
    one("lockf", 1, LOCK_UN, 1, 2)
    assert not three.has_ended(0.2), "byte 3 is locked"
    two("lockf", 1, LOCK_UN, 1, 3)
    three.end()


def test_the_kernel_is_told_who_blocks(lockers):
    one, two, _ = lockers
    one("lockf", 1, LOCK_SH, 10, 5)
    assert two("fcntl", 1, F_GETLK, F_WRLCK, 0, 100) == [F_RDLCK, 5, 10, one.pid]
    assert two("fcntl", 1, F_GETLK, F_RDLCK, 0, 100)[0] == F_UNLCK
    assert two("fcntl", 1, F_GETLK, F_WRLCK, 15, TO_END)[0] == F_UNLCK
    assert one("fcntl", 1, F_GETLK, F_WRLCK, 0, TO_END)[0] == F_UNLCK
    one("lockf", 1, LOCK_EX, TO_END, 50)
    assert two("fcntl", 1, F_GETLK, F_RDLCK, 60, 1) == [F_WRLCK, 50, TO_END, one.pid]


def test_locks_of_descriptions(lockers):
    one, two, _ = lockers
    one("fcntl", 1, OFD_SETLK, F_WRLCK, 0, 10)
    assert errno_of(two, "lockf", 1, EX_NB, 1, 5) == errno.EAGAIN
    assert errno_of(one, "lockf", 1, EX_NB, 1, 5) == errno.EAGAIN, "the process' own locks are others"
    two("fcntl", 1, OFD_SETLK, F_RDLCK, 10, 10)
    assert one("fcntl", 1, OFD_GETLK, F_WRLCK, 5, 20)[:3] == [F_RDLCK, 10, 10]
    two("fcntl", 1, OFD_SETLK, F_UNLCK)
    assert one("fcntl", 1, OFD_GETLK, F_WRLCK, 5, 20)[0] == F_UNLCK
    one("dup", 1, 2)
    one("close", 1)
    assert errno_of(two, "lockf", 1, EX_NB, 1, 5) == errno.EAGAIN, "not dropped by the close of a duplicate"
    one("fcntl", 2, OFD_SETLK, F_UNLCK)
    two("lockf", 1, EX_NB, 1, 5)


def test_locks_of_a_description_end_with_it(mount, curl):
    # On a file of its own: libfuse, which answers F_GETLK from a list that it keeps, does not take such locks off it.
    path = placed(mount, curl, "described")
    with Locker() as one, Locker() as two:
        for each in (one, two):
            each("open", 1, path)
        one("fcntl", 1, OFD_SETLK, F_WRLCK)
        one("close", 1)
        two("lockf", 1, LOCK_EX)
        two("close", 1)
    until(lambda: holder(curl, "described") is None)


def test_a_deadlock_is_refused(lockers):
    one, two, three = lockers
    for number, each in enumerate(lockers):
        each("lockf", 1, LOCK_EX, 1, number)
    one.begin_wait("lockf", 1, LOCK_EX, 1, 1)
    two.begin_wait("lockf", 1, LOCK_EX, 1, 2)
    assert errno_of(three, "lockf", 1, LOCK_EX, 1, 0) == errno.EDEADLK
    three("lockf", 1, LOCK_UN)
    two.end()
    two("lockf", 1, LOCK_UN)
    one.end()


def test_a_deadlock_over_two_files_is_refused(lockers, mount, curl):
    one, two, _ = lockers
    other = placed(mount, curl, "g")
    for each in (one, two):
        each("open", 2, other)
    one("lockf", 1, LOCK_EX)
    two("lockf", 2, LOCK_EX)
    one.begin_wait("lockf", 2, LOCK_EX)
    assert errno_of(two, "lockf", 1, LOCK_EX) == errno.EDEADLK
    two("close", 2)
    one.end()


def test_the_close_of_any_descriptor_drops_the_processs_locks(lockers, path):
    one, two, _ = lockers
    one("open", 2, path)
    one("lockf", 1, LOCK_EX)
    one("flock", 1, LOCK_EX)
    one("close", 2)
    two("lockf", 1, EX_NB)
    assert errno_of(two, "flock", 1, EX_NB) == errno.EWOULDBLOCK


def test_flock_and_fcntl_do_not_see_each_other(lockers, curl):
    one, two, three = lockers
    one("flock", 1, LOCK_EX)
    two("lockf", 1, EX_NB)
    assert two("fcntl", 1, F_GETLK, F_WRLCK)[0] == F_UNLCK
    one("flock", 1, LOCK_UN)
    assert holder(curl, "f"), "the other kind needs it still"
    three("flock", 1, EX_NB)
    two("lockf", 1, LOCK_UN)
    assert errno_of(one, "flock", 1, EX_NB) == errno.EWOULDBLOCK


def test_a_read_lock_needs_a_reader_and_a_write_lock_a_writer(path):
    with open(path) as reader:
        assert errno_of(fcntl.lockf, reader, EX_NB) == errno.EBADF
        fcntl.lockf(reader, SH_NB)


class Pair:
    """The same processes with the same calls, on the mount and on a file of the kernel's own.

    :ivar calls: all that was done, for whoever reads of a difference
    """

    def __init__(self, paths, stack):
        self.paths = paths
        self.stack = stack
        self.calls = []
        self.processes = [[self.new(side) for _ in range(3)] for side in (0, 1)]
        self.files = [{} for _ in range(3)]
        for number in range(3):
            self.open(number, "a")

    def new(self, side):
        return self.stack.enter_context(Locker())

    def __call__(self, number, *call):
        self.calls.append((number, *call))
        self.compare([self.answer(side, number, call) for side in (0, 1)])

    def blocker(self, number, name, kind, *span):
        """F_GETLK. Where several locks block, each side may name any of them."""
        self.calls.append((number, "F_GETLK", name, kind, *span))
        mine, other = (self.answer(side, number, ("fcntl", name, F_GETLK, kind, *span)) for side in (0, 1))
        if mine != other and F_UNLCK not in (mine[0], other[0]):
            other = self.answer(1, number, ("fcntl", name, F_GETLK, kind, mine[1], 1))
            if mine[3] != other[3]:  # two readers of one byte
                mine, other = mine[0], other[0]
        self.compare([mine, other])

    def compare(self, answers):
        assert answers[0] == answers[1], "\n".join(map(str, [*self.calls, answers]))

    def answer(self, side, number, call):
        try:
            answer = self.processes[side][number](*call)
        except OSError as error:
            return errno.errorcode[error.errno]
        if isinstance(answer, list) and answer[3] > 0:
            answer[3] = [each.pid for each in self.processes[side]].index(answer[3])
        return answer

    def open(self, number, name):
        self.calls.append((number, "open", name))
        for side in (0, 1):
            self.processes[side][number]("open", name, self.paths[side])
        self.files[number][name] = True

    def kill(self, number):
        self.calls.append((number, "kill"))
        for side in (0, 1):
            self.processes[side][number].kill()
            self.processes[side][number] = self.new(side)
        self.files[number] = {}
        self.open(number, "a")


def any_call(choose, pair, described):
    number = choose.randrange(3)
    names = sorted(pair.files[number])
    name = choose.choice(names)
    start = choose.randrange(8)
    span = (start, choose.choice([TO_END, 1, 2, 3, 4]))
    kind = choose.choice([F_RDLCK, F_WRLCK, F_UNLCK])
    what = choose.choices(["flock", "fcntl", described, "open", "dup", "close", "kill"], [8, 12, 5, 2, 1, 2, 0.5])[0]
    if what == "flock":
        pair(number, "flock", name, choose.choice([EX_NB, SH_NB, LOCK_UN]))
    elif what == "fcntl":
        pair(number, "fcntl", name, F_SETLK, kind, *span)
    elif what == "F_GETLK":
        pair.blocker(number, name, choose.choice([F_RDLCK, F_WRLCK]), *span)
    elif what == "OFD_SETLK":
        pair(number, "fcntl", name, OFD_SETLK, kind, *span)
    elif what == "open" and len(names) < 4:
        pair.open(number, f"o{len(pair.calls)}")
    elif what == "dup" and len(names) < 4:
        new = f"d{len(pair.calls)}"
        pair(number, "dup", name, new)
        pair.files[number][new] = True
    elif what == "close" and len(names) > 1:
        pair(number, "close", name)
        del pair.files[number][name]
    elif what == "kill":
        pair.kill(number)


# Not both at once: libfuse answers F_GETLK from a list of its own, where the second's locks outlive their descriptors.
@pytest.mark.parametrize("described", ["F_GETLK", "OFD_SETLK"])
@pytest.mark.parametrize("seed", range(3))
def test_every_call_is_answered_as_on_a_file_of_the_kernels_own(mount, curl, tmp_path_factory, seed, described):
    choose = random.Random(seed)
    path = placed(mount, curl, f"random{seed}{described}")
    local = tmp_path_factory.mktemp("local") / "f"
    local.touch()
    with contextlib.ExitStack() as stack:
        pair = Pair((path, local), stack)
        for _ in range(200):
            any_call(choose, pair, described)
    until(lambda: holder(curl, path.name) is None)


def test_who_asks_for_a_lock_stores_nothing_that_its_holder_has_half_written(mount, curl):
    path = placed(mount, curl, "f", b"old")
    with open(path, "r+b", buffering=0) as one, open(path, "r+b", buffering=0) as other:
        fcntl.flock(one, LOCK_EX)
        one.truncate(0)
        assert errno_of(fcntl.flock, other, EX_NB) == errno.EWOULDBLOCK
        assert curl.get("f") == b"old"
        one.write(b"new")
        fcntl.flock(one, LOCK_UN)
        assert curl.get("f") == b"new"


def test_a_new_file_is_stored_by_its_lock(mount, curl):
    descriptor = os.open(mount.path / "new", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, LOCK_EX)
        assert curl.get("new") == b""
        assert holder(curl, "new")
        os.write(descriptor, b"text")
        fcntl.flock(descriptor, LOCK_UN)
        assert curl.get("new") == b"text"
    finally:
        os.close(descriptor)


def test_what_was_written_before_the_lock_is_stored_with_it(mount, curl):
    with open(placed(mount, curl, "f", b"old", 3), "w") as file:
        print("new", file=file, flush=True)
        fcntl.lockf(file, LOCK_EX)
        assert (curl.get("f"), curl.flags("f")) == (b"new\n", 3)


@pytest.mark.parametrize("call", [fcntl.flock, fcntl.lockf])
@pytest.mark.parametrize("how", [LOCK_EX, LOCK_SH])
def test_value_and_flags_stay(mount, curl, call, how):
    for key, value in (("empty", b""), ("binary", bytes(range(256))), ("large", os.urandom(300_000))):
        with open(placed(mount, curl, key, value, (1 << 64) - 1), "r+") as file:
            call(file, how)
            record = curl.record(key)
            assert (curl.get(key), record["Flags"]) == (value, (1 << 64) - 1)
            call(file, LOCK_UN)
        record = curl.record(key)
        assert (curl.get(key), record["Flags"], record.get("Session")) == (value, (1 << 64) - 1, None)
        assert record["LockIndex"] == 1


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("sp ace?q=1&%41#", "sp ace?q=1&%41#"),
        ("a//b", "a/%empty/b"),
        ("/lead", "%empty/lead"),
        ("x/../y", "x/%2E%2E/y"),
        ("grüße/日本", "grüße/日本"),
        ("both", "both%value"),
        ("marked/", "marked/%empty"),
        ("long/" + "n" * 300, None),
    ],
)
def test_odd_keys_can_be_locked(mount, curl, key, name):
    if key == "both":
        curl.put("both/below")
    if name is None:
        folder, _, _ = key.partition("/")
        curl.put(key)
        until((mount.path / folder).exists)
        name = f"{folder}/{os.listdir(mount.path / folder)[0]}"
    path = placed(mount, curl, key, b"value", 9, name)
    for call in (fcntl.flock, fcntl.lockf):
        with open(path, "r+") as file:
            call(file, EX_NB)
            assert holder(curl, key)
            call(file, LOCK_UN)
            assert holder(curl, key) is None
    assert (curl.get(key), curl.flags(key)) == (b"value", 9)


def test_a_value_too_large_for_a_transaction(agent, curl):
    value = os.urandom(400_000)
    assert curl("PUT", "kv/large", value)[0] == 200
    with Mount(agent.address) as mount, open(mount.path / "large", "r+") as file:
        for how in (LOCK_EX, EX_NB):
            assert errno_of(fcntl.flock, file, how) == errno.ENOLCK
        lines = [line for line in mount.log_text().splitlines() if "large" in line]
        assert len(lines) == 2, mount.log_text()
        assert errno_of(fcntl.lockf, file, EX_NB) == errno.ENOLCK
        file.truncate(10)
        fcntl.flock(file, EX_NB)
        assert curl.get("large") == value[:10]


def test_a_value_does_not_become_too_large_under_its_lock(agent, curl):
    curl.put("large", b"value", 7)
    with Mount(agent.address) as mount, Locker() as one:
        one("open", 1, mount.path / "large")
        one("flock", 1, LOCK_EX)
        assert errno_of(one, "pwrite", 1, "x", 399_999) == errno.EFBIG
        assert errno_of(one, "close", 1) == errno.EFBIG
        until(lambda: holder(curl, "large") is None)
        assert (curl.get("large"), curl.flags("large")) == (b"value", 7)


def test_a_value_that_others_made_too_large_is_unlocked_when_it_is_smaller_again(agent, curl):
    curl.put("large", b"value", 7)
    with Mount(agent.address, "timeout=1") as mount, Locker() as one:
        one("open", 1, mount.path / "large")
        one("flock", 1, LOCK_EX)
        value = os.urandom(400_000)
        assert curl("PUT", "kv/large?flags=7", value)[0] == 200
        one("flock", 1, LOCK_UN)  # it is kept in Consul, since an unlock has the value with it
        assert curl.json("kv/large")[0]["Session"]
        assert (mount.path / "large").read_bytes() == value
        assert "large" in mount.log_text()
        curl.put("large", b"small", 8)
        until(lambda: holder(curl, "large") is None)
        assert (curl.get("large"), curl.flags("large")) == (b"small", 8)


def test_a_mount_that_only_reads_locks_for_readers(agent, curl):
    curl.put("f", b"value")
    with Mount(agent.address, "ro") as mount, open(mount.path / "f") as file:
        assert errno_of(fcntl.flock, file, EX_NB) == errno.EROFS
        fcntl.flock(file, SH_NB)
        assert holder(curl, "f")
        fcntl.flock(file, LOCK_UN)
        fcntl.lockf(file, SH_NB)
        fcntl.lockf(file, LOCK_UN)
    assert (curl.get("f"), holder(curl, "f")) == (b"value", None)


def test_locks_that_are_refused(agent, curl):
    curl.put("f", b"value")
    with Mount(agent.address, "locks=off") as mount, open(mount.path / "f", "r+") as file:
        for call in (fcntl.flock, fcntl.lockf):
            for how in (LOCK_EX, LOCK_SH):
                assert errno_of(call, file, how) == errno.ENOLCK
            call(file, LOCK_UN)


def test_locks_of_the_kernel(agent, curl):
    curl.put("f", b"value")
    with Mount(agent.address, "locks=local") as mount, Locker() as one, Locker() as two:
        for each in (one, two):
            each("open", 1, mount.path / "f")
        for call in ("flock", "lockf"):
            one(call, 1, LOCK_EX)
            assert holder(curl, "f") is None
            assert errno_of(two, call, 1, EX_NB) == errno.EWOULDBLOCK
            one(call, 1, LOCK_UN)
            two(call, 1, EX_NB)
        assert sessions(curl, mount) == []


def test_a_locked_file_that_is_deleted(lockers, path, mount, curl):
    one, two, three = lockers
    one("flock", 1, LOCK_EX)
    two.begin_wait("flock", 1, LOCK_EX)
    path.unlink()
    assert errno_of(two.end) == errno.ESTALE
    assert errno_of(three, "flock", 1, EX_NB) == errno.ESTALE
    one("pwrite", 1, "own")
    assert one("pread", 1) == "ownue"
    path.write_bytes(b"new")
    three("open", 2, path)
    three("flock", 2, EX_NB)
    session = holder(curl, "f")
    assert session
    one("flock", 1, LOCK_UN)
    two("open", 2, path)
    assert errno_of(two, "flock", 2, EX_NB) == errno.EWOULDBLOCK
    for each in (one, two):
        each("close", 1)
    assert holder(curl, "f") == session, "the old file's end is none of the new one's"
    assert curl.get("f") == b"new"
    curl.put("f", b"value", flags=7)
    three("flock", 2, LOCK_UN)
