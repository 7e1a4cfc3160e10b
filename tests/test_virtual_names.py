"""Services, nodes, IDs and CheckIDs of every odd name: each in its directory once, and to be read."""

from __future__ import annotations

import errno
import json
import os
import re
import uuid
from urllib.parse import quote

import pytest
from support.agent import Agent
from support.catalog import put, put_node, remove_node
from support.curl import Curl
from support.errors import errno_of
from support.mount import Mount
from support.proxy import Proxy
from support.registry import put_intention, shown

LONG = "l" * 299

NAMES = {
    "..": "%2E%2E",
    ".": "%2E",
    "a/b": "a%2Fb",
    "a//b": "a%2F%2Fb",
    "a/../b": "a%2F..%2Fb",
    "/lead": "%2Flead",
    "tail/": "tail%2F",
    "../../etc": "..%2F..%2Fetc",
    "%": "%",
    "50%": "50%",
    "a%2Fb": "a%252Fb",
    "a%252Fb": "a%25252Fb",
    "a%3Ab": "a%253Ab",
    "%2E": "%252E",
    "%2E%2E": "%252E%2E",
    "%empty": "%25empty",
    "x%value": "x%25value",
    "a:b": "a:b",
    ":": ":",
    "two words": "two words",
    " ": " ",
    "grün 💡": "grün 💡",
    'quo"te': 'quo"te',
    "it's $HOME": "it's $HOME",
    "new\nline": "new\nline",
    'b\\\n"': 'b\\\n"',
    "tab\t/'": "tab\t%2F'",
    "back\\slash": "back\\slash",
    "#hash": "#hash",
    "?q=1&b": "?q=1&b",
    "-rf": "-rf",
    ".hidden": ".hidden",
    "*": "*",
    LONG + "a": None,
    LONG + "b": None,
}
"""What the last part of a name, or the only one, is called; None where it is a shortened name."""

FIRST = {"a:b": "a%3Ab", ":": "%3A"}
"""What is called otherwise where another part follows."""

SHORTENED = re.compile(r"l{212}%long[0-9a-f]{32}\Z")

BY_NAME = {
    "_catalog/services": "catalog/service",
    "_health/service": "health/service",
    "_health/checks": "health/checks",
    "_health/node": "health/node",
}
"""The directories of services and nodes, and the endpoint of each."""

TWIN = "twin"
"""A service that is as the odd ones are, and that a URL can name."""

PLAIN = "plain"
"""A node, and the service of the odd ones."""


@pytest.fixture(scope="module")
def agent():
    with Agent() as agent:
        fill(Curl(agent.url))
        yield agent


@pytest.fixture
def curl(agent):
    return Curl(agent.url)


@pytest.fixture(scope="module")
def mount(agent):
    with Mount(agent.address, "timeout=20") as mount:
        yield mount


def fill(curl):
    """Each name is a service, with its instance's ID and check, on the plain node, and a node, with both of these."""
    put_node(curl, PLAIN, ID=str(uuid.uuid4()))
    put_node(curl, PLAIN, Service=instance(TWIN), Check=check(PLAIN, TWIN, TWIN))
    for name in NAMES:
        put_node(curl, PLAIN, Service=instance(name), Check=check(PLAIN, name, name))
        put_node(curl, name, ID=str(uuid.uuid4()), Service=instance(PLAIN), Check=check(name, "of the node"))
        put_node(curl, name, Service=instance(name), Check=check(name, name, name))
        put(curl, "session/create", {"Node": name, "LockDelay": "0s", "Checks": []})
        put(curl, "config", {"Kind": "service-defaults", "Name": name, "Protocol": "tcp"})
        put(curl, "query", {"Name": name, "Service": {"Service": name}}, "POST")
        put(curl, "agent/service/register", {"Name": "of-agent", "ID": name})
        put(curl, "agent/check/register", {"Name": "of-agent", "ID": f"c{name}", "TTL": "10h"})
        if name.strip() and "*" not in name:  # Consul takes no other
            put_intention(curl, name, "*", "allow")
    for name in ("a/b", "a:b", "grün 💡", "#hash"):
        put(curl, f"event/fire/{quote(name, safe='')}")


def instance(name):
    tagged = {"lan": {"Address": "192.0.2.1", "Port": 80}}
    body = {"ID": name, "Service": name, "Tags": ["t"], "Port": 80, "Meta": {"m": "1"}, "Address": "192.0.2.8"}
    return {**body, "TaggedAddresses": tagged, "Weights": {"Passing": 2, "Warning": 1}}


def check(node, name, service=""):
    return {"Node": node, "CheckID": name, "Name": "alive", "Status": "passing", "ServiceID": service}


def last(name):
    return NAMES.get(name) or shown(name)


def pair(node, name):
    """What stands for a node and a name together."""
    return shown(node, name)


def read(path):
    return json.loads(path.read_bytes())


