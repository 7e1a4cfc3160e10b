"""flock and fcntl locks: this mount's programs among themselves, all of them under Consul's lock of the key.

A file that somebody has locked, or waits to, has a `Post`: its table of claims, the queue of those who wait, and the
mount's `Tenure`. As long as there is something to do for a post, a thread of its own does it: it takes the key's lock
in Consul, lets those in whose turn it is, and gives the lock back when nobody wants it. The programs' threads only
wait for their claim to be granted or refused, so that a signal can end each of them at any time.

A claim is granted only when the servers have just said that this mount's session holds the key: no clock is trusted.

Owner of all posts, and of what they hold: `Locks._lock`, never held across a request or a call into the kernel. A step
that changes a key's lock in Consul has the turn at the key (`turns.py`), as stores and deletes of it have.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import threading
import time
from typing import Callable, Optional

from consulfs.consulate import ClientError, ConsulateException, RateLimited, Record, UnknownSession
from consulfs.errors import Interrupted, LockLost, OutOfTime, WouldBlock
from consulfs.store.backend import Uncertain
from consulfs.store.locktable import END, Claim, LockOwner, LockTable, deadlocks, first_of
from consulfs.store.openfiles import Handle, OpenFiles
from consulfs.store.patience import SLICE, Patience
from consulfs.store.records import Records
from consulfs.store.sessionlock import Refused, SessionLock
from consulfs.store.sessions import KeptSession
from consulfs.store.tenure import Tenure

log = logging.getLogger(__name__)

PASSES, SPELL = 32, 1.0
"""So many of this mount's programs, or seconds, until another host has its turn, where one waits."""

ASIDE = 0.02
"""Seconds for which a mount stands aside then."""

STEP = 10.0
"""Seconds that a step may take until it is tried anew, however large `timeout=` is."""

PAUSE = 1.0
"""Seconds at most between two attempts while Consul does not answer."""

GHOST, UNSEEN = 1.0, 0.1
"""Seconds that LOCK_NB waits for a holder whose process is gone (the kernel tells of the last close afterwards, and
with a 3 ms unlock 59 of 100 `flock -n` in a row failed: measured); and for one of which that cannot be seen."""

LOOK, SLOWEST_LOOK = 0.0005, 0.5
"""Seconds between a waiter's looks for signals: so many for each waiter that there is, up to the second of the two."""


class Waiter:
    """A claim that waits to be granted.

    :ivar ghosts: claims that block it, and whose holder may be gone already; one that does not wait fails with others
    """

    def __init__(self, claim: Claim, handle: Handle, blocking: bool) -> None:
        self.claim = claim
        self.handle = handle
        self.blocking = blocking
        self.ghosts: list[Claim] = []
        self.done = threading.Event()
        self.error: Optional[BaseException] = None

    def settle(self, error: Optional[BaseException] = None) -> None:
        self.error = error
        self.done.set()


class Post:
    """A file that is locked here, or is to be.

    :ivar barred: Consul has refused the lock, and the worker waits until it may be free
    :ivar unsure: a step whose answer never came, and which is to be repeated before any other
    :ivar trouble: why the last step failed
    :ivar removed: the key was deleted here: what is locked is a file without a name
    """

    def __init__(self, key: str, lock: threading.Lock) -> None:
        self.key = key
        self.changed = threading.Condition(lock)
        self.table = LockTable()
        self.waiters: list[Waiter] = []
        self.tenure: Optional[Tenure] = None
        self.working = False
        self.barred = False
        self.unsure: Optional[Callable[[Post], None]] = None
        self.trouble: Optional[BaseException] = None
        self.removed = False
        self.passes, self.since = 0, 0.0

    @property
    def is_idle(self) -> bool:
        return not (self.table or self.waiters or self.tenure or self.unsure or self.working)

    @property
    def has_had_its_turn(self) -> bool:
        return self.passes >= PASSES or time.monotonic() - self.since >= SPELL


