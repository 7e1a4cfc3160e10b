"""The catalog against a real agent, seen with curl."""

import json
import threading

import pytest
from support.agent import Agent
from support.catalog import clear_catalog
from support.curl import Curl
from support.datacenters import datacenters
from support.proxy import Proxy
from support.signatures import positional
from support.waiting import place_nodes, until

from consulfs import consulate
from consulfs.consulate.adapters import Request

NODE_ID = "40e4a748-2192-161a-0510-9bf59fe950b5"
REDIS = {"ID": "redis1", "Service": "redis", "Tags": ["master", "v1"], "Port": 8000}
CHECK = {
    "Node": "foobar",
    "CheckID": "service:redis1",
    "Name": "Redis health check",
    "Notes": "Script based health check",
    "Status": "passing",
    "ServiceID": "redis1",
}


@pytest.fixture(scope="module")
def agent():
    with Agent({"node_meta": {"place": "cellar"}}) as agent:
        yield agent


@pytest.fixture
def curl(agent):
    curl = Curl(agent.url)
    yield curl
    clear_catalog(curl)


def register(curl, **body):
    assert curl("PUT", "catalog/register", json.dumps({"Address": "10.1.10.12", **body}).encode())[0] == 200


def test_the_arguments_are_those_of_the_reference():
    catalog = consulate.api.Catalog
    assert positional(catalog.register) == "self node address datacenter service check".split()
    assert positional(catalog.deregister) == "self node datacenter check_id service_id".split()
    assert positional(catalog.node) == ["self", "node_id"]
    assert positional(catalog.service) == ["self", "service_id"]
    assert positional(catalog.__init__) == "self uri adapter datacenter token".split()


def test_the_datacenter_has_two_names(agent, curl):
    adapter = Request(timeout=30)
    for catalog in (
        consulate.api.Catalog(agent.url, adapter, "dc1", None),
        consulate.api.Catalog(agent.url, adapter, datacenter="dc1"),
        consulate.api.Catalog(agent.url, adapter, dc="dc1", token=None),
    ):
        assert [each["Node"] for each in catalog.nodes()] == ["test"]
    with pytest.raises(consulate.ServerError, match="No path to datacenter"):
        consulate.api.Catalog(agent.url, adapter, dc="elsewhere").nodes()
    with pytest.raises(TypeError, match="two names"):
        consulate.api.Catalog(agent.url, adapter, "dc1", dc="dc1")


def test_a_node_with_service_and_check_comes_and_goes(consul, curl):
    assert consul.catalog.register("foobar", "10.1.10.12", None, REDIS, CHECK) is True
    [row] = curl.json("catalog/service/redis")
    assert (row["Node"], row["Address"], row["ServiceID"], row["ServicePort"]) == (
        "foobar",
        "10.1.10.12",
        "redis1",
        8000,
    )
    assert row["ServiceTags"] == ["master", "v1"]
    [check] = curl.json("health/node/foobar")
    assert CHECK.items() <= check.items()
    assert consul.catalog.deregister("foobar", check_id="service:redis1") is True
    assert curl.json("health/node/foobar") == []
    assert set(curl.json("catalog/node/foobar")["Services"]) == {"redis1"}
    assert consul.catalog.deregister("foobar", None, None, "redis1") is True
    assert curl.json("catalog/node/foobar")["Services"] == {}
    assert consul.catalog.deregister("foobar") is True
    assert consul.catalog.deregister("foobar") is True
    assert curl("GET", "catalog/node/foobar")[1].strip() == b"null"


def test_all_that_a_registration_may_have(consul, curl):
    checks = [{"Name": "a", "Status": "warning"}, {"Name": "b", "CheckID": "bb", "Status": "critical"}]
    consul.catalog.register(
        "foobar",
        "10.1.10.12",
        checks=checks,
        node_id=NODE_ID,
        tagged_addresses={"wan": "192.0.2.1"},
        node_meta={"kind": "t2"},
        service={"Service": "redis", "Meta": {"version": "4"}, "Weights": {"Passing": 3, "Warning": 1}},
    )
    node = curl.json("catalog/node/foobar")["Node"]
    assert (node["ID"], node["Meta"], node["TaggedAddresses"]) == (NODE_ID, {"kind": "t2"}, {"wan": "192.0.2.1"})
    found = {each["CheckID"]: each["Status"] for each in curl.json("health/node/foobar")}
    assert found == {"a": "warning", "bb": "critical"}
    [row] = curl.json("catalog/service/redis")
    assert (row["ServiceMeta"], row["ServiceWeights"]) == ({"version": "4"}, {"Passing": 3, "Warning": 1})
    consul.catalog.register("foobar", "10.9.9.9", skip_node_update=True, service={"Service": "extra"})
    assert curl.json("catalog/node/foobar")["Node"]["Address"] == "10.1.10.12"
    assert len(curl.json("catalog/service/extra")) == 1
    consul.catalog.register("foobar", "10.9.9.9", node_id=NODE_ID)
    assert curl.json("catalog/node/foobar")["Node"]["Address"] == "10.9.9.9"


