"""What can go wrong between a caller and Consul.

    ConsulateException
    ├── RequestError            no usable answer; the cause is chained
    │   ├── ConnectFailed       nothing was sent: safe to repeat
    │   ├── AnswerTimeout       sent, but no answer in time: it may have been applied
    │   ├── ConnectionBroken    sent, but the connection ended before a whole answer: it may have been applied
    │   └── BadAnswer           what came back is not what Consul says (a proxy's page?): it may have been applied
    ├── ClientError             Consul refused the request (4xx)
    │   ├── Redirected          3xx: never followed, for Consul redirects an unclean key to another key
    │   ├── ACLDisabled         401: ACLs are off on this cluster
    │   ├── Forbidden           403, or a transaction refused for want of rights
    │   ├── NotFound            404, or an ID that is no UUID
    │   │   └── UnknownSession  ... or a lock request refused, for the session does not exist (any more)
    │   ├── Gone                410: removed from this version of Consul (legacy ACLs from 1.11 on)
    │   ├── TooLarge            413: body, value or number of operations
    │   ├── RateLimited         429: too many requests or connections; nothing was done
    │   └── TransactionFailed   409: nothing was applied; `errors` says which operation failed
    │       └── StaleIndex      ... because a compare-and-set or check found another state
    │           └── ConcurrentChange    ... again and again: kv.set gives up
    ├── ServerError             5xx: agent shutting down, internal error
    │   ├── NoLeader            500: the servers have no leader now
    │   └── UnknownDatacenter   500: no such datacenter, or no way to its servers
    ├── KeyMissing              kv[key] of a key that does not exist; a KeyError and an AttributeError too
    └── LockFailure             the lock is held by someone else (also named LockError)

Every ClientError and ServerError carries `status` (the HTTP status) and Consul's words. None carries a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional


class ConsulateException(Exception):
    """The root of every exception that this client raises by itself."""


class RequestError(ConsulateException):
    """There was no usable answer."""


class ConnectFailed(RequestError):
    """No connection could be made, so nothing was sent."""


class AnswerTimeout(RequestError):
    """The request was sent and no answer came within the timeout."""


class ConnectionBroken(RequestError):
    """The request was sent and the connection ended before the whole answer was there."""


class BadAnswer(RequestError):
    """The answer is not JSON, or not of the shape that Consul's documentation promises."""


class _Refused(ConsulateException):
    def __init__(self, message: str = "", status: Optional[int] = None) -> None:
        super().__init__(message)
        self.status = status


class ClientError(_Refused):
    """Consul would not do what the request asked for (4xx)."""


class Redirected(ClientError):
    """Consul or something before it answered with a redirect (3xx), which is never followed."""


class ACLDisabled(ClientError):
    """The cluster runs without ACLs (401)."""


class Forbidden(ClientError):
    """The token has no right to do this (403)."""


class NotFound(ClientError):
    """There is no such thing (404), or it is asked for by an ID that is no UUID (Consul says 500 or 400 then)."""


class UnknownSession(NotFound):
    """The session does not exist, or not any more."""


class Gone(ClientError):
    """The server's version has this no longer (410), as legacy ACLs from 1.11 on."""


class TooLarge(ClientError, KeyError):
    """The body, the value or the number of operations is over the server's limit (413); a KeyError too, since the
    reference has that for a value that is not set."""

    __str__ = Exception.__str__


class RateLimited(ClientError):
    """Too many requests or connections of this client (429)."""


class TransactionFailed(ClientError):
    """A transaction was rolled back as a whole.

    :ivar errors: (index of the operation, Consul's words) for each operation that failed
    """

    def __init__(self, message: str = "", status: Optional[int] = 409, errors: Sequence[tuple[int, str]] = ()) -> None:
        super().__init__(message, status)
        self.errors = tuple(errors)


class StaleIndex(TransactionFailed):
    """A compare-and-set or a check in a transaction met another state than it expected."""


class ConcurrentChange(StaleIndex, KeyError):
    """A value was not set, since others changed the key each time; a KeyError too, as the reference has it."""

    __str__ = Exception.__str__


class ServerError(_Refused):
    """Consul could not do it now (5xx)."""


class NoLeader(ServerError):
    """The servers have no leader at the moment (500)."""


class UnknownDatacenter(ServerError):
    """There is no such datacenter, or none of its servers is known now (500)."""


class LockFailure(ConsulateException):
    """The lock could not be had."""


LockError = LockFailure


class KeyMissing(ConsulateException, KeyError, AttributeError):
    """`kv[key]` for a key that does not exist: documented both as KeyError and as AttributeError."""

    __str__ = Exception.__str__


BY_STATUS: dict[int, type[ClientError]] = {
    401: ACLDisabled,
    403: Forbidden,
    404: NotFound,
    410: Gone,
    413: TooLarge,
    429: RateLimited,
}
