"""How the virtual trees behave: nothing can be changed, what is open stays, what is shown follows Consul."""

import ctypes
import errno
import fcntl
import json
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
from support.agent import Agent
from support.catalog import remove_node, write_node
from support.checks import are_critical, make_ttl_check, remove_check, turn_check
from support.child import Child
from support.curl import Curl
from support.errors import errno_of
from support.mount import Mount
from support.polling import polled
from support.registry import text_of
from support.waiting import until

SOON = 2
"""Seconds after which what Consul says is what a tree shows."""

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
NOREPLACE, EXCHANGE = 1, 2

TREES = {"_agent", "_catalog", "_consulfs", "_health", "_session", "_status"}
"""Those that every Consul has."""

WHOLE, PREFIX = "", "/app"


@pytest.fixture(scope="module")
def agent():
    """Of the module's own: nobody else changes its catalog."""
    with Agent() as agent:
        write_node(Curl(agent.url), "web", "one", Service={"ID": "w", "Service": "web"})
        yield agent


def node_row(curl, name):
    return next(each for each in curl.json("catalog/nodes?consistent") if each["Node"] == name)


# -- nothing can be changed ----------------------------------------------------------------------------------

LEAF, DIRECTORY, TREE, GROUP = "_catalog/nodes/web", "_catalog/nodes", "_catalog", "_catalog/services/web"
EMPTY, LATER, TOP = "_health/critical", "_catalog/nodes/later", "_catalog/later"
"""Two names that do not exist, in a directory of rows and in one of fixed parts."""

EXISTING = (LEAF, DIRECTORY, TREE, GROUP, EMPTY)
NOT_THERE = (LATER, TOP)

