"""Configuration entries, by kind. A kind that the server does not know is not there."""

from __future__ import annotations

from typing import Any

from consulfs.consulate import ClientError, Consul, ServerError
from consulfs.tree.virtual.asks import without
from consulfs.tree.virtual.parts import Endpoint, Folder, Lacking, Rows, by

KINDS = (
    "api-gateway control-plane-request-limit exported-services file-system-certificate http-route ingress-gateway"
    " inline-certificate jwt-provider mesh proxy-defaults sameness-group service-defaults service-intentions"
    " service-resolver service-router service-splitter tcp-route terminating-gateway"
).split()


def _of(kind: str) -> Rows:
    def entries(consul: Consul, left: float) -> Any:
        try:
            return consul.config.list(kind, timeout=left)
        except (ClientError, ServerError) as error:
            if "invalid config entry kind" in str(error):  # 500 on 1.8.7
                raise Lacking from error
            raise

    return Rows(without(("PrivateKey",), entries), by("Name"), optional=True)


ENDPOINT = Endpoint("_config", lambda facts: Folder({kind: _of(kind) for kind in KINDS}))
