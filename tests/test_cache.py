"""What is known of Consul, and for how long: tickets, indexes, the bound, and what a watch vouches for. Pure."""

from __future__ import annotations

import pytest

from consulfs.consulate import Record
from consulfs.store.cache import ENTRY_COST, MISSING, Cache
from consulfs.store.levels import Answer, Listing

FOREVER = 1e9


def record(key="d/a", value=b"x", index=11):
    return Record(key, value, 0, 1, index)


def answer(index, *records):
    names = [each.key for each in records]
    return Answer(index, Listing.below("d/", names), {key[2:]: each for key, each in zip(names, records)})


@pytest.fixture
def cache():
    return Cache(1 << 20, FOREVER)


def test_an_answer_from_before_a_change_of_this_mount_does_not_count(cache):
    ticket = cache.ticket()
    cache.stored(record(index=12))
    assert cache.put("d/a", MISSING, ticket) is None
    assert cache.put("d/a", record(index=11), ticket) is None
    assert not cache.put_listing("d/", Listing(), ticket)
    assert cache.record("d/a").modify_index == 12
    assert cache.put_listing("other/", Listing(), ticket)


def test_but_one_that_is_newer_by_its_index_does(cache):
    ticket = cache.ticket()
    cache.stored(record(index=12))
    assert cache.put("d/a", record(index=13), ticket).modify_index == 13
    assert cache.record("d/a").modify_index == 13


def test_a_server_that_lags_behind_is_not_believed(cache):
    cache.put("d/a", record(index=12), cache.ticket())
    assert cache.put("d/a", record(index=11), cache.ticket()).modify_index == 12


def test_of_two_answers_the_one_that_was_asked_for_later_counts(cache):
    slow, quick = cache.ticket(), cache.ticket()
    cache.put("d/a", record(), quick)
    cache.put("d/a", MISSING, slow)
    assert cache.record("d/a") == record()
    cache.put_listing("d/", Listing({"a"}), quick)
    cache.put_listing("d/", Listing(), slow)
    assert cache.listing("d/").files == {"a"}


def test_what_a_key_is_found_to_be_counts_for_the_names_that_were_read_before_it_too(cache):
    cache.put_listing("", Listing({"b"}), cache.ticket())
    cache.put_listing("d/", Listing({"b"}), cache.ticket())
    version = cache.version
    cache.put("d/a", record(), cache.ticket())
    assert cache.listing("d/").files == {"a", "b"}
    assert cache.listing("").directories == {"d"}
    assert cache.version != version
    cache.put("d/b", MISSING, cache.ticket())
    assert cache.listing("d/").files == {"a"}
    assert cache.listing("").files == {"b"}
    version = cache.version
    cache.put("d/c/marker", MISSING, cache.ticket())
    cache.put("d/a", record(index=12), cache.ticket())
    assert cache.version == version
    assert cache.listing("d/") == Listing({"a"})


def test_but_not_for_names_that_may_have_been_read_after_it(cache):
    early = cache.ticket()
    cache.put_listing("d/", Listing({"b"}), cache.ticket())
    cache.put("d/a", record(), early)
    cache.put("d/b", MISSING, early)
    assert cache.listing("d/").files == {"b"}


def test_without_a_lifetime_only_what_is_watched_is_known():
    cache = Cache(1 << 20, 0)
    cache.put("d/a", record(), cache.ticket())
    assert cache.record("d/a") is None
    level = cache.watch("d/")
    cache.arm(level)
    cache.take(level, answer(11, record()))
    assert cache.record("d/a") is None
    cache.arm(level)
    assert cache.record("d/a") == record()
    assert cache.listing("d/").files == {"a"}
    assert cache.warm("d/", "d/a") == record()
    cache.disarm(level)
    assert cache.record("d/a") is cache.listing("d/") is cache.warm("d/", "d/a") is None


def test_a_lock_makes_all_old_and_what_was_asked_for_before_it(cache):
    level = cache.watch("d/")
    cache.arm(level)
    cache.take(level, answer(11, record()))
    cache.arm(level)
    cache.put("o", record("o"), cache.ticket())
    ticket = cache.ticket()
    cache.forget_all()
    assert cache.record("d/a") is cache.record("o") is cache.listing("d/") is None
    assert cache.put("o", record("o"), ticket) is None
    assert cache.put("o", record("o"), cache.ticket()) == record("o")
    assert cache.record("o") == record("o")


