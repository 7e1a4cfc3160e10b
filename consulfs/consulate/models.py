"""The values that go to Consul and come back: query options, answer metadata, KV records."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

if TYPE_CHECKING:
    from typing_extensions import TypedDict

    class Query(TypedDict, total=False):
        """What every read of the servers' state takes by keyword.

        index: answer when there is something newer than this `Meta.index` (a blocking query)
        wait: for how long at most, a duration or seconds; Consul's default is five minutes
        consistency: "default", "consistent" or "stale"; stale=True is short for the last
        dc: this datacenter instead of the client's
        timeout: seconds for this call instead of the client's; math.inf waits for ever

        Sources: https://www.consul.io/api-docs/features/blocking and .../features/consistency
        """

        index: int
        wait: Union[str, float]
        consistency: str
        stale: bool
        dc: str
        timeout: Optional[float]

    class Filtered(Query, total=False):
        """...of lists that Consul can filter: https://www.consul.io/api-docs/features/filtering"""

        filter: str

    class NodeQuery(Filtered, total=False):
        """...of lists of nodes.

        near: sorted by the round trip from this node; "_agent" is the one that answers
        node_meta: only nodes with all of these metadata
        """

        near: str
        node_meta: Mapping[str, str]

    class AgentQuery(TypedDict, total=False):
        """What reads of the agent's own state take: nothing there goes to the servers."""

        filter: str
        timeout: float

    class HashQuery(TypedDict, total=False):
        """What the read of one of the agent's services takes.

        hash: answer when its `Meta.content_hash` is another (a blocking query without the servers)
        wait: for how long at most, as in `Query`
        """

        hash: str
        wait: Union[str, float]
        timeout: float


DEFAULT_WAIT = 300.0
"""Seconds that Consul holds a blocking query when `wait` is not given (Consul's documentation)."""


def duration(value: Union[str, int, float]) -> str:
    """A duration as Consul writes it: 10 and "10" mean "10s", "1m" stays as it is.

    :raises ValueError: it is negative
    """
    text = str(value)
    if text.startswith("-"):
        raise ValueError(f"a duration cannot be negative: {value!r}")
    return f"{text}s" if text.replace(".", "", 1).isdigit() else text


def seconds(value: Union[str, int, float]) -> float:
    """The seconds of a duration of one or several units ("1m30s"); raises ValueError on anything else."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    text, total = duration(value), 0.0
    while text:
        number = text[: len(text) - len(text.lstrip("0123456789."))]
        rest = text[len(number) :]
        unit = rest[: len(rest) - len(rest.lstrip("msh"))]
        if not number or unit not in units:
            raise ValueError(f"not a duration: {value!r}")
        total += float(number) * units[unit]
        text = rest[len(unit) :]
    return total


@dataclass(frozen=True)
class Meta:
    """What Consul says about an answer, from its headers.

    :ivar index: pass it as `index=` to wait for the next change; None where the endpoint has none
    :ivar known_leader: whether the server that answered knew a leader
    :ivar last_contact: milliseconds since that server last heard from the leader
    :ivar content_hash: pass it as `hash=` to wait for the next change, where `agent.service.info` has it
    """

    index: Optional[int] = None
    known_leader: Optional[bool] = None
    last_contact: Optional[int] = None
    content_hash: Optional[str] = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Meta:
        leader = headers.get("X-Consul-KnownLeader")
        return cls(
            index=_number(headers.get("X-Consul-Index")),
            known_leader=None if leader is None else leader == "true",
            last_contact=_number(headers.get("X-Consul-LastContact")),
            content_hash=headers.get("X-Consul-ContentHash"),
        )


def _number(text: Optional[str]) -> Optional[int]:
    return int(text) if text and text.isdecimal() and len(text) <= 20 else None


class Record(NamedTuple):
    """One key as Consul stores it.

    :ivar value: the bytes; b"" where Consul has null
    :ivar modify_index: None where it is not known, as after a plain PUT, which answers without one
    :ivar session: the ID of the session that holds the key's lock, if any
    """

    key: str
    value: bytes
    flags: int = 0
    create_index: int = 0
    modify_index: Optional[int] = None
    lock_index: int = 0
    session: Optional[str] = None

    @property
    def carries(self) -> bool:
        """Whether there is anything in it; a folder's marker is a key without."""
        return bool(self.value or self.flags)

    @classmethod
    def of(cls, entry: Mapping[str, Any], value: Optional[bytes] = None) -> Record:
        """From Consul's JSON; `value` stands in where a transaction's answer leaves it out.

        :raises ValueError: it is no record
        """
        try:
            if value is None:
                encoded = entry.get("Value")
                value = b"" if encoded is None else base64.b64decode(encoded, validate=True)
            record = cls(
                entry["Key"],
                value,
                entry.get("Flags", 0),
                entry.get("CreateIndex", 0),
                entry.get("ModifyIndex"),
                entry.get("LockIndex", 0),
                entry.get("Session"),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # said without the values: secrets, maybe
            raise ValueError(f"no record of Consul's: {type(entry).__name__} ({error!r})") from error
        if not (
            isinstance(record.key, str)
            and isinstance(record.flags, int)
            and isinstance(record.modify_index, (int, type(None)))
            and isinstance(record.session, (str, type(None)))
        ):
            raise ValueError("no record of Consul's: its fields are of other types")
        return record