def listed(path):
    found = os.listdir(path)
    assert len(set(found)) == len(found)
    return set(found)


def travels(name):
    """Whether a URL carries it: curl sees an answer, no redirection and no refusal."""
    return name.isprintable() and all(part not in ("", ".", "..") for part in name.rstrip("/").split("/"))


def healthy(curl, name):
    """The health of a service as Consul has it, by a prepared query: its name is in no URL there.

    It writes no tags as null, where `GET /v1/health/service/:service` writes an empty list.
    """
    found = put(curl, "query", {"Service": {"Service": name}, "Session": curl.json("session/list")[0]["ID"]}, "POST")
    try:
        rows = curl.json(f"query/{found['ID']}/execute")["Nodes"]
        for each in [each for row in rows for each in row["Checks"]]:
            each["ServiceTags"] = each["ServiceTags"] or []
        return rows
    finally:
        put(curl, f"query/{found['ID']}", method="DELETE")


def test_the_code_that_says_what_is_expected_says_what_is_written_here():
    for name, written in NAMES.items():
        if written is None:
            assert SHORTENED.match(shown(name))
        else:
            assert shown(name) == written


def test_services(mount, curl):
    raw = set(curl.json("catalog/services"))
    assert raw > NAMES.keys()
    names = {last(name) for name in raw}
    assert len(names) == len(raw)
    for tree in ("_catalog/services", "_health/checks", "_health/service"):
        assert listed(mount.path / tree) == names, tree


@pytest.mark.parametrize("name", NAMES)
def test_the_instances_of_a_service(mount, curl, name):
    folder = mount.path / "_catalog/services" / last(name)
    files = {node: folder / pair(node, name) for node in (PLAIN, name)}
    assert listed(folder) == {path.name for path in files.values()}
    if travels(name):
        rows = {row["Node"]: row for row in curl.json(f"catalog/service/{quote(name, safe='')}")}
        assert {node: read(path) for node, path in files.items()} == rows
        return
    [twin] = curl.json(f"catalog/service/{TWIN}")
    own = {"ServiceID": name, "ServiceName": name}
    for row in healthy(curl, name):
        indexes = {field: row["Service"][field] for field in ("CreateIndex", "ModifyIndex")}
        of_node = {field: row["Node"][field] for field in ("ID", "Node")}
        assert read(files[row["Node"]["Node"]]) == {**twin, **own, **of_node, **indexes}


@pytest.mark.parametrize("name", NAMES)
def test_the_health_of_a_service(mount, curl, name):
    folder = mount.path / "_health/service" / last(name)
    rows = {pair(row["Node"]["Node"], name): row for row in healthy(curl, name)}
    assert len(rows) == 2
    assert listed(folder) == rows.keys()
    assert {file: read(folder / file) for file in rows} == rows


@pytest.mark.parametrize("name", NAMES)
def test_the_checks_of_a_service_and_of_a_node(mount, curl, name):
    states = curl.json("health/state/any")
    folder = mount.path / "_health/checks" / last(name)
    of_service = {pair(row["Node"], name): row for row in states if row["ServiceName"] == name}
    assert len(of_service) == 2
    assert {file: read(folder / file) for file in listed(folder)} == of_service
    folder = mount.path / "_health/node" / last(name)
    of_node = {last(row["CheckID"]): row for row in states if row["Node"] == name}
    assert of_node.keys() == {last(name), "of the node"}
    assert {file: read(folder / file) for file in listed(folder)} == of_node


def test_nodes(mount, curl):
    for tree in ("_catalog/nodes", "_health/node", "_session/node"):
        assert listed(mount.path / tree) == {last(name) for name in (*NAMES, PLAIN, "test")}, tree
    for row in curl.json("catalog/nodes"):
        if row["Node"] != "test":  # its agent writes it anew
            assert read(mount.path / "_catalog/nodes" / last(row["Node"])) == row
    for row in curl.json("session/list"):
        folder = mount.path / "_session/node" / last(row["Node"])
        assert listed(folder) == {row["ID"]}
        assert read(folder / row["ID"]) == row


def test_instances_of_one_service_on_every_node(mount, curl):
    folder = mount.path / "_catalog/services" / PLAIN
    rows = {row["Node"]: row for row in curl.json(f"catalog/service/{PLAIN}")}
    assert rows.keys() == NAMES.keys()
    assert listed(folder) == {pair(name, PLAIN) for name in NAMES}
    for name, row in rows.items():
        assert read(folder / pair(name, PLAIN)) == row
        if NAMES[name] is not None and "%" not in FIRST.get(name, ""):
            assert pair(name, PLAIN) in (f"{name}:plain", f"{NAMES[name]}:plain")
    for name, written in FIRST.items():
        assert pair(name, PLAIN) == f"{written}:plain"


