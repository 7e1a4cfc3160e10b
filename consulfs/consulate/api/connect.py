"""The service mesh: intentions and the certificate authority. Source: https://www.consul.io/api-docs/connect"""

from __future__ import annotations

from consulfs.consulate.api.base import Endpoint


class Connect(Endpoint):
    """The service mesh: intentions and the certificate authority."""
