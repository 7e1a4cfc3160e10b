"""What is registered: datacenters, nodes, and the instances of each service."""

from consulfs.tree.virtual.asks import instances, nodes, services
from consulfs.tree.virtual.parts import Endpoint, Folder, Groups, Leaf, Rows, by

ENDPOINT = Endpoint(
    "_catalog",
    lambda facts: Folder(
        {
            "datacenters": Leaf(lambda consul, left: consul.catalog.datacenters(timeout=left)),
            "nodes": Rows(nodes, by("Node")),
            "services": Groups(services, Rows(instances, by("Node", "ServiceID"))),
        }
    ),
)
