"""The cluster's machinery against real Consuls, two servers among them, checked with curl and `consul operator`."""

import base64
import json
import subprocess

import pytest
from support.agent import Agent, consul_command
from support.curl import Curl
from support.proxy import Proxy
from support.server import Server
from support.waiting import until

from consulfs import consulate

FIRST, SECOND = (base64.b64encode(each * 32).decode() for each in (b"a", b"b"))
MASTER = "11111111-2222-3333-4444-666666666666"


@pytest.fixture(scope="module")
def agent():
    """An agent whose gossip is encrypted."""
    with Agent({"encrypt": FIRST}) as agent:
        yield agent


@pytest.fixture
def curl(agent):
    return Curl(agent.url)


def get(curl, path):
    return curl.json(path, (200, 429))


# -- raft and autopilot --------------------------------------------------------------------------------------


@pytest.fixture
def cluster():
    """A leader, and a second server that stays without a vote, so that the leader can do without it."""
    with Agent() as leader:
        curl = Curl(leader.url)
        settings = {**get(curl, "operator/autopilot/configuration"), "ServerStabilizationTime": "1h"}
        settings["CleanupDeadServers"] = False
        assert curl("PUT", "operator/autopilot/configuration", json.dumps(settings).encode())[0] == 200
        with Server(joins=[leader.serf]) as second, consulate.Consul("127.0.0.1", leader.port, timeout=10) as consul:
            until(lambda: len(get(curl, "operator/raft/configuration")["Servers"]) == 2)
            yield consul, curl, leader, second


def test_two_servers(cluster):
    """Their configuration; the health that is none, which Consul says with 429; the removal of a peer."""
    consul, curl, _, second = cluster
    configuration = consul.operator.raft.configuration()
    assert configuration == get(curl, "operator/raft/configuration")
    servers = {each["Node"]: each for each in configuration["Servers"]}
    assert (servers["test"]["Leader"], servers["test"]["Voter"], servers["second"]["Voter"]) == (True, True, False)
    assert consul.operator.raft.configuration(stale=True)["Servers"] == configuration["Servers"]

    until(lambda: curl("GET", "operator/autopilot/health")[0] == 200)
    assert consul.operator.autopilot.health()["Healthy"] is True
    second.freeze()
    until(lambda: curl("GET", "operator/autopilot/health")[0] == 429)
    health = consul.operator.autopilot.health(dc="dc1")
    assert (health["Healthy"], health["FailureTolerance"]) == (False, 0)
    assert {each["Name"]: each["Healthy"] for each in health["Servers"]} == {"test": True, "second": False}
    second.kill()

    for wrong in ({}, {"address": "127.0.0.1:1", "id": "x"}):
        with pytest.raises(ValueError, match="address or by its ID"):
            consul.operator.raft.remove_peer(**wrong)
    with pytest.raises(consulate.ServerError, match="was not found"):
        consul.operator.raft.remove_peer("127.0.0.1:1")
    with pytest.raises(consulate.ServerError, match="was not found"):
        consul.operator.raft.remove_peer(id="no such server")
    assert consul.operator.raft.remove_peer(id=servers["second"]["ID"]) is True
    assert [each["Node"] for each in get(curl, "operator/raft/configuration")["Servers"]] == ["test"]


def test_a_peer_is_removed_by_its_address(cluster):
    consul, curl, leader, second = cluster
    (address,) = (each["Address"] for each in get(curl, "operator/raft/configuration")["Servers"] if not each["Voter"])
    second.kill()
    assert consul.operator.raft.remove_peer(address) is True
    command = [consul_command(), "operator", "raft", "list-peers", f"-http-addr={leader.address}"]
    assert address not in subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


def test_autopilots_configuration(consul, curl):
    autopilot = consul.operator.autopilot
    before = autopilot.configuration()
    assert before == get(curl, "operator/autopilot/configuration")
    assert before["CleanupDeadServers"] is True
    try:
        index = before["ModifyIndex"]
        assert autopilot.update({**before, "MaxTrailingLogs": 300, "LastContactThreshold": "1s"}, cas=index) is True
        after = get(curl, "operator/autopilot/configuration")
        assert (after["MaxTrailingLogs"], after["LastContactThreshold"], after["CleanupDeadServers"]) == (
            300, "1s", True,
        )  # fmt: skip
        assert autopilot.update({**before, "MaxTrailingLogs": 5}, cas=index) is False
        assert get(curl, "operator/autopilot/configuration") == after == autopilot.configuration(stale=True)
        assert autopilot.update({"MaxTrailingLogs": 7}) is True  # the rest becomes zero, as documented
        assert get(curl, "operator/autopilot/configuration")["ServerStabilizationTime"] == "0s"
    finally:
        autopilot.update(before)
    assert get(curl, "operator/autopilot/configuration")["ServerStabilizationTime"] == "10s"


