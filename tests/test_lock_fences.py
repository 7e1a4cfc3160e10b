"""Whoever has a lock sees what its last holder wrote, and whoever lost it stores nothing, by whatever way."""

import errno
import fcntl
import json
import os
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN

import pytest
from support.errors import errno_of
from support.locker import Locker, opened
from support.mount import Mount
from support.proxy import Late, Once, Proxy
from support.sessions import holder
from support.waiting import until

EX_NB = LOCK_EX | LOCK_NB

EPHEMERAL = "user.consul.ephemeral"

UNHURRIED = "lock_ttl=120s,lock_delay=0s"
"""A mount that does not soon hear by itself that its session was lost."""

LARGE = 300_000


@pytest.fixture(scope="module")
def mounted(agent):
    with Mount(agent.address, UNHURRIED) as one, Mount(agent.address, UNHURRIED) as other:
        yield one, other


@pytest.fixture
def mounts(mounted, curl):
    """The module's two mounts, of a store with the key "f"."""
    curl.put("f", b"first.", 7)
    until(lambda: all((each.path / "f").exists() for each in mounted))
    return mounted


@pytest.fixture
def lockers(mounts):
    """Two processes of the first mount, and one of the other, with the file open as number 1."""
    one, other = (mount.path / "f" for mount in mounts)
    with opened(one, one, other) as lockers:
        yield lockers


def end_session(curl, key):
    """As an admin does, of the session that holds a key."""
    assert curl("PUT", f"session/destroy/{holder(curl, key)}")[0] == 200


def store(locker, text):
    locker("pwrite", 1, text)
    locker("fsync", 1)


# -- what is read under a lock -----------------------------------------------------------------------------------


def test_a_lock_guards_other_files_too_and_descriptors_that_were_open_before(lockers, mounts, curl):
    one, _, other = lockers
    for key in ("data", "size"):
        curl.put(key, b"old")
    until(lambda: all((each.path / key).exists() for each in mounts for key in ("data", "size")))
    one("open", 2, mounts[0].path / "data")
    assert one("pread", 2) == "old"
    with open(mounts[0].path / "size", "rb") as file:
        assert os.fstat(file.fileno()).st_size == 3
        for number in range(30):
            text = "new" + "!" * number
            other("flock", 1, LOCK_EX)
            for name, key in ((2, "data"), (3, "size")):
                other("open", name, mounts[1].path / key)
                other("pwrite", name, text)
                other("close", name)
            other("flock", 1, LOCK_UN)
            one("flock", 1, LOCK_EX)
            assert os.fstat(file.fileno()).st_size == len(text)
            assert one("pread", 2) == text
            one("flock", 1, LOCK_UN)


# -- what was lost without a word --------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [False, True])
def test_a_further_range_is_refused_where_the_lock_was_lost(lockers, mounts, curl, written):
    one, _, other = lockers
    one("open", 2, mounts[0].path / "f")
    one("lockf", 1, LOCK_EX, 10, 0)
    one("lockf", 2, LOCK_EX, 10, 20)
    if written:
        one("pwrite", 2, "STALE")
    end_session(curl, "f")
    other("lockf", 1, LOCK_EX)
    store(other, "second")
    assert errno_of(one, "lockf", 1, LOCK_EX, 10, 100) == errno.EIO
    one("fsync", 2)  # it was told
    assert curl.get("f") == b"second"


def test_what_is_written_through_the_second_locked_descriptor_is_fenced(lockers, mounts, curl):
    one, _, other = lockers
    one("open", 2, mounts[0].path / "f")
    one("lockf", 1, LOCK_EX, 10, 0)
    one("lockf", 2, LOCK_EX, 10, 20)
    one("pwrite", 2, "STALE")
    end_session(curl, "f")
    other("lockf", 1, LOCK_EX)
    store(other, "second")
    assert errno_of(one, "fsync", 2) == errno.EIO
    assert curl.get("f") == b"second"


