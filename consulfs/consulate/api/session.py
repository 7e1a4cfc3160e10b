"""Sessions: what a lock belongs to. Source: https://www.consul.io/api-docs/session"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional, Union

from consulfs.consulate.api.base import Endpoint, Row, Rows, segment, strip_none
from consulfs.consulate.exceptions import NotFound, UnknownSession
from consulfs.consulate.models import duration

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.models import Query


class Session(Endpoint):
    """Create, renew, destroy and look at sessions."""

    def create(
        self,
        name: Optional[str] = None,
        behavior: str = "release",
        node: Optional[str] = None,
        delay: Union[str, int, None] = None,
        ttl: Union[str, int, None] = None,
        checks: Optional[Sequence[str]] = None,
        *,
        node_checks: Optional[Sequence[str]] = None,
        service_checks: Optional[Sequence[Union[str, Mapping[str, Any]]]] = None,
        timeout: Optional[float] = None,
    ) -> str:
        """A new session's ID.

        :param behavior: what becomes of its locked keys when it is invalidated: "release" or "delete"
        :param delay: how long such a key cannot be locked again; "15s" or seconds (Consul's default: 15 s)
        :param ttl: invalid when not renewed for so long; 10 s to 86,400 s, in truth up to twice that
        :param checks: the IDs of health checks that it depends on, of the node and of services; Consul's older way,
            where serfHealth is added to a list that is not empty
        :param node_checks: the IDs of the node's checks that it depends on; Consul's default is ["serfHealth"]
        :param service_checks: the IDs of services' checks that it depends on, or {"ID": ...} as Consul documents it
        :param timeout: seconds for this call instead of the client's; so in `destroy` and `renew`
        :raises ValueError: `checks` together with one of the two that took its place in Consul 1.7
        :raises ServerError: there is no such check or no such node, or a check is critical
        """
        if checks is not None and (node_checks is not None or service_checks is not None):
            raise ValueError("a session's checks are given by `checks` or by `node_checks` and `service_checks`")
        of_services = [{"ID": each} if isinstance(each, str) else dict(each) for each in service_checks or ()]
        body = {
            "Name": name,
            "Behavior": behavior,
            "Node": node,
            "LockDelay": None if delay is None else duration(delay),
            "TTL": None if ttl is None else duration(ttl),
            "Checks": None if checks is None else list(checks),
            "NodeChecks": None if node_checks is None else list(node_checks),
            "ServiceChecks": of_services or None,
        }
        return self._write("session/create", strip_none(body), timeout=timeout).field("ID")

    def destroy(self, session_id: str, *, timeout: Optional[float] = None) -> bool:
        """Invalidate a session; there need not be one. Its locks are released, and their lock-delay begins."""
        return self._write(f"session/destroy/{segment(session_id)}", timeout=timeout).as_bool()

    def info(self, session_id: str, **query: Unpack[Query]) -> Optional[Row]:
        """The session, or None where there is none."""
        try:
            found = self._read_list(f"session/info/{segment(session_id)}", of=dict, **query)
        except UnknownSession:  # an ID that is no UUID: 500 from Consul
            return None
        return found[0] if found else None

    def list(self, **query: Unpack[Query]) -> Rows:
        """The active sessions of the datacenter."""
        return self._read_list("session/list", of=dict, **query)

    def node(self, node: str, **query: Unpack[Query]) -> Rows:
        """The active sessions of a node."""
        return self._read_list(f"session/node/{segment(node)}", of=dict, **query)

    def renew(self, session_id: str, *, timeout: Optional[float] = None) -> Row:
        """Begin the session's TTL anew.

        :raises UnknownSession: there is no such session
        """
        try:
            answer = self._write(f"session/renew/{segment(session_id)}", timeout=timeout)
        except NotFound as error:
            raise UnknownSession(str(error), error.status) from None
        found: Rows = answer.as_list(dict)
        if not found:
            raise answer.bad("the session")
        return found[0]
