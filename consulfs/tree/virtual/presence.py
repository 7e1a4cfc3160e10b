"""What the server has: an entry that stands for an endpoint it lacks is not there.

Owner of `_known`: `_lock`, never held across a request.
"""

from __future__ import annotations

import threading
from typing import Optional

from cachetools import TLRUCache

from consulfs.consulate import ConsulateException, Forbidden
from consulfs.errors import OutOfTime
from consulfs.tree.virtual.answers import Answers
from consulfs.tree.virtual.parts import Ask, Lacking, Part, asked_by

PROBE = 1.0
"""Seconds that a look may take: a listing of other entries waits for it."""

PRESENCE = {True: 300.0, False: 10.0, None: 10.0}
"""Seconds for which it is remembered that the server has an endpoint, that it has not, and that it did not say."""


class Presence:
    """Looks, and remembers for a while."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._lock = threading.Lock()
        self._known: TLRUCache[tuple[Ask, tuple[str, ...]], Optional[bool]] = TLRUCache(
            1 << 10, ttu=lambda key, known, now: now + PRESENCE[known]
        )

    def has(self, part: Part, groups: tuple[str, ...]) -> bool:
        """Whether there is something for a part to show; True where nobody says."""
        ask = part.ask
        if not part.optional or ask is None:
            return True
        key = (ask, asked_by(part, groups))
        with self._lock:
            if key in self._known:
                return self._known[key] is not False
        known = self._look(*key)
        with self._lock:
            self._known[key] = known
        return known is not False

    def _look(self, ask: Ask, groups: tuple[str, ...]) -> Optional[bool]:
        try:
            self._answers.probe(ask, *groups, seconds=PROBE)
        except Lacking:
            return False
        except Forbidden:
            return True
        except (ConsulateException, OutOfTime):
            return None  # it is listed, and whoever reads it is told why
        return True
