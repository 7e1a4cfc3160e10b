"""What a lock belongs to: a file, by whatever descriptor it was locked, and not the name that the file once had."""

import errno
import os
from contextlib import ExitStack
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN

import pytest
from support.errors import errno_of
from support.locker import Locker, opened, waits_for_mount
from support.mount import Mount
from support.sessions import holder
from support.waiting import until
from support.watching import content

EX_NB = LOCK_EX | LOCK_NB

EPHEMERAL = "user.consul.ephemeral"

KEYS = 34
"""More than a mount waits for by blocking queries at once."""

ROUNDS = 100


@pytest.fixture(scope="module")
def mounted(agent):
    with Mount(agent.address, "lock_delay=0s") as one, Mount(agent.address, "lock_delay=0s") as other:
        yield one, other


@pytest.fixture
def mount(mounted, curl):
    return mounted[0]


@pytest.fixture
def other(mounted, curl):
    """Another mount of the same store."""
    return mounted[1]


@pytest.fixture
def path(mount, other, curl):
    curl.put("f", b"value", 7)
    until((mount.path / "f").exists)
    until((other.path / "f").exists)
    return mount.path / "f"


@pytest.fixture
def lockers(path):
    """Three processes that each have the file open as number 1."""
    with opened(path, path, path) as lockers:
        yield lockers


def rename_over(path):
    new = path.with_name("new")
    new.write_text("new")
    new.rename(path)


def make_anew(path):
    path.unlink()
    path.write_text("new")


# -- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replace", [rename_over, make_anew])
def test_the_close_of_a_replaced_file_leaves_the_lock_of_the_new_one(lockers, path, curl, replace):
    one, two, _ = lockers
    replace(path)
    for each in (one, two):
        each("open", 2, path)
    one("lockf", 2, LOCK_EX)
    one("close", 1)
    assert errno_of(two, "lockf", 2, EX_NB) == errno.EAGAIN
    assert holder(curl, "f")
    one("close", 2)
    two("lockf", 2, EX_NB)


def test_a_locked_file_that_is_replaced_stays_its_holders_and_who_waits_is_told(lockers, path, curl):
    one, two, _ = lockers
    one("flock", 1, LOCK_EX)
    two.begin_wait("flock", 1, LOCK_EX)
    rename_over(path)
    errno_of(one, "flock", 1, LOCK_UN)
    assert errno_of(two.end) == errno.ESTALE
    two("open", 2, path)
    two("flock", 2, EX_NB)
    assert two("pread", 2) == "new"
    two("flock", 2, LOCK_UN)
    assert holder(curl, "f") is None
    assert curl.get("f") == b"new"


def test_a_file_that_another_host_replaced_and_this_one_renamed_leaves_no_lock_to_its_name(
    lockers, path, mount, other, curl
):
    one, two, _ = lockers
    one("flock", 1, LOCK_EX)
    other.ok("rm f; echo other > f")
    until(lambda: content(path) == b"other\n")
    path.rename(mount.path / "g")
    path.write_text("new")
    two("open", 2, path)
    two("flock", 2, LOCK_EX)
    assert holder(curl, "f")
    one.kill()
    two("flock", 2, LOCK_UN)
    assert holder(curl, "f") is None
    assert (curl.get("f"), curl.get("g")) == (b"new", b"other\n")


def test_a_file_that_another_host_deleted_leaves_no_lock_to_the_next_of_its_name(lockers, path, other, curl):
    one, two, _ = lockers
    one("flock", 1, LOCK_EX)
    other.ok("rm f")
    until(lambda: not path.exists())
    two("open", 2, path, os.O_RDWR | os.O_CREAT)
    two("pwrite", 2, "new")
    two("fsync", 2)
    two("flock", 2, LOCK_EX)
    session = holder(curl, "f")
    assert session
    one("close", 1)
    assert (curl.get("f"), holder(curl, "f")) == (b"new", session)


def test_a_tied_file_that_was_made_anew_is_plain(agent, curl):
    curl.put("f", b"value")
    with Mount(agent.address) as mount:
        path = mount.path / "f"
        os.setxattr(path, EPHEMERAL, b"1")
        make_anew(path)
        assert errno_of(os.getxattr, path, EPHEMERAL) == errno.ENODATA
        assert holder(curl, "f") is None
    assert curl.get("f") == b"new"


def test_a_directory_that_another_host_has_made_is_no_error_for_mkdir_p(mount, other):
    assert other.sh("ls r").returncode
    mount.ok("mkdir r")
    other.ok("mkdir -p r")


