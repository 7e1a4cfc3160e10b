"""A directory under watch: what its watchers were told of it, and what has become of it since. No I/O.

A blocking query says that something changed, and how things stand at an index of Consul's. Meanwhile this mount's own
changes go on, and an answer may be from before one of them. What a write stores bears its index, so the newer counts;
a delete bears none, so that its name in an answer that was asked for before it says nothing.

Owner of all levels: the cache's lock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Optional

from consulfs.consulate import Record

KNOWN = 4096
"""Files of a directory of which it is remembered what they were: more than are ever told whole, or looked at again. Of
others a change is told that comes after the last answer but one."""

MARKER = ""
"""The name of a directory's own key in its level; a directory's has "/" at its end."""


@dataclass
class Listing:
    """The names of one level: components of keys, components of prefixes, and whether the level has a marker."""

    files: set[str] = field(default_factory=set)
    directories: set[str] = field(default_factory=set)
    marker: bool = False

    @classmethod
    def of(cls, prefix: str, names: Iterable[str]) -> Listing:
        """From Consul's list of full names, "a/b" a key and "a/c/" a prefix."""
        listing = cls()
        for name in names:
            rest = name[len(prefix) :]
            if rest == "":
                listing.marker = True
            elif rest.endswith("/"):
                listing.directories.add(rest[:-1])
            else:
                listing.files.add(rest)
        return listing

    @classmethod
    def below(cls, prefix: str, keys: Iterable[str]) -> Listing:
        """From all keys below a prefix, at whatever depth."""
        at = len(prefix)
        names = [key[at:] for key in keys]
        files = {name for name in names if "/" not in name}
        directories = {name[: name.index("/")] for name in names if "/" in name}
        return cls(files - {MARKER}, directories, MARKER in files)

    def names(self) -> set[str]:
        """All names, each as the level has it."""
        found = self.files | {f"{name}/" for name in self.directories}
        return found | {MARKER} if self.marker else found

    def enter(self, name: str, is_there: bool = True) -> None:
        """A name comes, or goes."""
        if name == MARKER:
            self.marker = is_there
            return
        names, name = (self.directories, name[:-1]) if name.endswith("/") else (self.files, name)
        if is_there:
            names.add(name)
        else:
            names.discard(name)

    def __contains__(self, name: str) -> bool:
        if name == MARKER:
            return self.marker
        return name[:-1] in self.directories if name.endswith("/") else name in self.files

    def __bool__(self) -> bool:
        return bool(self.files or self.directories or self.marker)


@dataclass(frozen=True)
class News:
    """What others have done in a directory: names as a level has them.

    :ivar anew: Consul's indexes have begun anew
    :ivar sizes: those that files had that are gone, as far as they were known
    """

    prefix: str
    made: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    anew: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict, compare=False)

    def __bool__(self) -> bool:
        return bool(self.made or self.gone or self.changed)


@dataclass(frozen=True)
class Answer:
    """What a query of a directory was answered with.

    :ivar index: Consul's: how things stood then
    :ivar records: by name, of files in the directory itself, as far as they were asked for
    :ivar same: the names of those that are the records that were known, and not among `records`
    """

    index: int
    listing: Listing
    records: Mapping[str, Record]
    same: frozenset[str] = frozenset()

    def of(self, names: Collection[str]) -> Answer:
        """With the records of these alone."""
        return replace(self, records={name: record for name, record in self.records.items() if name in names})

    def apart(self, known: Mapping[str, Record]) -> Answer:
        """With those of its records that were known before set apart.

        :param known: by key
        """
        same = frozenset(name for name, record in self.records.items() if known.get(record.key) is record)
        return replace(self.without(same), same=same)

    def without(self, names: Collection[str]) -> Answer:
        """Without the records of these."""
        return self.of(self.records.keys() - set(names)) if names else self


def signature(record: Record) -> int:
    """Differs where value or flags differ. A ModifyIndex does not tell: locking a key changes it too."""
    return hash((record.value, record.flags))


class _Known(NamedTuple):
    """What is known of a file, and as of which index of its own."""

    as_of: int
    signature: int
    size: int


