"""A session of this mount: made when it is first needed, renewed by a thread of its own, ended with the mount.

It is lost only by the servers' word. A local clock would free the locks of a mount that lives, and whose session the
servers still have: they count a TTL from the last renewal that they saw, wait up to twice as long, and begin anew
with each leader. What is written under a lock is checked by them anyway.

Owner of everything here: `KeptSession._changed`, never held across a request.
"""

from __future__ import annotations

import errno
import logging
import threading
from typing import Callable, NoReturn, Optional

from consulfs import threads
from consulfs.consulate import ConsulateException, UnknownSession
from consulfs.errors import Interrupted, OutOfTime, Unlogged
from consulfs.store.backend import Backend, Uncertain
from consulfs.store.patience import Patience

log = logging.getLogger(__name__)

RENEWALS = 3
"""Renewals in the time of a TTL."""

NO_NODE = "Missing node registration"
"""Consul's words where a session's node is unknown: in the agent's own datacenter it is entered within a moment."""

PAUSE = 1.0
"""Seconds until a renewal that failed is tried again."""


class KeptSession:
    """One session at a time.

    :param name: of this session and of no other, so that one whose making was never answered is found again
    :param behavior: what becomes of its keys when it is lost: "release" or "delete"
    :param ttl: seconds that it outlives this mount where the host dies; up to twice that, in truth
    :param delay: seconds for which nobody gets its keys' locks when it is lost
    :param abroad: it is made in another datacenter than the agent's
    """

    def __init__(
        self,
        backend: Backend,
        patience: Patience,
        name: str,
        behavior: str,
        ttl: float,
        delay: float,
        abroad: bool = False,
    ) -> None:
        self._backend = backend
        self._patience = patience
        self.name = name
        self._behavior = behavior
        self._ttl = ttl
        self._delay = delay
        self._abroad = abroad
        self._listeners: list[Callable[[str], None]] = []
        self._changed = threading.Condition()
        self._id: Optional[str] = None
        self._making = False
        self._keeper: Optional[threading.Thread] = None
        self._used = False  # a session was asked for, and may be there
        self._ended = False
        self._refused = False  # and that was logged

    def listen(self, on_lost: Callable[[str], None]) -> None:
        """Have somebody told the ID of a session that is lost. Before the session is used."""
        self._listeners.append(on_lost)

    @property
    def current(self) -> Optional[str]:
        """The session's ID, where there is one."""
        with self._changed:
            return self._id

    def get(self) -> str:
        """The session's ID; it is made where there is none.

        :raises Forbidden: the token may make none
        :raises OSError: ENOLCK where no node of the datacenter can have one, or nobody can renew it
        """
        with self._changed:
            self._patience.wait(self._changed, lambda: not self._making)
            if self._id is not None:
                return self._id
            self._keeper = self._keeper or threads.begin("session", self._keep)
            if self._keeper is None:
                raise Unlogged(errno.ENOLCK, "nobody to renew a session")
            self._making = self._used = True
        made = None
        try:
            made = self._make()
        finally:
            with self._changed:
                self._making = False
                self._id = made
                self._changed.notify_all()
        return made

    def check(self, session: str) -> None:
        """See whether there is this session still; where there is not, whoever relies on it is told.

        A renewal and a lock look it up in the state that one server has read so far, which after its start may be one
        of before the session was made: so the leader itself is asked.
        """
        if self._backend.session(session) is not None:
            return
        with self._changed:
            if self._id == session:
                self._id = None
        for listener in self._listeners:
            listener(session)

    def end(self) -> None:
        """Destroy it. Its keys are given back before: those of a session that is destroyed have their lock-delay."""
        with self._changed:
            self._ended = True
            used, session, self._id = self._used, self._id, None
            self._changed.notify_all()
        if not used:
            return
        try:
            # Those too whose making was never answered.
            for each in {session, *self._backend.sessions_named(self.name)} - {None}:
                self._backend.destroy_session(str(each))
        except (ConsulateException, OutOfTime, Interrupted) as error:
            log.warning("session %s stays until its TTL ends: %s", session, error)

    def _make(self) -> str:
        found: list[str] = []
        while not found:
            try:
                return self._backend.create_session(self.name, self._behavior, self._ttl, self._delay)
            except Uncertain as error:
                if self._abroad and NO_NODE in str(error):
                    self._refuse(error)
                log.debug("looking whether the session was made: %s", error)
                found = self._backend.sessions_named(self.name)
        return found[0]

    def _refuse(self, cause: Uncertain) -> NoReturn:
        """A session is the agent's node's, which only the agent's own datacenter is sure to know."""
        if not self._refused:
            log.warning("no locks and no ephemeral keys: the datacenter has no node of the agent's name: %s", cause)
        self._refused = True
        raise Unlogged(errno.ENOLCK, "no node in this datacenter") from cause

    def _keep(self) -> None:
        """The keeper thread: renew until the mount ends."""
        pause, failing = self._ttl / RENEWALS, False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended, pause)
                session = self._id
            if self._ended:
                return
            pause = self._ttl / RENEWALS
            if session is None:
                continue
            self._patience.begin(self._ttl / RENEWALS)
            try:
                self._renew(session)
                if failing:
                    log.warning("Consul answers again: session %s was renewed, or is known to be lost", session)
                failing = False
            except (ConsulateException, OutOfTime) as error:
                if not failing:
                    log.warning("session %s was not renewed, which is tried each second: %s", session, error)
                pause, failing = PAUSE, True

    def _renew(self, session: str) -> None:
        try:
            self._backend.renew_session(session)
        except UnknownSession:
            self.check(session)
