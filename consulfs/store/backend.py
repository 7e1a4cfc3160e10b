"""The talk with Consul: retries within the operation's time, what is uncertain said so, and who may write what.

Reads are repeated until they succeed or the time is over. Writes are repeated while it is certain that nothing was
applied; after that they are `Uncertain`, and the caller reads back before it says that the write failed. Every write
names the index that it expects, deletes too: one that arrives late must not touch what was stored after it.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional, TypeVar

from cachetools import TTLCache

from consulfs.consulate import (
    ACLDisabled,
    AnswerTimeout,
    BadAnswer,
    ClientError,
    ConnectFailed,
    Consul,
    ConsulateException,
    Forbidden,
    NoLeader,
    NotFound,
    Record,
    RequestError,
    ServerError,
    StaleIndex,
)
from consulfs.consulate.api.records import travels_in_url
from consulfs.consulate.api.txn import Operation, encode, operation
from consulfs.errors import OutOfTime
from consulfs.store.patience import Patience

log = logging.getLogger(__name__)

T = TypeVar("T")

BATCH = 64
"""Operations in a transaction: the limit of Consul 1.8; later servers take 128."""

RIGHTS_LIFETIME = 30.0
"""Seconds for which the answer to "may this token write this key?" is remembered."""

WRITE_SHARE = 0.75
"""The part of an operation's time that a write may wait for its answer."""

WATCH_GRACE = 5.0
"""Seconds beyond the time that a blocking query was to wait, after which its answer does not come any more."""

IMPOSSIBLE_INDEX = (1 << 63) - 1
"""A ModifyIndex that no key has: a compare-and-set with it tells the rights and changes nothing."""


class Uncertain(Exception):
    """A write was sent and may or may not have been applied; the cause is chained."""


