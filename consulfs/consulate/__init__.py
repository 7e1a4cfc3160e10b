"""A client for Consul with the API of the consulate library.

from consulfs import consulate

consul = consulate.Consul()
consul.kv["release_flag"] = True
"""

from consulfs._version import __version__
from consulfs.consulate import adapters, api, definitions, exceptions
from consulfs.consulate.client import Consul
from consulfs.consulate.exceptions import (
    ACLDisabled,
    AnswerTimeout,
    BadAnswer,
    ClientError,
    ConcurrentChange,
    ConnectFailed,
    ConnectionBroken,
    ConsulateException,
    Forbidden,
    Gone,
    KeyMissing,
    LockError,
    LockFailure,
    NoLeader,
    NotFound,
    RateLimited,
    Redirected,
    RequestError,
    ServerError,
    StaleIndex,
    TooLarge,
    TransactionFailed,
    UnknownDatacenter,
    UnknownSession,
)
from consulfs.consulate.models import Meta, Record

Session = Consul
"""The old name of `Consul`, which older programs use."""

__all__ = [
    "ACLDisabled",
    "AnswerTimeout",
    "BadAnswer",
    "ClientError",
    "ConcurrentChange",
    "ConnectFailed",
    "ConnectionBroken",
    "Consul",
    "ConsulateException",
    "Forbidden",
    "Gone",
    "KeyMissing",
    "LockError",
    "LockFailure",
    "Meta",
    "NoLeader",
    "NotFound",
    "RateLimited",
    "Record",
    "Redirected",
    "RequestError",
    "ServerError",
    "Session",
    "StaleIndex",
    "TooLarge",
    "TransactionFailed",
    "UnknownDatacenter",
    "UnknownSession",
    "__version__",
    "adapters",
    "api",
    "definitions",
    "exceptions",
]
