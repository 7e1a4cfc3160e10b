"""A directory under watch beside a model of Consul: whatever happens in whatever order, what is shown is never older
than what was shown before, and each change of others is told once, and none of this mount's own. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consulfs.consulate import Record
from consulfs.store.cache import MISSING, Cache, Missing
from consulfs.store.levels import MARKER, Answer, Level, Listing, News, signature

PREFIX = "d/"

KEYS = ["d/a", "d/b", "d/s/x", "d/s/y", "d/"]

NAMES = ["a", "b", "s/", "s", MARKER]

FOREVER = 1 << 62


def name_of(key):
    """The name under which the directory has a key."""
    rest = key[len(PREFIX) :]
    return rest[: rest.find("/") + 1] or rest


@dataclass
class Stand:
    """A key as it stands in the store, and whether this mount was the last to change its value or flags."""

    record: Record
    is_own: bool
    made_by_own: bool


class Store:
    """What Consul holds, and what it held at each of its indexes."""

    START = 10

    def __init__(self):
        self.index = self.START
        self.stands: dict[str, Stand] = {}
        self.touched = 0  # the index of the last change below the directory
        self.past: list[tuple[int, dict[str, Record]]] = [(self.index, {})]

    def _done(self, key):
        if key.startswith(PREFIX):
            self.touched = self.index
        self.past.append((self.index, {each: stand.record for each, stand in self.stands.items()}))

    def put(self, key, value, flags=0, is_own=False) -> Record:
        self.index += 1
        before = self.stands.get(key)
        created = before.record.create_index if before else self.index
        record = Record(key, value, flags, created, self.index)
        same = before is not None and signature(before.record) == signature(record)
        self.stands[key] = Stand(
            record, before.is_own if before and same else is_own, before.made_by_own if before else is_own
        )
        self._done(key)
        return record

    def lock(self, key, session="s") -> Optional[Record]:
        stand = self.stands.get(key)
        if stand is None:
            return None
        self.index += 1
        old = stand.record
        record = Record(key, old.value, old.flags, old.create_index, self.index, old.lock_index + 1, session)
        self.stands[key] = Stand(record, stand.is_own, stand.made_by_own)
        self._done(key)
        return record

    def delete(self, key) -> bool:
        if self.stands.pop(key, None) is None:
            return False
        self.index += 1
        self._done(key)
        return True

    def elsewhere(self):
        self.index += 1
        self._done("")

    def restore(self):
        """As from a backup: the same keys, and indexes that have begun anew."""
        self.index = self.START
        for key, stand in self.stands.items():
            self.index += 1
            record = Record(key, stand.record.value, stand.record.flags, self.index, self.index)
            self.stands[key] = Stand(record, stand.is_own, stand.made_by_own)
        self.touched = self.index if any(key.startswith(PREFIX) for key in self.stands) else 0
        self.past = [(self.index, {key: stand.record for key, stand in self.stands.items()})]

    def answers_with(self) -> int:
        return self.touched or self.index

    def answer(self, whole: bool) -> Answer:
        found = {key: stand.record for key, stand in self.stands.items() if key.startswith(PREFIX)}
        records = {name_of(key): record for key, record in found.items() if "/" not in key[len(PREFIX) :]}
        return Answer(self.answers_with(), Listing.below(PREFIX, found), records if whole else {})

    # -- how it was ------------------------------------------------------------------------------------------

    def spans(self, holds) -> list[tuple[int, int]]:
        """From when until when something held."""
        found: list[tuple[int, int]] = []
        for number, (index, state) in enumerate(self.past):
            end = self.past[number + 1][0] if number + 1 < len(self.past) else FOREVER
            if holds(state):
                if found and found[-1][1] == index:
                    found[-1] = found[-1][0], end
                else:
                    found.append((index, end))
        return found


class Floors:
    """As of when each thing was shown last: what is shown next may not be from before that."""

    def __init__(self, store):
        self._store = store
        self._floors: dict[object, int] = {}

    def raise_to(self, what, index):
        self._floors[what] = max(self._floors.get(what, 0), index)

    def see(self, what, holds):
        """It is shown so: it must have been so, not before what was shown before."""
        floor = self._floors.get(what, 0)
        spans = [span for span in self._store.spans(holds) if span[1] > floor]
        assert spans, f"{what!r} is shown as it was before {floor}"
        self.raise_to(what, spans[0][0])

    def clear(self):
        self._floors.clear()


@dataclass
class Own:
    """A change of this mount that is under way."""

    kind: str
    key: str
    value: bytes = b""
    applied: bool = False
    result: object = None
    index: int = 0


@dataclass
class Question:
    """A program's read that is under way."""

    what: str
    ticket: object
    answer: object = None
    asked: bool = False


