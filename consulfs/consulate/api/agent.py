"""The agent that answers. Source: https://www.consul.io/api-docs/agent"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consulfs.consulate.api.base import Endpoint

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.models import Query


class Agent(Endpoint):
    """What the local agent knows of itself."""

    def self(self, **query: Unpack[Query]) -> dict[str, Any]:
        """The agent's configuration and its member entry.

        :raises Forbidden: the token has no agent:read
        """
        return self._read_dict("agent/self", **query)
