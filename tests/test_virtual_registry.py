"""The registry of a cluster in the virtual trees: every leaf of every tree as curl has it, whatever it is called."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import stat
import subprocess
import tempfile
import time

import pytest
from support.agent import Agent, die_with_parent
from support.catalog import remove_node
from support.curl import Curl
from support.errors import errno_of
from support.mount import LIMIT, Mount
from support.registry import KINDS, TREES, expected, fill, flat, put_instance, text_of
from support.waiting import until

ELSEWHERE = {"_acl", "_consulfs"}
"""Trees that have tests of their own."""

MOVING = {"_agent/metrics": {"Timestamp"}, "_agent/self": {"Stats", "Coord"}}
"""What changes between two answers: by leaf, the fields that may differ. The rest of metrics may, too: see `same`."""


@pytest.fixture(scope="module")
def agent():
    with Agent() as agent:
        fill(Curl(agent.url))
        yield agent


@pytest.fixture(scope="module")
def mount(agent):
    with Mount(agent.address, "timeout=20") as mount:
        yield mount


@pytest.fixture
def curl(agent):
    """The keys stay."""
    return Curl(agent.url)


def same(path, content, value):
    """Whether a file shows what curl was told."""
    if path not in MOVING:
        return content == text_of(value)
    # The agent counts its own requests, curl's too: no two answers are equal. So the fields and their kinds are.
    found = json.loads(content)
    assert content == text_of(found)
    fixed = {name for name in value if path != "_agent/metrics" and name not in MOVING[path]}
    kinds = [{name: type(each) for name, each in answer.items()} for answer in (found, value)]
    return kinds[0] == kinds[1] and all(found[name] == value[name] for name in fixed)


def walked(root, tree):
    """(the content of each file by its path, the directories) of a tree, as the mount has it."""
    files, directories = {}, set()
    for folder, folders, names in os.walk(root / tree, onerror=fail):
        where = os.path.relpath(folder, root)
        directories.add(where)
        assert len(set(folders + names)) == len(folders + names)
        for name in names:
            files[f"{where}/{name}"] = read(root / where / name)
    return files, directories


def fail(error):
    raise error


def read(path):
    """The content of a file that is what stat(2) says."""
    with open(path, "rb") as file:
        content, opened = file.read(), os.fstat(file.fileno())
        assert file.read() == b""
    assert opened.st_size == len(content), path
    assert stat.S_IMODE(opened.st_mode) == 0o444, path
    assert stat.S_ISREG(os.stat(path).st_mode), path
    return content


def differences(mount, curl, tree):
    """What the mount and curl say otherwise of a tree."""
    leaves, directories = flat(expected(curl, tree), tree)
    files, folders = walked(mount.path, tree)
    found = [f"missing: {path}" for path in (leaves.keys() - files.keys()) | (directories - folders)]
    found += [f"not in Consul: {path}" for path in (files.keys() - leaves.keys()) | (folders - directories)]
    found += [
        f"{path}: {files[path].decode()} and not {text_of(leaves[path]).decode()}"
        for path in leaves.keys() & files.keys()
        if not same(path, files[path], leaves[path])
    ]
    return found


def agree(mount, curl, tree):
    """Until the mount says of a tree what curl says.

    Not at once: an answer stands for a second, and the agent itself writes now and then (its node's coordinate, the
    services that it brings to the catalog). curl is asked before the mount, so a mount that is behind stays behind for
    two seconds at most, and one that is wrong for ever.
    """
    seen = []

    def attempt():
        seen[:] = differences(mount, curl, tree)
        return not seen

    try:
        until(attempt)
    except AssertionError:
        raise AssertionError("\n".join(seen)[:5000]) from None


def test_the_registry_is_one(curl):
    assert len(curl.json("catalog/nodes")) == 3
    assert len(curl.json("catalog/services")) == 21, "20, and Consul itself"
    for state in ("passing", "warning", "critical"):
        assert len({each["Node"] for each in curl.json(f"health/state/{state}")}) == 3, state
    assert len({each["Node"] for each in curl.json("session/list")}) == 3


@pytest.mark.parametrize("tree", sorted(TREES))
def test_every_leaf_is_what_curl_is_told(mount, curl, tree):
    leaves, _ = flat(expected(curl, tree), tree)
    assert leaves, "an empty tree shows nothing"
    agree(mount, curl, tree)


def test_the_trees_are_all_at_the_root_beside_the_keys(mount):
    assert set(os.listdir(mount.path)) - ELSEWHERE == {"app", *TREES}


@pytest.mark.parametrize("tree", sorted(TREES))
def test_a_file_has_the_size_that_ls_shows(mount, tree):
    """By stat(2) alone, before any open: a program that asks for the size reads so many bytes."""
    for path in map(mount.path.joinpath, mount.ok(f"find {tree} -type f").splitlines()):
        # Until: some files change every second, and one may do so between the look and the reading.
        until(lambda path=path: os.stat(path).st_size == len(path.read_bytes()))


# -- nodes that come and go ------------------------------------------------------------------------------------

COME_AND_GO = """
register() {
    curl -s -X PUT --data-binary @- "$1/catalog/register" <<END >&2
{"Node": "$2", "Address": "192.0.2.9", "Service": {"Service": "brief", "ID": "brief"},
 "Checks": [{"Node": "$2", "CheckID": "c", "Name": "c", "Status": "critical", "ServiceID": "brief"}]}
END
}
while [ -e "$2" ]; do
    for n in 1 2 3 4 5 6; do register "$1" "brief-$n"; done
    echo come
    sleep 0.3
    for n in 1 2 3 4 5 6; do
        curl -s -X PUT -d "{\\"Node\\": \\"brief-$n\\"}" "$1/catalog/deregister" >&2
    done
    echo gone
    sleep 0.3
