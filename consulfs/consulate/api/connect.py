"""The service mesh: intentions and the certificate authority. Source: https://www.consul.io/api-docs/connect"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional

from consulfs.consulate.adapters import Request
from consulfs.consulate.api.base import Discreet, Endpoint, Params, Row, Rows, is_absent, segment, strip_none

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.models import Filtered, Query


_NO_INTENTION = ("Intention not found",)


class CA(Discreet):
    """The certificate authority. Answers may hold private keys: they are given as they are, and kept nowhere."""

    def roots(self, **query: Unpack[Query]) -> Row:
        """The trusted root certificates, and which of them is in use."""
        return self._read_dict("connect/ca/roots", **query)

    def roots_pem(self, **query: Unpack[Query]) -> str:
        """The trusted root certificates, one after the other in PEM."""
        return self._read("connect/ca/roots", {"pem": "true"}, **query).text

    def configuration(self, **query: Unpack[Query]) -> Row:
        """The provider and its configuration."""
        return self._read_dict("connect/ca/configuration", **query)

    def update(
        self, provider: str, config: Mapping[str, Any], force_without_cross_signing: Optional[bool] = None
    ) -> bool:
        """Configure the authority; a new root certificate is rotated in where it comes to that.

        :param provider: such as "consul" or "vault"
        :param config: as Consul documents it for the provider; it replaces the whole
        :param force_without_cross_signing: even where the old root cannot sign the new one: connections may fail
        """
        body = {
            "Provider": provider,
            "Config": dict(config),
            "ForceWithoutCrossSigning": force_without_cross_signing,
        }
        return self._done("connect/ca/configuration", strip_none(body))

    def agent_roots(self, **query: Unpack[Query]) -> Row:
        """As `roots`, from the agent's cache, which answers without the servers too."""
        return self._read_dict("agent/connect/ca/roots", **query)

    def agent_leaf(self, service: str, **query: Unpack[Query]) -> Row:
        """A service's certificate with its private key, made by the agent and kept until it nears its end.

        :param service: need not be registered
        """
        return self._read_dict(f"agent/connect/ca/leaf/{segment(service)}", **query)


class Intentions(Endpoint):
    """Which service may connect to which. Those with an ID are Consul's before 1.9, and deprecated since."""

    def list(self, **query: Unpack[Filtered]) -> Rows:
        return self._read_list("connect/intentions", **query)

    def create(
        self,
        source: str,
        destination: str,
        action: str = "allow",
        description: Optional[str] = None,
        meta: Optional[Mapping[str, str]] = None,
    ) -> str:
        """A new intention's ID.

        :param source: a service's name, or "*"; neither need be registered
        :param action: "allow" or "deny"
        :raises ServerError: there is one for the two already
        """
        body = _body(source, destination, action, description, meta)
        return self._write("connect/intentions", body, method="POST").field("ID")

    def read(self, intention_id: str, **query: Unpack[Query]) -> Optional[Row]:
        """The intention, or None where there is none."""
        return self._find_dict(f"connect/intentions/{segment(intention_id)}", absent=_NO_INTENTION, **query)

    def update(
        self,
        intention_id: str,
        source: str,
        destination: str,
        action: str = "allow",
        description: Optional[str] = None,
        meta: Optional[Mapping[str, str]] = None,
    ) -> bool:
        """Replace an intention as a whole.

        :raises ServerError: there is no such intention; NotFound where the ID is no UUID
        """
        body = _body(source, destination, action, description, meta)
        return self._done(f"connect/intentions/{segment(intention_id)}", body)

    def delete(self, intention_id: str) -> bool:
        """:raises ServerError: there is no such intention; NotFound where the ID is no UUID"""
        return self._done(f"connect/intentions/{segment(intention_id)}", method="DELETE")

    def match(self, by: str, names: Sequence[str], **query: Unpack[Query]) -> dict[str, Rows]:
        """The intentions that fit each name, in the order in which they are evaluated.

        :param by: whether the names are of a "source" or of a "destination"
        """
        if by not in ("source", "destination"):
            raise ValueError(f'intentions are matched by "source" or "destination", not {by!r}')
        params: Params = {"by": by, "name": [names] if isinstance(names, str) else list(names)}
        return self._read_dict("connect/intentions/match", params, **query)

    def check(self, source: str, destination: str, **query: Unpack[Query]) -> bool:
        """Whether a connection would be allowed."""
        params: Params = {"source": source, "destination": destination}
        return self._read("connect/intentions/check", params, **query).field("Allowed", bool)

    def read_exact(self, source: str, destination: str, **query: Unpack[Query]) -> Optional[Row]:
        """The intention for just these two, or None where there is none. Since Consul 1.9.

        :raises NotFound: the server is too old (1.8.7 takes "exact" for an ID)
        """
        params: Params = {"source": source, "destination": destination}
        answer = self._read("connect/intentions/exact", params, (404,), **query)
        return None if is_absent(answer, _NO_INTENTION) else answer.as_dict() or None

    def upsert_exact(
        self,
        source: str,
        destination: str,
        action: Optional[str] = None,
        permissions: Optional[Sequence[Mapping[str, Any]]] = None,
        description: Optional[str] = None,
    ) -> bool:
        """Create or replace the intention for just these two. Since Consul 1.9.

        :param action: "allow" or "deny"; or else
        :param permissions: what is allowed and denied by HTTP path, header or method, as Consul documents it
        :raises ValueError: not exactly one of the two is given
        :raises NotFound: the server is too old (1.8.7 takes "exact" for an ID)
        """
        if (action is None) == (permissions is None):
            raise ValueError("an intention has an action or permissions, and one of the two only")
        granted = None if permissions is None else list(permissions)
        body = strip_none({"Action": action, "Permissions": granted, "Description": description})
        return self._done("connect/intentions/exact", body, {"source": source, "destination": destination})

    def delete_exact(self, source: str, destination: str) -> bool:
        """Delete the intention for just these two; there need not be one. Since Consul 1.9.

        :raises NotFound: the server is too old (1.8.7 takes "exact" for an ID)
        """
        params: Params = {"source": source, "destination": destination}
        return self._done("connect/intentions/exact", None, params, "DELETE")


