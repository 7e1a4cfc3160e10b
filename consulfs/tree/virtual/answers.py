"""What was asked of Consul within the last second: each question once, however many programs wait for its answer.

Owner of an answer's parts: `Answer._lock`; of everything else here: `Answers._lock`. No lock is held across a request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sized
from contextlib import AbstractContextManager
from typing import Any, Callable, Optional, TypeVar

from cachetools import TLRUCache

from consulfs.consulate import ACLDisabled, Consul, Gone, NotFound
from consulfs.store.backend import Backend
from consulfs.store.patience import Patience
from consulfs.store.turns import Turns
from consulfs.tree.virtual.parts import Ask, Lacking

LIFETIME = 1.0
"""Seconds for which an answer is taken as true, from when it was asked for: what came after that is not in it."""

LEAST = 0.5
"""Seconds for which one is taken as true from when it came, however long Consul took for it.

The kernel reads a directory for one program after another (measured on Linux 6.18): each would ask anew, since what
the one before it was told is old by then.
"""

MAX_ROWS = 200_000
"""Of all answers together. A larger one is kept as well, alone."""

T = TypeVar("T")


class Answer:
    """What a call gave, and what was made of it.

    :param asked: the time of the request that was answered
    :ivar until: the time when it is old
    """

    def __init__(self, value: Any, asked: float) -> None:
        self.value = value
        self.until = max(asked + LIFETIME, time.monotonic() + LEAST)
        self.rows = len(value) if isinstance(value, Sized) and not isinstance(value, str) else 0
        self._lock = threading.Lock()
        self._made: dict[object, Any] = {}

    def derive(self, key: object, make: Callable[[Any], T]) -> T:
        """The same for the same key: made from the value by who asks first, while others wait for it."""
        with self._lock:
            if key not in self._made:
                self._made[key] = make(self.value)
            found: T = self._made[key]
            return found


class _Flight:
    """A question under way. Whoever comes before its answer gets that one, however late he wakes up."""

    def __init__(self) -> None:
        self.answer: Optional[Answer] = None


class Answers:
    """The answers to one datacenter's questions."""

    def __init__(self, backend: Backend, patience: Patience) -> None:
        self._backend = backend
        self._turns = Turns(patience)
        self._lock = threading.Lock()
        self._kept: TLRUCache[tuple[Any, ...], Answer] = TLRUCache(
            MAX_ROWS,
            ttu=lambda key, answer, now: answer.until,
            timer=time.monotonic,
            getsizeof=lambda answer: min(answer.rows + 1, MAX_ROWS),
        )
        self._flights: dict[tuple[Any, ...], _Flight] = {}
        self.hits = self.misses = 0

    def get(self, ask: Ask, *groups: str) -> Answer:
        """The answer to a question, as of at most `LIFETIME` ago where Consul is quick; else of `LEAST` and its time.

        :raises Lacking: the server does not know the question
        """
        found = self.known(ask, *groups)
        if found is not None:
            return found
        with self._lock:
            flight = self._flights.setdefault((ask, *groups), _Flight())
        with self.turn(f"{id(ask)} {groups!r}"):
            if flight.answer is None:
                try:
                    flight.answer = self.known(ask, *groups) or self._ask(ask, *groups)
                finally:
                    with self._lock:
                        if self._flights.get((ask, *groups)) is flight:
                            del self._flights[(ask, *groups)]
            return flight.answer

    def turn(self, what: str) -> AbstractContextManager[None]:
        """Be the only one who asks for something: others wait, and then find it known."""
        return self._turns.take(what)

    def known(self, ask: Ask, *groups: str) -> Optional[Answer]:
        """The answer, if it is here."""
        with self._lock:
            found = self._kept.get((ask, *groups))
            if found is not None:
                self.hits += 1
            return found

    def fresh(self, ask: Ask, *arguments: Any) -> Answer:
        """What a call gives now.

        :raises Lacking: the server does not know the question
        """

        def attempt(consul: Consul, left: float) -> Answer:
            asked = time.monotonic()  # not when the first of several attempts was made
            return Answer(ask(consul, left, *arguments), asked)

        try:
            return self._backend.ask(attempt)
        except (NotFound, Gone, ACLDisabled) as error:
            raise Lacking from error

    def _ask(self, ask: Ask, *groups: str) -> Answer:
        found = self.fresh(ask, *groups)
        with self._lock:
            self.misses += 1
            self._kept[(ask, *groups)] = found
        return found
