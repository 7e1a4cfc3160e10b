"""What several endpoints ask for, and how they ask about a service or node whose name no URL carries.

A name "." or ".." would be another path, to which Consul redirects (301). What Consul knows of such a one is in its
answers about all: the checks by a filter, the instances in the nodes' own lists.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from consulfs.consulate import Consul
from consulfs.consulate.api.base import Row, Rows
from consulfs.tree.virtual.parts import Ask

_NO_SEGMENT = (".", "..")


def nodes(consul: Consul, left: float) -> Rows:
    return consul.catalog.nodes(timeout=left)


def services(consul: Consul, left: float) -> dict[str, list[str]]:
    """Each service's name, and its tags."""
    return {name: tags for found in consul.catalog.services(timeout=left) for name, tags in found.items()}


def sessions(consul: Consul, left: float) -> Rows:
    return consul.session.list(timeout=left)


def checks_of_node(consul: Consul, left: float, node: str) -> Rows:
    if node in _NO_SEGMENT:
        return consul.health.state("any", filter=f'Node == "{node}"', timeout=left)
    return consul.health.node(node, timeout=left)


def checks_of_service(consul: Consul, left: float, service: str) -> Rows:
    if service in _NO_SEGMENT:
        return consul.health.state("any", filter=f'ServiceName == "{service}"', timeout=left)
    return consul.health.checks(service, timeout=left)


def instances(consul: Consul, left: float, service: str) -> Rows:
    """The instances of a service as the catalog has them."""
    if service not in _NO_SEGMENT:
        return consul.catalog.service(service, timeout=left)
    return [_catalog_row(node, each) for node, each in _instances(consul, left, service)]


def health_of_service(consul: Consul, left: float, service: str) -> Rows:
    """The instances of a service, each with its node and the checks of both."""
    if service not in _NO_SEGMENT:
        return consul.health.service(service, timeout=left)
    checks = consul.health.state("any", filter=f'ServiceName == "{service}" or ServiceName == ""', timeout=left)
    return [
        {
            "Node": node,
            "Service": each,
            "Checks": [
                check for check in checks if check["Node"] == node["Node"] and check["ServiceID"] in ("", each["ID"])
            ],
        }
        for node, each in _instances(consul, left, service)
    ]


def without(fields: Collection[str], ask: Ask) -> Ask:
    """A call whose answer is given without some fields, however deep they are."""

    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: stripped(each) for name, each in value.items() if name not in fields}
        return [stripped(each) for each in value] if isinstance(value, list) else value

    return lambda consul, left, *groups: stripped(ask(consul, left, *groups))


def _instances(consul: Consul, left: float, service: str) -> Iterator[tuple[Row, Row]]:
    """(node, service) of each instance, by the nodes' own lists: a request a node."""
    for node in nodes(consul, left):
        name = node["ID"] if node["Node"] in _NO_SEGMENT else node["Node"]
        found = consul.catalog.node_services(name, filter=f'Service == "{service}"', timeout=left) if name else None
        for each in found["Services"] if found else ():
            yield node, each


def _catalog_row(node: Row, service: Row) -> Row:
    """As `GET /v1/catalog/service/:service` writes an instance."""
    return {
        **{name: node.get(name) for name in ("ID", "Node", "Address", "Datacenter", "TaggedAddresses")},
        "NodeMeta": node.get("Meta"),
        **{
            f"Service{'Name' if name == 'Service' else name}": value
            for name, value in service.items()
            if not name.endswith("Index")
        },
        "CreateIndex": service.get("CreateIndex"),
        "ModifyIndex": service.get("ModifyIndex"),
    }
