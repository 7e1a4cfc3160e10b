"""The map between keys and names is a bijection."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from consulfs import names
from consulfs.tree.virtual import NAMES as VIRTUAL

HASH = "0123456789abcdef" * 2
# Text that is dense in the forms' own pieces, so that their corners meet.
PIECES = st.lists(
    st.sampled_from(
        ["%", "25", "%25", "00", "%00", "\0", "empty", "%empty", "2E", "%2E", "value", "%value", "long" + HASH,
         "%long" + HASH, "5F", "%5F", "_catalog", "catalog", ".", "a", "ü", "long" * 40]
    ),
    max_size=7,
).map("".join)  # fmt: skip
COMPONENTS = st.one_of(PIECES, st.text(st.characters(codec="utf-8", exclude_characters="/"), max_size=300))
NAMES = COMPONENTS.filter(lambda text: text not in ("", ".", "..") and "\0" not in text).filter(
    lambda text: len(text.encode()) <= names.NAME_MAX
)
RESERVED = st.sampled_from([frozenset(), VIRTUAL])


@given(COMPONENTS, st.booleans(), RESERVED)
@example("%value", False, frozenset())
@example("%25value", True, frozenset())
@example("", True, frozenset())
def test_every_component_has_a_name_of_its_own(component, value, reserved):
    name = names.encode(component, value, reserved)
    assert 0 < len(name.encode()) <= names.NAME_MAX
    assert "/" not in name
    assert "\0" not in name
    assert name not in (".", "..")
    assert name not in reserved
    back, is_value = names.decode(name, reserved)
    assert is_value == value
    if isinstance(back, names.Shortened):
        assert len(component.encode()) > 200
    else:
        assert back == component


@given(NAMES, RESERVED)
@example("%value", frozenset())
@example("%25value", frozenset())
@example("%value%value", frozenset())
def test_no_two_names_have_one_component(name, reserved):
    try:
        component, value = names.decode(name, reserved)
    except names.UnmappableName:
        return
    if not isinstance(component, names.Shortened) and name not in reserved:
        assert names.encode(component, value, reserved) == name


@pytest.mark.parametrize("name", [".%value", "..%value", "_catalog%value"])
def test_another_way_to_write_a_name_is_none(name):
    with pytest.raises(names.UnmappableName):
        names.decode(name, VIRTUAL)


@pytest.mark.parametrize(
    "name", ["plain", "100%", "a%20b", "a%2Eb", "a b", "#", "?", "+", "'\"", "ümläut", "new\nline", "%", "%25", "%5Fx"]
)
def test_ordinary_names_map_to_themselves(name):
    assert names.encode(name, False, VIRTUAL) == name
    assert names.decode(name, VIRTUAL) == (name, False)


@pytest.mark.parametrize(
    ("component", "value", "name"),
    [
        ("", False, "%empty"),
        (".", False, "%2E"),
        ("..", False, "%2E%2E"),
        ("a\0b", False, "a%00b"),
        ("foo", True, "foo%value"),
        ("foo%value", False, "foo%25value"),
        ("%empty", False, "%25empty"),
        ("_catalog", False, "%5Fcatalog"),
        ("%5Fcatalog", False, "%255Fcatalog"),
    ],
)
def test_the_forms(component, value, name):
    assert names.encode(component, value, VIRTUAL) == name
    assert names.decode(name, VIRTUAL) == (component, value)


def test_long_components_are_told_apart():
    one, two = "x" * 300 + "1", "x" * 300 + "2"
    assert names.encode(one) != names.encode(two)
    assert isinstance(names.decode(names.encode(one))[0], names.Shortened)


def test_a_name_that_is_not_utf8():
    with pytest.raises(names.UnmappableName):
        names.decode("a\udcff")