CHANGES = {
    "chmod": lambda path: os.chmod(path, 0o600),
    "chown": lambda path: os.chown(path, 1, 1),
    "utimens": lambda path: os.utime(path, (1, 1)),
    "touch": lambda path: os.utime(path),
    "setxattr": lambda path: os.setxattr(path, "user.a", b"1"),
    "removexattr": lambda path: os.removexattr(path, "user.a"),
}
OF_FILES = {
    "open for writing": lambda path: os.open(path, os.O_WRONLY),
    "open for both": lambda path: os.open(path, os.O_RDWR),
    "open to append": lambda path: os.open(path, os.O_WRONLY | os.O_APPEND),
    "open and create": lambda path: os.open(path, os.O_WRONLY | os.O_CREAT),
    "open to read, and truncate": lambda path: os.open(path, os.O_RDONLY | os.O_TRUNC),
    "open to write, and truncate": lambda path: os.open(path, os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda path: os.truncate(path, 0),
    "unlink": os.unlink,
}
MAKING = {
    "create": lambda path: os.open(path, os.O_WRONLY | os.O_CREAT),
    "create to read": lambda path: os.open(path, os.O_RDONLY | os.O_CREAT),
    "create alone": lambda path: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "mkdir": os.mkdir,
    "mknod": os.mknod,
    "mkfifo": os.mkfifo,
}
LINKING = {
    "symlink": lambda root, path: os.symlink("target", root / path),
    "link to a file of theirs": lambda root, path: os.link(root / LEAF, root / path),
    "link to a key": lambda root, path: os.link(root / "key", root / path),
}


@pytest.fixture(scope="module", params=["whole", "prefix", "read-only"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def shut(agent, kind):
    """Mounts that nothing can be changed in, by the virtual trees' nature or altogether."""
    source, options = {"whole": (WHOLE, ""), "prefix": (PREFIX, ""), "read-only": (WHOLE, ",ro")}[kind]
    with Mount(agent.address + source, f"timeout=20{options}") as mount:
        yield mount


@pytest.fixture
def closed(shut):
    """The same; it says nothing in its log, and shows after a test what it did before."""
    said, before = shut.log_text(), {each: list_of(shut.path / each) for each in (TREE, DIRECTORY, EMPTY)}
    content = (shut.path / LEAF).read_bytes()
    yield shut.path
    assert {each: list_of(shut.path / each) for each in before} == before
    assert (shut.path / LEAF).read_bytes() == content
    assert shut.log_text() == said


def list_of(folder):
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("path", EXISTING)
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_there_is_not_changed(closed, change, path):
    assert errno_of(CHANGES[change], closed / path) == errno.EROFS


@pytest.mark.parametrize("change", OF_FILES)
def test_a_file_is_not_written(closed, change):
    assert errno_of(OF_FILES[change], closed / LEAF) == errno.EROFS


@pytest.mark.parametrize("path", [DIRECTORY, TREE, GROUP, EMPTY])
def test_a_directory_is_not_removed(closed, path):
    assert errno_of(os.rmdir, closed / path) == errno.EROFS


@pytest.mark.parametrize("path", [*NOT_THERE, f"{EMPTY}/later", "_status/later", f"{GROUP}/later"])
@pytest.mark.parametrize("change", MAKING)
def test_nothing_is_made(closed, change, path):
    assert errno_of(MAKING[change], closed / path) == errno.EROFS
    assert not os.path.lexists(closed / path)


@pytest.mark.parametrize("path", [*NOT_THERE, "later"])
@pytest.mark.parametrize("change", LINKING)
def test_links_are_refused_as_everywhere_in_the_mount(closed, curl, kind, change, path):
    with_keys(closed, curl, kind)
    assert errno_of(LINKING[change], closed, path) == (errno.EROFS if kind == "read-only" else errno.EPERM)


@pytest.mark.parametrize("path", EXISTING)
@pytest.mark.parametrize("change", ["create alone", "mkdir", "mknod"])
def test_the_kernel_sees_what_exists_before_it_asks(closed, change, path):
    assert errno_of(MAKING[change], closed / path) == errno.EEXIST


@pytest.mark.parametrize("path", NOT_THERE)
@pytest.mark.parametrize("change", [*CHANGES, "truncate", "open for writing", "unlink", "rmdir"])
def test_the_kernel_sees_what_is_missing_before_it_asks(closed, kind, change, path):
    call = {**CHANGES, **OF_FILES, "rmdir": os.rmdir}[change]
    # On a mount that is read-only it does not even look for what is to be removed.
    wanted = {errno.ENOENT, errno.EROFS} if kind == "read-only" else {errno.ENOENT}
    assert errno_of(call, closed / path) in wanted


def rename(old, new, flags=0):
    if LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def with_keys(root, curl, kind):
    """The store, with a key and a folder at the root of what is mounted, which shows them."""
    below = "app/" if kind == "prefix" else ""
    curl.put(f"{below}key", b"text")
    curl.put(f"{below}folder/key", b"text")
    until(lambda: {"key", "folder"} <= set(os.listdir(root)))
    return curl.tree()


@pytest.mark.parametrize("flags", [0, NOREPLACE])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        *((LEAF, new) for new in (LATER, TOP, "new", "_status/web", f"{EMPTY}/web")),
        *((DIRECTORY, new) for new in (TOP, "new", f"{EMPTY}/nodes")),
        *((TREE, new) for new in ("new", "_health/catalog")),
        *((GROUP, new) for new in ("_catalog/services/later", "new")),
        *(("key", new) for new in (LATER, TOP, f"{EMPTY}/key")),
        *(("folder", new) for new in (LATER, TOP, f"{EMPTY}/folder")),
    ],
)
def test_nothing_is_moved_in_or_out_or_within(closed, curl, kind, old, new, flags):
    before = with_keys(closed, curl, kind)
    assert errno_of(rename, closed / old, closed / new, flags) == errno.EROFS
    assert curl.tree() == before


@pytest.mark.parametrize(
    ("old", "new", "flags"),
    [
        (LEAF, "key", 0),
        ("key", LEAF, 0),
        (LEAF, "_catalog/nodes/test", 0),
        (EMPTY, "_health/warning", 0),
        (LEAF, "key", EXCHANGE),
        ("key", LEAF, EXCHANGE),
        (LEAF, "_catalog/nodes/test", EXCHANGE),
        (LEAF, "_status/leader", EXCHANGE),
        (TREE, "folder", EXCHANGE),
        ("folder", TREE, EXCHANGE),
        (TREE, "_health", EXCHANGE),
    ],
)
def test_nothing_is_replaced_or_exchanged(closed, curl, kind, old, new, flags):
    before = with_keys(closed, curl, kind)
    assert errno_of(rename, closed / old, closed / new, flags) == errno.EROFS
    assert errno_of(rename, closed / old, closed / new, NOREPLACE) in (errno.EEXIST, errno.EROFS)
    assert curl.tree() == before


def fallocate(descriptor):
    if LIBC.fallocate(descriptor, 0, ctypes.c_long(0), ctypes.c_long(10)):
        raise OSError(ctypes.get_errno(), "fallocate")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda file: os.fchmod(file, 0o600), errno.EROFS),
        (lambda file: os.fchown(file, 1, 1), errno.EROFS),
        (lambda file: os.utime(file), errno.EROFS),
        (lambda file: os.setxattr(file, "user.a", b"1"), errno.EROFS),
        # The kernel's own: the descriptor is for reading.
        (lambda file: os.write(file, b"x"), errno.EBADF),
        (lambda file: os.pwrite(file, b"x", 3), errno.EBADF),
        (fallocate, errno.EBADF),
        (lambda file: os.ftruncate(file, 0), errno.EINVAL),
    ],
)
def test_an_open_file_changes_nothing(closed, change, wanted):
    descriptor = os.open(closed / LEAF, os.O_RDONLY)
    try:
        assert errno_of(change, descriptor) == wanted
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    "lock", [lambda file: fcntl.flock(file, fcntl.LOCK_EX), lambda file: fcntl.lockf(file, fcntl.LOCK_SH)]
)
def test_there_are_no_locks(closed, lock):
    with open(closed / LEAF, "rb") as file:
        assert errno_of(lock, file) == errno.ENOLCK
        fcntl.flock(file, fcntl.LOCK_UN)  # to give what one has not is no error anywhere


