"""inotify tells programs of a mount what others did to the keys, and nothing that they did not do."""

import ast
import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.inotify import ALL, DELETE_SELF, Told, Watcher
from support.mount import COMMAND, Mount
from support.program import Program
from support.waiting import until

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


@pytest.mark.parametrize("keys", [["d/k"], ["d/a", "d/b", "d/sub/x", "d/sub/y", "d/sub/deep/z"]], ids=["one", "tree"])
def test_a_directory_that_is_deleted_whole(mnt, watcher, curl, keys):
    """Each name is told in its directory before that goes, and who waits for a file or a directory itself is told."""
    folders = sorted({key.rpartition("/")[0] for key in keys})
    for _ in range(4):
        put_many(curl, [*keys, "e/a"])
        for folder in folders:
            until((mnt.path / folder).is_dir)
            Told(watcher, curl, folder)
            watcher.heard.clear()
        root = Told(watcher, curl)
        with Watcher(mnt.path, DELETE_SELF) as selves:
            for path in (*keys, *folders):
                selves.add(path)
            assert curl("DELETE", "kv/d/?recurse")[0] == 200
            events = [event for event in root.events() if "IGNORED" not in event]
            for path in (*keys, *folders):
                selves.wait(f"DELETE_SELF {path}")
        gone = [f"DELETE {key}" for key in keys] + [f"DELETE|ISDIR {folder}" for folder in folders]
        assert sorted(events) == sorted(gone)
        for event in events:
            parent = f"DELETE|ISDIR {event.split()[1].rpartition('/')[0]}"
            assert parent not in events or events.index(event) < events.index(parent), events


def test_a_directory_that_comes_and_goes_with_its_only_key(mnt, watcher, curl):
    """Whatever is told first by Consul: the directory, or the key in it."""
    put_many(curl, ["d/k", "e/a"])
    root, inner = Told(watcher, curl), Told(watcher, curl, "d")
    for beacon in inner.beacons:
        curl.delete(beacon)
    watcher.wait(f"DELETE {inner.beacons[-1]}")
    root.events()
    for number in range(8):
        curl.delete("d/k")
        assert [event for event in root.events() if "IGNORED" not in event] == ["DELETE d/k", "DELETE|ISDIR d"]
        curl.put("d/k", b"%d" % number)
        assert root.events() == ["CREATE|ISDIR d"]
        watcher.add("d")
        curl.put("d/k", b"newer")
        watcher.wait("CLOSE_WRITE d/k")
        assert root.events() == written("d/k")


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


def test_a_file_and_a_directory_of_its_name(mnt, watcher, curl):
    """A file that stands beside a directory of its name has another one there."""
    put_many(curl, ["d/a", "d/b", "d/c/x"])
    told = Told(watcher, curl, "d")
    curl.put("d/a/x")
    assert told.events() == ["DELETE d/a", *made("d/a%value"), "CREATE|ISDIR d/a"]
    curl.put("d/a", b"new")
    assert told.events() == written("d/a%value")
    curl.delete("d/a/x")
    assert told.events() == ["DELETE d/a%value", "DELETE|ISDIR d/a", *made("d/a")]
    assert curl.txn({"Verb": "delete", "Key": "d/b"}, {"Verb": "set", "Key": "d/b/x", "Value": "MQ=="})
    assert told.events() == ["DELETE d/b", "CREATE|ISDIR d/b"]
    assert curl.txn({"Verb": "delete", "Key": "d/c/x"}, {"Verb": "set", "Key": "d/c", "Value": "MQ=="})
    assert told.events() == ["DELETE|ISDIR d/c", *made("d/c")]
    assert sorted(os.listdir(mnt.path / "d"))[:3] == ["a", "b", "c"]


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


@pytest.mark.parametrize("look", ["true", "ls d", "ls -l d", "cat d/a", "ls . > /dev/null; cat d/*"])
def test_a_directory_whatever_was_done_with_it_before(mnt, watcher, curl, look):
    flat(curl, "d/")
    mnt.ok(look)
    told = Told(watcher, curl, "d")
    curl.put("d/a", b"new")
    assert told.events() == written("d/a")


