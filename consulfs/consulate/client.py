"""`Consul`: one object with every endpoint on it."""

from __future__ import annotations

from types import TracebackType
from typing import Callable, Optional, Union
from urllib.parse import quote

from consulfs.consulate import adapters, api


class Consul:
    """A connection to Consul's HTTP API.

    Each endpoint of Consul is an attribute. Safe for threads. A context manager; close() ends its pooled connections.

    :param host: a name or address; the path of the socket for a Unix domain socket
    :param port: a TCP port; None for a Unix domain socket
    :param datacenter: asked instead of the agent's own
    :param token: an ACL token, sent as a header and shown nowhere
    :param scheme: "http", "https" or "http+unix"
    :param adapter: a class of `consulate.adapters`, of which locks have an adapter of their own; or one that is ready,
        with a timeout and certificates of its own, which locks share: their renewals wait with the rest where all its
        connections are in use
    :param verify: True, False, or the path of a CA file or folder
    :param cert: the path of a client certificate with its key, or a pair of both
    :param timeout: seconds to wait for a connection and then for an answer (a blocking query's own time comes on
        top); None waits for ever
    :raises ValueError: the token cannot be sent
    """

    def __init__(
        self,
        host: str = "localhost",
        port: Optional[int] = 8500,
        datacenter: Optional[str] = None,
        token: Optional[str] = None,
        scheme: str = "http",
        adapter: Union[Callable[..., adapters.Request], adapters.Request, None] = None,
        verify: adapters.Verify = True,
        cert: adapters.Cert = None,
        timeout: Optional[float] = adapters.DEFAULT_TIMEOUT,
    ) -> None:
        self._base = _base_uri(scheme, host, port)
        if adapter is None or callable(adapter):
            factory = adapter or (adapters.UnixSocketRequest if scheme == "http+unix" else adapters.Request)
            # A lock is lost if its renewal waits until one of many blocking queries has ended.
            adapter, for_locks = (factory(timeout=timeout, verify=verify, cert=cert) for _ in range(2))
        else:
            for_locks = adapter
        self._adapter, self._adapter_for_locks = adapter, for_locks
        common = (self._base, self._adapter, datacenter, token)
        self.acl = api.ACL(*common)
        self.agent = api.Agent(*common)
        self.catalog = api.Catalog(*common)
        self.config = api.Config(*common)
        self.connect = api.Connect(*common)
        self.coordinate = api.Coordinate(*common)
        self.event = api.Event(*common)
        self.health = api.Health(*common)
        self.kv = api.KV(*common)
        self.operator = api.Operator(*common)
        self.query = api.Query(*common)
        self.session = api.Session(*common)
        self.snapshot = api.Snapshot(*common)
        self.status = api.Status(*common)
        self.txn = api.Txn(*common)
        sessions = api.Session(self._base, for_locks, datacenter, token)
        self.lock = api.Lock(self._base, for_locks, sessions, datacenter, token)

    def close(self) -> None:
        self._adapter.close()
        self._adapter_for_locks.close()

    def abort(self) -> None:
        """End every request that is under way, blocking queries too, and refuse all others: from any thread."""
        self._adapter.abort()
        self._adapter_for_locks.abort()

    def __enter__(self) -> Consul:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Consul {self._base}>"


def _base_uri(scheme: str, host: str, port: Optional[int]) -> str:
    if scheme == "http+unix":
        return f"{scheme}://{quote(host, safe='')}/v1"
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"{scheme}://{host}/v1" if port is None else f"{scheme}://{host}:{port}/v1"
