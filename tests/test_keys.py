"""Every key is a file, and every file the key that its name says."""

import errno
import os
import time

import pytest

from consulfs import names
from consulfs.tree.virtual import NAMES

STALE = 1.1

ODD = [
    "a b",
    "it's",
    'say "hi"',
    "100%",
    "a%20b",
    "a#b",
    "a?b=c",
    "a+b",
    "a&b",
    "a\\b",
    "ünï/cödé",
    "日本/語",
    "new\nline",
    "tab\there",
    "\U0001fae8",  # newer than Consul 1.8's Unicode tables, which call it unprintable
    "a//b",
    "a///b",
    "/lead",
    "//lead",
    "x/../y",
    "x/./y",
    "..",
    "%empty",
    "%2E",
    "a%value",
    "nul\0nul",
    "_catalog",
    "_catalog/x",
    "x" * 300,
    "ü" * 200 + "/" + "y" * 300,
    "d/" + "%" * 255,
]


def path_of(key: str) -> str:
    parts = key.split("/")
    shown = [names.encode(part, False, NAMES if at == 0 else ()) for at, part in enumerate(parts)]
    return "/".join(shown)


@pytest.mark.parametrize("key", ODD, ids=ascii)
def test_a_key_is_read_listed_and_removed(mnt, curl, key):
    curl.put(key, b"value")
    path = mnt.path / path_of(key)
    assert path.read_bytes() == b"value"
    found = [os.path.join(folder, name) for folder, _, files in os.walk(mnt.path) for name in files]
    assert found == [str(path)]
    path.write_bytes(b"changed")
    assert curl.get(key) == b"changed"
    path.unlink()
    assert curl.keys() == []


@pytest.mark.parametrize("key", [key for key in ODD if len(key) < 200], ids=ascii)
def test_a_file_becomes_the_key(mnt, curl, key):
    path = mnt.path / path_of(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"value")
    assert curl.get(key) == b"value"
    path.rename(mnt.path / "moved")
    assert curl.get("moved") == b"value"
    assert curl.get(key) is None


def test_a_key_with_keys_below_it(mnt, curl):
    curl.put("foo", b"own")
    curl.put("foo/bar", b"below")
    assert sorted(os.listdir(mnt.path)) == ["foo", "foo%value"]
    assert mnt.ok("cat foo%value foo/bar") == "ownbelow"
    mnt.ok("echo new > foo%value")
    assert curl.get("foo") == b"new\n"
    mnt.ok("rm foo/bar; rmdir foo; cat foo")
    assert curl.tree() == {"foo": b"new\n"}


def test_a_plain_key_has_one_name_alone(mnt, curl):
    curl.put("plain", b"text")
    assert "No such file" in mnt.sh("cat plain%value").stderr
    assert "No such file" in mnt.sh("rm plain%value").stderr
    assert mnt.sh("echo x > plain%value").returncode != 0
    assert mnt.sh("echo x > ..%value").returncode != 0
    assert curl.tree() == {"plain": b"text"}


def test_a_value_may_come_before_its_directory(mnt, curl):
    mnt.ok("echo own > foo%value; ls; mkdir foo; echo below > foo/bar; ls foo%value foo/bar")
    assert curl.tree() == {"foo": b"own\n", "foo/": b"", "foo/bar": b"below\n"}
    mnt.ok("echo own > new%value")
    curl.delete("new")
    mnt.ok("sleep 1.1; echo plain > new; cat new")
    assert curl.get("new") == b"plain\n"


def test_a_directory_does_not_replace_one_whose_marker_carries_something(mnt, curl):
    curl.put("a/", b"", flags=7)
    mnt.ok("mkdir b; sleep 1.1")
    assert "not empty" in mnt.sh("mv -T b a").stderr
    assert curl.flags("a/") == 7


def test_rm_r_of_a_key_with_keys_below_it(mnt, curl):
    for key in ("d/foo", "d/foo/bar", "d/foo/baz/x"):
        curl.put(key, b"x")
    mnt.ok("rm -r d")
    assert curl.keys() == []


