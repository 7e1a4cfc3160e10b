"""_dc: the keys and virtual trees of the other datacenters, on two that are joined over the WAN."""

import errno
import fcntl
import itertools
import json
import os
import signal
import stat
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest
from support.catalog import put, put_node, remove_node
from support.curl import Curl
from support.datacenters import datacenters, knows_both
from support.errors import errno_of
from support.mount import Mount
from support.proxy import Proxy
from support.sessions import holder, sessions
from support.waiting import until

FLAGS, EPHEMERAL = "user.consul.flags", "user.consul.ephemeral"

WRITING = "timeout=20,dc_write"

LOCAL = ("_agent", "_event", "_dc", "_consulfs")


@pytest.fixture(scope="module")
def both():
    # A session that is made from dc1 in dc2 needs a node of the agent's name there: here is none.
    with datacenters(first="near", second="far", keeps_data=True) as both:
        yield both


@pytest.fixture(scope="module")
def agent(both):
    return both[0]


@pytest.fixture
def there(both):
    """dc2, asked itself, on an empty store."""
    curl = Curl(both[1].url)
    curl.delete_all()
    yield curl
    curl.delete_all()


@pytest.fixture
def writer(agent, curl, there):
    """A fresh mount of two empty stores, which may write both."""
    with Mount(agent.address, WRITING) as mount:
        yield mount


@pytest.fixture
def reader(agent, curl, there):
    with Mount(agent.address, "timeout=20") as mount:
        yield mount


@pytest.fixture
def registered(there):
    """Services in dc2, one in each state."""
    states = {"web": "passing", "db": "warning", "queue": "critical"}
    for name, state in states.items():
        check = {"CheckID": f"alive/{name}", "TTL": "1h", "Status": state}
        body = {"Name": name, "ID": f"{name}1", "Tags": [name], "Port": 80, "Check": check}
        put(there, "agent/service/register", body)
    until(lambda: states.keys() <= there.json("catalog/services").keys())
    yield
    for name in states:
        put(there, f"agent/service/deregister/{name}1")
    until(lambda: set(there.json("catalog/services")) == {"consul"})


@contextmanager
def frozen(both):
    """dc2 hangs; at the end both are as before."""
    both[1].freeze()
    try:
        yield
    finally:
        both[1].resume()
        until(lambda: all(knows_both(each) for each in both))


def far_requests(requests):
    return [seen for seen in requests if "dc=dc2" in seen.path]


def contents(folder):
    """Each file's content, by its name."""
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


# -- reading -------------------------------------------------------------------------------------------------


def test_keys_are_read_like_those_of_the_own_datacenter(reader, curl, there, tmp_path):
    curl.put("app/key", b"of dc1", flags=1)
    there.put("app/key", b"of dc2", flags=42)
    there.put("app/sub/deep", b"\0binary\xff")
    there.put("app/both", b"value")
    there.put("app/both/below", b"")
    there.put("app//odd", b"odd")
    assert reader.ok("cat _dc/dc2/app/key") == "of dc2"
    assert reader.ok("cat app/key") == "of dc1"
    assert reader.ok(f"getfattr --only-values -n {FLAGS} _dc/dc2/app/key") == "42"
    assert sorted(reader.ok("ls _dc/dc2/app").split()) == ["%empty", "both", "both%value", "key", "sub"]
    [line] = reader.ok("ls -l _dc/dc2/app/key").splitlines()
    assert (line.split()[0], line.split()[4]) == ("-rw-------", "6")
    reader.ok(f"cp -r _dc/dc2/app {tmp_path}/copy")
    found = {str(path.relative_to(tmp_path / "copy")): path for path in (tmp_path / "copy").rglob("*")}
    assert {name: path.read_bytes() for name, path in found.items() if path.is_file()} == {
        "key": b"of dc2",
        "sub/deep": b"\0binary\xff",
        "both%value": b"value",
        "both/below": b"",
        "%empty/odd": b"odd",
    }