class Level:
    """One directory.

    :ivar live: whether a query waits for the next change: what is known is true until it comes
    :ivar index: Consul's, of the last answer; `before` is that of the one before it
    :ivar since: when the last change was told: what was asked for before it is old, unless it bears that index
    :ivar answered: when a query that waited was: what was true until then is as good as asked for then
    :ivar armed: when the last query was sent
    :ivar listing: None as long as no answer has told it; `told` is the index of the one that did
    :ivar same: the names of files that the last answer has shown to be as they were known; `vouched` tells when
    :ivar listed: when that was so; it counts if that is after `since` and after `doubt`
    :ivar known: by name, of each file whose content the watchers know; of `KNOWN` of them at most
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.live = False
        self.index = self.before = 0
        self.since = self.doubt = self.listed = self.armed = self.answered = 0.0
        self.listing: Optional[Listing] = None
        self.same: frozenset[str] = frozenset()
        self.vouched = 0.0
        self.known: dict[str, _Known] = {}
        self._fresh: set[str] = set()  # names that the last answer has brought
        # What this mount has done since the query was sent: the index of what it wrote (None: unknown), and deletes.
        self._made: dict[str, Optional[int]] = {}
        self._gone: set[str] = set()
        self.told = 0
        self._busy: set[str] = set()  # names which the last answer has still to settle
        self._void = 0  # as of which index there was nothing, by what the directory above told

    def begin(self, listing: Listing, index: int, asked: float) -> None:
        """Its names were read just now, as of an index: what changes after that is news."""
        self.listing = Listing(set(listing.files), set(listing.directories), listing.marker)
        self.index = self.told = index
        self.since = self.listed = asked

    def arm(self, now: float, waits: bool = True) -> None:
        """A query is being sent; if it waits, it will be answered when there is something newer than `index`."""
        self.live = waits and bool(self.index)
        self.armed = now
        self._made.clear()
        self._gone.clear()

    @property
    def is_certain(self) -> bool:
        """Whether nothing has come up since its names were told."""
        return self.listing is not None and self.listed >= max(self.since, self.doubt)

    def is_outrun(self, name: str, record: Record) -> bool:
        """Whether an answer from after a store of this mount was told before the store's own, without that name."""
        if self.listing is None or name in self.listing or name in self._busy:
            return False
        return record.modify_index is not None and record.modify_index < self.told

    def wrote(self, name: str, record: Record) -> None:
        """This mount has stored a key here, or below the directory of that name."""
        index = record.modify_index
        if not name.endswith("/"):
            self._know(name, index or 0, record)
        self._made[name] = index and max(index, self._made.get(name) or 0)
        self._gone.discard(name)
        self._enter(name, True)

    def removed(self, name: str) -> None:
        """This mount has removed a key or a directory here."""
        self._gone.add(name)
        self._made.pop(name, None)
        self._enter(name, False)

    def changed_here(self, name: str, is_there: bool) -> None:
        """This mount has moved a directory here, or away; what it left behind, or found, is not known."""
        if is_there:
            self._made[name] = None
            self._gone.discard(name)
            self._enter(name, True)
        else:
            self.removed(name)

    def vouches(self, name: str, index: Optional[int]) -> bool:
        """Whether the last answer has shown a file as it was known, with this index."""
        if self.vouched < self.since or name not in self.same:
            return False
        known = self.known.get(name)
        return known is not None and known.as_of == index

    def learn(self, name: str, record: Record) -> None:
        """A program looks at a file: those looked at last are the first suspects."""
        known = self.known.pop(name, None)
        if known is not None:
            self.known[name] = known
        elif record.modify_index is not None:
            self._know(name, record.modify_index, record)

    def differing(self, answer: Answer) -> set[str]:
        """The names in which an answer is not what was known: changes of others, or this mount's under way."""
        return self._names_differing(answer) | {
            name
            for name, record in answer.records.items()
            if name in self.known and self.known[name].signature != signature(record)
        }

    def take(self, answer: Answer, now: float, busy: Collection[str] = ()) -> Optional[News]:
        """What a query was answered with: from now on this is known, but for what this mount has done since.

        :param busy: names that this mount is just changing; see `settle`
        :return: what others did; None where it cannot be told whether the answer is from before a change here: ask anew
        """
        self.live = False
        if answer.index != self.index:
            self.before, self.index, self.since = self.index, answer.index, now
            self._fresh.clear()
        first = self.listing is None
        if first:  # all is new but what was stored here meanwhile, which the answer may not know yet
            self.listing = Listing()
            for name in self._made:
                self.listing.enter(name)
        names = self._names_differing(answer) | answer.records.keys()
        news = self.settle(answer, names if first else names - set(busy))
        if news is None:
            self.listing = None if first else self.listing
            return None
        self.listed, self.told, self._busy = now, answer.index, set(busy)
        return replace(news, made=frozenset()) if first else news

    def settle(self, answer: Answer, names: Collection[str]) -> Optional[News]:
        """The same for some of the names, once this mount is done with them."""
        if any(self._is_unclear(name, answer) for name in names):
            return None  # before anything is noted: what is not told now must be told later
        made, gone, changed = set(), set(), set()
        for name in names:
            there, here = name in answer.listing, self.listing is not None and name in self.listing
            if there and not here and answer.index >= self._void:
                made.add(name)
            elif here and not there and (self._made.get(name) or 0) <= answer.index:
                gone.add(name)
            if name in answer.records and self._compare(name, answer.records[name]) and here:
                changed.add(name)
        sizes = {name: self.known[name].size for name in gone & self.known.keys()}
        for name in made | gone:
            self._enter(name, name in made)
        self._busy.difference_update(names)
        self._fresh |= made
        return News(self.prefix, frozenset(made), frozenset(gone), frozenset(changed), sizes=sizes)

    def _is_unclear(self, name: str, answer: Answer) -> bool:
        """Whether nobody can tell if an answer is from before what this mount has done under a name."""
        if name in answer.listing and name in self._gone:
            return True
        # Stored without an index, and the answer may be from before that: another value, or none.
        shows = name in answer.records or name not in answer.listing
        return shows and name in self._made and self._made[name] is None

    def comes_with(self, name: str, index: int) -> Optional[News]:
        """A watch below tells that a directory is there, as of an index; here it may be told later.

        :param name: ends in "/"
        """
        if self.listing is None or name in self.listing or name in self._gone or self.told >= index:
            return None
        self._made[name] = index  # what was asked for before it says nothing against it
        self._enter(name, True)
        return News(self.prefix, made=frozenset({name}))

    def goes_with(self, index: int, busy: Collection[str]) -> Optional[News]:
        """A watch above tells that the directory is gone, as of an index: so is all that was in it.

        :param busy: as for `take`
        """
        if self.listing is None or self.told >= index:
            return None
        news = self.settle(Answer(index, Listing(), {}), self.listing.names() - set(busy))
        self._void = self._void if news is None else index
        return news

    def is_of_before(self, records: Mapping[str, Record], index: int) -> bool:
        """Whether one of some records, as of an index, is older than it was known to be before that index.

        Consul's indexes began anew then, and went on beyond those that were known before anybody asked.
        """
        return any(
            (record.modify_index or 0) < self.known[name].as_of <= index
            for name, record in records.items()
            if name in self.known
        )

    def compare(self, records: Mapping[str, Record]) -> News:
        """Files that were read since: what others did to them."""
        return News(
            self.prefix, changed=frozenset(name for name, record in records.items() if self._compare(name, record))
        )

    def _names_differing(self, answer: Answer) -> set[str]:
        return (self.listing.names() if self.listing is not None else set()) ^ answer.listing.names()

    def _enter(self, name: str, is_there: bool) -> None:
        if self.listing is not None:
            self.listing.enter(name, is_there)
        if not is_there:
            self.known.pop(name, None)

    def _know(self, name: str, index: int, record: Record) -> None:
        if len(self.known) >= KNOWN and name not in self.known:
            del self.known[next(iter(self.known))]
        self.known[name] = _Known(index, signature(record), len(record.value))

    def _compare(self, name: str, record: Record) -> bool:
        """Whether a file's value or flags are not what was known of them; from now on they are."""
        known, index = self.known.get(name), record.modify_index or 0
        if known is not None and known.as_of > index:
            return False  # stored here since
        self._know(name, index, record)
        if known is None:  # nobody has looked at it yet: it has changed where the last answer but one was before that
            return 0 < (self.index if name in self._fresh else self.before) < index
        return known.signature != signature(record)

    def suspects(self, most: int) -> list[str]:
        """The files, those known last first, whose content may have changed by the last answer."""
        old = [name for name, known in self.known.items() if known.as_of < self.index]
        return old[: -most - 1 : -1]

    def forget(self) -> None:
        """Consul's indexes have begun anew: none that is known says anything of those to come."""
        self.live, self.index, self.before, self.told, self._void = False, 0, 0, 0, 0
        self.known = {name: known._replace(as_of=0) for name, known in self.known.items()}
