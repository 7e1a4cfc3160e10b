"""Ephemeral files: tied to the life of a mount by user.consul.ephemeral, and never lost against anybody's will."""

import errno
import os
import signal
from contextlib import contextmanager

import pytest
from support.errors import errno_of
from support.mount import SOON_LOST, Mount
from support.polling import meanwhile
from support.program import EX, NB, UN, Programs
from support.proxy import Late, Once
from support.sessions import acquire, destroy_session, holder, sessions, stored
from support.waiting import until

NAME = "user.consul.ephemeral"


def tie(path):
    os.setxattr(path, NAME, b"1")


def untie(path):
    os.setxattr(path, NAME, b"0")


def is_tied(path):
    try:
        return os.getxattr(path, NAME) == b"1"
    except OSError as error:
        assert error.errno == errno.ENODATA
        return False


# -- the attribute -----------------------------------------------------------------------------------------------


def test_the_attribute(mnt, curl):
    curl.put("f", b"value", 42)
    f = mnt.path / "f"
    assert not is_tied(f)
    assert errno_of(lambda: os.removexattr(f, NAME)) == errno.ENODATA
    for value in (b"", b"2", b"yes", b"01", b"-1"):
        assert errno_of(lambda value=value: os.setxattr(f, NAME, value)) == errno.EINVAL, value
    untie(f)
    assert sessions(curl, mnt) == []
    assert errno_of(lambda: os.setxattr(f, NAME, b"1", os.XATTR_REPLACE)) == errno.ENODATA
    os.setxattr(f, NAME, b"1\n", os.XATTR_CREATE)
    assert is_tied(f)
    assert errno_of(lambda: os.setxattr(f, NAME, b"1", os.XATTR_CREATE)) == errno.EEXIST
    os.setxattr(f, NAME, b"1", os.XATTR_REPLACE)
    assert os.listxattr(f) == ["user.consul.flags"]
    assert os.getxattr(f, "user.consul.session").decode() == holder(curl, "f")
    os.removexattr(f, NAME)
    assert stored(curl, "f") == (b"value", 42, None)
    assert not is_tied(f)
    tie(f)
    untie(f)
    assert stored(curl, "f") == (b"value", 42, None)
    os.mkdir(mnt.path / "d")
    assert errno_of(lambda: tie(mnt.path / "d")) == errno.ENOTSUP
    assert errno_of(lambda: tie(mnt.path / "none")) == errno.ENOENT


def test_a_copy_is_plain_and_the_file_stays_tied_whoever_writes(mnt, curl):
    mnt.ok(f"echo one > f; setfattr -n user.consul.flags -v 42 f; setfattr -n {NAME} -v 1 f")
    session = holder(curl, "f")
    mnt.ok("cp -a f copy; rsync -aX f synced; tar --xattrs -cf - f | tar --xattrs -xOf - > /dev/null")
    assert stored(curl, "copy") == stored(curl, "synced") == (b"one\n", 42, None)
    mnt.ok("echo two > f; echo three >> f; truncate -s 4 f; echo five > .f.tmp; mv .f.tmp f")
    assert stored(curl, "f") == (b"five\n", 42, session)
    mnt.ok("rm f; echo new > f")
    assert stored(curl, "f")[0::2] == (b"new\n", None)
    assert not is_tied(mnt.path / "f")
    mnt.stop()
    assert set(curl.keys()) == {"copy", "synced", "f"}


def test_a_file_that_is_not_stored_yet(mnt, curl):
    with Programs() as programs:
        curl.put("f", b"old", 42)
        new, old = programs(mnt), programs(mnt)
        new("f := os.open('new', O_CREAT | O_WRONLY)")
        for program, name in ((new, "new"), (old, "f")):
            program("os.write(f, b'unsaved')")
            program(f"os.setxattr({name!r}, {NAME!r}, b'1')")
            assert stored(curl, name)[0] == b"unsaved"
            program("os.write(f, b', more')")
            program("os.close(f)")
            assert stored(curl, name)[0] == b"unsaved, more"
            assert is_tied(mnt.path / name)
    mnt.stop()
    assert curl.keys() == []


