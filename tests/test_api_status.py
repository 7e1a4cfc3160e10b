"""The state of the Raft cluster against a real Consul, checked with curl and `consul operator`."""

import json
import subprocess

import pytest
from support.agent import consul_command
from support.curl import Curl
from support.server import Server

from consulfs import consulate


def test_the_leader_and_the_peers(agent, curl):
    with consulate.Consul("127.0.0.1", agent.port, timeout=10) as consul:
        leader = consul.status.leader()
        assert leader == json.loads(curl("GET", "status/leader")[1]) == f"127.0.0.1:{agent.server}"
        assert consul.status.peers() == [leader]
        assert consul.status.leader(dc="dc1", stale=True) == leader
        with pytest.raises(consulate.ServerError, match="No path to datacenter"):
            consul.status.peers(dc="nowhere")
    command = [consul_command(), "operator", "raft", "list-peers", f"-http-addr={agent.address}"]
    assert leader in subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


def test_where_there_is_no_leader():
    """A server that waits for two more."""
    with Server() as own:
        consul = consulate.Consul("127.0.0.1", own.port, timeout=30)
        assert consul.status.leader() == json.loads(Curl(own.url)("GET", "status/leader")[1]) == ""
        assert consul.status.peers() == []
        with pytest.raises(consulate.NoLeader):
            consul.session.list()
