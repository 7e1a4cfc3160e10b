"""A cluster's registry: 3 nodes and 20 services, with all that Consul keeps of them, and what curl says of it.

`expected` says by its own code, from curl's answers alone, what the virtual trees of a mount are to hold.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from support.catalog import put, put_check, put_node
from support.curl import Curl
from support.waiting import place_nodes, until

STATES = ("passing", "warning", "critical")

KINDS = """
api-gateway control-plane-request-limit exported-services file-system-certificate http-route ingress-gateway
inline-certificate jwt-provider mesh proxy-defaults sameness-group service-defaults service-intentions
service-resolver service-router service-splitter tcp-route terminating-gateway
""".split()
"""Of config entries, by Consul's documentation up to 1.21."""

Value = Any
"""What a leaf shows: JSON, or a list of scalars or a scalar."""

Tree = dict[str, Any]
"""A directory: by name another one, or a `Leaf`."""


class Leaf:
    def __init__(self, value: Value) -> None:
        self.value = value


# -- filling ---------------------------------------------------------------------------------------------------


def put_instance(curl: Curl, node: str, service: str, status: str = "passing", **more: object) -> None:
    """An instance with a check of its own, on a node that need not be there yet."""
    instance = {"ID": f"{service}-{node}", "Service": service, "Tags": ["blue", "grün"], "Port": 8080, **more}
    check = {"Node": node, "CheckID": f"service:{instance['ID']}", "Name": "alive", "ServiceID": instance["ID"]}
    check.update(Status=status, Output="all is as it is\nand has been\n", Notes='<&> "quoted"')
    put_node(curl, node, Service=instance, Checks=[check])


def fill(curl: Curl) -> None:
    """The registry of the agent "test" and the nodes "db-1" and "web-1"."""
    for number in range(16):
        for place, node in enumerate(("db-1", "web-1", "test")[: 2 + number % 2]):
            put_instance(curl, node, f"service-{number:02}", STATES[(number + place) % 3])
    put_instance(curl, "web-1", "service-00", "critical", ID="service-00-second")
    for number in range(16, 20):
        put_agent_services(curl, f"service-{number}")
    for node, status in (("db-1", "critical"), ("web-1", "passing"), ("test", "warning")):
        put_check(curl, node, "disk/root", status)
    put_agent_check(curl, "ttl:node", "warning")
    put_the_rest(curl)
    until(lambda: "service-19" in curl.json("catalog/services"))


def put_agent_services(curl: Curl, service: str) -> None:
    """Two instances of the agent's own, with a TTL check each, and one instance elsewhere."""
    for instance, status in ((f"{service}:1", "passing"), (f"{service}/2", "critical")):
        put(curl, "agent/service/register", {"Name": service, "ID": instance, "Port": 80, "Meta": {"v": "1"}})
        put_agent_check(curl, f"ttl:{instance}", status, ServiceID=instance)
    put_instance(curl, "db-1", service, "warning")


def put_agent_check(curl: Curl, check: str, status: str, **more: object) -> None:
    put(curl, "agent/check/register", {"Name": "alive", "ID": check, "TTL": "10h", **more})
    body = {"Status": status, "Output": "as the program says"}
    assert curl("PUT", f"agent/check/update/{quote(check, safe='')}", json.dumps(body).encode())[0] == 200


def put_the_rest(curl: Curl) -> None:
    for node in ("db-1", "web-1", "test", "db-1"):
        put(curl, "session/create", {"Node": node, "Name": f"of {node}", "LockDelay": "0s", "Checks": []})
    for name, payload in (("deploy", "v1"), ("deploy", "v2"), ("of: a kind", "")):
        put(curl, f"event/fire/{quote(name)}", payload or None)
    put(curl, "query", {"Name": "near web", "Service": {"Service": "service-00"}}, "POST")
    bound = curl.json("session/list")[0]["ID"]  # who has no name needs a session
    put(curl, "query", {"Session": bound, "Service": {"Service": "service-01", "OnlyPassing": True}}, "POST")
    template = {"Type": "name_prefix_match", "Regexp": "^geo-(.*)$"}
    put(curl, "query", {"Name": "geo-", "Template": template, "Service": {"Service": "${match(1)}"}}, "POST")
    for source, destination, action in (("*", "service-00", "deny"), ("service-01", "service-00", "allow")):
        put_intention(curl, source, destination, action)
    put_intention(curl, "service-02", "*", "deny")
    for name in ("service-00", "service-01"):
        put(curl, "config", {"Kind": "service-defaults", "Name": name, "Protocol": "http"})
    put(curl, "config", {"Kind": "proxy-defaults", "Name": "global", "Config": {"local_connect_timeout_ms": 1000}})
    place_nodes(curl, **{"db-1": 0.01, "web-1": 0.02, "test": 0.03})
    curl.put("app/key", b"a key beside them")


def put_intention(curl: Curl, source: str, destination: str, action: str) -> None:
    body = {"SourceName": source, "DestinationName": destination, "SourceType": "consul", "Action": action}
    put(curl, "connect/intentions", body, "POST")


# -- names and texts ---------------------------------------------------------------------------------------------


WHOLE = {"": "%empty", ".": "%2E", "..": "%2E%2E", "%empty": "%25empty", "%2E": "%252E", "%2E%2E": "%252E%2E"}


