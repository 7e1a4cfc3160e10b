"""The pure parts of the virtual trees: names, text, scans, what a call leaves out, and what is told of a request."""

import json
import re
import time
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from consulfs import names, options
from consulfs.metrics import kind_of
from consulfs.names import NAME_MAX
from consulfs.tree.virtual.answers import Answer
from consulfs.tree.virtual.asks import without
from consulfs.tree.virtual.naming import file_name
from consulfs.tree.virtual.parts import by, column
from consulfs.tree.virtual.scans import GAP, LONGEST, MANY, Scan
from consulfs.tree.virtual.text import render

HASH = "0123456789abcdef" * 2

# -- names -------------------------------------------------------------------------------------------------------

# Text that is dense in the forms' own pieces, so that their corners meet.
PIECES = st.lists(
    st.sampled_from(
        ["%", "25", "%25", "2F", "%2F", "/", "3A", "%3A", ":", "00", "%00", "\0", "2E", "%2E", ".", "empty", "%empty",
         "value", "%value", "%long" + HASH, "a", "ü", "long" * 40]
    ),
    max_size=7,
).map("".join)  # fmt: skip
PARTS = st.one_of(PIECES, st.text(st.characters(codec="utf-8"), max_size=300))


FORM = re.compile("%((?:25)*)(2F|3A)")


def parts_of(component, count):
    """The raw names that a file name stands for: what a reader of its rules would make of it."""
    return [
        FORM.sub(lambda form: f"%{form[1][2:]}{form[2]}" if form[1] else {"2F": "/", "3A": ":"}[form[2]], part)
        for part in component.split(":", count - 1)
    ]


@given(st.lists(PIECES, min_size=1, max_size=3))
@example(["%252F"])
@example(["%25/"])
@example([".."])
@example(["a:b", "c"])
@example(["a", "b:c"])
@example(["a%3Ab", "c"])
@example(["", ""])
def test_a_name_tells_what_it_stands_for(parts):
    component, is_value = names.decode(file_name(*parts))
    assume(isinstance(component, str))  # a long one has the start alone
    assert parts_of(component, len(parts)) == parts
    assert not is_value


@given(PARTS, PARTS)
@example("a:b", "a%3Ab")
@example("a/b", "a%2Fb")
@example("", "%empty")
def test_two_things_have_two_names(one, other):
    assume(one != other)
    assert file_name(one) != file_name(other)


@given(st.tuples(PARTS, PARTS), st.tuples(PARTS, PARTS), st.sampled_from([":", "."]))
@example(("a:b", "c"), ("a", "b:c"), ":")
@example(("a%3Ab", "c"), ("a:b", "c"), ":")
@example(("a", "/"), ("a", "%2F"), ":")
@example(("", ""), ("", ":"), ":")
def test_two_pairs_have_two_names(one, other, separator):
    # Where "." parts them it is not escaped: the last part must not have one. IDs of events, which are UUIDs, do not.
    assume(one != other and (separator == ":" or "." not in one[1] + other[1]))
    assert file_name(*one, separator=separator) != file_name(*other, separator=separator)


@given(st.lists(PARTS, min_size=1, max_size=3))
@example(["."])
@example([".", "."])
@example([""])
@example(["", ""])
@example(["%"])
def test_a_name_is_one_that_a_directory_can_hold(parts):
    name = file_name(*parts)
    assert 0 < len(name.encode()) <= NAME_MAX
    assert "/" not in name
    assert "\0" not in name
    assert name not in (".", "..")


@given(st.lists(st.text("abcXYZ019-_ %äß€", min_size=1, max_size=40), min_size=1, max_size=2))
def test_plain_names_are_themselves(parts):
    assume(not any(form in part for part in parts for form in ("%25", "%2", "%3", "%0", "%empty", "%value", "%long")))
    assert file_name(*parts) == ":".join(parts)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("web",), "web"),
        (("node-1", "web-1"), "node-1:web-1"),
        (("node-1", "service:web-1"), "node-1:service:web-1"),
        (("node:1", "web"), "node%3A1:web"),
        (("node%3A1", "web"), "node%253A1:web"),
        (("n", "a/b"), "n:a%2Fb"),
        (("n", "a%2Fb"), "n:a%252Fb"),
        (("a/b",), "a%2Fb"),
        (("a:b",), "a:b"),
        (("100%",), "100%"),
        (("a%20b",), "a%20b"),
        ((".",), "%2E"),
        (("..",), "%2E%2E"),
        (("",), "%empty"),
        (("", ""), ":"),
        (("..", ".."), "..:.."),
        (("a\0b",), "a%00b"),
        (("größe", "日本"), "größe:日本"),
        (("new\nline", " "), "new\nline: "),
        (("half\ud800", "a"), "half?:a"),
    ],
)
def test_the_names_of_some_parts(parts, name):
    assert file_name(*parts) == name


