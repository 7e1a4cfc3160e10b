"""The traps of the write path, each sprung once."""

import ctypes
import errno
import mmap
import os
import signal
import subprocess
import time

import pytest
from support.sessions import destroy_session, make_session

STALE = 1.1

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100


def renameat2(old, new, flags):
    if LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def test_a_group_of_commands(mnt, curl):
    mnt.ok("{ date; hostname; echo end; } > f")
    lines = curl.get("f").splitlines()
    assert len(lines) == 3
    assert lines[2] == b"end"
    mnt.ok("( echo a; /bin/echo b; echo c ) > f; seq 3 | while read n; do echo $n; done > g")
    assert curl.tree() == {"f": b"a\nb\nc\n", "g": b"1\n2\n3\n"}


def test_an_append_ignores_the_kernels_offset(mnt, curl):
    curl.put("f", b"12345")
    with open(mnt.path / "f", "ab") as one:
        curl.put("f", b"12345678901234")
        one.write(b"end")
    assert curl.get("f") == b"12345678901234end"


def test_mmap_stored_after_the_last_close(mnt, curl):
    curl.put("f", b"a" * 100)
    descriptor = os.open(mnt.path / "f", os.O_RDWR)
    page = mmap.mmap(descriptor, 100)
    os.close(descriptor)
    page[10:15] = b"HELLO"
    page.close()
    wanted = b"a" * 10 + b"HELLO" + b"a" * 85
    deadline = time.monotonic() + 20
    while curl.get("f") != wanted and time.monotonic() < deadline:
        time.sleep(0.05)  # the kernel writes the page back when it likes
    assert curl.get("f") == wanted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_with_unsaved_files(mnt, curl, number):
    one = open(mnt.path / "one", "w")
    one.write("unsaved")
    one.flush()
    two = open(mnt.path / "two", "w")
    mnt.process.send_signal(number)
    assert mnt.process.wait(30) == 0
    assert curl.tree() == {"one": b"unsaved", "two": b""}
    for file in (one, two):
        try:
            file.close()
        except OSError:
            pass


def test_a_second_process_sees_what_is_unsaved(mnt, curl):
    curl.put("f", b"12")
    with open(mnt.path / "f", "wb") as file:
        file.write(b"x" * 100)
        file.flush()
        assert mnt.ok("stat -c %s f; wc -c < f") == "100\n100\n"
        mnt.ok("echo end >> f")
    assert curl.get("f") == b"x" * 100 + b"end\n"


def test_two_processes_append(mnt, curl):
    mnt.ok("for n in $(seq 20); do echo $n >> f & done; wait")
    assert sorted(int(line) for line in curl.get("f").split()) == list(range(1, 21))


def test_a_renamed_file_carries_its_writer_along(mnt, curl):
    with open(mnt.path / "old", "w") as file:
        file.write("first ")
        file.flush()
        os.rename(mnt.path / "old", mnt.path / "new")
        file.write("second")
    assert curl.tree() == {"new": b"first second"}


def test_a_renamed_directory_carries_its_writers_along(mnt, curl):
    curl.put("d/one", b"1")
    with open(mnt.path / "d/one", "a") as one, open(mnt.path / "d/two", "w") as two:
        one.write("more")
        two.write("2")
        one.flush()
        two.flush()
        os.rename(mnt.path / "d", mnt.path / "e")
    assert curl.tree() == {"e/one": b"1more", "e/two": b"2"}


def test_an_unlinked_file_is_not_stored(mnt, curl):
    curl.put("f", b"text")
    file = open(mnt.path / "f", "r+")
    file.write("new")
    file.flush()
    os.unlink(mnt.path / "f")
    file.write("more")
    file.flush()
    file.seek(0)
    assert file.read() == "newmtext"[:3] + "more"
    file.close()
    time.sleep(0.3)
    assert curl.keys() == []


def test_a_replaced_file_is_not_stored(mnt, curl):
    curl.put("f", b"old")
    with open(mnt.path / "f", "r+") as file:
        mnt.ok("echo new > g; mv g f")
        file.write("late")
    time.sleep(0.3)
    assert curl.tree() == {"f": b"new\n"}


def test_an_unlinked_name_can_be_made_again(mnt, curl):
    old = open(mnt.path / "f", "w")
    old.write("old")
    old.flush()
    os.unlink(mnt.path / "f")
    mnt.ok("echo new > f")
    old.close()
    time.sleep(0.3)
    assert curl.tree() == {"f": b"new\n"}


