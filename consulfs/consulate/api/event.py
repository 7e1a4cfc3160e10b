"""User events, sent by gossip. Source: https://www.consul.io/api-docs/event"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional, Union

from consulfs.consulate.api.base import Endpoint, Params, Rows, segment

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.models import Query


class Event(Endpoint):
    """User events, sent by gossip: no order, and no promise that they arrive."""

    def fire(
        self,
        name: str,
        payload: Union[str, bytes, None] = None,
        datacenter: Optional[str] = None,
        node: Optional[str] = None,
        service: Optional[str] = None,
        tag: Optional[str] = None,
    ) -> str:
        """Fire an event; its ID.

        :param payload: goes to the receivers as it is; a str as UTF-8. The whole event, its name and filters
            included, has 512 bytes at most (measured on 1.8.7)
        :param datacenter: fired there instead of the client's own datacenter
        :param node: a regular expression: only nodes with such a name take it
        :param service: a regular expression: only nodes with such a service take it
        :param tag: a regular expression for that service's tags; it needs `service`
        :raises ValueError: a tag without a service
        """
        if tag and not service:
            raise ValueError("an event is filtered by tag only together with a service")
        params: Params = {
            "dc": datacenter or self._datacenter,
            "node": node,
            "service": service,
            "tag": tag,
        }
        body = payload.encode() if isinstance(payload, str) else payload
        return self._write(f"event/fire/{segment(name)}", body, params).field("ID")

    def list(
        self,
        name: Optional[str] = None,
        *,
        node: Optional[str] = None,
        service: Optional[str] = None,
        tag: Optional[str] = None,
        **query: Unpack[Query],
    ) -> Rows:
        """The events that this agent has seen and that were meant for it, 256 at most, the newest last.

        Payload is base64 as Consul gives it, None where there was none. An index is the agent's own: it says which
        event was the last, and is of no use with another agent.

        :param name: only events of exactly this name
        :param node: documented by Consul as a filter by node, as are `service` and `tag`; 1.8.7 ignores all three
        """
        params: Params = {"name": name, "node": node, "service": service, "tag": tag}
        return self._read_list("event/list", params, **query)
