"""Configuration entries against a real Consul, checked with curl and `consul config`."""

import json
import subprocess
import threading

import pytest
from support.agent import Agent, consul_command
from support.curl import Curl

from consulfs import consulate

MASTER = "11111111-2222-3333-4444-666666666666"


@pytest.fixture(scope="module")
def agent():
    with Agent() as agent:
        yield agent


@pytest.fixture
def curl(agent):
    """On an agent without configuration entries."""
    curl = Curl(agent.url)
    yield curl
    for kind in ("service-defaults", "proxy-defaults"):
        for each in json.loads(curl("GET", f"config/{kind}")[1]):
            assert curl("DELETE", f"config/{kind}/{each['Name']}")[0] == 200


def entry(curl, name, kind="service-defaults"):
    status, text = curl("GET", f"config/{kind}/{name}")
    return json.loads(text) if status == 200 else None


def test_an_entry_is_applied_read_listed_and_deleted(consul, curl, agent):
    assert consul.config.apply({"Kind": "service-defaults", "Name": "web", "Protocol": "http"}) is True
    assert consul.config.apply({"Kind": "service-defaults", "Name": "a b", "Protocol": "tcp"}) is True
    command = [consul_command(), "config", "read", f"-http-addr={agent.address}", "-kind=service-defaults", "-name=web"]
    assert json.loads(subprocess.run(command, capture_output=True, timeout=60).stdout)["Protocol"] == "http"
    assert consul.config.get("service-defaults", "web") == entry(curl, "web")
    assert consul.config.get("service-defaults", "a b", consistency="consistent")["Protocol"] == "tcp"
    assert {each["Name"] for each in consul.config.list("service-defaults")} == {"web", "a b"}
    unfiltered = consul.config.list("service-defaults", filter='Name == "web"')
    assert len(unfiltered) == 2  # as 1.8.7 has it
    assert consul.config.list("service-resolver") == []
    assert consul.config.delete("service-defaults", "a b") is True
    assert consul.config.delete("service-defaults", "a b") is True
    assert entry(curl, "a%20b") is None
    assert consul.config.get("service-defaults", "a b") is None


def test_apply_with_cas(consul, curl):
    web = {"Kind": "service-defaults", "Name": "web", "Protocol": "http"}
    assert consul.config.apply(web, cas=0) is True
    assert consul.config.apply({**web, "Protocol": "grpc"}, cas=0) is False
    index = entry(curl, "web")["ModifyIndex"]
    assert consul.config.apply({**web, "Protocol": "tcp"}, cas=index) is True
    assert consul.config.apply({**web, "Protocol": "grpc"}, cas=index) is False
    assert entry(curl, "web")["Protocol"] == "tcp"


def test_delete_with_cas_leaves_another_state_alone(consul, curl):
    """Although 1.8.7 itself would delete it."""
    assert curl("PUT", "config", b'{"Kind": "service-defaults", "Name": "web", "Protocol": "http"}')[0] == 200
    index = entry(curl, "web")["ModifyIndex"]
    for wrong in (0, 1, index + 1):
        assert consul.config.delete("service-defaults", "web", cas=wrong) is False
        assert entry(curl, "web")
    assert consul.config.delete("service-defaults", "none", cas=index) is False
    assert consul.config.delete("service-defaults", "web", cas=index) is True
    assert entry(curl, "web") is None


def test_delete_with_cas_believes_a_newer_consul(agent, proxy_of_own, curl):
    proxy, consul = proxy_of_own
    curl("PUT", "config", b'{"Kind": "service-defaults", "Name": "web", "Protocol": "http"}')
    index = entry(curl, "web")["ModifyIndex"]
    proxy.fault = lambda seen: (200, b"false") if seen.method == "DELETE" else None
    assert consul.config.delete("service-defaults", "web", cas=index) is False
    assert proxy.requests[-1].path == f"/v1/config/service-defaults/web?cas={index}"


@pytest.fixture
def proxy_of_own(agent):
    from support.proxy import Proxy

    with Proxy(agent.port) as proxy:
        host, port = proxy.address.split(":")
        with consulate.Consul(host, int(port), timeout=10) as consul:
            yield proxy, consul


def test_a_blocking_query_sees_a_change(consul, curl):
    consul.config.list("proxy-defaults")
    index = consul.config.meta.index
    body = b'{"Kind": "proxy-defaults", "Name": "global", "Config": {"a": "b"}}'
    threading.Timer(0.3, lambda: curl("PUT", "config", body)).start()
    (found,) = consul.config.list("proxy-defaults", index=index, wait="30s")
    assert found["Config"] == {"a": "b"}


def test_what_consul_and_the_client_refuse(consul, curl):
    with pytest.raises(ValueError, match="Kind"):
        consul.config.apply({"Name": "web"})
    with pytest.raises(consulate.ClientError, match="invalid config entry kind") as refused:
        consul.config.apply({"Kind": "nonsense", "Name": "web"})
    assert refused.value.status == 400
    with pytest.raises(consulate.ClientError, match="invalid config key"):
        consul.config.apply({"Kind": "service-defaults", "Name": "web", "Protokoll": "http"})
    with pytest.raises(consulate.ServerError, match="invalid config entry kind"):
        consul.config.list("nonsense")
    assert json.loads(curl("GET", "config/service-defaults")[1]) == []


def test_a_stranger_may_not():
    config = {"acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": MASTER}}}
    with Agent(config) as agent:
        stranger = consulate.Consul("127.0.0.1", agent.port, timeout=10)
        web = {"Kind": "service-defaults", "Name": "web", "Protocol": "http"}
        for call in (
            lambda: stranger.config.apply(web),
            lambda: stranger.config.get("service-defaults", "web"),
            lambda: stranger.config.delete("service-defaults", "web"),
        ):
            with pytest.raises(consulate.Forbidden):
                call()
        assert stranger.config.list("service-defaults") == []
        assert consulate.Consul("127.0.0.1", agent.port, token=MASTER, timeout=10).config.apply(web) is True
        assert entry(Curl(agent.url, MASTER), "web")