def test_virtual_trees_are_those_of_the_other_datacenter(reader, curl, registered):
    for state in ("any", "passing", "warning", "critical"):
        shown = contents(reader.path / "_dc/dc2/_health" / state)
        rows = curl.json(f"health/state/{state}?dc=dc2")
        assert {name: json.loads(text) for name, text in shown.items()} == {
            f"{row['Node']}:{row['CheckID'].replace('/', '%2F')}": row for row in rows
        }
    assert reader.ok("ls _dc/dc2/_health/critical") == "far:alive%2Fqueue\n"
    assert {name: json.loads(text) for name, text in contents(reader.path / "_dc/dc2/_catalog/nodes").items()} == {
        row["Node"]: row for row in curl.json("catalog/nodes?dc=dc2")
    }
    services = curl.json("catalog/services?dc=dc2")
    assert sorted(os.listdir(reader.path / "_dc/dc2/_catalog/services")) == sorted(services)
    assert {"web", "db", "queue"} <= set(services)
    for name in services:
        [row] = curl.json(f"catalog/service/{name}?dc=dc2")
        assert contents(reader.path / "_dc/dc2/_catalog/services" / name).keys() == {f"far:{row['ServiceID']}"}
        assert json.loads((reader.path / f"_dc/dc2/_catalog/services/{name}/far:{row['ServiceID']}").read_text()) == row
    assert reader.ok("cat _dc/dc2/_status/leader").strip() == curl.json("status/leader?dc=dc2")
    assert curl.json("status/leader?dc=dc2") != curl.json("status/leader")
    assert "web" not in os.listdir(reader.path / "_catalog/services")


def test_what_tells_of_the_own_agent_is_not_shown_and_its_names_stay_taken(writer, there):
    there.put("_agent", b"a key")
    there.put("_dc/deep", b"another")
    there.put("d/_agent", b"a third")
    for name in LOCAL:
        assert errno_of(os.stat, writer.path / "_dc/dc2" / name) == errno.ENOENT
        assert errno_of(os.mkdir, writer.path / "_dc/dc2" / name) == errno.EROFS
        assert errno_of((writer.path / "_dc/dc2" / name).write_bytes, b"x") == errno.EROFS
    names = os.listdir(writer.path / "_dc/dc2")
    assert {"%5Fagent", "%5Fdc", "d", "_catalog", "_health"} <= set(names)
    assert not set(LOCAL) & set(names)
    assert writer.ok("cat _dc/dc2/%5Fagent _dc/dc2/%5Fdc/deep _dc/dc2/d/_agent") == "a keyanothera third"
    writer.ok("echo new > _dc/dc2/%5Fagent")
    assert there.get("_agent") == b"new\n"


def test_the_others_alone_are_listed(both, reader):
    assert os.listdir(reader.path / "_dc") == ["dc2"]
    assert os.stat(reader.path / "_dc/dc2").st_mode & 0o170000 == 0o040000
    for name in ("dc1", "none", "dc1/app", "none/_health", "DC2", "..."):
        assert errno_of(os.stat, reader.path / "_dc" / name) == errno.ENOENT
        assert errno_of(os.listdir, reader.path / "_dc" / name) == errno.ENOENT
    with Mount(both[1].address, "timeout=20") as mount:
        assert mount.ok("ls _dc") == "dc1\n"
        assert errno_of(os.stat, mount.path / "_dc/dc2") == errno.ENOENT


def test_nobody_is_asked_for_a_datacenter_that_is_not_there(proxy, counted):
    with proxy.counting() as count:
        for name in ("dc1", "none"):
            assert errno_of(os.stat, counted.path / "_dc" / name) == errno.ENOENT
            assert errno_of(os.stat, counted.path / "_dc" / name / "app/key") == errno.ENOENT
            assert errno_of(os.mkdir, counted.path / "_dc" / name) == errno.EROFS
            assert errno_of((counted.path / "_dc" / name).write_bytes, b"x") == errno.EROFS
    assert {seen.path.partition("?")[0] for seen in count.requests} == {"/v1/catalog/datacenters"}
    assert len(count.requests) <= 1 + count.expiries


