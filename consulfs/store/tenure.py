"""This mount's hold on a key in Consul, from the moment when the servers gave it until they have it back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable


@dataclass(eq=False)
class Tenure:
    """A key's lock, while one of this mount's sessions has it.

    :ivar session: the ID of the session that holds it; changed in the key's turn
    :ivar lost: the servers have said that it does not hold it any more; set by the owner of the posts, at any time
    """

    key: str
    session: str
    on_lost: Callable[[Tenure], None]
    lost: bool = False

    def lose(self) -> None:
        """Somebody has learnt from the servers that it is lost."""
        if not self.lost:
            self.on_lost(self)
