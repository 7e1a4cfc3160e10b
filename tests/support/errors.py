"""What a call fails with."""

from __future__ import annotations

from collections.abc import Callable


def errno_of(call: Callable[..., object], *arguments: object) -> int | None:
    """Its errno; 0 where it does not fail."""
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return 0
