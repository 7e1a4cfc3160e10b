"""How many requests a lock costs, counted between the mount and Consul."""

import os
from fcntl import LOCK_EX, LOCK_UN

import pytest
from support.locker import Locker
from support.mount import Mount
from support.sessions import give, holder, take
from support.waiting import until

LONG = "lock_ttl=1h"
"""No renewal falls into a count."""


@pytest.fixture
def counted(proxy, curl):
    with Mount(proxy.address, LONG) as mount:
        yield mount


def lock(mount, curl, script="flock F true"):
    """Run a script, until Consul has the lock back: the kernel tells of the last close after the program's end."""
    mount.ok(script)
    until(lambda: holder(curl, "F") is None)


def sent(count):
    """What was sent, in order, less the listings that are asked for anew each second."""
    return [
        next((verb for verb in seen.verbs if verb in ("unlock", "lock", "cas")), seen.path)
        for seen in count.requests
        if "keys=" not in seen.path
    ]


def test_a_lock_costs_two_writes(counted, proxy, curl):
    curl.put("F", b"x")
    lock(counted, curl)
    for how in ("-x", "-s", "-n"):
        counted.ok("cat F")
        with proxy.counting() as count:
            lock(counted, curl, f"flock {how} F true")
        assert [each for each in sent(count) if each != "/v1/kv/F"] == ["lock", "unlock"], (how, count)
        assert count.reads <= 2 + 2 * count.expiries, (how, count)


def test_the_first_lock_makes_the_session(counted, proxy, curl):
    curl.put("F", b"x")
    with proxy.counting() as count:
        lock(counted, curl)
    assert sent(count) == ["/v1/kv/F", "/v1/session/create", "lock", "unlock"], count


def test_the_next_program_of_a_mount_costs_one_read(counted, proxy, curl):
    curl.put("F", b"x")
    lock(counted, curl)
    with proxy.counting() as count:
        lock(counted, curl, "(flock 8; flock 9 & sleep 0.5; flock -u 8; wait) 8<>F 9<>F")
    assert [each for each in sent(count) if each != "/v1/kv/F"] == ["lock", "/v1/kv/F?consistent=", "unlock"], count


def test_a_held_lock_costs_nothing_but_renewals(proxy, curl):
    curl.put("F", b"x")
    with Mount(proxy.address, "lock_ttl=10s") as mount, Locker() as one:
        one("open", 1, mount.path / "F")
        one("flock", 1, LOCK_EX)
        with proxy.counting() as count:
            before = len(proxy.requests)
            until(lambda: len(proxy.requests) >= before + 2)
        assert all(seen.is_renewal for seen in count.requests), count
        assert len(count.requests) <= int(count.seconds / (10 / 3)) + 1, count


def test_without_locks_a_close_asks_nothing(counted, proxy, curl):
    curl.put("F", b"x")
    lock(counted, curl)
    with open(counted.path / "F") as file:
        file.read()
        with proxy.counting() as count:
            for descriptor in [os.dup(file.fileno()) for _ in range(20)]:
                os.close(descriptor)
    assert count.requests == []


def test_a_wait_longer_than_the_timeout_is_one_query_and_no_word_in_the_log(agent, proxy, curl):
    curl.put("F", b"x")
    with (
        Mount(agent.address) as other,
        Mount(proxy.address, f"timeout=2,{LONG}") as mount,
        Locker() as one,
        Locker() as two,
    ):
        one("open", 1, other.path / "F")
        one("flock", 1, LOCK_EX)
        two("open", 1, mount.path / "F")
        two.begin_wait("flock", 1, LOCK_EX)
        until(lambda: any(seen.is_watch for seen in proxy.requests))
        with proxy.counting() as count:
            assert not two.has_ended(6)
        assert count.requests == [], count
        one("flock", 1, LOCK_UN)
        two.end()
        assert mount.log_text() == ""


def watches(requests):
    """Of the key, not of its directory."""
    return sum(seen.is_watch and seen.path.startswith("/v1/kv/F?") for seen in requests)


def test_who_waits_for_a_lock_does_not_look_each_time_its_holder_writes(counted, proxy, curl, contender):
    curl.put("F")
    take(curl, "F", contender, b"", 0)
    with Locker() as one:
        one("open", 1, counted.path / "F")
        one.begin_wait("flock", 1, LOCK_EX)
        until(lambda: watches(proxy.requests))
        with proxy.counting() as count:
            for number in range(10):
                seen = watches(proxy.requests)
                curl.put("F", b"%d" % number)
                until(lambda seen=seen: watches(proxy.requests) > seen)
        give(curl, "F", contender, b"", 0)
        one.end()
    looks = [seen for seen in count.requests if "consistent" in seen.path]
    assert (watches(count.watches), looks) == (10, [])
