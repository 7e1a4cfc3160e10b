"""The tools that people have, on the virtual trees: none complains, and each finds what stands there."""

import mmap
import os
import shutil
import subprocess
import sys
import time

import pytest
from support.agent import Agent
from support.catalog import put, remove_node, write_node
from support.checks import are_critical, make_ttl_check, turn_check
from support.curl import Curl
from support.mount import LIMIT, Mount
from support.sessions import make_session
from support.waiting import until

SOON = 2

STEADY = (
    "_agent/checks _agent/members _agent/services _catalog _config _event _health _intention _operator _query"
    " _session _status"
)
"""What stays as it is while nothing happens."""

LIVE = "_catalog/nodes/live"


@pytest.fixture(scope="module")
def agent():
    """Of the module's own, with something in every tree."""
    with Agent() as agent:
        curl = Curl(agent.url)
        for node in ("db 1", "größe", "web%2F1"):
            checks = [
                {"Node": node, "CheckID": f"disk/{state}", "Name": "disk", "Status": state}
                for state in ("passing", "warning", "critical")
            ]
            write_node(curl, node, "text " * 3000, Service={"ID": "a/b:c", "Service": "app"}, Checks=checks)
        make_ttl_check(curl, "ttl")
        turn_check(curl, "ttl", "fail")
        until(lambda: "ttl" in are_critical(curl))
        make_session(curl, Name="a session")
        put(curl, "config", {"Kind": "service-defaults", "Name": "app", "Protocol": "http"})
        assert curl("POST", "query", b'{"Name": "q", "Service": {"Service": "app"}}')[0] == 200
        assert curl("PUT", "event/fire/deploy", b"payload")[0] == 200
        until(lambda: curl.json("event/list"))
        yield agent


@pytest.fixture(scope="module")
def trees(agent):
    with Mount(agent.address, "timeout=20") as mount:
        yield mount


@pytest.fixture
def quiet(trees, curl):
    """It has nothing to tell of."""
    said = trees.log_text()
    yield trees
    assert trees.log_text() == said


def works(mount, script, **options):
    """What a script prints that ends well and complains of nothing."""
    done = mount.sh(f"set -o pipefail; {script}", **options)
    assert (done.returncode, done.stderr) == (0, ""), script
    return done.stdout


def contents(folder, places=STEADY):
    """The content of each file by its path."""
    found = {}
    for place in places.split():
        for base, _, files in os.walk(folder / place):
            for name in files:
                path = os.path.join(base, name)
                with open(path, "rb") as file:
                    found[os.path.relpath(path, folder)] = file.read()
    return found


@pytest.fixture
def copy(quiet, tmp_path):
    """The same as files on a disk."""
    for base, folders, _ in os.walk(quiet.path):
        for name in folders:
            (tmp_path / "copy" / os.path.relpath(base, quiet.path) / name).mkdir(parents=True, exist_ok=True)
    for path, content in contents(quiet.path).items():
        (tmp_path / "copy" / path).write_bytes(content)
    return tmp_path / "copy"


@pytest.mark.parametrize(
    "command",
    [
        f"cp -r --parents {STEADY} {{}}",
        f"cp -a --parents {STEADY} {{}}",
        f"tar c {STEADY} | tar x -C {{}}",
        f"tar cz {STEADY} | tar xz -C {{}}",
        f"rsync -aR {STEADY} {{}}",
        f"rsync -acR {STEADY} {{}}",
    ],
)
def test_copies(quiet, tmp_path, command):
    works(quiet, command.format(tmp_path))
    wanted = contents(quiet.path)
    assert len(wanted) > 40
    assert contents(tmp_path) == wanted
    assert sorted(os.listdir(tmp_path / "_health/passing")) == sorted(os.listdir(quiet.path / "_health/passing"))
    for place in STEADY.split():
        works(quiet, f"diff -r {place} {tmp_path}/{place}")


def test_a_second_rsync_has_nothing_to_do(quiet, tmp_path):
    works(quiet, f"rsync -aR {STEADY} {tmp_path}")
    assert works(quiet, f"rsync -aRi {STEADY} {tmp_path}") == ""


def test_two_copies_are_the_same(quiet, tmp_path):
    works(quiet, f"mkdir {tmp_path}/one {tmp_path}/two; cp -r --parents {STEADY} {tmp_path}/one")
    time.sleep(SOON)
    works(quiet, f"tar c {STEADY} | tar x -C {tmp_path}/two; diff -r {tmp_path}/one {tmp_path}/two")


