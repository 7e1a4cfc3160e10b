"""Waiting for a lock: signals, a slow Consul, and a thousand who wait at once."""

import contextlib
import errno
import os
import signal
import subprocess
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN

import pytest
from support.agent import die_with_parent
from support.errors import errno_of
from support.locker import Locker, opened, waits_for_mount
from support.mount import Mount
from support.sessions import holder
from support.waiting import until

EX_NB = LOCK_EX | LOCK_NB

WAITERS = 1000


@pytest.fixture
def path(mnt, curl):
    curl.put("f", b"value")
    return mnt.path / "f"


@pytest.fixture
def lockers(path):
    """Four processes that have the file open as number 1; the first has locked it."""
    with opened(path, path, path, path) as lockers:
        lockers[0]("flock", 1, LOCK_EX)
        yield lockers


# -- signals ---------------------------------------------------------------------------------------------


def test_flock_waits_no_longer_than_it_is_told(lockers, mnt, curl):
    assert mnt.sh("flock -w 0.5 f true").returncode == 1
    assert mnt.sh("flock -n f true").returncode == 1
    lockers[0]("flock", 1, LOCK_UN)
    mnt.ok("flock -w 30 f true")
    assert holder(curl, "f") is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
@pytest.mark.parametrize("call", ["flock", "lockf"])
def test_a_signal_ends_a_waiter_and_the_others_get_their_turn(lockers, curl, call, number):
    one, two, three, four = lockers
    one(call, 1, LOCK_EX)
    for each in (two, three, four):
        each.begin_wait(call, 1, LOCK_EX)
    two.kill(number)
    assert not three.has_ended(0.1)
    one("close", 1)
    three.end()
    assert not four.has_ended(0.1)
    three(call, 1, LOCK_UN)
    four.end()
    four(call, 1, LOCK_UN)
    assert holder(curl, "f") is None


def test_a_handler_that_raises_ends_the_wait_and_one_that_does_not_goes_on(lockers):
    one, two, three, _ = lockers
    two("alarm", 0.3)
    two.begin("flock", 1, LOCK_EX)
    assert errno_of(two.end) == errno.EINTR
    three("alarm", 0.3, False)
    three.begin_wait("flock", 1, LOCK_EX)
    assert not three.has_ended(0.6)
    assert errno_of(two, "flock", 1, EX_NB) == errno.EWOULDBLOCK
    one("flock", 1, LOCK_UN)
    three.end()
    assert errno_of(two, "flock", 1, EX_NB) == errno.EWOULDBLOCK


def test_what_does_not_end_a_program_does_not_end_its_wait(lockers):
    one, two, *_ = lockers
    two.begin_wait("flock", 1, LOCK_EX)
    for number in (signal.SIGCHLD, signal.SIGWINCH, signal.SIGSTOP, signal.SIGCONT):
        two.process.send_signal(number)
        assert not two.has_ended(0.2)
    one("flock", 1, LOCK_UN)
    two.end()


def test_an_upgrade_that_is_interrupted_has_lost_the_lock(lockers):
    """As flock(2) says: a conversion removes the lock that there was first."""
    one, two, three, _ = lockers
    one("flock", 1, LOCK_SH)
    two("flock", 1, LOCK_SH)
    two("alarm", 0.3)
    two.begin("flock", 1, LOCK_EX)
    assert errno_of(two.end) == errno.EINTR
    one("flock", 1, LOCK_UN)
    three("flock", 1, EX_NB)


def test_a_killed_holder_whose_descriptor_another_has_keeps_no_fcntl_lock(counted, proxy, curl):
    """Also where what it wrote is stored slowly, and it is killed in the middle of that."""
    curl.put("f", b"value")
    with open(counted.path / "f", "r+") as file, Locker(file.fileno()) as one, Locker() as two:
        two("open", 1, counted.path / "f")
        one("lockf", 1, LOCK_EX)
        one("pwrite", 1, "VALUE")
        proxy.fault = lambda seen: 1.0 if seen.is_write else None
        one.kill()
        proxy.fault = lambda seen: None
        two("lockf", 1, LOCK_EX)


# -- a slow Consul ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["flock", "lockf"])
def test_an_unlock_returns_when_consul_has_the_lock_back(counted, proxy, curl, call):
    curl.put("f", b"value")
    with Locker() as one:
        one("open", 1, counted.path / "f")
        one(call, 1, LOCK_EX)
        proxy.fault = lambda seen: 0.2 if seen.is_write else None
        one(call, 1, LOCK_UN)
        assert holder(curl, "f") is None


