"""What a caller may say by position: the reference's order of arguments is part of its API."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def positional(function: Callable[..., Any]) -> list[str]:
    """The names of the arguments that can be given by position, in their order."""
    parameters = inspect.signature(function).parameters.items()
    return [name for name, each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
