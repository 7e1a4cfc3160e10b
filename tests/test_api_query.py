"""Prepared queries against a real Consul, checked with curl."""

import json

import pytest
from support.agent import Agent
from support.curl import Curl
from support.proxy import Proxy

from consulfs import consulate

NO_QUERY = "8f246b77-f3e1-ff88-5b48-8ec93abf3e05"
MASTER = "11111111-2222-3333-4444-666666666666"


@pytest.fixture(scope="module")
def agent():
    """An agent with three instances of a service on three nodes, one of them with a warning."""
    with Agent() as agent:
        for number, status in enumerate(("passing", "passing", "warning")):
            service = {"ID": f"db{number}", "Service": "db", "Tags": [f"t{number}", "all"], "Meta": {"v": str(number)}}
            check = {"CheckID": "alive", "Name": "alive", "Status": status, "ServiceID": f"db{number}"}
            node = {"Node": f"n{number}", "Address": f"10.0.0.{number}", "NodeMeta": {"rack": str(number)}}
            body = json.dumps({**node, "Service": service, "Check": check}).encode()
            assert Curl(agent.url)("PUT", "catalog/register", body)[0] == 200
        yield agent


@pytest.fixture
def curl(agent):
    """On an agent without prepared queries."""
    curl = Curl(agent.url)
    yield curl
    for each in json.loads(curl("GET", "query")[1]):
        assert curl("DELETE", f"query/{each['ID']}")[0] == 200


def stored(curl, query_id):
    return json.loads(curl("GET", f"query/{query_id}")[1])[0]


def nodes(answer):
    return sorted(each["Node"]["Node"] for each in answer["Nodes"])


def test_every_field_is_stored(consul, curl):
    session = consul.session.create("of a query")
    query_id = consul.query.create(
        name="all-of-it", service="db", session=session, tags=["all", "!t2"], near="_agent",
        failover={"NearestN": 2, "Datacenters": ["dc2"]}, only_passing=True, ignore_check_ids=["alive"],
        node_meta={"rack": "1"}, service_meta={"v": "1"}, connect=False, dns_ttl=10,
        template={"Type": "name_prefix_match", "Regexp": "^all-(.*)$", "RemoveEmptyTags": True},
    )  # fmt: skip
    found = stored(curl, query_id)
    assert (found["Name"], found["Session"], found["DNS"]) == ("all-of-it", session, {"TTL": "10s"})
    assert found["Template"] == {"Type": "name_prefix_match", "Regexp": "^all-(.*)$", "RemoveEmptyTags": True}
    assert found["Service"] == {
        "Service": "db", "Tags": ["all", "!t2"], "Near": "_agent", "OnlyPassing": True, "IgnoreCheckIDs": ["alive"],
        "Failover": {"NearestN": 2, "Datacenters": ["dc2"]}, "NodeMeta": {"rack": "1"}, "ServiceMeta": {"v": "1"},
        "Connect": False,
    }  # fmt: skip
    assert consul.query.read(query_id) == found
    assert consul.query.list() == [found]
    consul.session.destroy(session)
    assert consul.query.list(consistency="consistent") == []  # it went with its session
    assert consul.query.read(query_id) is None


def test_a_definition_as_consul_documents_it_and_keywords_over_it(consul, curl):
    definition = {"Name": "one", "Service": {"Service": "db", "Tags": ["all"]}, "DNS": {"TTL": "5s"}}
    query_id = consul.query.create(definition, name="two", tags=["t1"])
    found = stored(curl, query_id)
    assert (found["Name"], found["Service"]["Tags"], found["DNS"]["TTL"]) == ("two", ["t1"], "5s")
    assert definition["Service"] == {"Service": "db", "Tags": ["all"]}
    assert consul.query.update(query_id, definition, connect=True) is True
    found = stored(curl, query_id)
    assert (found["Name"], found["Service"]["Tags"], found["Service"]["Connect"]) == ("one", ["all"], True)
    consul.query.update(query_id, name="three", service="db")
    assert (stored(curl, query_id)["Service"]["Tags"], stored(curl, query_id)["DNS"]["TTL"]) == (None, "")
    assert consul.query.delete(query_id) is True
    assert curl("GET", f"query/{query_id}")[0] == 404


