"""The cluster's own machinery: raft, autopilot, keyring. Source: https://www.consul.io/api-docs/operator"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Optional

from consulfs.consulate.adapters import Request
from consulfs.consulate.api.base import Discreet, Endpoint, Params, Row, Rows

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.models import Query


class Raft(Endpoint):
    """The servers that keep the state."""

    def configuration(self, **query: Unpack[Query]) -> Row:
        """The servers, which of them leads and which vote; with stale=True from any server, without a leader too."""
        return self._read_dict("operator/raft/configuration", **query)

    def remove_peer(self, address: Optional[str] = None, id: Optional[str] = None) -> bool:
        """Take a server out of the cluster, by its address ("host:port") or its Raft ID.

        :raises ValueError: not exactly one of the two is given
        :raises ServerError: there is no such server
        """
        if (address is None) == (id is None):
            raise ValueError("a peer is named by its address or by its ID, and by one of the two only")
        return self._done("operator/raft/peer", None, {"address": address, "id": id}, "DELETE")

    def transfer_leader(self, id: Optional[str] = None) -> bool:
        """Let another server lead. Since Consul 1.15.

        :param id: the Raft ID of that server; Consul's choice where none is given
        :raises NotFound: the server is too old
        """
        answer = self._write("operator/raft/transfer-leader", None, {"id": id}, "POST")
        return answer.field("Success", bool)


class Autopilot(Endpoint):
    """The care for servers that come and go."""

    def configuration(self, **query: Unpack[Query]) -> Row:
        return self._read_dict("operator/autopilot/configuration", **query)

    def update(self, configuration: Mapping[str, Any], cas: Optional[int] = None) -> bool:
        """Replace the configuration as a whole; False where `cas` did not fit.

        :param configuration: as `configuration()` gives it: what is left out becomes zero or false, not its default
        :param cas: only where this is the configuration's ModifyIndex
        """
        return self._write("operator/autopilot/configuration", dict(configuration), {"cas": cas}).as_bool()

    def health(self, **query: Unpack[Query]) -> Row:
        """The servers' health: "Healthy" says it for all of them, "FailureTolerance" how many more may fail.

        Consul answers 429 where not all are healthy, which is no error here.
        """
        path, timeout = "operator/autopilot/health", self._time_for(query)
        return self._call("GET", path, self._options(query), timeout=timeout, accepted=(429,)).as_dict()

    def state(self, **query: Unpack[Query]) -> Row:
        """What autopilot knows of each server. Since Consul 1.9.

        :raises NotFound: the server is too old
        """
        return self._read_dict("operator/autopilot/state", **query)


class Keyring(Discreet):
    """The keys that gossip is encrypted with: base64 of 16, 24 or 32 bytes. Each change reaches every member.

    `relay_factor`, 0 to 5, is by how many other nodes each answer is sent as well.
    """

    def list(
        self, relay_factor: Optional[int] = None, local_only: bool = False, timeout: Optional[float] = None
    ) -> Rows:
        """The rings, with each key and on how many nodes it is.

        :param local_only: only this datacenter's LAN ring, with no word to the WAN
        """
        params: Params = {"relay-factor": relay_factor, "local-only": "true" if local_only else None}
        if timeout is not None:
            return self._read_list("operator/keyring", params, timeout=timeout)
        return self._read_list("operator/keyring", params)

    def install(self, key: str, relay_factor: Optional[int] = None) -> bool:
        """Add a key, with which members can then decrypt."""
        return self._change("POST", key, relay_factor)

    def use(self, key: str, relay_factor: Optional[int] = None) -> bool:
        """Encrypt with this key, which must be installed already."""
        return self._change("PUT", key, relay_factor)

    def remove(self, key: str, relay_factor: Optional[int] = None) -> bool:
        """Remove a key; not the one in use.

        :raises ServerError: it is in use
        """
        return self._change("DELETE", key, relay_factor)

    def _change(self, method: str, key: str, relay_factor: Optional[int]) -> bool:
        params: Params = {"relay-factor": relay_factor}
        self._write("operator/keyring", {"Key": key}, params, method, secret=key)
        return True


class Operator(Endpoint):
    """The cluster's own machinery.

    :ivar raft: the servers
    :ivar autopilot: their health
    :ivar keyring: the keys of gossip
    """

    def __init__(
        self, uri: str, adapter: Request, datacenter: Optional[str] = None, token: Optional[str] = None
    ) -> None:
        super().__init__(uri, adapter, datacenter, token)
        self.raft = Raft(uri, adapter, datacenter, token)
        self.autopilot = Autopilot(uri, adapter, datacenter, token)
        self.keyring = Keyring(uri, adapter, datacenter, token)

    def usage(self, all_datacenters: bool = False, **query: Unpack[Query]) -> Row:
        """How many services and instances there are, by datacenter, in "Usage". Since Consul 1.15.

        :param all_datacenters: not of one datacenter only
        :raises NotFound: the server is too old
        """
        return self._read_dict("operator/usage", {"global": "" if all_datacenters else None}, **query)
