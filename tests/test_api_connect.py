"""The service mesh against a real Consul, checked with curl, `consul intention` and Python's ssl."""

import base64
import json
import ssl
import subprocess
import threading

import pytest
from support.agent import Agent, consul_command
from support.curl import Curl
from support.waiting import until

from consulfs import consulate

NO_INTENTION = "8f246b77-f3e1-ff88-5b48-8ec93abf3e05"


@pytest.fixture(scope="module")
def agent():
    with Agent() as agent:
        until(lambda: Curl(agent.url)("GET", "connect/ca/roots")[0] == 200)
        yield agent


@pytest.fixture
def curl(agent):
    """On an agent without intentions."""
    curl = Curl(agent.url)
    yield curl
    for each in json.loads(curl("GET", "connect/intentions")[1]):
        assert curl("DELETE", f"connect/intentions/{each['ID']}")[0] == 200


@pytest.fixture
def through(proxy):
    host, port = proxy.address.split(":")
    with consulate.Consul(host, int(port), timeout=10) as consul:
        yield consul


def der(pem):
    return base64.b64decode("".join(pem.split("-----")[2].split()))


# -- the certificate authority -------------------------------------------------------------------------------


def test_the_root_certificates(consul, curl):
    roots = consul.connect.ca.roots()
    assert roots == curl.json("connect/ca/roots")
    (root,) = roots["Roots"]
    assert roots["ActiveRootID"] == root["ID"]
    assert consul.connect.ca.agent_roots()["Roots"] == roots["Roots"]
    pem = consul.connect.ca.roots_pem(consistency="consistent")
    assert pem.strip() == root["RootCert"].strip() == curl("GET", "connect/ca/roots?pem=true")[1].decode().strip()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pem)
    assert context.get_ca_certs(binary_form=True) == [der(pem)]


def test_a_services_leaf_certificate_fits_its_key(consul, agent, tmp_path):
    leaf = consul.connect.ca.agent_leaf("web site")
    assert leaf["Service"] == "web site"
    (tmp_path / "pem").write_text(leaf["CertPEM"] + leaf["PrivateKeyPEM"])
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "pem")
    assert Curl(agent.url).json("agent/connect/ca/leaf/web%20site")["CertPEM"] == leaf["CertPEM"]


def test_the_authoritys_configuration(consul, curl):
    before = consul.connect.ca.configuration()
    assert before == curl.json("connect/ca/configuration")
    assert before["Provider"] == "consul"
    assert consul.connect.ca.update("consul", {**before["Config"], "LeafCertTTL": "71h"}) is True
    assert curl.json("connect/ca/configuration")["Config"] == {**before["Config"], "LeafCertTTL": "71h"}
    assert consul.connect.ca.update("consul", before["Config"], force_without_cross_signing=True) is True
    assert curl.json("connect/ca/configuration")["ForceWithoutCrossSigning"] is True
    consul.connect.ca.update("consul", before["Config"], False)
    with pytest.raises(consulate.ServerError, match="unknown CA provider"):
        consul.connect.ca.update("nonsense", {})


def test_no_authority_without_connect():
    with Agent({"connect": {"enabled": False}, "ports": {"grpc": -1}}, keeps_data=True) as agent:
        consul = consulate.Consul("127.0.0.1", agent.port, timeout=10)
        for call in (consul.connect.ca.roots, consul.connect.ca.roots_pem, consul.connect.ca.configuration):
            with pytest.raises(consulate.ServerError, match="Connect must be enabled"):
                call()


def test_a_page_that_is_not_there_is_no_certificate(proxy, through):
    proxy.fault = lambda seen: (404, b"not here")
    with pytest.raises(consulate.NotFound, match="not here"):
        through.connect.ca.roots_pem()


# -- intentions ----------------------------------------------------------------------------------------------


def test_an_intention_by_its_id(consul, curl):
    intentions = consul.connect.intentions
    web = intentions.create("web", "db", description="why", meta={"a": "b"})
    found = curl.json(f"connect/intentions/{web}")
    assert [found[name] for name in ("SourceName", "DestinationName", "Action", "Description", "Meta")] == [
        "web", "db", "allow", "why", {"a": "b"},
    ]  # fmt: skip
    assert intentions.read(web) == found
    anyone = intentions.create("*", "db", "deny")
    assert {each["ID"] for each in intentions.list()} == {web, anyone}
    assert [each["ID"] for each in intentions.list(filter='SourceName == "web"')] == [web]
    assert intentions.update(web, "web", "cache", "deny", "other", {}) is True
    changed = curl.json(f"connect/intentions/{web}")
    assert (changed["DestinationName"], changed["Action"], changed["Description"]) == ("cache", "deny", "other")
    assert intentions.delete(web) is True
    assert curl("GET", f"connect/intentions/{web}")[0] == 404
    for odd in ("nope", "x" * 36, "1111-" + "1" * 31):
        assert intentions.read(odd) is None
        with pytest.raises(consulate.NotFound):
            intentions.delete(odd)
    assert intentions.read(web) is None


def test_which_intentions_fit_and_what_they_decide(consul, curl, agent):
    intentions = consul.connect.intentions
    narrow, wide = intentions.create("web", "db"), intentions.create("*", "db", "deny")
    found = intentions.match("destination", ["db", "cache"])
    assert [each["ID"] for each in found["db"]] == [narrow, wide]
    assert not found["cache"]
    assert [each["ID"] for each in intentions.match("source", "web", consistency="consistent")["web"]] == [narrow, wide]
    for source, allowed in (("web", True), ("other", False)):
        assert intentions.check(source, "db") is allowed
        command = [consul_command(), "intention", "check", f"-http-addr={agent.address}", source, "db"]
        assert (subprocess.run(command, capture_output=True, timeout=60).returncode == 0) is allowed
    with pytest.raises(ValueError, match="source"):
        intentions.match("target", ["db"])


