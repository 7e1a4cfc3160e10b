"""A JSON list that is decoded while it arrives, in pieces of every size."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consulfs.consulate import jsonlist

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def arriving(data, size):
    """As a stream gives it, in pieces of `size` bytes however many are asked for."""
    pieces = iter([data[at : at + size] for at in range(0, len(data), size)])
    return lambda wanted: next(pieces, b"")


@given(st.lists(values, max_size=6), st.integers(1, 9), st.booleans(), st.sampled_from([None, 0, 3]))
def test_every_list_in_every_cut(wanted, size, ascii, indent):
    data = json.dumps(wanted, ensure_ascii=ascii, indent=indent).encode("utf-8", "surrogatepass")
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    assert list(jsonlist.elements(arriving(data, size))) == json.loads(data)


@given(st.lists(values, max_size=3), st.integers(1, 9), st.data())
def test_no_part_of_a_list_is_a_list(wanted, size, data):
    whole = json.dumps(wanted).encode()
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    seen = []
    with pytest.raises(ValueError):
        seen.extend(jsonlist.elements(arriving(part, size)))


@pytest.mark.parametrize(
    "text",
    ["", " ", "[,]", "[1,]", "[1 2]", "[1]]", "[]]", "[] []", "{}", "3", '"[]"', "nul", "nulls", "null null", "true",
     "[1", "[" * 5000, "[{]}", "[" + "1" * 5000 + "]", "<html>", "null"],
)  # fmt: skip
def test_what_is_no_list(text):
    with pytest.raises(ValueError):
        list(jsonlist.elements(arriving(text.encode("utf-8", "surrogateescape"), 7)))


def test_null_is_an_empty_list_where_it_may_be():
    assert list(jsonlist.elements(arriving(b" null\n", 2), or_null=True)) == []
    for text in (b"nul", b"nulls", b"null null", b"", b"{}", b"true"):
        with pytest.raises(ValueError):
            list(jsonlist.elements(arriving(text, 2), or_null=True))


def test_bytes_that_are_no_utf8_are_halves_in_their_element_alone():
    assert list(jsonlist.elements(arriving(b'["a", "b\xff", "c"]', 3))) == ["a", "b\udcff", "c"]


def test_one_wrong_character_does_not_have_the_rest_read():
    reads = 0

    def read(size):
        nonlocal reads
        reads += 1
        return b'["a", "b" : ' + b"x" * size

    with pytest.raises(ValueError):
        list(jsonlist.elements(read))
    assert reads < 3


def test_a_source_that_does_not_wait_has_not_ended():
    pieces = iter([b"[1, ", None])
    found = jsonlist.elements(lambda size: next(pieces))
    assert next(found) == 1
    with pytest.raises(BlockingIOError, match="does not wait"):
        next(found)


def test_it_reads_no_further_than_it_must():
    """The first elements are given before the last have come, and one large element is read in few steps."""
    reads = []

    def read(size):
        reads.append(size)
        return b"[" + b"{}," * (size // 3) if len(reads) == 1 else b"{}," * (size // 3)

    found = jsonlist.elements(read)
    assert [next(found) for _ in range(1000)] == [{}] * 1000
    assert len(reads) == 1
    large = json.dumps(["x" * (20 << 20)]).encode()
    steps, at = 0, 0

    def more(size):
        nonlocal steps, at
        steps, at = steps + 1, at + size
        return large[at - size : at]

    assert len(next(iter(jsonlist.elements(more)))) == 20 << 20
    assert steps < 15
