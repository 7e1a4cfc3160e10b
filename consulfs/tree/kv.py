"""The KV store as directories and files.

    a key "a/b/c"              the file c in the directories a and b
    keys below "a/b/c/" too    c is the directory, and the key's value the file c%value beside it
    a key "a/b/"               the directory b itself; where it carries a value or flags, the file b/%empty as well

A directory without a marker key exists because keys do. When the last of them is removed through this mount, the
directory stays for the life of the mount, or until it is removed: `rm -r` and `mv` count on that. These are kept in
`_empty`. A copy may bring foo%value before its directory foo: the key then shows under that name alone, so that the
directory can still be made. These are kept in `_value_only`; directories that were removed in `_former`. All three
are owned by `_lock`.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from typing import NamedTuple, Optional, Union

from cachetools import LRUCache, TTLCache

from consulfs import names
from consulfs.consulate import Forbidden, Record
from consulfs.store.backend import Backend
from consulfs.store.cache import above, place
from consulfs.store.levels import Listing
from consulfs.store.moves import Moves
from consulfs.store.node import Node
from consulfs.store.openfiles import OpenFiles
from consulfs.store.records import Records
from consulfs.store.times import Times
from consulfs.tree.spot import Spot, step

REMEMBERED = 1 << 14
"""Paths of files whose keys are remembered."""

FORMER_SECONDS = 60.0
"""For so long a removed directory's value is still found under its name "foo%value" as well."""


class File(NamedTuple):
    """A path that is a file."""

    key: str
    node: Optional[Node]
    record: Optional[Record]


class Directory(NamedTuple):
    """A path that is a directory."""

    prefix: str


Entry = Union[File, Directory]


def is_carrying(marker: Optional[Record]) -> bool:
    """Whether a directory's marker has something to show beside the directory."""
    return marker is not None and marker.carries


