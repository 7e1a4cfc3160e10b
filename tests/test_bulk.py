"""Many files at once: no tool that goes through a tree costs a request a file, and it gets what Consul holds."""

import errno
import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from support.acl import make_policy, make_token
from support.agent import Agent
from support.catalog import put
from support.curl import Curl
from support.errors import errno_of
from support.gauge import Gauge
from support.mount import LIMIT, Mount
from support.polling import meanwhile
from support.program import Program, Programs
from support.proxy import Count
from support.trees import files_below, fill, small
from support.waiting import until

DIRECTORIES, FILES = 8, 200

FIXED = 10
"""Requests for the directories above, and their watches."""

SETTLED = 1.2
"""Seconds after which the kernel asks anew for what it was told."""

SLOTS = 32
"""Directories that are under watch at once."""

WATCHED, UNWATCHED = "timeout=30,virtual=hidden", "cache=ttl,timeout=30,virtual=hidden"


@pytest.fixture
def gauge(agent, curl):
    with Gauge(agent.port) as gauge:
        yield gauge


@pytest.fixture
def cold(gauge):
    """A mount that has looked at nothing yet."""
    with Mount(gauge.address) as mount:
        yield mount


def everything(count: Count) -> int:
    """All requests, blocking ones included."""
    return len(count.requests) + len(count.watches)


def reads_values(seen) -> bool:
    """Whether a request asks for more than names."""
    path = urlsplit(seen.path)
    return bool(seen.verbs) or (path.path.startswith("/v1/kv/") and "keys=" not in path.query)


def folder_of(seen) -> str:
    return unquote(urlsplit(seen.path).path)


def below(tree: dict[str, bytes], root: str = "t/") -> dict[str, bytes]:
    return {key[len(root) :]: value for key, value in tree.items()}


def by_sum(tree: dict[str, bytes]) -> dict[str, str]:
    """What md5sum says."""
    return {key: hashlib.md5(value).hexdigest() for key, value in tree.items()}


def summed(text: str) -> dict[str, str]:
    return {name: digest for digest, name in (line.split("  ", 1) for line in text.splitlines())}