def shown(*parts: str, separator: str = ":") -> str:
    """The file name for raw names, as the issue and the names of keys have it."""
    written = [_deepened(part).replace("/", "%2F") for part in parts]
    written[:-1] = [part.replace(":", "%3A") for part in written[:-1]]
    name = separator.join(written)
    whole = WHOLE.get(name, re.sub("(?<=.)%value$", "%25value", name, flags=re.DOTALL))
    if len(whole.encode()) <= 255:
        return whole
    digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
    return f"{name.encode()[:212].decode('utf-8', 'ignore')}%long{digest}"


def _deepened(part: str) -> str:
    return re.sub("%((25)*(2F|3A))", r"%25\1", part)


def text_of(value: Value) -> bytes:
    """The content of a leaf: plain text for what is scalar, else indented JSON."""
    scalars = value if isinstance(value, list) else [value]
    if any(isinstance(each, (dict, list)) for each in scalars):
        return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    return "".join(f"{each}\n" for each in scalars).encode()


# -- what is to be there ---------------------------------------------------------------------------------------


def rows(found: Iterable[dict], *fields: str, separator: str = ":") -> Tree:
    """A file for each row, named by these fields."""
    by_name: dict[str, list] = {}
    for row in found:
        by_name.setdefault(shown(*(row[field] for field in fields), separator=separator), []).append(row)
    return {name: Leaf(each[0] if len(each) == 1 else each) for name, each in by_name.items()}


def catalog(curl: Curl) -> Tree:
    services = curl.json("catalog/services")
    return {
        "datacenters": Leaf(curl.json("catalog/datacenters")),
        "nodes": rows(curl.json("catalog/nodes"), "Node"),
        "services": {
            shown(name): rows(curl.json(f"catalog/service/{quote(name, safe='')}"), "Node", "ServiceID")
            for name in services
        },
    }


def health(curl: Curl) -> Tree:
    services = [(name, quote(name, safe="")) for name in curl.json("catalog/services")]
    nodes = [each["Node"] for each in curl.json("catalog/nodes")]
    return {
        **{state: rows(curl.json(f"health/state/{state}"), "Node", "CheckID") for state in ("any", *STATES)},
        "node": {shown(node): rows(curl.json(f"health/node/{quote(node, safe='')}"), "CheckID") for node in nodes},
        "checks": {shown(name): rows(curl.json(f"health/checks/{url}"), "Node", "CheckID") for name, url in services},
        "service": {shown(name): instances(curl.json(f"health/service/{url}")) for name, url in services},
    }


def instances(found: list[dict]) -> Tree:
    return {shown(row["Node"]["Node"], row["Service"]["ID"]): Leaf(row) for row in found}


def agent(curl: Curl) -> Tree:
    return {
        "self": Leaf(curl.json("agent/self")),
        "metrics": Leaf(curl.json("agent/metrics")),
        "checks": rows(curl.json("agent/checks").values(), "CheckID"),
        "services": rows(curl.json("agent/services").values(), "ID"),
        "members": rows(curl.json("agent/members"), "Name"),
    }


def session(curl: Curl) -> Tree:
    nodes = [each["Node"] for each in curl.json("catalog/nodes")]
    return {
        "list": rows(curl.json("session/list"), "ID"),
        "node": {shown(node): rows(curl.json(f"session/node/{quote(node, safe='')}"), "ID") for node in nodes},
    }


def query(curl: Curl) -> Tree:
    """Without the token that a query is run with."""
    listed = [{field: value for field, value in row.items() if field != "Token"} for row in curl.json("query")]
    return {shown(row["Name"] or row["ID"]): Leaf(row) for row in listed}


def config(curl: Curl) -> Tree:
    """The kinds that the server knows."""
    answers = {kind: curl("GET", f"config/{kind}") for kind in KINDS}
    return {kind: rows(json.loads(text), "Name") for kind, (status, text) in answers.items() if status == 200}


TREES = {
    "_agent": agent,
    "_catalog": catalog,
    "_config": config,
    "_coordinate": lambda curl: {"nodes": rows(curl.json("coordinate/nodes"), "Node")},
    "_event": lambda curl: {"list": rows(curl.json("event/list"), "Name", "ID", separator=".")},
    "_health": health,
    "_intention": lambda curl: rows(curl.json("connect/intentions"), "SourceName", "DestinationName"),
    "_operator": lambda curl: {"raft": Leaf(curl.json("operator/raft/configuration"))},
    "_query": query,
    "_session": session,
    "_status": lambda curl: {
        "leader": Leaf(curl.json("status/leader")), "peers": Leaf(curl.json("status/peers"))
    },
}  # fmt: skip
"""What gives each tree, by its name at the root."""


def expected(curl: Curl, tree: str) -> Tree:
    return TREES[tree](curl)


def flat(tree: Tree, path: str = "") -> tuple[dict[str, Value], set[str]]:
    """(the value of each leaf by its path, the paths of the directories)."""
    leaves, directories = {}, {path}
    for name, each in tree.items():
        below = f"{path}/{name}" if path else name
        if isinstance(each, Leaf):
            leaves[below] = each.value
        else:
            more, inner = flat(each, below)
            leaves.update(more)
            directories |= inner
    return leaves, directories
