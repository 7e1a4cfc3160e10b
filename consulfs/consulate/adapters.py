"""How a request travels: `Request` over TCP (with or without TLS), `UnixSocketRequest` over a Unix socket.

An adapter is built once per client. What the environment says about proxies and certificates is resolved by
requests when the adapter first meets a host, not on every call, and each call then goes straight to the pooled
connections beneath requests.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import threading
import weakref
from collections.abc import Mapping
from json import dumps
from typing import IO, Any, Callable, Optional, Union
from urllib.parse import unquote, urlsplit

import requests
import requests.adapters
import urllib3
from urllib3 import exceptions
from urllib3.connectionpool import HTTPConnectionPool

from consulfs.consulate import _sockets
from consulfs.consulate._connections import Connection, TLSConnection, UnixConnection, WentAway
from consulfs.consulate._failures import translated
from consulfs.consulate.exceptions import ConnectFailed
from consulfs.consulate.responses import Response, Stream

__all__ = ["MAX_CONNECTIONS", "Request", "Response", "Stream", "UnixSocketRequest"]

MAX_CONNECTIONS = 100
"""At most so many requests of one client at once: a Consul agent admits 200 connections an address."""

DEFAULT_TIMEOUT = 60.0
"""Seconds; longer than Consul itself takes to give up on a request without a leader (7 s)."""

LONGEST = 1e9
"""Seconds; what is longer (30 years) is for ever, since the system's clocks do not count much further."""

Verify = Union[bool, str]
Cert = Union[str, tuple[str, str], None]
Body = Union[str, bytes, IO[bytes], None]
OnRequest = Callable[[str, str], Callable[[Optional[int]], None]]