def in_tar(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {each.name: archive.extractfile(each).read() for each in archive if each.isfile()}


# -- what each tool costs ----------------------------------------------------------------------------------------


TOOLS = {
    "tar": "tar c t > $OUT",
    "ls -lR": "ls -lR t",
    "grep -r": "grep -r -e '^7/199 ' t",
    "rsync -a": "rsync -a t/ $OUT/",
    "cp -r": "cp -r t $OUT",
    "find": "find t",
    "find -size": "find t -type f -size -2k",
    "du": "du -s --apparent-size t",
    "ls -R": "ls -R t",
    "ls -U": "ls -U t/*",
    "a glob and cat": "cat t/*/*",
    "find and cat": "find t -type f -exec cat {} +",
    "a cat a file": "find t/d0000 -type f -exec cat {} ';'",
    "wc": "wc -l t/*/*",
    "stat": "stat -c %s t/*/*",
    "md5sum": "find t -type f | sort | xargs md5sum",
    "backwards": "find t -type f | sort -r | xargs cat",
    "at random": "find t -type f | shuf | xargs cat",
}


@pytest.mark.parametrize("name", TOOLS)
def test_no_tool_costs_a_request_a_file(agent, curl, gauge, cold, tmp_path, name):
    tree = small(DIRECTORIES, FILES)
    fill(agent, tree.items())
    with gauge.counting() as count:
        said = cold.ok(f"OUT={tmp_path}/out; {TOOLS[name]}")
    # At worst, of each directory: its names, four transactions of 64, one read ahead; and its watch: the names, a look
    # at its size, and the query that waits. Of `shuf` the first file of each directory is any.
    assert everything(count) <= 9 * DIRECTORIES + FIXED + 2 * count.expiries, (everything(count), count)
    assert count.writes == 0
    check_said(name, said, tree, tmp_path / "out")


def check_said(name, said, tree, out):
    if name == "tar":
        assert in_tar(out.read_bytes()) == tree
    elif name in ("rsync -a", "cp -r"):
        assert files_below(out) == below(tree)
    elif name == "md5sum":
        assert summed(said) == by_sum(tree)
    elif name in ("a glob and cat", "find and cat", "backwards", "at random"):
        assert Counter(said) == Counter(b"".join(tree.values()).decode())
    elif name == "grep -r":
        assert [line.split(":")[0] for line in said.splitlines()] == ["t/d0007/k00199"]
    elif name == "du":
        assert int(said.split()[0]) >= sum(map(len, tree.values())) // 1024
    elif name == "a cat a file":
        assert said.count("0/") == FILES
    elif name == "stat":
        assert said.split() == ["40"] * len(tree)
    elif name in ("find", "ls -R", "ls -lR", "ls -U", "find -size"):
        assert len(re.findall(r"k\d{5}$", said, re.MULTILINE)) == len(tree)


def test_tar_of_10_000_keys(agent, curl, gauge, cold, tmp_path):
    tree = small(10, 1000)
    fill(agent, tree.items())
    with gauge.counting() as count:
        cold.ok(f"tar c t > {tmp_path}/all.tar")
    assert everything(count) <= 200, (everything(count), count)
    assert in_tar((tmp_path / "all.tar").read_bytes()) == curl.tree() == tree


@pytest.mark.parametrize(
    ("directories", "files"),
    [
        (150, 20),
        pytest.param(
            1000,
            100,
            marks=[
                pytest.mark.skipif(not os.environ.get("CONSULFS_LARGE"), reason="100,000 keys: with CONSULFS_LARGE=1"),
                pytest.mark.timeout(600),
            ],
        ),
    ],
)
def test_ls_of_many_directories(agent, curl, gauge, cold, directories, files):
    tree = small(directories, files)
    fill(agent, tree.items())
    with gauge.counting() as count:
        said = cold.ok("ls -lR t", limit=500)
    assert said.count(" 40 ") == len(tree)
    assert everything(count) <= 4 * directories + FIXED, (everything(count), count.requests[:500])


@pytest.mark.parametrize("script", ["ls -R t", "find t -name k00001", "ls t/*", "find t -type d"])
def test_names_alone_read_no_values(agent, curl, gauge, cold, script):
    """But for the directories under watch: of these the watches may read all, once."""
    fill(agent, small(2 * SLOTS, 70).items())
    with gauge.counting() as count:
        cold.ok(script)
    assert not [seen for seen in count.requests if reads_values(seen)], count
    whole = [folder_of(seen) for seen in count.watches if reads_values(seen) and "wait=1s" in seen.path]
    assert len(whole) == len(set(whole)) <= SLOTS * (1 + count.expiries), whole
    assert everything(count) <= 4 * 2 * SLOTS + FIXED + count.expiries, count


@pytest.mark.parametrize("number", [100, 1000, 5000])
@pytest.mark.parametrize("kind", ["flat", "mixed"])
def test_directories_of_any_size(agent, curl, gauge, cold, number, kind):
    tree = {f"t/{key}": b"%d" % at for at, key in enumerate(f"k{each}" for each in range(number))}
    if kind == "mixed":  # a whole read would bring what is below these
        tree.update({f"t/k{each}x/below": b"not asked for" for each in range(0, number, 50)})
    fill(agent, tree.items())
    with gauge.counting() as count:
        sums = summed(cold.ok("find t -maxdepth 1 -type f | sort | xargs md5sum"))
    assert sums == by_sum({key: value for key, value in tree.items() if key.count("/") == 1})
    most = 8 if kind == "flat" else 8 + number // 64 + number // 1024
    assert len(count.requests) <= most + 2 * count.expiries, (len(count.requests), count)
    if kind == "mixed":
        assert not [seen for seen in count.requests if "x/" in folder_of(seen)], count


# -- large values ------------------------------------------------------------------------------------------------


def memory(mount: Mount, field: str = "VmHWM") -> int:
    """Bytes of the daemon: the most that it ever had."""
    with open(f"/proc/{mount.process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


CACHE = 8 << 20
OWN = 60 << 20
"""Bytes that a mount needs for itself."""

HELD = 64 << 20
"""Bytes of an answer under way: 64 values of 200 KB, which are 17 MB in JSON, as it came, as text, and decoded."""


def test_large_values_make_batches_smaller(agent, curl, gauge):
    value = os.urandom(200_000)
    tree = {f"t/k{number:03}": value + b"%d" % number for number in range(300)}
    fill(agent, tree.items())
    with Mount(gauge.address, f"cache_size={CACHE},timeout=30,virtual=hidden") as mount:
        with gauge.counting() as count:
            assert summed(mount.ok("md5sum t/*")) == by_sum(tree)
        batches = [len(seen.verbs) for seen in count.requests if seen.verbs]
        assert max(batches) <= 64
        assert all(each <= 32 for each in batches[2:]), batches
        assert len(count.requests) <= 300 // 4 + FIXED, count
        assert memory(mount) < OWN + 2 * CACHE + HELD, memory(mount)


def test_a_large_value_among_small_ones(agent, curl, gauge, cold):
    tree = {f"t/k{number:04}": b"%d" % number for number in range(1000)}
    tree["t/k0500"] = os.urandom(380_000)
    fill(agent, tree.items())
    with gauge.counting() as count:
        assert summed(cold.ok("md5sum t/*")) == by_sum(tree)
    assert everything(count) <= 1000 // 64 + FIXED, count


def test_large_values_after_small_ones(agent, curl, gauge):
    """What is expected of a directory from its first files is wrong."""
    value = os.urandom(200_000)
    tree = {f"t/k{number:03}": b"%d" % number for number in range(100)}
    tree.update({f"t/k{number:03}": value + b"%d" % number for number in range(100, 400)})
    fill(agent, tree.items())
    with Mount(gauge.address, f"cache_size={CACHE},timeout=30,virtual=hidden") as mount:
        with gauge.counting() as count:
            assert summed(mount.ok("md5sum t/*")) == by_sum(tree)
        assert len(count.requests) <= 300 // 4 + FIXED, count
        assert memory(mount) < OWN + 2 * CACHE + HELD, memory(mount)


# -- odd names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    ["a//b/", "/lead/", "x/../y/", "100%/", "%empty/", "ü" * 200 + "/", "sp ace/it's/", "t/" + "n" * 300 + "/"],
    ids=ascii,
)
def test_directories_of_odd_names(agent, curl, gauge, cold, prefix):
    tree = {f"{prefix}k{number:03}": b"%d" % number for number in range(200)}
    fill(agent, tree.items())
    with gauge.counting() as count:
        found = files_below(cold.path)
    assert sorted(found.values()) == sorted(tree.values())
    assert len(count.requests) <= 200 // 64 + 4 * FIXED + 4 * count.expiries, count


def test_files_of_odd_names(agent, curl, gauge, cold):
    names = [f"{number:03}{'l' * 300}" for number in range(60)]
    names += [f"100%{number}" for number in range(60)] + [f"a{number}%value" for number in range(60)]
    names += [f"ü ö\n{number}" for number in range(60)] + [f"..{number}" for number in range(60)]
    tree = {f"t/{name}": name.encode() for name in names}
    tree.update({"t//inside": b"empty", "t/./dot": b"dot", "t/%empty": b"percent"})
    fill(agent, tree.items())
    with gauge.counting() as count:
        found = files_below(cold.path)
    assert sorted(found.values()) == sorted(tree.values())
    assert len(count.requests) <= 300 // 64 + 4 * FIXED + 4 * count.expiries, count


# -- what changes while it is read ahead ---------------------------------------------------------------------------


AHEAD = 600
"""So many files that all but the first are read ahead; and too large for their directory's watch to bring them."""


def padded(text: str) -> bytes:
    return text.encode().ljust(600, b".")


class Held:
    """A directory t whose read-ahead has been answered, and the answer is kept back."""

    def __init__(self, agent, gauge, mount):
        self.tree = {f"t/k{number:03}": padded(f"old {number}") for number in range(AHEAD)}
        fill(agent, self.tree.items())
        self.gate = gauge.gate(is_read_ahead)
        self.reader = Program(mount.path)

    def __enter__(self):
        self.reader.__enter__()
        self.reader("names := sorted(os.listdir('t'))")
        self.reader.begin("[open('t/' + name, 'rb').read() for name in names] and None")
        self.gate.wait()
        return self

    def __exit__(self, *_):
        self.gate.open()
        self.reader.__exit__()


def is_read_ahead(path: str, body: bytes) -> bool:
    return path.startswith("/v1/kv/t/?recurse")


@pytest.mark.parametrize("options", [WATCHED, UNWATCHED])
def test_own_changes_win_over_a_read_ahead(agent, curl, gauge, options):
    """The answer has all files of the directory, those too that were read before."""
    with Mount(gauge.address, options) as mount, Held(agent, gauge, mount) as held:
        held.reader.kill()  # the kernel lets nobody change a directory in which a name is being looked up
        mount.ok("echo new > t/k010; echo more >> t/k011; rm t/k012; mv t/k013 t/moved; echo x > t/made; mkdir t/dir")
        held.gate.open()
        gauge.wait_idle()
        held.tree["t/k010"] = b"new\n"
        held.tree["t/k011"] += b"more\n"
        held.tree["t/moved"] = held.tree.pop("t/k013")
        held.tree["t/made"] = b"x\n"
        del held.tree["t/k012"]
        assert files_below(mount.path / "t") == below(held.tree)
        assert mount.sh("cat t/k012").returncode == mount.sh("cat t/k013").returncode == 1
        assert curl.tree() == {**held.tree, "t/dir/": b""}


def test_a_change_that_was_told_wins_over_a_read_ahead(agent, curl, gauge):
    with Mount(gauge.address, WATCHED) as mount, Held(agent, gauge, mount) as held:
        for number in (10, 400):
            curl.put(f"t/k{number:03}", b"new")
        curl.delete("t/k500")
        curl.put("t/k599", b"last")
        until(lambda: watched_from(gauge) >= curl.record("t/k599")["ModifyIndex"])
        held.gate.open()
        assert errno_of(held.reader.end) == errno.ENOENT
        gauge.wait_idle()
        assert mount.ok("cat t/k010 t/k400 t/k401 t/k599") == f"newnew{held.tree['t/k401'].decode()}last"
        assert mount.sh("cat t/k500").returncode == 1
        assert files_below(mount.path / "t") == below(curl.tree())


def watched_from(gauge) -> int:
    """The index from which on the directory's watch waits."""
    waiting = [parse_qs(urlsplit(seen.path).query) for seen in list(gauge.requests) if "/kv/t/?" in seen.path]
    return max(int(each["index"][0]) for each in waiting if "index" in each)


def test_keys_that_vanish_before_they_are_read(agent, curl, gauge):
    tree = small(1, 300, root="")
    fill(agent, tree.items())
    gone = {f"d0000/k{number:05}" for number in range(0, 300, 30)}
    with (
        Mount(gauge.address, "cache=ttl,attr_timeout=0,timeout=30,virtual=hidden") as mount,
        Program(mount.path) as reader,
    ):

        def attempt():
            fill(agent, tree.items())
            time.sleep(SETTLED)
            reader("names := sorted(os.listdir('d0000'))")
            assert curl.txn(*({"Verb": "delete", "Key": key} for key in gone)) is not None
            reader("[read := lambda path: open(path, 'rb').read() if os.path.exists(path) else None] and None")
            with gauge.counting() as count:
                found = reader("{'d0000/' + name: read('d0000/' + name) for name in names}")
            assert found == {key: None if key in gone else value for key, value in tree.items()}
            return count

        # Once: a program that has looked at a directory's files gets them with its next listing.
        count = attempt()
        # The batches, and one question for each that is gone; each second all of it may be asked for anew.
        assert len(count.requests) <= (300 // 64 + 2 * len(gone)) * (1 + count.expiries) + FIXED, count


MONOTONIC = """
import os, sys
last, end = {}, sys.argv[1]
while not os.path.exists(end):
    for name in sorted(os.listdir(".")):
        value = open(name).read()
        number = int(value[-9:])
        assert len(value) == 5000 and number >= last.get(name, 0), (name, number, last[name])
        last[name] = number
print(sum(last.values()))
"""


@pytest.mark.parametrize("options", ["cache=watch", "cache=ttl", "cache=watch,attr_timeout=0", "cache=off"])
def test_nobody_goes_back_while_much_is_read_ahead(agent, curl, gauge, tmp_path, options):
    """Readers of a directory that does not fit into the cache, and is written to by another client all the time."""
    number = 0

    def write():
        nonlocal number
        number += 1
        fill(agent, ((f"t/k{each:03}", b"%05000d" % number) for each in range(number % 7, 250, 7)))

    # More than fits into the cache, and more than a watch brings by itself.
    fill(agent, ((f"t/k{each:03}", b"%05000d" % 0) for each in range(250)))
    with Mount(gauge.address, f"{options},cache_size=1M,virtual=hidden,timeout=30") as mount:
        command = [sys.executable, "-c", MONOTONIC, str(tmp_path / "end")]
        readers = [
            subprocess.Popen(command, cwd=mount.path / "t", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        try:
            with meanwhile(write):
                time.sleep(3)
        finally:
            (tmp_path / "end").touch()
            said = [each.communicate(timeout=LIMIT) for each in readers]
        assert [each.returncode for each in readers] == [0, 0, 0], said
        assert all(int(out) > 0 for out, _ in said), said


# -- rights ------------------------------------------------------------------------------------------------------


RULES = """
key_prefix "t/" { policy = "read" }
key_prefix "t/d0001/k000" { policy = "deny" }
key_prefix "t/d0002/" { policy = "deny" }
"""


def test_keys_that_may_not_be_read_are_left_out(guarded, admin, tmp_path):
    tree = small(4, FILES)
    fill(guarded, tree.items(), admin.token)
    (tmp_path / "token").write_text(make_token(admin, RULES))
    shown = {key: value for key, value in tree.items() if not key.startswith(("t/d0001/k000", "t/d0002/"))}
    with (
        Gauge(guarded.port) as gauge,
        Mount(gauge.address, f"token_file={tmp_path}/token,virtual=hidden,timeout=30") as mount,
    ):
        with gauge.counting() as count:
            mount.ok(f"tar c t > {tmp_path}/all.tar")
        assert in_tar((tmp_path / "all.tar").read_bytes()) == shown
        assert everything(count) <= 9 * 4 + FIXED + 2 * count.expiries, count
        assert mount.sh("cat t/d0001/k00001").returncode == 1


def test_rights_that_are_taken_away_while_files_are_read(guarded, admin, tmp_path):
    """The names have been listed; the transaction that reads ahead leaves out what may not be read."""
    tree = small(1, FILES, root="")
    fill(guarded, tree.items(), admin.token)
    policy = make_policy(admin, 'key_prefix "" { policy = "read" }')
    token = put(admin, "acl/token", {"Policies": [policy]})["SecretID"]
    (tmp_path / "token").write_text(token)
    options = f"token_file={tmp_path}/token,cache=ttl,virtual=hidden,timeout=30"
    with Mount(guarded.address, options) as mount, Program(mount.path) as reader:
        reader("names := sorted(os.listdir('d0000'))")
        rules = 'key_prefix "" { policy = "read" } key_prefix "d0000/k001" { policy = "deny" }'
        name = admin.json(f"acl/policy/{policy['ID']}")["Name"]
        put(admin, f"acl/policy/{policy['ID']}", {"Name": name, "Rules": rules})
        for key, value in tree.items():
            call = f"open({key!r}, 'rb').read()"
            if key.startswith("d0000/k001"):
                assert errno_of(reader, call) in (errno.EACCES, errno.ENOENT), key
            else:
                assert reader(call) == value


# -- writing -----------------------------------------------------------------------------------------------------


def sources(folder, number):
    folder.mkdir()
    for each in range(number):
        (folder / f"f{each:04}").write_bytes(b"content %d" % each)


@pytest.mark.parametrize(("exclusive", "writes"), [("open", 2), ("close", 1)])
def test_cp_of_1_000_files(agent, curl, gauge, tmp_path, exclusive, writes):
    sources(tmp_path / "in", 1000)
    with Mount(gauge.address, f"exclusive={exclusive},virtual=hidden,timeout=30") as mount:
        with gauge.counting() as count:
            mount.ok(f"cp -r {tmp_path}/in made")
        assert count.writes == 1000 * writes + 1, count.writes  # and the directory's marker
        # Which names the directories have, until they are under watch.
        assert count.reads <= 6, [seen for seen in count.requests if not seen.is_write]
        assert files_below(tmp_path / "in") == below({k: v for k, v in curl.tree().items() if v}, "made/")
        with gauge.counting() as again:
            mount.ok(f"cp -r {tmp_path}/in/. made")
        assert again.writes == 1000, again_of(again)
        assert again.reads <= 2, again


def again_of(count):
    """The writes of what was written more than once."""
    bodies = Counter(seen.body.split(b'"Key"')[1][:30] for seen in count.requests if seen.is_write)
    return [seen for seen in count.requests if bodies[seen.body.split(b'"Key"')[-1][:30]] > 1]


def settle(gauge, mount, folder):
    """A directory is under watch, and all of it is known."""

    def warm():
        mount.ok(f"ls -l {folder}; cat {folder}/*")
        with gauge.counting() as count:
            mount.ok(f"ls -l {folder}; cat {folder}/*")
        return not count.requests

    until(warm)


def test_what_is_done_in_a_watched_directory(agent, curl, gauge, cold):
    fill(agent, small(1, 50).items())
    settle(gauge, cold, "t/d0000")
    time.sleep(SETTLED)  # nothing of it is remembered for a time only
    folder, first = "t/d0000", "t/d0000/k00000"
    for script, writes in [
        (f"echo x > {folder}/new", 1),
        (f"echo y > {first}", 1),
        (f"echo z >> {first}", 1),
        (f"cat {first}", 0),
        (f"stat {first} {folder} {folder}/k00049", 0),
        (f"ls -l {folder}", 0),
        (f"cat {folder}/*", 0),
        (f"rm {folder}/new", 1),
    ]:
        with gauge.counting() as count:
            cold.ok(script)
        assert (count.writes, count.reads) == (writes, 0), (script, count)
    assert curl.get(first) == b"y\nz\n"
    assert curl.get(f"{folder}/new") is None


# -- several readers ---------------------------------------------------------------------------------------------


def begin(mount, script, **options):
    return subprocess.Popen(["bash", "-c", script], cwd=mount.path, stdout=subprocess.PIPE, **options)


def test_readers_of_different_directories_overlap(agent, curl, gauge, cold, tmp_path):
    tree = small(4, 500)
    fill(agent, tree.items())
    gauge.pause = 0.05
    with gauge.counting() as count:
        readers = [begin(cold, f"tar c t/d{number:04}") for number in range(4)]
        found = [in_tar(each.communicate(timeout=LIMIT)[0]) for each in readers]
    assert {key: value for each in found for key, value in each.items()} == tree
    assert gauge.most >= 3, gauge.most
    assert everything(count) <= 4 * 12 + FIXED + 8 * count.expiries, count


def test_readers_of_one_directory(agent, curl, gauge, cold):
    tree = small(1, 1000)
    fill(agent, tree.items())
    gauge.pause = 0.05
    with gauge.counting() as count:
        readers = [begin(cold, "tar c t/d0000") for _ in range(4)]
        found = [in_tar(each.communicate(timeout=LIMIT)[0]) for each in readers]
    assert found == [tree] * 4
    # None asks more for itself than one alone would.
    assert everything(count) <= 4 * 20 + FIXED + 8 * count.expiries, count


@pytest.fixture
def unwatched(gauge):
    """A mount whose watches bring nothing before it is read."""
    with Mount(gauge.address, UNWATCHED) as mount:
        yield mount


def test_a_slow_directory_holds_up_no_other(agent, curl, gauge, unwatched):
    tree = small(2, 300)
    fill(agent, tree.items())
    gate = gauge.gate(lambda path, body: "d0000/?recurse" in path or b"d0000" in body)
    slow = begin(unwatched, "tar c t/d0000")
    try:
        gate.wait()
        done = subprocess.run(["tar", "c", "t/d0001"], cwd=unwatched.path, capture_output=True, timeout=LIMIT)
        assert in_tar(done.stdout) == {key: value for key, value in tree.items() if "d0001" in key}
        assert slow.poll() is None
    finally:
        gate.open()
        found = in_tar(slow.communicate(timeout=LIMIT)[0])
    assert found == {key: value for key, value in tree.items() if "d0000" in key}


# -- interrupted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_reader_that_waits_for_a_read_ahead_can_be_ended(agent, curl, gauge, number):
    with Mount(gauge.address, UNWATCHED) as mount:
        with Held(agent, gauge, mount) as held:
            held.reader.process.send_signal(number)
            held.reader.process.wait(LIMIT / 4)  # the gate is shut for longer than that
            assert not held.gate.opened.is_set()
        assert files_below(mount.path / "t") == below(held.tree)


def test_a_mount_ends_while_something_is_read_ahead(agent, curl, gauge):
    with Mount(gauge.address, UNWATCHED) as mount, Held(agent, gauge, mount) as held:
        held.reader.kill()
        subprocess.run(["fusermount3", "-u", str(mount.path)], check=True, timeout=LIMIT)
        assert mount.process.wait(LIMIT / 4) == 0
        assert not held.gate.opened.is_set()


def test_read_aheads_end(agent, curl, gauge):
    number = 40
    fill(agent, small(number, 200).items())
    with Mount(gauge.address, UNWATCHED) as mount:
        tasks = f"/proc/{mount.process.pid}/task"
        mount.ok("ls t")
        before = len(os.listdir(tasks))
        with gauge.counting() as count:
            for each in range(number):  # a process each: one would get all of the second directory at once
                mount.ok(f"cat t/d{each:04}/*")
        ahead = [seen for seen in count.requests if "recurse" in seen.path]
        assert len(ahead) >= number // 2, count
        until(lambda: len(os.listdir(tasks)) < before + number // 2)


# -- attributes that come with a listing ---------------------------------------------------------------------------


LOOK = """
import os, sys
for name in sorted(os.listdir(sys.argv[1])):
    found = os.stat(os.path.join(sys.argv[1], name))
    print(name, found.st_size, found.st_mtime_ns, found.st_ino, oct(found.st_mode), found.st_nlink)
"""


def attributes(mount, folder):
    """Of each name: listed first, and then looked at."""
    return mount.ok(f"{sys.executable} -c '{LOOK}' {folder}")


@pytest.mark.parametrize("options", ["virtual=hidden", "attr_timeout=0,virtual=hidden", "cache=ttl,attr_timeout=1"])
def test_attributes_of_a_listing_are_those_of_the_files(agent, curl, gauge, options):
    tree = {f"t/k{number:03}": b"x" * number for number in range(300)}
    tree.update({f"t/dir{number}/below": b"y" for number in range(5)})
    tree.update({"t/both": b"value", "t/both/below": b"z"})
    fill(agent, tree.items())
    with Mount(gauge.address, options) as mount:
        first = attributes(mount, "t")
        time.sleep(SETTLED)
        one_by_one = mount.ok(
            f"{sys.executable} -c '{LOOK.replace('os.listdir(sys.argv[1])', 'sys.argv[2:]')}' t $(ls t)"
        )
        time.sleep(SETTLED)
        assert attributes(mount, "t") == first == one_by_one
    sizes = {line.split()[0]: int(line.split()[1]) for line in first.splitlines()}
    assert {name: size for name, size in sizes.items() if name.startswith("k")} == {
        key[2:]: len(value) for key, value in tree.items() if key.startswith("t/k")
    }
    assert sizes["both%value"] == 5


def test_a_listing_shows_what_is_open_and_unsaved(agent, curl, cold):
    fill(agent, small(1, 100).items())
    cold.ok("ls -l t/d0000; cat t/d0000/* > /dev/null")
    with Programs() as programs:
        program = programs(cold, "t/d0000/k00007")
        program("os.write(f, b'x' * 1000)")
        program("g := os.open('t/d0000/new', O_RDWR | O_CREAT)")
        program("os.write(g, b'y' * 70)")
        for _ in range(2):
            listed = cold.ok("ls -l t/d0000")
            sizes = {line.split()[-1]: int(line.split()[4]) for line in listed.splitlines()[1:]}
            assert (sizes["k00007"], sizes["new"], sizes["k00008"], len(sizes)) == (1000, 70, 40, 101)
            time.sleep(SETTLED)
        assert curl.get("t/d0000/new") is None
        program("(os.close(f), os.close(g))")
    assert len(curl.get("t/d0000/k00007")) == 1000


def test_ls_right_after_own_changes(agent, curl, cold):
    fill(agent, small(1, 80, root="").items())
    cold.ok("ls -l d0000")
    with Program(cold.path / "d0000") as program:
        program("[look := lambda: {each.name: each.stat().st_size for each in os.scandir('.')}] and None")
        expected = program("look()")
        for number in range(30):
            name = f"k{number:05}"
            program(f"os.truncate({name!r}, {number})")
            expected[name] = number
            assert program("look()") == expected
            program(f"os.rename('k{number + 40:05}', 'moved{number}')")
            expected[f"moved{number}"] = expected.pop(f"k{number + 40:05}")
            assert program("look()") == expected
            program(f"open('new{number}', 'wb').write(b'x' * {number + 1})")
            expected[f"new{number}"] = number + 1
            assert program("look()") == expected
            program(f"os.unlink('new{number}')")
            del expected[f"new{number}"]
            assert program("look()") == expected
    assert {key.split("/")[1]: len(value) for key, value in curl.tree().items()} == expected


def test_a_remote_change_is_in_the_next_listing(agent, curl, gauge, cold):
    fill(agent, small(1, 80, root="").items())
    settle(gauge, cold, "d0000")
    expected = sizes_or_none(cold)
    for number in range(10):
        curl.put(f"d0000/k{number:05}", b"z" * (100 + number))
        curl.delete(f"d0000/k{number + 50:05}")
        expected[f"k{number:05}"] = 100 + number
        del expected[f"k{number + 50:05}"]
        until(lambda: sizes_or_none(cold) == expected)


def sizes_or_none(mount):
    """None where a name went away between the listing and the look."""
    try:
        return {each.name: each.stat().st_size for each in os.scandir(mount.path / "d0000")}
    except FileNotFoundError:
        return None


# -- connections -------------------------------------------------------------------------------------------------


ADMITTED = 200
"""Connections of one address that an agent takes by default."""


def connections(agent: Agent) -> int:
    """Those that an agent has, ended by the other side or not."""
    with open("/proc/net/tcp") as table:
        own = [line.split() for line in table if f":{agent.port:04X} " in line]
    established, close_wait = "01", "08"
    return sum(each[1].endswith(f":{agent.port:04X}") and each[3] in (established, close_wait) for each in own)


def test_a_host_that_goes_through_many_directories_is_not_shut_out():
    """Consul goes on with a query whose client has gone, and counts its connection."""
    with Agent() as agent:
        curl = Curl(agent.url)
        fill(agent, small(400, 3).items())
        with Mount(agent.address, "timeout=30,virtual=hidden") as mount:
            for start in range(0, 400, 40):
                mount.ok("".join(f"ls -l t/d{number:04}; " for number in range(start, start + 40)))
                time.sleep(2.1)  # so long a directory keeps its slot
                assert connections(agent) < ADMITTED * 3 // 4
            assert curl.get("t/d0399/k00002") is not None