done
"""

NOTHING_THERE = re.compile(r".*: No such file or directory\Z")


@pytest.fixture
def restless(curl, tmp_path):
    """A process that registers nodes and deregisters them, again and again; the file that it says "gone" in."""
    goes_on = tmp_path / "goes on"
    goes_on.touch()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            ["bash", "-c", COME_AND_GO, "-", curl.url, str(goes_on)],
            stdout=said,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            yield said
        finally:
            goes_on.unlink()  # it ends when the nodes are gone
            try:
                process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def times_gone(said):
    return os.pread(said.fileno(), 1 << 20, 0).count(b"gone")


def complaints(done):
    """The lines of a script's errors that are no ENOENT."""
    return [line for line in done.stderr.splitlines() if not NOTHING_THERE.match(line)]


@pytest.fixture
def slow(agent, proxy):
    """A mount whose Consul takes its time: a node can leave while a program goes through a tree."""
    proxy.fault = lambda seen: 0.03
    with Mount(proxy.address, "timeout=20") as mount:
        yield mount


@pytest.mark.parametrize(
    "script",
    [
        "ls -lR _health/node _catalog",
        "find _health/node _catalog -ls",
        "find _health/node _catalog -type f -exec cat {} +",
        "grep -r brief _health/node _catalog",
        "rm -rf {folder}/*; cp -r _health/node _catalog {folder}/",
        "du -a _health/node _catalog",
    ],
)
def test_a_node_that_leaves_while_it_is_listed_is_not_there_and_that_is_all(slow, restless, script, tmp_path):
    until(lambda: times_gone(restless) >= 1)
    folder = tmp_path / "copies"
    folder.mkdir()
    rounds, start = 0, times_gone(restless)
    while rounds < 3 or times_gone(restless) < start + 3:
        assert complaints(slow.sh(f"({script.replace('{folder}', str(folder))}) >/dev/null")) == []
        rounds += 1
    assert slow.ok("ls _status") == "leader\npeers\n"
    assert "Traceback" not in slow.log_text()


@pytest.fixture
def left(mount, curl):
    """What a listing shows of a node that has left since."""
    put_instance(curl, "leaver", "short-lived")
    paths = {
        "_catalog/nodes/leaver",
        "_catalog/services/short-lived",
        "_catalog/services/short-lived/leaver:short-lived-leaver",
        "_health/any/leaver:service:short-lived-leaver",
        "_health/checks/short-lived",
        "_health/checks/short-lived/leaver:service:short-lived-leaver",
        "_health/node/leaver",
        "_health/node/leaver/service:short-lived-leaver",
        "_health/passing/leaver:service:short-lived-leaver",
        "_health/service/short-lived",
        "_health/service/short-lived/leaver:short-lived-leaver",
        "_session/node/leaver",
    }
    try:
        until(
            lambda: (
                set(mount.ok("find _catalog _health _session -path '*leaver*' -o -name short-lived").split()) == paths
            )
        )
    finally:
        remove_node(curl, "leaver")
    time.sleep(2)
    return sorted(paths)


