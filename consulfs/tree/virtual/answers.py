"""What was asked of Consul within the last second: each question once, however many programs wait for its answer.

Owner of everything here: `Answers._lock`, never held across a request.
"""

from __future__ import annotations

import threading
from collections.abc import Sized
from typing import Any, Callable, Optional, TypeVar

from cachetools import TTLCache

from consulfs.consulate import ACLDisabled, Gone, NotFound
from consulfs.store.backend import Backend
from consulfs.store.patience import Patience
from consulfs.store.turns import Turns
from consulfs.tree.virtual.parts import Ask, Lacking

LIFETIME = 1.0
"""Seconds for which an answer is taken as true."""

MAX_ROWS = 200_000
"""Of all answers together. A larger one is kept as well, alone."""

T = TypeVar("T")


class Answer:
    """What a call gave, and what was made of it."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.rows = len(value) if isinstance(value, Sized) and not isinstance(value, str) else 0
        self._made: dict[object, Any] = {}

    def derive(self, key: object, make: Callable[[Any], T]) -> T:
        """The same for the same key, made from the value when it is first asked for."""
        found: T
        if key in self._made:
            found = self._made[key]
        else:
            found = self._made.setdefault(key, make(self.value))
        return found


class Answers:
    """The answers to one datacenter's questions."""

    def __init__(self, backend: Backend, patience: Patience) -> None:
        self._backend = backend
        self._turns = Turns(patience)
        self._lock = threading.Lock()
        self._kept: TTLCache[tuple[Any, ...], Answer] = TTLCache(
            MAX_ROWS, LIFETIME, getsizeof=lambda answer: min(answer.rows + 1, MAX_ROWS)
        )
        self.hits = self.misses = 0

    def get(self, ask: Ask, *groups: str) -> Answer:
        """The answer to a question, as of at most a second ago.

        :raises Lacking: the server does not know the question
        """
        found = self.known(ask, *groups)
        if found is not None:
            return found
        with self._turns.take(f"{id(ask)} {groups!r}"):
            return self.known(ask, *groups) or self._ask(ask, *groups)

    def known(self, ask: Ask, *groups: str) -> Optional[Answer]:
        """The answer, if it is here."""
        with self._lock:
            found = self._kept.get((ask, *groups))
            if found is not None:
                self.hits += 1
            return found

    def fresh(self, ask: Ask, *arguments: Any) -> Any:
        """What a call gives now.

        :raises Lacking: the server does not know the question
        """
        try:
            return self._backend.ask(lambda consul, left: ask(consul, left, *arguments))
        except (NotFound, Gone, ACLDisabled) as error:
            raise Lacking from error

    def _ask(self, ask: Ask, *groups: str) -> Answer:
        found = Answer(self.fresh(ask, *groups))
        with self._lock:
            self.misses += 1
            self._kept[(ask, *groups)] = found
        return found
