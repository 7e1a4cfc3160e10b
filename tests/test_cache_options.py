"""How old what is shown may be, and how much of it is kept: the options of the cache."""

import errno
import itertools
import os
import re
import subprocess
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from support.errors import errno_of
from support.gauge import Gauge
from support.mount import COMMAND, LIMIT, Mount
from support.polling import meanwhile
from support.program import EX, NB, UN, Program, Programs
from support.sessions import holder
from support.trees import files_below, fill, small
from support.waiting import until

SETTLED = 1.2
"""Seconds after which what stands for a second does so no more."""


@pytest.fixture
def gauge(agent, curl):
    with Gauge(agent.port) as gauge:
        yield gauge


def settled_options(mount):
    return (mount.path / "_consulfs/options").read_text().splitlines()


def key_reads(seen) -> bool:
    """Whether a request reads keys, or waits for them."""
    return (seen.method == "GET" and seen.path.startswith("/v1/kv/")) or (bool(seen.verbs) and not seen.is_write)


# -- what they are -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("", ["cache=watch", "consistency=default", "attr_timeout=1", "notify=on"]),
        ("cache=ttl", ["cache=ttl", "consistency=default", "attr_timeout=0", "notify=off"]),
        ("cache=off,consistency=stale", ["cache=off", "consistency=stale", "attr_timeout=0", "notify=off"]),
        ("consistency=consistent,attr_timeout=0.5", ["consistency=consistent", "attr_timeout=0.5"]),
        ("cache=ttl,attr_timeout=3", ["cache=ttl", "attr_timeout=3", "notify=off"]),
        ("notify=off,attr_timeout=30", ["cache=watch", "attr_timeout=30", "notify=off"]),
        ("ro", ["cache=watch", "notify=off"]),
        ("cache_size=2M", ["cache_size=2M"]),
    ],
)
def test_the_mount_tells_its_options(agent, curl, given, shown):
    with Mount(agent.address, given or "timeout=20") as mount:
        told = settled_options(mount)
    assert set(shown) <= set(told), told


