"""One module an endpoint of Consul's HTTP API, each the same shape."""

from consulfs.consulate.api.acl import ACL
from consulfs.consulate.api.agent import Agent
from consulfs.consulate.api.kv import KV
from consulfs.consulate.api.session import Session
from consulfs.consulate.api.status import Status
from consulfs.consulate.api.txn import Txn

__all__ = ["ACL", "KV", "Agent", "Session", "Status", "Txn"]