class Request:
    """The default adapter: HTTP over TCP, with pooled connections that stay open between calls.

    :param timeout: seconds to wait for a connection, and then for each part of an answer; None or math.inf waits for
        ever
    :param verify: True for the usual certificates, False for no check, or the path of a CA file or folder
    :param cert: the path of a client certificate with its key, or a pair of both
    :param server_hostname: the name that the server's certificate must bear, where it is not the host's
    :param headers: sent with every request, such as an Authorization, which no message shows
    :param on_wait: called every few hundredths of a second while a call waits; what it raises ends the call
    :param on_request: called with the method and the URI of each `request`; what it gives is called with the status
        when the answer is there, or with None when there is none
    :raises ValueError: a timeout that is no number above 0
    """

    def __init__(
        self,
        timeout: Optional[float] = DEFAULT_TIMEOUT,
        verify: Verify = True,
        cert: Cert = None,
        server_hostname: Optional[str] = None,
        headers: Optional[Mapping[str, str]] = None,
        on_wait: Optional[Callable[[], None]] = None,
        on_request: Optional[OnRequest] = None,
    ) -> None:
        self.timeout = timeout
        self.on_wait = on_wait
        self._on_request = on_request or _unobserved
        self._verify = verify
        self._cert = cert
        self._server_hostname = server_hostname
        self._headers = dict(headers or ())
        self.secrets = _credentials(self._headers.get("Authorization", ""))
        self._limit(timeout)
        self._begin()
        _ADAPTERS.add(self)

    def _begin(self) -> None:
        """Without any connection; once more in a process that was forked off."""
        self._session = requests.Session()
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._lock = threading.Lock()  # owns all that follows
        self._routes: dict[str, tuple[HTTPConnectionPool, str]] = {}
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._is_aborted = False

    def get(self, uri: str, timeout: Optional[float] = None, **kwargs: Any) -> Response:
        return self.request("GET", uri, timeout=timeout, **kwargs)

    def put(self, uri: str, data: Any = None, timeout: Optional[float] = None, **kwargs: Any) -> Response:
        return self.request("PUT", uri, data=data, timeout=timeout, **kwargs)

    def post(self, uri: str, data: Any = None, timeout: Optional[float] = None, **kwargs: Any) -> Response:
        return self.request("POST", uri, data=data, timeout=timeout, **kwargs)

    def delete(self, uri: str, timeout: Optional[float] = None, **kwargs: Any) -> Response:
        return self.request("DELETE", uri, timeout=timeout, **kwargs)

    def request(
        self,
        method: str,
        uri: str,
        data: Any = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout: Optional[float] = None,
    ) -> Response:
        """One request and its answer, whatever the status. Redirects are answers, never followed.

        :param data: bytes or an open file as they are, a str as UTF-8, anything else as JSON
        :raises ConnectFailed: nothing was sent
        :raises AnswerTimeout: it was sent, and no answer came in time
        :raises ConnectionBroken: it was sent, and the connection ended before the answer did
        """
        ended = self._on_request(method, uri)
        status: Optional[int] = None
        try:
            answer = self._ask(method, uri, data, headers, timeout)
            status = answer.status_code
            return answer
        finally:
            ended(status)

    def _ask(
        self, method: str, uri: str, data: Any, headers: Optional[Mapping[str, str]], timeout: Optional[float]
    ) -> Response:
        base, path = _split(uri)
        with translated(base):
            timeout = self._limit(timeout)
            self._take_room(timeout)
            try:
                answer = self._send(method, base, path, data, headers, timeout, preload=True)
                if answer.length_remaining:  # before Python 3.10 urllib3 reads 2 GiB and more without a check
                    raise exceptions.IncompleteRead(len(answer.data), answer.length_remaining)
                return Response(answer.status, answer.data, answer.headers)
            finally:
                self._room.release()

    def stream(
        self,
        method: str,
        uri: str,
        data: Body = None,
        headers: Optional[Mapping[str, str]] = None,
        timeout: Optional[float] = None,
    ) -> Stream:
        """As `request`, with a body that is read while it arrives.

        :param data: may be a file, which is sent piece by piece
        :param timeout: seconds for each piece
        """
        base, path = _split(uri)
        with translated(base):
            timeout = self._limit(timeout)
            self._take_room(timeout)
            try:
                answer = self._send(method, base, path, data, headers, timeout, preload=False)
                return Stream(answer, base, self._room.release)
            except BaseException:
                self._room.release()
                raise

    def _send(
        self,
        method: str,
        base: str,
        path: str,
        data: Any,
        headers: Optional[Mapping[str, str]],
        timeout: Optional[float],
        preload: bool,
    ) -> urllib3.BaseHTTPResponse:
        pool, prefix = self._routes.get(base) or self._find_route(base)

        def ask() -> urllib3.BaseHTTPResponse:
            return pool.urlopen(
                method,
                prefix + path,
                body=_body(data),
                headers={**self._headers, **(headers or {})},
                retries=False,
                redirect=False,
                assert_same_host=False,  # through a proxy the whole URI is asked for
                timeout=urllib3.Timeout(connect=timeout, read=timeout),
                preload_content=preload,
            )

        try:
            return ask()
        except exceptions.ProtocolError as error:
            if method != "GET" or not isinstance(error.args[-1], WentAway):
                raise
            # The server closed an idle connection just as it was used: reads may be asked again (RFC 9110, 9.2.2).
            return ask()

    def _limit(self, timeout: Optional[float]) -> Optional[float]:
        timeout = self.timeout if timeout is None else timeout
        if timeout is None:
            return None
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
            raise ValueError(f"a timeout is a number of seconds above 0, not {timeout!r}")
        return None if timeout > LONGEST else timeout

    def close(self) -> None:
        """Close every pooled connection; the adapter may be used again afterwards."""
        with self._lock:
            routes, self._routes = self._routes, {}
        for pool, _ in routes.values():
            pool.close()
        self._session.close()

    def abort(self) -> None:
        """End every request that is under way, from any thread, and refuse all others. It cannot be used again."""
        with self._lock:
            self._is_aborted = True
            connections = list(self._connections)
        for connection in connections:
            connection.hang_up()
        self.close()

    def admit(self, connection: Connection) -> None:
        """A connection is being made.

        :raises ConnectionAbortedError: none is to be made any more
        """
        with self._lock:
            if self._is_aborted:
                raise ConnectionAbortedError("aborted")
            self._connections.add(connection)

    def _take_room(self, timeout: Optional[float]) -> None:
        waited = 0.0
        while not self._room.acquire(timeout=_sockets.SLICE):
            waited += _sockets.SLICE
            if self.on_wait is not None:
                self.on_wait()
            if timeout is not None and waited >= timeout:
                raise urllib3.exceptions.ConnectTimeoutError("every connection is in use")

    def _find_route(self, base: str) -> tuple[HTTPConnectionPool, str]:
        """The pool for a host, and what goes before the path (the whole base, where a proxy is asked)."""
        with self._lock:
            if base not in self._routes:
                try:
                    self._routes[base] = self._make_route(base)
                except (OSError, ValueError, exceptions.HTTPError) as error:  # certificates that are not there, say
                    raise ConnectFailed(f"cannot connect to {base}: {error}") from error
            return self._routes[base]

    def _make_route(self, base: str) -> tuple[HTTPConnectionPool, str]:
        settings = self._session.merge_environment_settings(base, {}, None, self._verify, self._cert)
        if _is_loopback(urlsplit(base).hostname or ""):
            settings["proxies"] = {}  # as Consul's own tools have it: a proxy would reach its own loopback
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=MAX_CONNECTIONS)
        request = requests.Request("GET", base).prepare()
        # The stubs of requests know neither of the two as they are.
        pool: Any = adapter.get_connection_with_tls_context(
            request, settings["verify"], proxies=settings["proxies"], cert=settings["cert"]
        )
        adapter.cert_verify(pool, base, settings["verify"], settings["cert"])  # type: ignore[no-untyped-call]  # by its stubs
        if self._server_hostname and pool.scheme == "https":
            pool.conn_kw["server_hostname"] = self._server_hostname
            pool.assert_hostname = self._server_hostname
        self._make_patient(pool)
        through_proxy = pool.proxy is not None and base.startswith("http:")
        return pool, base if through_proxy else ""

    def _make_patient(self, pool: HTTPConnectionPool) -> None:
        kind = TLSConnection if pool.scheme == "https" else Connection
        pool.ConnectionCls = type(kind.__name__, (kind,), {"owner": self})


