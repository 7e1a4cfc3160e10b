"""The cluster's own machinery: raft, autopilot, keyring. Source: https://www.consul.io/api-docs/operator"""

from __future__ import annotations

from consulfs.consulate.api.base import Endpoint


class Operator(Endpoint):
    """The cluster's own machinery: raft, autopilot, keyring."""
