"""How many requests a lock costs, counted between the mount and Consul."""

import subprocess
import time

import pytest
from support.mount import Mount
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
    until(lambda: "Session" not in curl.record("F"))


def verbs(count):
    """What was sent, in order, less the listings that are asked for anew each second."""
    shown = []
    for seen in count.requests:
        if "keys=" not in seen.path:
            shown.append(
                next((verb for verb in ("unlock", "lock", "cas") if f'"{verb}"'.encode() in seen.body), seen.path)
            )
    return shown


def test_a_lock_costs_two_writes(counted, proxy, curl):
    curl.put("F", b"x")
    lock(counted, curl)
    with proxy.counting() as count:
        lock(counted, curl)
    assert [verb for verb in verbs(count) if verb != "/v1/kv/F"] == ["lock", "unlock"], count


def test_the_first_lock_makes_the_session(counted, proxy, curl):
    curl.put("F", b"x")
    with proxy.counting() as count:
        lock(counted, curl)
    assert verbs(count) == ["/v1/kv/F", "/v1/session/create", "lock", "unlock"], count


def test_the_next_program_of_a_mount_costs_one_read(counted, proxy, curl):
    curl.put("F", b"x")
    lock(counted, curl)
    with proxy.counting() as count:
        lock(counted, curl, "(flock 8; flock 9 & sleep 0.5; flock -u 8; wait) 8<>F 9<>F")
    assert [verb for verb in verbs(count) if verb != "/v1/kv/F"] == ["lock", "/v1/kv/F?consistent=", "unlock"], count


def test_a_held_lock_costs_nothing_but_renewals(proxy, curl):
    curl.put("F", b"x")
    with Mount(proxy.address, "lock_ttl=10s") as mount:
        holder = subprocess.Popen(["flock", "F", "cat"], cwd=mount.path, stdin=subprocess.PIPE)
        try:
            until(lambda: curl.record("F").get("Session"))
            with proxy.counting() as count:
                time.sleep(7)
            assert {seen.path.rpartition("/")[0] for seen in count.requests} == {"/v1/session/renew"}, count
            assert len(count.requests) <= int(count.seconds / (10 / 3)) + 1, count
        finally:
            holder.communicate()


def test_a_wait_longer_than_the_timeout_is_one_query_and_no_word_in_the_log(agent, proxy, curl):
    curl.put("F", b"x")
    with Mount(agent.address) as other, Mount(proxy.address, f"timeout=2,{LONG}") as mount:
        holder = subprocess.Popen(["flock", "F", "cat"], cwd=other.path, stdin=subprocess.PIPE)
        waiter = None
        try:
            until(lambda: curl.record("F").get("Session"))
            waiter = subprocess.Popen(["flock", "F", "true"], cwd=mount.path)
            until(lambda: any("wait=" in seen.path for seen in proxy.requests))
            with proxy.counting() as count:
                time.sleep(6)
            assert count.requests == [], count
            holder.communicate()
            assert waiter.wait(60) == 0
            assert mount.log_text() == ""
        finally:
            holder.communicate()
            if waiter is not None:
                waiter.kill()
                waiter.wait()