def test_the_own_datacenter_is_told_apart_without_a_look_at_the_agent(both):
    """By a token that may not read the agent. The name comes last in the alphabet, and first in what Consul lists."""
    with Proxy(both[1].port) as proxy:
        proxy.fault = lambda seen: (403, b"Permission denied") if seen.path.startswith("/v1/agent/self") else None
        with Mount(proxy.address, "timeout=20") as mount:
            assert mount.ok("ls _dc") == "dc1\n"


def test_a_prefix_is_the_same_in_the_other_datacenter(agent, curl, there):
    curl.put("team/a", b"1")
    there.put("team/a", b"2")
    there.put("team/_agent", b"3")
    there.put("other", b"4")
    with Mount(f"{agent.address}/team", WRITING) as mount:
        assert mount.ok("cat a _dc/dc2/a") == "12"
        assert sorted(os.listdir(mount.path / "_dc/dc2")) == ["%5Fagent", "a"]
        assert mount.ok("ls _dc/dc2/_catalog/nodes") == "far\n"
        assert errno_of(os.stat, mount.path / "_dc/dc2/other") == errno.ENOENT
        mount.ok("echo new > _dc/dc2/b; rm _dc/dc2/a")
    assert there.tree() == {"team/_agent": b"3", "team/b": b"new\n", "other": b"4"}
    assert curl.tree() == {"team/a": b"1"}


def test_without_virtual_trees_there_is_no_dc(agent, curl, there):
    there.put("a", b"of dc2")
    with Mount(agent.address, "timeout=20,virtual=off,dc_write") as mount:
        assert errno_of(os.stat, mount.path / "_dc") == errno.ENOENT
        mount.ok("mkdir -p _dc/dc2; echo mine > _dc/dc2/a")
    assert curl.tree() == {"_dc/": b"", "_dc/dc2/": b"", "_dc/dc2/a": b"mine\n"}
    assert there.tree() == {"a": b"of dc2"}


def test_where_another_datacenter_is_mounted_the_agents_is_one_of_the_others(agent, curl, there):
    curl.put("a", b"of dc1")
    there.put("a", b"of dc2")
    with Mount(agent.address, f"{WRITING},dc=dc2") as mount:
        assert mount.ok("ls _dc") == "dc1\n"
        assert mount.ok("cat a _dc/dc1/a") == "of dc2of dc1"
        assert mount.ok("ls _catalog/nodes _dc/dc1/_catalog/nodes").split() == [
            "_catalog/nodes:", "far", "_dc/dc1/_catalog/nodes:", "near"
        ]  # fmt: skip
        assert errno_of(os.stat, mount.path / "_dc/dc2") == errno.ENOENT
        mount.ok("echo new > _dc/dc1/b; echo new > c")
    assert (curl.keys(), there.keys()) == (["a", "b"], ["a", "c"])


# -- writing -------------------------------------------------------------------------------------------------


def test_with_dc_write_all_that_changes_keys_is_done(writer, curl, there):
    def stored(key):
        [row] = curl.json(f"kv/{key}?dc=dc2")
        return row["Flags"]

    curl.put("app/key", b"of dc1")
    writer.ok("echo one > _dc/dc2/key; echo two >> _dc/dc2/key")
    assert there.tree() == {"key": b"one\ntwo\n"}
    assert curl("GET", "kv/key?dc=dc2&raw") == (200, b"one\ntwo\n")
    writer.ok(f"mkdir _dc/dc2/d; setfattr -n {FLAGS} -v 42 _dc/dc2/key; cp _dc/dc2/key _dc/dc2/d/copy")
    assert (stored("key"), curl.json("kv/?keys&dc=dc2")) == (42, ["d/", "d/copy", "key"])
    writer.ok("mv _dc/dc2/key _dc/dc2/d/moved; mv _dc/dc2/d _dc/dc2/e; chmod 600 _dc/dc2/e/moved; touch _dc/dc2/e/t")
    assert there.tree() == {"e/": b"", "e/copy": b"one\ntwo\n", "e/moved": b"one\ntwo\n", "e/t": b""}
    assert stored("e/moved") == 42
    writer.ok("truncate -s 3 _dc/dc2/e/copy; rm _dc/dc2/e/moved; (cd _dc/dc2/e && rm t)")
    assert there.tree() == {"e/": b"", "e/copy": b"one"}
    writer.ok("rm -r _dc/dc2/e")
    assert there.tree() == {}
    assert curl.tree() == {"app/key": b"of dc1"}


