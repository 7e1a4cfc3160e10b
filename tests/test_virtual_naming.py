"""Names and texts of virtual trees, alone: what is told apart in Consul is told apart by name."""

import json
import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from consulfs import names
from consulfs.tree.virtual.naming import file_name
from consulfs.tree.virtual.text import render

PIECES = ["%", "25", "2F", "3A", "2E", "/", ":", ".", "\0", "%value", "%empty", "%long", "a", "é", " ", "\n"]
"""What a name may be made of that is written otherwise, and what looks like it."""

raw = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)

FORM = re.compile("%((?:25)*)(2F|3A)")


def parts_of(name, count):
    """The raw names that a file name stands for: what a reader of its rules would make of it."""
    component, is_value = names.decode(name)
    assert not is_value
    return [
        FORM.sub(lambda form: f"%{form[1][2:]}{form[2]}" if form[1] else {"2F": "/", "3A": ":"}[form[2]], part)
        for part in component.split(":", count - 1)
    ]


@settings(deadline=None)
@given(raw)
@example("%252F")
@example("%25/")
@example("..")
def test_a_name_tells_what_it_stands_for(part):
    assert parts_of(file_name(part), 1) == [part]


@settings(deadline=None)
@given(raw, raw)
@example("a:b", "c")
@example("a", "b:c")
@example("a%3Ab", "c")
@example("", "")
def test_a_name_of_two_parts_tells_both(first, last):
    assert parts_of(file_name(first, last), 2) == [first, last]


@settings(deadline=None)
@given(st.lists(raw | st.text(max_size=300), min_size=1, max_size=3))
@example(["é" * 200, "x"])
def test_a_directory_can_hold_it(parts):
    name = file_name(*(part.encode("utf-8", "ignore").decode() for part in parts))
    assert name not in ("", ".", "..")
    assert not set(name) & {"/", "\0"}
    assert len(name.encode()) <= 255


def test_long_names_that_end_otherwise_are_two():
    assert file_name("n", "x" * 300 + "a") != file_name("n", "x" * 300 + "b")
    assert file_name("n:" + "x" * 300, "c") != file_name("n", "x" * 300 + ":c"), "the node ends elsewhere"


def test_what_is_plain_is_plain_text():
    assert render(["a", "b"]) == b"a\nb\n"
    assert render("127.0.0.1:8300") == b"127.0.0.1:8300\n"
    assert render([1, True, 0.5]) == b"1\ntrue\n0.5\n"
    assert render([]) == render("") == render(None) == b""


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.text(max_size=5)))
def test_an_object_is_indented_json_with_a_newline_at_its_end(value):
    content = render(value)
    assert json.loads(content) == value
    assert content.endswith(b"}\n")
    assert not value or content.startswith(b'{\n  "')


def test_a_text_is_readable_as_it_is():
    assert render({"a": "grün 💡 <&>"}) == '{\n  "a": "grün 💡 <&>"\n}\n'.encode()
    assert render({"a": "\ud800"}) == b'{\n  "a": "?"\n}\n', "half a pair, which no UTF-8 has"
