"""Who holds which lock on one file, among the programs of this mount: Linux's rules for flock and for fcntl. Pure.

flock locks belong to an open file description and have no ranges; fcntl locks belong to a process and have them. Each
kind knows nothing of the other, as on any local file (flock(2), "Details").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Optional

END = (1 << 63) - 1
"""The last byte that a range can have: that of "to the end of the file, however long it becomes"."""


@dataclass(frozen=True)
class LockOwner:
    """Whom a lock belongs to.

    :ivar posix: by fcntl, else by flock
    :ivar number: for fcntl the kernel's number of a process' descriptors, for flock that of a handle
    """

    posix: bool
    number: int


@dataclass(frozen=True)
class Claim:
    """A lock that is held or wanted.

    :ivar handle: the number of the handle through which it was asked for
    :ivar pid: the process that asked, as F_GETLK tells it
    :ivar start: the first byte; flock has the whole file
    :ivar end: the last byte
    """

    owner: LockOwner
    exclusive: bool
    handle: int
    pid: int
    start: int = 0
    end: int = END

    def excludes(self, other: Claim) -> bool:
        """Whether the two cannot be held at once."""
        return (
            self.owner.posix == other.owner.posix
            and self.owner != other.owner
            and (self.exclusive or other.exclusive)
            and self.start <= other.end
            and other.start <= self.end
        )


class LockTable:
    """The claims that are held on one file."""

    def __init__(self) -> None:
        self._claims: list[Claim] = []

    def __bool__(self) -> bool:
        return bool(self._claims)

    def __iter__(self) -> Iterator[Claim]:
        return iter(self._claims)

    def blocks(self, claim: Claim) -> bool:
        """Whether something keeps a claim from being granted."""
        return any(held.excludes(claim) for held in self._claims)

    def blockers(self, claim: Claim) -> list[Claim]:
        """What keeps a claim from being granted."""
        return [held for held in self._claims if held.excludes(claim)]

    def holds(self, owner: LockOwner) -> bool:
        """Whether an owner holds something."""
        return any(claim.owner == owner for claim in self._claims)

    def covers(self, claim: Claim) -> bool:
        """Whether its owner holds all of it already, by one claim that is as strong."""
        return any(
            held.owner == claim.owner
            and held.exclusive >= claim.exclusive
            and held.start <= claim.start
            and claim.end <= held.end
            for held in self._claims
        )

    def uses(self, handle: int) -> bool:
        """Whether something is held through a handle."""
        return any(claim.handle == handle for claim in self._claims)

    def grant(self, claim: Claim) -> None:
        """Enter a claim that nothing blocks. It takes the place of what its owner held in that range."""
        self.drop(claim.owner, claim.start, claim.end)
        joined = [held for held in self._claims if _continues(held, claim)]
        for held in joined:
            self._claims.remove(held)
        first, last = min(each.start for each in [*joined, claim]), max(each.end for each in [*joined, claim])
        self._claims.append(replace(claim, start=first, end=last))

    def drop(self, owner: LockOwner, start: int = 0, end: int = END) -> bool:
        """Give up what an owner holds in a range, and keep the rest; False where there was nothing."""
        mine = [claim for claim in self._claims if claim.owner == owner and claim.start <= end and start <= claim.end]
        for claim in mine:
            self._claims.remove(claim)
            self._claims += _outside(claim, start, end)
        return bool(mine)

    def drop_handle(self, handle: int) -> bool:
        """A file description is closed: what was locked through it is free; False where there was nothing.

        Of fcntl's locks these are those of F_OFD_SETLK: a process' own went when it closed its descriptor.
        """
        rest = [claim for claim in self._claims if claim.handle != handle]
        dropped = len(rest) < len(self._claims)
        self._claims = rest
        return dropped

    def clear(self) -> list[Claim]:
        """Give up everything; what it was."""
        claims, self._claims = self._claims, []
        return claims


def deadlocks(claim: Claim, blockers: Iterable[Claim], waiting: Iterable[tuple[Claim, list[Claim]]]) -> bool:
    """Whether a claim would wait for itself: EDEADLK, which fcntl(2) promises within one machine.

    :param waiting: the claims that wait, each with what blocks it
    """
    blocked_by: dict[LockOwner, list[LockOwner]] = {}
    for other, reasons in waiting:
        blocked_by.setdefault(other.owner, []).extend(each.owner for each in reasons)
    todo, seen = [each.owner for each in blockers], set()
    while todo:
        owner = todo.pop()
        if owner == claim.owner:
            return True
        if owner not in seen:
            seen.add(owner)
            todo += blocked_by.get(owner, [])
    return False


def _continues(held: Claim, claim: Claim) -> bool:
    """Whether two of one owner are one: of the same kind, and next to each other."""
    same = (held.owner, held.exclusive, held.handle) == (claim.owner, claim.exclusive, claim.handle)
    return same and (held.end + 1 == claim.start or claim.end + 1 == held.start)


def _outside(claim: Claim, start: int, end: int) -> Iterator[Claim]:
    """What is left of a claim without a range."""
    if claim.start < start:
        yield replace(claim, end=start - 1)
    if claim.end > end:
        yield replace(claim, start=end + 1)


def first_of(blockers: Iterable[Claim]) -> Optional[Claim]:
    """The one that F_GETLK names: the first in the file."""
    return min(blockers, key=lambda claim: claim.start, default=None)
