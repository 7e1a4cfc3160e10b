"""Network coordinates against a real Consul, checked with curl and `consul rtt`."""

import json
import subprocess

import pytest
from support.agent import Agent, consul_command
from support.curl import Curl
from support.waiting import until

from consulfs import consulate
from consulfs.consulate.api.coordinate import round_trip

FAR = {"Vec": [0.03, 0.04, 0, 0, 0, 0, 0, 0], "Error": 1.5, "Adjustment": 0.001, "Height": 0.002}
NEAR = {"Vec": [0.0] * 8, "Error": 1.5, "Adjustment": 0.0, "Height": 0.00001}
NEGATIVE = {"Vec": [0.0, 0.001, 0, 0, 0, 0, 0, 0], "Error": 1.5, "Adjustment": -5.0, "Height": 0.00001}


@pytest.fixture(scope="module")
def agent():
    """An agent whose catalog knows three more nodes; nobody but the tests sets their coordinates."""
    with Agent() as agent:
        for name in ("far", "near", "negative"):
            node = json.dumps({"Node": name, "Address": "10.0.0.1"}).encode()
            assert Curl(agent.url)("PUT", "catalog/register", node)[0] == 200
        yield agent


@pytest.fixture
def stored(agent):
    """A node's coordinate by curl, once it is there: Consul applies updates in batches."""

    def ask(node, wanted):
        def is_there():
            status, text = Curl(agent.url)("GET", f"coordinate/node/{node}")
            return status == 200 and json.loads(text)[0]["Coord"] == wanted

        return until(is_there)

    return ask


def test_a_coordinate_is_stored_and_read(consul, agent, stored):
    assert consul.coordinate.update("far", FAR) is True
    assert stored("far", FAR)
    assert consul.coordinate.node("far") == [{"Node": "far", "Segment": "", "Coord": FAR}]
    assert consul.coordinate.meta.index is not None
    assert consul.coordinate.node("far", segment="other") == []
    rows = consul.coordinate.nodes(consistency="consistent")
    assert rows == json.loads(Curl(agent.url)("GET", "coordinate/nodes")[1])
    assert {"Node": "far", "Segment": "", "Coord": FAR} in rows
    assert consul.coordinate.nodes(segment="other") == []
    assert consul.coordinate.node("nobody") == []


def test_a_blocking_query_sees_an_update(consul, stored):
    consul.coordinate.update("near", FAR)
    assert stored("near", FAR)
    consul.coordinate.nodes()
    index = consul.coordinate.meta.index
    consul.coordinate.update("near", NEAR, "")
    assert {row["Node"]: row["Coord"] for row in consul.coordinate.nodes(index=index, wait="60s")}["near"] == NEAR


def test_what_consul_refuses_and_what_it_drops(consul, agent):
    with pytest.raises(consulate.ServerError, match="incompatible coordinate"):
        consul.coordinate.update("far", {**FAR, "Vec": [1, 2]})
    assert consul.coordinate.update("nobody", FAR) is True
    with pytest.raises(ValueError, match="cannot be a name"):
        consul.coordinate.node("")
    assert Curl(agent.url)("GET", "coordinate/node/nobody")[0] == 404


def test_the_servers_of_the_wan(consul, agent):
    rows = consul.coordinate.datacenters()
    assert rows == json.loads(Curl(agent.url)("GET", "coordinate/datacenters")[1])
    assert rows[0]["Datacenter"] == "dc1"
    assert rows[0]["Coordinates"][0]["Node"] == "test"


@pytest.mark.parametrize(("one", "other"), [("far", "near"), ("near", "far"), ("far", "far"), ("near", "negative")])
def test_the_round_trip_is_the_one_that_consul_estimates(consul, agent, stored, one, other):
    coordinates = {"far": FAR, "near": NEAR, "negative": NEGATIVE}
    for name in {one, other}:
        consul.coordinate.update(name, coordinates[name])
        assert stored(name, coordinates[name])
    command = [consul_command(), "rtt", f"-http-addr={agent.address}", one, other]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    ours = round_trip(coordinates[one], coordinates[other])
    assert f"rtt: {ours * 1000:.3f} ms" in said


def test_no_round_trip_between_different_spaces():
    with pytest.raises(ValueError, match="dimensions"):
        round_trip(FAR, {**NEAR, "Vec": [0.0]})


def test_strangers_are_refused():
    master = "11111111-2222-3333-4444-666666666666"
    config = {"acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": master}}}
    with Agent(config) as agent:
        stranger = consulate.Consul("127.0.0.1", agent.port, timeout=10).coordinate
        for call in (lambda: stranger.update("test", FAR), lambda: stranger.node("test")):
            with pytest.raises(consulate.Forbidden):
                call()
        assert stranger.nodes() == []