@dataclass
class Model:
    """A mount with one directory under watch, step by step; the watch does what `Watch.run` does."""

    whole: bool
    lifetime: float
    patient: bool
    store: Store = field(default_factory=Store)

    def __post_init__(self):
        self.cache = Cache(1 << 20, self.lifetime)
        self.floors = Floors(self.store)
        self.level: Level = self.cache.watch(PREFIX)
        self.anew, self.asked = True, 0
        self.stage = "idle"
        self.answer: Optional[Answer] = None
        self.busy: set[str] = set()
        self.late: dict[str, Record] = {}
        self.own: dict[str, Own] = {}
        self.reads: dict[tuple[str, int], Question] = {}
        # What a program would think that goes by the news of others alone, and by what it did itself.
        self.believed: Optional[set[str]] = None
        self.contents: dict[str, int] = {}
        self.strict = True
        self.has_noticed = True
        self.has_locked = False

    # -- the watch -------------------------------------------------------------------------------------------

    def step_watch(self):
        getattr(self, f"_watch_{self.stage}")()

    def _watch_idle(self):
        index = self.cache.arm(self.level)
        self.asked = 1 if self.anew else index
        self.known_at_ask = index
        self.stage = "asked"

    def _watch_asked(self):
        """The server answers, if there is something to answer with; the answer travels."""
        if self.store.answers_with() > self.asked or self.store.answers_with() < self.known_at_ask:
            self.answer = self.store.answer(self.whole)
            self.stage = "answered"

    def _watch_answered(self):
        answer = self.answer
        assert answer is not None
        if self.asked > 1:  # else indexes have begun anew, and the same say nothing
            answer = self.answer = answer.apart(self.cache.known_files(self.level))
        if answer.index < self.known_at_ask:
            self.cache.begin_anew(self.level)
            self.floors.clear()
            self.has_noticed = True
            self.anew, self.stage = True, "idle"
            return
        self.busy = {name_of(key) for key in self.own}
        first = self.level.listing is None
        news = self.cache.take(self.level, answer, self.busy)
        if news is None:
            self.anew, self.stage = True, "idle"
            return
        self.anew = False
        self.told(news, answer.without(self.busy).records, first)
        self.stage = "busy" if self.busy else "settled"

    def _watch_busy(self):
        """It waits until this mount's own changes are through, or, impatient, does not."""
        if self.busy & {name_of(key) for key in self.own}:
            if self.patient:
                return
            self.strict = False
        answer = self.answer
        assert answer is not None
        news = self.cache.settle(self.level, answer, self.busy)
        if news is None:
            self.anew, self.stage = True, "idle"
            return
        self.told(news, answer.of(self.busy).records, False)
        self.stage = "settled"

    def _watch_settled(self):
        """The files whose content may have changed are read."""
        self.read_at = self.cache.ticket()
        suspects = [] if self.whole else self.cache.suspects(self.level, 256)
        self.late = {name_of(key): self.store.stands[key].record for key in suspects if key in self.store.stands}
        self.stage = "read" if suspects else "idle"

    def _watch_read(self):
        if self.patient and {name_of(key) for key in self.own} & self.late.keys():
            return
        if {name_of(key) for key in self.own} & self.late.keys():
            self.strict = False
        self.told(*self.cache.compare(self.level, self.late, self.read_at), False)
        self.stage = "idle"

    def told(self, news: News, records, first):
        if first:
            assert not news.made
            self.believed = set(self.level.listing.names()) if self.level.listing is not None else None
            self.contents = {name: known.signature for name, known in self.level.known.items() if name in records}
            return
        assert not news.made & news.gone
        for name in news.made:
            if self.strict:
                assert name not in self.believed, f"{name!r} is told to be made once more"
            self.believed.add(name)
        for name in news.gone:
            if self.strict:
                assert name in self.believed, f"{name!r} is told to be gone once more"
            self.believed.discard(name)
            self.contents.pop(name, None)
        if self.strict:
            for name in news.changed:
                record = records[name]
                stand = self.store.stands.get(PREFIX + name)
                if stand is not None and stand.record.modify_index == record.modify_index:
                    assert not stand.is_own, f"this mount's own change of {name!r} is told"
                assert self.contents.get(name) != signature(record), f"{name!r} is told, and is as before"
            for name in news.made:
                mine = [stand.made_by_own for key, stand in self.store.stands.items() if name_of(key) == name]
                assert not mine or not all(mine), f"this mount has made {name!r}"
        for name in news.made | news.changed:
            if name in records:
                self.contents[name] = self.level.known[name].signature

    # -- this mount ------------------------------------------------------------------------------------------

    def begin(self, kind, key, value):
        if key not in self.own and (kind in ("put", "large") or key in self.store.stands):
            # Where nobody waits for the outcome, one without an index can be told only by the next answer.
            self.own[key] = Own("put" if kind == "large" and not self.patient else kind, key, value)

    def apply(self, key):
        own = self.own.get(key)
        if own is None or own.applied:
            return
        own.applied = True
        if own.kind in ("put", "large"):
            own.result = self.store.put(key, own.value, is_own=True)
        elif own.kind == "lock":
            own.result = self.store.lock(key)
        else:
            own.result = self.store.delete(key) or None
        own.index = self.store.index

    def finish(self, key):
        own = self.own.get(key)
        if own is None or not own.applied:
            return
        del self.own[key]
        name = name_of(key)
        if own.kind == "delete":
            self.cache.removed(key)
            self.floors.raise_to(key, own.index if own.result else 0)
            if not name.endswith("/"):
                self.believed = self.believed and self.believed - {name}
                self.contents.pop(name, None)
        elif own.result:
            self.cache.stored(own.result if own.kind != "large" else own.result._replace(modify_index=None))
            self.floors.raise_to(key, own.index)
            self.floors.raise_to((PREFIX, name), own.index)
            if self.believed is not None:
                self.believed.add(name)
            if not name.endswith("/"):
                self.contents[name] = signature(own.result)
        else:
            self.cache.forget(key)

    # -- its programs ----------------------------------------------------------------------------------------

    def ask(self, what, program=1):
        self.reads.setdefault((what, program), Question(what, self.cache.ticket()))

    def travel(self, what, program=1):
        question = self.reads.get((what, program))
        if question is None or question.asked:
            return
        question.asked = True
        if what == PREFIX + "?":
            question.answer = self.store.answer(False).listing
        else:
            stand = self.store.stands.get(what)
            question.answer = stand.record if stand is not None else MISSING

    def hear(self, what, program=1):
        question = self.reads.get((what, program))
        if question is None or not question.asked:
            return
        del self.reads[what, program]
        if isinstance(question.answer, Listing):
            self.cache.put_listing(PREFIX, question.answer, question.ticket)
        else:
            self.cache.put(what, question.answer, question.ticket)

    def take_lock(self):
        """What was read before is old: others may have changed it while they had the lock."""
        if self.own:
            return
        self.cache.forget_all()
        self.has_locked = True
        for what in (*KEYS, *((PREFIX, name) for name in NAMES)):
            self.floors.raise_to(what, self.store.index)
        for what in KEYS:
            assert self.cache.record(what) is None
        assert self.cache.listing(PREFIX) is None

    def rewatch(self):
        """Another directory gets the watch, and this one another one later."""
        if self.stage in ("idle", "asked", "answered"):
            self.cache.disarm(self.level)
            self.cache.unwatch(self.level)
            self.look()
            self.level = self.cache.watch(PREFIX)
            self.stage, self.anew, self.believed, self.contents = "idle", True, None, {}

    def restore(self):
        """Consul's indexes begin anew; what lives a second is over by then."""
        goes_back = self.store.START + len(self.store.stands) < self.level.index
        if goes_back and self.stage in ("idle", "asked") and not (self.own or self.reads or self.lifetime):
            self.store.restore()
            self.has_noticed = False
            while not self.has_noticed:  # Consul's indexes would pass where they were before, and nobody could tell
                self.step_watch()

    def fail(self):
        """The query fails."""
        if self.stage in ("asked", "answered"):
            self.cache.disarm(self.level)
            self.stage, self.anew = "idle", True

    def look(self):
        """Everything that is shown."""
        if not self.has_noticed:
            return
        for key in KEYS:
            known = self.cache.record(key)
            if isinstance(known, Missing):
                self.floors.see(key, lambda state, key=key: key not in state)
            elif known is not None and known.modify_index is not None:
                index = known.modify_index
                self.floors.see(key, lambda state, key=key, i=index: key in state and state[key].modify_index == i)
        listing = self.cache.listing(PREFIX)
        if listing is None:
            return
        for name in NAMES:
            there = name in listing
            self.floors.see(
                (PREFIX, name),
                lambda state, name=name, there=there: (
                    any(key.startswith(PREFIX) and name_of(key) == name for key in state) == there
                ),
            )

    # -- in the end ------------------------------------------------------------------------------------------

    def come_to_rest(self):
        for reading in list(self.reads):
            self.travel(*reading)
            self.hear(*reading)
        for key in list(self.own):
            self.apply(key)
            self.finish(key)
        for _ in range(40):
            self.step_watch()
            self.look()

    def check_rest(self):
        assert self.stage == "asked"
        if self.cache.listing(PREFIX) is None:  # a change whose outcome nobody told: the next look asks
            for step in self.ask, self.travel, self.hear:
                step(PREFIX + "?")
        truth = self.store.answer(True)
        listing = self.cache.listing(PREFIX)
        assert listing is not None or not self.level.live
        for shown in listing, self.level.listing:
            assert shown is None or shown.names() == truth.listing.names()
        for name in truth.listing.files:
            known = self.cache.record(PREFIX + name)
            if known is not None or (self.whole and self.strict and not self.has_locked):
                assert isinstance(known, Record)
                assert signature(known) == signature(truth.records[name])
        if self.strict:
            assert self.believed == truth.listing.names()
            for name, mark in self.contents.items():
                assert mark == signature(truth.records[name]), f"nobody was told that {name!r} has changed"


