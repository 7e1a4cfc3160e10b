"""Mutual exclusion, counted: programs on several mounts, and curl, add to one number and none of it is lost."""

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.agent import die_with_parent
from support.cluster import Cluster
from support.mount import Mount
from support.sessions import Sessions, give, unmount
from support.waiting import until

ADDER = str(Path(__file__).with_name("support") / "adder.py")

MOUNTS, PROCESSES, TIMES = 4, 8, 50
TOTAL = MOUNTS * PROCESSES * TIMES

CURL_TIMES = 30


@contextmanager
def mounts(*addresses, options="timeout=20"):
    with ExitStack() as stack:
        yield [stack.enter_context(Mount(address, options)) for address in addresses]


@pytest.fixture
def four(agent, curl):
    with mounts(*[agent.address] * MOUNTS) as four:
        yield four


class Adders:
    """Programs that add to one number: all are there before the first begins."""

    def __init__(self, mounts, kind, lock, number, unlocks=("unlock", "close")):
        self.commands = [
            (mount, [sys.executable, "-IS", ADDER, kind, lock, number, str(TIMES), unlocks[place % len(unlocks)]])
            for mount in mounts
            for place in range(PROCESSES)
        ]

    def __enter__(self):
        gate, opener = os.pipe()
        self.processes = []
        try:
            for mount, command in self.commands:
                process = subprocess.Popen(
                    command,
                    cwd=mount.path,
                    stdin=gate,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    preexec_fn=die_with_parent,
                )
                self.processes.append(process)
            for process in self.processes:
                assert process.stdout.readline() == b"ready\n"
        except BaseException:
            self.__exit__()
            raise
        finally:
            os.close(opener)
            os.close(gate)
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def join(self):
        """Until all have ended, each without a word and well."""
        for process in self.processes:
            _, words = process.communicate(timeout=100)
            assert (process.returncode, words) == (0, b"")


@pytest.mark.parametrize(("kind", "lock"), [("flock", "number"), ("lockf", "number"), ("flock", "another")])
def test_each_addition_counts(four, curl, kind, lock):
    curl.put(lock)
    curl.put("number", b"0")
    with Sessions(curl, four) as seen, Adders(four, kind, lock, "number") as adders:
        adders.join()
    assert int(curl.get("number")) == TOTAL
    assert seen.most == 1
    unmount(curl, four)


class CurlAdder:
    """Somebody who knows no mount: takes the lock as scripts do, and adds by plain writes."""

    def __init__(self, curl, session):
        self.curl = curl
        self.session = session

    def take(self):
        # In one process many times, since the mounts do not wait for a shell's loop.
        path = f"kv/lock?acquire={self.session}&try=[1-50]"
        until(lambda: b"true" in self.curl("PUT", path, b"by curl")[1])

    def add(self):
        assert self.curl("PUT", "kv/number", b"%d" % (int(self.curl.get("number")) + 1)) == (200, b"true\n")
        give(self.curl, "lock", self.session, b"", 0)


def test_each_addition_counts_where_curl_adds_too(four, curl, contender):
    curl.put("lock")
    curl.put("number", b"0")
    other = CurlAdder(curl, contender)
    other.take()  # so that at least once everybody waits for it
    with Adders(four, "lockf", "lock", "number") as adders:
        for _ in range(CURL_TIMES - 1):
            other.add()
            other.take()
        other.add()
        adders.join()
    assert int(curl.get("number")) == TOTAL + CURL_TIMES


@pytest.fixture
def cluster():
    with Cluster() as cluster:
        yield cluster


@pytest.mark.timeout(240)
def test_each_addition_counts_while_leaders_die(cluster):
    curl = cluster.curl
    curl.put("number", b"0")
    addresses = [client.address for client in cluster.clients] * (MOUNTS // len(cluster.clients))
    with mounts(*addresses, options="timeout=60") as four:
        with Sessions(curl, four) as seen, Adders(four, "flock", "number", "number") as adders:
            for part in (1, 2, 3):
                until(lambda part=part: int(curl.get("number") or 0) >= TOTAL * part // 4)
                leader = until(cluster.leader)
                leader.kill()
                until(cluster.leader)
                leader.start()
            adders.join()
        assert int(curl.get("number")) == TOTAL
        assert seen.most == 1
        unmount(curl, four)
