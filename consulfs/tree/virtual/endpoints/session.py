"""Sessions, all of them and by node: what holds locks."""

from consulfs.tree.virtual.asks import nodes, sessions
from consulfs.tree.virtual.parts import Endpoint, Folder, Groups, Rows, by, column

ENDPOINT = Endpoint(
    "_session",
    lambda facts: Folder(
        {
            "list": Rows(sessions, by("ID")),
            "node": Groups(
                nodes, Rows(sessions, by("ID"), keep=lambda row, node: bool(row["Node"] == node)), column("Node")
            ),
        }
    ),
)
