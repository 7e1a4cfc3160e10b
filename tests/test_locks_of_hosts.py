"""Locks between mounts, and between a mount and others that take Consul's lock of the key."""

import contextlib
import errno
import fcntl
import os
import subprocess
from fcntl import F_GETLK, F_UNLCK, F_WRLCK, LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN

import pytest
from support.acl import make_token
from support.errors import errno_of
from support.locker import Locker
from support.mount import Mount
from support.sessions import acquire, give, holder, sessions, take
from support.waiting import until

EX_NB, SH_NB = LOCK_EX | LOCK_NB, LOCK_SH | LOCK_NB

OPTIONS = "lock_ttl=10s,lock_delay=0s,timeout=20"


@pytest.fixture(scope="module")
def mounted(agent):
    with Mount(agent.address, OPTIONS) as one, Mount(agent.address, OPTIONS) as other:
        yield one, other


@pytest.fixture
def mounts(mounted, curl):
    """The module's two mounts, of a store with the key "f"."""
    curl.put("f", b"value", flags=7)
    until(lambda: all((each.path / "f").exists() for each in mounted))
    return mounted


@pytest.fixture
def lockers(mounts):
    """Two processes with the same key open as number 1, each on its own mount."""
    with Locker() as one, Locker() as other:
        one("open", 1, mounts[0].path / "f")
        other("open", 1, mounts[1].path / "f")
        yield one, other


@pytest.mark.parametrize("call", ["flock", "lockf"])
@pytest.mark.parametrize("held", [LOCK_EX, LOCK_SH])
@pytest.mark.parametrize("asked", [LOCK_EX, LOCK_SH])
def test_one_mount_at_a_time(lockers, curl, call, held, asked):
    one, other = lockers
    one(call, 1, held)
    session = holder(curl, "f")
    assert errno_of(other, call, 1, asked | LOCK_NB) == errno.EWOULDBLOCK
    other.begin_wait(call, 1, asked)
    assert holder(curl, "f") == session
    one(call, 1, LOCK_UN)
    other.end()
    assert holder(curl, "f") not in (session, None)
    assert errno_of(one, call, 1, asked | LOCK_NB) == errno.EWOULDBLOCK
    other(call, 1, LOCK_UN)
    assert (holder(curl, "f"), curl.get("f"), curl.flags("f")) == (None, b"value", 7)


def test_between_mounts_both_kinds_and_all_ranges_are_one_lock(lockers):
    one, other = lockers
    one("lockf", 1, LOCK_EX, 1, 5)
    assert errno_of(other, "lockf", 1, EX_NB, 1, 50) == errno.EAGAIN
    assert errno_of(other, "flock", 1, EX_NB) == errno.EWOULDBLOCK
    assert one("fcntl", 1, F_GETLK, F_WRLCK)[0] == F_UNLCK
    assert other("fcntl", 1, F_GETLK, F_WRLCK, 100, 1) == [F_WRLCK, 0, 0, 0], "somebody of another host, the whole file"
    one("lockf", 1, LOCK_UN)
    assert other("fcntl", 1, F_GETLK, F_WRLCK, 100, 1)[0] == F_UNLCK
    other("flock", 1, EX_NB)


def test_a_lock_that_ends_with_its_process_goes_to_the_other_mount(lockers):
    one, other = lockers
    one("flock", 1, LOCK_EX)
    other.begin_wait("flock", 1, LOCK_EX)
    one.kill()
    other.end()


def test_a_client_that_acquires_the_key_is_kept_out_and_keeps_out(mounts, lockers, curl, contender):
    one, other = lockers
    one("flock", 1, LOCK_EX)
    assert not acquire(curl, "f", contender)
    shown = os.getxattr(mounts[0].path / "f", "user.consul.session").decode()
    assert shown == holder(curl, "f")
    assert shown in {each["ID"] for each in sessions(curl, mounts[0])}
    one("flock", 1, LOCK_UN)
    take(curl, "f", contender, b"mine", 9)
    assert errno_of(one, "flock", 1, EX_NB) == errno.EWOULDBLOCK
    assert errno_of(other, "lockf", 1, SH_NB) == errno.EWOULDBLOCK
    until(lambda: os.getxattr(mounts[1].path / "f", "user.consul.session").decode() == contender)
    one.begin_wait("flock", 1, LOCK_EX)
    give(curl, "f", contender, b"mine", 9)
    one.end()
    assert one("pread", 1) == "mine"
    one("flock", 1, LOCK_UN)
    assert (curl.get("f"), curl.flags("f")) == (b"mine", 9)


