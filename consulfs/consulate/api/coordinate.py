"""Network coordinates of nodes, for round-trip times. Source: https://www.consul.io/api-docs/coordinate"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Optional

from consulfs.consulate.api.base import Endpoint, Rows, strip_none
from consulfs.consulate.api.base import segment as part

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.models import Query


class Coordinate(Endpoint):
    """Network coordinates of nodes, for round-trip times. Network segments are Enterprise's."""

    def datacenters(self, **query: Unpack[Query]) -> Rows:
        """The WAN coordinates of all servers, by datacenter."""
        return self._read_list("coordinate/datacenters", **query)

    def nodes(self, *, segment: Optional[str] = None, **query: Unpack[Query]) -> Rows:
        """The LAN coordinates of all nodes of the datacenter.

        :param segment: only this network segment's
        """
        return self._read_list("coordinate/nodes", {"segment": segment}, **query)

    def node(self, node: str, *, segment: Optional[str] = None, **query: Unpack[Query]) -> Rows:
        """A node's LAN coordinates: one row a network segment; [] for an unknown node."""
        # Its 404 has neither words nor an index (measured on 1.8.7).
        found = self._search(f"coordinate/node/{part(node)}", {"segment": segment}, absent=("",), **query)
        return [] if found is None else found.as_list(dict)

    def update(self, node: str, coordinate: Mapping[str, Any], segment: Optional[str] = None) -> bool:
        """Set a node's LAN coordinate. Consul collects updates and applies them a few seconds later.

        What is said of a node that the catalog does not know is dropped without a word (measured on 1.8.7).

        :param coordinate: Vec (eight numbers), Height, Adjustment and Error, as Consul gives it
        :raises ServerError: the coordinate has not as many dimensions as the others
        """
        body = {"Node": node, "Coord": dict(coordinate), "Segment": segment}
        return self._done("coordinate/update", strip_none(body))


def round_trip(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The estimated round trip between two nodes in seconds, from their coordinates ("Coord" of a row).

    Both are of the LAN or both of the WAN. Source: https://www.consul.io/docs/architecture/coordinates

    :raises ValueError: their dimensions differ
    """
    if len(one["Vec"]) != len(other["Vec"]):
        raise ValueError("these coordinates have different dimensions, so there is no distance between them")
    distance = math.dist(one["Vec"], other["Vec"]) + one["Height"] + other["Height"]
    adjusted = distance + one["Adjustment"] + other["Adjustment"]
    return float(adjusted if adjusted > 0 else distance)