@pytest.mark.parametrize("parts", [("x" * 300,), ("n" * 200, "i" * 200), ("ü" * 200, "x")])
def test_long_names_are_cut_and_told_apart(parts):
    other = (*parts[:-1], parts[-1] + "y")
    assert file_name(*parts) != file_name(*other)
    assert len(file_name(*parts).encode()) <= NAME_MAX
    assert file_name(*parts).startswith(parts[0][:50])


def test_long_names_whose_parts_end_elsewhere_are_two():
    assert file_name("n:" + "x" * 300, "c") != file_name("n", "x" * 300 + ":c")


def test_rows_and_groups_are_named_by_fields():
    row = {"Node": "n:1", "CheckID": "service:web/1", "Port": 80}
    assert by("Node", "CheckID")(row) == "n%3A1:service:web%2F1"
    assert by("CheckID")(row) == "service:web%2F1"
    assert by("Node", "Port")(row) == "n%3A1:80"
    assert by("Node", "Port", separator=".")(row) == "n%3A1.80"
    assert column("Node")([row, {"Node": "../x"}]) == ["n:1", "../x"]
    assert by("Name")(row) == "%empty", "an odd row does not take its directory with it"


# -- text --------------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
VALUES = st.recursive(SCALARS, lambda each: st.lists(each) | st.dictionaries(st.text(), each), max_leaves=10)


def is_plain(value):
    """Not as JSON, but as text."""
    return not isinstance(value, (list, dict)) or (
        isinstance(value, list) and not any(isinstance(each, (list, dict)) for each in value)
    )


@given(VALUES)
def test_what_is_not_plain_is_json(value):
    assume(not is_plain(value))
    text = render(value)
    assert json.loads(text) == value
    assert text.endswith(b"\n")
    assert not text.endswith(b"\n\n")
    assert text.decode() == json.dumps(value, indent=2, ensure_ascii=False) + "\n"


@given(VALUES)
def test_a_file_is_empty_or_ends_with_a_newline(value):
    text = render(value)
    assert text == b"" or text.endswith(b"\n")
    text.decode()


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1)))
def test_a_list_of_texts_is_one_a_line(values):
    assert render(values).decode().split("\n")[:-1] == values
    assert render(tuple(values)) == render(values)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("", ""),
        ([], ""),
        ([None, ""], ""),
        ({}, "{}\n"),
        ([{}], "[\n  {}\n]\n"),
        ([[]], "[\n  []\n]\n"),
        ("127.0.0.1:8300", "127.0.0.1:8300\n"),
        ("one\ntwo\n", "one\ntwo\n"),
        (["a", "b"], "a\nb\n"),
        (["a", 1, True, None, 1.5], "a\n1\ntrue\n1.5\n"),
        (0, "0\n"),
        (False, "false\n"),
        (1.5, "1.5\n"),
        ({"a": "grün 💡 <&>"}, '{\n  "a": "grün 💡 <&>"\n}\n'),
        ({"a": None, "b": []}, '{\n  "a": null,\n  "b": []\n}\n'),
        (["a", {}], '[\n  "a",\n  {}\n]\n'),
    ],
)
def test_the_text_of_some_values(value, text):
    assert render(value).decode() == text


def test_half_a_surrogate_pair_is_shown_as_a_question_mark():
    assert render("a\ud800") == b"a?\n"
    assert json.loads(render({"\udc00": ["\ud800b"]})) == {"?": ["?b"]}


# -- scans -------------------------------------------------------------------------------------------------------

NAMES = {f"n{number}": number for number in range(MANY + 1)}


def test_each_name_is_taken_once():
    scan = Scan(NAMES, 10.0)
    assert scan.size == MANY + 1
    assert scan.take("n5", 10.0) == 5
    assert scan.take("n5", 10.0) is None
    assert scan.take("n6", 10.0) == 6
    assert scan.take("other", 10.0) is None