def test_a_value_that_is_too_large(mnt, curl):
    """A lock changes hands with the value written twice, and is taken with it once."""
    for name, size in (("large", 450_000), ("f", 300_000)):
        (mnt.path / name).write_bytes(b"x" * size)
    assert errno_of(lambda: tie(mnt.path / "large")) == errno.ENOLCK
    untie(mnt.path / "large")
    f = mnt.path / "f"
    with Programs() as programs:
        program = programs(mnt)
        program(EX)
        assert errno_of(lambda: tie(f)) == errno.ENOLCK
        assert not is_tied(f)
        program("(os.pwrite(f, b'y', 0), os.fsync(f))")
        program(UN)
        tie(f)
        program(EX)
        assert errno_of(lambda: untie(f)) == errno.ENOLCK
        program(UN)
    assert is_tied(f)
    assert curl.get("f") == b"y" + b"x" * 299_999
    mnt.stop()
    assert curl.keys() == ["large"]


# -- the end of a mount ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["unmount", "SIGTERM"])
def test_a_mount_that_ends_takes_them_along_at_once(agent, curl, how):
    for key in ("kept", "locked", "others"):
        curl.put(key, b"value", 42)
    with Mount(agent.address) as mount, Mount(agent.address) as other:
        with Programs() as programs:
            mount.ok(f"mkdir present; echo here > present/$(hostname)\nsetfattr -n {NAME} -v 1 present/$(hostname)\n")
            for name in ("kept", "locked", "others"):
                tie(mount.path / name)
            programs(mount, "locked")(EX)
            assert len(sessions(curl, mount)) == 2
            untie(mount.path / "kept")
            os.unlink(mount.path / "others")
            (other.path / "others").write_bytes(b"another's")
            tie(other.path / "others")
            present = os.listdir(other.path / "present")
            assert present == [os.uname().nodename]
            if how == "SIGTERM":
                mount.kill(signal.SIGTERM)
        mount.stop()
        assert curl.tree() == {"kept": b"value", "present/": b"", "others": b"another's"}
        assert stored(curl, "kept") == (b"value", 42, None)
        assert [len(sessions(curl, each)) for each in (mount, other)] == [0, 1]
    assert sessions(curl, mount) == sessions(curl, other) == []
    assert curl.tree() == {"kept": b"value", "present/": b""}


def test_the_locks_and_ephemeral_files_of_a_killed_daemon(agent, curl):
    """Its locks are free and its ephemeral files gone when the servers have missed it for long enough."""
    for key in ("locked", "plain", "kept", "tied", "both"):
        curl.put(key, b"value", 42)
    with Mount(agent.address, "lock_ttl=10s,lock_delay=1s") as mount, Mount(agent.address) as other:
        with Programs() as programs, Programs() as others:
            holders = [programs(mount, name) for name in ("locked", "plain", "kept", "both")]
            for name in ("kept", "tied", "both"):
                tie(mount.path / name)
            for program in holders:
                program(EX)
            holders[0]("(os.ftruncate(f, 0), os.pwrite(f, b'saved', 0), os.fsync(f))")
            untie(mount.path / "kept")
            assert len(sessions(curl, mount)) == 2
            assert os.getxattr(other.path / "tied", NAME) == b"1"
            waiters = [others(other, name) for name in ("locked", "plain", "kept")]
            for waiter in waiters:
                waiter.begin(EX)
            mount.kill()
            assert not any(waiter.has_ended() for waiter in waiters)
        assert mount.is_dead()
        with Programs() as others:
            waiters = [others(other, name) for name in ("locked", "plain", "kept")]
            for waiter in waiters:
                waiter(EX)
            until(lambda: set(curl.keys()) == {"locked", "plain", "kept"})
            assert stored(curl, "locked")[:2] == (b"saved", 42)
            assert stored(curl, "plain")[:2] == stored(curl, "kept")[:2] == (b"value", 42)
            assert not is_tied(other.path / "kept")
            assert [len(sessions(curl, each)) for each in (mount, other)] == [0, 1]
    assert sessions(curl, mount) == sessions(curl, other) == []
    assert [stored(curl, key)[2] for key in ("locked", "plain", "kept")] == [None] * 3


