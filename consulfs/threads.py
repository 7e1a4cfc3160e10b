"""Threads that work beside the operations."""

from __future__ import annotations

import logging
import threading
from typing import Callable, Optional

log = logging.getLogger(__name__)


def begin(name: str, work: Callable[[], object]) -> Optional[threading.Thread]:
    """Have something done by a thread of its own, which the daemon's end does not wait for.

    :return: None where the system allows no more threads: whoever asked does without, and asks again
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        log.warning("no thread for %s: %s", name, error)
        return None
    return thread