class Connect(Endpoint):
    """The service mesh.

    :ivar ca: the certificate authority
    :ivar intentions: which service may connect to which
    """

    def __init__(
        self, uri: str, adapter: Request, datacenter: Optional[str] = None, token: Optional[str] = None
    ) -> None:
        super().__init__(uri, adapter, datacenter, token)
        self.ca = CA(uri, adapter, datacenter, token)
        self.intentions = Intentions(uri, adapter, datacenter, token)

    def agent_authorize(self, target: str, client_cert_uri: str, client_cert_serial: str) -> Row:
        """Whether the agent lets a client connect: "Authorized", with the "Reason".

        :param target: the service that is asked for
        :param client_cert_uri: the URI in the client's certificate, spiffe://...
        :param client_cert_serial: the certificate's serial number in hexadecimal, with colons
        """
        body = {"Target": target, "ClientCertURI": client_cert_uri, "ClientCertSerial": client_cert_serial}
        return self._write("agent/connect/authorize", body, method="POST").as_dict()

    def discovery_chain(
        self,
        service: str,
        compile_dc: Optional[str] = None,
        overrides: Optional[Mapping[str, Any]] = None,
        **query: Unpack[Query],
    ) -> Row:
        """What a proxy is to do with connections to a service, compiled from the configuration entries.

        :param compile_dc: compiled for this datacenter
        :param overrides: OverrideProtocol, OverrideConnectTimeout and OverrideMeshGateway, as Consul documents them
        """
        path, params = f"discovery-chain/{segment(service)}", Params({"compile-dc": compile_dc})
        if overrides is None:
            return self._read(path, params, **query).field("Chain", dict)
        options: Params = {**params, **self._options(query)}
        return self._write(path, dict(overrides), options, "POST", self._time_for(query)).field("Chain", dict)


def _body(
    source: str, destination: str, action: str, description: Optional[str], meta: Optional[Mapping[str, str]]
) -> Row:
    return strip_none(
        {
            "SourceName": source,
            "DestinationName": destination,
            "SourceType": "consul",
            "Action": action,
            "Description": description,
            "Meta": None if meta is None else dict(meta),
        }
    )