def test_few_names_are_asked_for_again():
    few = dict(list(NAMES.items())[:MANY])
    scan = Scan(few, 10.0)
    assert not scan.is_live(10.0)
    assert scan.take("n0", 10.0) is None
    scan = Scan({**few, "more": 1}, 10.0)
    assert scan.is_live(10.0)
    assert scan.take("n0", 10.0) == 0


def test_nobody_goes_through_it_after_a_gap():
    scan = Scan(NAMES, 10.0)
    assert scan.take("n1", 10.0 + GAP) == 1
    assert scan.is_live(10.0 + 2 * GAP)
    assert not scan.is_live(10.25 + 2 * GAP)
    assert scan.take("n2", 10.25 + 2 * GAP) is None


def test_a_look_that_takes_nothing_does_not_keep_it_alive():
    scan = Scan(NAMES, 10.0)
    assert scan.take("n1", 10.0) == 1
    for moment in (10.5, 11.0, 11.5, 12.0):
        assert scan.take("n1", moment) is None
        assert scan.take("other", moment) is None
    assert scan.is_live(10.0 + GAP)
    assert scan.take("n2", 10.25 + GAP) is None


def test_after_the_longest_time_it_is_asked_again():
    names = {str(number): number for number in range(200)}
    scan, moment = Scan(names, 0.0), 0.0
    for number in range(int(LONGEST) + 1):
        moment = float(number)
        assert scan.take(str(number), moment) == number
    assert moment == LONGEST
    assert not scan.is_live(LONGEST + 0.25)
    assert scan.take("199", LONGEST + 0.25) is None


def test_a_listing_is_not_changed_by_its_scan():
    shown = dict(NAMES)
    Scan(shown, 0.0).take("n1", 0.0)
    Scan(shown, 0.0).take("n1", 99.0)
    assert shown == NAMES


# -- answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("took", [0.0, 0.3, 0.6, 1.5, 30.0])
def test_an_answer_counts_from_its_question_or_for_twice_its_time(took):
    before = time.monotonic()
    answer = Answer([], before - took)
    late = time.monotonic() - before
    wanted = before + max(1.0 - took, min(4.0, 2 * took))
    assert wanted - 1e-6 <= answer.until <= wanted + 3 * late + 1e-6


# -- what is left out --------------------------------------------------------------------------------------------


@given(VALUES, st.sets(st.text(max_size=2), max_size=3))
def test_fields_are_left_out_however_deep_they_are(value, fields):
    found = without(fields, lambda consul, left: value)(None, 1.0)
    assert not fields & set(all_fields(found))
    if not fields & set(all_fields(value)):
        assert found == value


def all_fields(value):
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    for each in value if isinstance(value, list) else ():
        yield from all_fields(each)


def test_all_but_the_fields_is_kept():
    token = {
        "AccessorID": "a",
        "SecretID": "s",
        "Policies": [{"ID": "p", "SecretID": "s", "Deep": [[{"SecretID": 1}]]}],
    }
    asked = []

    def ask(consul, left, *groups):
        asked.append((consul, left, groups))
        return [token, "SecretID", None, 5]

    found = without(("SecretID",), ask)("client", 2.5, "group")
    assert found == [{"AccessorID": "a", "Policies": [{"ID": "p", "Deep": [[{}]]}]}, "SecretID", None, 5]
    assert asked == [("client", 2.5, ("group",))]
    assert token["SecretID"] == "s", "what the call gave is not changed"


# -- what is told of a request -----------------------------------------------------------------------------------

# Each URI of Consul's API that names something, as in docs/http-endpoints.md; and the kind that tells of it.
NAMING = {
    "kv/{}": "kv",
    "kv/dir/{}": "kv",
    "config/service-defaults/{}": "config",
    "query/{}": "query",
    "query/{}/execute": "query",
    "query/{}/explain": "query",
    "session/info/{}": "session/info",
    "session/node/{}": "session/node",
    "session/renew/{}": "session/renew",
    "session/destroy/{}": "session/destroy",
    "health/node/{}": "health/node",
    "health/service/{}": "health/service",
    "health/checks/{}": "health/checks",
    "health/connect/{}": "health/connect",
    "catalog/service/{}": "catalog/service",
    "catalog/node/{}": "catalog/node",
    "catalog/node-services/{}": "catalog/node-services",
    "agent/service/{}": "agent/service",
    "agent/service/deregister/{}": "agent/service",
    "agent/check/pass/{}": "agent/check",
    "agent/join/{}": "agent/join",
    "acl/token/{}": "acl/token",
    "acl/policy/{}": "acl/policy",
    "acl/policy/name/{}": "acl/policy",
    "acl/role/{}": "acl/role",
    "acl/info/{}": "acl/info",
    "acl/destroy/{}": "acl/destroy",
    "acl/clone/{}": "acl/clone",
    "connect/intentions/{}": "connect/intentions",
    "event/fire/{}": "event/fire",
    "coordinate/node/{}": "coordinate/node",
}
SECRETS = st.one_of(st.text(st.characters(codec="utf-8"), max_size=30), st.uuids().map(str), PIECES)


