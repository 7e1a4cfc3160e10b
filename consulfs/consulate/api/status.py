"""The state of the Raft cluster. Source: https://www.consul.io/api-docs/status"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consulfs.consulate.api.base import Endpoint

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.models import Query


class Status(Endpoint):
    """Who leads, and who votes."""

    def leader(self, **query: Unpack[Query]) -> str:
        """The leader's address as "host:port"; "" where there is none."""
        return self._read("status/leader", **query).as_str()

    def peers(self, **query: Unpack[Query]) -> list[str]:
        """The addresses of the Raft peers, always as a list."""
        return self._read_list("status/peers", of=str, **query)
