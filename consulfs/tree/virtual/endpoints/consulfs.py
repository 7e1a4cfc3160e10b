"""This mount: what it is, how it was made, and what it has done."""

from __future__ import annotations

from typing import Any, Callable

from consulfs.tree.virtual.parts import Endpoint, Folder, Leaf


def _leaf(give: Callable[[], Any]) -> Leaf:
    return Leaf(lambda consul, left: give(), live=True)


ENDPOINT = Endpoint(
    "_consulfs", lambda facts: Folder({name: _leaf(give) for name, give in facts.about.items()}), local=True
)
