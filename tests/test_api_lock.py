"""`lock.acquire`: held for a block, kept alive, given back whatever happens; checked with curl."""

import contextlib
import json
import os
import sys
import threading

import pytest
from support.agent import Agent
from support.waiting import until

from consulfs import consulate
from consulfs.consulate import adapters, api


def sessions_of(curl):
    return [each["Name"] for each in json.loads(curl("GET", "session/list")[1])]


def through(proxy, **more):
    host, port = proxy.address.split(":")
    return consulate.Consul(host, int(port), **more)


def test_a_lock_is_held_for_the_block_and_gone_after_it(consul, curl):
    with consul.lock.acquire("my-key") as hold:
        assert consul.lock.key == hold.key == "consulate/locks/my-key"
        assert curl.record(hold.key)["Session"] == hold.session
        assert curl.get(hold.key) == b""
        assert sessions_of(curl) == ["lock consulate/locks/my-key"]
        assert not hold.lost
    assert consul.lock.key is None
    assert curl.keys() == []
    assert sessions_of(curl) == []


def test_a_key_is_made_up_and_a_value_shown(consul, curl):
    with consul.lock.acquire(value={"host": "a"}) as hold:
        assert hold.key.startswith("consulate/locks/")
        assert len(hold.key) == len("consulate/locks/") + 36
        assert curl.tree() == {hold.key: b'{"host": "a"}'}
    assert curl.keys() == []


@pytest.mark.parametrize("key", ["", "/", "//"])
@pytest.mark.parametrize("prefix", ["consulate/locks/", ""])
def test_an_empty_key_excludes_nobody_and_is_refused(consul, curl, key, prefix):
    consul.lock.prefix(prefix)
    with pytest.raises(ValueError, match="no key to lock"), consul.lock.acquire(key):
        pytest.fail("locked")
    assert curl.keys() == sessions_of(curl) == []


def test_a_ttl_that_consul_would_not_take_is_refused_where_it_is_set(consul, curl):
    for ttl in (9, 9.99, 86401, 0, -15, float("nan"), float("inf"), "15", "15s", None, True):
        with pytest.raises(ValueError, match="10 to 86400"):
            consul.lock.ttl = ttl
    assert consul.lock.ttl == 15
    for ttl, stored in ((10, "10s"), (10.5, "10.5s"), (86400.0, "86400.0s")):
        consul.lock.ttl = ttl
        with consul.lock.acquire("k"):
            assert [each["TTL"] for each in json.loads(curl("GET", "session/list")[1])] == [stored]


def test_a_prefix_of_ones_own(consul, curl):
    for prefix, key in (("mine", "mine/k"), ("mine/", "mine/k"), ("", "k"), ("/", "k")):
        consul.lock.prefix(prefix)
        with consul.lock.acquire("k"):
            assert consul.lock.key == key
            assert curl.keys() == [key]


def test_a_held_lock_is_tried_once(agent, consul, curl):
    with consulate.Consul("127.0.0.1", agent.port) as other, consul.lock.acquire("k", "first") as hold:
        with pytest.raises(consulate.LockFailure, match=hold.session), other.lock.acquire("k", "second"):
            pytest.fail("two hold it")
        assert curl.get("consulate/locks/k") == b"first"
        assert sessions_of(curl) == ["lock consulate/locks/k"]
        assert consulate.LockError is consulate.LockFailure
        with other.lock.acquire("another"):
            assert other.lock.key == "consulate/locks/another"
    with consul.lock.acquire("k"):
        pass


def test_a_lock_is_given_back_when_the_block_raises(consul, curl):
    with pytest.raises(RuntimeError, match="mine"), consul.lock.acquire("k"):
        raise RuntimeError("mine")
    assert curl.keys() == []
    assert sessions_of(curl) == []
    with consul.lock.acquire("k"):
        pass


def test_a_key_with_a_value_stays(consul, curl):
    """The reference deletes the key; one that held somebody's value is unlocked instead."""
    curl.put("config", b"precious", 7)
    consul.lock.prefix("")
    with consul.lock.acquire("config"):
        assert (curl.get("config"), curl.flags("config")) == (b"precious", 7)
    assert (curl.get("config"), curl.flags("config")) == (b"precious", 7)
    assert "Session" not in curl.record("config")


def test_a_value_shown_meanwhile_gives_way_to_the_one_that_was_there(consul, curl):
    consul.lock.prefix("")
    for key in ("config", "odd//key"):
        curl.put(key, b"precious \xff", 7)
        with consul.lock.acquire(key, "mine"):
            assert (curl.get(key), curl.flags(key)) == (b"mine", 7)
        assert (curl.get(key), curl.flags(key)) == (b"precious \xff", 7)
        assert "Session" not in curl.record(key)
    curl.put("flags only", b"", 7)
    with consul.lock.acquire("flags only", "mine"):
        pass
    assert (curl.get("flags only"), curl.flags("flags only")) == (b"", 7)
    curl.put("empty")
    with consul.lock.acquire("empty", "mine"):
        pass
    assert curl.get("empty") is None