keys = st.sampled_from(KEYS)
values = st.sampled_from([b"x", b"y"])
programs = st.sampled_from([1, 2])
own_values = st.sampled_from([b"own 1", b"own 2", b"x"])

steps = st.one_of(
    st.tuples(st.just("watch")),
    st.tuples(st.just("watch")),
    st.tuples(st.just("watch")),
    st.tuples(st.just("put"), keys, values, st.sampled_from([0, 1])),
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("lock"), keys),
    st.tuples(st.just("begin"), st.sampled_from(["put", "put", "large", "delete", "lock"]), keys, own_values),
    st.tuples(st.just("apply"), keys),
    st.tuples(st.just("finish"), keys),
    st.tuples(st.sampled_from(["ask", "travel", "hear"]), st.sampled_from([*KEYS, PREFIX + "?"]), programs),
    st.tuples(st.sampled_from(["elsewhere", "take_lock", "rewatch", "fail", "restore"])),
)


def run(model, story):
    for step, *arguments in story:
        if step == "watch":
            model.step_watch()
        elif step in ("put", "delete", "lock", "elsewhere"):
            getattr(model.store, step)(*arguments)
        else:
            getattr(model, step)(*arguments)
        model.look()
    model.come_to_rest()
    model.check_rest()


WATCHED = [("watch",)] * 5
"""The first answer was told, and the next query is under way."""

