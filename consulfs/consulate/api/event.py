"""User events, sent by gossip. Source: https://www.consul.io/api-docs/event"""

from __future__ import annotations

from consulfs.consulate.api.base import Endpoint


class Event(Endpoint):
    """User events, sent by gossip."""
