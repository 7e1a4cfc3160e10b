"""Which service may talk to which."""

from consulfs.tree.virtual.parts import Endpoint, Rows, by

ENDPOINT = Endpoint(
    "_intention",
    lambda facts: Rows(
        lambda consul, left: consul.connect.intentions.list(timeout=left),
        by("SourceName", "DestinationName"),
        optional=True,
    ),
)