def test_an_admin_destroys_the_session(agent, curl):
    for key in ("one", "other", "kept"):
        curl.put(key, b"value", 42)
    with Mount(agent.address, SOON_LOST) as mount:
        for name in ("one", "other", "kept"):
            tie(mount.path / name)
        untie(mount.path / "kept")
        destroy_session(curl, holder(curl, "one"))
        assert curl.tree() == {"kept": b"value"}
        [line] = until(lambda: mount.losses())
        assert "'one', 'other'" in line
        until(lambda: os.listdir(mount.path) == ["kept"])
        mount.ok(f"echo again > one; setfattr -n {NAME} -v 1 one")
        assert is_tied(mount.path / "one")
        assert mount.losses() == [line]
    assert curl.tree() == {"kept": b"value"}
    assert sessions(curl, mount) == []


# -- beside locks ------------------------------------------------------------------------------------------------


@contextmanager
def contending(curl, contender):
    """Somebody tries to take the lock all the time, and never gets it."""
    taken = []

    def contend():
        if acquire(curl, "f", contender):
            taken.append(stored(curl, "f"))

    with meanwhile(contend):
        yield
    assert taken == []


def test_a_locked_file_is_tied_and_untied_and_free_at_no_time(agent, curl, contender):
    curl.put("f", b"value", 42)
    with Mount(agent.address, SOON_LOST) as mount, Programs() as programs:
        program = programs(mount)
        program(EX)
        locked, f = holder(curl, "f"), mount.path / "f"
        with contending(curl, contender):
            for number in range(20):
                tie(f)
                assert is_tied(f)
                program(f"(os.pwrite(f, b'%05d' % {number}, 0), os.fsync(f))")
                assert holder(curl, "f") not in (locked, contender, None)
                untie(f)
                assert not is_tied(f)
                assert stored(curl, "f") == (b"%05d" % number, 42, locked)
        assert mount.losses() == []


def test_a_tied_file_is_locked_and_unlocked(agent, curl):
    curl.put("f", b"value", 42)
    with Mount(agent.address, SOON_LOST) as mount, Programs() as programs:
        program, f = programs(mount), mount.path / "f"
        program(EX)
        tie(f)
        program(UN)
        assert is_tied(f)
        program(NB)
        untie(f)
        assert len(sessions(curl, mount)) == 2
        program(UN)
        assert stored(curl, "f") == (b"value", 42, None)
        assert mount.losses() == []
    assert stored(curl, "f") == (b"value", 42, None)
    assert sessions(curl, mount) == []


def test_what_other_mounts_may_do(agent, curl):
    curl.put("tied", b"value", 42)
    curl.put("locked", b"value", 42)
    with Mount(agent.address) as one, Mount(agent.address) as other, Programs() as programs:
        tie(one.path / "tied")
        here, there, elsewhere = programs(one, "tied"), programs(other, "tied"), programs(other, "locked")
        assert is_tied(other.path / "tied")
        assert errno_of(there, NB) == errno.EWOULDBLOCK
        here(NB)
        here(UN)
        assert errno_of(there, NB) == errno.EWOULDBLOCK
        for call in (tie, untie, lambda path: os.removexattr(path, NAME)):
            assert errno_of(lambda call=call: call(other.path / "tied")) == errno.EBUSY
        elsewhere(EX)
        assert not is_tied(one.path / "locked")
        assert errno_of(lambda: tie(one.path / "locked")) == errno.EBUSY
        untie(one.path / "locked")
        elsewhere(UN)
        there.begin(EX)
        (other.path / "tied").write_bytes(b"written")
        assert stored(curl, "tied")[:2] == (b"written", 42)
        assert not there.has_ended(1)
        untie(one.path / "tied")
        there.end()
        assert errno_of(lambda: tie(one.path / "tied")) == errno.EBUSY
        there(UN)
        tie(other.path / "tied")
        assert len(sessions(curl, one)) == len(sessions(curl, other)) == 2
    assert curl.tree() == {"locked": b"value"}
    assert sessions(curl, one) == sessions(curl, other) == []