def test_what_newer_consuls_have(agent, consul):
    """What is asked is seen, what a newer Consul answers is from its documentation; 1.8.7 knows none of it."""
    with Proxy(agent.port) as proxy:
        host, port = proxy.address.split(":")
        newer = consulate.Consul(host, int(port), timeout=10).operator
        proxy.fault = lambda seen: (200, b'{"Success": true}')
        assert newer.raft.transfer_leader() is True
        assert newer.raft.transfer_leader(id="4b1a") is True
        proxy.fault = lambda seen: (200, b'{"Usage": {"dc1": {"Services": 1}}}')
        assert newer.usage()["Usage"] == newer.usage(all_datacenters=True, stale=True)["Usage"]
        proxy.fault = lambda seen: (200, b'{"Healthy": true, "Servers": {}}')
        assert newer.autopilot.state() == {"Healthy": True, "Servers": {}}
        assert [(seen.method, seen.path) for seen in proxy.requests] == [
            ("POST", "/v1/operator/raft/transfer-leader"),
            ("POST", "/v1/operator/raft/transfer-leader?id=4b1a"),
            ("GET", "/v1/operator/usage"),
            ("GET", "/v1/operator/usage?global=&stale="),
            ("GET", "/v1/operator/autopilot/state"),
        ]
    for call in (consul.operator.raft.transfer_leader, consul.operator.usage, consul.operator.autopilot.state):
        with pytest.raises(consulate.NotFound):
            call()


# -- the keyring ---------------------------------------------------------------------------------------------


def test_a_key_is_installed_used_and_removed(consul, curl, agent):
    keyring = consul.operator.keyring

    def rings():
        return [(each["Keys"], each["PrimaryKeys"]) for each in get(curl, "operator/keyring")]

    assert keyring.list() == get(curl, "operator/keyring")
    assert {each["WAN"] for each in keyring.list(relay_factor=2, timeout=10)} == {True, False}
    assert [each["WAN"] for each in keyring.list(local_only=True)] == [False]
    assert keyring.install(SECOND, relay_factor=1) is True
    assert rings() == [({FIRST: 1, SECOND: 1}, {FIRST: 1})] * 2
    with pytest.raises(consulate.ServerError, match="not allowed"):
        keyring.remove(FIRST)
    assert keyring.use(SECOND) is True
    assert rings() == [({FIRST: 1, SECOND: 1}, {SECOND: 1})] * 2
    assert keyring.remove(FIRST) is True
    assert rings() == [({SECOND: 1}, {SECOND: 1})] * 2
    command = [consul_command(), "keyring", "-list", f"-http-addr={agent.address}"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert (SECOND in said, FIRST in said) == (True, False)


def test_keys_that_are_none(consul, curl):
    before = get(curl, "operator/keyring")
    with pytest.raises(consulate.ServerError, match="base64"):
        consul.operator.keyring.install("no key!")
    with pytest.raises(consulate.ServerError):
        consul.operator.keyring.use(base64.b64encode(b"c" * 32).decode())
    for call in (consul.operator.keyring.list, lambda relay_factor: consul.operator.keyring.use(FIRST, relay_factor)):
        with pytest.raises(consulate.ClientError, match="Relay factor"):
            call(relay_factor=9)
    assert get(curl, "operator/keyring") == before


def test_no_message_shows_a_key(agent):
    with Proxy(agent.port) as proxy:
        host, port = proxy.address.split(":")
        proxy.fault = lambda seen: (500, b"not this key: " + json.loads(seen.body)["Key"].encode())
        with pytest.raises(consulate.ServerError, match="not this key") as caught:
            consulate.Consul(host, int(port), timeout=10).operator.keyring.install(FIRST)
        assert FIRST not in str(caught.value)
        assert FIRST not in proxy.requests[0].path


def test_strangers_are_refused():
    config = {"acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": MASTER}}, "encrypt": FIRST}
    with Agent(config) as agent:
        stranger = consulate.Consul("127.0.0.1", agent.port, timeout=10).operator
        for call in (
            stranger.raft.configuration,
            lambda: stranger.raft.remove_peer("127.0.0.1:1"),
            stranger.autopilot.configuration,
            lambda: stranger.autopilot.update({}),
            stranger.autopilot.health,
            stranger.keyring.list,
            lambda: stranger.keyring.install(SECOND),
            lambda: stranger.keyring.use(SECOND),
            lambda: stranger.keyring.remove(FIRST),
        ):
            with pytest.raises(consulate.Forbidden):
                call()
        owner = consulate.Consul("127.0.0.1", agent.port, token=MASTER, timeout=10).operator
        assert [list(each["Keys"]) for each in owner.keyring.list()] == [[FIRST], [FIRST]]
