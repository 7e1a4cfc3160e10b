"""What is healthy, and what is not. Source: https://www.consul.io/api-docs/health"""

from __future__ import annotations

from consulfs.consulate.api.base import Endpoint


class Health(Endpoint):
    """What is healthy, and what is not."""
