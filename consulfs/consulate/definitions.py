"""Definitions of checks and services as the agent's API takes them, from keyword arguments; nothing is sent.

Sources: https://www.consul.io/api-docs/agent/check and .../agent/service. Only what is given is in a definition, for
an agent refuses one with a field that its version does not know (1.8.7 answers 400).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional, TypedDict, Union

from consulfs.consulate.models import duration

if TYPE_CHECKING:
    from typing_extensions import Unpack

Definition = dict[str, Any]
Duration = Union[str, int, float]


class CheckOptions(TypedDict, total=False):
    """What a check may have besides the arguments of the reference.

    What is checked, exactly one of these, or `script`, `http` or `ttl`:

    args: the words of a command to run; needs the agent's enable_script_checks. Its exit code is the state: 0
        passing, 1 warning, any other critical
    tcp, udp: host:port to connect to, to send to (udp: Consul 1.12)
    grpc: host:port, or host:port/service, of a server with gRPC's own health protocol
    h2ping: host:port of an HTTP/2 server to ping (1.10)
    os_service: a unit of systemd, or a Windows service (1.17)
    docker_container_id: run `args` or `script` in this container, by `shell`
    alias_node, alias_service: have the state of another node, or of a service by its ID

    How:

    timeout: for one try; a duration or seconds
    method, body, header: of the HTTP request; a header's value is a string or a list of them
    disable_redirects: an HTTP redirect is not followed (1.10)
    tcp_use_tls (1.19), grpc_use_tls, h2ping_use_tls (on by default): TLS for that kind
    tls_server_name, tls_skip_verify: of the server's certificate
    output_max_size: bytes of output that are kept (4,096 by default)

    What follows:

    service_id: belongs to this service of the agent, else to the node
    status: the first state: "passing", "warning" or "critical" (the default)
    success_before_passing, failures_before_warning (1.11), failures_before_critical: results in a row that it takes
    deregister_critical_service_after: so long critical, and the service is removed; one minute at least
    namespace, partition: of Consul Enterprise
    """

    args: Sequence[str]
    tcp: str
    udp: str
    grpc: str
    h2ping: str
    os_service: str
    docker_container_id: str
    alias_node: str
    alias_service: str
    timeout: Duration
    method: str
    body: str
    header: Mapping[str, Union[str, Sequence[str]]]
    disable_redirects: bool
    tcp_use_tls: bool
    grpc_use_tls: bool
    h2ping_use_tls: bool
    shell: str
    tls_server_name: str
    tls_skip_verify: bool
    output_max_size: int
    service_id: str
    status: str
    success_before_passing: int
    failures_before_warning: int
    failures_before_critical: int
    deregister_critical_service_after: Duration
    namespace: str
    partition: str


class ServiceOptions(TypedDict, total=False):
    """What a service may have besides the arguments of the reference.

    checks: several checks, each as `check` of this module returns it or as Consul documents it
    meta: names and values, both strings
    tagged_addresses: such as {"wan": {"Address": "192.0.2.1", "Port": 80}}
    weights: of the answers of DNS, {"Passing": 10, "Warning": 1}
    enable_tag_override: tags may be changed in the catalog, by others than this agent
    kind: "connect-proxy", "mesh-gateway", "terminating-gateway", "ingress-gateway" or "api-gateway"
    proxy, connect: of the service mesh, as Consul documents them
    socket_path: of a service on a Unix domain socket, instead of address and port (1.10)
    locality: {"Region": ..., "Zone": ...} (1.17)
    namespace, partition: of Consul Enterprise
    """

    checks: Sequence[Mapping[str, Any]]
    meta: Mapping[str, str]
    tagged_addresses: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, int]
    enable_tag_override: bool
    kind: str
    proxy: Mapping[str, Any]
    connect: Mapping[str, Any]
    socket_path: str
    locality: Mapping[str, str]
    namespace: str
    partition: str


CHECK_FIELDS: Mapping[str, str] = {
    "args": "Args",
    "tcp": "TCP",
    "udp": "UDP",
    "grpc": "GRPC",
    "h2ping": "H2PING",
    "os_service": "OSService",
    "docker_container_id": "DockerContainerID",
    "alias_node": "AliasNode",
    "alias_service": "AliasService",
    "timeout": "Timeout",
    "method": "Method",
    "body": "Body",
    "header": "Header",
    "disable_redirects": "DisableRedirects",
    "tcp_use_tls": "TCPUseTLS",
    "grpc_use_tls": "GRPCUseTLS",
    "h2ping_use_tls": "H2PingUseTLS",
    "shell": "Shell",
    "tls_server_name": "TLSServerName",
    "tls_skip_verify": "TLSSkipVerify",
    "output_max_size": "OutputMaxSize",
    "service_id": "ServiceID",
    "status": "Status",
    "success_before_passing": "SuccessBeforePassing",
    "failures_before_warning": "FailuresBeforeWarning",
    "failures_before_critical": "FailuresBeforeCritical",
    "deregister_critical_service_after": "DeregisterCriticalServiceAfter",
    "namespace": "Namespace",
    "partition": "Partition",
}

SERVICE_FIELDS: Mapping[str, str] = {
    "checks": "Checks",
    "meta": "Meta",
    "tagged_addresses": "TaggedAddresses",
    "weights": "Weights",
    "enable_tag_override": "EnableTagOverride",
    "kind": "Kind",
    "proxy": "Proxy",
    "connect": "Connect",
    "socket_path": "SocketPath",
    "locality": "Locality",
    "namespace": "Namespace",
    "partition": "Partition",
}

KINDS: Mapping[str, tuple[str, ...]] = {
    "a command": ("Args",),
    "http": ("HTTP",),
    "tcp": ("TCP",),
    "udp": ("UDP",),
    "grpc": ("GRPC",),
    "h2ping": ("H2PING",),
    "os_service": ("OSService",),
    "ttl": ("TTL",),
    "an alias": ("AliasNode", "AliasService"),
}
"""What a check can look at, and the fields of a definition that say so."""

UNTIMED = ("ttl", "an alias")
"""The kinds that Consul does not run every so often."""

BELONGS_TO: Mapping[str, tuple[str, ...]] = {
    "Method": ("http",),
    "Body": ("http",),
    "Header": ("http",),
    "DisableRedirects": ("http",),
    "TCPUseTLS": ("tcp",),
    "GRPCUseTLS": ("grpc",),
    "H2PingUseTLS": ("h2ping",),
    "DockerContainerID": ("a command",),
    "Shell": ("a command",),
    "TLSServerName": ("http", "tcp", "grpc", "h2ping"),
    "TLSSkipVerify": ("http", "tcp", "grpc", "h2ping"),
}
"""Fields that mean something for some kinds only; Consul takes them for any, and ignores them."""


def check(
    name: Optional[str] = None,
    script: Optional[str] = None,
    check_id: Optional[str] = None,
    interval: Optional[Duration] = None,
    ttl: Optional[Duration] = None,
    notes: Optional[str] = None,
    http: Optional[str] = None,
    **options: Unpack[CheckOptions],
) -> Definition:
    """A check of a service, as it stands in the service's definition.

    :param name: Consul makes one up where none is given
    :param script: a line for /bin/sh; needs the agent's enable_script_checks
    :param check_id: unique on the agent; Consul makes one up where none is given
    :param interval: between two runs; a duration or seconds
    :param ttl: critical when not told otherwise for so long; a duration or seconds
    :param http: passing while GET of this URL is answered with 2xx, warning with 429
    :raises ValueError: nothing to check, two things at once, an interval that is missing or too much, or an option
        of another kind of check
    :raises TypeError: an option that there is not
    """
    given = _fields(CHECK_FIELDS, options)
    if script and given.get("Args"):
        raise ValueError("a check has a script or args, not both")
    if script:
        given["Args"] = ["/bin/sh", "-c", script]
    elif given.get("Args"):
        given["Args"] = _strings(given["Args"])
    if "Header" in given:
        given["Header"] = {field: _strings(value) for field, value in given["Header"].items()}
    named = {"Name": name, "CheckID": check_id, "Notes": notes, "HTTP": http}
    timed = {"Interval": interval, "TTL": ttl, **{field: given.get(field) for field in _DURATIONS}}
    given.update({field: value for field, value in named.items() if value is not None})
    given.update({field: duration(value) for field, value in timed.items() if value is not None})
    _insist(given)
    return given


def service(
    name: str,
    service_id: Optional[str] = None,
    address: Optional[str] = None,
    port: Optional[int] = None,
    tags: Optional[Sequence[str]] = None,
    check: Union[str, Mapping[str, Any], None] = None,
    interval: Optional[Duration] = None,
    ttl: Optional[Duration] = None,
    httpcheck: Optional[str] = None,
    **options: Unpack[ServiceOptions],
) -> Definition:
    """A service of an agent.

    :param service_id: unique on the agent; the name where none is given
    :param address: the node's where none is given
    :param check: a line for /bin/sh, run every `interval`; or a definition, as `check` of this module returns it
    :param ttl: the check is one that is told its state, at least every so often
    :param httpcheck: the check is a URL, asked every `interval`
    :raises ValueError: as `check` of this module (a service may go without any); a port or tags of another type
    :raises TypeError: an option that there is not
    """
    given = _fields(SERVICE_FIELDS, options)
    if isinstance(tags, str):
        raise ValueError("tags are a list, even of one")
    if port is not None and (isinstance(port, bool) or not isinstance(port, int)):
        raise ValueError(f"a port is a whole number, not {port!r}")
    if "Checks" in given:
        given["Checks"] = [dict(each) for each in given["Checks"]]
    named = {
        "Name": name,
        "ID": service_id,
        "Address": address,
        "Port": port,
        "Tags": None if tags is None else list(tags),
        "Check": _check_of_service(check, interval, ttl, httpcheck),
    }
    return {**{field: value for field, value in named.items() if value is not None}, **given}


_DURATIONS = ("Timeout", "DeregisterCriticalServiceAfter")


def _check_of_service(
    given: Union[str, Mapping[str, Any], None],
    interval: Optional[Duration],
    ttl: Optional[Duration],
    http: Optional[str],
) -> Optional[Definition]:
    """The check that the reference's four arguments of a service describe, if any."""
    if isinstance(given, Mapping):
        if interval is not None or ttl is not None or http:
            raise ValueError("a check that is a definition says all by itself: no interval, ttl or httpcheck besides")
        return dict(given)
    if not given and interval is None and ttl is None and not http:
        return None
    return check(script=given, interval=interval, ttl=ttl, http=http)


