"""What is healthy, and what is not. Source: https://www.consul.io/api-docs/health"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional, Union

from consulfs.consulate.api.base import Endpoint, Params, Rows, segment

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.models import Filtered, NodeQuery

STATES = ("any", "unknown", "passing", "warning", "critical")


class Health(Endpoint):
    """The states of checks, and the instances of services with their checks."""

    def checks(self, service_id: str, **query: Unpack[NodeQuery]) -> Rows:
        """The checks of a service, on all its nodes.

        :param service_id: the service's name
        """
        return self._read_list(f"health/checks/{segment(service_id)}", **query)

    def node(self, node_id: str, **query: Unpack[Filtered]) -> Rows:
        """The checks of a node, those of its services included.

        :param node_id: its name or its ID
        """
        return self._read_list(f"health/node/{segment(node_id)}", **query)

    def service(
        self,
        service_id: str,
        tag: Union[str, Sequence[str], None] = None,
        passing: Optional[bool] = None,
        *,
        peer: Optional[str] = None,
        merge_central_config: bool = False,
        **query: Unpack[NodeQuery],
    ) -> Rows:
        """The instances of a service: each its node, the service and all checks of both.

        :param service_id: the service's name
        :param tag: only instances with this tag, or with all of these
        :param passing: only instances of which every check passes; None and False ask for all
        :param peer: imported from this peer (Consul 1.13)
        :param merge_central_config: with what config entries say (1.12)
        """
        merge = "" if merge_central_config else None
        params: Params = {"tag": tag, **_passing(passing), "peer": peer, "merge-central-config": merge}
        return self._read_list(f"health/service/{segment(service_id)}", params, **query)

    def connect(self, service_id: str, passing: Optional[bool] = None, **query: Unpack[NodeQuery]) -> Rows:
        """As `service`, the instances that the mesh reaches: proxies, and services with a native integration.

        By tag with `filter`: Consul takes a tag here, and does not heed it.
        """
        return self._read_list(f"health/connect/{segment(service_id)}", _passing(passing), **query)

    def ingress(self, service_id: str, passing: Optional[bool] = None, **query: Unpack[NodeQuery]) -> Rows:
        """As `connect`, the ingress gateways of the service."""
        return self._read_list(f"health/ingress/{segment(service_id)}", _passing(passing), **query)

    def state(self, state: str, **query: Unpack[NodeQuery]) -> Rows:
        """The checks in a state.

        :param state: "passing", "warning", "critical", "unknown" (older than the first run) or "any"
        :raises ValueError: another state, for which Consul would answer with an empty list
        """
        if state not in STATES:
            raise ValueError(f"a state is one of {', '.join(STATES)}, not {state!r}")
        return self._read_list(f"health/state/{state}", **query)


def _passing(wanted: Optional[bool]) -> Params:
    return {"passing": "true" if wanted else None}
