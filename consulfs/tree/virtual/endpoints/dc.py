"""The other datacenters, each with its keys and virtual trees. The mount's own is not among them."""

from __future__ import annotations

from consulfs.consulate import Consul
from consulfs.tree.virtual.parts import Endpoint, Facts, Folder, Groups

NAME = "_dc"


def _tree(facts: Facts) -> Groups:
    def others(consul: Consul, left: float) -> list[str]:
        found: list[str] = consul.catalog.datacenters(timeout=left)
        own = facts.datacenter or found[0]  # the nearest is first, and nothing is nearer than what was asked
        return [each for each in found if each != own]

    return Groups(others, Folder({}))


ENDPOINT = Endpoint(NAME, _tree, local=True)
