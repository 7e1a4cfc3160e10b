"""Configuration entries. Source: https://www.consul.io/api-docs/config"""

from __future__ import annotations

from consulfs.consulate.api.base import Endpoint


class Config(Endpoint):
    """Configuration entries."""