@pytest.mark.parametrize("options", ["timeout=20", "timeout=20,ro", "timeout=20,ro,dc_write"])
def test_else_nothing_is_written(agent, curl, there, options):
    there.put("d/key", b"kept", flags=5)
    curl.put("f", b"mine")
    with Mount(agent.address, options) as mount:
        far = mount.path / "_dc/dc2"
        for call in (
            lambda: (far / "new").write_bytes(b"x"),
            lambda: (far / "d/key").write_bytes(b"x"),
            lambda: os.open(far / "d/key", os.O_RDWR),
            lambda: os.open(far / "d/key", os.O_WRONLY | os.O_APPEND),
            lambda: os.truncate(far / "d/key", 0),
            lambda: os.mkdir(far / "e"),
            lambda: os.rmdir(far / "d"),
            lambda: os.unlink(far / "d/key"),
            lambda: os.rename(far / "d/key", far / "k"),
            lambda: os.rename(far / "d/key", mount.path / "k"),
            lambda: os.rename(mount.path / "f", far / "f"),
            lambda: os.chmod(far / "d/key", 0o600),
            lambda: os.utime(far / "d/key"),
            lambda: os.setxattr(far / "d/key", FLAGS, b"6"),
            lambda: os.setxattr(far / "d/key", EPHEMERAL, b"1"),
            lambda: os.removexattr(far / "d/key", FLAGS),
            lambda: os.mknod(far / "node", stat.S_IFREG | 0o600),
        ):
            assert errno_of(call) == errno.EROFS
        assert mount.sh("rm -rf _dc/dc2/*").returncode == 1
        assert mount.sh("rm -rf _dc").returncode == 1
        assert mount.ok("cat _dc/dc2/d/key") == "kept"
    assert (there.tree(), there.flags("d/key")) == ({"d/key": b"kept"}, 5)
    assert curl.tree() == {"f": b"mine"}


def test_virtual_trees_there_are_never_written(writer, there, registered):
    far = writer.path / "_dc/dc2"
    for call in (
        lambda: (far / "_catalog/datacenters").write_bytes(b"x"),
        lambda: (far / "_catalog/new").write_bytes(b"x"),
        lambda: os.unlink(far / "_catalog/nodes/far"),
        lambda: os.rmdir(far / "_health"),
        lambda: os.mkdir(writer.path / "_dc/dc3"),
        lambda: os.rmdir(writer.path / "_dc"),
        lambda: os.setxattr(far / "_catalog/datacenters", FLAGS, b"1"),
    ):
        assert errno_of(call) == errno.EROFS
    there.put("a", b"1")
    writer.sh("rm -rf _dc/dc2/*")
    assert there.tree() == {}
    assert set(there.json("catalog/services")) == {"consul", "web", "db", "queue"}


def test_what_one_mount_writes_there_another_there_shows(both, writer, there):
    there.put("x", b"old")
    with Mount(both[1].address, "timeout=20") as other:
        assert other.ok("cat x") == "old"
        writer.ok("echo new > _dc/dc2/x; echo more > _dc/dc2/y")
        assert there.tree() == {"x": b"new\n", "y": b"more\n"}
        time.sleep(2)
        assert other.ok("cat x y; ls").startswith("new\nmore\n")
        other.ok("echo back > x; rm y")
        assert there.tree() == {"x": b"back\n"}
        time.sleep(2)
        assert writer.ok("cat _dc/dc2/x") == "back\n"
        assert errno_of(os.stat, writer.path / "_dc/dc2/y") == errno.ENOENT


