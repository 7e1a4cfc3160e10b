"""The servers' whole state, saved and restored as a stream. Source: https://www.consul.io/api-docs/snapshot"""

from __future__ import annotations

from consulfs.consulate.api.base import Endpoint


class Snapshot(Endpoint):
    """The servers' whole state, saved and restored as a stream."""
