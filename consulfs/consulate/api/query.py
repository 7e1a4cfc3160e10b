"""Prepared queries. Source: https://www.consul.io/api-docs/query"""

from __future__ import annotations

from consulfs.consulate.api.base import Endpoint


class Query(Endpoint):
    """Prepared queries."""
