"""Transactions against a real Consul, checked with curl: of keys, of the catalog and of both together."""

import base64

import pytest
from support.agent import Agent
from support.curl import Curl

from consulfs import consulate
from consulfs.consulate.api.txn import operation

MASTER = "11111111-2222-3333-4444-666666666666"


@pytest.fixture(scope="module")
def agent():
    with Agent() as agent:
        yield agent


@pytest.fixture
def curl(agent):
    """On an empty store, and a catalog of the agent's own node only."""
    curl = Curl(agent.url)
    curl.delete_all()
    yield curl
    curl.delete_all()
    curl("PUT", "catalog/deregister", b'{"Node": "db1"}')


NODE = {"Node": "db1", "Address": "10.0.0.1"}
SERVICE = {"ID": "db", "Service": "db", "Port": 5432, "Tags": ["primary"]}
CHECK = {"Node": "db1", "CheckID": "alive", "Name": "alive", "Status": "passing"}
REGISTER = [
    {"Node": {"Verb": "set", "Node": NODE}},
    {"Service": {"Verb": "set", "Node": "db1", "Service": SERVICE}},
    {"Check": {"Verb": "set", "Check": CHECK}},
]


def test_keys_and_catalog_are_changed_together(consul, curl):
    rows = consul.txn.apply([*REGISTER, operation("set", "db1//state", b"up", flags=3)])
    assert [list(row) for row in rows] == [["Node"], ["Service"], ["Check"], ["KV"]]
    assert (rows[0]["Node"]["Address"], rows[1]["Service"]["Port"], rows[2]["Check"]["Status"]) == (
        "10.0.0.1", 5432, "passing",
    )  # fmt: skip
    (found,) = curl.json("catalog/service/db")
    assert (found["Node"], found["Address"], found["ServicePort"]) == ("db1", "10.0.0.1", 5432)
    assert curl.json("health/node/db1")[0]["Status"] == "passing"
    assert (curl.get("db1//state"), curl.flags("db1//state")) == (b"up", 3)


def test_reading_the_catalog_in_a_transaction(consul, curl):
    consul.txn.apply(REGISTER)
    curl.put("a", b"1")
    rows = consul.txn.apply(
        [
            {"Node": {"Verb": "get", "Node": {"Node": "db1"}}},
            {"Service": {"Verb": "get", "Node": "db1", "Service": {"ID": "db", "Service": "db"}}},
            {"Check": {"Verb": "get", "Check": {"Node": "db1", "CheckID": "alive"}}},
            operation("get", "a"),
        ],
        stale=True,
    )
    assert rows[0]["Node"]["ModifyIndex"] == curl.json("catalog/node/db1")["Node"]["ModifyIndex"]
    assert rows[1]["Service"]["Tags"] == ["primary"]
    assert rows[2]["Check"]["CheckID"] == "alive"
    assert base64.b64decode(rows[3]["KV"]["Value"]) == b"1"
    assert consul.txn.meta.known_leader is True


def test_compare_and_set_of_the_catalog(consul, curl):
    rows = consul.txn.apply(REGISTER)
    index = rows[0]["Node"]["ModifyIndex"]
    moved = {**NODE, "Address": "10.0.0.2"}
    (row,) = consul.txn.apply([{"Node": {"Verb": "cas", "Node": {**moved, "ModifyIndex": index}}}])
    assert row["Node"]["Address"] == curl.json("catalog/node/db1")["Node"]["Address"] == "10.0.0.2"
    stale = [
        operation("set", "a", b"1"),
        {"Node": {"Verb": "cas", "Node": {**NODE, "ModifyIndex": index}}},
        {"Service": {"Verb": "cas", "Node": "db1", "Service": {**SERVICE, "ModifyIndex": 1}}},
        {"Check": {"Verb": "delete-cas", "Check": {**CHECK, "ModifyIndex": 1}}},
    ]
    with pytest.raises(consulate.StaleIndex) as caught:
        consul.txn.apply(stale)
    assert [index for index, _ in caught.value.errors] == [1, 2, 3]
    assert curl.keys() == []
    assert curl.json("catalog/node/db1")["Node"]["Address"] == "10.0.0.2"


