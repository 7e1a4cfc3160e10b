"""How a request travels: `Request` over TCP (with or without TLS), `UnixSocketRequest` over a Unix socket.

An adapter is built once per client. What the environment says about proxies and certificates is resolved by
requests when the adapter first meets a host, not on every call, and each call then goes straight to the pooled
connections beneath requests.
"""

from __future__ import annotations

import ipaddress
import math
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import dumps, loads
from typing import IO, Any, Callable, Optional, TypeVar, Union
from urllib.parse import unquote, urlsplit

import requests
import requests.adapters
import urllib3
from urllib3 import connection, exceptions
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.util.ssl_ import create_urllib3_context, resolve_cert_reqs
from urllib3.util.ssl_match_hostname import CertificateError

from consulfs.consulate import _sockets
from consulfs.consulate.exceptions import AnswerTimeout, BadAnswer, ConnectFailed, ConnectionBroken, RequestError
from consulfs.consulate.models import Meta

MAX_CONNECTIONS = 100
"""At most so many requests of one client at once: a Consul agent admits 200 connections an address."""

DEFAULT_TIMEOUT = 60.0
"""Seconds; longer than Consul itself takes to give up on a request without a leader (7 s)."""

Verify = Union[bool, str]
Cert = Union[str, tuple[str, str], None]
Body = Union[str, bytes, IO[bytes], None]

T = TypeVar("T")


class Response:
    """One answer.

    :ivar status_code: the HTTP status
    :ivar content: the body's bytes
    :ivar headers: the HTTP headers, names in any case
    :ivar what: what was asked, such as "GET /v1/kv/a", for messages
    """

    __slots__ = ("content", "headers", "status_code", "what")

    def __init__(self, status_code: int, content: bytes, headers: Mapping[str, str], what: str = "the request") -> None:
        self.status_code = status_code
        self.content = content
        self.headers = headers
        self.what = what

    @property
    def ok(self) -> bool:
        return 200 <= self.status_code < 300

    @property
    def body(self) -> Any:
        """The decoded JSON, or the text where it is none."""
        try:
            return loads(self.content.decode())  # not left to json, which would look for other encodings
        except (ValueError, RecursionError):
            return self.text

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")

    @property
    def meta(self) -> Meta:
        return Meta.of(self.headers)

    def as_list(self, of: type = object) -> list[Any]:
        """The JSON list; [] for null, which Consul answers where there is nothing, and for a 404.

        :param of: what each element must be: str or dict
        :raises BadAnswer: it is something else
        """
        found = None if self.status_code == 404 else self._json()
        elements: list[Any] = [] if found is None else self._checked(found, list)
        if of is not object and not all(isinstance(each, of) for each in elements):
            raise self.bad(f"a JSON list of {_JSON_NAMES[of]}s")
        return elements

    def as_dict(self) -> dict[str, Any]:
        """The JSON object; {} for null.

        :raises BadAnswer: it is something else
        """
        found = self._json()
        return {} if found is None else self._checked(found, dict)

    def as_str(self) -> str:
        """:raises BadAnswer: it is no JSON string"""
        return self._checked(self._json(), str)

    def as_bool(self) -> bool:
        """:raises BadAnswer: it is neither true nor false"""
        return self._checked(self._json(), bool)

    def as_done(self) -> bool:
        """True, for a success of which Consul says no more: with an empty body, or some JSON.

        :raises BadAnswer: it is something else, such as a proxy's page
        """
        if self.content.strip():
            self._json()
        return True

    def field(self, name: str) -> str:
        """The string of that name in the JSON object, such as the ID of what was created.

        :raises BadAnswer: there is none
        """
        found = self.as_dict().get(name)
        if not isinstance(found, str):
            raise self.bad(f"a JSON object with {name}")
        return found

    def bad(self, wanted: str) -> BadAnswer:
        """The exception for an answer that is not what was wanted."""
        return BadAnswer(f"{self.what}: wanted {wanted}, but {self.status_code} came with {self.content[:200]!r}")

    def _json(self) -> Any:
        try:
            return loads(self.content.decode())  # not left to json, which would look for other encodings
        except (ValueError, RecursionError) as error:
            raise self.bad("JSON") from error

    def _checked(self, found: Any, kind: type[T]) -> T:
        if not isinstance(found, kind):
            raise self.bad(f"a JSON {_JSON_NAMES[kind]}")
        return found


