"""One module an endpoint, each with its `ENDPOINT`. A module that is put here is found."""

from __future__ import annotations

import importlib
import pkgutil

from consulfs.tree.virtual.parts import Endpoint


def _found() -> tuple[Endpoint, ...]:
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(importlib.import_module(f"{__name__}.{name}").ENDPOINT for name in modules)


ENDPOINTS = _found()
assert all(each.name.startswith("_") for each in ENDPOINTS), "a key's name is escaped by its first character"
assert len({each.name for each in ENDPOINTS}) == len(ENDPOINTS), "two endpoints have one name"

NAMES = frozenset(endpoint.name for endpoint in ENDPOINTS)
"""The names at the root that stand for no key."""