@pytest.mark.parametrize("call", ["flock", "lockf"])
def test_whoever_has_the_lock_sees_what_its_last_holder_wrote(mounts, lockers, call):
    """In the locked file and in another one, by a descriptor that was open before and by a new one."""
    one, other = lockers
    beside = [each.path / "beside" for each in mounts]
    beside[0].write_text("0")
    until(lambda: beside[1].exists() and beside[1].read_text() == "0")
    other("open", 2, beside[1])
    for number in range(1, 15):
        writer, reader = (one, other) if number % 2 else (other, one)
        writes, reads = (0, 1) if number % 2 else (1, 0)
        reader("pread", 1)
        reader("read_file", beside[reads])
        writer(call, 1, LOCK_EX)
        reader.begin_wait(call, 1, LOCK_EX)
        writer("truncate", 1)
        writer("pwrite", 1, f"locked {number}")
        beside[writes].write_text(str(number))
        writer(call, 1, LOCK_UN)
        reader.end()
        assert reader("pread", 1) == f"locked {number}"
        assert reader("read_file", mounts[reads].path / "f") == f"locked {number}"
        assert reader("read_file", beside[reads]) == str(number)
        if reader is other:
            assert reader("pread", 2) == str(number)
        reader(call, 1, LOCK_UN)


def test_what_was_written_is_stored_by_the_unlock(lockers, curl):
    one, other = lockers
    one("lockf", 1, LOCK_EX, 1)
    one("pwrite", 1, "VALUE")
    assert curl.get("f") == b"value"
    one("lockf", 1, LOCK_UN, 1)
    assert (curl.get("f"), curl.flags("f")) == (b"VALUE", 7)
    other("flock", 1, EX_NB)
    assert other("pread", 1) == "VALUE"


def test_what_stands_below_a_lock_of_others_is_not_renamed(mounts, curl, contender):
    one, other = mounts
    curl.put("d/deep/f", b"value")
    until(lambda: (one.path / "d/deep/f").exists() and (other.path / "d/deep/f").exists())
    before = curl.tree()
    with open(one.path / "d/deep/f", "r+") as file:
        fcntl.flock(file, LOCK_EX)
        for mount in mounts:
            for old, new in (("d/deep/f", "g"), ("d/deep", "e"), ("d", "e")):
                assert errno_of(os.rename, mount.path / old, mount.path / new) == errno.EBUSY
        assert curl.tree() == before
    until(lambda: holder(curl, "d/deep/f") is None)
    take(curl, "d/deep/f", contender, b"value", 0)
    assert errno_of(os.rename, one.path / "d", one.path / "e") == errno.EBUSY
    give(curl, "d/deep/f", contender, b"value", 0)
    (one.path / "d").rename(one.path / "e")
    assert curl.tree() == {"f": b"value", "e/deep/f": b"value"}


def test_a_file_renamed_over_a_locked_one_is_locked_as_long(mounts, lockers, curl):
    one, other = lockers
    (mounts[0].path / "new").write_text("new")
    one("flock", 1, LOCK_EX)
    one("pwrite", 1, "value of the replaced file")
    (mounts[0].path / "new").rename(mounts[0].path / "f")
    assert curl.get("f") == b"new"
    assert errno_of(other, "flock", 1, EX_NB) == errno.EWOULDBLOCK
    one("flock", 1, LOCK_UN)
    other("flock", 1, EX_NB)
    assert curl.tree() == {"f": b"new"}


def test_a_file_that_another_host_deletes_while_it_is_waited_for(mounts, lockers, curl):
    one, other = lockers
    one("flock", 1, LOCK_EX)
    other.begin_wait("flock", 1, LOCK_EX)
    (mounts[0].path / "f").unlink()
    assert errno_of(other.end) == errno.ESTALE
    (mounts[1].path / "f").write_text("new")
    other("open", 2, mounts[1].path / "f")
    other("flock", 2, EX_NB)
    assert (curl.get("f"), bool(holder(curl, "f"))) == (b"new", True)