def test_names_are_not_exchanged(mnt, curl):
    curl.put("a", b"1")
    curl.put("b", b"2")
    with pytest.raises(OSError) as caught:
        renameat2(mnt.path / "a", mnt.path / "b", 2)
    assert caught.value.errno == errno.EINVAL
    assert curl.tree() == {"a": b"1", "b": b"2"}


def test_rename_noreplace(mnt, curl):
    curl.put("a", b"1")
    curl.put("b", b"2")
    with pytest.raises(FileExistsError):
        renameat2(mnt.path / "a", mnt.path / "b", 1)
    renameat2(mnt.path / "a", mnt.path / "c", 1)
    assert curl.tree() == {"b": b"2", "c": b"1"}


def test_ftruncate_publishes_nothing_by_itself(counted, proxy, curl):
    curl.put("f", b"full")
    with proxy.counting() as count:
        with open(counted.path / "f", "r+") as file:
            os.ftruncate(file.fileno(), 0)
            assert curl.get("f") == b"full"
            file.write("new")
        assert curl.get("f") == b"new"
    assert count.writes == 1, count
    for script in ("sort -r -o f f", "printf x | dd of=f bs=1 seek=1 status=none", "truncate -s 0 f"):
        with proxy.counting() as count:
            counted.ok(script)
        assert count.writes == 1, (script, count)


def test_a_key_that_was_deleted_elsewhere_is_written_at_once(mnt, curl):
    for number in range(10):
        mnt.ok("echo old > f; cat f")
        curl.delete("f")
        mnt.ok(f"echo new{number} > f")
        assert curl.get("f") == b"new%d\n" % number
        curl.delete("f")
        mnt.ok(f"echo new{number} >> f")
        assert curl.get("f") == b"new%d\n" % number


def test_a_part_of_a_key_that_was_deleted_elsewhere_is_not_stored(mnt, curl):
    curl.put("f", b"0123456789")
    descriptor = os.open(mnt.path / "f", os.O_WRONLY)
    curl.delete("f")
    os.pwrite(descriptor, b"X", 5)
    with pytest.raises(OSError) as caught:
        os.close(descriptor)
    assert caught.value.errno == errno.ESTALE
    assert curl.keys() == []


def test_a_change_elsewhere_is_kept_by_a_write_at_an_offset(mnt, curl):
    curl.put("f", b"0123456789")
    descriptor = os.open(mnt.path / "f", os.O_WRONLY)
    curl.put("f", b"abcdefghij", flags=4)
    os.pwrite(descriptor, b"X", 5)
    os.close(descriptor)
    assert (curl.get("f"), curl.flags("f")) == (b"abcdeXghij", 4)


def test_nothing_of_a_handle_is_stored_after_efbig(mnt, curl):
    curl.put("f", b"old")
    descriptor = os.open(mnt.path / "f", os.O_WRONLY | os.O_TRUNC)
    os.write(descriptor, b"x" * 1000)
    with pytest.raises(OSError) as caught:
        os.pwrite(descriptor, b"y", 512 * 1024)
    assert caught.value.errno == errno.EFBIG
    with pytest.raises(OSError):
        os.close(descriptor)
    time.sleep(0.3)
    assert curl.get("f") == b"old"
    assert (mnt.path / "f").read_bytes() == b"old"


def test_no_hidden_files(mnt, curl):
    with open(mnt.path / "f", "w") as file:
        file.write("x")
        file.flush()
        os.fsync(file.fileno())
        os.unlink(mnt.path / "f")
        assert os.listdir(mnt.path) == []
        assert curl.keys() == []


def test_utimens_survives_the_flush_and_a_rename(mnt):
    with open(mnt.path / "f", "w") as file:
        file.write("text")
        file.flush()
        os.utime(file.fileno(), ns=(1, 1234567890123456789))
    assert os.stat(mnt.path / "f").st_mtime_ns == 1234567890123456789
    os.rename(mnt.path / "f", mnt.path / "g")
    assert os.stat(mnt.path / "g").st_mtime_ns == 1234567890123456789
    mnt.ok("touch -a g")
    assert os.stat(mnt.path / "g").st_mtime_ns == 1234567890123456789
    mnt.ok("touch g")
    assert abs(os.stat(mnt.path / "g").st_mtime - time.time()) < 60