def test_executing_finds_the_instances(consul, curl):
    query_id = consul.query.create(name="find", service="db")
    answer = consul.query.execute("find")
    assert (answer["Service"], answer["Datacenter"], answer["Failovers"]) == ("db", "dc1", 0)
    assert nodes(answer) == nodes(consul.query.execute(query_id, consistency="stale")) == ["n0", "n1", "n2"]
    assert len(consul.query.execute("find", limit=2)["Nodes"]) == 2
    assert consul.query.execute("find", connect=True)["Nodes"] == []
    for fields, found in [
        ({"only_passing": True}, ["n0", "n1"]),
        ({"only_passing": True, "ignore_check_ids": ["alive"]}, ["n0", "n1", "n2"]),
        ({"tags": ["all", "!t0"]}, ["n1", "n2"]),
        ({"node_meta": {"rack": "1"}}, ["n1"]),
        ({"service_meta": {"v": "2"}}, ["n2"]),
    ]:
        consul.query.update(query_id, name="find", service="db", **fields)
        assert nodes(consul.query.execute("find")) == found, fields


def test_what_is_asked_for_is_in_the_uri(agent, curl, consul):
    consul.query.create(name="near", service="db")
    with Proxy(agent.port) as proxy:
        host, port = proxy.address.split(":")
        consulate.Consul(host, int(port), datacenter="dc1", timeout=10).query.execute("near", "_agent", 3, True)
        (seen,) = proxy.requests
    path, _, query = seen.path.partition("?")
    assert (path, set(query.split("&"))) == (
        "/v1/query/near/execute", {"near=_agent", "limit=3", "connect=true", "dc=dc1"},
    )  # fmt: skip


def test_a_template_answers_to_every_name_with_its_prefix(consul, curl):
    consul.query.create(
        name="geo-", service="${match(1)}", tags=["${match(2)}"],
        template={"Type": "name_prefix_match", "Regexp": "^geo-(.*)-(.*)$"},
    )  # fmt: skip
    explained = consul.query.explain("geo-db-t1")
    assert (explained["Service"]["Service"], explained["Service"]["Tags"]) == ("db", ["t1"])
    assert nodes(consul.query.execute("geo-db-t1")) == ["n1"]


def test_what_there_is_not(consul, curl):
    assert consul.query.read(NO_QUERY) is None
    for call in (consul.query.execute, consul.query.explain):
        with pytest.raises(consulate.NotFound, match="Query not found"):
            call("none")
    with pytest.raises(consulate.ServerError, match="non-existent"):
        consul.query.update(NO_QUERY, service="db")
    with pytest.raises(consulate.ServerError, match="non-existent"):
        consul.query.delete(NO_QUERY)
    consul.query.create(name="mine", service="db")
    with pytest.raises(consulate.ServerError, match="aliases an existing"):
        consul.query.create(name="mine", service="db")
    with pytest.raises(consulate.ServerError, match="bound to a session"):
        consul.query.create(service="db")
    with pytest.raises(ValueError, match="name of a service"):
        consul.query.create(name="nothing")
    with pytest.raises(TypeError, match="only_pasing"):
        consul.query.create(service="db", only_pasing=True)
    assert len(json.loads(curl("GET", "query")[1])) == 1


def test_the_querys_token_is_hidden_and_in_no_message():
    config = {"acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": MASTER}}}
    with Agent(config) as agent, Proxy(agent.port) as proxy:
        curl = Curl(agent.url, MASTER)
        host, port = proxy.address.split(":")
        consul = consulate.Consul(host, int(port), token=MASTER, timeout=10)
        body = json.dumps({"Rules": 'query_prefix "" { policy = "write" }', "Name": "writer"}).encode()
        assert curl("PUT", "acl/policy", body)[0] == 200
        token = json.dumps({"Policies": [{"Name": "writer"}]}).encode()
        writer = consulate.Consul(host, int(port), token=json.loads(curl("PUT", "acl/token", token)[1])["SecretID"])
        secret = "0e6de1e4-0000-4444-8888-aaaaaaaaaaaa"
        query_id = writer.query.create(name="q", service="consul", token=secret)
        assert stored(curl, query_id)["Token"] == secret
        assert writer.query.read(query_id)["Token"] == "<hidden>"
        assert secret not in "".join(seen.path for seen in proxy.requests)
        stranger = consulate.Consul(host, int(port), timeout=10)
        assert stranger.query.list() == []
        proxy.fault = lambda seen: (500, f"no {secret}".encode()) if seen.method == "POST" else None
        with pytest.raises(consulate.ServerError) as caught:
            consul.query.create(name="r", service="consul", token=secret)
        proxy.fault = lambda seen: None
        assert secret not in str(caught.value)
        with pytest.raises(consulate.Forbidden) as refused:
            stranger.query.create(name="r", service="consul", token=secret)
        assert secret not in str(refused.value)


def test_an_id_that_is_no_uuid(consul):
    for odd in ("nope", "x" * 36, "1111-" + "1" * 31):
        assert consul.query.read(odd) is None
        for call in (lambda: consul.query.update(odd, service="s"), lambda: consul.query.delete(odd)):  # noqa: B023 - called at once
            with pytest.raises(consulate.NotFound, match="/v1/query/"):
                call()