def test_a_value_that_could_not_be_put_back_is_not_replaced(consul, curl):
    consul.lock.prefix("")
    consul.kv.store("big", b"x" * 400_000, 1, 0)
    with pytest.raises(consulate.TooLarge, match="risk"), consul.lock.acquire("big", "small"):
        pytest.fail("locked")
    assert curl.get("big") == b"x" * 400_000
    assert sessions_of(curl) == []


def test_a_write_just_before_the_lock_is_not_lost(curl, proxy):
    """It comes after the key was read, and before the transaction that locks it."""

    def write(seen):
        if seen.path.startswith(("/v1/kv/", "/v1/txn")):
            asked.append(seen.path)
            if len(asked) == 2:
                curl.put("config", b"another's", 3)

    with through(proxy) as own:
        own.lock.prefix("")
        for value in (None, "mine"):
            asked = []
            proxy.fault = write
            with own.lock.acquire("config", value):
                assert len(asked) == 4
            assert (curl.get("config"), curl.flags("config")) == (b"another's", 3)
            assert "Session" not in curl.record("config")
            curl.delete("config")


@pytest.mark.parametrize("before", [None, b"before"])
@pytest.mark.parametrize("value", [None, "mine"])
def test_what_others_write_during_the_block_stays(consul, curl, before, value):
    consul.lock.prefix("")
    if before:
        curl.put("config", before, 7)
    with consul.lock.acquire("config", value) as hold:
        curl.put("config", b"another's", 3)
        assert curl.record("config")["Session"] == hold.session
    assert (curl.get("config"), curl.flags("config")) == (b"another's", 3)
    assert "Session" not in curl.record("config")
    with consul.lock.acquire("config", "mine") as hold:
        curl.put("config", b"mine", 3)  # just the same, but it was written
    assert curl.get("config") == b"mine"
    assert sessions_of(curl) == []


def test_a_write_just_before_the_end_stays(curl, proxy):
    left = []

    def write(seen):
        if left and seen.path.startswith("/v1/txn"):
            curl.put("consulate/locks/k", left.pop())

    proxy.fault = write
    with through(proxy) as own:
        for times in (1, 2):  # the second time while the key, written to, is unlocked
            with own.lock.acquire("k", "mine"):
                left += [b"another's"] * times
            assert left == []
            assert curl.get("consulate/locks/k") == b"another's"
            assert "Session" not in curl.record("consulate/locks/k")
            curl.delete("consulate/locks/k")


def test_a_key_that_was_deleted_or_unlocked_by_others_was_lost(consul, curl):
    for operation in ({"Verb": "delete"}, {"Verb": "unlock"}):
        with pytest.raises(consulate.LockFailure, match="lost"), consul.lock.acquire("k") as hold:
            assert curl.txn({**operation, "Key": hold.key, "Session": hold.session}) is not None
        curl.delete_all()
        assert sessions_of(curl) == []


@pytest.mark.parametrize("leave", [lambda: None, sys.exit], ids=["at its end", "by SystemExit"])
def test_a_forked_child_leaves_the_parents_lock(consul, curl, leave):
    """The child tells what it saw by its exit status, and never comes back to pytest."""
    parent, seen = os.getpid(), 0
    try:
        with contextlib.suppress(SystemExit), consul.lock.acquire("k") as hold:
            child = os.fork()
            if child == 0:
                seen = 2 * hold.lost + (consul.lock.key is None)
                leave()
            else:
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 47
                assert not hold.lost
                assert consul.lock.key == hold.key
                assert curl.record(hold.key)["Session"] == hold.session
                assert sessions_of(curl) == ["lock consulate/locks/k"]
        seen += 4  # the block was left without another exception
    finally:
        if os.getpid() != parent:
            os._exit(40 + seen)
    assert curl.keys() == []
    assert sessions_of(curl) == []


def test_a_lost_lock_is_said(consul, curl):
    def lose():
        with consul.lock.acquire("lost") as hold:
            consul.session.destroy(hold.session)

    with pytest.raises(consulate.LockFailure, match="lost"):
        lose()


def test_a_lost_lock_does_not_delete_what_another_stored(consul, curl):
    with pytest.raises(consulate.LockFailure), consul.lock.acquire("lost-1") as hold:
        curl("PUT", f"session/destroy/{hold.session}")
        curl.put(hold.key, b"another's")
    assert curl.get("consulate/locks/lost-1") == b"another's"


