"""Health against a real agent, seen with curl."""

import json
import threading

import pytest
from support.agent import Agent
from support.catalog import clear_catalog
from support.curl import Curl
from support.proxy import Proxy
from support.signatures import positional
from support.waiting import place_nodes, until

from consulfs import consulate


@pytest.fixture(scope="module")
def agent():
    with Agent({"node_meta": {"place": "cellar"}}) as agent:
        yield agent


@pytest.fixture
def curl(agent):
    curl = Curl(agent.url)
    yield curl
    clear_catalog(curl)


@pytest.fixture
def web(curl):
    """One instance of web that passes in the attic, and one that is told its state here."""
    attic = {
        "Node": "attic",
        "Address": "10.1.10.12",
        "NodeMeta": {"place": "attic"},
        "Service": {"ID": "web-attic", "Service": "web", "Tags": ["v1", "old"], "Port": 80},
        "Check": {"Name": "w", "CheckID": "attic-web", "Status": "passing", "ServiceID": "web-attic"},
    }
    here = {"Name": "web", "ID": "web-here", "Tags": ["v1"], "Check": {"CheckID": "here-web", "TTL": "1h"}}
    assert curl("PUT", "catalog/register", json.dumps(attic).encode())[0] == 200
    assert curl("PUT", "agent/service/register", json.dumps(here).encode())[0] == 200
    until(lambda: len(curl.json("health/checks/web")) == 2)
    place_nodes(curl, test=0, attic=1)


def ids(rows):
    return sorted(row["Service"]["ID"] for row in rows)


def checks(rows):
    return sorted(row["CheckID"] for row in rows)


def test_the_arguments_are_those_of_the_reference():
    health = consulate.api.Health
    assert positional(health.service) == ["self", "service_id", "tag", "passing"]
    assert positional(health.checks) == ["self", "service_id"]
    assert positional(health.node) == ["self", "node_id"]
    assert positional(health.state) == ["self", "state"]


def test_checks_of_services_and_nodes(consul, curl, web):
    assert consul.health.checks("web") == curl.json("health/checks/web")
    assert checks(consul.health.checks("web")) == ["attic-web", "here-web"]
    assert checks(consul.health.checks("web", node_meta={"place": "attic"})) == ["attic-web"]
    assert checks(consul.health.checks("web", filter='Node == "test"')) == ["here-web"]
    assert [each["Node"] for each in consul.health.checks("web", near="_agent")] == ["test", "attic"]
    assert consul.health.checks("nobody") == []
    assert consul.health.node("test") == curl.json("health/node/test")
    assert checks(consul.health.node("test")) == ["here-web", "serfHealth"]
    assert checks(consul.health.node("attic", filter='Status == "critical"')) == []
    assert consul.health.node("nobody") == []


def test_instances_by_tag_and_state(consul, curl, web):
    assert consul.health.service("web") == curl.json("health/service/web")
    assert ids(consul.health.service("web")) == ["web-attic", "web-here"]
    assert ids(consul.health.service("web", "old")) == ["web-attic"]
    assert ids(consul.health.service("web", tag="v1")) == ["web-attic", "web-here"]
    assert ids(consul.health.service("web", ["v1", "old"])) == ["web-attic"]
    assert consul.health.service("web", tag=["old", "new"]) == []
    assert ids(consul.health.service("web", None, True)) == ["web-attic"]
    assert ids(consul.health.service("web", passing=False)) == ["web-attic", "web-here"]
    assert ids(consul.health.service("web", passing=None)) == ["web-attic", "web-here"]
    assert consul.health.service("web", "v1", True, node_meta={"place": "cellar"}) == []
    assert ids(consul.health.service("web", node_meta={"place": "cellar"})) == ["web-here"]
    assert ids(consul.health.service("web", filter="Service.Port == 80")) == ["web-attic"]
    assert [each["Node"]["Node"] for each in consul.health.service("web", near="_agent")] == ["test", "attic"]
    assert consul.health.service("nobody") == []
    # An empty word asks for passing ones too, and false for all: what this client sends for None and False is nothing.
    assert ids(curl.json("health/service/web?passing")) == ["web-attic"]
    assert ids(curl.json("health/service/web?passing=false")) == ["web-attic", "web-here"]


