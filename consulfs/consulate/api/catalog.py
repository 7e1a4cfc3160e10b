"""What is registered: datacenters, nodes, services. Source: https://www.consul.io/api-docs/catalog"""

from __future__ import annotations

from consulfs.consulate.api.base import Endpoint


class Catalog(Endpoint):
    """What is registered: datacenters, nodes, services."""