def test_what_the_servers_do_not_know_is_passed_on_and_refused(consul, curl):
    with pytest.raises(consulate.ClientError, match='unknown field "Locality"'):
        consul.catalog.register("foobar", "10.1.10.12", Locality={"Region": "here"})
    with pytest.raises(consulate.ClientError, match='unknown field "Sort"'):
        consul.catalog.register("foobar", "10.1.10.12", service={"Service": "redis", "Sort": 1})
    with pytest.raises(consulate.ServerError, match="Must provide address"):
        consul.catalog.register("foobar", "")
    assert len(curl.json("catalog/nodes")) == 1


def test_nodes(consul, curl):
    register(curl, Node="foobar", NodeMeta={"kind": "t2", "place": "attic"})
    assert consul.catalog.nodes() == curl.json("catalog/nodes")
    assert [each["Node"] for each in consul.catalog.nodes()] == ["foobar", "test"]
    place_nodes(curl, test=0, foobar=1)
    assert [each["Node"] for each in consul.catalog.nodes(near="_agent")] == ["test", "foobar"]
    assert [each["Node"] for each in consul.catalog.nodes(near="foobar")] == ["foobar", "test"]
    assert [each["Node"] for each in consul.catalog.nodes(node_meta={"place": "cellar"})] == ["test"]
    assert [each["Node"] for each in consul.catalog.nodes(node_meta={"place": "attic", "kind": "t2"})] == ["foobar"]
    assert consul.catalog.nodes(node_meta={"place": "cellar", "kind": "t2"}) == []
    assert [each["Node"] for each in consul.catalog.nodes(filter='Meta.place == "attic"')] == ["foobar"]
    assert [each["Node"] for each in consul.catalog.nodes(dc="dc1", consistency="consistent")] == ["foobar", "test"]
    with pytest.raises(consulate.ServerError, match="expression"):
        consul.catalog.nodes(filter="nonsense ==")
    assert consul.catalog.datacenters() == curl.json("catalog/datacenters") == ["dc1"]


def test_a_node_and_its_services(consul, curl):
    register(curl, Node="foobar", ID=NODE_ID, Service=REDIS)
    register(curl, Node="foobar", ID=NODE_ID, Service={"Service": "web"})
    node = consul.catalog.node("foobar")
    assert node == curl.json("catalog/node/foobar")
    assert set(node["Services"]) == {"redis1", "web"}
    assert set(consul.catalog.node(NODE_ID, filter='Service == "web"')["Services"]) == {"web"}
    assert consul.catalog.node("nobody") is None
    listed = consul.catalog.node_services("foobar")
    assert listed == curl.json("catalog/node-services/foobar")
    assert {each["ID"] for each in listed["Services"]} == {"redis1", "web"}
    found = consul.catalog.node_services("foobar", filter='Service == "web"', merge_central_config=True)
    assert [each["ID"] for each in found["Services"]] == ["web"]
    assert consul.catalog.node_services("nobody") is None


def test_services_and_their_instances(consul, curl):
    register(curl, Node="foobar", NodeMeta={"place": "attic"}, Service=REDIS)
    register(curl, Node="baz", Service={**REDIS, "ID": "redis2", "Tags": ["v1"], "Port": 8001})
    [services] = consul.catalog.services()
    asked = curl.json("catalog/services")
    assert {name: sorted(tags) for name, tags in services.items()} == {  # Consul gives the tags in any order
        name: sorted(tags) for name, tags in asked.items()
    }
    assert (set(services), sorted(services["redis"])) == ({"consul", "redis"}, ["master", "v1"])
    assert set(consul.catalog.services(node_meta={"place": "attic"})[0]) == {"redis"}
    assert consul.catalog.services(node_meta={"place": "nowhere"}) == []
    assert consul.catalog.service("redis") == curl.json("catalog/service/redis")

    def nodes(**options):
        return sorted(each["Node"] for each in consul.catalog.service("redis", **options))

    assert nodes() == ["baz", "foobar"]
    assert nodes(tag="v1") == ["baz", "foobar"]
    assert nodes(tag="master") == nodes(tag=["v1", "master"]) == ["foobar"]
    assert nodes(filter="ServicePort == 8001") == ["baz"]
    assert nodes(node_meta={"place": "attic"}) == ["foobar"]
    assert nodes(near="_agent", merge_central_config=True) == ["baz", "foobar"]
    assert consul.catalog.service("nobody") == []


