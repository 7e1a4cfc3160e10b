"""What is healthy, and what is not."""

from consulfs.tree.virtual.asks import checks_of_node, checks_of_service, health_of_service, nodes, services
from consulfs.tree.virtual.parts import Endpoint, Folder, Groups, Rows, by, column

STATES = ("any", "passing", "warning", "critical")


def _in(state: str) -> Rows:
    return Rows(lambda consul, left: consul.health.state(state, timeout=left), by("Node", "CheckID"))


ENDPOINT = Endpoint(
    "_health",
    lambda facts: Folder(
        {
            **{state: _in(state) for state in STATES},
            "node": Groups(nodes, Rows(checks_of_node, by("CheckID")), column("Node")),
            "checks": Groups(services, Rows(checks_of_service, by("Node", "CheckID"))),
            "service": Groups(services, Rows(health_of_service, by("Node.Node", "Service.ID"))),
        }
    ),
)
