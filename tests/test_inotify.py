"""inotify tells programs of a mount what others did to the keys, and nothing that they did not do."""

import json
import os
import subprocess
import threading

import pytest
from support.inotify import Told, Watcher
from support.mount import Mount

OPTIONS = "timeout=20,virtual=hidden"


@pytest.fixture
def watcher(mnt):
    with Watcher(mnt.path) as watcher:
        yield watcher


def written(path):
    return [f"MODIFY {path}", f"CLOSE_WRITE {path}"]


def made(path):
    return [f"CREATE {path}", *written(path)]


def put_many(curl, keys, value=b"old"):
    """Many keys, in few requests."""
    for start in range(0, len(keys), 64):
        steps = [{"Verb": "set", "Key": key, "Value": "b2xk", "Flags": 0} for key in keys[start : start + 64]]
        assert curl.txn(*steps) is not None


# -- what is told ------------------------------------------------------------------------------------------------------


def flat(curl, prefix):
    put_many(curl, [f"{prefix}{name}" for name in "abc"])


def with_directories(curl, prefix):
    put_many(curl, [f"{prefix}{name}" for name in ("a", "b", "c", "dir/x", "dir/deep/y", "other/z")])


def with_200_and_directories(curl, prefix):
    put_many(curl, [f"{prefix}{name}" for name in ("a", "b", "c", "dir/x", *map(str, range(200)))])


def with_large_values(curl, prefix):
    flat(curl, prefix)
    curl.put(f"{prefix}large", b"x" * 300000)


@pytest.mark.parametrize("kind", [flat, with_directories, with_200_and_directories, with_large_values])
@pytest.mark.parametrize("directory", ["", "d", "deep/er/and/deeper"])
def test_what_others_do(mnt, watcher, curl, kind, directory):
    at = f"{directory}/" if directory else ""
    kind(curl, at)
    told = Told(watcher, curl, directory)
    for value, flags in ((b"new", 0), (b"new", 7), (b"", 7), (b"longer than it was", 0)):
        curl.put(f"{at}a", value, flags)
        assert told.events() == written(f"{at}a")
    curl.put(f"{at}new", b"value")
    assert told.events() == made(f"{at}new")
    curl.put(f"{at}empty")
    assert told.events() == made(f"{at}empty")
    curl.delete(f"{at}b")
    assert told.events() == [f"DELETE {at}b"]
    curl.put(f"{at}sub/x", b"1")
    assert told.events() == [f"CREATE|ISDIR {at}sub"]
    curl.put(f"{at}sub/y", b"1")
    curl.delete(f"{at}sub/y")
    assert told.events() == []
    curl.delete(f"{at}sub/x")
    assert told.events() == [f"DELETE|ISDIR {at}sub"]
    curl.put(f"{at}marked/")
    assert told.events() == [f"CREATE|ISDIR {at}marked"]
    curl.delete(f"{at}marked/")
    assert told.events() == [f"DELETE|ISDIR {at}marked"]


def test_what_another_mount_does(agent, mnt, watcher, curl):
    put_many(curl, ["d/a", "d/b", "d/c"])
    told = Told(watcher, curl, "d")
    with Mount(agent.address) as other:
        for script, events in (
            ("echo new > d/a", written("d/a")),
            ("echo more >> d/a", written("d/a")),
            ("setfattr -n user.consul.flags -v 5 d/a", written("d/a")),
            ("truncate -s 1 d/a", written("d/a")),
            ("echo new > d/n", made("d/n")),
            (": > d/empty", made("d/empty")),
            ("mkdir d/sub", ["CREATE|ISDIR d/sub"]),
            ("echo x > d/sub/file", []),
            ("rm d/b", ["DELETE d/b"]),
            ("mv d/n d/m", ["DELETE d/n", *made("d/m")]),
            ("mv d/m d/c", ["DELETE d/m", *written("d/c")]),
            ("mv d/sub d/gone", ["DELETE|ISDIR d/sub", "CREATE|ISDIR d/gone"]),
            ("rm -r d/gone", ["DELETE|ISDIR d/gone"]),
            ("cat d/*; ls -lR; touch d/a", []),
        ):
            other.ok(script)
            assert (script, told.events()) == (script, events)


def test_what_changes_at_once_is_told_each_once(mnt, watcher, curl):
    put_many(curl, [f"d/{name}" for name in "abcde"])
    told = Told(watcher, curl, "d")
    steps = [{"Verb": "set", "Key": f"d/{name}", "Value": "bmV3"} for name in "abxy"]
    steps += [{"Verb": "delete", "Key": f"d/{name}"} for name in "cd"]
    assert curl.txn(*steps) is not None
    assert told.events() == ["DELETE d/c", "DELETE d/d", *made("d/x"), *made("d/y"), *written("d/a"), *written("d/b")]


def test_a_directory_that_is_deleted_whole(mnt, watcher, curl):
    put_many(curl, ["d/a", "d/b", "d/sub/x", "d/sub/y", "e/a"])
    told = Told(watcher, curl)
    watcher.add("d").add("d/sub")
    assert curl("DELETE", "kv/d/?recurse")[0] == 200
    events = told.events()
    assert events.count("DELETE|ISDIR d") == 1
    events = [event for event in events if "IGNORED" not in event]
    assert set(events) <= {
        "DELETE|ISDIR d",
        "DELETE|ISDIR d/sub",
        *(f"DELETE d/{name}" for name in ("a", "b", "sub/x", "sub/y")),
    }


