"""Prepared queries. Source: https://www.consul.io/api-docs/query"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional, Union

from consulfs.consulate.adapters import Response
from consulfs.consulate.api.base import Discreet, Params, Row, Rows, segment
from consulfs.consulate.models import duration

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    from consulfs.consulate.models import Query as Options

    class Fields(TypedDict, total=False):
        """What defines a prepared query, by keyword.

        name: to execute it by, instead of by its ID
        session: the query goes when this session does
        token: the query is executed with this token, whoever asks: a secret that only operators can read again
        service: the service's name; required
        tags: all of these; none of those that begin with "!"
        near: the nearest to this node first; "_agent" and "_ip" are whoever asks
        failover: other datacenters, where this one has no healthy instance: {"NearestN": 3, "Datacenters": ["dc2"]}
        only_passing: leave out instances with warnings too
        ignore_check_ids: checks whose state does not count
        node_meta: only nodes with all of these metadata
        service_meta: only instances with all of these metadata
        connect: only instances that Connect can reach
        dns_ttl: for answers by DNS, a duration or seconds
        template: {"Type": "name_prefix_match", "Regexp": ...}: it answers to every name that begins with `name`
        """

        name: str
        session: str
        token: str
        service: str
        tags: Sequence[str]
        near: str
        failover: Mapping[str, Any]
        only_passing: bool
        ignore_check_ids: Sequence[str]
        node_meta: Mapping[str, str]
        service_meta: Mapping[str, str]
        connect: bool
        dns_ttl: Union[str, float]
        template: Mapping[str, Any]


_TOP = {"name": "Name", "session": "Session", "token": "Token", "template": "Template"}
_OF_SERVICE = {
    "service": "Service",
    "tags": "Tags",
    "near": "Near",
    "failover": "Failover",
    "only_passing": "OnlyPassing",
    "ignore_check_ids": "IgnoreCheckIDs",
    "node_meta": "NodeMeta",
    "service_meta": "ServiceMeta",
    "connect": "Connect",
}


class Query(Discreet):
    """Prepared queries: which instances of a service are to be used, kept by Consul under a name or an ID."""

    def create(self, definition: Optional[Mapping[str, Any]] = None, **fields: Unpack[Fields]) -> str:
        """Store a query; its ID.

        :param definition: the body as Consul documents it; what is given by keyword takes its place
        :raises ValueError: no service is named
        :raises ServerError: the name is another query's; or it has neither a name nor a session, and is no template
        """
        return self._store("POST", "query", _body(definition, fields)).field("ID")

    def update(self, query_id: str, definition: Optional[Mapping[str, Any]] = None, **fields: Unpack[Fields]) -> bool:
        """Replace a query as a whole: what is not given is gone.

        :raises ServerError: there is no such query; NotFound where the ID is no UUID
        """
        self._store("PUT", f"query/{segment(query_id)}", _body(definition, fields))
        return True

    def list(self, **query: Unpack[Options]) -> Rows:
        """The queries that the token may read; tokens are hidden from all but operators."""
        return self._read_list("query", **query)

    def read(self, query_id: str, **query: Unpack[Options]) -> Optional[Row]:
        """The query of an ID, not of a name (see `explain`); None where there is none that the token may read."""
        answer = self._search(f"query/{segment(query_id)}", absent=("Query not found",), **query)
        found = answer.as_list(dict) if answer else []
        return found[0] if found else None

    def delete(self, query_id: str) -> bool:
        """:raises ServerError: there is no such query; NotFound where the ID is no UUID"""
        return self._done(f"query/{segment(query_id)}", method="DELETE")

    def execute(
        self,
        name_or_id: str,
        near: Optional[str] = None,
        limit: Optional[int] = None,
        connect: bool = False,
        **query: Unpack[Options],
    ) -> Row:
        """Run a query: the instances are in "Nodes", where they were found in "Datacenter" and "Failovers".

        :param near: the nearest to this node first, else in random order; "_agent" is the one that answers
        :param limit: at most so many, after sorting
        :param connect: only instances that Connect can reach
        :raises NotFound: there is no such query, and no template for the name
        """
        params: Params = {"limit": limit, "connect": "true" if connect else None}
        path = f"query/{segment(name_or_id)}/execute"
        if near is None:
            return self._read_dict(path, params, **query)
        return self._read_dict(path, params, near=near, **query)

    def explain(self, name_or_id: str, **query: Unpack[Options]) -> Row:
        """The query that would be run under a name or an ID, with a template's variables filled in.

        :raises NotFound: there is no such query, and no template for the name
        """
        return self._read(f"query/{segment(name_or_id)}/explain", **query).field("Query", dict)

    def _store(self, method: str, path: str, body: Row) -> Response:
        return self._write(path, body, method=method, secret=body.get("Token"))


def _body(definition: Optional[Mapping[str, Any]], fields: Mapping[str, Any]) -> Row:
    """A query's definition as Consul has it."""
    unknown = set(fields) - {*_TOP, *_OF_SERVICE, "dns_ttl"}
    if unknown:
        raise TypeError(f"a prepared query has no {', '.join(sorted(unknown))}")
    body = dict(definition or {})
    service = dict(body.get("Service") or {})
    for name, value in fields.items():
        if value is None:
            continue
        if name == "dns_ttl":
            body["DNS"] = {"TTL": duration(value)}
        elif name in _TOP:
            body[_TOP[name]] = value
        else:
            service[_OF_SERVICE[name]] = value
    if not service.get("Service"):
        raise ValueError("a prepared query needs the name of a service")
    return {**body, "Service": service}
