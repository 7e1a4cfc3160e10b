"""The agent that the mount talks to, and what is registered with it."""

from consulfs.tree.virtual.parts import Endpoint, Folder, Leaf, Rows, by


def _rows(found: list[dict[str, dict[str, object]]]) -> list[dict[str, object]]:
    return [row for each in found for row in each.values()]


ENDPOINT = Endpoint(
    "_agent",
    lambda facts: Folder(
        {
            "self": Leaf(lambda consul, left: consul.agent.self(timeout=left)),
            "metrics": Leaf(lambda consul, left: consul.agent.metrics(timeout=left), optional=True),
            "checks": Rows(lambda consul, left: _rows(consul.agent.checks(timeout=left)), by("CheckID")),
            "services": Rows(lambda consul, left: _rows(consul.agent.services(timeout=left)), by("ID")),
            "members": Rows(lambda consul, left: consul.agent.members(timeout=left), by("Name")),
        }
    ),
    local=True,
)