def test_the_session_is_renewed_while_the_lock_is_held(proxy, curl):
    with through(proxy) as own:
        own.lock.ttl = 10
        with own.lock.acquire("renewed") as hold:
            until(lambda: sum("/session/renew/" in seen.path for seen in proxy.requests) == 2)
            assert not hold.lost
    asked = [seen.path.split("/")[3] for seen in proxy.requests if "/session/" in seen.path]
    assert asked == ["create", "renew", "renew", "destroy"]


def test_a_lock_does_not_wait_for_the_clients_other_calls(curl, proxy):
    """All its connections are in blocking queries while the lock is taken, renewed and given back."""
    curl.put("seen", b"1")
    with through(proxy, timeout=5) as own:
        own.kv.get("seen")
        wait = {"index": own.kv.meta.index, "wait": "5m"}
        readers = [threading.Thread(target=own.kv.get, args=("seen",), kwargs=wait) for _ in range(100)]
        assert len(readers) == adapters.MAX_CONNECTIONS
        try:
            for reader in readers:
                reader.start()
            until(lambda: sum("index=" in seen.path for seen in proxy.requests) == len(readers))
            own.lock.ttl = 10
            with own.lock.acquire("k") as hold:
                until(lambda: any("/session/renew/" in seen.path for seen in proxy.requests))
                assert not hold.lost
            assert curl.keys() == ["seen"]
            assert sessions_of(curl) == []
            assert all(reader.is_alive() for reader in readers)
        finally:
            curl.put("seen", b"2")
            for reader in readers:
                reader.join()


@pytest.mark.parametrize("ready", [False, True])
def test_a_client_closes_the_connections_of_its_locks_too(agent, curl, ready):
    """A class is built twice with the same arguments; an adapter that is ready is shared."""
    made, closed = [], []

    class Mine(adapters.Request):
        def __init__(self, **given):
            super().__init__(**given)
            made.append(given)

        def close(self):
            super().close()
            closed.append(self)

    own = consulate.Consul("127.0.0.1", agent.port, timeout=9, adapter=Mine() if ready else Mine)
    with own, own.lock.acquire("k") as hold:
        assert curl.record(hold.key)["Session"] == hold.session
    assert made == ([{}] if ready else [{"timeout": 9, "verify": True, "cert": None}] * 2)
    assert len(set(closed)) == len(made)


def test_a_sessions_calls_take_a_time_of_their_own(consul, curl, proxy):
    made = consul.session.create()
    with through(proxy) as own:
        proxy.fault = lambda seen: 3.0
        for call, argument in ((own.session.create, "n"), (own.session.renew, made), (own.session.destroy, made)):
            with pytest.raises(consulate.AnswerTimeout):
                call(argument, timeout=0.2)
        proxy.fault = lambda seen: None
        until(lambda: sessions_of(curl) == ["n"])  # all of them were sent
    for each in consul.session.list():
        consul.session.destroy(each["ID"])


def test_a_renewal_that_is_refused_for_a_session_that_lives_is_tried_again(curl, proxy):
    """As by a server that has just started and has not read yet what it stored."""
    left = [(404, b"Session id not found"), (500, b"busy"), (404, b"Session id not found")]
    asked = []

    def refuse(seen):
        if left and "/session/renew/" in seen.path:
            return left.pop()
        if "/session/info/" in seen.path:
            asked.append(seen.path)
            return (500, b"rpc error: no leader") if len(asked) == 1 else None
        return None

    proxy.fault = refuse
    with through(proxy) as own:
        own.lock.ttl = 10
        with own.lock.acquire("k") as hold:
            until(lambda: hold.lost or sum("/session/renew/" in seen.path for seen in proxy.requests) == 5)
            assert not hold.lost
    assert len(asked) == 2
    assert all("consistent" in path for path in asked)


def test_one_renewal_without_an_answer_loses_no_lock(curl, proxy):
    """Consul answers everything else meanwhile; the client's own timeout is longer than the TTL."""
    stuck = []

    def delay(seen):
        if "/session/renew/" in seen.path and not stuck:
            stuck.append(seen)
            return 40
        return None

    proxy.fault = delay
    with through(proxy) as own:
        own.lock.ttl = 10
        with own.lock.acquire("k") as hold:
            until(lambda: hold.lost or sum("/session/renew/" in seen.path for seen in proxy.requests) == 3)
            assert not hold.lost
    assert sessions_of(curl) == []


def verbs(seen):
    return [each["KV"]["Verb"] for each in json.loads(seen.body)] if seen.path.startswith("/v1/txn") else []


