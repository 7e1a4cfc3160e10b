"""Files that are locked here: each with its claims, its queue, and a thread that takes and gives its lock in Consul.

A file that somebody has locked, or waits to, has a `Post`: its table of claims, the queue of those who wait, and the
mount's `Tenure`. As long as there is something to do for a post, a thread of its own does it: it takes the key's lock
in Consul, lets those in whose turn it is, and gives the lock back when nobody wants it.

A claim that is more than its owner holds already is granted only when the servers have just said that this mount's
session holds the key: no clock is trusted.

Owner of all posts, and of what they hold: `Posts.lock`, never held across a request or a call into the kernel. A step
that changes a key's lock in Consul has the turn at the key besides (`turns.py`), as stores and deletes of it have: so
that a tenure begins, is given back and changes its session, and a step comes to be unsure, in turn. That a tenure is
lost may be learnt at any time.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import random
import threading
import time
from collections.abc import Iterator
from typing import Callable, Optional

from consulfs.consulate import ClientError, ConsulateException, RateLimited, Record, UnknownSession
from consulfs.errors import Interrupted, LockLost, OutOfTime, WouldBlock
from consulfs.store.backend import Uncertain
from consulfs.store.locktable import Claim, LockOwner, LockTable
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
        """It is granted, or refused."""
        self.error = error
        self.done.set()


class Post:
    """A file that is locked here, or is to be. Every method wants `Posts.lock`.

    :ivar changed: of that lock, notified of every change
    :ivar fenced: the handles through which something is locked
    :ivar barred: Consul has refused the lock, and the worker waits until it may be free
    :ivar unsure: a step whose answer never came, and which is to be repeated before any other
    :ivar trouble: why the last step failed
    :ivar removed: the key was deleted here: what is locked is a file without a name
    :ivar passes: the programs that were let in since the mount has the lock; `since` tells when that was
    """

    def __init__(self, key: str, lock: threading.Lock) -> None:
        self.key = key
        self.changed = threading.Condition(lock)
        self.table = LockTable()
        self.fenced: dict[int, Handle] = {}
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

    @property
    def may_let_in(self) -> bool:
        """Whether there is somebody whom no program of this mount keeps out."""
        return any(not self.table.blocks(waiter.claim) for waiter in self.waiters)

    def grant(self, claim: Claim, handle: Handle) -> None:
        """Enter a claim that nothing blocks."""
        self.table.grant(claim)
        handle.fence = self.tenure
        self.fenced[handle.number] = handle
        self.unfence()

    def unfence(self) -> None:
        """Through some handles nothing may be locked any more: what they write is anybody's."""
        for number, handle in list(self.fenced.items()):
            if not self.table.uses(number):
                handle.fence = None
                del self.fenced[number]

    def vacate(self) -> None:
        """The key is deleted: its locks are nothing, and those who wait for one are told."""
        self.table.clear()
        self.unfence()
        self.refuse(_stale())

    def let_in(self) -> None:
        """Grant what can be granted, in the order in which it was asked for."""
        for waiter in list(self.waiters):
            if not self.table.blocks(waiter.claim):
                self.waiters.remove(waiter)
                self.grant(waiter.claim, waiter.handle)
                self.passes += 1
                waiter.settle()
        self.refuse_impatient()

    def refuse_impatient(self) -> None:
        """Refuse those who do not wait, and whose turn it is not."""
        for waiter in list(self.waiters):
            if waiter.blocking:
                continue
            if self.barred or any(each not in waiter.ghosts for each in self.table.blockers(waiter.claim)):
                self.waiters.remove(waiter)
                waiter.settle(WouldBlock())

    def refuse(self, error: BaseException, owners: Optional[set[LockOwner]] = None) -> None:
        """Refuse all who wait, or those of them who are among these."""
        for waiter in [each for each in self.waiters if owners is None or each.claim.owner in owners]:
            self.waiters.remove(waiter)
            waiter.settle(error)