def test_a_node_that_left_since_it_was_listed_is_not_there_for_any_call(mount, left):
    for path in left:
        for call in (os.stat, os.listdir, lambda path: open(path).close()):
            assert errno_of(call, mount.path / path) == errno.ENOENT, path
    assert mount.ok("find _catalog _health _session -path '*leaver*' -o -name short-lived") == ""


@pytest.mark.parametrize("tool", ["ls -l", "cat", "stat", "grep -r x", "cp -r -t {folder}", "find", "du"])
def test_a_tool_that_comes_too_late_says_that_there_is_no_such_file_and_nothing_else(mount, left, tool, tmp_path):
    done = mount.sh(f"{tool.format(folder=tmp_path)} {' '.join(left)}")
    assert complaints(done) == []
    assert len(done.stderr.splitlines()) == len(left)
    assert done.stdout == ""


def test_an_open_file_of_a_node_that_left_stays_as_it_was(mount, curl):
    put_instance(curl, "leaver", "short-lived")
    path = mount.path / "_catalog/services/short-lived/leaver:short-lived-leaver"
    [row] = curl.json("catalog/service/short-lived")
    try:
        until(path.exists)
        with open(path, "rb") as file:
            remove_node(curl, "leaver")
            time.sleep(2)
            assert file.read() == text_of(row)
            assert errno_of(os.stat, path) == errno.ENOENT
    finally:
        remove_node(curl, "leaver")


# -- what a server lacks, or keeps to itself -------------------------------------------------------------------

LACKING = {"_intention": "/v1/connect/intentions", "_coordinate": "/v1/coordinate/nodes"}
"""Trees that stand and fall with an endpoint."""


def test_an_endpoint_that_the_server_lacks_is_not_there(agent, proxy):
    proxy.fault = lambda seen: (404, b"") if seen.path.startswith(tuple(LACKING.values())) else None
    with Mount(proxy.address, "timeout=20") as mount:
        rest = {"app", *TREES} - LACKING.keys()
        for script in ("ls", "ls -l", "ls -la", "find . -maxdepth 1", "find . -maxdepth 2"):
            done = mount.sh(script)
            assert (done.returncode, done.stderr) == (0, ""), script
            assert not any(name in done.stdout for name in LACKING), script
        assert set(os.listdir(mount.path)) - ELSEWHERE == rest
        for name in LACKING:
            for call in (os.stat, os.listdir, lambda path: open(path).close()):
                assert errno_of(call, mount.path / name) == errno.ENOENT
        assert "Traceback" not in mount.log_text()


@pytest.mark.parametrize("tree", LACKING)
def test_what_may_not_be_read_is_listed_and_the_rest_works(agent, curl, proxy, tree):
    proxy.fault = lambda seen: (403, b"Permission denied") if seen.path.startswith(LACKING[tree]) else None
    place = {"_intention": "_intention", "_coordinate": "_coordinate/nodes"}[tree]
    with Mount(proxy.address, "timeout=20") as mount:
        for script in ("ls", "ls -l", "find . -maxdepth 1"):
            done = mount.sh(script)
            assert (done.returncode, done.stderr) == (0, ""), script
            assert tree in done.stdout
        assert set(os.listdir(mount.path)) - ELSEWHERE == {"app", *TREES}
        assert errno_of(os.listdir, mount.path / place) == errno.EACCES
        assert errno_of(os.stat, mount.path / place / "any") == errno.EACCES
        for other in sorted(TREES.keys() - {tree}):
            agree(mount, curl, other)


def test_kinds_of_config_entries_that_the_server_does_not_know_are_not_there(mount, curl):
    known = [kind for kind in KINDS if curl("GET", f"config/{kind}")[0] == 200]
    assert 0 < len(known) < len(KINDS), "a server that knows them all proves nothing"
    done = mount.sh("ls -l _config; find _config")
    assert done.stderr == ""
    assert sorted(os.listdir(mount.path / "_config")) == sorted(known)
    for kind in set(KINDS) - set(known):
        assert errno_of(os.stat, mount.path / "_config" / kind) == errno.ENOENT