def test_checks_in_a_state(mount, curl):
    for state in ("any", "passing"):
        folder = mount.path / "_health" / state
        rows = {pair(row["Node"], row["CheckID"]): row for row in curl.json(f"health/state/{state}")}
        assert len(rows) > 3 * len(NAMES)
        assert listed(folder) == rows.keys()
        for file, row in rows.items():
            if row["Node"] != "test":
                assert read(folder / file) == row


def test_the_agent_s_own(mount, curl):
    for tree, prefix in (("services", ""), ("checks", "c")):
        rows = curl.json(f"agent/{tree}")
        assert rows.keys() == {prefix + name for name in NAMES}
        folder = mount.path / "_agent" / tree
        assert listed(folder) == {last(name) for name in rows}
        for name, row in rows.items():
            assert read(folder / last(name)) == row


def test_entries_queries_intentions_and_events(mount, curl):
    trees = {
        "_config/service-defaults": {last(row["Name"]): row for row in curl.json("config/service-defaults")},
        "_query": {last(row["Name"]): without_token(row) for row in curl.json("query")},
        "_intention": {pair(row["SourceName"], row["DestinationName"]): row for row in curl.json("connect/intentions")},
        "_event/list": {shown(row["Name"], row["ID"], separator="."): row for row in curl.json("event/list")},
    }
    assert [len(rows) for rows in trees.values()] == [len(NAMES), len(NAMES), len(NAMES) - 2, 4]
    for tree, rows in trees.items():
        assert listed(mount.path / tree) == rows.keys(), tree
        for file, row in rows.items():
            assert read(mount.path / tree / file) == row


def without_token(row):
    return {field: value for field, value in row.items() if field != "Token"}


def test_nothing_leads_out_of_its_tree(mount):
    for tree, name in (("_catalog/services", "%2E%2E"), ("_health/checks", "%2E%2E"), ("_health/node", "%2E")):
        path = mount.path / tree
        assert os.path.realpath(path / name) == str(path / name)
        assert os.path.samefile(path / "..", path.parent)
        assert not os.path.samefile(path / name, path.parent)
        assert sorted(os.listdir(path / "..")) == sorted(os.listdir(path.parent))
    assert mount.ok("ls _catalog/services/..") == mount.ok("ls _catalog")
    assert mount.ok("ls -A _catalog/services/%2E%2E").splitlines() == ["..:..", "plain:.."]


def test_another_way_to_write_a_name_is_no_name(mount):
    for name in ("a%2fb", "%2e%2e", "%2D", "two%20words", "%2Fetc", "nope", "l" * 212 + "%long" + "0" * 32):
        with pytest.raises(FileNotFoundError):
            os.stat(mount.path / "_catalog/services" / name)


def test_tools_that_go_through_all_of_it(mount, tmp_path):
    for tree in ("_catalog", "_health", "_session", "_agent", "_config", "_query", "_intention"):
        done = mount.sh(f"find {tree} -type f -print0 | xargs -0 stat -c %n -- >/dev/null && cp -r {tree} {tmp_path}/")
        assert (done.returncode, done.stderr) == (0, ""), tree
        assert [sorted(names) for *_, names in os.walk(tmp_path / tree)] != [[]]
    assert mount.sh("grep -rl nothing-has-this _catalog _health _session _config").stderr == ""
    assert "Traceback" not in mount.log_text()


def test_a_name_that_the_server_refuses_in_a_url_is_asked_for_otherwise(agent, curl):
    """Its Unicode tables may be older than ours. What stands in for the URL gives what the URL gives."""
    name, url = "grün 💡", quote("grün 💡", safe="")
    put_node(curl, PLAIN, Check=check(PLAIN, "z of the node"))
    put_node(curl, "bare", Service={"Service": name, "ID": "a bare one"})
    try:
        with Proxy(agent.port) as proxy, Mount(proxy.address, "timeout=20") as mount:
            proxy.fault = lambda seen: (400, b"") if f"/{url}" in seen.path else None
            for tree, path in BY_NAME.items():
                rows = curl.json(f"{path}/{url}")
                assert len(rows) > 1
                folder = mount.path / tree / name
                files = [read(folder / file) for file in listed(folder)]
                assert in_order(files) == in_order(rows), tree
    finally:
        remove_node(curl, "bare")
        remove_node(curl, PLAIN, CheckID="z of the node")


def in_order(rows):
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))


def test_another_refusal_of_a_name_is_one(agent):
    """A name that any server takes is not asked for otherwise: the answer is an error, and no guess."""
    with Proxy(agent.port) as proxy, Mount(proxy.address, "timeout=20") as mount:
        proxy.fault = lambda seen: (400, b"no") if seen.path.startswith("/v1/health/service/-rf") else None
        assert errno_of(os.listdir, mount.path / "_health/service/-rf") == errno.EIO
        assert len(os.listdir(mount.path / "_health/checks/-rf")) == 2
