"""A path's place among the keys: which key it would be as a file, which prefix as a directory. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from consulfs import names


@dataclass(frozen=True)
class Spot:
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


def reserved_below(parent: str, root: str) -> frozenset[str]:
    """The names that are taken in a directory: those of the virtual trees, at the root of a whole-store mount."""
    return names.VIRTUAL if root == parent == "" else frozenset()


def name_of(spot: Spot, root: str) -> str:
    """The name that shows a spot in its directory."""
    return names.encode(spot.component, spot.value, reserved_below(spot.parent, root))


def step(parent: str, name: str, root: str) -> Optional[Spot]:
    """One name further down: the spot, or None where only a listing can tell (a shortened name)."""
    component, value = names.decode(name, reserved_below(parent, root))
    if isinstance(component, names.Shortened):
        return None
    return Spot(parent, component, value)
