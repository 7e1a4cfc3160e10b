"""A client for Consul with the API of the consulate library.

from consulfs import consulate

consul = consulate.Consul()
consul.kv["release_flag"] = True
"""

from consulfs.consulate import adapters, api, exceptions
from consulfs.consulate.client import Consul
from consulfs.consulate.exceptions import (
    ACLDisabled,
    AnswerTimeout,
    ClientError,
    ConcurrentChange,
    ConnectFailed,
    ConsulateException,
    Forbidden,
    KeyMissing,
    LockError,
    LockFailure,
    NotFound,
    RequestError,
    ServerError,
    StaleIndex,
    TooLarge,
    TransactionFailed,
)
from consulfs.consulate.models import Meta, Record

Session = Consul
"""The old name of `Consul`, which older programs use."""

__all__ = [
    "ACLDisabled",
    "AnswerTimeout",
    "ClientError",
    "ConcurrentChange",
    "ConnectFailed",
    "Consul",
    "ConsulateException",
    "Forbidden",
    "KeyMissing",
    "LockError",
    "LockFailure",
    "Meta",
    "NotFound",
    "Record",
    "RequestError",
    "ServerError",
    "Session",
    "StaleIndex",
    "TooLarge",
    "TransactionFailed",
    "adapters",
    "api",
    "exceptions",
]
