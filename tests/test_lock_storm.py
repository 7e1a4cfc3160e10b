"""Values and flags are nobody's but their writer's, however many lock and unlock the same keys meanwhile."""

import errno
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.agent import die_with_parent
from support.mount import Mount
from support.sessions import Sessions, acquire, destroy_session, give, make_session, stored, unmount
from support.waiting import until

RANDOM_LOCKER = str(Path(__file__).with_name("support") / "random_locker.py")

FLAGS, EPHEMERAL = "user.consul.flags", "user.consul.ephemeral"

SECONDS = 10


class Writer:
    """The only one who writes a key: values with growing numbers, and flags with them.

    :ivar value: what it stored last
    :ivar flags: and these
    """

    def __init__(self, curl, mounts, session):
        self.curl = curl
        self.mounts = mounts
        self.session = session
        self.key = type(self).__name__.lower()
        self.number, self.value, self.flags = 0, b"0", 7
        curl.put(self.key, self.value, self.flags)

    def write(self):
        self.look()
        self.number += 1
        self.change(b"%d" % self.number)

    def look(self):
        assert stored(self.curl, self.key)[:2] == (self.value, self.flags), self.key


class Echo(Writer):
    def change(self, text):
        self.mounts[0].ok(f"echo {self.number} > {self.key}")
        self.value = text + b"\n"


class Append(Writer):
    def change(self, text):
        self.mounts[1].ok(f"echo {self.number} >> {self.key}")
        self.value += text + b"\n"


class Setfattr(Writer):
    """The value is written on one mount, the flags on the other."""

    def change(self, text):
        self.mounts[0].ok(f"echo {self.number} > {self.key}")
        self.value = text + b"\n"
        self.mounts[1].ok(f"setfattr -n {FLAGS} -v {self.number} {self.key}")
        self.flags = self.number


class Put(Writer):
    """curl, without a thought of who else may have been there."""

    def change(self, text):
        assert self.curl("PUT", f"kv/{self.key}?flags={self.number}", text)[1].strip() == b"true"
        self.value, self.flags = text, self.number


class Cas(Writer):
    """curl, as long as nobody was there meanwhile."""

    def change(self, text):
        until(lambda: self.compare_and_set(text))
        self.value, self.flags = text, self.number

    def compare_and_set(self, text):
        index = self.curl.record(self.key)["ModifyIndex"]
        return self.curl("PUT", f"kv/{self.key}?flags={self.number}&cas={index}", text)[1].strip() == b"true"


class Acquire(Writer):
    """curl, by what takes the lock and what gives it back: both write."""

    def change(self, text):
        until(lambda: acquire(self.curl, self.key, self.session, text, self.number))
        self.value, self.flags = text, self.number
        self.look()
        self.number += 1
        self.value, self.flags = b"%d" % self.number, self.number
        give(self.curl, self.key, self.session, self.value, self.flags)


WRITERS = (Echo, Append, Setfattr, Put, Cas, Acquire)


def lock_by_transaction(curl, session, key):
    """Lock and unlock as the mounts do: with what stands there."""
    if change(curl, "lock", session, key):
        time.sleep(random.choice((0, 0.01)))
        until(lambda: change(curl, "unlock", session, key))


def change(curl, verb, session, key):
    record = curl.record(key)
    check = {"Verb": "check-index", "Key": key, "Index": record["ModifyIndex"]}
    step = {"Verb": verb, "Key": key, "Value": record["Value"], "Flags": record["Flags"], "Session": session}
    return curl.txn(check, step) is not None


def tie_and_untie(mount, key):
    """Make a key ephemeral, and plain again."""
    try:
        os.setxattr(mount.path / key, EPHEMERAL, b"1")
    except OSError as error:
        assert error.errno == errno.EBUSY
    else:
        os.removexattr(mount.path / key, EPHEMERAL)


@pytest.fixture
def session(curl):
    """Makes sessions of curl's own."""
    made = []

    def make():
        made.append(make_session(curl))
        return made[-1]

    yield make
    for each in made:
        destroy_session(curl, each)


@pytest.fixture
def two(agent, curl):
    with Mount(agent.address) as one, Mount(agent.address) as other:
        yield one, other


@pytest.fixture
def random_lockers(two):
    """Programs on both mounts that lock what they are given until the test ends."""
    processes = []

    def start(keys):
        for mount in two * 2:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-IS", RANDOM_LOCKER, *keys],
                    cwd=mount.path,
                    stdin=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    preexec_fn=die_with_parent,
                )
            )
        return processes

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_a_storm_of_locks_leaves_values_and_flags_alone(two, curl, session, random_lockers):
    writers = [kind(curl, two, session()) for kind in WRITERS]
    keys = [writer.key for writer in writers]
    programs = random_lockers(keys)
    end = time.monotonic() + SECONDS

    def again(call):
        while time.monotonic() < end:
            call()

    def random_key(call, *arguments):
        return lambda: call(*arguments, random.choice(keys))

    calls = [writer.write for writer in writers]
    calls += [random_key(lock_by_transaction, curl, session()) for _ in range(2)]
    calls += [random_key(tie_and_untie, mount) for mount in two]
    with Sessions(curl, two) as seen, ThreadPoolExecutor(len(calls)) as pool:
        for done in [pool.submit(again, call) for call in calls]:
            done.result()
    for process in programs:
        _, words = process.communicate(timeout=60)  # it ends its input
        assert (process.returncode, words) == (0, b"")
    for writer in writers:
        writer.look()
    assert seen.most == 2
    unmount(curl, two)
    for writer in writers:
        writer.look()
