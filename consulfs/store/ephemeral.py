"""Ephemeral keys: tied to the life of this mount, deleted when it ends or its host dies.

What becomes of a key when its session is lost is the session's choice, not the key's: release or delete. A key has one
session at a time, and a locked file may not vanish with its lock. So a mount has two sessions, and ephemeral keys are
locked by the second, whose behavior is delete. While one is flocked on this mount it keeps that session, which shuts
out every other host just as well; a key that is locked already changes hands in one transaction, both ways.

Owner of `_tied` and `_doubtful`: `Ephemeral._lock`, never held across a request.
"""

from __future__ import annotations

import errno
import logging
import threading
from typing import Optional

from consulfs.consulate import ConsulateException, Record, StaleIndex, UnknownSession
from consulfs.consulate.api.txn import operation
from consulfs.errors import Interrupted, OutOfTime
from consulfs.store.backend import Backend, Uncertain
from consulfs.store.openfiles import OpenFiles
from consulfs.store.patience import Patience
from consulfs.store.posts import Posts
from consulfs.store.sessionlock import Refused, SessionLock
from consulfs.store.sessions import KeptSession
from consulfs.store.tenure import Tenure

log = logging.getLogger(__name__)


class Ephemeral:
    """The keys that are tied to this mount."""

    def __init__(
        self,
        backend: Backend,
        files: OpenFiles,
        patience: Patience,
        posts: Posts,
        lock: SessionLock,
        session: KeptSession,
        locks_session: KeptSession,
    ) -> None:
        self._backend = backend
        self._files = files
        self._patience = patience
        self._posts = posts
        self._session_lock = lock
        self._session = session
        self._locks_session = locks_session
        self._lock = threading.Lock()
        self._tied: set[str] = set()
        self._doubtful: set[str] = set()  # to be tied or untied, and nobody knows: such a key is not to be deleted
        session.listen(self._lost)
        files.listen(on_removed=self._certain)

    def is_tied(self, record: Record) -> bool:
        """Whether a key ends with a mount, this one or another's."""
        if record.session is None:
            return False
        if record.session == self._session.current:
            return True
        found = self._backend.session(record.session)
        return found is not None and found.get("Behavior") == "delete"

    def tie(self, key: str) -> None:
        """Let a key end with this mount.

        :raises OSError: EBUSY where another has its lock, or its lock-delay runs; ENOLCK where its value is too large
            for the transaction, ESTALE where it was deleted
        """
        session = self._session.get()
        try:
            self._tie(key, session)
        except UnknownSession:
            self._session.check(session)  # it was lost, and nobody knew yet
            self._tie(key, self._session.get())

    def _tie(self, key: str, session: str) -> None:
        with self._files.turns.take(key):
            self._settle(key)
            tenure = self._posts.tenure(key)
            with self._lock:
                self._doubtful.add(key)
            record = None
            if tenure is not None and not tenure.lost and tenure.session != session:
                record = self._hand_over(key, tenure, session)
                if record is None:
                    tenure.lose()
            if record is None:
                try:
                    got = self._session_lock.take(key, session, {session})
                    if isinstance(got, Refused):
                        raise OSError(errno.EBUSY, f"locked by session {got.record.session}")
                except OSError:  # nothing was sent, or it was refused
                    self._certain(key)
                    raise
            self._certain(key, tied=True)

    def untie(self, key: str) -> bool:
        """Let a key stay; False where it is not tied.

        :raises OSError: EBUSY where it is tied to another mount, ENOLCK where its value is too large
        """
        try:
            return self._untie(key)
        except UnknownSession:
            heir = self._locks_session.current
            if heir is not None:
                self._locks_session.check(heir)  # it was lost, and nobody knew yet
            return self._untie(key)

    def _untie(self, key: str) -> bool:
        with self._files.turns.take(key):
            self._settle(key)
            record = self._session_lock.holder(key)
            if record is None or not self.is_tied(record):
                self._certain(key)
                return False
            if record.session is None or record.session != self._session.current:
                raise OSError(errno.EBUSY, f"tied to another mount, by session {record.session}")
            with self._lock:
                self._doubtful.add(key)
            tenure = self._posts.tenure(key)
            if tenure is None:
                self._session_lock.give(key, record.session)
            else:
                self._hand_over(key, tenure, self._locks_session.get())
            self._certain(key)
            return True

    def _hand_over(self, key: str, tenure: Tenure, heir: str) -> Optional[Record]:
        """Let this mount's other session have the lock of a key that is locked here; None where it is lost."""
        try:
            record = self._session_lock.hand_over(key, tenure.session, heir)
        except OSError:  # too large: nothing was sent
            self._certain(key, tied=tenure.session == self._session.current)
            raise
        except BaseException:
            self._posts.doubt(key)
            raise
        if record is not None:
            tenure.session = heir
        return record

    def _settle(self, key: str) -> None:
        """What an earlier call sent, and had no answer to, is not to come after what this one does."""
        with self._lock:
            doubtful = key in self._doubtful
        if doubtful:
            self._posts.settle(key)

    def _lost(self, session: str) -> None:
        """The servers have ended the session, and with it the keys."""
        with self._lock:
            keys, self._tied = sorted(self._tied), set()
        if keys:
            log.error("session %s was lost, and these keys with it: %s", session, ", ".join(map(repr, keys)))

    def end(self) -> None:
        """The mount ends, and these keys with it."""
        with self._lock:
            tied, doubtful = sorted(self._tied - self._doubtful), sorted(self._doubtful)
        session = self._session.current
        if session is not None:
            for key in doubtful + tied:
                try:
                    if key in doubtful:
                        self._session_lock.give(key, session)
                    else:
                        self._delete(key, session)
                except (ConsulateException, Uncertain, OutOfTime, Interrupted, OSError) as error:
                    log.warning("%r: an ephemeral key that ends with the session's TTL: %s", key, error)
        for each in (self._session, self._locks_session):
            self._patience.begin_last()
            each.end()

    def _delete(self, key: str, session: str) -> None:
        try:
            check = operation("check-session", key, session=session)
            self._backend.transaction([check, operation("delete", key)])
        except StaleIndex:
            pass  # somebody has deleted it, and another may stand there

    def _certain(self, key: str, tied: bool = False) -> None:
        """Whether a key is tied is known: after a call that was answered, or since the key is deleted."""
        with self._lock:
            self._doubtful.discard(key)
            (self._tied.add if tied else self._tied.discard)(key)