def test_a_copy_of_a_directory_whose_names_have_changed(quiet, curl, tmp_path):
    works(quiet, "ls _catalog/nodes _catalog")
    write_node(curl, "live", "text")
    try:
        time.sleep(SOON)
        works(quiet, f"tar c _catalog | tar x -C {tmp_path}")
        assert contents(tmp_path, "_catalog") == contents(quiet.path, "_catalog")
    finally:
        remove_live(curl)
    works(quiet, f"tar c _catalog > {tmp_path}/archive")


NODE = "'_catalog/nodes/db 1'"

SCRIPTS = [
    f"find {STEADY} | sort",
    f"find {STEADY} -type f -printf '%p %s\\n' | sort",
    f"find {STEADY} -type f -exec wc {{}} + | sort",
    f"find {STEADY} -type f -print0 | xargs -0 -P 8 -n 3 md5sum | sort",
    f"find {STEADY} -type d -empty | sort",
    f"find {STEADY} -name '*ttl*' | sort",
    f"ls -1R {STEADY}",
    f"grep -r text {STEADY} | sort",
    f"grep -rl critical {STEADY} | sort",
    f"grep -rc Node {STEADY} | sort",
    "wc -c _catalog/nodes/*",
    "wc -l _health/*/*:*",
    "head -n 3 _catalog/nodes/*",
    "head -c -3 _status/peers",
    f"tail -n 2 {NODE}",
    f"tail -c 5 {NODE}",
    "tail -n +3 _catalog/nodes/*",
    f"tac {NODE}",
    f"sort -r {NODE}",
    f"sed -n 2,5p {NODE}",
    f"awk '{{print NR, $1}}' {NODE}",
    f"cut -c 1-20 {NODE}",
    f"od -c {NODE}",
    f"cksum {NODE} _status/leader",
    f"split -b 1000 --filter=md5sum {NODE}",
    f"cmp {NODE} {NODE}",
    f"diff {NODE} _catalog/nodes/größe; test $? = 1",
    f"dd if={NODE} bs=1 count=300 status=none",
    f"dd if={NODE} bs=7 skip=30 status=none",
    f"dd if={NODE} bs=1M iflag=direct status=none",
    f"less -f {NODE} | cat",
    'echo "$(<_status/leader)"; while read -r line; do echo "<$line>"; done < _status/peers',
    'for each in _health/critical/*; do echo "$each"; done',
    "cat _health/critical/* _health/passing/* | grep -c CheckID",
    "! ls _health/none 2> /dev/null",
    "jq -r .Meta.text _catalog/nodes/* | sort",
    "jq -s 'map(.Status) | sort' _health/any/*",
    'jq -r \'select(.Status == "critical") | .Node + " " + .CheckID\' _health/*/*:* | sort -u',
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_finds_what_it_would_in_files(quiet, copy, script):
    tool = script.split()[0]
    if tool in ("jq", "less") and not shutil.which(tool):
        pytest.skip(f"needs {tool}")
    found = works(quiet, script)
    wanted = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}"], cwd=copy, capture_output=True, text=True, timeout=LIMIT
    )
    assert (wanted.returncode, wanted.stderr) == (0, "")
    assert found == wanted.stdout
    assert found or script.startswith(("cmp", "!"))


@pytest.mark.parametrize(
    "script",
    [
        "cat _catalog/nodes/* | head -c 10",
        f"cat {NODE} {NODE} {NODE} {NODE} {NODE} | head -n 1",
        f"sort {NODE} | head -n 1",
        "find . | head -n 1",
        f"ls -lR {STEADY} | head -n 1",
    ],
)
def test_a_reader_that_has_enough(quiet, script):
    done = quiet.sh(script)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_all_of_it_is_listed_with_its_attributes(quiet):
    for script in ("ls -lR", "ls -laR", "stat -c %s", "du -ab", "file"):
        if shutil.which(script.split()[0]):
            assert works(quiet, f"{script} {STEADY}")


def test_a_copy_into_the_keys(quiet, curl):
    works(quiet, f"cp {NODE} one; cat {NODE} > two; cp -r _health/critical three; mv one four")
    content = (quiet.path / "_catalog/nodes/db 1").read_bytes()
    assert curl.get("four") == curl.get("two") == content
    assert curl.get("three/test:ttl") == (quiet.path / "_health/critical/test:ttl").read_bytes()


