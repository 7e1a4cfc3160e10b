"""flock and fcntl locks, as programs ask for them: among themselves, and all under Consul's lock of the key.

The programs' threads only wait here for their claim to be granted or refused, so that a signal can end each of them at
any time; the posts' threads (`posts.py`) talk to Consul.

Owner of everything here: `Posts.lock`, as of the posts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import Callable, Optional

from consulfs.consulate import ConsulateException
from consulfs.errors import Interrupted, LockLost, OutOfTime, WouldBlock
from consulfs.store.backend import Uncertain
from consulfs.store.locktable import END, Claim, LockOwner, deadlocks, first_of
from consulfs.store.node import Node
from consulfs.store.openfiles import Handle, OpenFiles
from consulfs.store.patience import SLICE, Patience
from consulfs.store.posts import Post, Posts, Waiter
from consulfs.store.records import Records

GHOST, UNSEEN = 1.0, 0.1
"""Seconds that LOCK_NB waits for a holder whose process is gone (the kernel tells of the last close afterwards, and
with a 3 ms unlock 59 of 100 `flock -n` in a row failed: measured); and for one of which that cannot be seen."""

LOOK, SLOWEST_LOOK = 0.0005, 0.5
"""Seconds between a waiter's looks for signals: so many for each waiter that there is, up to the second of the two."""