@pytest.fixture
def local(agent):
    with Mount(agent.address, "timeout=20,locks=local") as mount:
        yield mount


def test_with_local_locks_they_are_the_kernels(local):
    with open(local.path / LEAF, "rb") as one, open(local.path / LEAF, "rb") as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        assert errno_of(fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB) == errno.EWOULDBLOCK
        fcntl.flock(one, fcntl.LOCK_UN)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(one, fcntl.LOCK_SH)


ORDINARY = """
import os, sys
os.setgroups([]), os.setgid(65534), os.setuid(65534)
for call in (
    lambda: open(sys.argv[1]).close(),
    lambda: os.open(sys.argv[1], os.O_WRONLY),
    lambda: os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT),
    lambda: os.unlink(sys.argv[1]),
    lambda: os.chmod(sys.argv[1], 0o600),
):
    try:
        call()
        print(0)
    except OSError as error:
        print(error.errno)
"""


@pytest.fixture
def shared(agent):
    """A mount that other users may enter."""
    with Mount(agent.address, "timeout=20,allow_other,umask=022") as mount:
        yield mount


@pytest.mark.root
def test_an_ordinary_user_is_refused_by_the_modes(shared):
    with Child("-S", "-E", "-c", ORDINARY, str(shared.path / LEAF), str(shared.path / LATER)) as child:
        told = [int(child.hear()) for _ in range(5)]
    assert told == [0, errno.EACCES, errno.EACCES, errno.EACCES, errno.EPERM]


# -- what is open stays ---------------------------------------------------------------------------------------


@pytest.fixture
def mount(agent, curl):
    """What is registered as "live" is gone after the test."""
    with Mount(agent.address) as mount:
        yield mount
    remove_node(curl, "live")


LIVE = "_catalog/nodes/live"


def write_live(curl, text):
    """Give the file LIVE another content; when it shows, this is what it holds."""
    write_node(curl, "live", text)
    content = text_of(node_row(curl, "live"))
    time.sleep(SOON)
    return content