class KVTree:
    """Paths below the mount point.

    :param root: the prefix that is mounted, "" or ending in "/"
    :param reserved: names at the root that stand for no key
    """

    def __init__(
        self,
        root: str,
        reserved: frozenset[str],
        backend: Backend,
        records: Records,
        files: OpenFiles,
        moves: Moves,
        times: Times,
    ) -> None:
        self.root = root
        self._reserved = reserved
        self._backend = backend
        self._records = records
        self._files = files
        self._moves = moves
        self._times = times
        self._lock = threading.Lock()
        self._empty: LRUCache[str, bool] = LRUCache(1 << 16)
        self._value_only: LRUCache[str, bool] = LRUCache(1 << 12)
        self._prefixes: dict[str, str] = {}
        self._found: dict[str, tuple[int, str, str]] = {}
        self._former: TTLCache[str, bool] = TTLCache(1 << 12, FORMER_SECONDS)

    # -- looking ---------------------------------------------------------------------------------------------

    def locate(self, path: str) -> Optional[Spot]:
        """The spot of a path; None for the root itself, which has no name.

        :raises OSError: ENOENT for a shortened name that stands for nothing
        """
        above, _, name = path.rstrip("/").rpartition("/")
        return self._step(self._prefix_at(above), name) if name else None

    def _prefix_at(self, path: str) -> str:
        """The prefix that a path is as a directory. Remembered: each look at a file comes by its directory's path."""
        prefix = self._prefixes.get(path)
        if prefix is None:
            spot = self.locate(path)
            prefix = self.root if spot is None else spot.prefix
            if names.SHORTENED not in path:  # what a shortened name stands for may change with its directory
                if len(self._prefixes) >= REMEMBERED:
                    self._prefixes.clear()
                self._prefixes[path] = prefix
        return prefix

    def lookup(self, path: str) -> Optional[Entry]:
        """What stands at a path, or None."""
        return self._look_again(path) or self._look(path)

    def _look_again(self, path: str) -> Optional[File]:
        """A file that was found under a path before, while no name has come or gone."""
        version, parent, key = self._found.get(path, (-1, "", ""))
        if version != self._records.cache.version or self._files.has_doubts:
            return None
        node = self._files.find(key)
        record = self._records.warm(parent, key)
        if record is None or (node is not None and (node.unsaved or not node.exists)):
            return None
        if node is not None:
            self._files.adopt(node, record)
        return File(key, node, record)

    def _look(self, path: str) -> Optional[Entry]:
        version = self._records.cache.version
        try:
            spot = self.locate(path)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        if spot is None:
            self._records.glance()
            return Directory(self.root)
        is_directory = self._is_directory(spot)
        if is_directory and not spot.value:
            self._records.use(spot.prefix)
            return Directory(spot.prefix)
        if spot.value and not (is_directory or self._is_value_only(spot.prefix) or self._was_directory(spot.prefix)):
            return None
        found = self._file_at(spot)
        if found is not None and spot.component and not spot.value:
            self._remember(path, version, spot)
        return found

    def _remember(self, path: str, version: int, spot: Spot) -> None:
        if len(self._found) >= REMEMBERED:
            self._found.clear()
        self._found[path] = version, spot.parent, spot.key

    def existing(self, path: str) -> Entry:
        """What stands at a path; ENOENT where nothing does."""
        entry = self.lookup(path)
        if entry is None:
            raise OSError(errno.ENOENT, "no such key or prefix")
        return entry

    def directory(self, path: str) -> Directory:
        entry = self.existing(path)
        if isinstance(entry, File):
            raise OSError(errno.ENOTDIR, "not a directory")
        return entry

    def file(self, path: str) -> File:
        entry = self.existing(path)
        if isinstance(entry, Directory):
            raise OSError(errno.EISDIR, "is a directory")
        return entry

    def known_file(self, spot: Spot) -> Optional[File]:
        """A file of which all is known without asking."""
        if self._files.find(spot.key) is not None:
            return None  # an open one answers for itself
        record = self._records.cache.warm(spot.parent, spot.key)
        return File(spot.key, None, record) if record is not None else None

    def names_in(self, path: str, looks: bool) -> list[tuple[str, Spot, bool]]:
        """What a directory shows: each name, the spot that it stands for, and whether that is a directory.

        :param looks: the program that asks may look at each of its files next
        """
        prefix = self.directory(path).prefix
        self._records.listing(prefix)  # a directory that was not known until now is a change by itself
        version = self._records.cache.version
        shown = [(self.name_of(spot), spot, is_directory) for spot, is_directory in self.entries(prefix, looks)]
        if looks and len(shown) <= REMEMBERED:
            base = path.rstrip("/")
            for name, spot, is_directory in shown:
                if not (is_directory or spot.value):
                    self._remember(f"{base}/{name}", version, spot)
        return shown

    def entries(self, prefix: str, looks: bool = False) -> list[tuple[Spot, bool]]:
        """The spots of a directory in the order of their keys, each with whether it is a directory.

        :param looks: the program that asks may look at each of its files next
        """
        # Before the listing: what is stored between the two would be in neither.
        unsaved = {name for name, node in self._open_below(prefix) if node.exists and node.unsaved}
        listing = self._records.listing(prefix)
        files, directories, marker = self._records.cache.snapshot(listing)
        self._records.expect_scan(prefix, listing, files, looks)
        self._drop_values(prefix, set(files))
        shown = set(directories) | {above(each)[1] for each in self._empty_below(prefix)}
        keys = set(files) | unsaved
        if marker and is_carrying(self._records.get(prefix)):
            keys.add("")
        found = [(Spot(prefix, name), True) for name in shown]
        found += [
            (Spot(prefix, name, name in shown or self._is_value_only(f"{prefix}{name}/")), False) for name in keys
        ]
        return sorted(found, key=lambda each: (each[0].component, not each[1]))

    def name_of(self, spot: Spot) -> str:
        """The name that shows a spot in its directory."""
        return names.encode(spot.component, spot.value, self._reserved_below(spot.parent))

    # -- the paths of keys -----------------------------------------------------------------------------------

    def path_of_directory(self, prefix: str) -> str:
        """The path that shows a prefix."""
        parent, path = self.root, ""
        for component in prefix[len(self.root) : -1].split("/") if prefix != self.root else ():
            path += "/" + self.name_of(Spot(parent, component))
            parent += component + "/"
        return path or "/"

    def path_in(self, prefix: str, name: str, beside: bool) -> str:
        """The path of what a level has under a name.

        :param beside: whether it is a file that stands beside a directory of its name
        """
        if name.endswith("/"):
            return self.path_of_directory(prefix + name)
        return self._below(prefix, Spot(prefix, name, beside or self._is_value_only(f"{prefix}{name}/")))

    def paths_of(self, key: str) -> list[str]:
        """The paths under which the kernel may have a key, or a prefix."""
        prefix, name = place(key)
        paths = [self._below(prefix, Spot(prefix, name, value)) for value in (False, True)]
        return paths if name else [self.path_of_directory(key), *paths]

    def shows(self, prefix: str, name: str) -> Optional[bool]:
        """Whether a directory shows what a level has under a name, as far as that is known without asking."""
        listing, key = self._records.cache.peek(prefix), prefix + name
        if name.endswith("/") and (self._has_unsaved(key) or self._empty_below(prefix, key)):
            return True
        node = self._files.find(key)
        if node is not None and node.exists and node.unsaved:
            return True
        return name in listing if listing is not None else None

    def renamed_by_others(self, prefix: str) -> None:
        """Others have made or removed names in a directory."""
        listing = self._records.cache.peek(prefix)
        if listing is not None:
            self._records.times_of(prefix, listing)

    def _below(self, prefix: str, spot: Spot) -> str:
        return f"{self.path_of_directory(prefix).rstrip('/')}/{self.name_of(spot)}"

    def _reserved_below(self, parent: str) -> frozenset[str]:
        """The names that are taken in a directory."""
        return self._reserved if parent == self.root else frozenset()

    def _step(self, parent: str, name: str) -> Spot:
        if len(name.encode("utf-8", "surrogateescape")) > names.NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, "a name has at most 255 bytes")
        try:
            spot = step(parent, name, self._reserved_below(parent))
        except names.NotUTF8 as error:
            raise OSError(errno.EILSEQ, "a name must be UTF-8: Consul's JSON carries nothing else") from error
        except names.UnmappableName as error:
            raise OSError(errno.ENOENT, "another way to write a name: no key has this one") from error
        spot = spot or self._find_shortened(parent, name)
        if spot is None:
            raise OSError(errno.ENOENT, "a shortened name that stands for no key")
        return spot

    def _find_shortened(self, parent: str, name: str) -> Optional[Spot]:
        """The spot in a directory that has this name, with "%value" or without, whatever the other one is now."""
        reserved = self._reserved_below(parent)
        for each, _ in self.entries(parent):
            for value in (False, True):
                if names.encode(each.component, value, reserved) == name:
                    return Spot(parent, each.component, value)
        return None

    def _is_directory(self, spot: Spot) -> bool:
        if self._has_unsaved(spot.prefix) or self._records.is_surely_directory(spot.prefix):
            return True
        try:
            listing: Optional[Listing] = self._records.listing(spot.parent)
        except Forbidden:
            listing = None
        if listing is not None and spot.component in listing.directories:
            return True
        if self._empty_below(spot.parent, spot.prefix):
            return True
        if listing is not None and spot.component in listing.files:
            return False
        # Where ACLs are on, a listing hides what may not be read, and the way to it.
        return self._backend.acl_enabled and self._can_list(spot.prefix)

    def _has_unsaved(self, prefix: str) -> bool:
        return any(node.exists and node.unsaved for node in self._files.below(prefix))

    def _can_list(self, prefix: str) -> bool:
        try:
            listing = self._records.listing(prefix)
        except Forbidden:
            return False
        return bool(listing.files or listing.directories or listing.marker)

    def _file_at(self, spot: Spot) -> Optional[File]:
        if not spot.key or (not spot.value and self._is_value_only(spot.prefix)):
            return None
        self._files.settle_rename(spot.key)
        node = self._files.find(spot.key)
        if node is not None and node.exists and node.unsaved:
            return File(spot.key, node, node.base)
        if not self._may_exist(spot):
            return None
        record = self._records.get(spot.key)
        if record is None or (spot.key.endswith("/") and not is_carrying(record)):
            return None
        if node is not None:
            self._files.adopt(node, record)
        return File(spot.key, node, record)

    def _may_exist(self, spot: Spot) -> bool:
        if self._backend.acl_enabled:
            return True  # an unlisted key may be there and hidden: only a GET tells
        listing = self._records.listing(spot.parent)
        return spot.component in listing.files or (spot.component == "" and listing.marker)

    def _open_below(self, prefix: str) -> Iterator[tuple[str, Node]]:
        """The open keys that stand in a directory itself."""
        for node in self._files.below(prefix):
            name = node.key[len(prefix) :]
            if name and "/" not in name:
                yield name, node

    def _empty_below(self, prefix: str, at: str = "") -> list[str]:
        """The remembered empty directories that stand in a directory, or lead to one that does.

        :param at: only those at or below this prefix
        """
        if not self._empty:
            return []
        with self._lock:
            inside = [each for each in self._empty if each.startswith(at or prefix) and len(each) > len(prefix)]
        return list({each[: each.index("/", len(prefix)) + 1] for each in inside})

    # -- changing --------------------------------------------------------------------------------------------

    def place_for_file(self, path: str) -> Spot:
        """The spot where a new file may be made."""
        spot = self._place(path)
        if not spot.key:
            raise OSError(errno.EINVAL, "Consul has no empty key")
        alone = not self._is_directory(spot)
        if spot.value and alone and self._file_at(Spot(spot.parent, spot.component)) is not None:
            raise OSError(errno.EEXIST, "the key is there, under its plain name")
        if not spot.value and self._is_value_only(spot.prefix):
            if self._file_at(Spot(spot.parent, spot.component, True)) is not None:
                raise OSError(errno.EEXIST, "its value is there, as the value of a directory that is still to come")
            self._value_comes(spot.prefix, False)
        return spot

    def file_made(self, spot: Spot) -> None:
        """A file was made at a spot that `place_for_file` gave."""
        if spot.value and not self._is_directory(spot):
            self._value_comes(spot.prefix, True)  # its directory is still to come, as `cp -r` may have it
        self._times.touch(spot.parent)

    def check_writable(self, key: str) -> None:
        """EACCES where the token may not write this key."""
        if not self._backend.may_write(key):
            raise OSError(errno.EACCES, "the token may not write this key")

    def remove_file(self, path: str) -> str:
        """Delete what a path shows; gives its key."""
        spot, entry = self._place(path), self.file(path)
        self.check_writable(entry.key)
        self._moves.remove(entry.key)
        self._value_comes(spot.prefix, False)
        self._left(spot.parent)
        return entry.key

    def make_directory(self, path: str) -> None:
        """Write the marker that Consul's UI writes: the prefix as a key."""
        spot = self._place(path)
        if spot.value:
            raise OSError(errno.EINVAL, "this name is that of a directory's value")
        self.check_writable(spot.prefix)
        self._moves.make_marker(spot.prefix)
        self._times.touch(spot.prefix)
        self._value_comes(spot.prefix, False)
        self._left(spot.parent, empty=False)

    def remove_directory(self, path: str) -> None:
        spot = self.locate(path)
        if spot is None:
            raise OSError(errno.EBUSY, "the root of the mount")
        prefix = spot.prefix
        self.directory(path)
        below = self._backend.names(prefix)
        if any(name != prefix for name in below) or self._empty_below(prefix):
            raise OSError(errno.ENOTEMPTY, "there are keys below")
        if self._has_unsaved(prefix):
            raise OSError(errno.ENOTEMPTY, "there are unsaved files below")
        if below:
            self._remove_marker(prefix)
        with self._lock:
            self._empty.pop(prefix, None)
            # `rm -r` has read the name foo%value before the directory foo was removed: it holds for a while.
            self._former[prefix] = True
        self._records.cache.directory_removed(prefix)
        self._times.forget(prefix)
        self._left(spot.parent)

    def rename(self, old: str, new: str, keep_target: bool) -> None:
        """Rename a file or a directory; what stands at the new name is replaced as rename(2) has it."""
        source, entry, target = self._place(old), self.existing(old), self._place(new)
        standing = self.lookup(new)
        if standing is not None and keep_target:
            raise OSError(errno.EEXIST, "the new name is taken")
        if isinstance(entry, File):
            if isinstance(standing, Directory):
                raise OSError(errno.EISDIR, "the new name is a directory")
            target = self.place_for_file(new)
            self._rename_file(entry.key, target.key, keep_target)
            self._value_comes(source.prefix, False)
            self.file_made(target)
        else:
            if isinstance(standing, File):
                raise OSError(errno.ENOTDIR, "the new name is a file")
            if target.value:
                raise OSError(errno.EINVAL, "this name is that of a directory's value")
            self._rename_directory(source.prefix, target.prefix)
            self._value_comes(target.prefix, False)
        self._left(source.parent)
        self._left(target.parent, empty=False)

    def _rename_file(self, old: str, new: str, keep_target: bool) -> None:
        if old == new:
            return
        self.check_writable(old)
        self.check_writable(new)
        self._moves.move_file(old, new, keep_target)

    def _rename_directory(self, old: str, new: str) -> None:
        self.check_writable(old)
        self.check_writable(new)
        if any(name != new for name in self._backend.names(new)) or self._empty_below(new):
            raise OSError(errno.ENOTEMPTY, "there are keys below the new name")
        if is_carrying(self._records.fresh(new)) or self._has_unsaved(new):
            raise OSError(errno.ENOTEMPTY, "the new name has a value of its own, or unsaved files")
        self._moves.move_tree(old, new)
        with self._lock:
            for prefix in [each for each in self._empty if each.startswith(old)]:
                self._empty[new + prefix[len(old) :]] = self._empty.pop(prefix)
            self._former[old] = True

    def _remove_marker(self, prefix: str) -> None:
        marker = self._records.fresh(prefix)
        if is_carrying(marker):
            raise OSError(errno.ENOTEMPTY, "its own key has a value or flags: see %empty in it")
        self.check_writable(prefix)
        if marker is not None:
            self._moves.remove_marker(prefix, marker)

    def _place(self, path: str) -> Spot:
        try:
            spot = self.locate(path)
        except FileNotFoundError as error:
            raise OSError(errno.EINVAL, "this name is the short form of another, which is not there") from error
        if spot is None:
            raise OSError(errno.EBUSY, "the root of the mount")
        return spot

    def _left(self, prefix: str, empty: bool = True) -> None:
        """Something was removed from a directory (or added to it): its time changes, and it may not vanish."""
        self._times.touch(prefix)
        if empty and prefix != self.root and not self._can_list(prefix):
            self._stays(prefix)

    def _value_comes(self, prefix: str, first: bool) -> None:
        """A name "foo%value" is made (or, not `first`, has its directory, or is gone)."""
        with self._lock:
            if first:
                self._value_only[prefix] = True
            else:
                self._value_only.pop(prefix, None)

    def _was_directory(self, prefix: str) -> bool:
        with self._lock:
            return prefix in self._former

    def _drop_values(self, prefix: str, listed: set[str]) -> None:
        """Values that came before their directory and are gone again: their names are as any other's."""
        with self._lock:
            marks = [each for each in self._value_only if each.startswith(prefix) and each.count("/", len(prefix)) == 1]
            for mark in marks:
                if mark[len(prefix) : -1] not in listed and self._files.find(mark[:-1]) is None:
                    del self._value_only[mark]

    def _is_value_only(self, prefix: str) -> bool:
        with self._lock:
            return prefix in self._value_only

    def _stays(self, prefix: str) -> None:
        with self._lock:
            self._empty[prefix] = True