class Locks:
    """All locks of a mount.

    :param session: that of the locks
    :param ephemeral: that of the keys which are tied to this mount; it holds their locks anyway
    :param most: locks that may be waited for at once
    """

    def __init__(
        self,
        files: OpenFiles,
        records: Records,
        patience: Patience,
        lock: SessionLock,
        session: KeptSession,
        ephemeral: KeptSession,
        most: int,
    ) -> None:
        self._files = files
        self._records = records
        self._patience = patience
        self._session_lock = lock
        self._session = session
        self._ephemeral = ephemeral
        self._most = most
        self._lock = threading.Lock()
        self._posts: dict[str, Post] = {}
        self._lost: dict[LockOwner, int] = {}  # who has lost a lock and was not told so, and through which handle
        self._waiting = 0
        self._ended = False
        session.listen(self.session_lost)
        ephemeral.listen(self.session_lost)

    # -- what programs ask for -------------------------------------------------------------------------------

    def acquire(self, handle: Handle, claim: Claim, blocking: bool) -> None:
        """Lock, or change what is locked.

        :raises OSError: EWOULDBLOCK where another has it and one is not to wait, EDEADLK, ENOLCK, ESTALE for a file
            that was deleted
        :raises LockLost: what this owner had locked before was lost meanwhile
        :raises Interrupted: a signal came first
        """
        self._tell_loss(handle, claim.owner)
        if handle.node.unsaved and (handle.node.base is None or not self._has_holder(handle)):
            self._files.store(handle.node)  # there is no lock on what is not there
        if handle.node.gone:
            raise OSError(errno.ESTALE, "deleted; there is no key to lock")
        entered = self._enter(handle, claim, blocking)
        if entered is not None:
            self._await(*entered)

    def release(self, handle: Handle, owner: LockOwner, start: int = 0, end: int = END, closing: bool = False) -> None:
        """Unlock. What was written is stored first, so that whoever locks next sees it.

        :param closing: a process closes a descriptor, or ends: no lock stays then because something cannot be stored.
            That stays fenced, and is stored only as long as this mount holds the key.
        :raises LockLost: it was lost meanwhile
        """
        self._tell_loss(handle, owner)
        with self._lock:
            post = self._posts.get(handle.node.key)
            if post is None or not post.table.holds(owner):
                return  # every close(2) comes here (measured), and costs nothing
        fence = None
        try:
            self._files.store(handle.node)
        except (OSError, ConsulateException, Uncertain, OutOfTime, Interrupted):
            if not closing:  # else close(2) itself has told it
                raise
            fence = handle.fence
        with self._lock:
            post.table.drop(owner, start, end)
            self._left(post, handle)
            handle.fence = handle.fence or fence
            self._await_return(post)

    def closed(self, handle: Handle) -> None:
        """A file description is closed: nothing is locked through it any more."""
        with self._lock:
            for owner in [owner for owner, number in self._lost.items() if number == handle.number]:
                del self._lost[owner]
            post = self._posts.get(handle.node.key)
            if post is None or not post.table.drop_handle(handle.number):
                return
            self._left(post, handle)
            self._await_return(post)

    def conflict(self, handle: Handle, claim: Claim) -> Optional[Claim]:
        """What would block a claim (F_GETLK); another host's is the whole file's, of process 0."""
        key = handle.node.key
        with self._lock:
            post = self._posts.get(key)
            if post is not None and (blockers := post.table.blockers(claim)):
                return first_of(blockers)
            if post is not None and post.tenure is not None:
                return None
        record = self._records.fresh(key)
        if record is None or record.session is None or record.session in self._mine:
            return None
        return Claim(LockOwner(True, 0), True, 0, 0)

    # -- what others tell ------------------------------------------------------------------------------------

    def removed(self, key: str) -> None:
        """This mount has deleted a key, and its lock with it. The caller has the turn at it."""
        with self._lock:
            post = self._posts.pop(key, None)
            if post is not None:
                post.removed, post.tenure, post.unsure = True, None, None
                self._refuse(post, OSError(errno.ESTALE, "deleted; there is no key to lock"))

    def session_lost(self, session: str) -> None:
        """The servers have ended one of this mount's sessions."""
        with self._lock:
            tenures = [post.tenure for post in self._posts.values() if post.tenure is not None]
        for tenure in tenures:
            if tenure.session == session:
                tenure.lose()

    def tenure(self, key: str) -> Optional[Tenure]:
        """This mount's hold on a key. The caller has the turn at it."""
        with self._lock:
            post = self._posts.get(key)
            return post.tenure if post is not None else None

    def doubt(self, key: str) -> None:
        """Nobody knows which of this mount's sessions holds a key, or will. The caller has the turn at it."""
        with self._lock:
            post = self._posts.get(key)
            if post is not None and post.tenure is not None:
                post.unsure = self._settle
                self._drive(post)

    def settle(self, key: str) -> None:
        """End that doubt. The caller has the turn at the key."""
        record = self._session_lock.outdate(key)
        with self._lock:
            post = self._posts.get(key)
            if post is None or post.tenure is None:
                return
            tenure, post.unsure = post.tenure, None
        if record is None or record.session not in self._mine:
            tenure.lose()
        else:
            tenure.session = record.session

    def end(self) -> None:
        """The mount ends: give everything back."""
        with self._lock:
            self._ended = True
            for post in list(self._posts.values()):
                self._refuse(post, Interrupted())
                post.table.clear()
                self._drive(post)
            for post in list(self._posts.values()):
                self._await_return(post)

    # -- entering and waiting --------------------------------------------------------------------------------

    def _enter(self, handle: Handle, claim: Claim, blocking: bool) -> Optional[tuple[Post, Waiter]]:
        """Queue up; None where the claim could be granted at once."""
        with self._lock:
            if self._ended:
                raise Interrupted
            post = self._posts.get(handle.node.key)
            if post is None:
                post = self._posts[handle.node.key] = Post(handle.node.key, self._lock)
            had = post.table.holds(claim.owner)
            if had and not claim.owner.posix:
                post.table.drop(claim.owner)  # flock(2): a conversion removes the lock and then sets a new one
            blockers = post.table.blockers(claim)
            if had and not blockers and post.tenure is not None:
                post.table.grant(claim)
                self._drive(post)  # less than before may be locked now
                return None
            refusal = self._why_not(post, claim, blocking, blockers)
            if refusal is None:
                waiter = Waiter(claim, handle, blocking)
                waiter.ghosts = blockers
                post.waiters.append(waiter)
            if had and not post.table.uses(handle.number):
                handle.fence = None
            self._drive(post)
            if refusal is not None:
                raise refusal
            self._waiting += 1
            return post, waiter

    def _has_holder(self, handle: Handle) -> bool:
        """Whether another program here holds a lock on the file: it stores what it writes when it has finished."""
        with self._lock:
            post = self._posts.get(handle.node.key)
            return post is not None and any(claim.handle != handle.number for claim in post.table)

    def _why_not(self, post: Post, claim: Claim, blocking: bool, blockers: list[Claim]) -> Optional[OSError]:
        """Why a claim is not even to wait."""
        if not blocking:
            return WouldBlock() if post.barred else None
        if claim.owner.posix and blockers:
            waiting = [(w.claim, p.table.blockers(w.claim)) for p in self._posts.values() for w in p.waiters]
            if deadlocks(claim, blockers, waiting):
                return OSError(errno.EDEADLK, os.strerror(errno.EDEADLK))
        if self._waiting >= self._most:
            return OSError(errno.ENOLCK, f"{self._waiting} locks are waited for already")
        return None

    def _await(self, post: Post, waiter: Waiter) -> None:
        """Until the claim is granted or refused, or its program has had enough."""
        try:
            limit = time.monotonic() + (0.0 if waiter.blocking else self._grace(waiter))
            while True:
                if not waiter.blocking:
                    self._check_ghosts(post, waiter, limit)
                if waiter.done.wait(self._pause(waiter, limit)):
                    break
                self._patience.check_signals()
        except BaseException as error:
            with self._lock:
                if waiter in post.waiters:
                    post.waiters.remove(waiter)
                    self._drive(post)
                    waiter.settle(error)
        finally:
            with self._lock:
                self._waiting -= 1
        if waiter.error is not None:
            raise waiter.error

    def _pause(self, waiter: Waiter, limit: float) -> float:
        """Seconds until the next look for signals: a thousand waiters look seldom enough to leave the mount alone."""
        if waiter.blocking:
            return min(max(self._waiting * LOOK, SLICE), SLOWEST_LOOK)
        left = limit - time.monotonic()
        return min(left, SLICE) if left > 0 else SLICE

    def _grace(self, waiter: Waiter) -> float:
        """Seconds for which one that does not wait gives those who block it the time to vanish."""
        grace = GHOST
        for claim in waiter.ghosts:
            seen = None if claim.owner.posix else self._is_held_open(claim)
            if seen or claim.owner.posix:
                return 0.0
            grace = UNSEEN if seen is None else grace
        return grace

    def _is_held_open(self, claim: Claim) -> Optional[bool]:
        try:
            return self._files.seen_open(self._files.handle(claim.handle), claim.pid)
        except OSError:
            return False  # it is released by now

    def _check_ghosts(self, post: Post, waiter: Waiter, limit: float) -> None:
        """:raises OSError: EWOULDBLOCK: those who blocked it have not vanished; or Consul does not answer"""
        with self._lock:
            if waiter.done.is_set():
                return
            if time.monotonic() >= limit and post.table.blockers(waiter.claim):
                raise WouldBlock
        if self._patience.remaining() <= 0:
            raise post.trouble or OutOfTime("no answer in time")

    def _tell_loss(self, handle: Handle, owner: LockOwner) -> None:
        with self._lock:
            if owner not in self._lost:
                return
        self._files.restore(handle)
        with self._lock:
            self._lost.pop(owner, None)
        raise LockLost

    def _left(self, post: Post, handle: Handle) -> None:
        """Something was unlocked through a handle."""
        if not post.table.uses(handle.number):
            handle.fence = None
        self._drive(post)

    def _await_return(self, post: Post) -> None:
        """Until Consul has the lock back, where nobody here wants it: the next may be on another host, or be curl."""
        tenure = post.tenure
        try:
            while tenure is not None and post.tenure is tenure and not post.table and not post.waiters:
                post.changed.wait(SLICE)
                self._patience.check()
        except (Interrupted, OutOfTime):
            pass  # it is unlocked; the worker goes on until Consul knows it

    # -- the worker ------------------------------------------------------------------------------------------

    def _drive(self, post: Post) -> None:
        """Something has changed: see that somebody does what is to be done."""
        post.changed.notify_all()
        if not post.working and self._next(post) is not None:
            threading.Thread(target=self._work, args=(post,), name="lock", daemon=True).start()
            post.working = True
        elif post.is_idle and self._posts.get(post.key) is post:
            del self._posts[post.key]

    def _next(self, post: Post) -> Optional[Callable[[Post], None]]:
        """What is to be done for a post now."""
        if post.removed or post.unsure is not None:
            return post.unsure
        if post.tenure is None:
            return self._take if post.waiters else None
        if not post.table and (not post.waiters or post.has_had_its_turn):
            return self._give
        if any(not post.table.blockers(waiter.claim) for waiter in post.waiters):
            return self._confirm
        return None

    def _work(self, post: Post) -> None:
        """A post's thread, as long as there is something to do."""
        pause = SLICE
        while True:
            with self._lock:
                step = self._next(post)
                if step is None:
                    post.working = False
                    self._drive(post)
                    return
            self._patience.begin(STEP)
            if self._try(post, step):
                pause = SLICE
            else:
                with self._lock:
                    post.changed.wait(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, PAUSE)

    def _try(self, post: Post, step: Callable[[Post], None]) -> bool:
        """One step; False where it is to be tried again after a pause."""
        trouble: Optional[BaseException] = None
        final = False
        try:
            step(post)
        except Interrupted:
            pass  # nobody waits any more
        except UnknownSession as error:
            trouble = error
            with self._lock:
                post.unsure = None
        except Exception as error:
            trouble = error
            # Refused for good: nothing was done. All else may have been, or may be yet.
            final = isinstance(error, (OSError, ClientError)) and not isinstance(error, RateLimited)
            if not isinstance(error, (OSError, ConsulateException, OutOfTime, Uncertain)):
                log.exception("%r: the lock's thread failed", post.key)
        with self._lock:
            if trouble is not None and post.trouble is None and not final:
                log.warning("%r: its lock waits for Consul: %s", post.key, trouble)
            post.trouble = trouble
            if final and trouble is not None:
                post.unsure = None
                self._fail(post, trouble)
        return trouble is None

    def _fail(self, post: Post, error: BaseException) -> None:
        """A step was refused for good."""
        if post.tenure is not None and not post.table:
            log.error("%r: its lock is not given back, and stays until the session's end: %s", post.key, error)
            post.tenure = None
        self._refuse(post, error)

    # -- its steps -------------------------------------------------------------------------------------------

    def _take(self, post: Post) -> None:
        session = self._session.get()
        with self._files.turns.take(post.key):
            if post.removed:
                return
            doubtful, post.unsure = post.unsure is not None, self._take
            try:
                got = self._session_lock.take(post.key, session, self._mine, doubtful)
            except UnknownSession:
                self._session.check(session)
                raise
            post.unsure = None
            if isinstance(got, Record):
                self._arrive(post, got)
        if isinstance(got, Refused):
            self._stand_by(post, got)

    def _arrive(self, post: Post, record: Record) -> None:
        """The lock is this mount's. What others wrote while they had it must be seen now, in any file."""
        self._records.cache.forget_all()
        self._records.cache.stored(record)
        self._refresh(record)
        with self._lock:
            post.tenure = Tenure(post.key, record.session or "", self._lose)
            post.passes, post.since = 0, time.monotonic()
            self._let_in(post)

    def _stand_by(self, post: Post, refused: Refused) -> None:
        """Another has the lock, or nobody may have it yet."""
        with self._lock:
            post.barred = True
            self._refuse_impatient(post)
        try:
            if post.waiters:
                self._session_lock.wait(refused.record, lambda: not post.waiters)
        finally:
            post.barred = False

    def _confirm(self, post: Post) -> None:
        """Before the next program has its turn: whether the lock is this mount's still."""
        with self._files.turns.take(post.key):
            tenure = post.tenure
            record = self._session_lock.holder(post.key)
            if tenure is None or post.removed:
                return
            if record is None or record.session not in self._mine:
                tenure.lose()
                return
            tenure.session = record.session
            self._refresh(record)
            with self._lock:
                self._let_in(post)

    def _settle(self, post: Post) -> None:
        with self._files.turns.take(post.key):
            post.unsure = self._settle if post.tenure is not None and not post.removed else None
            if post.unsure is not None:
                self.settle(post.key)

    def _give(self, post: Post) -> None:
        with self._files.turns.take(post.key):
            tenure = post.tenure
            if tenure is not None and not post.removed and tenure.session != self._ephemeral.current:
                post.unsure = self._give
                record = self._session_lock.give(post.key, tenure.session)
                if record is not None:
                    self._refresh(record)
            with self._lock:  # lost meanwhile, or tied, which stays its own: there is nothing to give
                post.unsure = None
                post.tenure = None
                post.changed.notify_all()
        if post.waiters:
            self._patience.sleep(ASIDE * random.uniform(0.5, 1.0))

    def _refresh(self, record: Record) -> None:
        node = self._files.find(record.key)
        if node is not None:
            with node.state:
                node.refresh(record)

    def _let_in(self, post: Post) -> None:
        """Grant what can be granted, in the order in which it was asked for."""
        for waiter in list(post.waiters):
            if not post.table.blockers(waiter.claim):
                post.table.grant(waiter.claim)
                post.waiters.remove(waiter)
                waiter.handle.fence = post.tenure
                post.passes += 1
                waiter.settle()
        self._refuse_impatient(post)

    def _refuse_impatient(self, post: Post) -> None:
        """Those who do not wait, and whose turn it is not."""
        for waiter in list(post.waiters):
            if waiter.blocking:
                continue
            if post.barred or any(each not in waiter.ghosts for each in post.table.blockers(waiter.claim)):
                post.waiters.remove(waiter)
                waiter.settle(WouldBlock())

    def _refuse(self, post: Post, error: BaseException) -> None:
        """All who wait."""
        for waiter in post.waiters:
            waiter.settle(error)
        post.waiters.clear()

    def _lose(self, tenure: Tenure) -> None:
        """The servers have said that a tenure is over."""
        with self._lock:
            post = self._posts.get(tenure.key)
            if post is not None and post.tenure is tenure and post.unsure == self._settle:
                return  # perhaps this mount's other session has it
            tenure.lost = True
            if post is None or post.tenure is not tenure:
                return
            log.error(
                "%r: the lock of session %s was lost; what its holders write is refused", post.key, tenure.session
            )
            for claim in post.table.clear():
                self._lost[claim.owner] = claim.handle
            post.tenure = None
            self._drive(post)
        self._files.refuse_lost(tenure.key)

    @property
    def _mine(self) -> set[str]:
        """The sessions of this mount."""
        return {each for each in (self._session.current, self._ephemeral.current) if each is not None}
