"""The key/value store of the client: the dict face, exact records, locks; checked with curl."""

import json
import threading
import tracemalloc

import pytest
from support.proxy import Proxy

from consulfs import consulate
from consulfs.consulate.api.txn import operation


def test_the_dict(consul, curl):
    consul.kv["a"] = "text"
    consul.kv["b"] = True
    consul.kv["c"] = 128
    consul.kv["d"] = {"x": [1]}
    consul.kv["e"] = b"\xff\x00"
    assert curl.tree() == {"a": b"text", "b": b"true", "c": b"128", "d": b'{"x": [1]}', "e": b"\xff\x00"}
    assert (consul.kv["a"], consul.kv["b"], consul.kv["c"], consul.kv["e"]) == ("text", "true", "128", b"\xff\x00")
    assert "a" in consul.kv
    assert "z" not in consul.kv
    assert len(consul.kv) == 5
    assert list(consul.kv) == consul.kv.keys() == ["a", "b", "c", "d", "e"]
    assert consul.kv.items()["a"] == "text"
    assert isinstance(consul.kv.items(), dict)
    assert dict(consul.kv.iteritems()) == consul.kv.items()
    assert sorted(consul.kv.values(), key=str) == sorted(consul.kv.items().values(), key=str)
    del consul.kv["a"]
    assert curl.get("a") is None


@pytest.mark.parametrize("kind", [KeyError, AttributeError])
def test_a_missing_key(consul, kind):
    with pytest.raises(kind):
        consul.kv["none"]
    assert consul.kv.get("none") is None
    assert consul.kv.get("none", "default") == "default"
    assert consul.kv.get_record("none") is None
    assert consul.kv.delete("none") is True


def test_records(consul, curl):
    consul.kv.set_record("app/a", 5, "one")
    assert consul.kv.set_record("app/a", 6, "two", replace=False) is False
    assert (curl.get("app/a"), curl.flags("app/a")) == (b"one", 5)
    consul.kv.set("app/a", "three")
    assert (curl.get("app/a"), curl.flags("app/a")) == (b"three", 5)
    record = consul.kv.get_record("app/a")
    assert (record["Key"], record["Value"], record["Flags"]) == ("app/a", "three", 5)
    assert record["ModifyIndex"] == curl.record("app/a")["ModifyIndex"]
    assert consul.kv.records() == [("app/a", 5, "three")]
    consul.kv["app/b/c"] = "x"
    assert consul.kv.find("app/") == {"app/a": "three", "app/b/c": "x"}
    assert consul.kv.find("app/", "/") == ["app/a", "app/b/"]
    assert consul.kv.records("app/b") == [("app/b/c", 0, "x")]
    consul.kv.delete("app/", recurse=True)
    assert curl.keys() == []


def test_odd_keys_are_never_redirected(consul, curl):
    for key in ("a//b", "x/../y", "x/./y", "q?x=1", "h#x", "p%41", "s p", "new\nline", "\U0001fae8"):
        consul.kv.set_record(key, 3, key)
        assert curl.tree() == {key: key.encode()}
        assert consul.kv.read(key).value == key.encode()
        assert [record.key for record in consul.kv.tree(key[:3])] == [key]
        assert consul.kv.names(key[:3]) == [key]
        consul.kv.remove(key)
        assert curl.keys() == []


