"""The agent's endpoints against a real agent, seen with curl and in the files where it keeps what it was told."""

import contextlib
import itertools
import json
import signal
import subprocess
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_type_hints
from urllib.parse import quote

import pytest
from support.agent import Agent, free_ports
from support.curl import Curl
from support.proxy import Proxy
from support.signatures import positional
from support.waiting import until

from consulfs import consulate
from consulfs.consulate import definitions

MASTER = "11111111-2222-3333-4444-555555555555"


@pytest.fixture(scope="module")
def agent():
    config = {"enable_script_checks": True, "telemetry": {"prometheus_retention_time": "60s"}}
    with Agent(config, keeps_data=True) as agent:
        yield agent


@pytest.fixture
def curl(agent):
    curl = Curl(agent.url)
    yield curl
    for service in seen(curl, "agent/services"):
        curl("PUT", f"agent/service/deregister/{quote(service, safe='')}")
    for check in seen(curl, "agent/checks"):
        curl("PUT", f"agent/check/deregister/{quote(check, safe='')}")
    assert seen(curl, "agent/checks") == {}


@pytest.fixture
def watched(agent, curl):
    """A client through a proxy that sees and breaks, and the proxy."""
    with Proxy(agent.port) as proxy, consulate.Consul("127.0.0.1", proxy.server.server_port, timeout=30) as consul:
        yield consul, proxy


@pytest.fixture
def website():
    with serving() as website:
        yield website