class Backend:
    """Consul's KV store, as the file system needs it.

    :param consistency: of reads: default, consistent or stale
    :ivar datacenter: the agent's own, as far as the token may know
    """

    def __init__(self, consul: Consul, patience: Patience, consistency: str = "default") -> None:
        self._consul = consul
        self._patience = self.patience = patience
        self._consistency = consistency
        self.value_limit = 512 * 1024
        self.txn_limit = 512 * 1024
        self.acl_enabled = False
        self.datacenter: Optional[str] = None
        self._rights_lock = threading.Lock()  # owns _rights
        self._rights: TTLCache[str, bool] = TTLCache(4096, RIGHTS_LIFETIME)

    def introduce(self, token_given: bool) -> None:
        """Ask the server, once, for what a mount must know: its limits, and whether it has ACLs.

        :raises ConsulateException: nobody answers, or the token is not known
        """
        self._patience.begin()
        try:
            agent = self._read(lambda left: self._consul.agent.self(timeout=left))
            config: dict[str, Any] = agent.get("DebugConfig", {})
            self.datacenter = agent.get("Config", {}).get("Datacenter")
            self.value_limit = int(config.get("KVMaxValueSize") or self.value_limit)
            self.txn_limit = int(config.get("TxnMaxReqLen") or self.txn_limit)
        except Forbidden:
            log.info("no agent:read for this token: taking Consul's default limits")
        try:
            self._read(lambda left: self._consul.acl.token_self(timeout=left))
            self.acl_enabled = True
        except ACLDisabled:
            self.acl_enabled = False
        except Forbidden:
            if token_given:
                raise
            self.acl_enabled = True  # nobody in particular: what the anonymous token may is seen as it is asked for

    def as_known(self, other: Backend) -> None:
        """Take what another backend was told: the servers of other datacenters are not asked at all until they must."""
        self.value_limit, self.txn_limit, self.acl_enabled = other.value_limit, other.txn_limit, other.acl_enabled

    def lock_limit(self, key: str) -> int:
        """The bytes of a value that can be unlocked in a transaction, which has the value with it."""
        steps = [operation("check-index", key, index=1 << 63), operation("unlock", key, b"", 1 << 63, session="-" * 36)]
        return max(0, (self.txn_limit - len(encode(steps))) // 4 * 3)

    # -- reads -----------------------------------------------------------------------------------------------

    def read(self, key: str, consistent: bool = False) -> Optional[Record]:
        mode = "consistent" if consistent else self._consistency
        return self._read(lambda left: self._consul.kv.read(key, consistency=mode, timeout=left))

    def read_many(self, keys: Sequence[str]) -> dict[str, Record]:
        """Up to `BATCH` records in one request; what is missing or hidden is left out."""
        return self._read(lambda left: self._consul.kv.read_many(keys, consistency=self._consistency, timeout=left))

    def names(self, prefix: str) -> list[str]:
        """The keys and prefixes of one level."""
        return self._read(lambda left: self._consul.kv.names(prefix, "/", consistency=self._consistency, timeout=left))

    def level(self, prefix: str) -> tuple[list[str], int]:
        """The same, and the index as of which they are; 0 where Consul tells none."""
        names = self.names(prefix)
        return names, (self._consul.kv.meta.index or 0) if travels_in_url(prefix) else 0

    def tree(self, prefix: str) -> list[Record]:
        """Every record below a prefix."""
        return self._read(lambda left: self._consul.kv.tree(prefix, timeout=left))

    def stream(self, prefix: str) -> Iterator[Record]:
        """The same, one after the other while they arrive; a failure is not retried."""
        return self._consul.kv.stream(prefix, consistency=self._consistency, timeout=self._patience.remaining())

    def watch(self, record: Record, seconds: float) -> bool:
        """Wait until a key may have another session, or none, or for so long; False where Consul cannot wait for it.

        A holder that writes wakes this too: it waits on, without a look of the caller's. An error ends it.
        """
        key, index, end = record.key, record.modify_index or 0, time.monotonic() + seconds
        if not travels_in_url(key):
            return False
        while (left := end - time.monotonic()) > 0:
            self._patience.check()
            try:
                found = self._consul.kv.read(key, index=index, wait=f"{left:.2f}s", timeout=WATCH_GRACE)
            except ValueError:  # a key that only transactions carry
                return False
            if found is None or found.session is None or found.session != record.session:
                break
            index = found.modify_index or 0
        return True

    def ask(self, call: Callable[[Consul, float], T]) -> T:
        """Any read.

        :param call: takes the client, and the seconds that are left
        """
        return self._read(lambda left: call(self._consul, left))

    def ask_once(self, call: Callable[[Consul, float], T], most: float) -> T:
        """Any read, that is not repeated and has at most so many seconds."""
        self._patience.check()
        return call(self._consul, min(most, self._patience.remaining()))

    # -- writes ----------------------------------------------------------------------------------------------

    def store(self, key: str, value: bytes, flags: int, index: int, session: Optional[str] = None) -> Record:
        """Set a key that still has ModifyIndex `index` (0: that does not exist).

        :param session: only while this one holds the key's lock
        :raises StaleIndex: it has another, or another session
        :raises Uncertain: it may have been stored
        """
        limit = self.txn_limit
        return self._write(
            lambda left: self._consul.kv.store(key, value, flags, index, session, timeout=left, txn_limit=limit)
        )

    def transaction(self, operations: Sequence[Operation], body: Optional[bytes] = None) -> list[dict[str, Any]]:
        """Apply all or none.

        :raises Uncertain: it may have been applied
        """
        return self._write(lambda left: self._consul.txn.execute(operations, body, timeout=left))

    def settle(self, operations: Sequence[Operation], applied: Callable[[], bool]) -> list[dict[str, Any]]:
        """Apply all or none, and be certain of it.

        :param applied: looks whether it was done, asked after an answer that never came
        :return: what the transaction told; nothing where that never came
        """
        while True:
            try:
                with self._patience.steadfast():
                    return self.transaction(operations)
            except Uncertain as error:
                log.debug("looking whether it was applied: %s", error)
                if applied():
                    return []
                self._patience.sleep(0.05)

    # -- sessions --------------------------------------------------------------------------------------------

    def create_session(self, name: str, behavior: str, ttl: float, delay: float) -> str:
        """A session that lasts as long as it is renewed: no health check ends it, so that one that flaps frees no lock.

        :raises Uncertain: it may have been made
        """
        return self._write(
            lambda left: self._consul.session.create(
                name, behavior, delay=f"{delay:g}s", ttl=f"{ttl:g}s", node_checks=(), timeout=left
            )
        )

    def renew_session(self, session: str) -> None:
        """Begin a session's TTL anew.

        :raises UnknownSession: the server that was asked knows of none
        """
        self._read(lambda left: self._consul.session.renew(session, timeout=left))

    def session(self, session: str) -> Optional[dict[str, Any]]:
        """A session as a majority of the servers has it, or None where there is none."""
        return self._read(lambda left: self._consul.session.info(session, consistency="consistent", timeout=left))

    def sessions_named(self, name: str) -> list[str]:
        """The sessions of this name, as a majority of the servers has them."""
        found = self._read(lambda left: self._consul.session.list(consistency="consistent", timeout=left))
        return [each["ID"] for each in found if each.get("Name") == name]

    def destroy_session(self, session: str) -> None:
        """End a session; there need not be one."""
        self._read(lambda left: self._consul.session.destroy(session, timeout=left))

    # -- rights ----------------------------------------------------------------------------------------------

    def may_write(self, key: str) -> bool:
        """Whether the token may write a key: `echo x > key` in a shell sees the error of open(2), not of close(2)."""
        if not self.acl_enabled:
            return True
        with self._rights_lock:
            known = self._rights.get(key)
        if known is None:
            known = self._read(lambda left: self._ask_right(key, left))
            with self._rights_lock:
                self._rights[key] = known
        return known

    def forget_rights(self) -> None:
        """After a write was refused although it had been allowed: the policies have changed."""
        with self._rights_lock:
            self._rights.clear()

    def _ask_right(self, key: str, left: float) -> bool:
        try:
            return self._consul.acl.authorize([("key", "write", key)], timeout=left)[0]
        except ACLDisabled:
            return True
        except (NotFound, BadAnswer):  # an old server; or a proxy that lets no internal path through, and shows a page
            pass
        try:
            self._consul.kv.store(key, b"", 0, IMPOSSIBLE_INDEX, timeout=left)
        except StaleIndex:
            return True
        except Forbidden:
            return False
        raise AssertionError("a compare-and-set with an impossible index succeeded")

    # -- retries ---------------------------------------------------------------------------------------------

    def _read(self, ask: Callable[[float], T]) -> T:
        return self._repeat(ask, lambda error: True)

    def _write(self, ask: Callable[[float], T]) -> T:
        try:
            # Some of the time is kept: after no answer there is still a look to be taken at what was applied.
            return self._repeat(lambda left: ask(left * WRITE_SHARE), _certainly_not_applied)
        except Forbidden:
            self.forget_rights()
            raise
        except (RequestError, ServerError) as error:
            if _certainly_not_applied(error):
                raise
            raise Uncertain(str(error)) from error

    def _repeat(self, ask: Callable[[float], T], may_repeat: Callable[[ConsulateException], bool]) -> T:
        """Ask until there is an answer, with growing pauses, while the operation's time lasts."""
        pause = 0.02
        failure: Optional[ConsulateException] = None
        while True:
            left = self._patience.remaining()
            if left <= 0:
                raise failure or OutOfTime("no answer in time")
            try:
                return ask(left)
            except (RequestError, ServerError, ClientError) as error:
                if not _passing(error) or not may_repeat(error):
                    raise
                if self._patience.remaining() <= pause:
                    raise
                log.debug("trying again: %s", error)
                failure = error
            with contextlib.suppress(OutOfTime):  # what it was that failed says more
                self._patience.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, 1.0)


def _passing(error: ConsulateException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, (RequestError, ServerError)):
        return not isinstance(error, AnswerTimeout)
    return isinstance(error, ClientError) and error.status == 429


def _certainly_not_applied(error: ConsulateException) -> bool:
    """Whether a write that failed so cannot have reached the Raft log."""
    if isinstance(error, ServerError):
        return isinstance(error, NoLeader)
    return isinstance(error, (ConnectFailed, ClientError))
