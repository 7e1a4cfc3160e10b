"""The agent that answers: its checks and services, its members, itself. Source: https://www.consul.io/api-docs/agent"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional, Union

from consulfs.consulate import definitions
from consulfs.consulate.adapters import Request, Response, Stream
from consulfs.consulate.api.base import Endpoint, Row, Rows, raise_for, segment, strip_none
from consulfs.consulate.exceptions import BadAnswer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.definitions import CheckOptions, Duration, ServiceOptions
    from consulfs.consulate.models import AgentQuery, HashQuery, Query

HEALTH_STATUSES = (404, 429, 503)
"""With these the agent tells a state, as a load balancer wants it: 429 is a warning, 503 critical or maintenance."""

_NO_SERVICE = ("unknown service ID", "Unknown service ID")  # before and since Consul 1.11

STATES = ("passing", "warning", "critical", "maintenance")
"""From the best to the worst."""


@dataclass(frozen=True)
class ServiceHealth:
    """How a service of the agent is.

    :ivar status: "passing", "warning", "critical" or "maintenance"; of several instances the worst
    :ivar instances: each with its own AggregatedStatus, the Service and its Checks (those of the node included)
    """

    status: str
    instances: Rows


class Log:
    """The lines of an agent's log, while they are written. An iterator and a context manager.

    Close it in the thread that reads it: a close waits for a read that waits. A `timeout` of the call, or the
    adapter's `on_wait`, ends a read that waits.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._lines = _lines(stream)

    def __iter__(self) -> Log:
        return self

    def __next__(self) -> str:
        return next(self._lines)

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Agent(Endpoint):
    """The local agent.

    :ivar check: its checks, an `Agent.Check`
    :ivar service: its services, an `Agent.Service`
    """

    def __init__(
        self, uri: str, adapter: Request, datacenter: Optional[str] = None, token: Optional[str] = None
    ) -> None:
        super().__init__(uri, adapter, datacenter, token)
        self.check = Agent.Check(uri, adapter, datacenter, token)
        self.service = Agent.Service(uri, adapter, datacenter, token)

    # -- what runs on it -------------------------------------------------------------------------------------

    def checks(self, **query: Unpack[AgentQuery]) -> list[dict[str, Row]]:
        """A list of one dict, of the agent's checks by ID; [] where there is none."""
        found = self._read_dict("agent/checks", of=dict, **query)
        return [found] if found else []

    def services(self, **query: Unpack[AgentQuery]) -> list[dict[str, Row]]:
        """A list of one dict, of the agent's services by ID; [] where there is none."""
        found = self._read_dict("agent/services", of=dict, **query)
        return [found] if found else []

    # -- the agent itself ------------------------------------------------------------------------------------

    def self(self, **query: Unpack[Query]) -> dict[str, Any]:
        """The agent's configuration and its member entry.

        :raises Forbidden: the token has no agent:read
        """
        return self._read_dict("agent/self", **query)

    def host(self, **query: Unpack[AgentQuery]) -> Row:
        """The machine: memory, CPUs, disk. What is in it may change between versions of Consul."""
        return self._read_dict("agent/host", **query)

    def version(self, **query: Unpack[AgentQuery]) -> Row:
        """The agent's version and build.

        :raises NotFound: the agent is too old to have this, as 1.8.7 is; ask self()["Config"]["Version"] there
        """
        return self._read_dict("agent/version", **query)

    def metrics(self, **query: Unpack[AgentQuery]) -> Row:
        """The metrics of the last ten seconds that are complete."""
        return self._read_dict("agent/metrics", **query)

    def prometheus(self, **query: Unpack[AgentQuery]) -> str:
        """The metrics as Prometheus reads them.

        :raises ClientError: the agent's telemetry.prometheus_retention_time is not set (415)
        """
        return self._read("agent/metrics", {"format": "prometheus"}, **query).text

    def monitor(self, loglevel: Optional[str] = None, logjson: bool = False, timeout: float = math.inf) -> Log:
        """The agent's log from now on, line by line.

        :param loglevel: "trace", "debug", "info" (Consul's default), "warn" or "err"
        :param logjson: each line is a JSON object
        :param timeout: seconds that the log may be silent; AnswerTimeout is raised then
        :raises ClientError: there is no such level
        """
        params = {"loglevel": loglevel, "logjson": "true" if logjson else None}
        return Log(self._stream("GET", "agent/monitor", {**params}, timeout=timeout))

    def maintenance(self, enable: bool = True, reason: Optional[str] = None) -> bool:
        """Put the node into maintenance mode, which is a critical check of it; or end that.

        :param reason: the check's notes
        """
        return self._done("agent/maintenance", params={"enable": _flag(enable), "reason": reason})

    def reload(self) -> bool:
        """Read the configuration again.

        An agent without a folder for data (-dev) forgets the services and checks that came by this API.
        """
        return self._done("agent/reload")

    def token(self, kind: str, secret: str) -> bool:
        """Give the agent a token to work with.

        :param kind: "default", "agent", "replication" or "agent_recovery" ("agent_master" before Consul 1.11)
        :param secret: the token's SecretID; "" takes it away
        """
        return self._done(f"agent/token/{segment(kind)}", {"Token": secret})

    # -- the cluster -----------------------------------------------------------------------------------------

    def members(self, wan: bool = False, segment: Optional[str] = None, **query: Unpack[AgentQuery]) -> Rows:
        """The agents that this one knows of by gossip; Status is 1 alive, 2 leaving, 3 left, 4 failed.

        `filter` is sent; 1.8.7 does not heed it here.

        :param wan: the servers of all datacenters
        :param segment: of this network segment, or "_all" (Consul Enterprise)
        """
        return self._read_list("agent/members", {"wan": "1" if wan else None, "segment": segment}, **query)

    def join(self, address: str, wan: bool = False) -> bool:
        """Have the agent join the cluster of another one.

        :param address: a host, or host:port of its gossip
        :param wan: join the servers of another datacenter
        :raises ServerError: nobody is there
        """
        return self._done(f"agent/join/{segment(address)}", params={"wan": "1" if wan else None})

    def force_leave(self, node: str, prune: bool = False, *, wan: bool = False) -> bool:
        """Declare a failed node to have left, so that what it had registered is removed.

        :param prune: remove it from the list of members, too
        :param wan: from the list of the servers of all datacenters only (Consul 1.11)
        :raises ServerError: there is no such node
        """
        params = {"prune": "1" if prune else None, "wan": "1" if wan else None}
        return self._done(f"agent/force-leave/{segment(node)}", params={**params})

    def leave(self) -> bool:
        """Have the agent leave its cluster and end."""
        return self._done("agent/leave")

    class Check(Endpoint):
        """The agent's checks."""

        definition = staticmethod(definitions.check)

        def register(
            self,
            name: str,
            script: Optional[str] = None,
            check_id: Optional[str] = None,
            interval: Optional[Duration] = None,
            ttl: Optional[Duration] = None,
            notes: Optional[str] = None,
            http: Optional[str] = None,
            **options: Unpack[CheckOptions],
        ) -> bool:
            """Add a check, or change the one of that ID.

            :param script: a line for /bin/sh; needs the agent's enable_script_checks
            :param check_id: unique on the agent; the name where none is given
            :param interval: between two runs; a duration or seconds
            :param ttl: critical when not told otherwise for so long; a duration or seconds
            :param http: passing while GET of this URL is answered with 2xx, warning with 429
            :param options: see `consulate.definitions.CheckOptions`
            :raises ValueError: not exactly one thing to check, an interval that is missing or too much
            :raises ClientError: the agent's version does not know an option
            """
            body = definitions.check(name, script, check_id, interval, ttl, notes, http, **options)
            if "CheckID" in body:
                body["ID"] = body.pop("CheckID")  # its name here, and here alone: 1.8.7 refuses the other
            return self._done("agent/check/register", body)

        def deregister(self, check_id: str) -> bool:
            """Remove a check. It may be gone already."""
            return self._done(f"agent/check/deregister/{segment(check_id)}")

        def ttl_pass(self, check_id: str, note: Optional[str] = None) -> bool:
            """Tell a TTL check that all is well.

            :param note: the check's output
            :raises ServerError: there is no such TTL check
            """
            return self._done(f"agent/check/pass/{segment(check_id)}", params={"note": note})

        def ttl_warn(self, check_id: str, note: Optional[str] = None) -> bool:
            """As `ttl_pass`: the state is a warning."""
            return self._done(f"agent/check/warn/{segment(check_id)}", params={"note": note})

        def ttl_fail(self, check_id: str, note: Optional[str] = None) -> bool:
            """As `ttl_pass`: the state is critical."""
            return self._done(f"agent/check/fail/{segment(check_id)}", params={"note": note})

        def update(self, check_id: str, status: str, output: Optional[str] = None) -> bool:
            """Tell a TTL check its state, with an output that may be long.

            :param status: "passing", "warning" or "critical"
            :raises ServerError: there is no such TTL check
            """
            body = strip_none({"Status": status, "Output": output})
            return self._done(f"agent/check/update/{segment(check_id)}", body)

    class Service(Endpoint):
        """The agent's services."""

        definition = staticmethod(definitions.service)

        def register(
            self,
            name: str,
            service_id: Optional[str] = None,
            address: Optional[str] = None,
            port: Optional[int] = None,
            tags: Optional[Sequence[str]] = None,
            check: Union[str, Mapping[str, Any], None] = None,
            interval: Optional[Duration] = None,
            ttl: Optional[Duration] = None,
            httpcheck: Optional[str] = None,
            *,
            replace_existing_checks: bool = False,
            **options: Unpack[ServiceOptions],
        ) -> bool:
            """Add a service, or change the one of that ID.

            :param service_id: unique on the agent; the name where none is given
            :param address: the node's where none is given
            :param check: a line for /bin/sh, run every `interval`; or a definition, see `Agent.Check.definition`
            :param ttl: the check is one that is told its state, at least every so often
            :param httpcheck: the check is a URL, asked every `interval`
            :param replace_existing_checks: remove the service's checks that are not given now
            :param options: see `consulate.definitions.ServiceOptions`
            :raises ValueError: a check that looks at two things, or has an interval that is missing or too much
            :raises ClientError: the agent's version does not know an option
            """
            body = definitions.service(
                name, service_id, address, port, tags, check, interval, ttl, httpcheck, **options
            )
            params = {"replace-existing-checks": "true" if replace_existing_checks else None}
            return self._done("agent/service/register", body, {**params})

        def deregister(self, service_id: str) -> bool:
            """Remove a service with its checks. It may be gone already."""
            return self._done(f"agent/service/deregister/{segment(service_id)}")

        def info(self, service_id: str, **query: Unpack[HashQuery]) -> Optional[Row]:
            """A service's whole definition, or None where there is no such service.

            With `hash` it waits until the definition is another, or the service is gone.
            """
            options: Any = query  # Query has no `hash`, which is this endpoint's alone
            return self._find_dict(f"agent/service/{segment(service_id)}", absent=_NO_SERVICE, **options)

        def maintenance(self, service_id: str, enable: bool = True, reason: Optional[str] = None) -> bool:
            """Put a service into maintenance mode, which is a critical check of it; or end that.

            :param reason: the check's notes
            :raises NotFound: there is no such service
            """
            params = {"enable": _flag(enable), "reason": reason}
            return self._done(f"agent/service/maintenance/{segment(service_id)}", params={**params})

        def health_by_name(self, name: str, timeout: Optional[float] = None) -> Optional[ServiceHealth]:
            """How all the agent's services of a name are, or None where there is none."""
            return self._health(f"name/{segment(name)}", timeout)

        def health_by_id(self, service_id: str, timeout: Optional[float] = None) -> Optional[ServiceHealth]:
            """How the agent's service of an ID is, or None where there is none."""
            return self._health(f"id/{segment(service_id)}", timeout)

        def _health(self, which: str, timeout: Optional[float]) -> Optional[ServiceHealth]:
            path = f"agent/health/service/{which}"
            answer = self._call("GET", path, {}, timeout=timeout, accepted=HEALTH_STATUSES)
            if answer.status_code == 404:
                if "X-Consul-Reason" not in answer.headers and not answer.text.startswith("Service"):  # as since 1.13
                    raise_for(answer)
                return None
            rows = _instances(answer)
            return ServiceHealth(max((row["AggregatedStatus"] for row in rows), key=STATES.index), rows)


def _instances(answer: Response) -> Rows:
    """The instances in an answer about health, which is a list of them or a single one."""
    try:
        rows = answer.as_list(dict) if answer.content.lstrip()[:1] == b"[" else [answer.as_dict()]
        if not rows or any(row.get("AggregatedStatus") not in STATES for row in rows):
            raise answer.bad("the health of services")
        return rows
    except BadAnswer:
        if answer.ok:
            raise
        raise_for(answer)  # an overloaded agent, or a proxy without one, has the same statuses


def _lines(stream: Stream) -> Iterator[str]:
    rest = b""
    for piece in stream:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")


def _flag(value: bool) -> str:
    return "true" if value else "false"