def test_deleting_gives_no_rows(consul, curl):
    consul.txn.apply(REGISTER)
    assert consul.txn.apply([{"Check": {"Verb": "delete", "Check": CHECK}}]) == []
    assert curl.json("health/node/db1") == []
    assert consul.txn.apply([{"Service": {"Verb": "delete", "Node": "db1", "Service": SERVICE}}]) == []
    assert curl.json("catalog/service/db") == []
    assert consul.txn.apply([{"Node": {"Verb": "delete", "Node": NODE}}, operation("delete", "none")]) == []
    assert b"db1" not in curl("GET", "catalog/nodes")[1]
    assert consul.txn.apply([]) == []


def test_what_is_refused_as_a_whole(consul, curl):
    for wrong, words in [
        ({"Check": {"Verb": "nonsense", "Check": CHECK}}, "unknown Check verb"),
        ({"Service": {"Verb": "set", "Node": "nobody", "Service": SERVICE}}, "Missing node registration|nobody"),
    ]:
        with pytest.raises(consulate.TransactionFailed, match=words) as caught:
            consul.txn.apply([operation("set", "a", b"1"), wrong])
        assert not isinstance(caught.value, consulate.StaleIndex)
        assert caught.value.status == 409
    with pytest.raises(consulate.TooLarge):
        consul.txn.apply([operation("get", "a")] * 65)
    for method in (consul.txn.apply, consul.txn.execute):
        with pytest.raises(ValueError, match="cannot wait"):
            method([], index=1)
        with pytest.raises(ValueError, match="consistency"):
            method([], consistency="wrong")
    assert curl.keys() == []


@pytest.mark.parametrize(
    ("verb", "arguments", "key"),
    [
        ("set", {"value": b"2", "flags": 9}, (b"2", 9)),
        ("get", {}, (b"1", 5)),
        ("get-tree", {}, (b"1", 5)),
        ("check-index", {}, (b"1", 5)),
        ("cas", {"value": b"2"}, (b"2", 0)),
        ("delete", {}, None),
        ("delete-tree", {}, None),
        ("delete-cas", {}, None),
    ],
)
def test_every_verb_of_keys(consul, curl, verb, arguments, key):
    curl.put("a", b"1", 5)
    if verb in ("check-index", "cas", "delete-cas"):
        arguments = {**arguments, "index": curl.record("a")["ModifyIndex"]}
    entries = consul.txn.execute([operation(verb, "a", **arguments)], consistency="consistent", dc="dc1", timeout=5)
    assert [entry["Key"] for entry in entries] == ([] if verb.startswith("delete") else ["a"])
    assert (None if key is None else (curl.get("a"), curl.flags("a"))) == key
    assert (curl.record("a") is None) == (key is None)


def test_locks_in_transactions(consul, curl):
    session = consul.session.create(delay=0)
    try:
        consul.txn.execute([operation("check-not-exists", "a"), operation("lock", "a", b"held", session=session)])
        assert curl.record("a")["Session"] == session
        consul.txn.execute([operation("check-session", "a", session=session)])
        for wrong in (operation("check-not-exists", "a"), operation("check-session", "a", session="other")):
            with pytest.raises(consulate.TransactionFailed):
                consul.txn.execute([wrong])
        consul.txn.execute([operation("unlock", "a", b"free", session=session)])
        assert (curl.get("a"), curl.record("a").get("Session")) == (b"free", None)
        with pytest.raises(consulate.UnknownSession):
            consul.txn.execute([operation("lock", "a", b"x", session="8f246b77-f3e1-ff88-5b48-8ec93abf3e05")])
    finally:
        consul.session.destroy(session)


def test_strangers_are_refused():
    config = {"acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": MASTER}}}
    with Agent(config) as agent:
        stranger = consulate.Consul("127.0.0.1", agent.port, timeout=10)
        for operations in (REGISTER, [operation("set", "a", b"1")]):
            for method in (stranger.txn.apply, stranger.txn.execute):
                with pytest.raises(consulate.Forbidden):
                    method(operations)
        # What a token may not read is left out of the rows without a word.
        assert stranger.txn.apply([{"Node": {"Verb": "get", "Node": {"Node": "test"}}}]) == []
        assert consulate.Consul("127.0.0.1", agent.port, token=MASTER, timeout=10).txn.apply(REGISTER)


def test_a_keys_name_is_not_taken_for_consuls_words(consul, curl):
    curl.put("permission denied")
    with pytest.raises(consulate.StaleIndex):
        consul.txn.execute([operation("cas", "permission denied", b"x", index=1)])
    with pytest.raises(consulate.TransactionFailed) as failed:
        consul.txn.execute([operation("nonsense", "index is stale")])
    assert not isinstance(failed.value, consulate.StaleIndex)