def test_a_blocking_query_sees_a_new_intention(consul, curl):
    consul.connect.intentions.list()
    index = consul.connect.intentions.meta.index
    body = b'{"SourceName": "late", "DestinationName": "db", "Action": "allow"}'
    threading.Timer(0.3, lambda: curl("POST", "connect/intentions", body)).start()
    assert [each["SourceName"] for each in consul.connect.intentions.list(index=index, wait="30s")] == ["late"]


def test_intentions_that_there_are_not_and_that_there_are_already(consul, curl):
    intentions = consul.connect.intentions
    intentions.create("web", "db")
    with pytest.raises(consulate.ServerError, match="duplicate intention"):
        intentions.create("web", "db")
    assert intentions.read(NO_INTENTION) is None
    with pytest.raises(consulate.ServerError, match="non-existent"):
        intentions.update(NO_INTENTION, "web", "x")
    with pytest.raises(consulate.ServerError, match="non-existent"):
        intentions.delete(NO_INTENTION)
    assert intentions.read("no-id") is None


def test_intentions_by_name_are_asked_for_and_1_8_refuses_them(consul, proxy, through, curl):
    """Consul has them since 1.9: what is asked is seen, what a newer one answers is from its documentation."""
    intentions, answers = through.connect.intentions, iter((b'{"Action": "allow"}', b"true", b"true", b"true"))
    proxy.fault = lambda seen: (200, next(answers))
    assert intentions.read_exact("web", "d/b") == {"Action": "allow"}
    assert intentions.upsert_exact("web", "db", "allow", description="why") is True
    permissions = [{"Action": "deny", "HTTP": {"PathPrefix": "/admin"}}]
    assert intentions.upsert_exact("web", "db", permissions=permissions) is True
    assert intentions.delete_exact("web", "db") is True
    assert [(seen.method, seen.path, seen.body and json.loads(seen.body)) for seen in proxy.requests] == [
        ("GET", "/v1/connect/intentions/exact?source=web&destination=d%2Fb", b""),
        (
            "PUT",
            "/v1/connect/intentions/exact?source=web&destination=db",
            {"Action": "allow", "Description": "why"},
        ),
        ("PUT", "/v1/connect/intentions/exact?source=web&destination=db", {"Permissions": permissions}),
        ("DELETE", "/v1/connect/intentions/exact?source=web&destination=db", b""),
    ]
    proxy.fault = lambda seen: (404, b"Intention not found")
    assert intentions.read_exact("web", "db") is None
    for wrong in ({}, {"action": "allow", "permissions": permissions}):
        with pytest.raises(ValueError, match="one of the two"):
            intentions.upsert_exact("web", "db", **wrong)
    for call, kind in (
        (consul.connect.intentions.read_exact, consulate.NotFound),
        (lambda *names: consul.connect.intentions.upsert_exact(*names, "allow"), consulate.NotFound),
        (consul.connect.intentions.delete_exact, consulate.NotFound),
    ):
        with pytest.raises(kind, match="UUID must be 36 characters"):
            call("web", "db")
    assert curl.json("connect/intentions") == []


# -- the agent and the proxies -------------------------------------------------------------------------------


def test_the_agent_authorizes_a_connection(consul, curl):
    trust = curl.json("connect/ca/roots")["TrustDomain"]
    consul.connect.intentions.create("web", "db")
    consul.connect.intentions.create("*", "db", "deny")

    def ask(source):
        return consul.connect.agent_authorize("db", f"spiffe://{trust}/ns/default/dc/dc1/svc/{source}", "04:00")

    assert ask("web")["Authorized"] is True
    assert ask("other")["Authorized"] is False
    assert "DENY default/* => default/db" in ask("other")["Reason"]
    with pytest.raises(consulate.ClientError, match="ClientCertURI"):
        consul.connect.agent_authorize("db", "nonsense", "04:00")


def test_the_discovery_chain(consul, curl):
    chain = consul.connect.discovery_chain("web")
    assert chain == curl.json("discovery-chain/web")["Chain"]
    assert (chain["ServiceName"], chain["Protocol"], chain["Datacenter"]) == ("web", "tcp", "dc1")
    assert consul.connect.discovery_chain("web", compile_dc="dc2", consistency="stale")["Datacenter"] == "dc2"
    changed = consul.connect.discovery_chain("web", "dc2", {"OverrideProtocol": "grpc"}, consistency="consistent")
    assert (changed["Protocol"], changed["Datacenter"]) == ("grpc", "dc2")


def test_strangers_are_refused():
    master = "11111111-2222-3333-4444-666666666666"
    config = {"acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": master}}}
    with Agent(config) as agent:
        stranger = consulate.Consul("127.0.0.1", agent.port, timeout=10)
        for call in (
            lambda: stranger.connect.intentions.create("web", "db"),
            lambda: stranger.connect.ca.configuration(),
            lambda: stranger.connect.ca.agent_leaf("web"),
            lambda: stranger.connect.discovery_chain("web"),
        ):
            with pytest.raises(consulate.Forbidden):
                call()
        assert stranger.connect.intentions.list() == []
