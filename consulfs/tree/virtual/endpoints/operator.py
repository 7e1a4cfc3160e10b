"""For who runs the servers: raft's own list of them."""

from consulfs.tree.virtual.parts import Endpoint, Folder, Leaf

ENDPOINT = Endpoint(
    "_operator",
    lambda facts: Folder({"raft": Leaf(lambda consul, left: consul.operator.raft.configuration(timeout=left))}),
)