NAMES = ["a b", "line\nbreak", "tab\tname", "schlüssel", "日本語", "emoji 🎉", "-dash", "100%", "a%2Fb", "'\"\\"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("directory", ["d", "d e/ü"])
def test_names_are_as_they_are_listed(mnt, watcher, curl, name, directory):
    curl.put(f"{directory}/{name}", b"old")
    told = Told(watcher, curl, directory)
    curl.put(f"{directory}/{name}", b"new")
    assert told.events() == written(f"{directory}/{name}")
    curl.put(f"{directory}/dir {name}/{name}")
    assert told.events() == [f"CREATE|ISDIR {directory}/dir {name}"]
    curl.delete(f"{directory}/{name}")
    assert told.events() == [f"DELETE {directory}/{name}"]
    curl.put(f"{directory}/{name}", b"anew")
    assert told.events() == made(f"{directory}/{name}")
    assert name in os.listdir(mnt.path / directory)


@pytest.mark.parametrize(
    ("key", "shown"), [(".", "%2E"), ("..", "%2E%2E"), ("%empty", "%25empty"), ("x%value", "x%25value")]
)
def test_encoded_names(mnt, watcher, curl, key, shown):
    curl.put("d/a")
    told = Told(watcher, curl, "d")
    curl.put(f"d/{key}", b"value")
    assert told.events() == made(f"d/{shown}")
    assert (mnt.path / "d" / shown).read_bytes() == b"value"
    curl.put(f"d/{key}", b"new")
    assert told.events() == written(f"d/{shown}")
    curl.delete(f"d/{key}")
    assert told.events() == [f"DELETE d/{shown}"]


def test_a_name_that_is_too_long_is_told_as_it_is_listed(mnt, watcher, curl):
    curl.put("d/a")
    told = Told(watcher, curl, "d")
    curl.put("d/" + "n" * 300, b"value")
    events = told.events()
    (shown,) = [name for name in os.listdir(mnt.path / "d") if "n" in name]
    assert events == made(f"d/{shown}")
    curl.delete("d/" + "n" * 300)
    assert told.events() == [f"DELETE d/{shown}"]


def test_a_key_beside_a_directory_of_its_name(mnt, watcher, curl):
    curl.put("d/both", b"old")
    curl.put("d/both/x", b"old")
    told = Told(watcher, curl, "d")
    curl.put("d/both", b"new")
    assert told.events() == written("d/both%value")
    curl.delete("d/both")
    assert told.events() == ["DELETE d/both%value"]
    curl.put("d/both", b"anew")
    assert told.events() == made("d/both%value")


def test_the_names_at_the_root_of_a_mount_with_virtual_trees(agent, curl):
    curl.put("_catalog", b"old")
    with Mount(agent.address, "virtual=visible") as mnt, Watcher(mnt.path) as watcher:
        told = Told(watcher, curl, "")
        curl.put("_catalog", b"new")
        assert told.events() == written("%5Fcatalog")
        curl.put("_health/x", b"new")
        assert told.events() == ["CREATE|ISDIR %5Fhealth"]


@pytest.mark.parametrize("directory", ["", "sub", "sub/sub/sub"])
def test_a_mounted_prefix(agent, curl, directory):
    put_many(curl, ["app/one/a", f"app/one/{directory}/a".replace("//", "/"), "app/other/a", "a"])
    with Mount(f"{agent.address}/app/one") as mnt, Watcher(mnt.path) as watcher:
        at = f"{directory}/" if directory else ""
        told = Told(watcher, curl, directory, f"app/one/{at}")
        curl.put(f"app/one/{at}a", b"new")
        assert told.events() == written(f"{at}a")
        curl.put("app/other/a", b"new")
        curl.put("a", b"new")
        assert told.events() == []
        curl.put(f"app/one/{at}n/x")
        assert told.events() == [f"CREATE|ISDIR {at}n"]
        curl.delete(f"app/one/{at}a")
        assert told.events() == [f"DELETE {at}a"]


# -- which directories -------------------------------------------------------------------------------------------------


def test_a_directory_of_1500_keys(mnt, watcher, curl):
    """Of its files those are told of that were looked at here; names all are."""
    put_many(curl, [f"d/{number:04}" for number in range(1500)])
    told = Told(watcher, curl, "d")
    (mnt.path / "d" / "0007").read_bytes()
    curl.put("d/0007", b"new")
    assert told.events() == written("d/0007")
    curl.put("d/0008", b"new")
    assert told.events() == []
    watcher.add("d/0009")
    curl.put("d/0009", b"new")
    assert sorted(told.events()) == sorted(written("d/0009") * 2)
    curl.put("d/new", b"new")
    assert told.events() == made("d/new")
    curl.put("d/new", b"newer")
    assert told.events() == written("d/new")
    curl.delete("d/0010")
    assert told.events() == ["DELETE d/0010"]
    curl.put("d/sub/x")
    assert told.events() == ["CREATE|ISDIR d/sub"]


def test_a_file_that_is_waited_for_is_told_of_in_a_directory_of_which_all_files_are_known(mnt, watcher, curl):
    put_many(curl, [f"d/{number:04}" for number in range(1500)])
    told = Told(watcher, curl, "d")
    mnt.ok("cat d/* > /dev/null")
    watcher.add("d/0009")
    curl.put("d/0009", b"new")
    assert sorted(told.events()) == sorted(written("d/0009") * 2)
