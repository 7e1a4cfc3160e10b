"""Two datacenters, joined over the WAN: what is asked of which, looked at from the other side."""

import json
import threading

import pytest
from support.agent import Agent
from support.curl import Curl
from support.datacenters import datacenters
from support.waiting import until

from consulfs import consulate
from consulfs.consulate.api.txn import operation


@pytest.fixture(scope="module")
def both():
    with datacenters() as both:
        yield both


@pytest.fixture
def here(both):
    yield from emptied(both[0])


@pytest.fixture
def there(both):
    yield from emptied(both[1])


def emptied(agent):
    curl = Curl(agent.url)
    curl.delete_all()
    yield curl
    curl.delete_all()
    for session in json.loads(curl("GET", "session/list")[1]):
        curl("PUT", f"session/destroy/{session['ID']}")


@pytest.fixture
def far(both):
    """Asks dc1's agent for dc2."""
    with consulate.Consul("127.0.0.1", both[0].port, datacenter="dc2", timeout=10) as consul:
        yield consul


@pytest.fixture
def near(both):
    with consulate.Consul("127.0.0.1", both[0].port, timeout=10) as consul:
        yield consul


def test_keys_are_written_and_read_in_the_other_datacenter(far, near, here, there):
    here.put("a", b"of dc1", flags=1)
    far.kv["a"] = "of dc2"
    far.kv.set_record("b/c", 5, "2")
    far.kv.set_record("odd//key", 6, "3")
    far.kv.set("large", "x" * 450_000)  # too large for a transaction: a plain PUT
    assert {key: len(value) for key, value in there.tree().items()} == {
        "a": 6,
        "b/c": 1,
        "odd//key": 1,
        "large": 450_000,
    }
    assert (there.flags("b/c"), there.flags("odd//key")) == (5, 6)
    assert here.tree() == {"a": b"of dc1"}
    assert (far.kv["a"], near.kv["a"]) == ("of dc2", "of dc1")
    assert far.kv.get_record("a")["ModifyIndex"] == there.record("a")["ModifyIndex"]
    assert far.kv.read("odd//key").flags == 6
    assert far.kv.keys() == ["a", "b/c", "large", "odd//key"]
    assert far.kv.find("b", "/") == ["b/"]
    assert far.kv.find("b/") == {"b/c": "2"}
    assert {record.key: record.value for record in far.kv.stream()} == there.tree()
    assert [record.key for record in far.kv.tree("odd//")] == ["odd//key"]
    assert set(far.kv.read_many(["a", "b/c", "none"])) == {"a", "b/c"}
    del far.kv["a"]
    far.kv.delete("odd//", recurse=True)
    far.kv.delete("b", recurse=True)
    assert there.keys() == ["large"]
    assert here.tree() == {"a": b"of dc1"}


def test_a_call_may_name_another_datacenter_than_the_client(far, near, here, there):
    here.put("a", b"of dc1")
    there.put("a", b"of dc2")
    there.put("odd//key", b"2")
    for consul, name, value in ((far, "dc1", "of dc1"), (near, "dc2", "of dc2"), (near, "dc1", "of dc1")):
        assert consul.kv.get("a", dc=name) == value
        assert consul.kv.find("a", dc=name) == {"a": value}
        assert next(consul.kv.stream("a", dc=name)).value == value.encode()
        assert consul.kv.read_many(["a"], dc=name)["a"].value == value.encode()
    assert near.kv.names("", dc="dc2") == ["a", "odd//key"]
    assert near.kv.read("odd//key", dc="dc2").value == b"2"
    assert near.kv.read("odd//key") is None


def test_transactions(far, near, here, there):
    far.txn.execute([operation("set", "t", b"1"), operation("set", "u", b"2")])
    assert (there.tree(), here.keys()) == ({"t": b"1", "u": b"2"}, [])
    near.txn.execute([operation("set", "t", b"3")], dc="dc2")
    assert there.get("t") == b"3"
    assert near.kv.txn.execute([operation("get-tree", "t")], dc="dc2")[0]["Key"] == "t"
    with pytest.raises(consulate.StaleIndex):
        far.txn.execute([operation("cas", "t", b"4", index=1)])


