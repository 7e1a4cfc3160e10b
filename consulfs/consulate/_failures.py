"""The errors of the libraries beneath, said as this client's: was a connection made, was anything sent?"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import requests
from urllib3 import exceptions

from consulfs.consulate._connections import NoTLS
from consulfs.consulate.exceptions import AnswerTimeout, BadAnswer, ConnectFailed, ConnectionBroken, RequestError

_TIMEOUTS = (TimeoutError, socket.timeout)  # two things before Python 3.10


@contextmanager
def translated(base: str, what: str = "") -> Iterator[None]:
    """The errors of the libraries beneath become this client's, with the original as cause."""
    try:
        yield
    except (exceptions.HTTPError, requests.RequestException, OSError) as error:
        kind, words = _translate(error, base)
        raise kind(f"{what}: {words}" if what else words) from error
    except MemoryError as error:
        raise BadAnswer(f"{base} says that its answer is longer than there is memory for") from error


def _translate(error: Exception, base: str) -> tuple[type[RequestError], str]:
    if isinstance(error, exceptions.ProtocolError) and isinstance(error.args[-1], _TIMEOUTS):
        error = error.args[-1]  # while the request was sent
    reason = getattr(error, "reason", None) or _innermost(error)
    if isinstance(error, exceptions.NewConnectionError) and error.__cause__ is not None:
        reason = _words(error.__cause__)
    if isinstance(error, NoTLS) or _refuses_certificate(error):
        return ConnectFailed, f"cannot connect to {base}: no TLS connection: {reason}"
    if isinstance(error, (exceptions.ConnectTimeoutError, exceptions.NewConnectionError, exceptions.ProxyError)):
        return ConnectFailed, f"cannot connect to {base}: {reason}"
    if isinstance(error, (exceptions.TimeoutError, *_TIMEOUTS)):
        return AnswerTimeout, f"no answer from {base} in time"
    return ConnectionBroken, f"the connection to {base} broke before the answer was whole: {reason}"


def _innermost(error: Exception) -> BaseException:
    """urllib3 puts what happened behind a sentence of its own into a ProtocolError, and shows it as a tuple."""
    last = error.args[-1] if isinstance(error, exceptions.ProtocolError) and error.args else error
    return last if isinstance(last, BaseException) else error


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
