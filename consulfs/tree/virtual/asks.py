"""What several endpoints ask for, and how they ask about a service or node whose name no URL carries.

With a name like "..", "a//b" or "/a" the URL would be that of another path, to which Consul redirects (301), and one
with a newline is refused (400). What Consul knows of such a one is in its answers about all: the checks by a filter,
the instances in the nodes' own lists.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any, Callable

from consulfs.consulate import ClientError, Consul
from consulfs.consulate.api.base import Row, Rows
from consulfs.consulate.api.records import travels_in_url
from consulfs.tree.virtual.parts import Ask


def nodes(consul: Consul, left: float) -> Rows:
    return consul.catalog.nodes(timeout=left)


def services(consul: Consul, left: float) -> dict[str, list[str]]:
    """Each service's name, and its tags."""
    return {name: tags for found in consul.catalog.services(timeout=left) for name, tags in found.items()}


def sessions(consul: Consul, left: float) -> Rows:
    return consul.session.list(timeout=left)


def checks_of_node(consul: Consul, left: float, node: str) -> Rows:
    return _by_url(
        node,
        lambda: consul.health.node(node, timeout=left),
        lambda: consul.health.state("any", filter=f"Node == {_quoted(node)}", timeout=left),
    )


def checks_of_service(consul: Consul, left: float, service: str) -> Rows:
    return _by_url(
        service,
        lambda: consul.health.checks(service, timeout=left),
        lambda: consul.health.state("any", filter=f"ServiceName == {_quoted(service)}", timeout=left),
    )


def instances(consul: Consul, left: float, service: str) -> Rows:
    """The instances of a service as the catalog has them."""
    return _by_url(
        service,
        lambda: consul.catalog.service(service, timeout=left),
        lambda: [_catalog_row(node, each) for node, each in _instances(consul, left, service)],
    )


def health_of_service(consul: Consul, left: float, service: str) -> Rows:
    """The instances of a service, each with its node and the checks of both."""
    return _by_url(
        service,
        lambda: consul.health.service(service, timeout=left),
        lambda: _health_rows(consul, left, service),
    )


def without(fields: Collection[str], ask: Ask) -> Ask:
    """A call whose answer is given without some fields, however deep they are."""

    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: stripped(each) for name, each in value.items() if name not in fields}
        return [stripped(each) for each in value] if isinstance(value, list) else value

    return lambda consul, left, *groups: stripped(ask(consul, left, *groups))


def _by_url(name: str, ask: Callable[[], Rows], instead: Callable[[], Rows]) -> Rows:
    """What the URL with a name gives; where Consul takes no such URL, what stands in for it."""
    if not travels_in_url(name):
        return instead()
    try:
        return ask()
    except ClientError as error:
        # Characters newer than the server's Unicode tables are unprintable to it.
        if error.status == 400 and not name.isascii():
            return instead()
        raise


def _quoted(text: str) -> str:
    """A text in a filter. Consul's grammar ends it at the next quote, whatever stands before that."""
    return '"' + json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', "\\u0022") + '"'


def _instances(consul: Consul, left: float, service: str) -> Iterator[tuple[Row, Row]]:
    """(node, service) of each instance, by the nodes' own lists: a request a node.

    A node is asked for by its ID, which any URL carries. One without, which no agent runs, by its name: what is on a
    node without an ID whose name no URL carries either is not found.
    """
    for node in nodes(consul, left):
        name = node["ID"] or node["Node"]
        if not travels_in_url(name):
            continue
        found = consul.catalog.node_services(name, filter=f"Service == {_quoted(service)}", timeout=left)
        for each in (found and found["Services"]) or ():
            yield node, each


def _health_rows(consul: Consul, left: float, service: str) -> Rows:
    """As `GET /v1/health/service/:service` gives them: a node's own checks stand before those of the instance."""
    of_either = f'ServiceName == {_quoted(service)} or ServiceName == ""'
    checks = consul.health.state("any", filter=of_either, timeout=left)
    return [
        {
            "Node": node,
            "Service": each,
            "Checks": [
                check
                for owner in ("", each["ID"])
                for check in checks
                if (check["Node"], check["ServiceID"]) == (node["Node"], owner)
            ],
        }
        for node, each in _instances(consul, left, service)
    ]


def _catalog_row(node: Row, service: Row) -> Row:
    """As `GET /v1/catalog/service/:service` writes an instance."""
    # A node's own list leaves an empty kind out, and has null for no metadata.
    fields = {"Kind": "", **service, "Meta": service.get("Meta") or {}}
    return {
        **{name: node.get(name) for name in ("ID", "Node", "Address", "Datacenter", "TaggedAddresses")},
        "NodeMeta": node.get("Meta"),
        **{
            f"Service{'Name' if name == 'Service' else name}": value
            for name, value in fields.items()
            if not name.endswith("Index")
        },
        "CreateIndex": service.get("CreateIndex"),
        "ModifyIndex": service.get("ModifyIndex"),
    }
