"""Putting nodes, services and checks into Consul, changing them, and taking them away."""

from __future__ import annotations

import json
from typing import Any

from support.curl import Curl
from support.waiting import until

MOST = 64
"""Operations in a transaction, as Consul 1.8 takes them."""


def put(curl: Curl, path: str, body: object = None, method: str = "PUT") -> Any:
    """A write that must work; what it answers."""
    status, text = curl(method, path, None if body is None else json.dumps(body).encode())
    assert status == 200, (path, body, text)
    return json.loads(text) if text.strip() else None


def put_node(curl: Curl, node: str, **more: object) -> None:
    """A node of the catalog that no agent keeps: it says what it is told. One that is there stays as it is."""
    body = {"Node": node, "Address": "192.0.2.7", "NodeMeta": {"rack": "7"}, "SkipNodeUpdate": True, **more}
    put(curl, "catalog/register", body)


def write_node(curl: Curl, node: str, text: str, **more: object) -> None:
    """The same with a text, which it has from now on."""
    put_node(curl, node, **{"NodeMeta": {"text": text}, "SkipNodeUpdate": False, **more})


def put_check(curl: Curl, node: str, check: str, status: str, **more: object) -> None:
    put_node(curl, node, Check={"Node": node, "CheckID": check, "Name": check, "Status": status, **more})


def remove_node(curl: Curl, node: str, **only: str) -> None:
    """With all that is on it; or `only` a service (ServiceID=) or a check (CheckID=) of it."""
    put(curl, "catalog/deregister", {"Node": node, **only})


def put_all(curl: Curl, *operations: dict) -> None:
    """Nodes, services and checks by the thousand, as operations of transactions."""
    for start in range(0, len(operations), MOST):
        put(curl, "txn", operations[start : start + MOST])


def clear_catalog(curl: Curl) -> None:
    """Leave the agent's own node "test" and the service "consul" alone."""
    for service in curl.json("agent/services"):
        curl("PUT", f"agent/service/deregister/{service}")
    for node in curl.json("catalog/nodes"):
        if node["Node"] != "test":
            remove_node(curl, node["Node"])
    curl("DELETE", "config/ingress-gateway/gate")
    until(lambda: set(curl.json("catalog/services")) == {"consul"})