def test_a_reader_gets_to_the_end_of_what_it_opened(mount, curl):
    first = write_live(curl, "one " * 100)
    with open(mount.path / LIVE, "rb", buffering=0) as old:
        start = old.read(10)
        second = write_live(curl, "2")
        with open(mount.path / LIVE, "rb", buffering=0) as new:
            assert new.read(20) == second[:20]
            third = write_live(curl, "three " * 1000)
            assert (mount.path / LIVE).read_bytes() == third
            assert new.read() == second[20:]
            assert [os.pread(new.fileno(), 7, offset) for offset in (0, 50)] == [second[:7], second[50:57]]
        pieces = iter(lambda: old.read(3), b"")
        assert start + b"".join(pieces) == first
        assert [os.pread(old.fileno(), 9, offset) for offset in (300, 2, 10_000)] == [first[300:309], first[2:11], b""]
        assert old.seek(-5, os.SEEK_END) == len(first) - 5
        assert old.read() == first[-5:]


@pytest.mark.parametrize("text", ["a longer text than it was", "2"])
def test_who_has_a_file_open_is_told_of_what_it_opened(mount, curl, text):
    first = write_live(curl, "the first")
    path = mount.path / LIVE
    with open(path, "rb", buffering=0) as old:
        before = os.fstat(old.fileno())
        second = write_live(curl, text)
        assert os.fstat(old.fileno()) == before
        assert before.st_size == len(first)
        assert mount.ok(f"stat -c %s {LIVE}") == f"{len(second)}\n"
        with open(path, "rb") as new:
            told = os.fstat(new.fileno())
            assert (told.st_size, told.st_ino == before.st_ino) == (len(second), False)
        until(lambda: os.fstat(old.fileno()) == before)  # a close reaches the daemon a moment later
    until(lambda: os.stat(path) == told)


def test_what_vanished_while_it_was_open_is_read_to_its_end(mount, curl):
    content = write_live(curl, "text " * 1000)
    with open(mount.path / LIVE, "rb", buffering=0) as file:
        assert file.read(10) == content[:10]
        remove_node(curl, "live")
        time.sleep(SOON)
        assert "live" not in os.listdir(mount.path / DIRECTORY)
        assert errno_of(os.stat, mount.path / LIVE) == errno.ENOENT
        assert errno_of(os.open, mount.path / LIVE, os.O_RDONLY) == errno.ENOENT
        assert file.read() == content[10:]
        assert os.pread(file.fileno(), 10, 0) == content[:10]


def leaves(folder):
    return [os.path.join(base, name) for base, _, files in os.walk(folder) for name in files]


def test_a_size_is_that_of_the_content(mount, curl):
    write_live(curl, "größer als es aussieht")
    paths = [path for tree in ("_catalog", "_health", "_session", "_status") for path in leaves(mount.path / tree)]
    assert len(paths) > 10
    for path in paths:
        size = os.stat(path).st_size
        with open(path, "rb") as file:
            assert os.fstat(file.fileno()).st_size == size == len(file.read()), path


def test_each_of_many_readers_gets_one_whole_content(mount, curl):
    write_live(curl, "a" * 100)
    ended, seen, broken = threading.Event(), set(), []

    def read():
        while not ended.is_set():
            with open(mount.path / LIVE, "rb", buffering=0) as file:
                content = b"".join(iter(lambda: file.read(100), b""))
            try:
                text = json.loads(content)["Meta"]["text"]
            except ValueError:
                broken.append(content)
                continue
            if text != text[0] * len(text) or len(text) != 100 * (ord(text[0]) - 96):
                broken.append(content)
            seen.add(text[0])

    readers = [threading.Thread(target=read) for _ in range(4)]
    for each in readers:
        each.start()
    try:
        for number in (5, 2, 8, 1, 3):
            write_node(curl, "live", chr(96 + number) * 100 * number)
            until(lambda number=number: chr(96 + number) in seen or broken)
            seen.clear()
    finally:
        ended.set()
        for each in readers:
            each.join(60)
    assert broken == []