# -- descriptors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["unlock", "close"])
def test_what_was_unlocked_through_another_descriptor_is_a_plain_file_again(lockers, path, curl, how):
    one, _, _ = lockers
    one("open", 2, path)
    one("lockf", 1, LOCK_EX)
    one(*(["lockf", 2, LOCK_UN] if how == "unlock" else ["close", 2]))
    until(lambda: holder(curl, "f") is None)
    one("pwrite", 1, "plain")
    one("fsync", 1)
    assert (curl.get("f"), curl.flags("f")) == (b"plain", 7)
    one("lockf", 1, LOCK_EX)
    one("pwrite", 1, "again")
    one("lockf", 1, LOCK_UN)
    assert (curl.get("f"), curl.flags("f")) == (b"again", 7)


def test_a_plain_write_by_who_once_had_the_lock_takes_it_from_nobody(lockers, path, curl):
    """Not even where the session of that time is gone."""
    one, two, three = lockers
    one("open", 2, path)
    one("lockf", 1, LOCK_EX)
    session = holder(curl, "f")
    one("lockf", 2, LOCK_UN)
    until(lambda: holder(curl, "f") is None)
    assert curl("PUT", f"session/destroy/{session}")[0] == 200
    two("flock", 1, LOCK_EX)
    session = holder(curl, "f")
    one("pwrite", 1, "plain")
    two("pwrite", 1, "+held", 5)
    two("fsync", 1)
    assert (curl.get("f"), holder(curl, "f")) == (b"plain+held", session)
    assert errno_of(three, "flock", 1, EX_NB) == errno.EWOULDBLOCK


# -- many files, many who wait -----------------------------------------------------------------------------------


def test_a_lock_goes_to_another_host_though_here_is_always_somebody_who_waits(lockers, other, curl):
    holds, waits, _ = lockers
    with Locker() as there:
        there("open", 1, other.path / "f")
        holds("flock", 1, LOCK_EX)
        there.begin_wait("flock", 1, LOCK_EX)
        for _ in range(ROUNDS):
            waits.begin_wait("flock", 1, LOCK_EX)
            holds("flock", 1, LOCK_UN)
            until(lambda waits=waits: waits.has_ended() or there.has_ended())
            if there.has_ended():
                break
            waits.end()
            holds, waits = waits, holds
        assert there.has_ended(), f"here were {ROUNDS} programs one after another"
        there.end()
        assert not waits.has_ended()
        there("flock", 1, LOCK_UN)
        waits.end()


def test_any_number_of_keys_can_be_waited_for(mount, other, curl):
    """By more than there are blocking queries, and of a name that no URL can carry."""
    names = {f"key{number}": f"key{number}" for number in range(KEYS)} | {"a//b": "a/%empty/b"}
    assert curl.txn(*({"Verb": "set", "Key": key, "Value": ""} for key in names))
    until(lambda: all((each.path / name).exists() for each in (mount, other) for name in ("key0", names["a//b"])))
    with ExitStack() as stack:
        there = stack.enter_context(Locker())
        waiting = []
        for name in names.values():
            there("open", name, other.path / name)
            there("flock", name, LOCK_EX)
            waiting.append(stack.enter_context(Locker()))
            waiting[-1]("open", 1, mount.path / name)
            waiting[-1].begin("flock", 1, LOCK_EX)
        until(lambda: all(waits_for_mount(each.pid) for each in waiting))
        assert not any(each.has_ended() for each in waiting)
        for name in reversed(names.values()):
            there("flock", name, LOCK_UN)
        for each in waiting:
            each.end()
        assert all(each.get("Session") for each in curl.json("kv/?recurse&consistent"))


# -- the option locks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locks", ["off", "local"])
def test_files_are_ephemeral_whatever_becomes_of_locks(agent, curl, locks):
    curl.put("f")
    curl.put("plain")
    with Mount(agent.address, f"locks={locks}") as mount:
        os.setxattr(mount.path / "f", EPHEMERAL, b"1")
        assert holder(curl, "f")
    assert curl.keys() == ["plain"]
    assert not any(str(mount.path) in each["Name"] for each in curl.json("session/list"))


def test_locks_that_are_switched_off_are_no_news(agent, curl):
    curl.put("f")
    with Mount(agent.address, "locks=off") as mount, Locker() as one:
        before = mount.log_text()
        one("open", 1, mount.path / "f")
        for call in ("flock", "lockf"):
            for how in (LOCK_EX, EX_NB):
                assert errno_of(one, call, 1, how) == errno.ENOLCK
        one("close", 1)
        assert mount.log_text() == before