def test_files_that_are_waited_for_themselves(mnt, watcher, curl):
    flat(curl, "d/")
    curl.put("f", b"old")
    watcher.add("d/a").add("f")
    told = Told(watcher, curl, "d")
    beside = Told(watcher, curl)
    watcher.heard.clear()
    curl.put("d/a", b"new")
    assert sorted(told.events()) == sorted(written("d/a") * 2)
    curl.put("f", b"new")
    assert sorted(beside.events()) == sorted(written("f") * 2)
    curl.put("d/b", b"new")
    assert told.events() == written("d/b")


def test_a_file_alone_that_is_waited_for(mnt, watcher, curl):
    """Each change is told, and told once: no event is left when that of the next comes."""
    flat(curl, "d/")
    watcher.add("d/a")
    while not watcher.heard:
        curl.put("d/a", os.urandom(10))
        watcher.read(0.3)
    while watcher.read(1):  # more than one of them may be told by and by
        pass
    for number in range(20):
        curl.put("d/a", b"%d" % number)
        told = settled(watcher, mnt.path / "d/a", b"%d" % number)
        assert told == written("d/a")


def settled(watcher, path, value):
    """The events until a file that is waited for is written for good."""
    start = len(watcher.heard)
    events = []
    while not (events and events[-1].startswith("CLOSE_WRITE") and path.read_bytes() == value):
        assert watcher.read(), "nothing is told"
        events = watcher.heard[start:]
    return events


def test_a_directory_that_is_made_later(mnt, watcher, curl):
    told = Told(watcher, curl)
    curl.put("d/a", b"old")
    watcher.wait("CREATE|ISDIR d")
    watcher.heard.clear()  # what is to be heard next tells that the new directory is watched
    inner = Told(watcher, curl, "d")
    watcher.heard.clear()
    curl.put("d/a", b"new")
    assert inner.events() == written("d/a")
    curl.put("d/b", b"new")
    assert inner.events() == made("d/b")
    assert told.events() == []


def test_a_directory_that_is_waited_for_while_100_others_are_visited(mnt, watcher, curl):
    put_many(curl, [f"e{number}/x" for number in range(100)])
    flat(curl, "d/")
    told = Told(watcher, curl, "d")
    root = Told(watcher, curl)
    watcher.heard.clear()
    for _ in range(3):
        # For longer than a directory keeps its slot without being used.
        mnt.ok(
            "SECONDS=0; while [ $SECONDS -lt 4 ]; do for n in $(seq 0 99); do ls e$n > /dev/null || exit 1; done; done"
        )
        curl.put("d/a", os.urandom(10))
        assert told.events() == written("d/a")
        curl.put("d/new")
        curl.delete("d/new")
        assert set(told.events()) <= {*made("d/new"), "DELETE d/new"}
        assert root.events() == []


# -- what is read ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [flat, with_directories])
def test_what_is_read_upon_an_event_is_new(mnt, watcher, curl, kind):
    kind(curl, "d/")
    told = Told(watcher, curl, "d")
    held = os.open(mnt.path / "d/a", os.O_RDONLY)
    for number in range(40):
        for name in ("a", f"new{number}"):
            value = b"%d " % number * (1 + number % 7 * 1000)
            curl.put(f"d/{name}", value)
            watcher.read()
            assert os.stat(mnt.path / "d" / name).st_size == len(value)
            assert (mnt.path / "d" / name).read_bytes() == value
            if name == "a":
                assert os.fstat(held).st_size == len(value)
                assert os.pread(held, 1 << 20, 0) == value
            watcher.wait(f"CLOSE_WRITE d/{name}")
            assert told.events() == (written("d/a") if name == "a" else made(f"d/{name}"))
        assert f"new{number}" in os.listdir(mnt.path / "d")
    os.close(held)