def test_bytes_are_counted_and_bounded_and_the_least_lately_used_goes():
    cache = Cache(3 * ENTRY_COST + 3, FOREVER)
    for name in "abc":
        cache.put(name, record(name), cache.ticket())
    assert cache.size == 3 * ENTRY_COST + 3
    assert cache.record("a") is not None
    cache.stored(record("d", b"x"))
    assert cache.record("b") is None
    assert cache.record("a") is not None
    assert cache.size == 3 * ENTRY_COST + 3
    cache.stored(record("a", b"", 13))
    assert cache.size == 3 * ENTRY_COST + 2
    for name in "acd":
        cache.removed(name)
        cache.forget(name)
    assert cache.size == 0
    cache.stored(record("large", bytes(4 * ENTRY_COST)))
    assert cache.size == 0


def test_the_version_is_another_when_a_name_comes_or_goes_and_else_the_same(cache):
    level = cache.watch("d/")
    cache.arm(level)
    cache.take(level, answer(11, record()))
    cache.arm(level)
    version = cache.version
    cache.take(level, answer(12, record(value=b"y", index=12)))
    cache.stored(record(index=13))
    assert cache.version == version
    for change in (
        lambda: cache.stored(record("d/b", index=14)),
        lambda: cache.removed("d/b"),
        lambda: cache.forget("d/a"),
        lambda: cache.take(level, answer(15)),
        lambda: cache.directory_removed("d/"),
        lambda: cache.directory_moved("d/", "e/"),
    ):
        change()
        assert cache.version != version
        version = cache.version


def test_warm_needs_the_names_and_the_record(cache):
    cache.put("d/a", record(), cache.ticket())
    assert cache.warm("d/", "d/a") is None
    cache.put_listing("d/", Listing({"a"}), cache.ticket())
    assert cache.warm("d/", "d/a") == record()
    cache.put("d/b", MISSING, cache.ticket())
    assert cache.warm("d/", "d/b") is None


def test_a_live_watch_of_a_directory_that_is_not_empty_leads_on_to_it(cache):
    level = cache.watch("d/s/")
    cache.arm(level)
    key = record("d/s/x")
    assert not cache.leads_on("d/")
    cache.take(level, Answer(11, Listing({"x"}), {"x": key}))
    assert cache.leads_on("d/")
    cache.arm(level)
    assert cache.leads_on("d/")
    assert not cache.leads_on("e/")
    cache.take(level, Answer(12, Listing(), {}))
    cache.arm(level)
    assert not cache.leads_on("d/")


def test_of_a_directory_and_the_one_above_it_that_counts_which_was_told_last(cache):
    root, level = cache.watch(""), cache.watch("d/")
    cache.arm(root)
    cache.take(root, Answer(11, Listing({"other"}), {}))
    cache.arm(root)
    cache.arm(level)
    cache.take(level, answer(12, record(index=12)))
    assert cache.leads_on("d/")
    cache.take(root, Answer(13, Listing({"other"}), {}))
    cache.arm(root)
    assert not cache.leads_on("d/")


def test_a_directory_that_was_read_after_the_one_below_it_was_told_counts(cache):
    level = cache.watch("d/")
    cache.arm(level)
    cache.take(level, answer(12, record(index=12)))
    cache.arm(level)
    cache.put_listing("", Listing({"other"}), cache.ticket(), 13)
    assert not cache.leads_on("d/")
    cache.put_listing("", Listing({"other"}), cache.ticket(), 11)
    assert cache.leads_on("d/")


def test_what_was_vouched_for_lives_on_when_nobody_watches_any_more(cache):
    level = cache.watch("d/")
    cache.arm(level)
    cache.take(level, answer(11, record()))
    cache.arm(level)
    cache.unwatch(level)
    assert cache.listing("d/").files == {"a"}
    other = cache.watch("d/")
    cache.unwatch(level)  # not the one that watches now
    cache.arm(other)
    cache.take(other, answer(12))
    assert cache.record("d/a") is None


def test_indexes_that_begin_anew_say_nothing_against_those_before(cache):
    level = cache.watch("d/")
    cache.arm(level)
    cache.take(level, answer(50, record(index=50)))
    cache.begin_anew(level)
    assert cache.arm(level) == 0
    assert not cache.take(level, answer(12, record(index=12)))
    cache.arm(level)
    assert cache.record("d/a").modify_index == 12
    news = cache.take(level, answer(13, record(value=b"y", index=13)))
    assert news.changed == {"a"}