def test_states(consul, curl, web):
    assert checks(consul.health.state("passing")) == ["attic-web", "serfHealth"]
    assert checks(consul.health.state("critical")) == ["here-web"]
    assert consul.health.state("warning") == consul.health.state("unknown") == []
    assert consul.health.state("any") == curl.json("health/state/any")
    assert checks(consul.health.state("any")) == ["attic-web", "here-web", "serfHealth"]
    assert checks(consul.health.state("any", node_meta={"place": "attic"})) == ["attic-web"]
    assert checks(consul.health.state("any", filter='ServiceName == "web"')) == ["attic-web", "here-web"]
    assert [each["Node"] for each in consul.health.state("any", near="_agent")][-1] == "attic"
    assert consul.health.state("any", near="attic")[0]["Node"] == "attic"
    assert curl("PUT", "agent/check/warn/here-web")[0] == 200
    assert checks(until(lambda: consul.health.state("warning"))) == ["here-web"]
    for state in ("wrong", "", "../agent/self"):
        with pytest.raises(ValueError, match="a state is one of"):
            consul.health.state(state)


def test_a_blocking_query_wakes_when_a_check_changes(consul, curl, web):
    assert consul.health.service("web", passing=True)
    index, found = consul.health.meta.index, []

    def wait():
        def changed():
            rows = consul.health.service("web", None, True, index=index, wait="10s")
            return rows if len(rows) == 2 else None

        found.extend(until(changed))

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert curl("PUT", "agent/check/pass/here-web")[0] == 200
    waiting.join(60)
    assert ids(found) == ["web-attic", "web-here"]
    assert {check["Status"] for row in found for check in row["Checks"]} == {"passing"}


@pytest.mark.parametrize("mode", ["default", "stale", "consistent"])
def test_what_consul_says_of_an_answer(agent, curl, web, mode):
    with Proxy(agent.port) as proxy:
        consul = consulate.Consul("127.0.0.1", proxy.server.server_port, timeout=30)
        assert ids(consul.health.service("web", consistency=mode)) == ["web-attic", "web-here"]
        assert (mode in proxy.requests[-1].path) == (mode != "default")
        meta = consul.health.meta
        assert meta.known_leader is True
        assert meta.last_contact == 0  # a leader has heard from itself
        assert meta.index > 0
        assert consul.health.checks("web", stale=True)
        assert "stale" in proxy.requests[-1].path


def test_the_mesh_and_its_gateways(consul, curl):
    def register(**service):
        body = {"Node": "mesh", "Address": "10.1.10.13", "Service": {"Port": 1, **service}}
        assert curl("PUT", "catalog/register", json.dumps(body).encode())[0] == 200

    assert consul.health.connect("web") == consul.health.ingress("web") == []
    register(Service="web-proxy", Kind="connect-proxy", Proxy={"DestinationServiceName": "web"}, Tags=["a"])
    assert consul.health.connect("web") == curl.json("health/connect/web")
    assert ids(consul.health.connect("web", passing=True)) == ["web-proxy"]
    assert ids(curl.json("health/connect/web?tag=b")) == ["web-proxy"]  # so there is no such argument
    assert consul.health.connect("web", filter="b in Service.Tags") == []
    assert ids(consul.health.connect("web", filter="a in Service.Tags")) == ["web-proxy"]
    assert consul.health.connect("web", filter='Node.Node == "nobody"') == []
    listener = {"Port": 8443, "Protocol": "tcp", "Services": [{"Name": "web"}]}
    entry = {"Kind": "ingress-gateway", "Name": "gate", "Listeners": [listener]}
    assert curl("PUT", "config", json.dumps(entry).encode())[0] == 200
    register(Service="gate", Kind="ingress-gateway")
    assert ids(consul.health.ingress("web")) == ["gate"]
    fail = {"Node": "mesh", "Address": "10.1.10.13", "Check": {"Name": "c", "Status": "critical"}}
    assert curl("PUT", "catalog/register", json.dumps(fail).encode())[0] == 200
    assert consul.health.ingress("web", passing=True) == consul.health.connect("web", True) == []
    assert ids(consul.health.ingress("web", False)) == ["gate"]


def test_newer_options_are_sent(agent, curl):
    with Proxy(agent.port) as proxy:
        consul = consulate.Consul("127.0.0.1", proxy.server.server_port, timeout=30)
        consul.health.service("web", peer="east", merge_central_config=True)
        assert "peer=east" in proxy.requests[-1].path
        assert "merge-central-config" in proxy.requests[-1].path
        consul.health.service("web")
        assert proxy.requests[-1].path == "/v1/health/service/web"


def test_the_datacenter_is_the_clients_or_the_calls(agent, curl):
    with consulate.Consul("127.0.0.1", agent.port, datacenter="dc1", timeout=30) as consul:
        assert checks(consul.health.state("any")) == ["serfHealth"]
        with pytest.raises(consulate.ServerError, match="No path to datacenter"):
            consul.health.state("any", dc="elsewhere")


def test_names_are_one_segment_of_the_path(consul):
    for call in (consul.health.checks, consul.health.node, consul.health.service, consul.catalog.service):
        for name in ("", ".", ".."):
            with pytest.raises(ValueError, match="name"):
                call(name)
    assert consul.health.service("a b/c?d#e") == []
