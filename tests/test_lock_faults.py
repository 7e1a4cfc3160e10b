"""Locks when something breaks: a mount is cut off, a session is destroyed, answers never come, Consul is away.

What becomes of the locks of a daemon that is killed is told in test_ephemeral.py.
"""

import errno
import os
import random
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pytest
from support.agent import Agent, die_with_parent
from support.curl import Curl
from support.errors import errno_of
from support.mount import COMMAND, SOON_LOST, Mount
from support.program import EX, NB, UN, Programs
from support.proxy import Cut, Late, Once, Proxy
from support.server import Server
from support.sessions import acquire, destroy_session, give, holder, make_session, sessions, stored, take
from support.waiting import until


def save(value):
    """An expression that stores a value."""
    return f"(os.pwrite(f, {value!r}, 0), os.ftruncate(f, {len(value)}), os.fsync(f))"


@pytest.fixture
def programs():
    """For mounts of fixtures that stand before it."""
    with Programs() as programs:
        yield programs


# -- cut off ---------------------------------------------------------------------------------------------------


@contextmanager
def by_proxy(agent):
    """What the mount sends is swallowed."""
    with Proxy(agent.port) as proxy, Mount(proxy.address, SOON_LOST) as mount:
        cut = Cut()
        yield mount, lambda: setattr(proxy, "fault", cut), cut.heal


@contextmanager
def by_agent(agent):
    """Its agent stops, and does late what it was asked for meanwhile."""
    with Server("client", [agent.serf], is_client=True) as own, Mount(own.address, SOON_LOST) as mount:
        yield mount, own.freeze, own.resume


