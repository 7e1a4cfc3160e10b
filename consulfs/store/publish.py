"""Bringing a node's edits to Consul: compare-and-set until it holds, and what to make of an answer that never came."""

from __future__ import annotations

import errno
import random
from typing import Callable, Optional

from consulfs.consulate import Record, StaleIndex, TooLarge, UnknownSession
from consulfs.errors import Interrupted, LockLost, OutOfTime
from consulfs.store import edits
from consulfs.store.backend import Backend, Uncertain
from consulfs.store.node import Doubt, Node, Plan
from consulfs.store.patience import Patience
from consulfs.store.records import Records


class Moved(Exception):
    """The key is gone, and a rename whose answer never came may be why."""


class Publisher:
    """Stores plans. The caller has the turn at the key."""

    def __init__(self, backend: Backend, records: Records, patience: Patience) -> None:
        self._backend = backend
        self._records = records
        self._patience = patience

    def publish(self, node: Node, plan: Plan, in_doubt: Callable[[str], bool]) -> Optional[Record]:
        """Compare-and-set until it holds: on a conflict read again and replay the edits on what is there now.

        :param in_doubt: whether the key may have been renamed without anybody's knowing
        :return: the record as stored; None where the file was deleted or replaced meanwhile
        :raises Moved: the key is gone, and it is in doubt
        :raises LockLost: the plan's session does not hold the key any more
        """
        base, attempt = plan.base, 0
        try:
            while True:
                if base is not None and base.modify_index is None:
                    base = self._records.fresh(plan.key)  # a plain PUT told no index
                    if base is not None and plan.doubts and self._is_done(plan, base):
                        return base
                    self._check_meaning(plan, base)
                if node.gone:
                    return None
                stored = self._try(plan, base)
                if stored is not None:
                    return stored
                attempt += 1
                self._patience.sleep(random.uniform(0, min(0.001 * 2**attempt, 0.1)))
                base = self._records.fresh(plan.key, consistent=plan.session is not None)
                if base is not None and self._is_done(plan, base):
                    return base
                if plan.session is not None and (base is None or base.session != plan.session):
                    raise LockLost
                if base is None and plan.base is not None and in_doubt(plan.key):
                    raise Moved
                self._check_meaning(plan, base)
        except OutOfTime as error:
            if attempt and not plan.doubts:
                raise OSError(errno.EAGAIN, f"{attempt} conflicts with other writers in a row") from error
            raise

    def _try(self, plan: Plan, base: Optional[Record]) -> Optional[Record]:
        """One compare-and-set; None where it met another state, or where nobody knows."""
        value = bytes(edits.replay(base.value if base else b"", plan.edits))
        flags = plan.flags_on(base)
        try:
            return self._backend.store(plan.key, value, flags, (base.modify_index or 0) if base else 0, plan.session)
        except TooLarge as error:
            raise OSError(errno.EFBIG, str(error)) from error
        except (StaleIndex, UnknownSession):
            return None
        except (Uncertain, Interrupted, OutOfTime) as error:
            plan.doubts.append(Doubt(value, flags, len(plan.edits)))
            self._records.cache.forget(plan.key)
            if isinstance(error, Uncertain):
                return None
            raise

    @staticmethod
    def _is_done(plan: Plan, fresh: Record) -> bool:
        """Whether nothing is left to store: all of it was applied by a store whose answer never came, or was
        nothing but the creation of a file that another host has created."""
        for doubt in plan.doubts:
            sent, rest = plan.edits[: doubt.edits], plan.edits[doubt.edits :]
            # Somebody else's append may have followed ours.
            followed = bool(sent) and all(isinstance(edit.change, edits.Append) for edit in sent)
            if doubt.is_in(fresh) or (followed and fresh.value.startswith(doubt.value)):
                plan.base, plan.edits, plan.creation = fresh, rest, None
                plan.doubts = []
                break
        exclusive = plan.creation is not None and plan.creation.exclusive
        return not plan.edits and not exclusive and plan.flags in (None, fresh.flags)

    @staticmethod
    def _check_meaning(plan: Plan, fresh: Optional[Record]) -> None:
        """After a conflict: whether the edits still mean something on what is there now."""
        if fresh is not None and plan.creation is not None and plan.creation.exclusive:
            raise OSError(errno.EEXIST, "created by another host")
        if fresh is None and plan.base is not None and not (plan.edits and edits.stands_alone(plan.edits)):
            raise OSError(errno.ESTALE, "deleted by another host")
