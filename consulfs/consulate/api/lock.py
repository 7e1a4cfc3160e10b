"""A lock on a key for the time of a `with` block, with a session of its own that is kept alive meanwhile.

What Consul promises and what it does not: https://www.consul.io/docs/dynamic-app-config/sessions
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, Optional

from consulfs.consulate.adapters import Request
from consulfs.consulate.api.base import Endpoint
from consulfs.consulate.api.kv import KV, Taken, fitting
from consulfs.consulate.api.session import Session
from consulfs.consulate.exceptions import (
    ClientError,
    ConnectFailed,
    ConsulateException,
    LockFailure,
    RateLimited,
    RequestError,
    ServerError,
    UnknownSession,
)

log = logging.getLogger(__name__)

PREFIX = "consulate/locks/"

DEFAULT_TTL = 15
"""Seconds; Consul's own `consul lock` has the same."""

MIN_TTL, MAX_TTL = 10, 86400
"""Seconds; what Consul takes as a session's TTL."""

RENEWALS = 3
"""Renewals in the time of a TTL."""

PAUSE = 1.0
"""Seconds until a renewal that failed is tried again."""

PAUSES = (2.7, 0.9, 0.3, 0.1)
"""Seconds between the attempts to give a lock back and to end its session, from the last to the first."""


class Hold:
    """A lock that is held; what `with lock.acquire() as hold` gives.

    :ivar key: the locked key, prefix included
    :ivar session: the ID of the session that holds it
    :ivar ttl: seconds after the last renewal when the servers may give the lock to others
    """

    def __init__(self, key: str, session: str, ttl: float, asked: float) -> None:
        self.key = key
        self.session = session
        self.ttl = ttl
        self._lock = threading.Lock()  # owns _expires
        self._expires = asked + ttl
        self._taken: Optional[Taken] = None
        self._pauses = list(PAUSES)  # shared by all that is done at the end
        self._process = os.getpid()

    @property
    def lost(self) -> bool:
        """Whether others may have the lock now: the session is gone, or could not be renewed within its TTL.

        In a forked child it is: the lock is the parent's.
        """
        if not self._is_ours:
            return True
        with self._lock:
            return time.monotonic() >= self._expires

    @property
    def _is_ours(self) -> bool:
        """Whether this process took the lock, and not the one that it was forked from."""
        return os.getpid() == self._process

    def _renewed(self, asked: float) -> None:
        with self._lock:
            self._expires = asked + self.ttl

    def _note(self, taken: Taken) -> None:
        if taken.after.modify_index is None:  # not yet sent: what cannot be put back is not locked
            fitting(self.key, taken.undoing(0))
        self._taken = taken

    def _lose(self) -> None:
        with self._lock:
            self._expires = 0.0

    def __repr__(self) -> str:
        return f"<Hold {self.key}{' lost' if self.lost else ''}>"


