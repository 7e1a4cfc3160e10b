"""What a path in the virtual trees means, from what the endpoints declare.

What is found stays as it is for a moment (`PIN`): cp(1) takes a file that is another one between its stat(2) and its
open(2) for replaced, and skips it. So a look sees what was true within `answers.LIFETIME` + `PIN` seconds; where the
thread that looks has listed many names, and no newer answer is known, its first look at each of them sees what it
listed (`scans`).

Owner of `_pins`: `_lock`, never held across a request.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable, Optional, Union

from cachetools import TTLCache

from consulfs.consulate.api.base import Row
from consulfs.tree.virtual.answers import Answer, Answers
from consulfs.tree.virtual.details import Details
from consulfs.tree.virtual.naming import file_name
from consulfs.tree.virtual.parts import Endpoint, Facts, Folder, Groups, Lacking, Leaf, Part, Rows, asked_by
from consulfs.tree.virtual.presence import Presence
from consulfs.tree.virtual.text import render, render_rows
from consulfs.tree.virtual.visits import EVERYBODY, Visits

PIN = 0.8
"""Seconds."""


@dataclass(frozen=True)
class Directory:
    """A path that is a directory.

    :ivar path: "" for the root
    :ivar groups: the raw names of the groups that lead to it
    :ivar listed: as of a document
    """

    path: str
    part: Union[Rows, Groups, Folder]
    groups: tuple[str, ...]
    private: bool
    listed: bool = False


class Document:
    """A path that is a file.

    :ivar listed: it is as its caller has listed it, and may be older than what others have seen
    :ivar live: it is another at each look
    """

    def __init__(
        self, path: str, private: bool, load: Callable[[], bytes], listed: bool = False, live: bool = False
    ) -> None:
        self.path = path
        self.private = private
        self.listed = listed
        self.live = live
        self._load = load
        self._content: Optional[bytes] = None

    @property
    def content(self) -> bytes:
        """What was there at the first look.

        :raises Forbidden: it may not be read
        """
        if self._content is None:
            loaded = self._load()
            if self._content is None:  # who came second takes what the first was given
                self._content = loaded
        return self._content


Found = Union[Directory, Document]


class VirtualTree:
    """The virtual trees of one datacenter.

    :param endpoints: those that are shown
    :param caller: tells for which program's thread the present operation is
    """

    def __init__(
        self, endpoints: tuple[Endpoint, ...], facts: Facts, answers: Answers, caller: Callable[[], int]
    ) -> None:
        self._answers = answers
        self._caller = caller
        self._root = Directory("", Folder({each.name: each.tree(facts) for each in endpoints}), (), False)
        self._private = {each.name for each in endpoints if each.private}
        self._details = Details(answers)
        self._presence = Presence(answers)
        self._visits = Visits()
        self._lock = threading.Lock()
        self._pins: TTLCache[tuple[int, str], Found] = TTLCache(1 << 14, PIN)

    def look(self, path: str) -> Found:
        """What stands at a path.

        :raises OSError: ENOENT, ENOTDIR
        """
        found: Found = self._root
        for name in path.split("/"):
            if not name:
                continue
            if isinstance(found, Document):
                raise OSError(errno.ENOTDIR, "not a directory")
            found = self._step(found, name)
        return found

    def entries(self, path: str) -> list[tuple[str, bool]]:
        """The names in a directory, each with whether it is a directory itself."""
        found = self.look(path)
        if isinstance(found, Document):
            raise OSError(errno.ENOTDIR, "not a directory")
        part = found.part
        if isinstance(part, Folder):
            return [
                (name, not isinstance(each, Leaf))
                for name, each in part.parts.items()
                if self._presence.has(each, found.groups)
            ]
        try:
            shown = _shown(found, self._answer(part, found.groups))
        except Lacking as error:  # readdir(3) would take ENOENT for the end of the directory
            raise _refused(error) from error
        self._visits.begin(self._caller(), found.path, found.groups, shown)
        has_directories = isinstance(part, Groups) and not isinstance(part.each, Leaf)
        return [(name, has_directories) for name in sorted(shown)]

    def shown(self, path: str) -> str:
        """A path without what is secret in it."""
        part: Optional[Part] = self._root.part
        names = path.split("/")
        for at, name in enumerate(names[1:], 1):
            if isinstance(part, Rows) and part.is_secret:
                return "/".join([*names[:at], "<secret>"])
            part = part.parts.get(name) if isinstance(part, Folder) else None
        return path

    # -- one name further down -------------------------------------------------------------------------------

    def _step(self, directory: Directory, name: str) -> Found:
        path, caller = f"{directory.path}/{name}", self._caller()
        with self._lock:
            pinned = self._pins.get((caller, path)) or self._pins.get((EVERYBODY, path))
        if pinned is not None:
            return pinned
        found = self._child(directory, name, path)
        if isinstance(found, Document) and found.live:
            return found
        with self._lock:
            return self._pins.setdefault((caller if found.listed else EVERYBODY, path), found)

    def _child(self, directory: Directory, name: str, path: str) -> Found:
        part, groups = directory.part, directory.groups
        private = directory.private or (directory is self._root and name in self._private)
        if isinstance(part, Folder):
            below = part.parts.get(name)
            if below is None or not self._presence.has(below, groups):
                raise OSError(errno.ENOENT, "no such file")
            return self._at(path, below, groups, private)
        shown, listed = self._find(directory, name)
        if shown is None:
            raise OSError(errno.ENOENT, "no such file")
        if isinstance(part, Groups):
            return self._at(path, part.each, (*groups, shown), private, listed)
        return Document(path, private, lambda: self._content(part, path, shown), listed)

    def _at(self, path: str, part: Part, groups: tuple[str, ...], private: bool, listed: bool = False) -> Found:
        if not isinstance(part, Leaf):
            return Directory(path, part, groups, private, listed)
        ask = part.ask
        if part.live:
            return Document(path, private, lambda: render(self._answers.fresh(ask, *groups).value), live=True)
        return Document(path, private, lambda: render(self._answer(part, groups).value), listed)

    def _find(self, directory: Directory, name: str) -> tuple[Any, bool]:
        """What a directory shows under a name: rows, or a group's raw name; None where it shows nothing.

        And whether that is what the caller has listed.
        """
        part = directory.part
        assert isinstance(part, (Rows, Groups))
        asked, caller = asked_by(part, directory.groups), self._caller()
        listed = self._visits.take(caller, directory.path, name)
        answer = self._answers.known(part.ask, *asked)
        if answer is None:
            if listed is not None:
                return listed, True
            group = self._visits.inside(caller, f"{directory.path}/{name}")
            if group is not None:
                return group, True
            answer = self._answer(part, directory.groups)
        return _shown(directory, answer).get(name), False

    def _answer(self, part: Union[Leaf, Rows, Groups], groups: tuple[str, ...]) -> Answer:
        """What a part's call gives.

        :raises Lacking: the server has no such endpoint, and need not have one
        """
        try:
            return self._answers.get(part.ask, *asked_by(part, groups))
        except Lacking as error:
            if part.optional:
                raise
            # An empty directory, or a file that is not there, would say that nothing is critical.
            raise _refused(error) from error

    def _content(self, part: Rows, path: str, rows: list[Row]) -> bytes:
        return render_rows(rows) if part.detail is None else self._details.get(part.detail, path, rows)


def _shown(directory: Directory, answer: Answer) -> Mapping[str, Any]:
    """What a directory shows, by name: the rows of a file, or the raw name of a group."""
    part, groups = directory.part, directory.groups
    if isinstance(part, Groups):
        names = part.names
        return answer.derive(part, lambda value: {file_name(name): name for name in names(value)})
    assert isinstance(part, Rows)
    return answer.derive((part, groups), lambda rows: _by_name(part, groups, rows))


def _refused(error: Lacking) -> OSError:
    return OSError(errno.EIO, f"refused as if there were no such endpoint: {error.__cause__}")


def _by_name(part: Rows, groups: tuple[str, ...], rows: list[Row]) -> dict[str, list[Row]]:
    shown: dict[str, list[Row]] = {}
    for row in rows:
        if part.keep is None or part.keep(row, *groups):
            shown.setdefault(part.name(row), []).append(row)
    return shown
