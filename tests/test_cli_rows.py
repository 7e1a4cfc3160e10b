"""The rows of a backup and the names below a base: pure."""

import io
import json

from hypothesis import given
from hypothesis import strategies as st

from consulfs.consulate import rows
from consulfs.consulate.models import Record
from consulfs.consulate.transfer import absolute, covers, relative

KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
VALUES = st.one_of(st.binary(), st.text(st.characters(exclude_categories=["Cs"])).map(str.encode))
RECORDS = st.lists(st.builds(Record, KEYS, VALUES, st.integers(0, 2**64 - 1)))


@given(RECORDS, st.booleans(), st.booleans())
def test_what_is_written_is_read(records, as_base64, pretty):
    out = io.BytesIO()
    assert rows.write(records, out, as_base64, pretty) == len(records)
    json.loads(out.getvalue())
    found = rows.read(io.BytesIO(out.getvalue()), as_base64)
    assert [(each.key, each.value, each.flags) for each in found] == [(r.key, r.value, r.flags) for r in records]


@given(RECORDS.filter(bool), st.booleans(), st.booleans(), st.data())
def test_a_backup_that_is_cut_is_never_taken_for_a_whole_one(records, as_base64, pretty, data):
    out = io.BytesIO()
    rows.write(records, out, as_base64, pretty)
    text = out.getvalue().rstrip()
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    found = []
    try:
        found.extend(rows.read(io.BytesIO(cut), as_base64))
    except rows.BadBackup:
        return
    raise AssertionError((cut, found))


@given(
    st.lists(st.text("ab/", min_size=1, max_size=6), min_size=1, max_size=3).map("".join),
    st.sampled_from(["a", "a/b", "b"]),
)
def test_names_below_a_base_are_reversible(key, base):
    if covers(base, key):
        assert absolute(base, relative(base, key)) == key


@given(st.lists(st.text("ab/", max_size=6), min_size=2, max_size=2, unique=True))
def test_two_keys_never_have_one_name(rests):
    first, second = (f"foo{rest}" for rest in rests)
    if covers("foo", first) and covers("foo", second):
        assert relative("foo", first) != relative("foo", second)