class Lock(Endpoint):
    """Locks on keys below a prefix, "consulate/locks/" unless changed. One object serves several threads.

    :param session: creates, renews and destroys the sessions
    """

    def __init__(
        self,
        uri: str,
        adapter: Request,
        session: Session,
        datacenter: Optional[str] = None,
        token: Optional[str] = None,
    ) -> None:
        super().__init__(uri, adapter, datacenter, token)
        self._kv = KV(uri, adapter, datacenter, token)
        self._session = session
        self._ttl: float = DEFAULT_TTL
        self._prefix = PREFIX
        self._held = threading.local()

    @property
    def ttl(self) -> float:
        """Seconds that a lock outlives this process if it is killed, 10 to 86,400; in truth up to twice that.

        :raises ValueError: when it is set to anything else
        """
        return self._ttl

    @ttl.setter
    def ttl(self, value: float) -> None:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and MIN_TTL <= value <= MAX_TTL):
            raise ValueError(f"a lock's ttl is a number of seconds from {MIN_TTL} to {MAX_TTL}, not {value!r}")
        self._ttl = value

    @property
    def key(self) -> Optional[str]:
        """The key that this thread has locked, the last where there are several; None outside of `acquire`."""
        holds = [hold for hold in self._holds() if hold._is_ours]
        return holds[-1].key if holds else None

    def prefix(self, value: str) -> None:
        """Put another prefix before the keys of later calls; "" for none. A slash at its end is added.

        :param value: such as "locks/"
        """
        self._prefix = value.rstrip("/") + "/" if value else ""

    @contextmanager
    def acquire(self, key: Optional[str] = None, value: Any = None) -> Iterator[Hold]:
        """Hold the lock while the block runs. It is tried once and given back whatever happens.

        What becomes of the key, by what it was when it was locked:

        ======================================  ===================================================
        there was none, or an empty one         deleted at the end
        it had a value or flags                 unlocked at the end, with that value and those flags
        somebody wrote to it during the block   unlocked, and stays as it was written then
        the lock was lost                       left alone: it is others' now
        ======================================  ===================================================

        What a killed process left as its `value` is such a value to the next that takes the lock.

        A child that was forked within the block does not hold the lock, and gives nothing back where it leaves it.

        :param key: the key below the prefix; a new one is made up for None
        :param value: stored in the key meanwhile, for others to see; what is not a string is stored as JSON
        :raises ValueError: the key is empty
        :raises LockFailure: somebody else holds it; or, at the end, it was lost while the block ran
        :raises TooLarge: the value, or the one to be put back, does not fit into a transaction (about 390 KB)
        """
        name = self._name(key)
        asked, ttl = time.monotonic(), self.ttl
        session = self._session.create(name=f"lock {name}", ttl=f"{ttl}s")
        hold = Hold(name, session, ttl, asked)
        try:
            self._take(hold, value)
            try:
                with self._kept_alive(hold):
                    yield hold
            finally:
                held = self._give_back(hold)
        finally:
            self._end(hold)
        if not held:
            raise LockFailure(f"{name}: the lock was lost before the end; another may have held it meanwhile")

    def _name(self, key: Optional[str]) -> str:
        if key is None:
            key = str(uuid.uuid4())
        elif not key.strip("/"):  # such as a variable that was never set: with a key of its own, nobody is excluded
            raise ValueError(f"{key!r} is no key to lock; None makes one up")
        return (self._prefix + key).lstrip("/")

    def _holds(self) -> list[Hold]:
        if not hasattr(self._held, "stack"):
            self._held.stack = []
        stack: list[Hold] = self._held.stack
        return stack

    def _take(self, hold: Hold, value: Any) -> None:
        """Lock the key once."""
        try:
            taken = self._kv._take(hold.key, hold.session, value, note=hold._note)
        except ClientError:  # refused: nothing was done
            raise
        except BaseException:  # perhaps it was done; a key that its session leaves would have its lock-delay
            self._give_back(hold)
            raise
        if not taken:
            now = self._kv.read(hold.key)
            holder = f"held by session {now.session}" if now and now.session else "free, but its lock-delay runs"
            raise LockFailure(f"{hold.key}: the lock is {holder}")

    @contextmanager
    def _kept_alive(self, hold: Hold) -> Iterator[None]:
        """The hold is this thread's, and its session is renewed by another."""
        done = threading.Event()
        renewer = threading.Thread(target=self._renew, args=(hold, done), name="consulate-lock", daemon=True)
        renewer.start()
        self._holds().append(hold)
        try:
            yield
        finally:
            self._holds().remove(hold)
            if hold._is_ours:  # a forked child has no such thread
                done.set()
                renewer.join(hold.ttl / RENEWALS)  # it may wait for an answer that never comes

    def _renew(self, hold: Hold, done: threading.Event) -> None:
        pause = hold.ttl / RENEWALS
        while not done.wait(pause):
            asked, pause = time.monotonic(), PAUSE
            try:
                self._session.renew(hold.session, timeout=self._patience(hold))
                hold._renewed(asked)
                pause = hold.ttl / RENEWALS
            except UnknownSession:
                if self._is_gone(hold) and not done.is_set():
                    log.error("%s: the lock's session is gone", hold.key)
                    hold._lose()
                    return
            except ConsulateException as error:
                log.warning("%s: the lock's session was not renewed: %s", hold.key, error)

    def _is_gone(self, hold: Hold) -> bool:
        """Whether the leader itself says that there is no such session.

        A renewal looks the session up in the state that the server has read so far, which just after its start may be
        one of before the session was made.
        """
        try:
            return self._session.info(hold.session, consistency="consistent", timeout=self._patience(hold)) is None
        except ConsulateException as error:
            log.warning("%s: the lock's session was not found out about: %s", hold.key, error)
            return False

    def _patience(self, hold: Hold) -> float:
        """Seconds to wait for an answer; one that comes not at all leaves time to ask again within the TTL."""
        usual = getattr(self._adapter, "timeout", None)  # an adapter of one's own need not have it
        return min(hold.ttl / RENEWALS, math.inf if usual is None else usual)

    def _give_back(self, hold: Hold) -> bool:
        """Undo what locking did to the key; False where the lock had been lost."""
        taken = hold._taken
        if taken is None or not hold._is_ours:
            return True

        def undo(doubtful: bool) -> bool:
            # Where it may have been undone already, that nothing is held is no loss, unless the session is gone too.
            return self._kv._undo(taken, timeout=self._patience(hold)) or (doubtful and not self._is_gone(hold))

        try:
            return self._insist(hold, undo)
        except UnknownSession:
            return False
        except ConsulateException as error:
            # The work of the block is done; the session's TTL frees the lock if destroying it fails too.
            log.warning("%s: not unlocked: %s", hold.key, error)
            return not hold.lost

    def _end(self, hold: Hold) -> None:
        if not hold._is_ours:
            return
        try:
            self._insist(hold, lambda _: self._session.destroy(hold.session, timeout=self._patience(hold)))
        except ConsulateException as error:
            log.warning("%s: its session %s stays until its TTL ends: %s", hold.key, hold.session, error)

    def _insist(self, hold: Hold, step: Callable[[bool], bool]) -> bool:
        """A step that may be done twice; done again if no good answer came, until the TTL or the pauses are over.

        :param step: is told whether it may have been done already
        """
        doubtful = False
        while True:
            try:
                return step(doubtful)
            except (RequestError, ServerError, RateLimited) as error:
                if hold.lost or not hold._pauses:
                    raise
                doubtful = doubtful or not isinstance(error, (ConnectFailed, RateLimited))
            time.sleep(hold._pauses.pop())
