"""The pooled connections: urllib3's, on sockets whose waits can be ended."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any, Optional

import urllib3
from urllib3 import connection, exceptions
from urllib3.util.ssl_ import create_urllib3_context, resolve_cert_reqs
from urllib3.util.ssl_match_hostname import CertificateError

from consulfs.consulate import _sockets

if TYPE_CHECKING:
    from consulfs.consulate.adapters import Request

SMALL_BODY = 1 << 16
"""Bytes of a body that is copied behind its headers."""


class Connection(connection.HTTPConnection):
    """A pooled connection whose waits can be ended; subclassed per adapter to know its owner."""

    owner: Request
    has_answered = False
    _awaits_body = False
    _head: bytes = b""

    def _new_conn(self) -> _sockets.PatientSocket:
        self.has_answered = False
        try:
            self.sock = sock = self._dial()
            self.owner.admit(self)
            return sock
        except OSError as error:
            raise exceptions.NewConnectionError(self, f"Failed to establish a new connection: {error}") from error

    def request(self, method: str, url: str, body: Any = None, *args: Any, **kwargs: Any) -> None:
        self._awaits_body, self._head = isinstance(body, bytes) and 0 < len(body) <= SMALL_BODY, b""
        super().request(method, url, body, *args, **kwargs)

    def send(self, data: Any) -> None:
        """A small body travels with its headers: http.client sends two packets, which wake the server twice."""
        if self._awaits_body:
            self._awaits_body, self._head = False, data
            return
        if self._head:
            data, self._head = self._head + data, b""
        super().send(data)

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # urllib3 narrows it so too
        try:
            answer = super().getresponse()
        except ConnectionResetError as error:  # RemoteDisconnected is one
            if self.has_answered:
                raise WentAway(*error.args) from error
            raise
        self.has_answered = True
        return answer

    def hang_up(self) -> None:
        """End what waits on it, in whatever thread that is."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                # Not the method of a TLS socket, which takes from under its reader what that one reads with.
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def _dial(self) -> _sockets.PatientSocket:
        return _sockets.connect(self._dns_host, self.port, _limit(self.timeout), self.owner.on_wait)


class WentAway(ConnectionResetError):
    """Not a byte of an answer came on a connection on which one had come before."""


class TLSConnection(Connection, connection.HTTPSConnection):
    def connect(self) -> None:
        if self.ssl_context is None:
            self.ssl_context = create_urllib3_context(cert_reqs=resolve_cert_reqs(self.cert_reqs))
        # An instance attribute of the context, meant for this: docs.python.org, ssl.SSLContext.sslsocket_class.
        attributes = {"on_wait": self.owner.on_wait}
        patient = type("PatientTLSSocket", (_sockets.PatientTLSSocket,), attributes)
        self.ssl_context.sslsocket_class = patient
        try:
            super().connect()
            self.owner.admit(self)
        except (OSError, exceptions.SSLError, CertificateError) as error:
            # Said as what it is, a connection that was not made: the same error later means that data was sent.
            raise NoTLS(self, f"no TLS connection: {error}") from error


class NoTLS(exceptions.NewConnectionError):
    """The TCP connection was made, and TLS on it was not."""


class UnixConnection(Connection):
    path: str

    def _dial(self) -> _sockets.PatientSocket:
        return _sockets.connect_unix(self.path, _limit(self.timeout), self.owner.on_wait)


def _limit(timeout: Any) -> Optional[float]:
    return float(timeout) if isinstance(timeout, (int, float)) else None
