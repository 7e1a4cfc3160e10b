"""The network coordinates of the nodes, which give the round trip times between them."""

from typing import Any

from consulfs.consulate import Consul
from consulfs.tree.virtual.parts import Endpoint, Folder, Rows, by


def _nodes(consul: Consul, left: float) -> Any:
    return consul.coordinate.nodes(timeout=left)


ENDPOINT = Endpoint("_coordinate", lambda facts: Folder({"nodes": Rows(_nodes, by("Node"))}, probe=_nodes))
