"""One key's lock in Consul: take it, give it back, hand it to another session, wait for it.

Consul's own `?acquire` and `?release` write the request's body and flags: an empty body wipes the value (measured on
1.8.7). So a lock changes hands in a transaction that checks the key's index and writes what stands there.

Each of these steps is certain when it returns. Where it raises, it may have been done or may be yet, late; it is to be
repeated then, before anything else is done with this lock: the repeated step changes the index that a late one expects.
Where it has nothing to change, `outdate` does.
"""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Callable, Optional, Union

from consulfs.consulate import ClientError, Record, StaleIndex, TransactionFailed
from consulfs.consulate.api.kv import NOT_NOW
from consulfs.consulate.api.records import record_of
from consulfs.consulate.api.txn import Operation, encode, operation
from consulfs.store.backend import Backend, Uncertain
from consulfs.store.cache import Missing
from consulfs.store.patience import Patience
from consulfs.store.records import Records

WATCHES = 32
"""Locks that are waited for by blocking queries at once; an agent admits 200 connections of one address."""

WAIT = 30.0
"""Seconds that such a query waits."""

GLANCE = 1.0
"""Seconds between two looks where no query can wait: a lock-delay ends without a word (measured on 1.8.7)."""


@dataclass(frozen=True)
class Refused:
    """The lock is not to be had now.

    :ivar record: of the key; its session, if it has one, is the holder
    """

    record: Record


class SessionLock:
    """Locks in Consul. The caller has the turn at the key, but for `wait`."""

    def __init__(self, backend: Backend, records: Records, patience: Patience) -> None:
        self._backend = backend
        self._records = records
        self._patience = patience
        self._room = threading.BoundedSemaphore(WATCHES)

    def take(self, key: str, session: str, mine: Container[str], doubtful: bool = False) -> Union[Record, Refused]:
        """Lock a key; one that a session of this mount holds already is as good.

        :param mine: the IDs of this mount's sessions
        :param doubtful: whether this was tried before, and may be done yet
        :return: the record, as it is under the lock
        :raises OSError: ESTALE where there is no such key any more, ENOLCK where its value is too large for it
        :raises UnknownSession: there is no such session, or the server has not heard of it yet
        """
        known = self._known(key)
        sure, repeated = False, doubtful
        while True:
            if known is None or (known.session is not None and not sure):
                try:
                    known, sure = self._look(key), True
                except ClientError as error:
                    if doubtful and not repeated:
                        raise Uncertain(f"it may be locked: {error}") from error
                    raise
            if known.session in mine:
                return known
            if known.session is not None:
                return Refused(known)
            try:
                return self._exchange(known, [operation("lock", key, known.value, known.flags, session=session)])
            except StaleIndex:
                self._patience.sleep(random.uniform(0, 0.005))
            except TransactionFailed as error:
                if not any(words.endswith(NOT_NOW) for _, words in error.errors):
                    raise
                if not doubtful:
                    return Refused(known)
                # A lock-delay refuses one that would be let in later, when nobody may want it any more.
                if len(known.value) > self._backend.lock_limit(key) // 2:
                    raise Uncertain("the value is too large to be written twice") from error
                return Refused(self.outdate(key) or self._look(key))
            except Uncertain:
                doubtful = True
                self._patience.sleep(random.uniform(0, 0.05))
            known = None

    def give(self, key: str, session: str) -> Optional[Record]:
        """Unlock a key; the record, or None where the session did not hold it."""
        return self.hand_over(key, session, None)

    def hand_over(self, key: str, session: str, heir: Optional[str]) -> Optional[Record]:
        """Let another session have a key's lock, without a moment in which it is free; None for nobody.

        :return: the record; None where the session did not hold it
        :raises OSError: ENOLCK where its value is too large for the transaction
        """
        known = self._known(key, held=True)
        while True:
            if known is None or known.session != session:
                known = self.holder(key)
                if known is None or known.session != session:
                    return known if known is not None and heir is not None and known.session == heir else None
            steps = [operation("unlock", key, known.value, known.flags, session=session)]
            if heir is not None:
                steps.append(operation("lock", key, known.value, known.flags, session=heir))
            done = self._attempt(known, steps)
            if done is not None:
                return done
            known = None

    def outdate(self, key: str) -> Optional[Record]:
        """Change a key's index and nothing else: what was sent before does nothing if it arrives now.

        :return: the record, or None where there is none
        :raises OSError: ENOLCK where the value, which goes in twice, is too large
        """
        while True:
            known = self.holder(key)
            if known is None:
                return None
            # What is the same as before would keep its index.
            steps = [operation("set", key, known.value, flags) for flags in (known.flags ^ 1, known.flags)]
            done = self._attempt(known, steps)
            if done is not None:
                return done

    def holder(self, key: str) -> Optional[Record]:
        """The record, as a majority of the servers has it."""
        return self._records.fresh(key, consistent=True)

    def wait(self, record: Record, given_up: Callable[[], bool]) -> None:
        """Wait until a key's lock may be free.

        :param given_up: whether nobody waits any more
        """
        with self._patience.until(given_up):
            seconds = GLANCE if record.session is None else WAIT
            if record.modify_index is not None and self._room.acquire(blocking=False):
                try:
                    if self._backend.watch(record, seconds):
                        return
                finally:
                    self._room.release()
            self._patience.sleep(GLANCE)

    def _known(self, key: str, held: bool = False) -> Optional[Record]:
        """What is remembered of a key: the index tells whether it is still so.

        :param held: it is locked: then others hardly ever change it, however long ago it was read
        """
        known = self._records.cache.last(key) if held else self._records.cache.record(key)
        return None if isinstance(known, Missing) or known is None or known.modify_index is None else known

    def _look(self, key: str) -> Record:
        record = self.holder(key)
        if record is None:
            raise OSError(errno.ESTALE, "deleted by another host")
        return record

    def _attempt(self, known: Record, steps: Sequence[Operation]) -> Optional[Record]:
        """Run steps; None, after a moment, where the key is another by now, or nobody knows whether they were done."""
        try:
            return self._exchange(known, steps)
        except StaleIndex:
            self._patience.sleep(random.uniform(0, 0.005))
        except Uncertain:
            self._patience.sleep(random.uniform(0, 0.05))
        return None

    def _exchange(self, known: Record, steps: Sequence[Operation]) -> Record:
        """Run steps on a key that still is what was read; the record as it is then."""
        operations = [operation("check-index", known.key, index=known.modify_index), *steps]
        body = encode(operations)
        if len(body) > self._backend.txn_limit:
            raise OSError(errno.ENOLCK, f"{known.key!r}: too large to be locked without the risk of losing a write")
        record = record_of(self._backend.transaction(operations, body)[-1], known.value)
        self._records.cache.stored(record)
        return record
