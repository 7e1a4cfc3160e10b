"""Network coordinates of nodes, for round-trip times. Source: https://www.consul.io/api-docs/coordinate"""

from __future__ import annotations

from consulfs.consulate.api.base import Endpoint


class Coordinate(Endpoint):
    """Network coordinates of nodes, for round-trip times."""
