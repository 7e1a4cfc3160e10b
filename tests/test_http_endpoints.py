"""docs/http-endpoints.md against the code, the tests and a real server: no endpoint forgotten, none made up."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from consulfs import consulate
from consulfs.consulate.api.base import Endpoint

TOP = Path(__file__).resolve().parents[1]

ROW = re.compile(
    r"^\| `((?:GET|PUT|POST|DELETE)(?:, (?:GET|PUT|POST|DELETE))*) (/v1/[^` ?]+)[^|]*\| (.+?) \| (.+?) \|$"
)
LOCAL = re.compile(r"^\| \((.+?)\) \| (.+?) \| (.+?) \|$")

ROUTES = """
acl/auth-method acl/auth-method/ acl/auth-methods acl/binding-rule acl/binding-rule/ acl/binding-rules acl/bootstrap
acl/clone/ acl/create acl/destroy/ acl/info/ acl/list acl/login acl/logout acl/policies acl/policy acl/policy/
acl/policy/name/ acl/replication acl/role acl/role/ acl/role/name/ acl/roles acl/rules/translate acl/rules/translate/
acl/templated-policies acl/templated-policy/name/ acl/templated-policy/preview/ acl/token acl/token/ acl/token/self
acl/tokens acl/update agent/check/deregister/ agent/check/fail/ agent/check/pass/ agent/check/register
agent/check/update/ agent/check/warn/ agent/checks agent/connect/authorize agent/connect/ca/leaf/
agent/connect/ca/roots agent/force-leave/ agent/health/service/id/ agent/health/service/name/ agent/host agent/join/
agent/leave agent/maintenance agent/members agent/metrics agent/metrics/stream agent/monitor agent/reload agent/self
agent/service/ agent/service/deregister/ agent/service/maintenance/ agent/service/register agent/services agent/token/
agent/version catalog/connect/ catalog/datacenters catalog/deregister catalog/gateway-services/ catalog/node-services/
catalog/node/ catalog/nodes catalog/register catalog/service/ catalog/services config config/ connect/ca/configuration
connect/ca/roots connect/intentions connect/intentions/ connect/intentions/check connect/intentions/exact
connect/intentions/match coordinate/datacenters coordinate/node/ coordinate/nodes coordinate/update discovery-chain/
event/fire/ event/list exported-services health/checks/ health/connect/ health/ingress/ health/node/ health/service/
health/state/ internal/acl/authorize internal/federation-state/ internal/federation-states
internal/federation-states/mesh-gateways internal/service-virtual-ip kv/ operator/autopilot/configuration
operator/autopilot/health operator/autopilot/state operator/keyring operator/raft/configuration operator/raft/peer
operator/raft/transfer-leader operator/usage operator/utilization peering/ peering/establish peering/token peerings
query query/ session/create session/destroy/ session/info/ session/list session/node/ session/renew/ snapshot
status/leader status/peers txn
namespace namespace/ namespaces partition partition/ partitions
""".split()
"""Typed from the routers of Consul 1.20 and 1.8, but for internals of its web pages; the last line is Enterprise's."""


Row = tuple[str, str, list[str], str]


def rows() -> list[Row]:
    return [row for _, row in lines()]


def lines() -> list[tuple[str, Row]]:
    """(HTTP method, path, the client's methods, tested) of each row; without the first two where nothing is sent."""
    found = []
    for line in (TOP / "docs/http-endpoints.md").read_text().splitlines():
        match, local = ROW.match(line), LOCAL.match(line)
        assert match or local or not line.startswith(("| `", "| (")), f"not a row: {line}"
        if match:
            found.append((line, (match[1], match[2], re.findall(r"`([\w.]+)`", match[3]), match[4])))
        if local:
            found.append((line, ("", "", re.findall(r"`([\w.]+)`", local[2]), local[3])))
    return found


def methods(endpoint: Endpoint, path: str) -> set[str]:
    """The names of an endpoint's public methods, those of the endpoints on it included."""
    found: set[str] = set()
    for name in dir(endpoint):
        if name.startswith("_") or name in ("meta", "txn"):
            continue
        thing = getattr(endpoint, name)
        if isinstance(thing, Endpoint):
            found |= methods(thing, f"{path}.{name}")
        elif callable(thing) and not isinstance(thing, type):
            found.add(f"{path}.{name}")
    return found


def all_methods() -> set[str]:
    consul = consulate.Consul()
    endpoints = {name: thing for name, thing in vars(consul).items() if isinstance(thing, Endpoint)}
    return set().union(*(methods(thing, name) for name, thing in endpoints.items()))


def test_every_method_is_in_the_table_and_every_one_in_the_table_is_there():
    listed = {each for _, _, names, _ in rows() for each in names}
    there = all_methods()
    assert listed - there == set()
    assert there - listed == set()


def test_every_route_of_consul_is_in_the_table():
    paths = [path for _, path, _, _ in rows()]
    shapes = {path.removeprefix("/v1/").split(":")[0] for path in paths}
    assert set(ROUTES) - shapes == set()


def test_what_the_table_calls_tested_has_a_test_of_that_name():
    missing = []
    for method, path, _, tested in rows():
        named = re.match(r"`tests/(\w+)\.py::(\w+)`", tested)
        if named is None:
            assert re.match(r"no: \w", tested), (method, path, tested)
            continue
        file = TOP / "tests" / f"{named[1]}.py"
        names = (
            {each.name for each in ast.walk(ast.parse(file.read_text())) if isinstance(each, ast.FunctionDef)}
            if file.exists()
            else set()
        )
        if named[2] not in names:
            missing.append(tested)
    assert missing == []


NOT_IN_1_8 = re.compile(r"\(since 1\.(9|1\d)\)|Consul 1\.17|Enterprise only|1\.8\.7 has none")
"""What a row says where the server of these tests has no such route."""


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
def test_the_server_has_the_methods_that_the_table_says(agent, method):
    """Consul answers OPTIONS with what a route allows; rows of later servers are not asked for."""
    wrong = []
    for line, (asked, path, names, _) in lines():
        if asked != method or not names or path.startswith("/v1/query/") or NOT_IN_1_8.search(line):
            continue
        url = f"http://{agent.address}" + re.sub(r":\w+", "x", path)
        done = subprocess.run(["curl", "-s", "-i", "-X", "OPTIONS", url], capture_output=True, text=True, timeout=30)
        allowed = re.search(r"(?im)^allow: (.*?)\r?$", done.stdout)
        if not allowed or method not in allowed[1].split(","):
            wrong.append((method, path, allowed and allowed[1]))
    assert wrong == []