# -- what goes through a whole mount ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["timeout=20,dc_write", "timeout=20,dc_write,virtual=hidden"])
def test_nothing_that_goes_through_the_root_gets_to_another_datacenter(agent, curl, there, tmp_path, options):
    kept = {f"d/k{number}": b"%d" % number for number in range(5)}
    for key, value in kept.items():
        curl.put(key, value)
        there.put(key, value)
    with Proxy(agent.port) as proxy, Mount(proxy.address, options) as mount:
        assert mount.ok("ls _dc") == "dc2\n"  # it is there
        with proxy.counting() as count:
            for script in (
                "find .",
                "ls -laR",
                f"mkdir {tmp_path}/x; cp -r . {tmp_path}/x",
                f"tar cf {tmp_path}/x.tar .",
                "grep -r k1 .",
                "du -a",
                "echo * .*",
                "rm -rf *",
                "find . -delete",
            ):
                done = mount.sh(script)
                assert "_dc" not in done.stdout + done.stderr
        assert count.requests
        assert far_requests(count.requests) == []
        assert not (tmp_path / "x/_dc").exists()
        assert (tmp_path / "x/d/k4").read_bytes() == b"4"
        assert "_dc" not in subprocess.run(["tar", "tf", tmp_path / "x.tar"], capture_output=True, text=True).stdout
    assert (curl.tree(), there.tree()) == ({}, kept)


# -- from one datacenter to another ------------------------------------------------------------------------------


def test_a_rename_between_datacenters_is_left_to_the_program(writer, curl, there):
    curl.put("f", b"1")
    there.put("g", b"2")
    home, far = writer.path, writer.path / "_dc/dc2"
    assert errno_of(os.rename, home / "f", far / "f") == errno.EXDEV
    assert errno_of(os.rename, far / "g", home / "f") == errno.EXDEV
    assert errno_of(os.rename, far, home / "all") == errno.EBUSY
    assert (curl.tree(), there.tree()) == ({"f": b"1"}, {"g": b"2"})
    assert writer.log_text() == ""


def test_between_keys_and_virtual_trees_nothing_is_renamed(writer, curl, there):
    curl.put("f", b"1")
    there.put("g", b"2")
    home, far = writer.path, writer.path / "_dc/dc2"
    for old, new in (
        (home / "f", home / "_catalog/f"),
        (home / "f", home / "_dc/f"),
        (home / "f", far / "_catalog/f"),
        (far / "g", far / "_catalog/g"),
        (far / "g", home / "_catalog/g"),
        (home / "_catalog/datacenters", home / "x"),
        (home / "_catalog/datacenters", far / "x"),
        (far / "_catalog/datacenters", far / "x"),
        (far / "_catalog/datacenters", home / "_catalog/x"),
        (far / "_catalog", home / "x"),
        (home / "_dc", home / "x"),
    ):
        assert errno_of(os.rename, old, new) == errno.EROFS, (old, new)
    done = writer.sh("mv f _catalog/; mv _dc/dc2/_catalog/datacenters x")
    assert done.stderr.count("Read-only file system") == 2
    assert (curl.tree(), there.tree()) == ({"f": b"1"}, {"g": b"2"})


@pytest.mark.parametrize("there_to_here", [False, True])
def test_mv_copies_content_and_flags_before_it_removes(agent, curl, there, there_to_here):
    content = os.urandom(20_000)
    (source, target) = (there, curl) if there_to_here else (curl, there)
    for key in ("d/one", "d/two", "f"):
        source.put(key, content, flags=42)
    at_removal = []

    def look(seen):
        for each in json.loads(seen.body) if seen.is_write else ():
            key = each["KV"]["Key"]
            if each["KV"]["Verb"].startswith("delete") and not key.endswith("/"):
                at_removal.append((key, target.get(key), target.flags(key)))

    with Proxy(agent.port) as proxy, Mount(proxy.address, WRITING) as mount:
        proxy.fault = look
        mount.ok("mv _dc/dc2/d _dc/dc2/f ." if there_to_here else "mv d f _dc/dc2")
    assert sorted(at_removal) == [(key, content, 42) for key in ("d/one", "d/two", "f")]
    assert {key: value for key, value in target.tree().items() if value} == dict.fromkeys(
        ("d/one", "d/two", "f"), content
    )
    assert target.flags("f") == 42
    assert source.tree() == {}


