"""The user events that the agent has seen lately."""

from consulfs.tree.virtual.parts import Endpoint, Folder, Rows, by

ENDPOINT = Endpoint(
    "_event",
    lambda facts: Folder(
        {"list": Rows(lambda consul, left: consul.event.list(timeout=left), by("Name", "ID", separator="."))}
    ),
    local=True,
)
