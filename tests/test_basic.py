"""Reading and writing with everyday tools; Consul is looked at with curl."""

import os
import time

import pytest

STALE = 1.1
"""Seconds after which a change made elsewhere is seen for certain."""


def test_cat_and_echo(mnt, curl):
    mnt.ok("echo hello > a")
    assert curl.get("a") == b"hello\n"
    curl.put("b/c", b"there")
    assert mnt.ok("sleep 1.1; cat a b/c") == "hello\nthere"


def test_append(mnt, curl):
    mnt.ok("echo one >> log; echo two >> log; printf three >> log")
    assert curl.get("log") == b"one\ntwo\nthree"


def test_overwrite_shorter(mnt, curl):
    mnt.ok("echo a long line > f; echo b > f")
    assert curl.get("f") == b"b\n"
    assert os.stat(mnt.path / "f").st_size == 2


def test_cp_mv_rm(mnt, curl):
    mnt.ok("mkdir -p d/e; echo x > d/e/f; cp d/e/f g; mv g d/g; rm d/e/f")
    assert curl.tree() == {"d/": b"", "d/e/": b"", "d/g": b"x\n"}
    mnt.ok("rm -r d")
    assert curl.keys() == []


def test_rm_r_without_markers(mnt, curl):
    for key in ("a/b/c", "a/b/d", "a/e"):
        curl.put(key)
    mnt.ok("rm -r a")
    assert curl.keys() == []
    assert os.listdir(mnt.path) == []


def test_rmdir_keeps_what_is_there(mnt, curl):
    curl.put("a/b")
    assert "not empty" in mnt.sh("rmdir a").stderr
    assert curl.keys() == ["a/b"]


def test_an_emptied_directory_stays_until_it_is_removed(mnt, curl):
    curl.put("a/b/c")
    mnt.ok("rm a/b/c; sleep 1.2; ls a/b; test -d a; rmdir a/b; rmdir a")
    assert mnt.sh("ls a").returncode != 0


def test_ls_find_grep_du_diff(mnt, curl, tmp_path):
    for number in range(100):
        curl.put(f"d/{number % 7}/k{number}", b"value %d\n" % number)
    assert len(mnt.ok("ls -lR d").splitlines()) > 100
    assert len(mnt.ok("find d -type f -size -2").splitlines()) == 100
    assert mnt.ok("grep -rl 'value 42$' d") == "d/0/k42\n"
    assert int(mnt.ok("du -s --apparent-size -B1 d").split()[0]) == sum(len(f"value {n}\n") for n in range(100))
    mnt.ok(f"cp -r d {tmp_path}/copy; diff -r d {tmp_path}/copy")


def test_parts_of_a_value(mnt, curl):
    curl.put("f", b"0123456789")
    assert mnt.ok("head -c 3 f") == "012"
    assert mnt.ok("tail -c 3 f") == "789"
    mnt.ok("printf XY | dd of=f bs=1 seek=4 conv=notrunc status=none")
    assert curl.get("f") == b"0123XY6789"
    mnt.ok("printf Z | dd of=f bs=1 seek=12 conv=notrunc status=none")
    assert curl.get("f") == b"0123XY6789\0\0Z"
    mnt.ok("printf abc | dd of=f bs=1 seek=1 status=none")
    assert curl.get("f") == b"0abc"


def test_truncate_and_touch(mnt, curl):
    curl.put("f", b"0123456789")
    mnt.ok("truncate -s 4 f")
    assert curl.get("f") == b"0123"
    mnt.ok("truncate -s 6 f; truncate -s 3 g; touch h; touch f; : > i")
    assert curl.tree() == {"f": b"0123\0\0", "g": b"\0\0\0", "h": b"", "i": b""}
    os.truncate(mnt.path / "f", 2)
    assert curl.get("f") == b"01"


def test_tee_sort_sed(mnt, curl):
    mnt.ok("printf 'c\\na\\nb\\n' | tee f > /dev/null; sort -o f f; sed -i s/b/B/ f")
    assert curl.tree() == {"f": b"a\nB\nc\n"}


@pytest.mark.parametrize("size", [0, 1, 4096, 131072, 131073, 393216, 400000, 512 * 1024])
def test_values_of_every_size(mnt, curl, size):
    value = os.urandom(size)
    (mnt.path / "f").write_bytes(value)
    assert curl.get("f") == value
    assert (mnt.path / "f").read_bytes() == value


def test_every_byte(mnt, curl):
    value = bytes(range(256)) * 3
    (mnt.path / "f").write_bytes(value)
    assert curl.get("f") == value
    curl.put("g", value)
    time.sleep(STALE)
    assert (mnt.path / "g").read_bytes() == value


@pytest.mark.parametrize("before", [b"", b"old"])
def test_too_large_is_refused_and_the_old_value_stands(mnt, curl, before):
    if before:
        curl.put("f", before)
    done = mnt.sh(f"head -c {512 * 1024 + 1} /dev/zero > f")
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert curl.get("f") == (before or None)
    assert "File too large" in mnt.sh(f"truncate -s {512 * 1024 + 1} f").stderr
    assert (curl.get("f") or b"") == before


def test_a_full_sized_value_can_be_appended_to_no_more(mnt, curl):
    curl("PUT", "kv/f", b"x" * 512 * 1024)
    assert "File too large" in mnt.sh("echo y >> f").stderr
    assert curl.get("f") == b"x" * 512 * 1024


def test_exclusive_create(mnt, curl):
    mnt.ok("set -C; echo x > f")
    assert mnt.sh("set -C; echo y > f").returncode != 0
    assert curl.get("f") == b"x\n"


def test_what_consul_cannot_hold(mnt, curl):
    mnt.ok("echo x > f")
    for call in (
        lambda: os.link(mnt.path / "f", mnt.path / "g"),
        lambda: os.symlink("f", mnt.path / "g"),
        lambda: os.mkfifo(mnt.path / "g"),
    ):
        with pytest.raises(PermissionError):
            call()
    assert curl.keys() == ["f"]


def test_statfs(mnt):
    assert os.statvfs(mnt.path).f_namemax == 255
    assert os.statvfs(mnt.path).f_bavail > 0


def test_a_log_of_ordinary_work_is_empty(mnt):
    mnt.ok("echo x > f; cat f; mkdir d; mv f d; rm -r d; cat nothing 2>/dev/null; true")
    assert mnt.log_text() == ""


def test_room_that_cannot_be_kept_is_written(mnt, curl):
    """fallocate(2) is not supported; what posix_fallocate(3) does without it is."""
    mnt.ok("printf abc > f")
    with open(mnt.path / "f", "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 10)
    assert curl.get("f") == b"abc" + bytes(7)
    assert "unsupported" in mnt.sh("LC_ALL=C fallocate --keep-size --length 10 f").stderr
    assert curl.get("f") == b"abc" + bytes(7)