def test_mtime_follows_value_and_flags_not_the_index(mnt, curl):
    curl.put("f", b"text")
    time.sleep(STALE)
    before = os.stat(mnt.path / "f").st_mtime_ns
    session = make_session(curl)
    assert curl.txn({"Verb": "lock", "Key": "f", "Value": "dGV4dA==", "Session": session}) is not None
    time.sleep(STALE)
    assert os.stat(mnt.path / "f").st_mtime_ns == before
    assert os.getxattr(mnt.path / "f", "user.consul.session") == session.encode()
    destroy_session(curl, session)
    curl.put("f", b"TEXT")
    time.sleep(STALE)
    assert os.stat(mnt.path / "f").st_mtime_ns > before


def test_an_inode_goes_along_with_a_rename(mnt):
    mnt.ok("echo x > a")
    number = os.stat(mnt.path / "a").st_ino
    mnt.ok("mv a b; echo y > a")
    assert os.stat(mnt.path / "b").st_ino == number
    assert os.stat(mnt.path / "a").st_ino != number
    assert {entry.name: entry.inode() for entry in os.scandir(mnt.path)} == {
        name: os.stat(mnt.path / name).st_ino for name in ("a", "b")
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_waiting_cat_is_ended_at_once(agent, curl, number):
    from support.agent import Agent
    from support.mount import Mount

    with Agent() as own, Mount(own.address, "timeout=60") as mount:
        curl_own = type(curl)(own.url)
        curl_own.put("f", b"text")
        own.freeze()
        try:
            cat = subprocess.Popen(["cat", mount.path / "f"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            time.sleep(0.5)
            assert cat.poll() is None
            cat.send_signal(number)
            assert cat.wait(10) != 0  # a hang guard: the mount's own timeout is 60 s
        finally:
            own.resume()
        assert mount.ok("cat f") == "text"


def test_a_timer_or_a_child_does_not_interrupt(agent, curl, tmp_path):
    """With a slow Consul: open(2) of a program that catches SIGALRM and SIGCHLD succeeds, as on a local disk."""
    from support.mount import Mount
    from support.proxy import Proxy

    curl.put("f", b"text")
    script = """
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
caught = []
for number in (signal.SIGALRM, signal.SIGCHLD):
    signal.signal(number, lambda number, frame: caught.append(number))
if os.fork() == 0:
    os._exit(0)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
descriptor = libc.open(b"f", os.O_RDONLY)
print(os.strerror(ctypes.get_errno()) if descriptor < 0 else os.read(descriptor, 10), len(caught) > 0)
signal.setitimer(signal.ITIMER_REAL, 0)  # an interpreter that ends catches no signals any more
"""
    with Proxy(agent.port) as proxy, Mount(proxy.address) as mount:
        proxy.fault = lambda seen: 0.3 if seen.method == "GET" else None
        (tmp_path / "script.py").write_text(script)
        assert mount.ok(f"python3 {tmp_path}/script.py") == "b'text' True\n"


def test_a_waiting_close_is_ended_at_once_and_nothing_is_lost(curl):
    from support.agent import Agent
    from support.mount import Mount

    with Agent() as own, Mount(own.address, "timeout=60") as mount:
        own_curl = type(curl)(own.url)
        script = (
            "import sys; f = open('f', 'w'); f.write('text'); f.flush();"
            " print('open', flush=True); sys.stdin.read(1); f.close()"
        )
        writer = subprocess.Popen(
            ["python3", "-c", script],
            cwd=mount.path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert writer.stdout.readline() == b"open\n"
        own.freeze()
        try:
            writer.stdin.write(b"x")
            writer.stdin.close()
            time.sleep(0.5)
            assert writer.poll() is None
            writer.kill()
            writer.wait(10)
        finally:
            own.resume()
        deadline = time.monotonic() + 20
        while own_curl.get("f") != b"text" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert own_curl.get("f") == b"text"


def test_many_waiters_do_not_stop_the_mount(curl):
    from support.agent import Agent
    from support.mount import Mount
    from support.proxy import Proxy

    with Agent() as own, Proxy(own.port) as proxy, Mount(proxy.address, "timeout=60") as mount:
        own_curl = type(curl)(own.url)
        own_curl.put("fast/f", b"text")
        for number in range(30):
            own_curl.put(f"slow/{number}/f", b"text")
        proxy.fault = lambda seen: 5 if "slow" in seen.path else None
        readers = [subprocess.Popen(["cat", mount.path / f"slow/{n}/f"], stdout=subprocess.DEVNULL) for n in range(30)]
        time.sleep(0.5)
        assert mount.ok("cat fast/f") == "text"
        assert all(reader.poll() is None for reader in readers)
        for reader in readers:
            assert reader.wait(60) == 0
