"""What an endpoint declares of its tree: which call gives the names, and which the content.

    Leaf      a file: what a call gives
    Rows      a directory with a file for each row that a call gives
    Groups    a directory with a directory for each name that a call gives
    Folder    a directory of parts with fixed names

Each call takes the client, the seconds that it may take, and the raw names of the groups above it. Two parts with the
same function share its answer.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Callable, Optional, Union

from consulfs.consulate.api.base import Row
from consulfs.tree.virtual.naming import file_name

Ask = Callable[..., Any]
"""(consul, seconds, *groups) -> what Consul says."""


class Lacking(OSError):
    """Consul has no such endpoint: what stands for it is not there."""

    def __init__(self) -> None:
        super().__init__(errno.ENOENT, "this Consul has no such endpoint")


@dataclass(frozen=True, eq=False)
class Leaf:
    """
    :ivar optional: an older or a newer server may lack it, and then it is not listed
    :ivar live: the content is another at each look, and costs no request: none is kept
    """

    ask: Ask
    optional: bool = False
    live: bool = False


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows with the same name are one file, a list of them.

    :ivar name: the file's name
    :ivar is_secret: the names are secrets, which no log may have
    :ivar keep: (row, *groups) -> whether the row is shown, where one call, without the groups, gives those of all
    :ivar detail: (consul, seconds, row) -> the content, where the row does not hold it. Asked again when the row has
        changed, so the row needs something that tells: its ModifyIndex
    """

    ask: Ask
    name: Callable[[Row], str]
    keep: Optional[Callable[..., bool]] = None
    detail: Optional[Ask] = None
    optional: bool = False
    is_secret: bool = False


@dataclass(frozen=True, eq=False)
class Groups:
    """:ivar names: what the call gives -> the raw names"""

    ask: Ask
    each: Part
    names: Callable[[Any], Iterable[str]] = list
    optional: bool = False


@dataclass(frozen=True, eq=False)
class Folder:
    """:ivar probe: fails where the server lacks all of it"""

    parts: Mapping[str, Part]
    probe: Optional[Ask] = None

    @property
    def optional(self) -> bool:
        return self.probe is not None

    @property
    def ask(self) -> Optional[Ask]:
        return self.probe


Part = Union[Leaf, Rows, Groups, Folder]


@dataclass(frozen=True)
class Facts:
    """What the trees are told of the mount.

    :ivar datacenter: the one that they show; None where it is not known
    :ivar secrets: whether to show what opens doors: the option `acl_secrets`
    :ivar about: the files of `_consulfs`, each with what gives its content
    """

    datacenter: Optional[str]
    secrets: bool
    about: Mapping[str, Callable[[], Any]]


@dataclass(frozen=True)
class Endpoint:
    """One of the names at the root.

    :ivar private: its files are for their owner alone
    :ivar local: it tells of this mount or its agent, and so is not shown for other datacenters
    """

    name: str
    tree: Callable[[Facts], Part]
    private: bool = False
    local: bool = False


def asked_by(part: Part, groups: tuple[str, ...]) -> tuple[str, ...]:
    """The groups that a part's call takes."""
    return () if isinstance(part, Rows) and part.keep is not None else groups


def by(*fields: str, separator: str = ":") -> Callable[[Row], str]:
    """Rows are named by these fields; "Node.Node" is a field of a field."""
    return lambda row: file_name(*(_name(row, field) for field in fields), separator=separator)


def column(field: str) -> Callable[[Iterable[Row]], list[str]]:
    """Groups are named by this field of rows."""
    return lambda rows: [_name(row, field) for row in rows]


def _name(row: Row, field: str) -> str:
    """What is to name something; nothing, where there is none: a row that is odd must not take its whole directory."""
    found: Any = row
    for each in field.split("."):
        found = found.get(each) if isinstance(found, dict) else None
    return "" if found is None else str(found)
