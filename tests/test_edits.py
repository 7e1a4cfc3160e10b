"""Edits replayed on another content: pure, and property-tested against a file in memory."""

import io

from hypothesis import given
from hypothesis import strategies as st

from consulfs.store.edits import (
    Append,
    Edit,
    Truncate,
    Write,
    compact,
    differing,
    only_sizes,
    record,
    replay,
    stands_alone,
)

DATA = st.binary(max_size=20)
CHANGES = st.one_of(
    st.builds(Write, st.integers(0, 60), DATA.map(bytearray)),
    st.builds(Append, DATA.map(bytearray)),
    st.builds(Truncate, st.integers(0, 60)),
)
EDITS = st.lists(st.builds(Edit, st.integers(1, 3), CHANGES), max_size=30)


def by_file(value, edits):
    file = io.BytesIO(value)
    for edit in edits:
        change = edit.change
        if isinstance(change, Truncate):
            size = file.seek(0, io.SEEK_END)
            file.truncate(change.size)
            if change.size > size:
                file.seek(size)
                file.write(bytes(change.size - size))
        elif change.data or isinstance(change, Append):
            file.seek(0, io.SEEK_END) if isinstance(change, Append) else file.seek(change.offset)
            file.write(change.data)
        else:  # a write of nothing: FUSE never sends one, and the model of a gap differs
            size = file.seek(0, io.SEEK_END)
            file.write(bytes(max(0, change.offset - size)))
    return file.getvalue()


@given(st.binary(max_size=40), EDITS)
def test_replay_is_what_a_file_does(value, edits):
    assert replay(value, edits) == by_file(value, edits)


@given(st.binary(max_size=40), EDITS)
def test_compacting_changes_nothing(value, edits):
    assert replay(value, compact(edits)) == replay(value, edits)


@given(st.binary(max_size=40), EDITS)
def test_recording_merges_and_changes_nothing(value, edits):
    kept = []
    for edit in edits:
        change = edit.change
        copy = (
            Truncate(change.size)
            if isinstance(change, Truncate)
            else type(change)(**{**vars(change), "data": bytearray(change.data)})
        )
        record(kept, edit.owner, copy)
    assert replay(value, kept) == replay(value, edits)
    assert len(kept) <= len(edits)


@given(st.binary(max_size=40), st.binary(max_size=40), EDITS)
def test_what_stands_alone_after_a_truncation_needs_no_base(one, other, edits):
    edits = [Edit(1, Truncate(0)), *edits]
    assert stands_alone(edits)
    assert replay(one, edits) == replay(other, edits)


@given(st.binary(max_size=300), st.integers(0, 350), st.lists(st.tuples(st.integers(0, 199), st.integers(0, 255))))
def test_of_a_page_that_is_written_that_counts_which_was_changed(content, offset, changes):
    page = bytearray(content[offset : offset + 200].ljust(200, b"\0"))
    before = bytes(page)
    for at, byte in changes:
        page[at] = byte
    writes = differing(content, offset, bytes(page))
    written = {write.offset + at - offset: byte for write in writes for at, byte in enumerate(write.data)}
    assert written == {at: byte for at, byte in enumerate(page) if byte != before[at]}
    assert sum(len(write.data) for write in writes) == len(written)


def test_the_questions():
    assert stands_alone([Edit(1, Append(bytearray(b"x")))])
    assert not stands_alone([Edit(1, Write(0, bytearray(b"x")))])
    assert only_sizes([Edit(1, Truncate(3))])
    assert only_sizes([])
    assert not only_sizes([Edit(1, Truncate(0)), Edit(1, Append(bytearray(b"x")))])


def test_many_small_writes_take_little_room():
    edits = []
    for number in range(100_000):
        record(edits, 1, Write(number * 7919 % 5000, bytearray(b"x")))
    assert len(edits) < 5000
    assert sum(len(edit.change.data) for edit in edits) < 10_000
