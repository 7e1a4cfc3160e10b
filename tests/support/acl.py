"""An agent with ACLs, as its administrator has it."""

from __future__ import annotations

import json
import os

from support.agent import Agent
from support.curl import Curl

MASTER = "11111111-2222-3333-4444-555555555555"


def guarded_agent(tokens: dict | None = None, **config: object) -> Agent:
    """Whoever has no token may do nothing.

    :param tokens: what the agent has beside the master token
    """
    return Agent(
        {"acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": MASTER, **(tokens or {})}}, **config}
    )


def make(admin: Curl, path: str, **body: object) -> dict:
    """What Consul says of a new thing of the ACL system, such as acl/token."""
    status, text = admin("PUT", path, json.dumps(body).encode())
    assert status == 200, text
    return json.loads(text)


def make_policy(admin: Curl, rules: str) -> dict[str, str]:
    """What tells of a new policy."""
    body = {"Name": f"p{os.urandom(4).hex()}", "Rules": rules}
    status, text = admin("PUT", "acl/policy", json.dumps(body).encode())
    assert status == 200, text
    return {"ID": json.loads(text)["ID"]}


def make_token(admin: Curl, rules: str) -> str:
    """A token that may do what the rules say."""
    status, text = admin("PUT", "acl/token", json.dumps({"Policies": [make_policy(admin, rules)]}).encode())
    assert status == 200, text
    return json.loads(text)["SecretID"]
