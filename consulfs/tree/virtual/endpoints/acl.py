"""Access control. Its files are their owner's alone, and what opens doors is left out unless it is asked for."""

from __future__ import annotations

from typing import Any

from consulfs.consulate import Consul
from consulfs.tree.virtual.asks import without
from consulfs.tree.virtual.parts import Ask, Endpoint, Facts, Folder, Leaf, Part, Rows, by


def _tree(facts: Facts) -> Folder:
    def shown(ask: Ask) -> Ask:
        return ask if facts.secrets else without(("SecretID",), ask)

    def token(consul: Consul, left: float, row: Any) -> Any:
        return consul.acl.tokens.read(row["AccessorID"], timeout=left)

    def policy(consul: Consul, left: float, row: Any) -> Any:
        return consul.acl.policies.read(row["ID"], timeout=left)

    tokens, policies, roles = (
        shown(lambda consul, left, name=name: getattr(consul.acl, name).list(timeout=left))
        for name in ("tokens", "policies", "roles")
    )
    parts: dict[str, Part] = {
        # A list of tokens has their SecretIDs or not, as the version of Consul has it.
        "tokens": Rows(tokens, by("AccessorID"), detail=token if facts.secrets else None, optional=True),
        "policies": Rows(policies, by("Name"), detail=policy, optional=True),  # the list is without the rules
        "roles": Rows(roles, by("Name"), optional=True),
        "self": Leaf(shown(lambda consul, left: consul.acl.token_self(timeout=left)), optional=True),
        "replication": Leaf(lambda consul, left: consul.acl.replication(timeout=left), optional=True),
    }
    if facts.secrets:
        parts["list"] = Rows(
            lambda consul, left: consul.acl.list(timeout=left), by("ID"), optional=True, is_secret=True
        )
    return Folder(parts, probe=lambda consul, left: consul.acl.token_self(timeout=left))


ENDPOINT = Endpoint("_acl", _tree, private=True)