def test_a_conversion_to_exclusive_waits_for_whoever_has_the_lock_since_it_was_lost(lockers, curl):
    one, _, other = lockers
    one("flock", 1, LOCK_SH)
    end_session(curl, "f")
    other("flock", 1, LOCK_EX)
    session = holder(curl, "f")
    one.begin_wait("flock", 1, LOCK_EX)
    store(other, "second")
    other("flock", 1, LOCK_UN)
    one.end()
    assert holder(curl, "f") not in (session, None)
    assert one("pread", 1) == "second"


def test_a_lock_that_is_lost_while_its_conversion_waits(lockers, curl):
    """What was written before is stored under it, and nothing afterwards."""
    one, two, _ = lockers
    one("flock", 1, LOCK_SH)
    two("flock", 1, LOCK_SH)
    one("pwrite", 1, "early")
    session = holder(curl, "f")
    one.begin_wait("flock", 1, LOCK_EX)
    assert curl.get("f") == b"early."
    end_session(curl, "f")
    curl.put("f", b"second", 7)
    errno_of(two, "flock", 1, LOCK_UN)
    one.end()
    assert holder(curl, "f") not in (session, None)
    assert one("pread", 1) == "second"
    one("fsync", 1)
    assert curl.get("f") == b"second"


def unlock_as_admin(curl, key):
    """The session itself goes on."""
    assert curl.txn({"Verb": "unlock", "Key": key, "Value": "", "Flags": 7, "Session": holder(curl, key)})


@pytest.mark.parametrize("lose", [end_session, unlock_as_admin])
def test_a_lost_lock_is_not_mistaken_for_that_of_the_mounts_other_session(lockers, mounts, curl, lose):
    one, two, _ = lockers
    path = mounts[0].path / "f"
    one("flock", 1, LOCK_EX)
    one("pread", 1)
    lose(curl, "f")
    curl.put("f", b"second", 7)
    os.setxattr(path, EPHEMERAL, b"1")
    errno_of(two, "lockf", 1, LOCK_EX)
    assert errno.EIO in (errno_of(one, "pwrite", 1, "STALE!"), errno_of(one, "fsync", 1))
    assert curl.get("f") == b"second"
    os.setxattr(path, EPHEMERAL, b"0")


def test_what_was_written_under_a_lost_lock_is_not_stored_by_a_rename(lockers, mounts, curl):
    one, _, _ = lockers
    one("flock", 1, LOCK_EX)
    one("pwrite", 1, "STALE")
    end_session(curl, "f")
    curl.put("f", b"second", 7)
    mounts[0].ok("setfattr -n user.consul.flags -v 8 f")
    mounts[0].sh("mv f g")
    assert errno_of(one, "fsync", 1) == errno.EIO
    assert list(curl.tree().values()) == [b"second"]


def test_what_a_close_could_not_store_is_not_stored_under_a_later_lock(agent, proxy, curl):
    """The next holder's, who had the lock after another host's."""
    curl.put("f", b"first.", 7)
    with Mount(proxy.address, "timeout=2") as mount, Mount(agent.address) as remote:
        file = os.open(mount.path / "f", os.O_RDWR)
        with Locker(file), Locker() as two, Locker() as other:  # the first keeps the description open
            two("open", 1, mount.path / "f")
            other("open", 1, remote.path / "f")
            fcntl.lockf(file, LOCK_EX)
            os.pwrite(file, b"STALE", 0)
            other.begin_wait("lockf", 1, LOCK_EX)
            proxy.fault = lambda seen: "drop" if "check-session" in seen.verbs else None
            assert errno_of(os.close, file) == errno.ETIMEDOUT
            proxy.fault = lambda seen: None
            other.end()
            two.begin_wait("lockf", 1, LOCK_EX)
            store(other, "second")
            other("lockf", 1, LOCK_UN)
            two.end()
            assert two("pread", 1) == "second"
            two("pwrite", 1, "!", 6)
            two("fsync", 1)
            assert curl.get("f") == b"second!"


# -- what becomes free, whatever was answered --------------------------------------------------------------------


