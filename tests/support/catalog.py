"""Clearing up what tests have put into the catalog of an agent."""

from __future__ import annotations

import json

from support.curl import Curl
from support.waiting import until


def clear_catalog(curl: Curl) -> None:
    """Leave the agent's own node "test" and the service "consul" alone."""
    for service in curl.json("agent/services"):
        curl("PUT", f"agent/service/deregister/{service}")
    for node in curl.json("catalog/nodes"):
        if node["Node"] != "test":
            curl("PUT", "catalog/deregister", json.dumps({"Node": node["Node"]}).encode())
    curl("DELETE", "config/ingress-gateway/gate")
    until(lambda: set(curl.json("catalog/services")) == {"consul"})
