"""The agent that the mount talks to, and what is registered with it.

Consul hides its own tokens in `self`, and shows what the provider of the mesh's certificates works with: a key, or a
token of Vault's (DebugConfig.ConnectCAConfig).
"""

from consulfs.consulate import Consul
from consulfs.consulate.api import base
from consulfs.tree.virtual.asks import without
from consulfs.tree.virtual.parts import Ask, Endpoint, Facts, Folder, Leaf, Rows, by


def _self(consul: Consul, left: float) -> base.Row:
    return consul.agent.self(timeout=left)


def _rows(found: list[dict[str, base.Row]]) -> base.Rows:
    return [row for each in found for row in each.values()]


def _tree(facts: Facts) -> Folder:
    about: Ask = _self if facts.secrets else without(("PrivateKey", "Token"), _self)
    return Folder(
        {
            "self": Leaf(about),
            "metrics": Leaf(lambda consul, left: consul.agent.metrics(timeout=left), optional=True),
            "checks": Rows(lambda consul, left: _rows(consul.agent.checks(timeout=left)), by("CheckID")),
            "services": Rows(lambda consul, left: _rows(consul.agent.services(timeout=left)), by("ID")),
            "members": Rows(lambda consul, left: consul.agent.members(timeout=left), by("Name")),
        }
    )


ENDPOINT = Endpoint("_agent", _tree, local=True)