class Posts:
    """All posts of a mount, and their threads.

    :param session: that of the locks
    :param ephemeral: that of the keys which are tied to this mount; it holds their locks anyway
    """

    def __init__(
        self,
        files: OpenFiles,
        records: Records,
        patience: Patience,
        session_lock: SessionLock,
        session: KeptSession,
        ephemeral: KeptSession,
    ) -> None:
        self._files = files
        self._records = records
        self._patience = patience
        self._session_lock = session_lock
        self._session = session
        self._ephemeral = ephemeral
        self.lock = threading.Lock()
        self._posts: dict[str, Post] = {}
        self._on_lost: list[Callable[[list[Claim]], None]] = []
        session.listen(self._session_lost)
        ephemeral.listen(self._session_lost)
        files.listen(self._removed, self._moved)

    def listen(self, on_lost: Callable[[list[Claim]], None]) -> None:
        """Have somebody told, holding the lock, which claims were lost."""
        self._on_lost.append(on_lost)

    @property
    def sessions(self) -> set[str]:
        """The IDs of this mount's sessions."""
        return {each for each in (self._session.current, self._ephemeral.current) if each is not None}

    # -- the table; these want the lock ----------------------------------------------------------------------

    def __bool__(self) -> bool:
        return bool(self._posts)

    def __iter__(self) -> Iterator[Post]:
        return iter(list(self._posts.values()))

    @property
    def held(self) -> int:
        """The keys whose lock this mount has."""
        return sum(1 for post in self if post.tenure is not None)

    def get(self, key: str) -> Optional[Post]:
        """The post of a key, where there is one."""
        return self._posts.get(key)

    def at(self, key: str) -> Post:
        """The post of a key, a new one where there is none."""
        post = self._posts.get(key)
        if post is None:
            post = self._posts[key] = Post(key, self.lock)
        return post

    def drive(self, post: Post) -> None:
        """Something has changed: see that somebody does what is to be done."""
        post.changed.notify_all()
        if not post.working and self._next(post) is not None:
            try:
                threading.Thread(target=self._work, args=(post,), name="lock", daemon=True).start()
                post.working = True
            except RuntimeError as error:
                post.refuse(OSError(errno.ENOLCK, str(error)))
        elif post.is_idle and self._posts.get(post.key) is post:
            del self._posts[post.key]

    # -- what others tell ------------------------------------------------------------------------------------

    def _removed(self, key: str) -> None:
        """A key was deleted, and its lock with it. The caller has the turn at it."""
        with self.lock:
            post = self._posts.pop(key, None)
            if post is not None:
                post.removed, post.tenure, post.unsure = True, None, None
                post.vacate()

    def _moved(self, old: str, new: str) -> None:
        """A file has another name, and may have taken another's place. The caller has the turn at both.

        A file that is locked is not renamed: what was locked under the old name was lost, and is told so. The key of
        the new name keeps its lock, and with it those who hold it: an editor may replace a file under its lock.
        """
        with self.lock:
            post = self._posts.get(old)
            tenure = post.tenure if post is not None else None
        if tenure is not None:
            tenure.lose()
        self._removed(old)
        with self.lock:
            post = self._posts.get(new)
            if post is not None:
                post.refuse(_stale())
                self.drive(post)

    def tenure(self, key: str) -> Optional[Tenure]:
        """This mount's hold on a key. The caller has the turn at it."""
        with self.lock:
            post = self._posts.get(key)
            return post.tenure if post is not None else None

    def doubt(self, key: str) -> None:
        """Nobody knows which of this mount's sessions holds a key, or will. The caller has the turn at it."""
        with self.lock:
            post = self._posts.get(key)
            if post is not None and post.tenure is not None:
                post.unsure = self._settle
                self.drive(post)

    def settle(self, key: str) -> None:
        """End that doubt. The caller has the turn at the key."""
        record = self._session_lock.outdate(key)
        with self.lock:
            post = self._posts.get(key)
            if post is None or post.tenure is None:
                return
            tenure, post.unsure = post.tenure, None
        if record is None or record.session not in self.sessions:
            tenure.lose()
        else:
            tenure.session = record.session

    def _session_lost(self, session: str) -> None:
        """The servers have ended one of this mount's sessions."""
        with self.lock:
            tenures = [post.tenure for post in self._posts.values() if post.tenure is not None]
        for tenure in tenures:
            if tenure.session == session:
                tenure.lose()

    def _lose(self, tenure: Tenure) -> None:
        """The servers have said that a tenure is over."""
        with self.lock:
            post = self._posts.get(tenure.key)
            is_held = post is not None and post.tenure is tenure
            if post is not None and is_held and post.unsure == self._settle:
                return  # perhaps this mount's other session has it
            if tenure.lost:
                return
            tenure.lost = True
            if post is not None and is_held:
                claims, post.tenure = post.table.clear(), None
                for listener in self._on_lost:
                    listener(claims)
                post.fenced.clear()
                post.refuse(LockLost(), {claim.owner for claim in claims})
                self.drive(post)
        words = "%r: the lock of session %s was lost; what its holders write is refused"
        log.error(words, tenure.key, tenure.session)
        self._files.refuse_lost(tenure.key)

    # -- the thread of a post --------------------------------------------------------------------------------

    def _next(self, post: Post) -> Optional[Callable[[Post], None]]:
        """What is to be done for a post now. Wants the lock."""
        if post.removed or post.unsure is not None:
            return post.unsure
        if post.tenure is None:
            return self._take if post.waiters else None
        if not post.table and (not post.waiters or post.has_had_its_turn):
            return self._give
        return self._confirm if post.may_let_in else None

    def _work(self, post: Post) -> None:
        """Do what there is to do."""
        pause = SLICE
        while True:
            with self.lock:
                step = self._next(post)
                if step is None:
                    post.working = False
                    self.drive(post)
                    return
            self._patience.begin(STEP)
            if self._try(post, step):
                pause = SLICE
            else:
                with self.lock:
                    post.changed.wait(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, PAUSE)

    def _try(self, post: Post, step: Callable[[Post], None]) -> bool:
        """One step; False where it is to be tried again after a pause."""
        trouble: Optional[BaseException] = None
        final, doubtful = False, post.unsure is not None
        try:
            step(post)
        except Interrupted:
            pass  # nobody waits any more
        except UnknownSession as error:
            trouble = error
            with self.lock:
                post.unsure = None
        except Exception as error:
            trouble = error
            final = isinstance(error, (OSError, ClientError)) and not isinstance(error, RateLimited)
            if not isinstance(error, (OSError, ConsulateException, OutOfTime, Uncertain)):
                log.exception("%r: the lock's thread failed", post.key)
        # Those who wait are told. A lock that is to be given back, or may have been taken, is seen to all the same.
        told = final and trouble is not None and step != self._give
        is_news = post.trouble is None and not told and not isinstance(trouble, UnknownSession)
        if trouble is not None and is_news:
            log.warning("%r: its lock waits for Consul: %s", post.key, trouble)
        with self.lock:
            post.trouble = trouble
            if told and trouble is not None:
                post.unsure = post.unsure if doubtful else None
                post.refuse(trouble)
        return trouble is None

    # -- its steps -------------------------------------------------------------------------------------------

    def _take(self, post: Post) -> None:
        session = self._session.get()
        with self._files.turns.take(post.key):
            if post.removed:
                return
            doubtful, post.unsure = post.unsure is not None, self._take
            try:
                got = self._session_lock.take(post.key, session, self.sessions, doubtful)
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
        self._files.outdate()
        self._records.cache.stored(record)
        self._refresh(record)
        with self.lock:
            if record.session not in self.sessions:
                return  # its session was lost after that answer
            post.tenure = Tenure(post.key, record.session or "", self._lose)
            post.passes, post.since = 0, time.monotonic()
            post.let_in()

    def _stand_by(self, post: Post, refused: Refused) -> None:
        """Another has the lock, or nobody may have it yet."""
        with self.lock:
            post.barred = True
            post.refuse_impatient()
        try:
            if post.waiters:
                self._session_lock.wait(refused.record, lambda: not post.waiters)
        finally:
            with self.lock:
                post.barred = False

    def _confirm(self, post: Post) -> None:
        """Before the next program has its turn: whether the lock is this mount's still."""
        with self._files.turns.take(post.key):
            tenure = post.tenure
            record = self._session_lock.holder(post.key)
            if tenure is None or post.removed:
                return
            if record is None or record.session != tenure.session:
                tenure.lose()
                return
            self._refresh(record)
            with self.lock:
                if post.tenure is tenure:  # else its session was lost after that answer
                    post.let_in()

    def _settle(self, post: Post) -> None:
        with self._files.turns.take(post.key):
            post.unsure = self._settle if post.tenure is not None and not post.removed else None
            if post.unsure is not None:
                self.settle(post.key)

    def _give(self, post: Post) -> None:
        node = self._files.find(post.key)
        if node is not None and self._files.is_fenced(node):  # a close could not store it, or was killed
            with contextlib.suppress(OSError, ConsulateException, OutOfTime, Uncertain):
                self._files.store(node)
        with self._files.turns.take(post.key):
            tenure = post.tenure
            if tenure is not None and not post.removed and tenure.session != self._ephemeral.current:
                post.unsure = self._give
                record = self._session_lock.give(post.key, tenure.session)
                if record is not None:
                    self._refresh(record)
            with self.lock:  # lost meanwhile, or tied, which stays its own: there is nothing to give
                post.unsure = None
                post.tenure = None
                post.changed.notify_all()
            if tenure is not None:
                tenure.lost = True  # what is not stored by now is not stored under a later one
                self._files.refuse_lost(post.key)
        if post.waiters:
            self._patience.sleep(ASIDE * random.uniform(0.5, 1.0))

    def _refresh(self, record: Record) -> None:
        node = self._files.find(record.key)
        if node is not None:
            with node.state:
                node.refresh(record)


def _stale() -> OSError:
    return OSError(errno.ESTALE, "deleted or replaced: there is no key to lock")