@pytest.mark.parametrize("tell", ["SIGTERM", "SIGINT", "unmount"])
def test_a_mount_ends_though_programs_wait(agent, mounts, curl, tell):
    with Mount(agent.address, OPTIONS) as mount, contextlib.ExitStack() as stack:
        lockers = [stack.enter_context(Locker()) for _ in range(6)]
        beyond = stack.enter_context(Locker())
        beyond("open", 1, mounts[0].path / "f")
        beyond("flock", 1, LOCK_EX)
        (mount.path / "own").touch()
        for number, each in enumerate(lockers):
            each("open", 1, mount.path / ("f" if number < 3 else "own"))
        lockers[3]("flock", 1, LOCK_EX)
        lockers[3]("pwrite", 1, "written")
        for number in (0, 1, 2, 4, 5):
            lockers[number].begin_wait("lockf" if number == 2 else "flock", 1, LOCK_EX)
        assert len(sessions(curl, mount)) == 1
        if tell == "unmount":
            # It serves on until the last of its open files is closed, and those that wait have them open.
            subprocess.run(["fusermount3", "-uz", str(mount.path)], check=True)
            lockers[3].kill()
            until(lambda: lockers[4].has_ended() or lockers[5].has_ended())
            for each in lockers:
                each.kill()
        else:
            mount.process.send_signal(2 if tell == "SIGINT" else 15)
            for number in (0, 1, 2, 4, 5):
                assert errno_of(lockers[number].end) in (errno.ENOTCONN, errno.ECONNABORTED)
        mount.process.wait(60)
        assert sessions(curl, mount) == []
        assert holder(curl, "own") is None
        assert holder(curl, "f")
        assert curl.get("own") == b"written"


def test_a_mount_has_no_session_until_it_locks_and_none_after_its_end(agent, curl):
    curl.put("f")
    with Mount(agent.address, OPTIONS) as mount:
        mount.ok("cat f; echo x > g; flock -n /dev/null true")
        assert sessions(curl, mount) == []
        mount.ok("flock f true; flock g true; flock f true")
        assert len(sessions(curl, mount)) == 1
    assert sessions(curl, mount) == []


READ = 'key_prefix "" { policy = "read" }'
SOME = READ + 'key_prefix "open/" { policy = "write" }'
SESSIONS = 'session_prefix "" { policy = "write" }'


@pytest.mark.parametrize("rules", [SOME, READ + SESSIONS])
def test_without_the_right_to_lock(guarded, admin, rules):
    admin.put("open/f", b"value")
    with (
        Mount(guarded.address, f"token={make_token(admin, rules)},timeout=20") as mount,
        Locker() as one,
        Locker() as two,
    ):
        for each in (one, two):
            each("open", 1, mount.path / "open/f", os.O_RDONLY)
        for how in (LOCK_EX, EX_NB, LOCK_SH):
            assert errno_of(one, "flock", 1, how) == errno.EACCES
        one.begin("flock", 1, LOCK_EX)
        two.begin("flock", 1, LOCK_EX)
        assert [errno_of(each.end) for each in (one, two)] == [errno.EACCES] * 2
        assert mount.ok("cat open/f") == "value"
        assert holder(admin, "open/f") is None


def test_with_the_right_to_lock_some_keys(guarded, admin):
    admin.put("open/f", b"value", flags=5)
    admin.put("closed", b"value")
    with (
        Mount(guarded.address, f"token={make_token(admin, SOME + SESSIONS)},timeout=20") as mount,
        open(mount.path / "closed") as closed,
        open(mount.path / "open/f", "r+") as file,
    ):
        assert errno_of(fcntl.flock, closed, LOCK_SH) == errno.EACCES
        fcntl.flock(file, LOCK_EX)
        assert holder(admin, "open/f")
        file.write("VALUE")
        file.flush()
        fcntl.flock(file, LOCK_UN)
    assert (admin.get("open/f"), admin.flags("open/f"), holder(admin, "open/f")) == (b"VALUE", 5, None)