def test_mv_that_cannot_store_removes_nothing(agent, curl, there):
    curl.put("f", b"1")
    with Proxy(agent.port) as proxy, Mount(proxy.address, WRITING) as mount:
        proxy.fault = lambda seen: (403, b"Permission denied") if seen.is_write and "dc=dc2" in seen.path else None
        assert mount.sh("mv f _dc/dc2").returncode == 1
    assert (curl.tree(), there.tree()) == ({"f": b"1"}, {})


def test_mv_to_where_it_may_not_remove_copies_nothing(reader, curl, there):
    there.put("f", b"1")
    assert "Read-only file system" in reader.sh("mv _dc/dc2/f copy").stderr
    assert (curl.tree(), there.tree()) == ({}, {"f": b"1"})


# -- locks -----------------------------------------------------------------------------------------------------


def lock_calls(file):
    ways = [fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_SH | fcntl.LOCK_NB]
    return [lambda call=call, how=how: call(file, how) for call in (fcntl.flock, fcntl.lockf) for how in ways]


def test_no_file_of_another_datacenter_can_be_locked_or_tied(writer, curl, there):
    curl.put("f", b"")
    there.put("f", b"")
    with open(writer.path / "_dc/dc2/f", "r+b") as far, open(writer.path / "f", "r+b") as near:
        for call in lock_calls(far):
            assert errno_of(call) == errno.ENOLCK
        fcntl.flock(far, fcntl.LOCK_UN)
        fcntl.flock(near, fcntl.LOCK_EX)
        assert holder(curl, "f")
        assert errno_of(os.setxattr, writer.path / "_dc/dc2/f", EPHEMERAL, b"1") == errno.ENOTSUP
        far.write(b"written all the same")
    assert (there.get("f"), holder(there, "f"), sessions(there)) == (b"written all the same", None, [])
    assert writer.log_text() == ""


def test_locks_of_the_kernel_alone_are_to_be_had_there(agent, curl, there):
    there.put("f", b"")
    with Mount(agent.address, "timeout=20,dc_write,locks=local") as mount:
        assert (
            mount.ok("flock _dc/dc2/f flock -n _dc/dc2/f true || echo held; flock _dc/dc2/f echo got") == "held\ngot\n"
        )


def test_where_another_datacenter_is_mounted_a_lock_needs_a_node_of_the_agents_name_there(both, curl, there):
    curl.put("f", b"")
    there.put("f", b"")
    with (
        Mount(both[0].address, "timeout=20,dc=dc2") as mount,
        Mount(both[1].address) as other,
        open(mount.path / "f", "r+b") as file,
    ):
        for call in lock_calls(file):
            assert errno_of(call) == errno.ENOLCK
        [line] = mount.log_text().splitlines()
        assert "no node of the agent's name: PUT /v1/session/create: 500" in line
        assert errno_of(os.setxattr, mount.path / "f", EPHEMERAL, b"1") == errno.ENOLCK
        put_node(there, "near", Address="127.0.0.1")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            [session] = sessions(there, mount)
            assert (session["Node"], holder(there, "f")) == ("near", session["ID"])
            assert holder(curl, "f") is None
            assert other.sh("flock -n f true").returncode == 1
            fcntl.flock(file, fcntl.LOCK_UN)
            other.ok("flock -n f true")
        finally:
            remove_node(there, "near")


def test_the_agents_own_datacenter_by_its_name_has_locks(agent, curl, there):
    curl.put("f", b"")
    with Mount(agent.address, "timeout=20,dc=dc1") as mount:
        assert mount.ok("flock f flock -n f true || echo held") == "held\n"
        assert mount.ok("ls _dc") == "dc2\n"