# -- answers that never come, or late --------------------------------------------------------------------------


@pytest.fixture
def proxied(proxied, curl):
    """With a file."""
    curl.put("f", b"value", 42)
    return proxied


REQUESTS = {
    "session": lambda seen: seen.makes_session,
    "tie": lambda seen: "lock" in seen.verbs,
    "untie": lambda seen: "unlock" in seen.verbs,
}


@pytest.mark.parametrize("locked", [False, True], ids=["free", "locked"])
@pytest.mark.parametrize("how", ["cut", "drop", "late"])
@pytest.mark.parametrize("what", REQUESTS)
def test_a_tie_whose_answers_are_lost(proxied, proxy, curl, what, how, locked):
    f = proxied.path / "f"
    with Programs() as programs:
        program = programs(proxied)
        if locked:
            program(EX)
        fits = REQUESTS[what]
        proxy.fault = fault = Late(fits, 2.5) if how == "late" else Once(fits, how)
        tie(f)
        assert is_tied(f)
        untie(f)
        assert not is_tied(f)
        assert fault.done
        if how == "late":
            fault.land()
            assert not is_tied(f)
        if locked:
            program("(os.pwrite(f, b'VALUE', 0), os.fsync(f))")
            program(UN)
        assert stored(curl, "f") == (b"VALUE" if locked else b"value", 42, None)
        # One that is made late ends by its TTL.
        assert len({each["Name"] for each in sessions(curl, proxied)}) == 1 + locked
        assert proxied.losses() == []
    proxied.stop()
    assert stored(curl, "f") == (b"VALUE" if locked else b"value", 42, None)
    assert sessions(curl, proxied) == []


def swallowed(proxy, fits, call, seconds=3):
    """A call that fails, since all that it sends comes to Consul later. Returns what waits until it has."""
    proxy.fault = late = Late(fits, seconds, most=100)
    assert errno_of(call) in (errno.ETIMEDOUT, errno.EAGAIN)
    proxy.fault = lambda seen: None
    return late.land


def test_a_tie_that_failed_deletes_nothing(proxied, proxy, curl):
    f = proxied.path / "f"
    land = swallowed(proxy, REQUESTS["tie"], lambda: tie(f))
    land()
    proxied.stop()
    assert stored(curl, "f") == (b"value", 42, None)
    assert sessions(curl, proxied) == []


def test_a_late_tie_does_not_undo_an_untie(proxied, proxy, curl):
    f = proxied.path / "f"
    land = swallowed(proxy, REQUESTS["tie"], lambda: tie(f))
    untie(f)
    land()
    assert not is_tied(f)
    proxied.stop()
    assert stored(curl, "f") == (b"value", 42, None)


def test_a_late_untie_does_not_undo_a_tie(proxied, proxy, curl):
    f = proxied.path / "f"
    tie(f)
    land = swallowed(proxy, REQUESTS["untie"], lambda: untie(f))
    tie(f)
    land()
    assert is_tied(f)
    proxied.stop()
    assert curl.keys() == []


@pytest.mark.parametrize("first", [tie, untie])
def test_a_lock_survives_a_late_change_of_its_session(proxied, proxy, curl, first):
    f = proxied.path / "f"
    with Programs() as programs:
        program = programs(proxied)
        program(EX)
        tie(f)
        if first is tie:
            untie(f)
        land = swallowed(proxy, REQUESTS["untie"], lambda: first(f))
        land()
        program("(os.pwrite(f, b'VALUE', 0), os.fsync(f))")
        (tie if first is untie else untie)(f)
        program("(os.pwrite(f, b'Value', 0), os.fsync(f))")
        untie(f)
        program(UN)
        assert proxied.losses() == []
        assert stored(curl, "f") == (b"Value", 42, None)