def test_copies_of_both_kinds(mnt, curl, tmp_path):
    wanted = {"s/foo": b"own", "s/foo/bar": b"below", "s/foo/bar/baz": b"deep", "s/a//b": b"odd", "s/e/": b"marker"}
    for key, value in wanted.items():
        curl.put(key, value)
    mnt.ok(
        f"cp -r s {tmp_path}/s && cp -r {tmp_path}/s t && rsync -a {tmp_path}/s/ u/"
        f" && (cd {tmp_path}; tar c s) | (mkdir v; cd v; tar x)"
    )
    tree = {key: value for key, value in curl.tree().items() if value}
    for prefix in ("s/", "t/", "u/", "v/s/"):
        below = {key[len(prefix) :]: value for key, value in tree.items() if key.startswith(prefix)}
        assert below == {key[2:]: value for key, value in wanted.items()}, prefix


def test_the_folder_marker_is_the_directory(mnt, curl):
    curl.put("foo/")
    assert os.listdir(mnt.path) == ["foo"]
    assert os.listdir(mnt.path / "foo") == []
    mnt.ok("mkdir bar; rmdir foo")
    assert curl.keys() == ["bar/"]


def test_a_marker_with_a_value(mnt, curl):
    curl.put("foo/", b"text")
    assert mnt.ok("ls foo; cat foo/%empty") == "%empty\ntext"
    assert "not empty" in mnt.sh("rmdir foo").stderr
    assert curl.get("foo/") == b"text"
    mnt.ok("rm foo/%empty; rmdir foo")
    assert curl.keys() == []


def test_a_name_that_is_not_utf8(mnt, curl):
    for call in (lambda path: os.open(path, os.O_CREAT | os.O_WRONLY), os.mkdir, os.stat):
        with pytest.raises(OSError) as caught:
            call(os.fsencode(mnt.path) + b"/bad\xff")
        assert caught.value.errno == errno.EILSEQ
    assert curl.keys() == []


def test_names_that_are_too_long_or_reserved(mnt, curl):
    with pytest.raises(OSError) as caught:
        (mnt.path / ("x" * 256)).write_bytes(b"")
    assert caught.value.errno == errno.ENAMETOOLONG
    with pytest.raises(OSError) as caught:
        (mnt.path / "_catalog").mkdir()
    assert caught.value.errno == errno.EEXIST
    with pytest.raises(OSError) as caught:
        (mnt.path / "_catalog/mine").mkdir()
    assert caught.value.errno == errno.EROFS
    assert curl.keys() == []


def test_a_mounted_prefix(agent, curl):
    from support.mount import Mount

    curl.put("app/one/key", b"1")
    curl.put("app/one/_catalog", b"2")
    curl.put("app/other", b"3")
    with Mount(f"http://{agent.address}/app/one") as mount:
        assert sorted(os.listdir(mount.path)) == ["%5Fcatalog", "key"]
        mount.ok("echo new > key; mkdir d; echo x > d/f; mv d e; rm -r e")
    assert curl.tree() == {"app/one/key": b"new\n", "app/one/_catalog": b"2", "app/other": b"3"}


def test_a_key_that_comes_from_elsewhere_is_seen(mnt, curl):
    assert not (mnt.path / "f").exists()
    curl.put("f", b"one")
    time.sleep(STALE)
    assert (mnt.path / "f").read_bytes() == b"one"
    curl.put("f", b"another")
    time.sleep(STALE)
    assert (mnt.path / "f").read_bytes() == b"another"
    curl.delete("f")
    time.sleep(STALE)
    assert not (mnt.path / "f").exists()


def test_an_emptied_directory_whose_name_another_host_takes(mnt, curl):
    curl.put("p/d/x")
    curl.put("p/z")
    mnt.ok("rm p/d/x")
    curl.put("p/d", b"v")
    mnt.ok("sleep 1.2; ls -l p; rm -r p")
    assert curl.keys() == []


def test_the_name_of_a_value_that_came_first_does_not_outlive_it(mnt, curl):
    mnt.ok("echo x > foo%value")
    curl.delete("foo")
    assert mnt.ok("sleep 1.2; ls") == ""
    curl.put("foo", b"y")
    assert mnt.ok("sleep 1.2; ls; cat foo").split() == ["foo", "y"]