# -- a datacenter that does not answer -----------------------------------------------------------------------------


def test_one_that_hangs_is_an_error_there_and_nothing_elsewhere(both, curl, there):
    curl.put("f", b"of dc1")
    there.put("f", b"of dc2")
    there.put("d/g", b"")
    with Mount(both[0].address, "timeout=2,dc_write") as mount:
        assert mount.ok("cat f _dc/dc2/f") == "of dc1of dc2"
        far = mount.path / "_dc/dc2"
        virtual = ("_health/any", "_health/passing", "_catalog/nodes", "_catalog/services", "_session/list")
        # One lookup alone, since the kernel lets those in one directory wait for each other.
        calls = [lambda: os.stat(far / "f"), *(lambda name=name: os.listdir(far / name) for name in virtual)]
        errors = []
        with frozen(both):
            time.sleep(1.2)  # what was read before stands for a second
            threads = [threading.Thread(target=lambda call=call: errors.append(errno_of(call))) for call in calls]
            for each in threads:
                each.start()
            while any(each.is_alive() for each in threads):
                assert mount.ok("echo new > k; cat f k; ls _catalog/nodes; ls _dc; rm k") == "of dc1new\nnear\ndc2\n"
            assert errors == [errno.ETIMEDOUT] * len(calls)
            assert errno_of((far / "new").write_bytes, b"x") == errno.ETIMEDOUT
            assert errno_of(os.mkdir, far / "new") == errno.ETIMEDOUT
        until(lambda: mount.sh("cat _dc/dc2/f").stdout == "of dc2")
        assert mount.ok("ls _dc/dc2/_catalog/nodes; ls _dc/dc2/d") == "far\ng\n"


def test_one_that_is_down_is_an_error_there_and_back_with_its_servers(both, curl, there):
    curl.put("f", b"of dc1")
    there.put("f", b"of dc2")
    with Mount(both[0].address, "timeout=1") as mount:
        assert mount.ok("cat f _dc/dc2/f") == "of dc1of dc2"
        both[1].stop()
        try:
            time.sleep(1.2)
            for name in ("f", "_status/leader"):
                # The agent tries for some seconds to reach it, and then says that it cannot.
                assert errno_of(os.stat, mount.path / "_dc/dc2" / name) in (errno.ETIMEDOUT, errno.EIO)
                assert errno_of(os.listdir, mount.path / "_dc/dc2") in (errno.ETIMEDOUT, errno.EIO)
            assert mount.ok("cat f; ls _catalog/nodes; ls _dc") == "of dc1near\ndc2\n"
        finally:
            both[1].start()
            until(lambda: all(knows_both(each) for each in both))
        until(lambda: mount.sh("cat _dc/dc2/f").stdout == "of dc2")
        assert mount.ok("ls _dc/dc2/_catalog/nodes") == "far\n"


def test_the_end_of_a_mount_stores_what_is_unsaved_in_both(agent, curl, there):
    with Proxy(agent.port) as proxy, Mount(proxy.address, WRITING) as mount:
        files = [open(mount.path / name, "wb", 0) for name in ("f", "_dc/dc2/f", "_dc/dc2/g")]
        for number, file in enumerate(files):
            file.write(b"unsaved%d" % number)
        # Nothing is started here until the mount has ended: a child that closes its copies of descriptors stores them.
        assert not any(seen.is_write for seen in proxy.requests)
        mount.process.send_signal(signal.SIGTERM)
        assert mount.wait_end() == 0
        close_all(files)
    assert (curl.tree(), there.tree()) == ({"f": b"unsaved0"}, {"f": b"unsaved1", "g": b"unsaved2"})


def close_all(files):
    for file in files:
        errno_of(file.close)