def test_what_is_not_there_upon_an_event_is_gone(mnt, watcher, curl):
    put_many(curl, [f"d/{number}" for number in range(40)])
    told = Told(watcher, curl, "d")
    for number in range(40):
        curl.delete(f"d/{number}")
        watcher.wait(f"DELETE d/{number}")
        assert not os.path.exists(mnt.path / f"d/{number}")
        assert str(number) not in os.listdir(mnt.path / "d")
    assert len(told.events()) == 40


def test_two_programs_that_wait(mnt, curl):
    flat(curl, "d/")
    with Watcher(mnt.path) as one, Watcher(mnt.path) as other:
        told = Told(one, curl, "d"), Told(other, curl, "d")
        for each in told:
            each.events()
        curl.put("d/a", b"new")
        curl.put("d/n", b"new")
        curl.delete("d/b")
        for each in told:
            events = each.events()
            assert sorted(events) == sorted([*written("d/a"), *made("d/n"), "DELETE d/b"])


def test_a_busy_file_is_told_of_after_its_last_change(agent, mnt, watcher, curl):
    curl.put("d/busy", b"0\n")
    Told(watcher, curl, "d")
    seen = [0]
    with Mount(agent.address) as other:
        writer = subprocess.Popen(
            ["bash", "-c", "for n in $(seq 100); do echo $n > d/busy || exit 1; done"], cwd=other.path
        )
        while seen[-1] != 100:
            events = watcher.read()
            assert events, f"the last that was told is {seen[-1]}"
            if "CLOSE_WRITE d/busy" in events:
                seen.append(int((mnt.path / "d/busy").read_text()))
        assert writer.wait(60) == 0
    assert seen == sorted(seen)


# -- what is not told --------------------------------------------------------------------------------------------------


def test_locks_and_the_same_value_again_are_no_change(agent, mnt, watcher, curl, contender):
    flat(curl, "d/")
    told = Told(watcher, curl, "d")
    with Mount(agent.address) as other:
        other.ok("flock d/a true; flock d/b cat d/b; flock -s d/c true")
        mnt.ok("flock d/a true")
        for verb in ("lock", "unlock"):
            assert curl.txn({"Verb": verb, "Key": "d/a", "Value": "b2xk", "Session": contender}) is not None
            assert told.events() == []
        curl.put("d/a", b"old")
        assert told.events() == []
        other.ok("echo -n old > d/a; touch d/b; chmod 600 d/c; printf '' >> d/a")
        assert told.events() == []
        curl.put("d/a", b"new")
        assert told.events() == written("d/a")


OWN = {
    "write": ["echo x > w/f", "echo y > w/f; echo z >> w/f; : > w/f; echo -n > w/g", "printf 1 > w/f; printf 2 >> w/f"],
    "names": ["touch w/a w/b", "mv w/a w/c; mv w/c w/b; rm w/b; mkdir w/d; rmdir w/d", "mkdir w/d; > w/d/x; rm -r w/d"],
    "sizes": ["truncate -s 100 w/f", "truncate -s 5 w/f", "dd if=/dev/zero of=w/f bs=10 count=3 conv=notrunc"],
    "flags": ["echo x > w/f; setfattr -n user.consul.flags -v 3 w/f", "setfattr -x user.consul.flags w/f; touch w/f"],
    "copies": ["mkdir w/s; for n in $(seq 9); do seq $n > w/s/$n; done", "cp -r w/s w/t; cp -a w/s/. w/t; rm -r w/s"],
    "sed": ["seq 9 > w/f", "sed -i s/1/2/ w/f", "sed -i s/3/4/ w/f"],
    "vim": ["seq 9 > w/f", "vim -es -u NONE -c '%s/1/2/' -c wq w/f", "vim -es -u NONE -c 1d -c wq w/f"],
    "trees": ["mkdir -p w/s/t/u; seq 1 > w/s/f; > w/s/t/u/g", "mv w/s w/z", "mv w/z/t w; mv w/t/u w/z", "rm -r w/z"],
    "tar": ["mkdir -p w/s/t; seq 9 > w/s/f; > w/s/t/g; tar cf w/all.tar -C w s", "mkdir w/x; tar xf w/all.tar -C w/x"],
    # git reads a file once more that was written in the same second as its index, or later: these were not.
    "git": [
        "git init -q w/r; cd w/r; echo 1 > f; touch -d 2020-01-01 f; git add f; git commit -q -m one",
        "git clone -q --no-hardlinks w/r w/c",
        "cd w/c; echo 2 > f; touch -d 2020-01-02 f; git commit -q -a -m two; git checkout -q -b other HEAD^; git gc -q",
    ],
}  # fmt: skip