def test_what_the_agent_registers_is_seen_in_the_catalog(consul, curl):
    weights = {"Passing": 10, "Warning": 2}
    address = {"wan": {"Address": "192.0.2.1", "Port": 81}}
    consul.agent.service.register("web", port=80, meta={"a": "b"}, weights=weights, tagged_addresses=address)
    [row] = until(lambda: consul.catalog.service("web"))
    assert (row["ServiceMeta"], row["ServiceWeights"], row["ServicePort"]) == ({"a": "b"}, weights, 80)
    assert row["ServiceTaggedAddresses"]["wan"] == address["wan"]


def test_the_mesh_and_its_gateways(consul, curl):
    proxy = {"DestinationServiceName": "redis"}
    for place in ("here", "there"):
        register(
            curl,
            Node=place,
            Service={"Service": "redis-proxy", "Kind": "connect-proxy", "Proxy": proxy, "Port": 1, "Tags": [place]},
        )
    assert consul.catalog.connect("redis") == curl.json("catalog/connect/redis")
    assert {each["Node"] for each in consul.catalog.connect("redis")} == {"here", "there"}
    assert len(curl.json("catalog/connect/redis?tag=here")) == 2  # so there is no such argument
    assert [each["Node"] for each in consul.catalog.connect("redis", filter="here in ServiceTags")] == ["here"]
    assert [each["Node"] for each in consul.catalog.connect("redis", filter='Node == "here"')] == ["here"]
    assert consul.catalog.connect("nobody") == []
    assert consul.catalog.gateway_services("gate") == []
    listener = {"Port": 8443, "Protocol": "tcp", "Services": [{"Name": "redis"}]}
    entry = {"Kind": "ingress-gateway", "Name": "gate", "Listeners": [listener]}
    assert curl("PUT", "config", json.dumps(entry).encode())[0] == 200
    [row] = consul.catalog.gateway_services("gate")
    assert [row] == curl.json("catalog/gateway-services/gate")
    assert (row["Service"]["Name"], row["Port"]) == ("redis", 8443)


def test_a_blocking_query_wakes_for_a_new_instance(consul, curl):
    assert consul.catalog.service("redis") == []
    index, found = consul.catalog.meta.index, []
    waiting = threading.Thread(
        target=lambda: found.extend(until(lambda: consul.catalog.service("redis", index=index, wait="10s")))
    )
    waiting.start()
    register(curl, Node="foobar", Service=REDIS)
    waiting.join(60)
    assert [each["ServiceID"] for each in found] == ["redis1"]


def test_registrations_go_to_the_datacenter_that_is_named(curl):
    """By the body: the query's dc is not heeded by Consul for these."""
    with datacenters() as (here, there):
        near, far = Curl(here.url), Curl(there.url)

        def names(curl):
            return {each["Node"] for each in curl.json("catalog/nodes")}

        consul = consulate.Consul("127.0.0.1", here.port, timeout=30)
        assert sorted(consul.catalog.datacenters()) == ["dc1", "dc2"]
        consul.catalog.register("foobar", "10.1.10.12", "dc2")
        consulate.Consul("127.0.0.1", here.port, datacenter="dc2").catalog.register("baz", "10.1.10.13")
        assert (names(near), names(far)) == ({"test"}, {"test", "foobar", "baz"})
        assert {each["Node"] for each in consul.catalog.nodes(dc="dc2")} == names(far)
        consul.catalog.deregister("foobar", "dc2")
        consulate.Consul("127.0.0.1", here.port, datacenter="dc2").catalog.deregister("baz")
        assert names(far) == {"test"}


def test_who_may_not_write_the_catalog():
    tokens = {"enabled": True, "default_policy": "deny", "tokens": {"master": "11111111-2222-3333-4444-555555555555"}}
    with Agent({"acl": tokens}) as agent:
        consul = consulate.Consul("127.0.0.1", agent.port, timeout=30)
        for call in (
            lambda: consul.catalog.register("foobar", "10.1.10.12"),
            lambda: consul.catalog.deregister("test"),
        ):
            with pytest.raises(consulate.Forbidden):
                call()
        assert consul.catalog.nodes() == []


def test_newer_options_are_sent(agent, curl):
    with Proxy(agent.port) as proxy:
        consul = consulate.Consul("127.0.0.1", proxy.server.server_port, timeout=30)
        consul.catalog.service("redis", merge_central_config=True)
        consul.catalog.node_services("test", merge_central_config=True)
        consul.catalog.service("redis")
        assert ["merge-central-config" in seen.path for seen in proxy.requests] == [True, True, False]