def test_a_mount_ends_while_another_datacenter_hangs(both, curl, there):
    with Mount(both[0].address, "timeout=2,dc_write") as mount:
        files = [open(mount.path / name, "wb", 0) for name in ("_dc/dc2/f", "_dc/dc2/g", "f")]
        for file in files:
            file.write(b"unsaved")
        failed = []
        waiting = threading.Thread(target=lambda: failed.append(errno_of(os.stat, mount.path / "_dc/dc2/none")))
        with frozen(both):
            time.sleep(1.2)  # what was read before stands for a second
            waiting.start()
            time.sleep(0.2)
            mount.process.send_signal(signal.SIGTERM)
            assert mount.wait_end() == 0
            waiting.join()
            assert failed[0] in (errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNABORTED)
            close_all(files)
            assert curl.tree() == {"f": b"unsaved"}
        lost = [line for line in mount.log_text().splitlines() if "'f'" in line or "'g'" in line]
        assert len(lost) == 2


def test_a_mount_is_unmounted_while_another_datacenter_hangs(both, curl, there):
    there.put("f", b"x")
    with Mount(both[0].address, "timeout=2,dc_write") as mount:
        mount.ok("cat _dc/dc2/f; echo y > _dc/dc2/g; ls _dc/dc2/_health/passing")
        with frozen(both):
            mount.sh("cat _dc/dc2/none")
            assert subprocess.run(["fusermount3", "-u", mount.path]).returncode == 0
            assert mount.wait_end() == 0


# -- files of several datacenters at once --------------------------------------------------------------------------


def test_no_two_files_have_one_inode_number(writer, curl, there):
    for store in (curl, there):
        for key in ("f", "d/k", "_agent"):
            store.put(key, b"same")
    names = ["f", "d", "d/k", "%5Fagent", "_catalog", "_catalog/datacenters", "_health/passing"]
    paths = [writer.path / name for name in [*names, *(f"_dc/dc2/{name}" for name in names), "_dc", "_dc/dc2", "."]]
    assert len({os.lstat(path).st_ino for path in paths}) == len(paths)
    for folder in (writer.path, writer.path / "_dc/dc2", writer.path / "_dc/dc2/d"):
        assert {entry.name: entry.inode() for entry in os.scandir(folder)} == {
            name: os.lstat(folder / name).st_ino for name in os.listdir(folder)
        }
    there.put("f", b"other")
    time.sleep(1.2)
    writer.ok("cp f _dc/dc2/f")  # cp takes no file for itself
    assert there.get("f") == b"same"
    assert "link to" not in writer.ok("tar cf - f d _dc/dc2/f _dc/dc2/d | tar tvf -")


def test_open_files_of_all_trees_keep_apart(writer, curl, there):
    curl.put("f", b"of dc1")
    there.put("f", b"of dc2")
    names = ["f", "_dc/dc2/f", "_catalog/nodes/near", "_dc/dc2/_catalog/nodes/far"]
    wanted = {name: (writer.path / name).read_bytes() for name in names}
    assert len(set(wanted.values())) == 4
    numbers = {name: os.stat(writer.path / name).st_ino for name in names}
    for order in itertools.permutations(names):
        opened = {name: os.open(writer.path / name, os.O_RDONLY) for name in names}
        for name in order:
            for each, file in opened.items():
                assert os.pread(file, 1 << 20, 3) == wanted[each][3:]
                assert os.fstat(file).st_ino == numbers[each]
            os.close(opened.pop(name))


def test_what_is_written_through_several_goes_to_each(writer, curl, there):
    files = {name: os.open(writer.path / name, os.O_RDWR | os.O_CREAT) for name in ("f", "_dc/dc2/f", "_dc/dc2/g")}
    for number in range(20):
        for name, file in files.items():
            os.pwrite(file, f"{name} {number}\n".encode(), os.fstat(file).st_size)
    for file in reversed(files.values()):
        os.close(file)

    def lines(name):
        return "".join(f"{name} {number}\n" for number in range(20)).encode()

    assert curl.tree() == {"f": lines("f")}
    assert there.tree() == {"f": lines("_dc/dc2/f"), "g": lines("_dc/dc2/g")}
