"""What was asked of Consul within the last second: each question once, however many programs wait for its answer.

Owner of an answer's parts: `Answer._lock`; of everything else here: `Answers._lock`. No lock is held across a request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sized
from contextlib import AbstractContextManager
from typing import Any, Callable, NoReturn, Optional, TypeVar, Union

from cachetools import TLRUCache, TTLCache

from consulfs.consulate import ACLDisabled, Consul, ConsulateException, Gone, NotFound
from consulfs.errors import OutOfTime
from consulfs.store.backend import Backend
from consulfs.store.patience import Patience
from consulfs.store.turns import Turns
from consulfs.tree.virtual.parts import Ask, Lacking

LIFETIME = 1.0
"""Seconds for which an answer is taken as true, from when it was asked for: what came after that is not in it."""

SPARING = 2.0
"""So many times what it took an answer is taken as true from when it came, where that is longer.

The kernel reads a directory for one program after another (measured on Linux 6.18): each would ask a slow Consul anew,
since what the one before it was told is old by then.
"""

MOST = 4.0
"""Seconds that `SPARING` may come to."""

FAILURE_LIFETIME = 1.0
"""Seconds for which a failure is remembered. Programs that the kernel lets in one by one would wait in vain in turn."""

MAX_ROWS = 200_000
"""Of all answers together. A larger one is kept as well, alone."""

T = TypeVar("T")

Key = tuple[Any, ...]


class Answer:
    """What a call gave, and what was made of it.

    :param asked: the time of the request that was answered
    :ivar until: the time when it is old
    """

    def __init__(self, value: Any, asked: float) -> None:
        self.value = value
        came = time.monotonic()
        self.until = max(asked + LIFETIME, came + min(MOST, SPARING * (came - asked)))
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


Outcome = Union[Answer, Exception]


class _Flight:
    """A question under way. Whoever comes before its outcome gets that one, however late he wakes up."""

    def __init__(self) -> None:
        self.outcome: Optional[Outcome] = None


class Answers:
    """The answers to one datacenter's questions."""

    def __init__(self, backend: Backend, patience: Patience) -> None:
        self._backend = backend
        self._turns = Turns(patience)
        self._lock = threading.Lock()
        self._kept: TLRUCache[Key, Answer] = TLRUCache(
            MAX_ROWS,
            ttu=lambda key, answer, now: answer.until,
            timer=time.monotonic,
            getsizeof=lambda answer: min(answer.rows + 1, MAX_ROWS),
        )
        self._failed: TTLCache[Key, Exception] = TTLCache(1024, FAILURE_LIFETIME)
        self._flights: dict[Key, _Flight] = {}
        self.hits = self.misses = 0

    def get(self, ask: Ask, *groups: str) -> Answer:
        """The answer to a question, as of at most `LIFETIME` ago where Consul is quick.

        :raises Lacking: the server does not know the question
        """
        key = (ask, *groups)
        found = self.known(ask, *groups)
        if found is not None:
            return found
        with self._lock:
            failed = self._failed.get(key)
            if failed is None:
                flight = self._flights.setdefault(key, _Flight())
        if failed is not None:
            _raise(failed)
        with self.turn(f"{id(ask)} {groups!r}"):
            if flight.outcome is None:
                try:
                    flight.outcome = self.known(ask, *groups) or self._outcome(ask, *groups)
                finally:
                    with self._lock:
                        if self._flights.get(key) is flight:
                            del self._flights[key]
        if isinstance(flight.outcome, Exception):
            _raise(flight.outcome)
        return flight.outcome

    def probe(self, ask: Ask, *groups: str, seconds: float) -> None:
        """Ask once, and no longer than this.

        :raises Lacking: the server does not know the question
        :raises ConsulateException: there was no answer
        """
        with self.turn(f"probe {id(ask)} {groups!r}"):
            if self.known(ask, *groups) is None:
                self._keep((ask, *groups), self.fresh(ask, *groups, most=seconds))

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

    def fresh(self, ask: Ask, *arguments: Any, most: Optional[float] = None) -> Answer:
        """What a call gives now.

        :param most: seconds for a single attempt, else there are as many as the operation's time allows
        :raises Lacking: the server does not know the question
        """

        def attempt(consul: Consul, left: float) -> Answer:
            asked = time.monotonic()  # not when the first of several attempts was made
            return Answer(ask(consul, left, *arguments), asked)

        try:
            return self._backend.ask(attempt) if most is None else self._backend.ask_once(attempt, most)
        except (NotFound, Gone, ACLDisabled) as error:
            raise Lacking from error

    def _outcome(self, ask: Ask, *groups: str) -> Outcome:
        key = (ask, *groups)
        try:
            return self._keep(key, self.fresh(ask, *groups))
        except (ConsulateException, OutOfTime, Lacking) as error:
            with self._lock:
                self._failed[key] = error
            return error

    def _keep(self, key: Key, found: Answer) -> Answer:
        with self._lock:
            self.misses += 1
            self._kept[key] = found
        return found


def _raise(error: Exception) -> NoReturn:
    """Raise what several threads are told, each with a trace of its own."""
    raise error.with_traceback(None)