class UnixSocketRequest(Request):
    """HTTP over a Unix domain socket; the URI's host is the socket's path, percent-encoded."""

    def _make_route(self, base: str) -> tuple[HTTPConnectionPool, str]:
        path = unquote(urlsplit(base).netloc)
        pool = HTTPConnectionPool("localhost", maxsize=MAX_CONNECTIONS)
        attributes = {"owner": self, "path": path}
        pool.ConnectionCls = type("UnixConnection", (UnixConnection,), attributes)
        return pool, ""


_ADAPTERS: weakref.WeakSet[Request] = weakref.WeakSet()


def _leave_the_parents() -> None:
    """A connection that two processes share would give each the other's answers."""
    for adapter in list(_ADAPTERS):
        adapter._begin()


os.register_at_fork(after_in_child=_leave_the_parents)


def _credentials(header: str) -> tuple[str, ...]:
    """What of an Authorization header no message may show, in each form that a server may repeat."""
    sent = header.partition(" ")[2]
    try:
        plain = base64.b64decode(sent, validate=True).decode()
    except ValueError:
        plain = ""
    return tuple(each for each in (sent, plain, plain.partition(":")[2]) if each)


def _unobserved(method: str, uri: str) -> Callable[[Optional[int]], None]:
    return lambda status: None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _split(uri: str) -> tuple[str, str]:
    """("scheme://host", "/path?query"); by hand, since it is on the way of every call."""
    end = uri.index("/", uri.index("://") + 3)
    return uri[:end], uri[end:]


def _body(data: Any) -> Any:
    if isinstance(data, str):
        return data.encode()
    return data if data is None or isinstance(data, bytes) or hasattr(data, "read") else dumps(data).encode()