def test_a_private_memory_map(quiet):
    path = quiet.path / "_catalog/nodes/db 1"
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as view:
        assert view[:] == file.read()


def test_a_transfer_within_the_kernel(quiet, tmp_path):
    path = quiet.path / "_catalog/nodes/db 1"
    with open(path, "rb") as file, open(tmp_path / "out", "wb") as out:
        while os.sendfile(out.fileno(), file.fileno(), None, 1000):
            pass
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


# -- following what changes ------------------------------------------------------------------------------------


def remove_live(curl):
    """When it returns, no mount shows it any more."""
    remove_node(curl, "live")
    time.sleep(SOON)


@pytest.fixture
def live(quiet, curl):
    """A file that changes."""
    write_node(curl, "live", "first")
    time.sleep(SOON)
    yield quiet
    remove_live(curl)


def test_tail_follows_a_file_whose_content_changes(live, curl, tmp_path):
    first = (live.path / LIVE).read_bytes()
    with open(tmp_path / "out", "wb") as out, open(tmp_path / "err", "wb") as err:
        tail = subprocess.Popen(["tail", "-n", "+1", "-s", "0.1", "-F", LIVE], cwd=live.path, stdout=out, stderr=err)
    try:
        until(lambda: (tmp_path / "out").read_bytes() == first)
        write_node(curl, "live", "second, and longer")
        until(lambda: b"second" in (tmp_path / "out").read_bytes())
        second = (live.path / LIVE).read_bytes()
        until(lambda: (tmp_path / "out").read_bytes().endswith(second))
        write_node(curl, "live", "3")
        until(lambda: b'"text": "3"' in (tmp_path / "out").read_bytes())
        third = (live.path / LIVE).read_bytes()
        until(lambda: (tmp_path / "out").read_bytes().endswith(third))
    finally:
        tail.kill()
        tail.wait()
    assert (tmp_path / "out").read_bytes() == first + second + third, (tmp_path / "err").read_text()


def test_watch_ends_when_the_content_changes(live, curl):
    watch = subprocess.Popen(
        ["watch", "-n", "0.2", "-g", "cat", LIVE],
        cwd=live.path,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm"},
    )
    try:
        time.sleep(1)
        assert watch.poll() is None
        write_node(curl, "live", "second")
        assert watch.wait(LIMIT) == 0
    finally:
        watch.kill()
        watch.wait()


def test_a_loop_waits_until_something_is_there(quiet, curl):
    waiter = subprocess.Popen(
        ["bash", "-c", f"until grep -q second {LIVE} 2> /dev/null; do sleep 0.1; done"], cwd=quiet.path
    )
    try:
        write_node(curl, "live", "first")
        time.sleep(0.5)
        assert waiter.poll() is None
        write_node(curl, "live", "second")
        assert waiter.wait(LIMIT) == 0
    finally:
        waiter.kill()
        waiter.wait()
        remove_live(curl)


def test_python_reads_them_as_any_file(quiet):
    script = "import json, pathlib; print(len([json.loads(each.read_text()) for each in pathlib.Path('.').iterdir()]))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=quiet.path / "_catalog/nodes", capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("4\n", "")


# -- all of it, with what changes at every look ----------------------------------------------------------------


@pytest.mark.parametrize(
    "script", ["ls -lR", "find . -type f -exec cat {} +", "grep -r Node", "du -ab", "rsync -an . /"]
)
def test_all_of_it_is_read_without_complaint(quiet, script):
    assert works(quiet, script) or script.startswith("rsync")


def test_what_removes_everything_removes_the_keys(agent, curl):
    for key in ("key", "folder/a", "folder/b/c", "_catalog", "_health/key", "%5Fcatalog", "größe"):
        curl.put(key, b"text")
    with Mount(agent.address, "timeout=20") as mount:
        before, steady = sorted(os.listdir(mount.path)), contents(mount.path)
        keys = {"key", "folder", "%5Fcatalog", "%5Fhealth", "%255Fcatalog", "größe"}
        assert keys <= set(before)
        done = mount.sh("rm -rf *")
        assert done.returncode == 1
        assert {line.rpartition(": ")[2] for line in done.stderr.splitlines()} == {"Read-only file system"}
        assert curl.keys() == []
        assert sorted(os.listdir(mount.path)) == sorted(set(before) - keys)
        assert contents(mount.path) == steady
        assert mount.log_text() == ""