def test_times_and_inodes_change_with_the_content_and_with_nothing_else(mount, curl):
    write_live(curl, "one")
    first, folder = os.stat(mount.path / LIVE), os.stat(mount.path / DIRECTORY)
    time.sleep(SOON)
    assert os.stat(mount.path / LIVE) == first
    write_live(curl, "two")
    second = os.stat(mount.path / LIVE)
    assert second.st_ino != first.st_ino
    assert second.st_mtime_ns > first.st_mtime_ns
    assert second.st_size == first.st_size
    os.listdir(mount.path / DIRECTORY)
    assert os.stat(mount.path / DIRECTORY) == folder
    content = write_live(curl, "one")
    third = os.stat(mount.path / LIVE)
    assert third.st_ino not in (first.st_ino, second.st_ino)
    assert third.st_size == len(content)
    inodes = {each.name: each.inode() for each in os.scandir(mount.path / DIRECTORY)}
    assert inodes["live"] == third.st_ino


def test_modes_are_those_of_what_can_only_be_read(mount):
    for path, mode in ((LEAF, stat.S_IFREG | 0o444), (DIRECTORY, stat.S_IFDIR | 0o755), (TREE, stat.S_IFDIR | 0o755)):
        assert os.stat(mount.path / path).st_mode == mode
    assert os.listxattr(mount.path / LEAF) == []
    assert errno_of(os.getxattr, mount.path / LEAF, "user.consul.flags") == errno.ENODATA


# -- where they are shown -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "options", "is_listed"),
    [
        (WHOLE, "", True),
        (WHOLE, ",virtual=visible", True),
        (WHOLE, ",virtual=hidden", False),
        (PREFIX, "", False),
        (PREFIX, ",virtual=hidden", False),
        (PREFIX, ",virtual=visible", True),
    ],
)
def test_where_they_are_listed_and_that_they_are_reached_by_name(agent, curl, source, options, is_listed):
    below = "app/" if source else ""
    for key in ("key", "folder/key", "_catalog/key", "_health", "_dc/key", "_acl", "_other/key", "folder/_catalog"):
        curl.put(below + key, b"text")
    escaped = {"%5Fcatalog", "%5Fhealth", "%5Fdc", "%5Facl"}
    with Mount(agent.address + source, f"timeout=20{options}") as mount:
        listed = set(os.listdir(mount.path))
        keys = {"key", "folder", "_other"} | escaped
        assert keys <= listed
        if is_listed:
            assert listed >= TREES
        else:
            assert listed == keys
        assert "_dc" not in listed
        assert os.listdir(mount.path / "_dc") == []
        assert (mount.path / LEAF).read_bytes() == text_of(node_row(curl, "web"))
        assert "key" not in os.listdir(mount.path / "_catalog")
        assert (mount.path / "%5Fcatalog/key").read_bytes() == (mount.path / "%5Fhealth").read_bytes() == b"text"
        assert sorted(os.listdir(mount.path / "folder")) == ["_catalog", "key"]
        mount.ok("echo new > %5Fcatalog/new; mv key %5Fquery; rm %5Facl")
    assert curl.get(f"{below}_catalog/new") == b"new\n"
    assert curl.get(f"{below}_query") == b"text"
    assert curl.get(f"{below}_acl") is None


@pytest.mark.parametrize("source", [WHOLE, PREFIX])
def test_with_off_the_names_are_those_of_keys(agent, curl, source):
    below = "app/" if source else ""
    curl.put(f"{below}_health", b"text")
    with Mount(agent.address + source, "timeout=20,virtual=off") as mount:
        assert os.listdir(mount.path) == ["_health"]
        assert errno_of(os.stat, mount.path / TREE) == errno.ENOENT
        mount.ok("mkdir _catalog; echo new > _catalog/x; echo more >> _health; echo '%' > %5Fcatalog; mkdir _dc")
        assert sorted(os.listdir(mount.path)) == ["%5Fcatalog", "_catalog", "_dc", "_health"]
    found = curl.tree()
    assert found[f"{below}_catalog/x"] == b"new\n"
    assert found[f"{below}_health"] == b"textmore\n"
    assert found[f"{below}%5Fcatalog"] == b"%\n"


