"""Two datacenters, joined over the WAN."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from support.agent import Agent
from support.curl import Curl
from support.waiting import until


@contextmanager
def datacenters(
    *, first: str = "test", second: str = "test", keeps_data: bool = False
) -> Iterator[tuple[Agent, Agent]]:
    """dc1 and dc2, of one server each: ready when a request to either is carried to both.

    :param first: the name of dc1's node; a session that is made from there in dc2 needs a node of this name
    :param keeps_data: whether dc2 outlives a stop
    """
    with Agent({"datacenter": "dc1"}, node=first) as one:
        joining = {"datacenter": "dc2", "retry_join_wan": [f"127.0.0.1:{one.wan}"], "retry_interval_wan": "1s"}
        with Agent(joining, keeps_data, node=second) as two:
            until(lambda: all(knows_both(agent) for agent in (one, two)))
            yield one, two


def knows_both(agent: Agent) -> bool:
    """Listed, and a request is carried to either: a datacenter is listed before its servers are."""
    curl = Curl(agent.url)
    status, text = curl("GET", "catalog/datacenters")
    if status != 200 or sorted(json.loads(text)) != ["dc1", "dc2"]:
        return False
    return all(curl("GET", f"session/list?dc={name}")[0] == 200 for name in ("dc1", "dc2"))
