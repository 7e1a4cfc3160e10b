"""A path's place among the keys: which key it would be as a file, which prefix as a directory. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Optional

from consulfs import names


class Spot(NamedTuple):
    """Where a path points, whether or not anything is there.

    :ivar parent: the prefix of the directory that it stands in
    :ivar component: its own component
    :ivar value: whether the name says "the value of the directory of this name"
    """

    parent: str
    component: str
    value: bool = False

    @property
    def key(self) -> str:
        return self.parent + self.component

    @property
    def prefix(self) -> str:
        return f"{self.parent}{self.component}/"


def step(parent: str, name: str, reserved: Collection[str]) -> Optional[Spot]:
    """One name further down: the spot, or None where only a listing can tell (a shortened name).

    :param reserved: the names that are taken in that directory
    """
    component, value = names.decode(name, reserved)
    if isinstance(component, names.Shortened):
        return None
    return Spot(parent, component, value)