STORIES = {
    "stored here while the first answer travels": [
        ("watch",),
        ("watch",),
        ("begin", "put", "d/a", b"own 1"),
        ("apply", "d/a"),
        ("finish", "d/a"),
    ],
    "stored here and deleted by others before it is told here": [
        *WATCHED,
        ("begin", "put", "d/a", b"own 1"),
        ("apply", "d/a"),
        ("delete", "d/a"),
        *WATCHED,
        ("finish", "d/a"),
    ],
    "deleted here while the files are read again": [
        ("put", "d/a", b"x", 0),
        *WATCHED,
        ("ask", "d/a"),
        ("travel", "d/a"),
        ("hear", "d/a"),
        ("put", "d/a", b"y", 0),
        *[("watch",)] * 3,
        ("begin", "delete", "d/a", b""),
        ("apply", "d/a"),
        ("finish", "d/a"),
    ],
    "a large value stored here while an answer travels": [
        ("put", "d/a", b"x", 0),
        *WATCHED,
        ("put", "d/a", b"y", 0),
        ("watch",),
        ("begin", "large", "d/a", b"own 1"),
        ("apply", "d/a"),
        ("finish", "d/a"),
    ],
    "names that were read while the first answer travelled": [
        ("watch",),
        ("watch",),
        ("put", "d/s/y", b"x", 0),
        ("ask", "d/?"),
        ("travel", "d/?"),
        ("hear", "d/?"),
    ],
    "what cannot be told must not be told in part": [
        ("put", "d/a", b"x", 0),
        ("put", "d/b", b"x", 0),
        *WATCHED,
        ("put", "d/a", b"y", 0),
        ("watch",),
        ("begin", "large", "d/b", b"own 1"),
        ("apply", "d/b"),
        ("finish", "d/b"),
    ],
    "a lock taken while an answer travels": [
        ("put", "d/a", b"x", 0),
        *WATCHED,
        ("put", "d/a", b"y", 0),
        ("watch",),
        ("put", "d/a", b"x", 1),
        ("put", "d/b", b"x", 1),
        ("take_lock",),
        *WATCHED,
    ],
    "deleted here while an answer travels": [
        ("put", "d/a", b"x", 0),
        *WATCHED,
        ("put", "d/a", b"y", 0),
        ("watch",),
        ("begin", "delete", "d/a", b""),
        ("apply", "d/a"),
        ("finish", "d/a"),
    ],
    "changed here while an answer travels": [
        ("put", "d/a", b"x", 0),
        *WATCHED,
        ("put", "d/a", b"y", 0),
        ("watch",),
        ("begin", "put", "d/a", b"own 1"),
        ("apply", "d/a"),
        ("finish", "d/a"),
    ],
    "told by an answer before it is told here": [
        *WATCHED,
        ("begin", "put", "d/a", b"own 1"),
        ("begin", "put", "d/s/x", b"own 1"),
        ("apply", "d/a"),
        ("apply", "d/s/x"),
        *WATCHED,
        ("finish", "d/a"),
        ("finish", "d/s/x"),
    ],
    "the slower of two answers": [
        ("ask", "d/b", 1),
        ("travel", "d/b", 1),
        ("put", "d/b", b"x", 0),
        ("ask", "d/b", 2),
        ("travel", "d/b", 2),
        ("hear", "d/b", 2),
        ("hear", "d/b", 1),
    ],
    "a lock that is taken and given back here and there": [
        ("put", "d/a", b"x", 0),
        *WATCHED,
        ("lock", "d/a"),
        *WATCHED,
        ("begin", "lock", "d/a", b""),
        ("apply", "d/a"),
        *WATCHED,
        ("finish", "d/a"),
        *WATCHED,
    ],
}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.booleans(), st.sampled_from([0.0, 1e9]), st.booleans(), st.lists(steps, max_size=40))
def test_nothing_goes_back_and_all_is_told_once(whole, lifetime, patient, story):
    run(Model(whole, lifetime, patient), story)


@pytest.mark.parametrize("lifetime", [0.0, 1e9])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_what_went_wrong_once(story, whole, lifetime):
    run(Model(whole, lifetime, patient=True), story)