@contextmanager
def by_namespace(agent):
    """It runs in a network of its own, and the line to the other one breaks."""
    name = f"cfs{os.getpid()}"

    def ip(*words):
        subprocess.run(["ip", *words], check=True)

    ip("netns", "add", name)
    try:
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("address", "add", f"{agent.host}/30", "dev", name)
        ip("-n", name, "address", "add", f"{agent.guest}/30", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("link", "set", name, "up")
        command = ("nsenter", f"--net=/run/netns/{name}", COMMAND)
        with Mount(f"{agent.host}:{agent.port}", SOON_LOST, command) as mount:
            yield mount, lambda: ip("link", "set", name, "down"), lambda: ip("link", "set", name, "up")
    finally:
        ip("netns", "del", name)


LARGE = 300_000


class CutOff:
    """One mount that is cut off while it holds four locks, and another that gets them.

    What it does with each: writes when it is connected again; wrote before it was cut off, and stored nothing yet;
    wrote and tried to store while it was; wrote into a value that is large.
    """

    KEYS = ("after", "before", "during", "large")

    def __init__(self, way, agent, mounts, programs):
        self.name = way.__name__
        self.curl = Curl(agent.url)
        for key in self.KEYS:
            self.curl.put(f"{self.name}/{key}", b"x" * LARGE if key == "large" else b"first", 42)
        self.mount, self.cut, self.heal = mounts.enter_context(way(agent))
        self.first = {key: programs(self.mount, f"{self.name}/{key}") for key in self.KEYS}
        self.programs = programs

    def lock(self):
        for key, program in self.first.items():
            program(EX)
            if key in ("before", "large"):
                program("os.pwrite(f, b'late', 0)")

    def follow(self, other):
        """Somebody on another mount waits for each lock."""
        self.second = {key: self.programs(other, f"{self.name}/{key}") for key in self.KEYS}
        for program in self.second.values():
            program.begin(EX)
        during = self.first["during"]
        during("os.pwrite(f, b'late', 0)")
        assert errno_of(during, "os.fsync(f)") in (errno.ETIMEDOUT, errno.EHOSTDOWN)

    def pass_on(self):
        """They get it. Two keep it, the others give it back."""
        for key, program in self.second.items():
            program.end()
            program(save(b"second"))
            if key in ("during", "large"):
                program(UN)

    def check(self):
        first, lost = self.first, errno.EIO
        assert {errno_of(first[key], "(os.pwrite(f, b'late', 0), os.fsync(f))") for key in self.KEYS} == {lost}
        assert errno_of(first["after"], "os.close(f)") == lost
        assert errno_of(first["before"], "os.close(f)") == lost
        for key in ("during", "large"):
            assert errno_of(first[key], EX) == lost
            first[key](EX)
            assert first[key]("os.pread(f, 9, 0)") == b"second"
        for key in self.KEYS:
            assert stored(self.curl, f"{self.name}/{key}")[:2] == (b"second", 42), key
        first["during"](save(b"third"))
        first["during"]("os.close(f)")
        assert stored(self.curl, f"{self.name}/during") == (b"third", 42, None)
        told = self.mount.losses()
        assert len(told) == len(self.KEYS), told
        assert all(sum(f"{self.name}/{key}" in line for line in told) == 1 for key in self.KEYS), told


def cut_off(agent, ways):
    with Mount(agent.address, "lock_ttl=10s") as other, ExitStack() as mounts, Programs() as programs:
        cases = [CutOff(way, agent, mounts, programs) for way in ways]
        for step in ("lock", "cut"):
            for case in cases:
                getattr(case, step)()
        try:
            for case in cases:
                case.follow(other)
            for case in cases:
                case.pass_on()
        finally:
            for case in cases:
                case.heal()
        for case in cases:
            case.check()


def test_a_mount_that_was_cut_off_writes_nothing_under_its_old_locks():
    with Agent() as agent:
        cut_off(agent, [by_proxy, by_agent])


@pytest.mark.root
def test_a_mount_whose_network_broke_writes_nothing_under_its_old_locks():
    net = f"198.{random.choice((18, 19))}.{random.randrange(256)}.{random.randrange(64) * 4}"
    stem, _, last = net.rpartition(".")
    host, guest = f"{stem}.{int(last) + 1}", f"{stem}.{int(last) + 2}"
    with Agent({"addresses": {"http": "0.0.0.0"}}) as agent:
        agent.host, agent.guest = host, guest
        cut_off(agent, [by_namespace])


# -- a session that somebody destroys --------------------------------------------------------------------------


def test_an_admin_destroys_the_session(agent, curl):
    curl.put("f", b"first", 42)
    with Mount(agent.address, "lock_ttl=10s,lock_delay=0s") as mount, Programs() as programs:
        first, plain, *waiters = [programs(mount) for _ in range(4)]
        first(EX)
        first("os.pwrite(f, b'FIRST', 0)")
        for waiter in waiters:
            waiter.begin(EX)
        session = holder(curl, "f")
        destroy_session(curl, session)
        until(lambda: mount.losses())
        assert errno_of(first, "os.pwrite(f, b'late', 0)") == errno.EIO
        assert errno_of(first, "os.fsync(f)") == errno.EIO
        plain("os.pwrite(f, b'plain', 0)")
        plain("os.close(f)")
        assert stored(curl, "f")[:2] == (b"plain", 42)
        one = until(lambda: next((each for each in waiters if each.has_ended()), None))
        one.end()
        assert holder(curl, "f") not in (session, None)
        assert errno_of(first, UN) == errno.EIO
        first(UN)
        assert errno_of(first, NB) == errno.EWOULDBLOCK
        one(save(b"one"))
        one(UN)
        other = next(each for each in waiters if each is not one)
        other.end()
        other(UN)
        first(EX)
        first(save(b"last"))
        first("os.close(f)")
        assert stored(curl, "f") == (b"last", 42, None)
        assert len(mount.losses()) == 1
    assert sessions(curl, mount) == []


def test_what_was_written_under_a_lost_lock_is_never_stored(agent, curl):
    """Whatever the program does with its descriptor afterwards."""
    for key in "abc":
        curl.put(key, b"first", 42)
    with Mount(agent.address, "lock_ttl=10s,lock_delay=0s") as mount, Programs() as programs:
        one, two, three, other = (programs(mount, key) for key in "abcc")
        for program in (one, two, three):
            program(EX)
            program("os.pwrite(f, b'lost', 0)")
        destroy_session(curl, holder(curl, "a"))
        until(lambda: len(mount.losses()) == 3)
        for key in "abc":
            curl.put(key, b"another host's", 43)
        assert errno_of(one, "os.pwrite(f, b'lost', 0)") == errno.EIO
        assert errno_of(one, EX) == errno.EIO
        assert errno_of(two, EX) == errno.EIO
        for program in (one, two):
            program(EX)
            program("(os.pwrite(f, b'!', os.fstat(f).st_size), os.fsync(f))")
        assert errno_of(three, "os.pwrite(f, b'lost', 0)") == errno.EIO
        assert errno_of(three, "os.close(f)") == errno.EIO
        other("(os.pwrite(f, b'!', os.fstat(f).st_size), os.fsync(f))")
        assert {stored(curl, key)[:2] for key in "abc"} == {(b"another host's!", 43)}


def test_a_lock_that_is_lost_while_it_is_given_back(proxied, proxy, curl, programs):
    curl.put("f", b"first", 42)
    program = programs(proxied)
    program(EX)
    proxy.fault = lambda seen: None if "/session/" in seen.path else "drop"
    program(UN)
    destroy_session(curl, holder(curl, "f"))
    until(lambda: proxied.losses())
    time.sleep(3)  # the attempt that is under way ends, and another begins
    proxy.fault = lambda seen: None
    program(EX)
    program(UN)
    assert stored(curl, "f") == (b"first", 42, None)


# -- answers that never come, or late --------------------------------------------------------------------------

REQUESTS = {
    "session": lambda seen: seen.makes_session,
    "lock": lambda seen: "lock" in seen.verbs,
    "store": lambda seen: "check-session" in seen.verbs,
    "read": lambda seen: seen.method == "GET" and seen.path.startswith("/v1/kv/f?consistent"),
    "unlock": lambda seen: "unlock" in seen.verbs,
    "renew": lambda seen: seen.is_renewal,
}


@pytest.mark.parametrize("how", ["cut", "drop", "late"])
@pytest.mark.parametrize("what", REQUESTS)
def test_a_lock_whose_answers_are_lost(proxy, curl, contender, what, how):
    fits = REQUESTS[what]
    fault = Late(fits, 2.5) if how == "late" else Once(fits, how)
    curl.put("f", b"first", 42)
    with Mount(proxy.address, SOON_LOST) as mount, Programs() as programs:
        one, other = programs(mount), programs(mount)
        proxy.fault = fault

        def renewed():
            # The first one's answer is lost, the next one's is not.
            return fault.done and sum(seen.is_renewal for seen in proxy.requests) > 1

        for value in (b"one", b"two"):
            take_turns(curl, one, other, contender, value, renewed if what == "renew" else lambda: True)
        if how == "late":
            fault.land()
        assert fault.done
        assert stored(curl, "f") == (b"contender's", 42, None)
        one(EX)
        one(save(b"last"))
        one(UN)
        assert mount.losses() == []
        assert len({each["Name"] for each in sessions(curl, mount)}) == 1  # one that is made late ends by its TTL
    assert stored(curl, "f") == (b"last", 42, None)
    assert sessions(curl, mount) == []


def take_turns(curl, one, other, contender, value, goes_on):
    """Two programs of a mount, and another host's session, have the lock one after another."""
    one(EX)
    assert not acquire(curl, "f", contender)
    assert errno_of(other, NB) == errno.EWOULDBLOCK
    one("os.pwrite(f, b'lost', 0)")
    other.begin(EX)
    one(save(value))
    until(goes_on)
    one(UN)
    other.end()
    assert other("os.pread(f, 9, 0)") == value
    assert not acquire(curl, "f", contender)
    other(save(value + b"!"))
    other(UN)
    until(lambda: holder(curl, "f") is None)
    take(curl, "f", contender, value + b"!", 42)
    assert errno_of(one, NB) == errno.EWOULDBLOCK
    give(curl, "f", contender, b"contender's", 42)


def test_a_late_lock_is_not_taken_when_nobody_wants_it_any_more(proxied, proxy, curl, programs):
    """The second attempt meets a lock-delay, which changes nothing that the first one checks."""
    curl.put("f", b"first", 42)
    session = make_session(curl, LockDelay="4s")
    take(curl, "f", session, b"first", 42)
    program = programs(proxied)
    destroy_session(curl, session)
    until(lambda: holder(curl, "f") is None)
    proxy.fault = Late(REQUESTS["lock"], 6)
    assert errno_of(program, NB) in (errno.EWOULDBLOCK, errno.ETIMEDOUT)
    proxy.fault.land()
    until(lambda: stored(curl, "f") == (b"first", 42, None), 20)
    program(NB)
    program(UN)
    assert stored(curl, "f") == (b"first", 42, None)


def test_a_late_lock_takes_nothing(proxied, proxy, curl, contender, programs):
    curl.put("f", b"first", 42)
    program = programs(proxied)
    proxy.fault = fault = Late(REQUESTS["lock"], 4)
    program(EX)
    program(UN)
    take(curl, "f", contender, b"first", 42)
    give(curl, "f", contender, b"contender's", 42)
    fault.land()
    assert stored(curl, "f") == (b"contender's", 42, None)


def test_a_late_unlock_frees_nothing(proxied, proxy, curl, contender, programs):
    for key in "fg":
        curl.put(key, b"first", 42)
    here, there = programs(proxied), programs(proxied, "g")
    here(EX)
    there(EX)
    session = holder(curl, "f")
    proxy.fault = fault = Late(REQUESTS["unlock"], 4)
    here(UN)
    here(EX)
    fault.land()
    assert stored(curl, "f") == (b"first", 42, session)
    proxy.fault = fault = Late(REQUESTS["unlock"], 4)
    there(UN)
    take(curl, "g", contender, b"contender's", 42)
    fault.land()
    assert stored(curl, "g") == (b"contender's", 42, contender)
    assert proxied.losses() == []


ADD = """
import fcntl, os, sys
f = os.open("counter", os.O_RDWR)
for _ in range(int(sys.argv[1])):
    fcntl.flock(f, fcntl.LOCK_EX)
    number = int(os.pread(f, 20, 0)) + 1
    os.pwrite(f, b"%d" % number, 0)
    os.fsync(f)
    fcntl.flock(f, fcntl.LOCK_UN)
"""


def test_a_counter_is_exact_whatever_becomes_of_the_answers(agent, proxy, curl):
    """Each is told of no failure, since all of them pass within the time that an operation has."""
    curl.put("counter", b"0", 42)
    dice = random.Random(1)

    def fault(seen):
        return dice.choice([None] * 12 + ["cut", "drop", 0.1, (500, b"rpc error: leadership lost")])

    with Mount(proxy.address, "timeout=30") as one, Mount(agent.address, "timeout=30") as other:
        proxy.fault = fault
        adders = [
            subprocess.Popen([sys.executable, "-c", ADD, str(times)], cwd=mount.path, preexec_fn=die_with_parent)
            for mount, times in ((one, 20), (one, 20), (one, 20), (other, 40))
        ]
        try:
            assert [adder.wait(90) for adder in adders] == [0] * 4
        finally:
            for adder in adders:
                adder.kill()
                adder.wait()
        proxy.fault = lambda seen: None
        assert one.losses() == other.losses() == []
    assert stored(curl, "counter") == (b"100", 42, None)
    assert sessions(curl, one) == sessions(curl, other) == []


# -- no Consul -------------------------------------------------------------------------------------------------


@pytest.fixture
def restarted():
    """An agent that keeps its data, the proxy before it, and two mounts: one by the proxy."""
    with Agent(keeps_data=True) as own, Proxy(own.port) as proxy:
        curl = Curl(own.url)
        for key in "abcde":
            curl.put(key, b"first", 42)
        with Mount(proxy.address, SOON_LOST) as one, Mount(own.address, SOON_LOST) as other:
            yield own, proxy, one, other
        assert sessions(curl) == []
        assert {stored(curl, key)[1:] for key in "abcde"} == {(42, None)}


def restart(own, proxy):
    """Start the agent again, until a session of the proxy's mount is renewed."""
    with proxy.lock:
        before = len(proxy.requests)
    own.start()
    until(lambda: any(seen.is_renewal for seen in proxy.requests[before:]))


def test_what_is_asked_of_locks_while_consul_restarts_is_done_afterwards(restarted):
    own, proxy, one, other = restarted
    curl = Curl(own.url)
    with Programs() as programs:
        given, patient, free, impatient = (*(programs(one, key) for key in "bcd"), programs(other, "e"))
        given(EX)
        own.stop()
        assert errno_of(impatient, NB) == errno.EHOSTDOWN
        patient.begin(EX)
        given(UN)
        assert not patient.has_ended(1)
        restart(own, proxy)
        patient.end()
        impatient(NB)
        until(lambda: holder(curl, "b") is None)
        free(NB)
        assert one.losses() == other.losses() == []


def test_locks_outlive_a_restart_of_consul(restarted):
    own, proxy, one, other = restarted
    curl = Curl(own.url)
    with Programs() as programs:
        held, *waiters = programs(one, "a"), programs(one, "a"), programs(other, "a")
        held(EX)
        for each in waiters:
            each.begin(EX)
        session = holder(curl, "a")
        own.stop()
        restart(own, proxy)
        assert holder(curl, "a") == session
        assert not any(each.has_ended() for each in waiters)
        held(save(b"held"))
        held(UN)
        for number in (1, 2):
            first = until(lambda: next((each for each in waiters if each.has_ended()), None))
            first.end()
            waiters.remove(first)
            assert not any(each.has_ended() for each in waiters)
            first(f"os.pwrite(f, b'%d' % {number}, os.fstat(f).st_size)")
            first(UN)
        assert one.losses() == other.losses() == []
    assert curl.get("a") == b"held12"


def test_consul_hangs_while_locks_are_asked_for_and_given_back(curl, proxied, proxy, programs):
    for key in "abc":
        curl.put(key, b"first", 42)
    given, impatient, patient = (programs(proxied, key) for key in "abc")
    given(EX)
    proxy.fault = cut = Cut()
    assert errno_of(impatient, NB) == errno.ETIMEDOUT
    patient.begin(EX)
    given(UN)
    assert not patient.has_ended(1)
    cut.heal()
    patient.end()
    until(lambda: holder(curl, "a") is None)
    until(lambda: holder(curl, "b") is None)  # the attempt that nobody waits for any more
    impatient(NB)
    assert proxied.losses() == []


@pytest.mark.parametrize("fault", ["drop", "silence"])
def test_an_unmount_without_consul_ends(proxy, curl, fault):
    curl.put("f", b"first", 42)
    cut = Cut()
    with ExitStack() as stack:
        mount = stack.enter_context(Mount(proxy.address, SOON_LOST))
        stack.callback(lambda: [destroy_session(curl, each["ID"]) for each in sessions(curl, mount)])
        stack.callback(cut.heal)
        with Programs() as programs:
            program = programs(mount)
            program(EX)
            program("os.setxattr('f', 'user.consul.ephemeral', b'1')")
            proxy.fault = cut if fault == "silence" else lambda seen: "drop"
        mount.stop()
        assert mount.process.returncode == 0