_JSON_NAMES: dict[type, str] = {list: "list", dict: "object", str: "string", bool: "true or false"}


class Stream:
    """One answer whose body is read piece by piece. A context manager; holds a connection until it is closed.

    :ivar what: what was asked, for messages; "" where nobody has said so
    """

    what = ""

    def __init__(self, answer: urllib3.BaseHTTPResponse, base: str, release: Callable[[], None]) -> None:
        self.status_code = answer.status
        self.headers: Mapping[str, str] = answer.headers
        self._answer = answer
        self._base = base
        self._release: Optional[Callable[[], None]] = release

    def read(self, size: Optional[int] = None) -> bytes:
        """Up to `size` bytes, fewer only at the end; everything where none is given.

        :raises ConnectionBroken: the connection ended before the body did
        """
        with _translated(self._base, self.what):
            return self._answer.read(size if size is None or size >= 0 else None)

    def __iter__(self) -> Iterator[bytes]:
        """The body in pieces as they arrive."""
        with _translated(self._base, self.what):
            yield from self._answer.stream(1 << 16)

    def close(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            self._answer.close()  # what was not read would be taken for the next answer
            release()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Request:
    """The default adapter: HTTP over TCP, with pooled connections that stay open between calls.

    :param timeout: seconds to wait for a connection and then for an answer; None or math.inf waits for ever
    :param verify: True for the usual certificates, False for no check, or the path of a CA file or folder
    :param cert: the path of a client certificate with its key, or a pair of both
    :param server_hostname: the name that the server's certificate must bear, where it is not the host's
    :param headers: sent with every request, such as an Authorization
    :param on_wait: called every few hundredths of a second while a call waits; what it raises ends the call
    """

    def __init__(
        self,
        timeout: Optional[float] = DEFAULT_TIMEOUT,
        verify: Verify = True,
        cert: Cert = None,
        server_hostname: Optional[str] = None,
        headers: Optional[Mapping[str, str]] = None,
        on_wait: Optional[Callable[[], None]] = None,
    ) -> None:
        self.timeout = timeout
        self.on_wait = on_wait
        self._verify = verify
        self._cert = cert
        self._server_hostname = server_hostname
        self._headers = dict(headers or ())
        self._session = requests.Session()
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._lock = threading.Lock()  # owns _routes
        self._routes: dict[str, tuple[HTTPConnectionPool, str]] = {}

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
        base, path = _split(uri)
        with _translated(base):
            timeout = self._limit(timeout)
            self._take_room(timeout)
            try:
                answer = self._send(method, base, path, data, headers, timeout, preload=True)
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
        with _translated(base):
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
            if method != "GET" or not isinstance(error.args[-1], _WentAway):
                raise
            # The server closed an idle connection just as it was used: reads may be asked again (RFC 9110, 9.2.2).
            return ask()

    def _limit(self, timeout: Optional[float]) -> Optional[float]:
        timeout = self.timeout if timeout is None else timeout
        return None if timeout == math.inf else timeout

    def close(self) -> None:
        """Close every pooled connection; the adapter may be used again afterwards."""
        with self._lock:
            routes, self._routes = self._routes, {}
        for pool, _ in routes.values():
            pool.close()
        self._session.close()

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
        adapter.cert_verify(pool, base, settings["verify"], settings["cert"])  # type: ignore[no-untyped-call]
        if self._server_hostname:
            pool.conn_kw["server_hostname"] = self._server_hostname
            pool.assert_hostname = self._server_hostname
        self._make_patient(pool)
        through_proxy = pool.proxy is not None and base.startswith("http:")
        return pool, base if through_proxy else ""

    def _make_patient(self, pool: HTTPConnectionPool) -> None:
        kind = _TLSConnection if pool.scheme == "https" else _Connection
        pool.ConnectionCls = type(kind.__name__, (kind,), {"owner": self})


class UnixSocketRequest(Request):
    """HTTP over a Unix domain socket; the URI's host is the socket's path, percent-encoded."""

    def _make_route(self, base: str) -> tuple[HTTPConnectionPool, str]:
        path = unquote(urlsplit(base).netloc)
        pool = HTTPConnectionPool("localhost", maxsize=MAX_CONNECTIONS)
        attributes = {"owner": self, "path": path}
        pool.ConnectionCls = type("_UnixConnection", (_UnixConnection,), attributes)
        return pool, ""


class _Connection(connection.HTTPConnection):
    """A pooled connection whose waits can be ended; subclassed per adapter to know its owner."""

    owner: Request
    has_answered = False

    def _new_conn(self) -> _sockets.PatientSocket:
        self.has_answered = False
        try:
            return self._dial()
        except OSError as error:
            raise exceptions.NewConnectionError(self, f"Failed to establish a new connection: {error}") from error

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        try:
            answer = super().getresponse()
        except ConnectionResetError as error:  # RemoteDisconnected is one
            if self.has_answered:
                raise _WentAway(*error.args) from error
            raise
        self.has_answered = True
        return answer

    def _dial(self) -> _sockets.PatientSocket:
        return _sockets.connect(self._dns_host, self.port, _limit(self.timeout), self.owner.on_wait)


class _WentAway(ConnectionResetError):
    """Not a byte of an answer came on a connection on which one had come before."""


class _TLSConnection(_Connection, connection.HTTPSConnection):
    def connect(self) -> None:
        if self.ssl_context is None:
            self.ssl_context = create_urllib3_context(cert_reqs=resolve_cert_reqs(self.cert_reqs))
        # An instance attribute of the context, meant for this: docs.python.org, ssl.SSLContext.sslsocket_class.
        attributes = {"on_wait": self.owner.on_wait}
        patient = type("PatientTLSSocket", (_sockets.PatientTLSSocket,), attributes)
        self.ssl_context.sslsocket_class = patient
        try:
            super().connect()
        except (OSError, exceptions.SSLError, CertificateError) as error:
            # Said as what it is, a connection that was not made: the same error later means that data was sent.
            raise _NoTLS(self, f"no TLS connection: {error}") from error


class _NoTLS(exceptions.NewConnectionError):
    """The TCP connection was made, and TLS on it was not."""


class _UnixConnection(_Connection):
    path: str

    def _dial(self) -> _sockets.PatientSocket:
        return _sockets.connect_unix(self.path, _limit(self.timeout), self.owner.on_wait)


def _limit(timeout: Any) -> Optional[float]:
    return float(timeout) if isinstance(timeout, (int, float)) else None


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


@contextmanager
def _translated(base: str, what: str = "") -> Iterator[None]:
    """The errors of the libraries beneath become this client's, with the original as cause."""
    try:
        yield
    except (exceptions.HTTPError, requests.RequestException, OSError) as error:
        kind, words = _translate(error, base)
        raise kind(f"{what}: {words}" if what else words) from error
    except MemoryError as error:
        raise BadAnswer(f"{base} says that its answer is longer than there is memory for") from error


def _translate(error: Exception, base: str) -> tuple[type[RequestError], str]:
    if isinstance(error, exceptions.ProtocolError) and isinstance(error.args[-1], TimeoutError):
        error = error.args[-1]  # while the request was sent
    reason = getattr(error, "reason", None) or error
    if isinstance(error, exceptions.NewConnectionError) and error.__cause__ is not None:
        reason = _words(error.__cause__)
    if isinstance(error, _NoTLS) or _refuses_certificate(error):
        return ConnectFailed, f"cannot connect to {base}: no TLS connection: {reason}"
    if isinstance(error, (exceptions.ConnectTimeoutError, exceptions.NewConnectionError, exceptions.ProxyError)):
        return ConnectFailed, f"cannot connect to {base}: {reason}"
    if isinstance(error, (exceptions.TimeoutError, TimeoutError)):
        return AnswerTimeout, f"no answer from {base} in time"
    return ConnectionBroken, f"the connection to {base} broke before the answer was whole: {reason}"


def _words(error: BaseException) -> str:
    plain = isinstance(error, OSError) and not isinstance(error, ssl.SSLError)
    return getattr(error, "strerror", None) or str(error) if plain else str(error)


def _refuses_certificate(error: Exception) -> bool:
    """Whether the server's alert ended the handshake, though it came as if it were an answer.

    In TLS 1.3 a client has finished its handshake before the server has seen the client's certificate (RFC 8446,
    section 2 and 4.4.2.4), so the request is under way already; the server reads none of it.
    """
    alert = error.args[0] if isinstance(error, exceptions.SSLError) and error.args else None
    said = getattr(alert, "reason", None) or ""
    return "_ALERT_" in said and any(word in said for word in ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED"))
