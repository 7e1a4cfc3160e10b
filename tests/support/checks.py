"""What a test changes in Consul to see it change in a virtual tree."""

from __future__ import annotations

import json
from typing import Any

from support.curl import Curl


def put(curl: Curl, path: str, body: dict[str, Any]) -> None:
    status, text = curl("PUT", path, json.dumps(body).encode())
    assert status == 200, text


def write_node(curl: Curl, name: str, text: str, **more: Any) -> None:
    """A node of the catalog that no agent keeps: it says what it is told."""
    put(curl, "catalog/register", {"Node": name, "Address": "192.0.2.1", "NodeMeta": {"text": text}, **more})


def remove_node(curl: Curl, name: str) -> None:
    put(curl, "catalog/deregister", {"Node": name})


def make_ttl_check(curl: Curl, check: str) -> None:
    """One that passes until it is told to fail: it never runs out while a test lasts."""
    put(curl, "agent/check/register", {"ID": check, "Name": check, "TTL": "1h", "Status": "passing"})


def remove_check(curl: Curl, check: str) -> None:
    assert curl("PUT", f"agent/check/deregister/{check}")[0] == 200


def turn_check(curl: Curl, check: str, state: str) -> None:
    """Have a TTL check "pass" or "fail"."""
    assert curl("PUT", f"agent/check/{state}/{check}")[0] == 200


def are_critical(curl: Curl) -> set[str]:
    """The IDs of the checks that are critical, as the leader has it."""
    return {each["CheckID"] for each in curl.json("health/state/critical?consistent")}