@pytest.mark.parametrize(
    "given",
    [
        "cache=on",
        "cache=",
        "cache",
        "consistency=strong",
        "consistency=",
        "attr_timeout=-1",
        "attr_timeout=soon",
        "attr_timeout=",
        "attr_timeout=nan",
        "attr_timeout=inf",
        "cache_size=0",
        "cache_size=-1",
        "cache_size=many",
        "cache_size=1k",
        "cache_size=",
        "notify=maybe",
        "notify=on,cache=ttl",
        "notify=on,cache=off",
    ],
)
def test_what_makes_no_sense_is_refused(agent, tmp_path, given):
    done = subprocess.run(
        [COMMAND, agent.address, tmp_path, "-f", "-o", given], capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert given.split(",")[0].split("=")[0] in done.stderr
    assert "Traceback" not in done.stderr
    assert not os.path.ismount(tmp_path)


# -- consistency -------------------------------------------------------------------------------------------------


MODES = ("default", "consistent", "stale")


def mode_of(seen) -> str:
    asked = parse_qs(urlsplit(seen.path).query, keep_blank_values=True)
    found = [mode for mode in ("consistent", "stale") if mode in asked]
    assert len(found) <= 1, seen
    return found[0] if found else "default"


@pytest.mark.parametrize(("mode", "cache"), list(itertools.product(MODES, ("watch", "ttl", "off"))))
def test_every_read_of_keys_says_how_it_is_to_be_answered(agent, curl, gauge, mode, cache):
    """Names, one value, many, a directory whole, and what waits for changes."""
    fill(agent, small(3, 20 if cache == "off" else 300, size=2000).items())
    curl.put("t/key", b"value")
    curl.put("odd//key", b"value")
    with Mount(gauge.address, f"consistency={mode},cache={cache},virtual=hidden,timeout=30") as mount:
        mount.ok("cat t/key odd/%empty/key; ls -l t/d0000; cat t/d0001/*; ls -lR . > /dev/null")
        curl.put("t/d0000/k00000", b"new")
        until(lambda: mount.ok("cat t/d0000/k00000") == "new")
        seen = [each for each in list(gauge.requests) if key_reads(each)]
    kinds = {kind(each) for each in seen}
    assert kinds >= {"watch": {"many", "watch", "keys"}, "ttl": {"many", "keys"}, "off": {"keys", "one"}}[cache], kinds
    # What a watch has told of is read from the leader: a server that lags behind may not know of it yet.
    leader = {"default"} if mode == "stale" and cache == "watch" else set()
    wrong = [each for each in seen if mode_of(each) not in leader | {mode}]
    assert not wrong, wrong[:5]
    assert any(mode_of(each) == mode for each in seen)


@pytest.mark.parametrize(
    ("mode", "asked"), [("stale", "default"), ("default", "default"), ("consistent", "consistent")]
)
def test_what_a_watch_has_told_of_is_read_as_a_leader_has_it(agent, curl, gauge, mode, asked):
    """Nobody looks meanwhile: what is read is read by the watch of a directory that is told by its names."""
    for name in ("f", "g", "sub/h"):
        curl.put(f"t/d/{name}", b"old")
    with Mount(gauge.address, f"consistency={mode},virtual=hidden,timeout=30") as mount:
        mount.ok("cat t/d/f t/d/g")
        until(lambda: any(seen.is_watch and "/t/d/?" in seen.path for seen in list(gauge.requests)))
        time.sleep(SETTLED)
        start = len(gauge.requests)
        curl.put("t/d/f", b"new")
        found = until(lambda: [seen for seen in gauge.requests[start:] if seen.verbs])
        assert {mode_of(seen) for seen in found} == {asked}, found
        until(lambda: mount.ok("cat t/d/f") == "new")


def kind(seen) -> str:
    if seen.verbs:
        return "many"
    if seen.is_watch:
        return "watch"
    return "keys" if "keys=" in seen.path else "recurse" if "recurse=" in seen.path else "one"


@pytest.mark.parametrize("mode", MODES)
def test_compare_and_set_is_right_in_every_mode(agent, curl, mode):
    """Appends of two mounts and of another client are all kept."""
    curl.put("f", b"")
    options = f"consistency={mode},virtual=hidden,timeout=30"
    with Mount(agent.address, options) as one, Mount(agent.address, options) as two:
        script = "for n in $(seq 40); do echo %s$n >> f || exit 1; done"
        running = [
            subprocess.Popen(["bash", "-c", script % name], cwd=mount.path) for name, mount in (("a", one), ("b", two))
        ]
        assert [each.wait(LIMIT) for each in running] == [0, 0]
        expected = sorted(f"{name}{number}" for name in "ab" for number in range(1, 41))
        assert sorted(curl.get("f").decode().split()) == expected
        until(lambda: one.ok("sort f").split() == two.ok("sort f").split() == expected)
        assert one.sh("set -C; echo x > g").returncode + two.sh("set -C; echo x > g").returncode == 1


@pytest.mark.parametrize("mode", MODES)
def test_locks_are_right_in_every_mode(agent, curl, mode):
    curl.put("f", b"0")
    options = f"consistency={mode},virtual=hidden,timeout=30,lock_delay=0s"
    with Mount(agent.address, options) as one, Mount(agent.address, options) as two, Programs() as programs:
        holds, waits = programs(one), programs(two)
        holds(EX)
        assert holder(curl, "f") is not None
        assert errno_of(waits, NB) == errno.EWOULDBLOCK
        waits.begin(EX)
        holds("os.pwrite(f, b'1', 0)")
        holds("os.fsync(f)")
        holds(UN)
        waits.end()
        assert waits("os.pread(f, 9, 0)") == b"1"  # what the holder before wrote is there
        waits("os.pwrite(f, b'2', 0)")
        waits(UN)
    assert curl.get("f") == b"2"


# -- cache -------------------------------------------------------------------------------------------------------


def test_without_a_cache_each_open_asks(agent, curl, gauge):
    fill(agent, small(1, 20).items())
    name = "t/d0000/k00003"
    with Mount(gauge.address, "cache=off,virtual=hidden,timeout=30") as mount, Program(mount.path) as program:
        program(f"os.stat({name!r}).st_size")
        for _ in range(5):
            with gauge.counting() as count:
                program(f"open({name!r}, 'rb').read()")
            asked = [seen for seen in count.requests if "k00003" in seen.path or b"k00003" in seen.body]
            assert asked, count
        assert not [seen for seen in list(gauge.requests) if seen.is_watch]


@pytest.mark.parametrize("options", ["cache=off", "cache=off,consistency=consistent"])
def test_without_a_cache_nothing_is_older_than_the_open(agent, curl, gauge, options):
    fill(agent, small(1, 20).items())
    name = "t/d0000/k00003"
    with Mount(gauge.address, f"{options},virtual=hidden,timeout=30") as mount, Program(mount.path) as program:
        for number in range(20):
            value = b"%d" % number * (number % 7 + 1)
            curl.put(name, value)
            assert program(f"open({name!r}, 'rb').read()") == value
            curl.put(name, value + b"more")
            assert program(f"os.stat({name!r}).st_size") == len(value) + 4
            curl.put(f"t/d0000/made{number}", b"")
            assert f"made{number}" in program("os.listdir('t/d0000')")
            curl.delete(f"t/d0000/made{number}")
            assert program(f"os.path.exists('t/d0000/made{number}')") is False
            assert program(f"os.stat({name!r}).st_size") == len(value) + 4
        assert mount.ok("cat t/d0000/k*").count("0/") == 19


@pytest.mark.parametrize("cache", ["watch", "ttl", "off"])
def test_what_this_mount_changes_its_programs_see(agent, curl, cache):
    with Mount(agent.address, f"cache={cache},virtual=hidden,timeout=30") as mount, Program(mount.path) as program:
        program("os.mkdir('d')")
        for number in range(40):
            value = b"x" * (number * 37 % 100)
            program(f"open('d/f{number % 5}', 'wb').write({value!r})")
            assert program(f"(os.stat('d/f{number % 5}').st_size, open('d/f{number % 5}', 'rb').read())") == (
                len(value),
                value,
            )
            assert curl.get(f"d/f{number % 5}") == value
            program(f"os.rename('d/f{number % 5}', 'd/moved')")
            assert program("open('d/moved', 'rb').read()") == value
            assert program(f"os.path.exists('d/f{number % 5}')") is False
            program("os.unlink('d/moved')")
            assert program("os.listdir('d')") == []


def test_what_stands_for_a_second_is_asked_for_once_a_second(agent, curl, gauge):
    fill(agent, small(1, 20).items())
    with Mount(gauge.address, "cache=ttl,virtual=hidden,timeout=30") as mount, Program(mount.path) as program:
        with gauge.counting() as count:
            for _ in range(200):
                program("open('t/d0000/k00003', 'rb').read()")
        # The names of three directories and the file, each second.
        assert len(count.requests) <= 4 * (2 + count.expiries), count
        assert not count.watches
        curl.put("t/d0000/k00003", b"new")
        time.sleep(SETTLED)
        assert program("open('t/d0000/k00003', 'rb').read()") == b"new"


def test_what_a_descriptor_shows_is_there_by_its_path(agent, curl):
    """The names of the directory were read a moment before, when the file was gone."""
    with Mount(agent.address, "cache=ttl,virtual=hidden,timeout=30") as mount, Program(mount.path) as program:
        curl.put("d/other", b"")
        for number in range(3):
            curl.put("d/f", b"old")
            until(lambda: program("os.path.exists('d/f')"))
            file = program("os.open('d/f', os.O_RDONLY)")
            curl.delete("d/f")
            time.sleep(SETTLED)
            assert program("os.listdir('d')") == ["other"]
            value = b"%d" % number
            curl.put("d/f", value)
            seen = program(f"os.pread({file}, 9, 0)")
            assert seen in (b"old", value)
            if seen == value:
                assert program("open('d/f', 'rb').read()") == value
                assert sorted(program("os.listdir('d')")) == ["f", "other"]
            program(f"os.close({file})")
            curl.delete("d/f")
            time.sleep(SETTLED)


# -- attr_timeout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", ["0", "1", "30"])
@pytest.mark.parametrize("notify", ["on", "off"])
def test_a_remote_change_is_seen_whatever_the_kernel_holds(agent, curl, gauge, seconds, notify):
    """Within the limits of a watch: the kernel is told, and need not be waited for."""
    fill(agent, small(1, 20).items())
    name = "t/d0000/k00003"
    options = f"attr_timeout={seconds},notify={notify},virtual=hidden,timeout=30"
    with Mount(gauge.address, options) as mount, Program(mount.path) as program:
        program("[look := lambda: (os.stat('t/d0000/k00003').st_size, open('t/d0000/k00003', 'rb').read())] and None")
        assert program("look()") == (40, b"0/3 ".ljust(40, b"."))
        until(lambda: not quiet(gauge, lambda: program("look()")))
        for number in range(5):
            value = b"%d" % number * (number + 1)
            curl.put(name, value)
            # Before the kernel would ask by itself.
            until(lambda value=value: program("os.stat('t/d0000/k00003').st_size") == len(value), 25)
            assert program("look()") == (len(value), value)
        curl.delete(name)
        until(lambda: not program("os.path.exists('t/d0000/k00003')"), 25)


def quiet(gauge, action) -> list:
    """What an action asks of Consul."""
    with gauge.counting() as count:
        action()
    return count.requests


# -- cache_size --------------------------------------------------------------------------------------------------


def resident(mount, field="VmHWM") -> int:
    with open(f"/proc/{mount.process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def cached(mount) -> int:
    text = (mount.path / "_consulfs/metrics").read_text()
    return int(float(re.search(r"^consulfs_cache_bytes (\S+)", text, re.MULTILINE).group(1)))


OWN, UNDER_WAY = 60 << 20, 32 << 20
"""Bytes that a mount needs for itself, and for the answers of several programs at once, which come and go."""


@pytest.mark.parametrize("size", [1 << 20, 8 << 20])
def test_no_more_is_kept_than_fits(agent, curl, size):
    """More is read than the cache may hold, several times over, while another client changes it."""
    tree = small(16, 100, size=12_000)
    fill(agent, tree.items())
    most = 0
    with Mount(agent.address, f"cache_size={size},timeout=30") as mount:

        def change():
            fill(agent, ((key, b"z" * 12_000) for key in list(tree)[:200]))

        with meanwhile(change):
            for _ in range(2):
                mount.ok("cat t/*/* > /dev/null; ls -lR t > /dev/null")
                most = max(most, cached(mount))
        until(lambda: mount.ok("cat t/d0000/* | tr -d z") == "")
        assert files_below(mount.path / "t/d0015") == {k[8:]: v for k, v in tree.items() if "d0015" in k}
        time.sleep(2.1)
        most = max(most, cached(mount))
        assert size // 2 < most <= size
        assert resident(mount) < OWN + 2 * size + UNDER_WAY, resident(mount)