@contextlib.contextmanager
def serving():
    """An HTTP server that answers with its `status`, and remembers what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.command, self.path, self.headers.get_all("X-Word"), body))
            self.send_response(server.status)
            self.end_headers()

        do_GET = do_POST = handle_any  # noqa: N815 - so named by http.server

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.status, server.asked = True, 200, asked
    server.at = f"127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def seen(curl, path):
    return curl.json(path, (200, 429, 503))


def state(curl, check_id):
    check = seen(curl, "agent/checks")[check_id]
    return check["Status"], check["Output"]


def kept(agent, check_id):
    """What the agent has written down of a check."""
    for path in Path(agent.folder, "data/checks").iterdir():
        if path.is_file() and (found := json.loads(path.read_text()))["Check"]["CheckID"] == check_id:
            return found["ChkType"]
    return None


# -- checks ---------------------------------------------------------------------------------------------------


def test_the_arguments_are_those_of_the_reference():
    agent = consulate.api.Agent
    assert positional(agent.Check.register) == "self name script check_id interval ttl notes http".split()
    assert positional(definitions.check) == positional(agent.Check.register)[1:]
    service = "self name service_id address port tags check interval ttl httpcheck"
    assert positional(agent.Service.register) == service.split()
    assert positional(definitions.service) == service.split()[1:]
    assert (
        positional(agent.__init__)[1:]
        == positional(agent.Check.__init__)[1:]
        == ["uri", "adapter", "datacenter", "token"]
    )
    assert positional(agent.join) == ["self", "address", "wan"]


def test_a_ttl_check_passes_warns_and_fails(consul, curl):
    assert consul.agent.checks() == []
    assert consul.agent.check.register("beat", None, "beat id", None, 600, "some notes") is True
    found = seen(curl, "agent/checks")["beat id"]
    assert (found["Name"], found["Status"], found["Notes"], found["Type"]) == ("beat", "critical", "some notes", "ttl")
    [checks] = consul.agent.checks()
    assert checks == {"beat id": found}
    assert consul.agent.check.ttl_pass("beat id", "all & well") is True
    assert state(curl, "beat id") == ("passing", "all & well")
    assert consul.agent.check.ttl_warn("beat id", note="so so") is True
    assert state(curl, "beat id") == ("warning", "so so")
    assert consul.agent.check.ttl_fail("beat id") is True
    assert state(curl, "beat id") == ("critical", "")
    assert consul.agent.check.update("beat id", "passing", "long\nwords") is True
    assert state(curl, "beat id") == ("passing", "long\nwords")
    until(lambda: [each["Status"] for each in seen(curl, "health/state/passing") if each["CheckID"] == "beat id"])
    assert consul.agent.check.deregister("beat id") is True
    assert consul.agent.check.deregister("beat id") is True
    assert seen(curl, "agent/checks") == {}
    for call in (consul.agent.check.ttl_pass, consul.agent.check.ttl_warn, consul.agent.check.ttl_fail):
        with pytest.raises(consulate.ServerError, match="beat id"):
            call("beat id")
    with pytest.raises(consulate.ServerError, match="beat id"):
        consul.agent.check.update("beat id", "passing")


def test_a_ttl_that_runs_out_is_critical(consul, curl):
    consul.agent.check.register("beat", ttl="300ms", status="passing")
    assert "TTL expired" in until(lambda: state(curl, "beat")[0] == "critical" and state(curl, "beat")[1])
    with pytest.raises(consulate.ClientError, match="wrong"):
        consul.agent.check.update("beat", "wrong")


def test_scripts_run(consul, curl, agent):
    consul.agent.check.register("line", "echo from-$((40+2)); exit 1", interval=1)
    consul.agent.check.register("words", args=["/bin/echo", "$((40+2))"], interval="1s", output_max_size=4)
    until(lambda: state(curl, "line") == ("warning", "from-42\n"))
    until(lambda: state(curl, "words")[0] == "passing")
    assert state(curl, "words")[1] == "Captured 4 of 10 bytes\n...\n2))\n"
    assert kept(agent, "line")["ScriptArgs"] == ["/bin/sh", "-c", "echo from-$((40+2)); exit 1"]
    assert kept(agent, "line")["Interval"] == 10**9


def test_a_script_needs_the_agents_leave(plain_agent):
    consul = consulate.Consul("127.0.0.1", plain_agent.port, timeout=30)
    with pytest.raises(consulate.ServerError, match="Scripts are disabled"):
        consul.agent.check.register("line", "true", interval=1)


def test_http_checks_ask(consul, curl, website):
    website.status = 429
    header = {"X-Word": ["one", "two"]}
    consul.agent.check.register(
        "web", None, None, 1, http=f"http://{website.at}/a", method="POST", header=header, body="ping", timeout=5
    )
    until(lambda: state(curl, "web")[0] == "warning")
    assert ("POST", "/a", ["one", "two"], b"ping") in website.asked
    website.status = 200
    until(lambda: state(curl, "web")[0] == "passing")
    consul.agent.check.register("one", http=f"http://{website.at}/b", interval=1, header={"X-Word": "single"})
    until(lambda: ("GET", "/b", ["single"], b"") in website.asked)


def test_tcp_checks_connect(consul, curl, website):
    consul.agent.check.register("open", tcp=website.at, interval=1)
    consul.agent.check.register("shut", tcp=f"127.0.0.1:{free_ports(1)[0]}", interval=1, status="passing")
    until(lambda: state(curl, "open")[0] == "passing")
    until(lambda: state(curl, "shut")[0] == "critical")


def test_an_alias_follows_its_service(consul, curl):
    consul.agent.service.register("web", "web1", ttl=600)
    consul.agent.service.register("front")

    names = (f"alias{number}" for number in itertools.count())

    def becomes(wanted, **alias):
        # A new alias looks at once. An old one may miss a change, and then looks only once a minute.
        name = next(names)
        consul.agent.check.register(name, **alias)
        with contextlib.suppress(AssertionError):
            return until(lambda: state(curl, name)[0] == wanted, 5) and name

    for tell, wanted in (
        (consul.agent.check.ttl_fail, "critical"),
        (consul.agent.check.ttl_pass, "passing"),
        (consul.agent.check.ttl_warn, "warning"),
    ):
        tell("service:web1")
        name = until(partial(becomes, wanted, alias_service="web1", service_id="front"))
    assert seen(curl, "agent/checks")[name]["ServiceID"] == "front"


def test_an_alias_follows_its_node(consul, curl):
    def becomes(status):
        check = {"CheckID": "up", "Name": "up", "Status": status}
        body = {"Node": "elsewhere", "Address": "127.0.0.9", "Check": check}
        assert curl("PUT", "catalog/register", json.dumps(body).encode())[0] == 200

    # Of another node: an alias of its own node is one of that node's checks, and while it is critical, it stays so.
    # The node is left in the catalog: an agent crashes when the node of an alias goes, even one of a former alias.
    becomes("passing")
    consul.agent.check.register("alias", alias_node="elsewhere")
    for status in ("passing", "warning", "critical", "passing"):
        becomes(status)
        until(lambda status=status: state(curl, "alias")[0] == status)


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ({"grpc": "127.0.0.1:1/x", "grpc_use_tls": True}, {"GRPC": "127.0.0.1:1/x", "GRPCUseTLS": True}),
        (
            {"args": ["true"], "docker_container_id": "abc", "shell": "/bin/ash"},
            {"ScriptArgs": ["true"], "DockerContainerID": "abc", "Shell": "/bin/ash"},
        ),
        ({"http": "https://127.0.0.1:1/", "tls_skip_verify": True}, {"TLSSkipVerify": True}),
        ({"tcp": "127.0.0.1:1", "timeout": "90s"}, {"Timeout": 90 * 10**9}),
        (
            {"tcp": "127.0.0.1:1", "deregister_critical_service_after": "90m"},
            {"DeregisterCriticalServiceAfter": 5400 * 10**9},
        ),
        (
            {"tcp": "127.0.0.1:1", "success_before_passing": 2, "failures_before_critical": 3},
            {"SuccessBeforePassing": 2, "FailuresBeforeCritical": 3},
        ),
        ({"tcp": "127.0.0.1:1", "output_max_size": 9, "status": "warning"}, {"OutputMaxSize": 9, "Status": "warning"}),
        ({"tcp": "127.0.0.1:1", "service_id": None, "notes": "n"}, {"Notes": "n"}),
    ],
)
def test_the_agent_keeps_every_option(consul, curl, agent, arguments, fields):
    consul.agent.check.register("it", interval=3600, **arguments)
    assert fields.items() <= kept(agent, "it").items()


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"tcp": "a:1", "tcp_use_tls": True}, "TCPUseTLS", True),
        ({"udp": "a:1"}, "UDP", "a:1"),
        ({"h2ping": "a:1"}, "H2PING", "a:1"),
        ({"h2ping": "a:1", "h2ping_use_tls": False}, "H2PingUseTLS", False),
        ({"os_service": "sshd"}, "OSService", "sshd"),
        ({"http": "http://a", "disable_redirects": True}, "DisableRedirects", True),
        ({"http": "https://a", "tls_server_name": "b"}, "TLSServerName", "b"),
        ({"tcp": "a:1", "failures_before_warning": 2}, "FailuresBeforeWarning", 2),
        ({"tcp": "a:1", "namespace": "team"}, "Namespace", "team"),
        ({"tcp": "a:1", "partition": "part"}, "Partition", "part"),
    ],
)
def test_an_option_newer_than_the_agent_is_sent_and_refused(watched, options, field, value):
    consul, proxy = watched
    with pytest.raises(consulate.ClientError, match="unknown field") as refused:
        consul.agent.check.register("it", interval=3600, **options)
    assert refused.value.status == 400
    assert json.loads(proxy.requests[-1].body)[field] == value


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "none is given"),
        ({"interval": 5}, "none is given"),
        ({"http": "", "script": ""}, "none is given"),
        ({"script": "true"}, "needs an interval"),
        ({"http": "http://a"}, "needs an interval"),
        ({"tcp": "a:1"}, "needs an interval"),
        ({"grpc": "a:1"}, "needs an interval"),
        ({"ttl": 5, "interval": 5}, "no interval"),
        ({"alias_service": "web", "interval": 5}, "no interval"),
        ({"script": "true", "args": ["true"], "interval": 5}, "not both"),
        ({"script": "true", "http": "http://a", "interval": 5}, "not a command and http"),
        ({"http": "http://a", "tcp": "a:1", "interval": 5}, "not http and tcp"),
        ({"ttl": 5, "http": "http://a", "interval": 5}, "not http and ttl"),
        ({"ttl": 5, "script": "true"}, "not a command and ttl"),
        ({"ttl": 5, "alias_node": "test"}, "not ttl and an alias"),
        ({"tcp": "a:1", "interval": 5, "method": "POST"}, "no Method"),
        ({"http": "http://a", "interval": 5, "grpc_use_tls": True}, "no GRPCUseTLS"),
        ({"ttl": 5, "tls_skip_verify": True}, "no TLSSkipVerify"),
        ({"http": "http://a", "interval": 5, "docker_container_id": "abc"}, "no DockerContainerID"),
        ({"script": "true", "interval": 5, "shell": "/bin/ash"}, "Docker"),
    ],
)
def test_wrong_combinations_are_not_sent(watched, arguments, words):
    consul, proxy = watched
    with pytest.raises(ValueError, match=words):
        consul.agent.check.register("it", **arguments)
    with pytest.raises(ValueError, match=words):
        consul.agent.check.definition("it", **arguments)
    assert proxy.requests == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"check": "true"},
        {"httpcheck": "http://a"},
        {"interval": 5},
        {"ttl": 5, "interval": 5},
        {"check": "true", "httpcheck": "http://a", "interval": 5},
        {"check": "true", "interval": 5, "ttl": 5},
        {"check": {"TTL": "5s"}, "ttl": 5},
        {"check": {"TTL": "5s"}, "interval": 5},
        {"check": {"TTL": "5s"}, "httpcheck": "http://a"},
    ],
)
def test_wrong_combinations_of_a_service_are_not_sent(watched, arguments):
    consul, proxy = watched
    with pytest.raises(ValueError, match=r"check|interval"):
        consul.agent.service.register("it", **arguments)
    assert proxy.requests == []


def test_an_option_that_there_is_not(consul):
    with pytest.raises(TypeError, match="intervall"):
        consul.agent.check.register("it", ttl=5, intervall=5)
    with pytest.raises(TypeError, match="tag"):
        consul.agent.service.register("it", tag="a")


def test_every_documented_option_has_its_field():
    assert set(get_type_hints(definitions.CheckOptions)) == set(definitions.CHECK_FIELDS)
    assert set(get_type_hints(definitions.ServiceOptions)) == set(definitions.SERVICE_FIELDS)


# -- services -------------------------------------------------------------------------------------------------


def test_a_service_as_the_reference_registers_it(consul, curl, agent, website):
    assert consul.agent.services() == []
    assert consul.agent.service.register("web", "web/1", "10.0.0.1", 80, ["a", "b"], "exit 0", "1s") is True
    found = seen(curl, "agent/services")["web/1"]
    assert (found["Service"], found["Address"], found["Port"], found["Tags"]) == ("web", "10.0.0.1", 80, ["a", "b"])
    assert consul.agent.services() == [{"web/1": found}]
    until(lambda: state(curl, "service:web/1")[0] == "passing")
    consul.agent.service.register("site", httpcheck=f"http://{website.at}/c", interval=1)
    until(lambda: state(curl, "service:site")[0] == "passing")
    consul.agent.service.register("beat", ttl="10m")
    assert kept(agent, "service:beat")["TTL"] == 600 * 10**9
    consul.agent.service.register("plain")
    assert set(seen(curl, "agent/services")) == {"web/1", "site", "beat", "plain"}
    assert list(consul.agent.services(filter='Service == "web"')[0]) == ["web/1"]
    assert list(consul.agent.checks(filter='ServiceName == "beat"')[0]) == ["service:beat"]
    assert consul.agent.checks(filter='ServiceName == "nobody"') == []
    assert consul.agent.service.deregister("web/1") is True
    assert consul.agent.service.deregister("web/1") is True
    assert set(seen(curl, "agent/services")) == {"site", "beat", "plain"}
    assert "service:web/1" not in seen(curl, "agent/checks")


def test_a_change_of_a_service_can_be_waited_for(agent, consul, curl):
    consul.agent.service.register("web", port=80)
    assert consul.agent.service.info("web")["Port"] == 80
    old = consul.agent.service.meta.content_hash
    assert old == seen(curl, "agent/service/web")["ContentHash"]
    with consulate.Consul("127.0.0.1", agent.port, timeout=0.5) as other:  # the time of the wait comes on top
        assert other.agent.service.info("web", hash=old, wait="1s")["ContentHash"] == old
    body = b'{"Name": "web", "Port": 81}'
    timer = threading.Timer(0.3, curl, ("PUT", "agent/service/register", body))
    timer.start()
    assert consul.agent.service.info("web", hash=old, wait=20)["Port"] == 81
    timer.join()
    assert consul.agent.service.meta.content_hash not in (old, None)
    with pytest.raises(TypeError, match="no option"):
        consul.agent.service.info("web", hush=old)


def test_all_that_a_service_may_have(consul, curl):
    consul.agent.service.register(
        "web",
        tags=["single"],
        meta={"version": "4"},
        weights={"Passing": 10, "Warning": 2},
        tagged_addresses={"wan": {"Address": "192.0.2.1", "Port": 81}},
        enable_tag_override=True,
        connect={"Native": True},
    )
    [row] = until(lambda: seen(curl, "catalog/service/web"))
    assert row["ServiceTags"] == ["single"]
    assert row["ServiceMeta"] == {"version": "4"}
    assert row["ServiceWeights"] == {"Passing": 10, "Warning": 2}
    assert row["ServiceTaggedAddresses"]["wan"] == {"Address": "192.0.2.1", "Port": 81}
    assert row["ServiceEnableTagOverride"] is True
    assert row["ServiceConnect"]["Native"] is True
    proxy = {"DestinationServiceName": "web", "DestinationServiceID": "web", "LocalServicePort": 80}
    consul.agent.service.register("web-proxy", port=9000, kind="connect-proxy", proxy=proxy)
    [row] = until(lambda: seen(curl, "catalog/service/web-proxy"))
    assert row["ServiceKind"] == "connect-proxy"
    assert row["ServiceProxy"]["DestinationServiceName"] == "web"
    assert consul.agent.service.info("web")["Weights"] == {"Passing": 10, "Warning": 2}
    assert consul.agent.service.info("web") == seen(curl, "agent/service/web")
    assert consul.agent.service.info("nobody") is None


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"socket_path": "/run/web"}, "SocketPath"),
        ({"locality": {"Region": "here"}}, "Locality"),
        ({"namespace": "team"}, "Namespace"),
        ({"partition": "part"}, "Partition"),
    ],
)
def test_what_newer_services_have_is_sent_and_refused(watched, options, field):
    consul, proxy = watched
    with pytest.raises(consulate.ClientError, match=f'unknown field "{field}"'):
        consul.agent.service.register("it", **options)
    assert json.loads(proxy.requests[-1].body)[field] == next(iter(options.values()))


def test_several_checks_of_a_service(consul, curl):
    check = consul.agent.check.definition
    plain = {"CheckID": "plain", "TTL": "1h", "Status": "warning"}
    consul.agent.service.register(
        "web", check=check("first", ttl=600, check_id="one"), checks=[check(ttl=600, notes="n"), plain]
    )
    assert {name: (each["Name"], each["Notes"]) for name, each in seen(curl, "agent/checks").items()} == {
        "one": ("first", ""),
        "service:web:2": ("Service 'web' check", "n"),
        "plain": ("Service 'web' check", ""),
    }
    assert state(curl, "plain")[0] == "warning"
    assert {each["ServiceID"] for each in seen(curl, "agent/checks").values()} == {"web"}
    consul.agent.service.register("web", checks=[plain])
    assert len(seen(curl, "agent/checks")) == 3
    consul.agent.service.register("web", checks=[plain], replace_existing_checks=True)
    assert list(seen(curl, "agent/checks")) == ["plain"]
    body = consul.agent.service.definition("web", ttl=5)
    assert body == {"Name": "web", "Check": {"TTL": "5s"}}


def test_a_services_health_is_an_answer_and_no_error(consul, curl):
    for number in (1, 2):
        consul.agent.service.register("web", f"web{number}", ttl=600)
        consul.agent.check.ttl_pass(f"service:web{number}")
    health = consul.agent.service.health_by_name("web")
    assert (health.status, len(health.instances)) == ("passing", 2)
    consul.agent.check.ttl_warn("service:web2")
    assert consul.agent.service.health_by_name("web").status == "warning"
    assert curl("GET", "agent/health/service/name/web?format=text") == (429, b"warning")
    consul.agent.check.ttl_fail("service:web2")
    health = consul.agent.service.health_by_name("web")
    assert health.status == "critical"
    assert sorted(health.instances, key=str) == sorted(seen(curl, "agent/health/service/name/web"), key=str)
    found = {each["Service"]["ID"]: each["AggregatedStatus"] for each in health.instances}
    assert found == {"web1": "passing", "web2": "critical"}
    assert consul.agent.service.health_by_id("web1").status == "passing"
    health = consul.agent.service.health_by_id("web2")
    assert (health.status, health.instances) == ("critical", [seen(curl, "agent/health/service/id/web2")])
    assert health.instances[0]["Checks"][0]["CheckID"] == "service:web2"
    assert consul.agent.service.maintenance("web1", reason="new disk") is True
    assert consul.agent.service.health_by_id("web1", timeout=20).status == "maintenance"
    assert consul.agent.service.health_by_name("web", timeout=20).status == "maintenance"
    assert consul.agent.service.health_by_name("nobody") is None
    assert consul.agent.service.health_by_id("nobody") is None


@pytest.mark.parametrize(("status", "kind"), [(429, consulate.ClientError), (503, consulate.ServerError)])
def test_a_server_that_is_overloaded_is_no_state_of_health(watched, status, kind):
    consul, proxy = watched
    proxy.fault = lambda seen: (status, b"too busy")
    for call in (consul.agent.service.health_by_id, consul.agent.service.health_by_name):
        with pytest.raises(kind, match="too busy"):
            call("web")
    proxy.fault = lambda seen: (status, b'{"message": "too busy"}')
    with pytest.raises(kind, match="too busy"):
        consul.agent.service.health_by_id("web")
    for page in (b"a page", b"{}", b"[]", b"null"):
        proxy.fault = lambda seen, page=page: (200, page)
        with pytest.raises(consulate.BadAnswer):
            consul.agent.service.health_by_id("web")


def test_maintenance_of_a_service_and_of_the_node(consul, curl):
    consul.agent.service.register("web")
    assert consul.agent.service.maintenance("web", True, "new disk & more") is True
    found = seen(curl, "agent/checks")["_service_maintenance:web"]
    assert (found["Status"], found["Notes"]) == ("critical", "new disk & more")
    assert consul.agent.service.maintenance("web", False) is True
    assert seen(curl, "agent/checks") == {}
    with pytest.raises(consulate.NotFound):
        consul.agent.service.maintenance("nobody")
    assert consul.agent.maintenance(True, reason="move") is True
    found = seen(curl, "agent/checks")["_node_maintenance"]
    assert (found["Status"], found["Notes"], found["ServiceID"]) == ("critical", "move", "")
    assert consul.agent.maintenance(enable=False) is True
    assert seen(curl, "agent/checks") == {}


# -- the agent itself -----------------------------------------------------------------------------------------


def test_what_the_agent_says_of_itself(consul, curl, plain_agent):
    assert consul.agent.self()["Config"] == seen(curl, "agent/self")["Config"]
    assert consul.agent.host()["Host"]["hostname"] == seen(curl, "agent/host")["Host"]["hostname"]
    assert {"Gauges", "Counters", "Samples", "Timestamp"} <= set(consul.agent.metrics())
    assert "# TYPE consul_" in consul.agent.prometheus()
    assert b"# TYPE consul_" in curl("GET", "agent/metrics?format=prometheus")[1]
    assert consul.agent.members() == seen(curl, "agent/members")
    assert [each["Name"] for each in consul.agent.members()] == ["test"]
    assert [each["Name"] for each in consul.agent.members(wan=True)] == ["test.dc1"]
    with pytest.raises(consulate.ServerError, match="segments"):
        consul.agent.members(segment="alpha")
    with consulate.Consul("127.0.0.1", plain_agent.port, timeout=30) as plain:
        with pytest.raises(consulate.ClientError) as off:
            plain.agent.prometheus()
        assert off.value.status == 415


def test_the_version_is_asked_where_newer_agents_have_it(watched):
    consul, proxy = watched
    with pytest.raises(consulate.NotFound):
        consul.agent.version()
    proxy.fault = lambda seen: (200, b'{"HumanVersion": "1.20.0"}') if seen.path == "/v1/agent/version" else None
    assert consul.agent.version() == {"HumanVersion": "1.20.0"}


def test_a_filter_of_members_is_sent(watched):
    consul, proxy = watched
    assert consul.agent.members(filter='Name == "test"')
    assert "filter=Name+%3D%3D+%22test%22" in proxy.requests[-1].path


def test_the_log_is_read_line_by_line(agent, curl):
    with consulate.Consul("127.0.0.1", agent.port, timeout=1) as consul:
        with consul.agent.monitor("err") as log:
            # It is silent for longer than the client's timeout, which is not for it.
            threading.Timer(2.5, lambda: [curl("PUT", f"agent/check/pass/nobody{number}") for number in (1, 2)]).start()
            lines = [next(log), next(log)]
        assert ["nobody1" in lines[0], "nobody2" in lines[1]] == [True, True]
        assert all("[ERROR]" in line and "\n" not in line for line in lines)
        log = consul.agent.monitor(loglevel="debug", logjson=True)
        curl("PUT", "agent/check/pass/nobody3")
        for line in log:
            if "nobody3" in json.loads(line).get("error", ""):
                break
        log.close()
        with consul.agent.monitor("err", timeout=0.5) as log, pytest.raises(consulate.AnswerTimeout):
            next(log)
        with pytest.raises(consulate.ClientError, match="loud"):
            consul.agent.monitor("loud")


def test_a_log_ends_with_its_agent():
    with Agent() as agent, consulate.Consul("127.0.0.1", agent.port, timeout=30) as consul:
        log = consul.agent.monitor("debug")
        consul.status.leader()
        assert next(log)
        agent.process.send_signal(signal.SIGKILL)
        with pytest.raises((consulate.ConnectionBroken, StopIteration)):
            while True:
                next(log)
        log.close()


def test_reload_reads_the_configuration_again():
    with Agent() as agent, consulate.Consul("127.0.0.1", agent.port, timeout=30) as consul:
        curl = Curl(agent.url)
        assert seen(curl, "agent/services") == {}
        consul.agent.service.register("told")
        definition = {"name": "web", "port": 80, "check": {"id": "c", "ttl": "1h"}}
        Path(agent.folder, "config.json").write_text(json.dumps({"service": definition}))
        assert seen(curl, "agent/services").keys() == {"told"}
        assert consul.agent.reload() is True
        assert seen(curl, "agent/services")["web"]["Port"] == 80
        assert "told" not in seen(curl, "agent/services")
        Path(agent.folder, "config.json").write_text("{")
        with pytest.raises(consulate.ServerError):
            consul.agent.reload()


def test_tokens_of_the_agent_and_who_may_do_what():
    tokens = {"enabled": True, "default_policy": "deny", "enable_token_persistence": True, "tokens": {"master": MASTER}}
    with Agent({"acl": tokens}, keeps_data=True) as agent:
        stranger = consulate.Consul("127.0.0.1", agent.port, timeout=30)
        for call in (
            lambda: stranger.agent.self(),
            lambda: stranger.agent.check.register("it", ttl=5),
            lambda: stranger.agent.service.register("it"),
            lambda: stranger.agent.token("default", "secret-word"),
            lambda: stranger.agent.reload(),
            lambda: stranger.agent.monitor(),
        ):
            with pytest.raises(consulate.Forbidden) as caught:
                call()
            assert "secret-word" not in str(caught.value)
        assert stranger.agent.services() == []
        consul = consulate.Consul("127.0.0.1", agent.port, token=MASTER, timeout=30)
        names = ("default", "agent", "agent_master", "replication")
        for name in names:
            assert consul.agent.token(name, f"{name}-secret") is True
        written = json.loads(Path(agent.folder, "data/acl-tokens.json").read_text())
        assert written == {name: f"{name}-secret" for name in names}
        assert Curl(agent.url, "agent_master-secret")("GET", "agent/self")[0] == 200
        for name in ("agent_recovery", "nonsense"):
            with pytest.raises(consulate.NotFound, match=name):
                consul.agent.token(name, "x")
        consul.agent.token("default", MASTER)
        assert Curl(agent.url)("GET", "agent/self")[0] == 200
        consul.agent.token("default", "")
        assert Curl(agent.url)("GET", "agent/self")[0] == 403


# -- the cluster ----------------------------------------------------------------------------------------------


class Follower(Agent):
    """An agent that is no server; ready as soon as it answers."""

    def __init__(self, node):
        super().__init__({"server": False, "bootstrap": False}, node=node)

    def start(self):
        self.config["data_dir"] = self.folder + "/data"
        super().start()

    def commits(self):
        return subprocess.run(["curl", "-s", "-m", "2", f"{self.url}/agent/self"], capture_output=True).returncode == 0


def members(curl, query=""):
    return {each["Name"]: each["Status"] for each in seen(curl, f"agent/members{query}")}


ALIVE, LEFT, FAILED = 1, 3, 4


def test_agents_join_leave_and_are_made_to_leave():
    with Agent(node="server") as server, Follower("first") as first, Follower("second") as second:
        curl = Curl(server.url)
        for each in (first, second):
            with consulate.Consul("127.0.0.1", each.port, timeout=30) as consul:
                assert consul.agent.join(f"127.0.0.1:{server.serf}") is True
        everybody = {"server": ALIVE, "first": ALIVE, "second": ALIVE}
        until(lambda: members(curl) == everybody)
        with consulate.Consul("127.0.0.1", first.port, timeout=60) as consul:
            with pytest.raises(consulate.ServerError, match="refused"):
                consul.agent.join(f"127.0.0.1:{free_ports(1)[0]}")
            assert consul.agent.leave() is True
        until(lambda: members(curl)["first"] == LEFT)
        assert until(lambda: first.process.poll() is not None) is True
        second.process.kill()
        until(lambda: members(curl)["second"] == FAILED)
        with consulate.Consul("127.0.0.1", server.port, timeout=60) as consul:
            assert consul.agent.force_leave("second") is True
            until(lambda: members(curl)["second"] == LEFT)
            assert consul.agent.force_leave("second", prune=True) is True
            until(lambda: "second" not in members(curl))
            with pytest.raises(consulate.ServerError, match="nobody"):
                consul.agent.force_leave("nobody")


def test_servers_of_two_datacenters_join():
    with Agent() as here, Agent({"datacenter": "dc2"}) as there:
        consul = consulate.Consul("127.0.0.1", here.port, timeout=30)
        assert consul.agent.join(f"127.0.0.1:{there.wan}", wan=True) is True
        until(lambda: members(Curl(here.url), "?wan=1") == {"test.dc1": ALIVE, "test.dc2": ALIVE})
        assert {each["Name"] for each in consul.agent.members(wan=True)} == {"test.dc1", "test.dc2"}
        assert [each["Name"] for each in consul.agent.members()] == ["test"]


def test_force_leave_on_the_wan_is_asked_for(watched):
    consul, proxy = watched
    proxy.fault = lambda seen: (200, b"")
    assert consul.agent.force_leave("a", wan=True) is True
    assert proxy.requests[-1].path == "/v1/agent/force-leave/a?wan=1"