def _insist(given: Definition) -> None:
    """Raise ValueError for a check that Consul would refuse, or would do by halves without a word."""
    kinds = [kind for kind, fields in KINDS.items() if any(given.get(field) for field in fields)]
    if len(kinds) != 1:
        said = f"not {' and '.join(kinds)}" if kinds else "and none is given"
        raise ValueError(f"a check looks at one of {', '.join(KINDS)}, {said}")
    kind = kinds[0]
    if (kind in UNTIMED) == ("Interval" in given):
        raise ValueError(f"a check of {kind} has no interval" if kind in UNTIMED else f"{kind} needs an interval")
    wrong = [field for field, fit in BELONGS_TO.items() if field in given and kind not in fit]
    if wrong:
        raise ValueError(f"a check of {kind} has no {', '.join(wrong)}")
    if "Shell" in given and "DockerContainerID" not in given:
        raise ValueError("a shell is for checks in a Docker container")


def _fields(names: Mapping[str, str], options: Mapping[str, Any]) -> Definition:
    """The options by Consul's names, those that are None left out."""
    unknown = sorted(set(options) - set(names))
    if unknown:
        raise TypeError(f"no such option: {', '.join(unknown)}")
    return {names[name]: value for name, value in options.items() if value is not None}


def _strings(value: Union[str, Sequence[str]]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