def test_a_blocking_query_wakes_on_the_other_side(far, there):
    there.put("w", b"1")
    assert far.kv.get("w") == "1"
    timer = threading.Timer(0.3, lambda: there.put("w", b"2"))
    timer.start()
    assert far.kv.get("w", index=far.kv.meta.index, wait="30s") == "2"
    timer.join()


def test_sessions_and_locks(far, near, here, there):
    session = far.session.create("far", ttl="30s", delay=0)
    assert [each["Name"] for each in json.loads(there("GET", "session/list")[1])] == ["far"]
    assert json.loads(here("GET", "session/list")[1]) == []
    assert (near.session.info(session), near.session.list()) == (None, [])
    assert near.session.info(session, dc="dc2")["Name"] == far.session.info(session)["Name"] == "far"
    assert [each["ID"] for each in far.session.list()] == [each["ID"] for each in far.session.node("test")] == [session]
    assert far.session.renew(session)["ID"] == session
    with pytest.raises(consulate.UnknownSession):
        near.session.renew(session)
    with pytest.raises(consulate.UnknownSession):
        near.kv.acquire_lock("lock", session)
    assert far.kv.acquire_lock("lock", session, value="held") is True
    assert (there.record("lock")["Session"], there.get("lock")) == (session, b"held")
    other = far.session.create("other", delay=0)
    assert far.kv.acquire_lock("lock", other) is False
    assert far.kv.release_lock("lock", session) is True
    assert "Session" not in there.record("lock")
    assert far.kv.acquire_lock("lock", other) is True
    assert far.session.destroy(other) is True
    assert "Session" not in there.record("lock")
    assert here.keys() == []


def test_the_leader_of_each(far, near, both):
    """Consul documents no dc for status; measured: it has one, and answers for that datacenter."""
    assert near.status.leader() == f"127.0.0.1:{both[0].server}"
    assert far.status.leader() == near.status.leader(dc="dc2") == f"127.0.0.1:{both[1].server}"
    assert far.status.peers() == [far.status.leader()]


def test_an_unknown_datacenter(both, near, here):
    with consulate.Consul("127.0.0.1", both[0].port, datacenter="none", timeout=10) as consul:
        for call, what in (
            (lambda: consul.kv.get("a"), "GET /v1/kv/a"),
            (lambda: near.kv.get("a", dc="none"), "GET /v1/kv/a"),
            (lambda: consul.kv.set("a", "1"), "GET /v1/kv/a"),
            (lambda: consul.kv.delete("a"), "DELETE /v1/kv/a"),
            (lambda: list(consul.kv.stream()), "GET /v1/kv/"),
            (lambda: consul.kv.set_record("odd//key", 1, "x"), "PUT /v1/txn"),
            (lambda: consul.txn.execute([operation("set", "a", b"1")]), "PUT /v1/txn"),
            (lambda: consul.session.create(), "PUT /v1/session/create"),
            (lambda: consul.session.list(), "GET /v1/session/list"),
            (lambda: consul.status.leader(), "GET /v1/status/leader"),
        ):
            with pytest.raises(consulate.UnknownDatacenter, match=f"^{what}: .*No path to datacenter") as caught:
                call()
            assert isinstance(caught.value, consulate.ServerError)
            assert caught.value.status == 500
    assert here.keys() == []


def test_a_datacenter_that_went_away(both):
    with Agent({"datacenter": "dc3"}) as three:
        assert Curl(three.url)("PUT", f"agent/join/127.0.0.1:{both[0].wan}?wan=1")[0] == 200
        curl = Curl(both[0].url)
        until(lambda: curl("GET", "session/list?dc=dc3")[0] == 200)
        with consulate.Consul("127.0.0.1", both[0].port, datacenter="dc3", timeout=30) as consul:
            consul.kv["a"] = "1"
            three.process.kill()
            three.process.wait()
            with pytest.raises((consulate.ServerError, consulate.AnswerTimeout), match="GET /v1/kv/a"):
                consul.kv.get("a")