RANDOM = re.compile(r"(?:(?<=/sed)|(?<=_))\w{6}$|(?<=/\.tmp-)\d+")
"""What differs in the names of passing files."""

MOST_WAITED_FOR = 20
"""Directories that are surely all under watch at once."""

GIT = {
    **{f"GIT_{who}_{what}": "2026-01-01T00:00:00Z" for who in ("AUTHOR", "COMMITTER") for what in ("DATE",)},
    **{f"GIT_{who}_NAME": "n" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "e" for who in ("AUTHOR", "COMMITTER")},
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "gc.auto", "GIT_CONFIG_VALUE_0": "0",
    "GIT_CONFIG_KEY_1": "safe.directory", "GIT_CONFIG_VALUE_1": "*",
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_what_this_mount_does_is_told_by_the_kernel_alone(agent, curl, name):
    """Exactly what is told where nothing is repeated: each event, in the same order."""
    beacons, told = [], []
    for options in (OPTIONS, f"{OPTIONS},notify=off"):
        curl.delete_all()
        curl.put("w/old", b"old")
        with Mount(agent.address, options) as mount, Watcher(mount.path) as first, Watcher(mount.path, ALL) as watcher:
            if "notify=off" in options:
                put_many(curl, beacons)
            else:
                beacons = Told(first, curl, "w").beacons
            events = []
            for step in OWN[name]:
                watcher.add_all()
                watcher.pending()
                mount.ok(step, env={**os.environ, **GIT, "HOME": "/nonexistent"})
                events.append([RANDOM.sub("", one) for one in watcher.pending()])
            told.append(events)
            if "notify=off" not in options:
                folders = sorted({key.rpartition("/")[0] for key in curl.tree()} - {""})
                for folder in folders if len(folders) < MOST_WAITED_FOR else ():
                    Told(first, curl, folder)
                assert [event for event in watcher.pending() if "~" not in event] == []
    for here, there in zip(*told):
        assert here == there


# -- programs ----------------------------------------------------------------------------------------------------------


@contextmanager
def running(*command, **options):
    """A program of the machine, which ends with the test."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process):
    """What a program says next."""
    said = b""
    while not said.endswith(b"\n"):
        assert select.select([process.stdout], [], [], 60)[0], f"it says no more than {said!r}"
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, f"it has ended and said {said!r}"
        said += byte
    return said.decode()


def test_tail_follows_what_others_append(agent, mnt, curl):
    curl.put("d/log", b"one\n")
    with Mount(agent.address) as other, running("tail", "-n", "+1", "-F", "d/log", cwd=mnt.path) as tail:
        assert line(tail) == "one\n"
        for number in range(5):
            other.ok(f"echo {number} >> d/log")
            assert line(tail) == f"{number}\n"


def test_inotifywait(mnt, curl):
    flat(curl, "d/")
    command = ["inotifywait", "-m", "-e", "modify,create,delete,close_write", "--format", "%e %f", "d"]
    with running(*command, cwd=mnt.path) as waiting:
        assert "Setting up" in line(waiting)
        assert "established" in line(waiting)
        with Watcher(mnt.path) as watcher:
            Told(watcher, curl, "d")
        curl.put("d/a", b"new")
        while (said := line(waiting)) and "~" in said:
            pass
        assert [said, line(waiting)] == ["MODIFY a\n", "CLOSE_WRITE,CLOSE a\n"]


def test_entr_runs_its_command_at_each_change(mnt, curl):
    flat(curl, "d/")
    with running("entr", "-n", "cat", "/_", cwd=mnt.path) as entr:
        entr.stdin.write(b"d/a\n")
        entr.stdin.close()
        assert os.read(entr.stdout.fileno(), 3) == b"old"
        for value in (b"one", b"two"):
            with Watcher(mnt.path) as watcher:
                Told(watcher, curl, "d")
            curl.put("d/a", value)
            assert select.select([entr.stdout], [], [], 60)[0]
            assert os.read(entr.stdout.fileno(), 3) == value


def test_a_path_unit_of_systemd(mnt, watcher, curl):
    """PathChanged= waits for the file itself to be closed after it was written, PathModified= for each change."""
    flat(curl, "d/")
    Told(watcher, curl, "d")
    for mask, event in ((0x8 | 0x4 | 0x400 | 0x800, "CLOSE_WRITE d/a"), (0x2 | 0x4 | 0x400 | 0x800, "MODIFY d/a")):
        with Watcher(mnt.path, mask) as unit:
            unit.add("d/a")
            curl.put("d/a", os.urandom(9))
            assert unit.read() == [event]


# -- options -----------------------------------------------------------------------------------------------------------


def helpers(mount):
    """The processes that the daemon has made."""
    folder = Path(f"/proc/{mount.process.pid}/task")
    return [int(pid) for task in folder.iterdir() for pid in (task / "children").read_text().split()]


@pytest.mark.parametrize("options", ["notify=off", "ro", "cache=ttl", "cache=off", "cache=ttl,notify=off"])
def test_where_nothing_is_told(agent, curl, options):
    flat(curl, "d/")
    with Mount(agent.address, f"{OPTIONS},{options}") as mount, Watcher(mount.path) as watcher:
        assert helpers(mount) == []
        mount.ok("ls d; cat d/a")
        watcher.add().add("d").add("d/a")
        curl.put("d/a", b"new")
        curl.put("d/n", b"new")
        curl.put("n", b"new")
        curl.delete("d/b")
        until(lambda: (mount.path / "d/a").read_bytes() == b"new" and not os.path.exists(mount.path / "d/b"))
        until(lambda: os.path.exists(mount.path / "d/n") and os.path.exists(mount.path / "n"))
        assert watcher.pending() == []


def test_a_read_only_mount_that_tells(agent, curl):
    flat(curl, "d/")
    with Mount(agent.address, f"{OPTIONS},ro,notify=on") as mount, Watcher(mount.path) as watcher:
        told = Told(watcher, curl, "d")
        curl.put("d/a", b"new")
        assert told.events() == written("d/a")
        curl.put("d/n", b"new")
        curl.delete("d/b")
        assert sorted(told.events()) == sorted([*made("d/n"), "DELETE d/b"])
        before = curl.tree()
        for script in (
            "echo x > d/a", "echo x >> d/a", "echo x > d/new", "mkdir d/new", "rm -f d/a", "rmdir d", "mv d/a d/z",
            "truncate -s 0 d/a", "setfattr -n user.consul.flags -v 1 d/a", "touch d/a", "touch d/new", "mv d e",
            "flock -x d/a true 9<> d/a", "chmod 777 d/a",
        ):  # fmt: skip
            done = mount.sh(script)
            assert done.returncode != 0, script
            assert "Read-only file system" in done.stderr, (script, done.stderr)
        assert curl.tree() == before
        assert told.events() == []


@pytest.mark.parametrize("cache", ["ttl", "off"])
def test_what_cannot_be_told_is_refused(agent, curl, tmp_path, cache):
    done = subprocess.run(
        [COMMAND, agent.address, str(tmp_path), "-o", f"notify=on,cache={cache}"], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert done.stdout + done.stderr == f"consulfs: notify=on needs cache=watch, not cache={cache}\n"
    assert not os.path.ismount(tmp_path)


# -- the helper --------------------------------------------------------------------------------------------------------


def has_ended(pid):
    """No process, no zombie either."""
    return not os.path.exists(f"/proc/{pid}")


def descriptors(pid):
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(each))
    return found


def test_the_helper_has_no_hold_of_the_mount(mnt, watcher, curl):
    flat(curl, "d/")
    told = Told(watcher, curl, "d")
    curl.put("d/a", b"new")
    assert told.events() == written("d/a")
    (pid,) = helpers(mnt)
    assert "/dev/fuse" not in descriptors(pid)
    # Once it has closed what it was told to do last.
    until(lambda: {name.split(":")[0] for name in descriptors(pid)} == {"/dev/null", "socket"})
    assert os.readlink(f"/proc/{pid}/cwd") == "/"


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGSEGV])
def test_the_helper_ends_with_the_daemon(agent, curl, number):
    flat(curl, "d/")
    with Mount(agent.address) as mount:
        with Watcher(mount.path) as watcher:
            Told(watcher, curl, "d")
            (pid,) = helpers(mount)
        if number is None:
            mount.stop()
        else:
            mount.kill(number)
        until(lambda: has_ended(pid))


def test_a_signal_to_the_whole_group_ends_the_mount(agent, curl):
    """Ctrl-C on a terminal."""
    flat(curl, "d/")
    with Mount(agent.address, command=("setsid", COMMAND)) as mount:
        with Watcher(mount.path) as watcher:
            Told(watcher, curl, "d")
        (pid,) = helpers(mount)
        os.killpg(mount.process.pid, signal.SIGINT)
        assert mount.process.wait(60) in (0, 130, -signal.SIGINT)
        until(lambda: has_ended(pid))
        assert not os.path.ismount(mount.path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_helper_heeds_no_signal_that_is_for_the_daemon(mnt, watcher, curl, number):
    flat(curl, "d/")
    told = Told(watcher, curl, "d")
    (pid,) = helpers(mnt)
    os.kill(pid, number)
    curl.put("d/a", b"new")
    assert told.events() == written("d/a")
    assert helpers(mnt) == [pid]


def test_a_helper_that_is_killed_is_made_anew(mnt, watcher, curl):
    flat(curl, "d/")
    told = Told(watcher, curl, "d")
    for value in (b"one", b"two"):
        (pid,) = helpers(mnt)
        os.kill(pid, signal.SIGKILL)
        curl.put("d/a", value)
        until(lambda value=value: (mnt.path / "d/a").read_bytes() == value)
        told.events()
        curl.put("d/a", value + b"more")
        assert told.events() == written("d/a")
        assert has_ended(pid)
        assert len(helpers(mnt)) == 1
    assert mnt.log_text().count("WARNING") == 2


# -- nobody else sees the replay ---------------------------------------------------------------------------------------

LOOKER = """
import errno, os, sys
folder, ended = sys.argv[1], sys.argv[2]
seen = set()
while not os.path.exists(ended):
    for name in ("here", "comes"):
        path = os.path.join(folder, name)
        try:
            size = os.stat(path).st_size
            seen.add(f"{name} size {size}")
            with open(path, "rb") as file:
                seen.add(f"{name} read {len(file.read())}")
        except OSError as error:
            seen.add(f"{name} {errno.errorcode[error.errno]}")
    try:
        os.stat(os.path.join(folder, "dir"))
        os.listdir(os.path.join(folder, "dir"))
    except OSError as error:
        seen.add(f"dir {errno.errorcode[error.errno]}")
    seen.add("here is listed" if "here" in os.listdir(folder) else "here is not listed")
print(sorted(seen))
"""


def test_nobody_else_sees_what_is_repeated(mnt, watcher, curl, tmp_path):
    curl.put("d/here", b"x" * 100)
    told = Told(watcher, curl, "d")
    command = [sys.executable, "-c", LOOKER, str(mnt.path / "d"), str(tmp_path / "end")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as looker:
        for number in range(30):
            curl.put("d/here", b"xy"[number % 2 :][:1] * 100)
            curl.put("d/comes", b"z" * 50)
            curl.put("d/dir/x")
            curl.delete("d/comes")
            curl.delete("d/dir/x")
        told.events()
        (tmp_path / "end").touch()
        seen = set(ast.literal_eval(looker.communicate(timeout=60)[0]))
    allowed = {"here size 100", "here read 100", "here is listed", "comes size 50", "comes read 50", "comes ENOENT"}
    allowed |= {"dir ENOENT", "dir ESTALE"}  # the one from stat(2), the other from an open directory
    assert seen - allowed == set()


def test_a_file_that_is_open_and_deleted_elsewhere_is_read_on(mnt, watcher, curl):
    value = b"what it held" * 1000
    curl.put("d/f", value)
    told = Told(watcher, curl, "d")
    held = os.open(mnt.path / "d/f", os.O_RDONLY)
    assert os.read(held, 5) == value[:5]
    curl.delete("d/f")
    assert told.events() == ["DELETE d/f"]
    assert os.read(held, 1 << 20) == value[5:]
    assert os.pread(held, 1 << 20, 0) == value
    os.close(held)


def test_appends_here_and_changes_elsewhere_are_all_there(agent, mnt, watcher, curl):
    """What is repeated cuts a file to its size: while a program here appends to it, no byte may go."""
    curl.put("d/log", b"")
    Told(watcher, curl, "d")
    script = "exec 9>> d/log; for n in $(seq 150); do echo here$n >&9; echo more$n >> d/log || exit 1; done"
    with Mount(agent.address) as other:
        here = subprocess.Popen(["bash", "-c", script], cwd=mnt.path)
        script = "for n in $(seq 150); do echo there$n >> d/log || exit 1; done"
        there = subprocess.Popen(["bash", "-c", script], cwd=other.path)
        for number in range(1, 60):
            while True:
                record = curl.record("d/log")
                change = {"Verb": "cas", "Key": "d/log", "Value": record["Value"], "Flags": number}
                if curl.txn({**change, "Index": record["ModifyIndex"]}) is not None:
                    break
        assert here.wait(60) == 0
        assert there.wait(60) == 0
    lines = curl.get("d/log").decode().split()
    assert sorted(lines) == sorted(f"{who}{n}" for who in ("here", "more", "there") for n in range(1, 151))
    for who in ("here", "more", "there"):
        own = [int(line[len(who) :]) for line in lines if line.startswith(who)]
        assert own == sorted(own)
    assert curl.flags("d/log") == 59


def test_what_is_written_here_and_not_stored_yet_outlives_a_change_elsewhere(mnt, watcher, curl):
    curl.put("d/f", b"one\n")
    told = Told(watcher, curl, "d")
    with Program(mnt.path) as program:
        program("f := os.open('d/f', O_RDWR | O_APPEND)")
        for number in range(10):
            program(f"os.write(f, b'here{number}\\n')")
            curl.put("d/f", (curl.get("d/f") or b"") + b"there%d\n" % number, flags=number)
            assert set(told.events()) >= set(written("d/f"))
            assert program("os.fstat(f).st_size") >= len(b"one\nhere0\n")
            program("os.fsync(f)")
            told.events()
    assert sorted(curl.get("d/f").split()) == sorted(
        [b"one", *(b"%b%d" % (who, number) for who in (b"here", b"there") for number in range(10))]
    )


@pytest.mark.root
def test_a_mount_with_the_owner_of_another(agent, curl):
    flat(curl, "d/")
    options = f"{OPTIONS},uid=65534,gid=65534,umask=777,allow_other"
    with Mount(agent.address, options) as mount, Watcher(mount.path) as watcher:
        told = Told(watcher, curl, "d")
        curl.put("d/a", b"new")
        assert told.events() == written("d/a")
        assert mount.log_text() == ""
