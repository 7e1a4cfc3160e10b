"""What is registered: datacenters, nodes, services. Source: https://www.consul.io/api-docs/catalog"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional, Union

from consulfs.consulate.adapters import Request
from consulfs.consulate.api.base import Endpoint, Params, Row, Rows, segment, strip_none

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.models import AgentQuery, Filtered, NodeQuery, Query


class Catalog(Endpoint):
    """The servers' list of nodes, services and checks.

    To register a service of the machine at hand, use `agent.service`: its agent runs the checks, and keeps the
    catalog up to date.

    :param datacenter: asked instead of the agent's own; `dc` is another name for it, of the reference
    """

    def __init__(
        self,
        uri: str,
        adapter: Request,
        datacenter: Optional[str] = None,
        token: Optional[str] = None,
        *,
        dc: Optional[str] = None,
    ) -> None:
        if datacenter is not None and dc is not None:
            raise TypeError("datacenter and dc are two names for one argument")
        super().__init__(uri, adapter, dc if datacenter is None else datacenter, token)

    def datacenters(self, **query: Unpack[AgentQuery]) -> list[str]:
        """The names of all known datacenters, the nearest first. Answers without a leader, too."""
        return self._read_list("catalog/datacenters", of=str, **query)

    def register(
        self,
        node: str,
        address: str,
        datacenter: Optional[str] = None,
        service: Optional[Mapping[str, Any]] = None,
        check: Optional[Mapping[str, Any]] = None,
        *,
        checks: Optional[Sequence[Mapping[str, Any]]] = None,
        node_id: Optional[str] = None,
        tagged_addresses: Optional[Mapping[str, str]] = None,
        node_meta: Optional[Mapping[str, str]] = None,
        skip_node_update: Optional[bool] = None,
        **more: Any,
    ) -> bool:
        """Write a node, and where given a service and checks of it, into the catalog. No check is run by that.

        :param service: as Consul documents it: {"Service": name, "ID": ..., "Tags": [...], "Port": ...}
        :param check: {"Name": ..., "CheckID": ..., "Status": "passing", "ServiceID": ..., "Notes": ...}
        :param checks: several checks
        :param node_id: the node's UUID
        :param tagged_addresses: such as {"lan": "10.0.0.1", "wan": "192.0.2.1"}
        :param skip_node_update: leave what is said of a node that is there as it is
        :param more: further fields by Consul's names, such as Locality or Namespace
        """
        body = {
            "Node": node,
            "Address": address,
            "Datacenter": datacenter or self._datacenter,
            "Service": service,
            "Check": check,
            "Checks": None if checks is None else list(checks),
            "ID": node_id,
            "TaggedAddresses": tagged_addresses,
            "NodeMeta": node_meta,
            "SkipNodeUpdate": skip_node_update,
            **more,
        }
        return self._write("catalog/register", strip_none(body), _of(datacenter)).as_bool()

    def deregister(
        self,
        node: str,
        datacenter: Optional[str] = None,
        check_id: Optional[str] = None,
        service_id: Optional[str] = None,
    ) -> bool:
        """Remove a check, or a service with its checks, or else the node with all that it has, from the catalog."""
        body = {
            "Node": node,
            "Datacenter": datacenter or self._datacenter,
            "CheckID": check_id,
            "ServiceID": service_id,
        }
        return self._write("catalog/deregister", strip_none(body), _of(datacenter)).as_bool()

    def nodes(self, **query: Unpack[NodeQuery]) -> Rows:
        """The nodes of the datacenter."""
        return self._read_list("catalog/nodes", **query)

    def node(self, node_id: str, **query: Unpack[Filtered]) -> Optional[Row]:
        """A node and its services by ID, {"Node": {...}, "Services": {...}}; None where there is no such node.

        :param node_id: its name or its ID
        """
        return self._find_dict(f"catalog/node/{segment(node_id)}", **query)

    def node_services(
        self, node_id: str, *, merge_central_config: bool = False, **query: Unpack[Filtered]
    ) -> Optional[Row]:
        """As `node`, with the services as a list.

        :param merge_central_config: with what config entries say (Consul 1.12)
        """
        found = self._find_dict(f"catalog/node-services/{segment(node_id)}", _merge(merge_central_config), **query)
        return found if found and found.get("Node") else None

    def services(self, **query: Unpack[NodeQuery]) -> list[dict[str, list[str]]]:
        """A list of one dict, of each service's name and the tags that it has anywhere; [] where there is none."""
        found = self._read_dict("catalog/services", of=list, **query)
        return [found] if found else []

    def service(
        self,
        service_id: str,
        *,
        tag: Union[str, Sequence[str], None] = None,
        merge_central_config: bool = False,
        **query: Unpack[NodeQuery],
    ) -> Rows:
        """The instances of a service: each with its node's fields.

        :param service_id: the service's name
        :param tag: only instances with this tag, or with all of these
        :param merge_central_config: with what config entries say (Consul 1.12)
        """
        params: Params = {"tag": tag, **_merge(merge_central_config)}
        return self._read_list(f"catalog/service/{segment(service_id)}", params, **query)

    def connect(self, service_id: str, **query: Unpack[NodeQuery]) -> Rows:
        """As `service`, the instances that the mesh reaches: proxies, and services with a native integration.

        By tag with `filter`: Consul takes a tag here, and does not heed it.
        """
        return self._read_list(f"catalog/connect/{segment(service_id)}", **query)

    def gateway_services(self, gateway: str, **query: Unpack[Query]) -> Rows:
        """The services of an ingress or terminating gateway."""
        return self._read_list(f"catalog/gateway-services/{segment(gateway)}", **query)


def _merge(wanted: bool) -> Params:
    return {"merge-central-config": "" if wanted else None}


def _of(datacenter: Optional[str]) -> Params:
    return {"dc": datacenter} if datacenter else {}