def test_a_lock_that_may_have_been_taken_is_given_back_though_its_key_may_not_be_read(proxy, curl):
    curl.put("f", b"v", 7)
    with Mount(proxy.address, "timeout=4") as mount, Locker() as one:
        one("open", 1, mount.path / "f")
        taken = Once(lambda seen: "lock" in seen.verbs, "cut")
        looked = Once(lambda seen: taken.done and seen.path.startswith("/v1/kv/f?consistent"), (403, b"ACL not found"))
        proxy.fault = lambda seen: taken(seen) or looked(seen)
        errno_of(one, "flock", 1, LOCK_EX)
        assert looked.done
        one("close", 1)
        until(lambda: holder(curl, "f") is None, 20)
        assert (curl.get("f"), curl.flags("f")) == (b"v", 7)


def test_a_lock_is_given_back_though_that_was_refused_once(proxy, curl):
    curl.put("f", b"v", 7)
    with Mount(proxy.address) as mount, Locker() as one:
        one("open", 1, mount.path / "f")
        one("flock", 1, LOCK_EX)
        proxy.fault = Once(lambda seen: "unlock" in seen.verbs, (403, b"ACL not found"))
        errno_of(one, "flock", 1, LOCK_UN)
        until(lambda: holder(curl, "f") is None, 20)
        assert proxy.fault.done


def test_a_late_lock_of_a_large_value_is_given_back(proxy, curl):
    """The repeated attempt meets a lock-delay, and cannot outdate the one that is late."""
    value = b"x" * LARGE
    curl.put("large", value, 42)
    session = json.loads(curl("PUT", "session/create", b'{"LockDelay": "3s"}')[1])["ID"]
    assert curl("PUT", f"kv/large?acquire={session}&flags=42", value) == (200, b"true\n")
    with Mount(proxy.address, "timeout=2,lock_ttl=10s,lock_delay=1s") as mount, Locker() as one:
        one("open", 1, mount.path / "large")
        end_session(curl, "large")
        proxy.fault = late = Late(lambda seen: "lock" in seen.verbs, 4)
        errno_of(one, "flock", 1, EX_NB)
        one("close", 1)
        late.land()
        until(lambda: any("unlock" in seen.verbs for seen in proxy.requests), 20)
        until(lambda: holder(curl, "large") is None, 20)
        assert (curl.get("large"), curl.flags("large")) == (value, 42)


def test_a_file_is_tied_at_once_after_an_admin_has_ended_the_session(agent, curl):
    for key in "fg":
        curl.put(key, b"v")
    with Mount(agent.address, "lock_ttl=60s") as mount:
        os.setxattr(mount.path / "f", EPHEMERAL, b"1")
        end_session(curl, "f")
        os.setxattr(mount.path / "g", EPHEMERAL, b"1")
        assert holder(curl, "g")


def test_a_directory_is_not_renamed_when_a_file_in_it_is_locked_meanwhile(agent, curl):
    for key in ("d/f", "d/g"):
        curl.put(key, b"v")
    with Proxy(agent.port) as proxy, Mount(proxy.address) as mount, Mount(agent.address) as remote, Locker() as other:
        other("open", 1, remote.path / "d/f")
        is_delete = Once(lambda seen: "delete" in seen.verbs, True)

        def fault(seen):
            if is_delete(seen):
                other("flock", 1, LOCK_EX)

        proxy.fault = fault
        assert errno_of(os.rename, mount.path / "d", mount.path / "e") == errno.EBUSY
        assert is_delete.done
        store(other, "x")
        assert curl.get("d/f") == b"x"


def test_an_unmount_ends_its_sessions_though_a_lock_is_given_back_slowly(proxy, curl):
    for key in "fg":
        curl.put(key, b"v")
    with Mount(proxy.address, "timeout=3,lock_ttl=10s") as mount, Locker() as one:
        os.setxattr(mount.path / "g", EPHEMERAL, b"1")
        one("open", 1, mount.path / "f")
        one("flock", 1, LOCK_EX)
        proxy.fault = lambda seen: 5 if "unlock" in seen.verbs else None
        one.kill()
        mount.stop()
        assert not any(str(mount.path) in each["Name"] for each in curl.json("session/list?consistent"))
        assert curl.keys() == ["f"]