@pytest.mark.parametrize("fault", ["cut", "drop", "half", (500, b"busy"), (429, b"too many")], ids=str)
@pytest.mark.parametrize("before", [None, b"before"])
def test_a_lost_answer_at_the_end_leaves_nothing_behind(curl, proxy, fault, before):
    if before:
        curl.put("k", before, 7)
    left = {"delete-cas": 1, "unlock": 1, "destroy": 1}

    def lose(seen):
        step = "destroy" if "/session/destroy/" in seen.path else (verbs(seen) or [""])[-1]
        left[step] = left.get(step, 0) - 1
        return fault if left[step] >= 0 else None

    proxy.fault = lose
    with through(proxy) as own:
        own.lock.prefix("")
        with own.lock.acquire("k", "mine"):
            pass
    assert sessions_of(curl) == []
    assert (curl.get("k"), curl.flags("k")) == ((before, 7) if before else (None, None))
    assert "Session" not in (curl.record("k") or {})
    assert left["destroy"] < 0
    assert min(left["delete-cas"], left["unlock"]) < 0


def test_a_lock_that_was_lost_before_its_lost_answer_is_said(curl, proxy):
    seen_before = []

    def lose(seen):
        if "delete-cas" in verbs(seen) and not seen_before:
            seen_before.append(curl("PUT", f"session/destroy/{hold.session}"))
            return "drop"
        return None

    with through(proxy) as own, pytest.raises(consulate.LockFailure, match="lost"), own.lock.acquire("lost-4") as hold:
        proxy.fault = lose


@pytest.mark.parametrize("before", [None, b"before"])
@pytest.mark.parametrize("written", [None, b"another's"])
def test_a_lock_whose_taking_was_not_answered_is_given_back(curl, proxy, before, written):
    if before:
        curl.put("k", before, 7)
    asked = []

    def lose(seen):
        asked.append(verbs(seen))
        if "lock" in asked[-1]:
            return "cut"
        if written and seen.path.startswith("/v1/kv/k") and any("lock" in each for each in asked):
            curl.put("k", written, 3)
        return None

    proxy.fault = lose
    with through(proxy) as own:
        own.lock.prefix("")
        with pytest.raises(consulate.ConnectionBroken), own.lock.acquire("k", "mine"):
            pytest.fail("locked")
        assert sessions_of(curl) == []
        expected = (written, 3) if written else (before, 7) if before else (None, None)
        assert (curl.get("k"), curl.flags("k")) == expected
        proxy.fault = lambda seen: None
        with own.lock.acquire("k"):
            pass  # no lock-delay


def test_a_hold_knows_that_it_is_lost(consul, curl):
    consul.lock.ttl = 10
    with pytest.raises(consulate.LockFailure), consul.lock.acquire("lost-2") as hold:
        curl("PUT", f"session/destroy/{hold.session}")
        until(lambda: hold.lost)


def test_a_hold_is_lost_when_consul_cannot_be_asked_for_its_time(curl, proxy):
    """Nobody said so, but the servers may have given the lock to others by now."""
    with through(proxy) as own:
        own.lock.ttl = 10
        with own.lock.acquire("lost-3") as hold:
            proxy.fault = lambda seen: "drop" if "/renew/" in seen.path else None
            until(lambda: hold.lost)


def test_without_consul_at_the_end_the_blocks_own_error_is_seen():
    with Agent() as own, consulate.Consul("127.0.0.1", own.port, timeout=2) as consul:

        def work():
            with consul.lock.acquire("k"):
                own.stop()
                raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine"):
            work()
        with pytest.raises(consulate.ConnectFailed), consul.lock.acquire("k"):
            pytest.fail("locked without Consul")


def test_many_threads_exclude_each_other_by_one_client(consul, curl):
    """Each tries until it has the lock; the counter in the middle is not protected by anything else."""
    curl.put("n", b"0")

    def add():
        done = 0
        while done < 5:
            try:
                with consul.lock.acquire("counter") as hold:
                    assert consul.lock.key == hold.key
                    number = int(consul.kv.read("n").value)
                    consul.kv._write("kv/n", str(number + 1).encode())
                    done += 1
            except consulate.LockFailure:
                pass

    threads = [threading.Thread(target=add) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert curl.get("n") == b"30"
    assert sessions_of(curl) == []


def test_the_class_is_built_as_the_reference_says(agent, curl):
    uri, adapter = f"http://127.0.0.1:{agent.port}/v1", adapters.Request()
    lock = api.lock.Lock(uri, adapter, api.session.Session(uri, adapter), "dc1", None)
    with lock.acquire("k"):
        assert curl.keys() == ["consulate/locks/k"]
    adapter.close()