@given(st.sampled_from(sorted(NAMING)), SECRETS, st.sampled_from(["", "?index=7&wait=2s", "?token=s3cret&dc=dc9"]))
@example("kv/{}", "/v1/kv/secret", "")
@example("kv/{}", "a/v1/b/c", "")
@example("kv/{}", "", "?index=1")
def test_the_kind_of_a_request_names_nothing(path, secret, query):
    for named in (quote(secret), quote(secret, safe="")):
        for base in ("http://127.0.0.1:8500/v1/", "http+unix://%2Frun%2Fconsul.sock/v1/", "https://h/prefix/v1/"):
            kind, waits = kind_of("GET", base + path.format(named) + query)
            assert kind == f"GET {NAMING[path]}"
            assert waits == ("index=" in query)


@pytest.mark.parametrize(
    ("method", "uri", "kind"),
    [
        ("GET", "http://127.0.0.1:8500/v1/kv/app/key?raw", ("GET kv", False)),
        ("PUT", "http://127.0.0.1:8500/v1/txn", ("PUT txn", False)),
        ("GET", "http://127.0.0.1:8500/v1/status/leader", ("GET status/leader", False)),
        ("GET", "http://127.0.0.1:8500/v1/health/state/any?dc=x", ("GET health/state", False)),
        ("GET", "http://127.0.0.1:8500/v1/kv/a?wait=5s&index=3", ("GET kv", True)),
        ("GET", "http://127.0.0.1:8500/v1/agent/service/web?hash=abc", ("GET agent/service", True)),
        ("GET", "http://127.0.0.1:8500/v1/kv/index=3?keys", ("GET kv", False)),
        ("GET", "http://127.0.0.1:8500/v1/snapshot", ("GET snapshot", False)),
    ],
)
def test_the_kinds_of_some_requests(method, uri, kind):
    assert kind_of(method, uri) == kind


# -- options -----------------------------------------------------------------------------------------------------


def test_options_are_shown_as_they_count():
    lines = options.shown(
        options.parse(["ro", "umask=022", "timeout=2.5", "lock_ttl=1m", "noatime"], {}), virtual="hidden"
    )
    shown = dict(line.split("=", 1) for line in lines if "=" in line)
    assert shown["ro"] == "yes"
    assert shown["acl_secrets"] == "no"
    assert shown["umask"] == "022"
    assert shown["timeout"] == "2.5"
    assert shown["lock_ttl"] == "60s"
    assert shown["cache_size"] == "64M"
    assert shown["virtual"] == "hidden"
    assert shown["verify"] == "yes"
    assert "token" not in shown
    assert "dc" not in shown
    assert lines[-4:] == ["nosuid", "nodev", "noexec", "noatime"]


@given(
    st.dictionaries(
        st.sampled_from(sorted(option.name for option in options.OPTIONS if option.secret)),
        st.text("abcdefghijkl0123456789", min_size=12),
        min_size=1,
    ),
    st.booleans(),
)
def test_a_secret_is_shown_as_askedand_not_what_it_is(secrets, by_environment):
    words = [f"{name}={value}" for name, value in secrets.items()]
    environ = {options.BY_NAME[name].environ: value for name, value in secrets.items()}
    parsed = options.parse([], environ) if by_environment else options.parse(words, {})
    text = "\n".join(options.shown(parsed))
    assert not any(value in text for value in secrets.values())
    assert not any(value in repr(parsed) for value in secrets.values())
    for name in secrets:
        assert f"{name}=(not shown)" in text.splitlines()


def test_what_is_shown_says_the_same_when_it_is_askedagain():
    words = ["ro", "umask=022", "timeout=2.5", "cache_size=3000000", "dc=dc2", "exclusive=close", "uid=0"]
    once = options.shown(options.parse(words, {}))
    again = [line.removesuffix("=yes") if line in ("ro=yes",) else line for line in once if not line.endswith("=no")]
    assert options.shown(options.parse(again, {})) == once