@pytest.mark.parametrize("copy", ["cp -r . {}", "cp -a . {}", "tar c . | tar x -C {}", "rsync -a ./ {}"])
def test_a_copy_of_a_prefix_is_the_keys_alone(agent, curl, tmp_path, copy):
    curl.put("app/a", b"1")
    curl.put("app/b/c", b"2")
    with Mount(agent.address + PREFIX, "timeout=20") as mount:
        mount.ok(copy.format(tmp_path))
        assert mount.log_text() == ""
    found = {os.path.relpath(path, tmp_path): open(path, "rb").read() for path in leaves(tmp_path)}
    assert found == {"a": b"1", "b/c": b"2"}


# -- what is shown follows Consul ------------------------------------------------------------------------------


@pytest.fixture
def check(curl):
    make_ttl_check(curl, "a/b")
    until(lambda: any(each["CheckID"] == "a/b" for each in curl.json("health/state/passing?consistent")))
    yield "a/b"
    remove_check(curl, "a/b")


@pytest.mark.parametrize("is_polled", [True, False])
def test_a_check_that_fails_is_critical_at_once_and_no_more_when_it_passes(mount, curl, check, is_polled):
    folder, name = mount.path / EMPTY, "test:a%2Fb"
    assert os.listdir(folder) == []
    with polled(folder, folder / name) if is_polled else nullcontext():
        for _ in range(3):
            turn_check(curl, check, "fail")
            until(lambda: are_critical(curl) == {check})
            time.sleep(SOON)
            assert json.loads((folder / name).read_bytes())["Status"] == "critical"
            assert os.listdir(folder) == [name]
            turn_check(curl, check, "pass")
            until(lambda: are_critical(curl) == set())
            time.sleep(SOON)
            assert errno_of(os.stat, folder / name) == errno.ENOENT
            assert os.listdir(folder) == []
    assert stat.S_ISDIR(os.stat(folder).st_mode)
    assert mount.log_text() == ""


# -- Consul is away --------------------------------------------------------------------------------------------

AWAY = ("cat _catalog/nodes/test", "ls _health/any", "stat _status/leader", "cat key", "ls -d folder")


def fail(mount, scripts, words):
    """All of them at once: each takes as long as `timeout=` says."""
    with ThreadPoolExecutor(len(scripts)) as pool:
        for script, done in zip(scripts, pool.map(mount.sh, scripts)):
            assert done.returncode != 0
            assert words in done.stderr, script


def test_consul_hangs_and_comes_back():
    with Agent() as own, Mount(own.address, "timeout=2") as mount:
        curl = Curl(own.url)
        curl.put("key", b"text")
        curl.put("folder/key", b"text")
        with open(mount.path / "_catalog/nodes/test", "rb", buffering=0) as file:
            own.freeze()
            try:
                time.sleep(SOON)
                fail(mount, AWAY, "Connection timed out")
                assert json.loads(file.read())["Node"] == "test"
                assert "nodes" in os.listdir(mount.path / TREE)
                assert (mount.path / "_consulfs/version").read_text().startswith("consulfs ")
            finally:
                own.resume()
        time.sleep(1)  # for which a failure is remembered
        mount.ok(" && ".join(AWAY))
        assert (mount.path / "_catalog/nodes/test").read_bytes() == text_of(node_row(curl, "test"))


def test_consul_is_stopped_and_started_again():
    with Agent(keeps_data=True) as own, Mount(own.address, "timeout=2") as mount:
        curl = Curl(own.url)
        curl.put("key", b"text")
        curl.put("folder/key", b"text")
        mount.ok(" && ".join(AWAY))
        own.stop()
        time.sleep(SOON)
        fail(mount, AWAY, "Host is down")
        own.start()
        time.sleep(1)
        mount.ok(" && ".join(AWAY))
        assert (mount.path / "_catalog/nodes/test").read_bytes() == text_of(node_row(curl, "test"))
        assert "Traceback" not in mount.log_text()
