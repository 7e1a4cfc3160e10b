"""The servers: who leads, and who takes part."""

from consulfs.tree.virtual.parts import Endpoint, Folder, Leaf

ENDPOINT = Endpoint(
    "_status",
    lambda facts: Folder(
        {
            "leader": Leaf(lambda consul, left: consul.status.leader(timeout=left)),
            "peers": Leaf(lambda consul, left: consul.status.peers(timeout=left)),
        }
    ),
)