def test_two_clients_add_up(agent, curl):
    """Writes use compare-and-set: flags that one client sets and values that another sets do not undo each other."""
    curl.put("f", b"0")

    def work(method):
        with consulate.Consul("127.0.0.1", agent.port, timeout=10) as consul:
            for number in range(1, 101):
                method(consul.kv, number)

    threads = [
        threading.Thread(target=work, args=(lambda kv, number: kv.set("f", number),)),
        threading.Thread(target=work, args=(lambda kv, number: kv.set_record("g", number, number),)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (curl.get("f"), curl.get("g"), curl.flags("g")) == (b"100", b"100", 100)


def test_a_blocking_query_wakes(consul, curl):
    curl.put("a", b"1")
    consul.kv.get("a")
    index = consul.kv.meta.index
    assert index == curl.record("a")["ModifyIndex"]
    assert consul.kv.meta.known_leader is True
    threading.Timer(0.3, lambda: curl.put("a", b"2")).start()
    assert consul.kv.get("a", index=index, wait="30s") == "2"
    assert consul.kv.meta.index > index
    assert consul.kv.get("a", index=consul.kv.meta.index, wait="200ms") == "2"


@pytest.mark.parametrize("mode", ["default", "consistent", "stale"])
def test_consistency(agent, proxy, curl, mode):
    curl.put("a", b"1")
    host, port = proxy.address.split(":")
    with consulate.Consul(host, int(port), timeout=10) as consul:
        assert consul.kv.get("a", consistency=mode) == "1"
        assert consul.kv.items(consistency=mode) == {"a": "1"}
        assert consul.kv.keys(consistency=mode) == ["a"] == list(consul.kv.find("a", consistency=mode))
        assert (mode in proxy.requests[-1].path) == (mode != "default")
        with pytest.raises(ValueError, match="consistency"):
            consul.kv.get("a", consistency="wrong")


def test_slashes_at_the_beginning_are_stripped_alike(consul, curl):
    consul.kv["/a"] = "1"
    assert curl.tree() == {"a": b"1"}
    assert consul.kv["/a"] == "1"
    del consul.kv["/a"]
    assert curl.keys() == []


def test_an_odd_key_cannot_be_waited_for(consul, curl):
    curl.put("a//b", b"1")
    assert consul.kv.read("a//b", index=None).value == b"1"
    with pytest.raises(ValueError, match="wait"):
        consul.kv.read("a//b", index=1, wait="1s")


def test_what_is_not_a_string_is_stored_as_json_and_read_as_its_text(consul, curl):
    for value, text in (
        (True, "true"),
        (128, "128"),
        (1.5, "1.5"),
        ([1, "é"], '[1, "\\u00e9"]'),
        ({"a": None}, '{"a": null}'),
        (bytearray(b"x"), "x"),
        ("é", "é"),
        ("", ""),
    ):
        consul.kv["x"] = value
        assert curl.get("x") == text.encode()
        assert consul.kv["x"] == consul.kv.get("x", raw=True) == text
    with pytest.raises(TypeError):
        consul.kv["x"] = object()
    assert curl.get("x") == b""


def test_a_slash_at_the_end_makes_a_folder_only_without_a_value(consul, curl):
    consul.kv.set("path/x/", "v")
    consul.kv.set("path/y/", None)
    assert curl.tree() == {"path/x": b"v", "path/y/": b""}
    assert curl.record("path/y/")["Value"] is None
    assert "/path/x" in consul.kv
    assert list(consul.kv.find("/path/x")) == ["path/x"]


def test_set_record_and_get_record_take_the_key_as_it_is(consul, curl):
    consul.kv.set_record("/lead", 2**64 - 1, b"\x00\xff")
    consul.kv.set_record("end/", 1, "v")
    assert (curl.get("/lead"), curl.flags("/lead")) == (b"\x00\xff", 2**64 - 1)
    assert (curl.get("end/"), curl.flags("end/")) == (b"v", 1)
    assert consul.kv.get_record("/lead")["Value"] == b"\x00\xff"
    assert consul.kv.get_record("/end/")["Key"] == "end/"
    assert consul.kv.get_record("/none") is None


def test_a_write_of_the_same_value_with_other_flags_is_no_write_lost(consul, curl):
    consul.kv.set_record("a", 1, "same")
    consul.kv.set_record("a", 2, "same")
    assert curl.flags("a") == 2


def test_deleting_below_a_prefix_leaves_the_rest(consul, curl):
    for key in ("app/a", "app/b/c", "apple", "b//c"):
        curl.put(key, b"1")
    consul.kv.delete("/app/", recurse=True)
    assert curl.keys() == ["apple", "b//c"]
    consul.kv.remove("b//", recurse=True)
    assert curl.keys() == ["apple"]


def test_many_keys_in_one_request(proxy, curl):
    keys = [f"k/{number}" for number in range(60)] + ["a//b", "/lead"]
    for key in keys:
        curl.put(key, key.encode())
    host, port = proxy.address.split(":")
    with consulate.Consul(host, int(port)) as consul, proxy.counting() as count:
        found = consul.kv.read_many([*keys, "missing", "gone"])
        assert {key: record.value for key, record in found.items()} == {key: key.encode() for key in keys}
        assert consul.kv.read_many([]) == {}
        assert consul.kv.read_many(["missing"]) == {}
    assert len(count.requests) == 3  # one that names what is missing, one without that; one more


def test_a_stream_gives_what_the_store_held_at_one_moment(consul, curl):
    keys = ["a//b", "n/1", "n/2", "z"]
    for number, key in enumerate(keys):
        curl.put(key, bytes([255, number]), 2**64 - 1 - number)
    found = list(consul.kv.stream())
    assert [(each.key, each.value, each.flags) for each in found] == [
        (key, bytes([255, number]), 2**64 - 1 - number) for number, key in enumerate(keys)
    ]
    assert consul.kv.meta.index == max(each.modify_index for each in found)
    assert [each.key for each in consul.kv.stream("n/")] == ["n/1", "n/2"]
    assert [each.key for each in consul.kv.stream("a//")] == ["a//b"]
    assert list(consul.kv.stream("none/")) == []
    first = consul.kv.stream()
    next(first)
    first.close()
    assert consul.kv["z"] == "\x03" or consul.kv["z"] == b"\xff\x03"


def test_a_stream_needs_little_memory(consul, curl):
    """40 MiB of values, a peak of a few: one record and one piece of the answer at a time."""
    for number in range(80):
        consul.kv.store(f"big/{number}", b"x" * 500_000, 0, 0)
    tracemalloc.start()
    try:
        assert sum(len(each.value) for each in consul.kv.stream("big/")) == 40_000_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_only_one_of_many_writers_wins_a_conflict_and_none_is_lost(consul, curl):
    """Sixteen threads append a letter each to one value."""
    curl.put("word", b"")

    def add(letter):
        while True:
            old = consul.kv.read("word")
            try:
                consul.kv.store("word", old.value + letter, 0, old.modify_index)
                return
            except consulate.StaleIndex:
                pass

    threads = [threading.Thread(target=add, args=(bytes([65 + n]),)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(curl.get("word")) == list(range(65, 81))


# -- locks ---------------------------------------------------------------------------------------------------


@pytest.fixture
def sessions(consul):
    """Two sessions without a lock-delay."""
    made = [consul.session.create(delay=0), consul.session.create(delay=0)]
    yield made
    for each in made:
        consul.session.destroy(each)


def test_a_lock_leaves_the_value_and_the_flags(consul, curl, sessions):
    mine, other = sessions
    for key in ("app/a", "odd//key"):
        curl.put(key, b"precious \xff", 7)
        assert consul.kv.acquire_lock(key, mine) is True
        assert curl.record(key)["Session"] == mine
        assert consul.kv.acquire_lock(key, mine) is True
        assert consul.kv.acquire_lock(key, other) is False
        assert consul.kv.release_lock(key, other) is False
        assert curl.record(key)["Session"] == mine
        assert consul.kv.release_lock(key, mine) is True
        assert consul.kv.release_lock(key, mine) is False
        assert "Session" not in curl.record(key)
        assert (curl.get(key), curl.flags(key)) == (b"precious \xff", 7)


def test_a_lock_sets_what_is_given(consul, curl, sessions):
    curl.put("a", b"old", 7)
    assert consul.kv.acquire_lock("a", sessions[0], value={"host": "x"}) is True
    assert (curl.get("a"), curl.flags("a")) == (b'{"host": "x"}', 7)
    assert consul.kv.acquire_lock("/a", sessions[0], flags=9) is True
    assert (curl.get("a"), curl.flags("a")) == (b'{"host": "x"}', 9)
    assert consul.kv.acquire_lock("new", sessions[0], "v", 0, 3) is True
    assert (curl.get("new"), curl.flags("new")) == (b"v", 3)


def test_a_lock_with_an_expected_index(consul, curl, sessions):
    curl.put("a", b"old")
    index = curl.record("a")["ModifyIndex"]
    assert consul.kv.acquire_lock("a", sessions[0], cas=index + 1) is False
    assert consul.kv.acquire_lock("a", sessions[0], cas=0) is False
    assert "Session" not in curl.record("a")
    assert consul.kv.acquire_lock("a", sessions[0], cas=index) is True
    assert consul.kv.acquire_lock("a", sessions[0], cas=index) is False
    assert consul.kv.release_lock("missing", sessions[0]) is False


def test_a_lock_waits_for_nobody(consul, curl):
    """While the lock-delay of a session that ended runs, it is not to be had; that is no error."""
    gone = consul.session.create(delay="60s")
    assert consul.kv.acquire_lock("delayed", gone) is True
    consul.session.destroy(gone)
    mine = consul.session.create()
    assert consul.kv.acquire_lock("delayed", mine) is False
    consul.session.destroy(mine)
    with pytest.raises(consulate.UnknownSession, match="invalid session"):
        consul.kv.acquire_lock("b", mine)
    with pytest.raises(consulate.UnknownSession):
        consul.kv.acquire_lock("b", "no-session")


def test_a_value_too_large_for_a_transaction_is_not_locked(consul, curl, sessions):
    """By PUT it could be, but another's write in between would be lost."""
    consul.kv.store("big", b"x" * 400_000, 1, 0)
    with pytest.raises(consulate.TooLarge, match="risk"):
        consul.kv.acquire_lock("big", sessions[0])
    assert len(curl.get("big")) == 400_000


def test_locks_lose_no_write_of_others(consul, agent, curl, sessions):
    """A storm of lock and unlock on a key that another client writes without asking for the lock."""
    curl.put("n", b"0", 5)
    stop = threading.Event()
    taken = []

    def locking():
        with consulate.Consul("127.0.0.1", agent.port) as own:
            while not stop.is_set():
                if own.kv.acquire_lock("n", sessions[0]):
                    taken.append(own.kv.release_lock("n", sessions[0]))

    thread = threading.Thread(target=locking)
    thread.start()
    try:
        for number in range(1, 151):
            curl.put("n", str(number).encode(), number)
            assert (curl.get("n"), curl.flags("n")) == (str(number).encode(), number)
    finally:
        stop.set()
        thread.join(60)
    assert (curl.get("n"), curl.flags("n")) == (b"150", 150)
    assert len(taken) > 10
    assert all(taken)


def test_a_broken_answer_of_the_store_is_named(agent, curl):
    curl.put("a", b"1")
    with Proxy(agent.port) as proxy:
        host, port = proxy.address.split(":")
        with consulate.Consul(host, int(port), timeout=10) as consul:
            for text in (
                b"<html>hello</html>",
                b'{"a": 1}',
                b'[{"Key": 1',
                b'[{"Flags": 1}]',
                b'[{"Key":"a","Value":"YQ"}]',
            ):
                proxy.fault = lambda seen, text=text: (200, text)
                with pytest.raises(consulate.BadAnswer, match="GET /v1/kv/a"):
                    consul.kv.get("a")
                with pytest.raises(consulate.BadAnswer, match="GET /v1/kv/"):
                    list(consul.kv.stream())
            proxy.fault = lambda seen: (200, json.dumps("x").encode())
            with pytest.raises(consulate.BadAnswer):
                consul.txn.execute([operation("get", "a")])
            with pytest.raises(consulate.BadAnswer):
                consul.kv.store("a", b"x" * 500_000, 0, 0)
    assert curl.get("a") == b"1"