class Locks:
    """All locks of a mount.

    :param most: locks that may be waited for at once
    """

    def __init__(
        self,
        files: OpenFiles,
        records: Records,
        patience: Patience,
        posts: Posts,
        most: int,
    ) -> None:
        self._files = files
        self._records = records
        self._patience = patience
        self._posts = posts
        self._most = most
        # Who has lost a lock of which file and was not told so yet, and the handles through which it was held.
        self._lost: dict[tuple[LockOwner, Node], set[int]] = {}
        self._waiting = 0
        self._ended = False
        posts.listen(on_lost=self._note_loss)

    @property
    def is_idle(self) -> bool:
        """Whether nobody has locked anything, nor lost a lock."""
        return not (self._posts or self._lost)

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
            self._tell_loss(handle, claim.owner)  # which that may have found out
        if handle.node.gone:
            raise OSError(errno.ESTALE, "deleted; there is no key to lock")
        entered = self._enter(handle, claim, blocking)
        if entered is not None:
            self._wait(*entered)

    def release(self, handle: Handle, owner: LockOwner, start: int = 0, end: int = END, closing: bool = False) -> None:
        """Unlock. What was written is stored first, so that whoever locks next sees it.

        :param closing: a process closes a descriptor, or ends: no lock stays then because something cannot be stored.
            That stays fenced, and is stored only as long as this mount holds the key.
        :raises LockLost: it was lost meanwhile
        """
        self._tell_loss(handle, owner)
        with self._posts.lock:
            post = self._posts.get(handle.node.key)
            if handle.node.gone:  # under its name another file may be locked by this process
                self._close(post, handle)
                return
            if post is None or not post.table.holds(owner):
                return  # every close(2) comes here (measured), and costs nothing
        fence = False
        try:
            self._files.store(handle.node)
        except (OSError, ConsulateException, Uncertain, OutOfTime, Interrupted):
            if not closing:  # else close(2) itself has told it
                raise
            fence = True
        with self._posts.lock:
            if post.table.drop(owner, start, end):
                self._left(post, handle, fence)
                return
        self._tell_loss(handle, owner)  # while that was stored

    def closed(self, handle: Handle) -> None:
        """A file description is closed: nothing is locked through it any more."""
        if self.is_idle:
            return
        with self._posts.lock:
            self._lost = {who: handles for who, handles in self._lost.items() if handles != {handle.number}}
            self._close(self._posts.get(handle.node.key), handle)

    def conflict(self, handle: Handle, claim: Claim) -> Optional[Claim]:
        """What would block a claim (F_GETLK); another host's is the whole file's, of process 0."""
        key = handle.node.key
        with self._posts.lock:
            post = self._posts.get(key)
            if post is not None and (blockers := post.table.blockers(claim)):
                return first_of(blockers)
            if post is not None and post.tenure is not None:
                return None
        record = self._records.fresh(key)
        if record is None or record.session is None or record.session in self._posts.sessions:
            return None
        return Claim(LockOwner(True, 0), True, 0, 0)

    def end(self) -> None:
        """The mount ends: give everything back."""
        with self._posts.lock:
            self._ended = True
            for post in self._posts:
                post.refuse(Interrupted())
                post.table.clear()
                self._posts.drive(post)
            for post in self._posts:
                self._await(post, lambda post: post.is_idle)

    # -- entering and waiting --------------------------------------------------------------------------------

    def _enter(self, handle: Handle, claim: Claim, blocking: bool) -> Optional[tuple[Post, Waiter]]:
        """Queue up; None where the claim could be granted at once."""
        with self._posts.lock:
            if self._ended:
                raise Interrupted
            post = self._posts.at(handle.node.key)
            had, covered = post.table.holds(claim.owner), post.table.covers(claim)
            if had and not claim.owner.posix:
                post.table.drop(claim.owner)  # flock(2): a conversion removes the lock and then sets a new one
            blockers = post.table.blockers(claim)
            if covered and not blockers and post.tenure is not None:
                post.grant(claim, handle)  # no more than was held before
                self._posts.drive(post)  # others may have room now
                return None
            refusal = self._why_not(post, claim, blocking, blockers)
            if refusal is None:
                waiter = Waiter(claim, handle, blocking)
                waiter.ghosts = blockers
                post.waiters.append(waiter)
            post.unfence()
            self._posts.drive(post)
            if refusal is not None:
                raise refusal
            self._waiting += 1
            return post, waiter

    def _has_holder(self, handle: Handle) -> bool:
        """Whether others here hold a lock on the file: they store what they write when they have finished."""
        with self._posts.lock:
            post = self._posts.get(handle.node.key)
            return post is not None and not post.table.uses(handle.number) and bool(post.table)

    def _why_not(self, post: Post, claim: Claim, blocking: bool, blockers: list[Claim]) -> Optional[OSError]:
        """Why a claim is not even to wait."""
        if not blocking:
            return WouldBlock() if post.barred else None
        if claim.owner.posix and blockers:
            posix = [(post, each.claim) for post in self._posts for each in post.waiters if each.claim.owner.posix]
            if deadlocks(claim, blockers, [(other, post.table.blockers(other)) for post, other in posix]):
                return OSError(errno.EDEADLK, os.strerror(errno.EDEADLK))
        if self._waiting >= self._most:
            return OSError(errno.ENOLCK, f"{self._waiting} locks are waited for already")
        return None

    def _wait(self, post: Post, waiter: Waiter) -> None:
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
            with self._posts.lock:
                if waiter in post.waiters:
                    post.waiters.remove(waiter)
                    self._posts.drive(post)
                    waiter.settle(error)
        finally:
            with self._posts.lock:
                self._waiting -= 1
        if isinstance(waiter.error, LockLost):
            self._tell_loss(waiter.handle, waiter.claim.owner)
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
        with self._posts.lock:
            if waiter.done.is_set():
                return
            if time.monotonic() >= limit and post.table.blocks(waiter.claim):
                raise WouldBlock
        if self._patience.remaining() <= 0:
            raise post.trouble or OutOfTime("no answer in time")

    # -- losses ----------------------------------------------------------------------------------------------

    def _note_loss(self, claims: list[Claim]) -> None:
        for claim in claims:
            with contextlib.suppress(OSError):  # one that is closed by now
                node = self._files.handle(claim.handle).node
                self._lost.setdefault((claim.owner, node), set()).add(claim.handle)

    def _tell_loss(self, handle: Handle, owner: LockOwner) -> None:
        """:raises LockLost: what this owner had locked was lost, and this is the first that it asks for since"""
        if not self._lost:  # hardly ever; and every close(2) comes here
            return
        who = (owner, handle.node)
        with self._posts.lock:
            handles = sorted(self._lost.get(who, ()))
        if not handles:
            return
        for number in handles:
            with contextlib.suppress(OSError):  # one that is closed by now
                self._files.restore(self._files.handle(number))
        with self._posts.lock:
            self._lost.pop(who, None)
        raise LockLost

    # -- unlocking -------------------------------------------------------------------------------------------

    def _close(self, post: Optional[Post], handle: Handle) -> None:
        """Nothing is locked through a handle any more."""
        if post is not None and post.table.drop_handle(handle.number):
            self._left(post, handle)

    def _left(self, post: Post, handle: Handle, fence: bool = False) -> None:
        """Something was unlocked through a handle: return when Consul has the lock back, where nobody wants it.

        The next may be on another host, or be curl.

        :param fence: whether something of the handle is still to be stored under that lock
        """
        if fence:
            post.fenced.pop(handle.number, None)
        post.unfence()
        tenure = post.tenure
        self._posts.drive(post)
        self._await(post, lambda post: post.tenure is not tenure or bool(post.table or post.waiters))

    def _await(self, post: Post, ready: Callable[[Post], bool]) -> None:
        """Until it is so, or the time is over: it is unlocked here, and the post's thread goes on by itself."""
        with contextlib.suppress(Interrupted, OutOfTime):
            self._patience.wait(post.changed, lambda: ready(post))
