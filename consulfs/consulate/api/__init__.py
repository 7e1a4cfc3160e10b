"""One module an endpoint of Consul's HTTP API, each the same shape."""

from consulfs.consulate.api.acl import ACL
from consulfs.consulate.api.agent import Agent
from consulfs.consulate.api.catalog import Catalog
from consulfs.consulate.api.config import Config
from consulfs.consulate.api.connect import Connect
from consulfs.consulate.api.coordinate import Coordinate
from consulfs.consulate.api.event import Event
from consulfs.consulate.api.health import Health
from consulfs.consulate.api.kv import KV
from consulfs.consulate.api.lock import Lock
from consulfs.consulate.api.operator import Operator
from consulfs.consulate.api.query import Query
from consulfs.consulate.api.session import Session
from consulfs.consulate.api.snapshot import Snapshot
from consulfs.consulate.api.status import Status
from consulfs.consulate.api.txn import Txn

__all__ = [
    "ACL",
    "KV",
    "Agent",
    "Catalog",
    "Config",
    "Connect",
    "Coordinate",
    "Event",
    "Health",
    "Lock",
    "Operator",
    "Query",
    "Session",
    "Snapshot",
    "Status",
    "Txn",
]