def test_flags_alone_are_a_change_and_a_lock_is_none(cache):
    level = cache.watch("d/")
    for index, flags, session, told in ((11, 0, None, set()), (12, 1, None, {"a"}), (13, 1, "s", set())):
        cache.arm(level)
        news = cache.take(level, answer(index, Record("d/a", b"x", flags, 1, index, 0, session)))
        assert news.changed == told
        assert not news.made | news.gone


def test_a_store_that_is_told_after_an_answer_from_after_it_is_not_certain(cache):
    level = cache.watch("d/")
    for index in (11, 13):
        cache.arm(level)
        cache.take(level, answer(index))
    cache.arm(level)
    cache.stored(record(index=12))
    assert cache.record("d/a") is cache.listing("d/") is None
    assert cache.put_listing("d/", Listing(), cache.ticket())
    assert cache.listing("d/").files == set()


def test_the_files_that_may_have_changed_are_those_known_as_of_before():
    cache = Cache(1 << 20, FOREVER)
    level = cache.watch("d/")
    for name, index in (("a", 10), ("b", 11), ("c", 12)):
        cache.put(f"d/{name}", record(f"d/{name}", index=index), cache.ticket())
    cache.arm(level)
    cache.take(level, Answer(12, Listing({"a", "b", "c"}), {}))
    assert cache.suspects(level, 9) == ["d/b", "d/a"]
    assert cache.suspects(level, 1) == ["d/b"]


def same(index, *names):
    """An answer that shows files to be as they were known."""
    return Answer(index, Listing(set(names)), {}, frozenset(names))


def test_a_slow_answer_is_not_vouched_for_by_what_was_said_of_a_newer_record():
    cache = Cache(2 * ENTRY_COST, FOREVER)
    level = cache.watch("d/")
    slow = cache.ticket()
    cache.arm(level)
    cache.take(level, answer(12, record(index=12)))
    cache.arm(level)
    cache.take(level, same(13, "a"))
    cache.arm(level)
    assert cache.record("d/a").modify_index == 12
    for other in "bc":
        cache.put(f"e/{other}", record(f"e/{other}"), cache.ticket())
    assert cache.last("d/a") is None  # there was no room for it
    cache.put("d/a", record(index=11), slow)
    assert cache.record("d/a") is None


def test_what_an_answer_vouched_for_does_not_outlive_the_next_one(cache):
    level = cache.watch("d/")
    cache.arm(level)
    cache.take(level, answer(12, record(index=11), record("d/b", index=12)))
    cache.arm(level)
    cache.take(level, same(13, "a", "b"))
    cache.arm(level)
    assert cache.record("d/a").modify_index == 11
    cache.removed("d/b")
    # From before or after that? It is asked for anew; but "a" has changed, in any case.
    assert cache.take(level, answer(14, record(index=14), record("d/b", index=12))) is None
    cache.arm(level)
    assert cache.record("d/a") is None


def test_a_name_that_comes_is_not_missing_any_more(cache):
    level = cache.watch("d/")
    for index, names in ((11, {"b"}), (12, {"a", "b"})):
        cache.put("d/a", MISSING, cache.ticket())
        cache.arm(level)
        cache.take(level, Answer(index, Listing(names), {}))
    cache.arm(level)
    assert cache.record("d/a") is None


def test_a_file_that_was_made_and_at_which_nobody_has_looked_is_told_when_it_changes(cache):
    level = cache.watch("d/")
    for index, names in ((11, {"b"}), (12, {"a", "b"}), (13, {"a", "b"})):
        cache.arm(level)
        news = cache.take(level, Answer(index, Listing(names), {}))
        assert news.made == ({"a"} if index == 12 else set())
    news, _ = cache.compare(level, {"a": record(index=13)}, cache.ticket())
    assert news.changed == {"a"}


def test_a_store_from_after_an_answer_says_nothing_of_indexes_that_go_back(cache):
    level = cache.watch("d/")
    cache.arm(level)
    cache.take(level, answer(12, record(index=12)))
    cache.arm(level)
    cache.stored(record(value=b"y", index=15))
    assert not cache.is_of_before(level, {"a": record(index=12)}, 14)
    assert cache.is_of_before(level, {"a": record(index=12)}, 15)