def test_one_that_does_not_wait_bears_with_a_holder_that_is_gone(counted, proxy, curl):
    curl.put("f", b"value")
    with Locker() as one, Locker() as two, Locker() as three:
        for each in (one, two, three):
            each("open", 1, counted.path / "f")
        one("flock", 1, LOCK_EX)
        one("pwrite", 1, "VALUE")
        # What its close could not store is stored when the kernel tells that it was the last: later, and slowly.
        answers = iter([(403, b"Permission denied")])
        proxy.fault = lambda seen: next(answers, 0.2) if seen.is_write else None
        assert errno_of(one, "close", 1) == errno.EACCES
        two("flock", 1, EX_NB)
        assert curl.get("f") == b"VALUE"
        assert errno_of(three, "flock", 1, EX_NB) == errno.EWOULDBLOCK


def test_one_that_does_not_wait_bears_with_a_close_that_the_kernel_holds_back(counted, proxy, curl):
    """Of what it tells of last closes no more than twelve are under way: the next waits for the slowest of them."""
    slow = [f"slow{number}" for number in range(13)]
    for key in ["f", *slow]:
        curl.put(key, b"value")
    with Locker() as many, Locker() as one, Locker() as two:
        for number, key in enumerate(slow):
            many("open", number, counted.path / key)
            many("flock", number, LOCK_EX)
        for each in (one, two):
            each("open", 1, counted.path / "f")
        one("flock", 1, LOCK_EX)
        proxy.fault = lambda seen: 0.3 if b'"unlock","Key":"slow' in seen.body else None
        many.kill()
        one.kill()
        two("flock", 1, EX_NB)


# -- many ------------------------------------------------------------------------------------------------


def test_two_hundred_one_after_another(mnt, curl):
    curl.put("f", b"value", flags=4)
    mnt.ok("for n in $(seq 200); do flock -n f true || exit 1; done")
    assert (curl.get("f"), curl.flags("f"), holder(curl, "f")) == (b"value", 4, None)


WORK = 'ls d >/dev/null && cat d/k1 d/k2 >/dev/null && echo new > d/k3 && test "$(cat d/k3)" = new'


@contextlib.contextmanager
def crowd(mount, script):
    """A thousand processes that run a script beside each other: a group, ended on exit."""
    group = subprocess.Popen(
        # A signal that the shell gets, as where the test is killed, goes to all of them.
        ["bash", "-c", f"trap 'trap - TERM; kill 0' TERM; for n in $(seq {WAITERS}); do {script} & done; wait"],
        cwd=mount.path,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    try:
        yield group
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group.pid, signal.SIGKILL)
        group.wait()


def waiting(process):
    """How many children of a process wait for an answer of a mount."""
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    return sum(waits_for_mount(child) for child in children)


def test_a_thousand_who_wait_stop_nobody_and_all_get_their_turn(mnt, curl, tmp_path):
    for name in ("k1", "k2", "k3"):
        curl.put(f"d/{name}", b"text")
    curl.put("lock", b"value", flags=3)
    counter = tmp_path / "counter"
    counter.write_text("0\n")
    # The counter is on another file system: whether two had the lock at once is what it is to tell.
    count = f"flock lock sh -c 'read n < {counter}; echo $((n + 1)) > {counter}'"
    with Locker() as first, Locker() as one, contextlib.ExitStack() as stack:
        for each in (first, one):
            each("open", 1, mnt.path / "lock")
        first("flock", 1, LOCK_EX)
        group = stack.enter_context(crowd(mnt, count))
        until(lambda: waiting(group) == WAITERS)
        for _ in range(10):
            mnt.ok(WORK)
        one.begin_wait("flock", 1, LOCK_EX)
        one.kill(signal.SIGINT)
        assert waiting(group) == WAITERS
        assert counter.read_text() == "0\n"
        first("flock", 1, LOCK_UN)
        group.wait(90)
    assert counter.read_text() == f"{WAITERS}\n"
    until(lambda: holder(curl, "lock") is None)
    mnt.ok("flock -n lock true")
    assert (curl.get("lock"), curl.flags("lock")) == (b"value", 3)


def test_the_threads_that_served_a_crowd_end_with_it(agent, curl):
    """libfuse ends those that are idle, and each takes with it what Python knows of it."""
    curl.put("f", b"text")
    with Mount(agent.address) as mount:
        for _ in range(3):
            with Locker() as holder:
                holder("open", 1, mount.path / "f")
                holder("flock", 1, LOCK_EX)
                crowd = [subprocess.Popen(["flock", "f", "true"], cwd=mount.path) for _ in range(150)]
                until(lambda: threads_of(mount) >= 150)
            assert [each.wait(60) for each in crowd] == [0] * 150
            until(lambda: threads_of(mount) < 60)
            assert mount.ok("cat f") == "text"
    assert (mount.process.returncode, mount.log_text()) == (0, "")


def threads_of(mount):
    return len(os.listdir(f"/proc/{mount.process.pid}/task"))
