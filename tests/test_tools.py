"""The tools that people have: each exits 0, and Consul holds exactly what a local disk would."""

import os
import pty
import random
import select
import subprocess
import time

import pytest


def make_tree(folder):
    """Files of many kinds below a folder; returns their contents by path."""
    random.seed(4)
    wanted = {}
    for number in range(60):
        path = f"d{number % 4}/e{number % 3}/file {number}"
        size = random.choice([0, 1, 100, 5000, 70000])
        wanted[path] = random.randbytes(size)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(wanted[path])
    return wanted


def below(curl, prefix):
    return {
        key[len(prefix) :]: value
        for key, value in curl.tree().items()
        if key.startswith(prefix) and not key.endswith("/")
    }


def test_cp_a(mnt, curl, tmp_path):
    wanted = make_tree(tmp_path)
    mnt.ok(f"cp -a {tmp_path}/. t/")
    assert below(curl, "t/") == wanted
    mnt.ok(f"diff -r {tmp_path} t")
    assert os.stat(mnt.path / "t/d0/e0/file 0").st_mtime_ns == os.stat(tmp_path / "d0/e0/file 0").st_mtime_ns


def test_rsync_twice(mnt, curl, tmp_path):
    wanted = make_tree(tmp_path)
    mnt.ok(f"rsync -a {tmp_path}/ t/")
    assert below(curl, "t/") == wanted
    again = mnt.ok(f"rsync -a --stats {tmp_path}/ t/")
    assert "Number of regular files transferred: 0" in again
    assert mnt.ok(f"rsync -rti {tmp_path}/ t/") == ""


@pytest.mark.parametrize("compress", ["", "z"])
def test_tar_both_ways(mnt, curl, tmp_path, compress):
    wanted = make_tree(tmp_path / "in")
    mnt.ok(f"mkdir t; (cd {tmp_path}/in; tar c{compress} .) | (cd t; tar x{compress})")
    assert below(curl, "t/") == wanted
    mnt.ok(
        f"mkdir {tmp_path}/out; (cd t; tar c{compress} .) | (cd {tmp_path}/out; tar x{compress});"
        f" diff -r {tmp_path}/in {tmp_path}/out"
    )


def test_git(mnt, curl, tmp_path):
    identity = "git config user.name t; git config user.email t@t.invalid"
    mnt.ok(
        "git init -q r; cd r; "
        + identity
        + "; echo one > a; mkdir d; echo two > d/b; git add -A; git commit -qm first;"
        " echo three >> a; git commit -qam second; git gc -q; git fsck --strict; git status --porcelain"
    )
    assert mnt.ok("cd r; git status --porcelain; git log --oneline | wc -l").strip() == "2"
    mnt.ok("git clone -q r c; diff r/a c/a; diff -r r/d c/d")
    mnt.ok(f"git clone -q r {tmp_path}/out; cd {tmp_path}/out; git fsck --strict; test $(cat a | wc -l) = 2")
    assert curl.get("c/a") == b"one\nthree\n"


def test_vim(mnt, curl):
    curl.put("f", b"one\ntwo\n")
    mnt.ok("vim -u NONE -es -c '1s/one/1/' -c wq f")
    assert curl.tree() == {"f": b"1\ntwo\n"}
    mnt.ok("vim -u NONE -es -c 'set backupskip= backup writebackup' -c '%d' -c 'normal ihello' -c wq f")
    assert curl.get("f") == b"hello\n"
    assert curl.get("f~") == b"1\ntwo\n"
    mnt.ok("vim -u NONE -es -c 'normal inew' -c wq g")
    assert curl.get("g") == b"new\n"


def type_into(command, keys, cwd):
    """Run a program on a terminal of its own and type; returns its exit status."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(cwd)
        os.environ["TERM"] = "xterm"
        os.execvp(command[0], command)
    deadline = time.monotonic() + 30
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.3)[0]:
                try:
                    os.read(terminal, 65536)
                except OSError:  # the program has ended
                    break
            elif keys:
                os.write(terminal, keys.pop(0))
        else:
            os.kill(child, 9)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(terminal)


def test_nano(mnt, curl):
    curl.put("f", b"text\n", flags=8)
    assert type_into(["nano", "f"], [b"more ", b"\x0f", b"\r", b"\x18"], mnt.path) == 0
    assert curl.tree() == {"f": b"more text\n"}
    assert curl.flags("f") == 8


def test_an_editor_that_saves_by_rename(mnt, curl):
    curl.put("f", b"text", flags=3)
    mnt.ok("echo new > .f.tmp; sync .f.tmp; mv .f.tmp f")
    assert curl.tree() == {"f": b"new\n"}
    assert curl.flags("f") == 3


def test_make_sees_changes(mnt, curl):
    mnt.ok("printf 'out: in\\n\\tcp in out\\n' > Makefile; echo 1 > in; make -s; make -q")
    mnt.ok("sleep 0.01; echo 2 > in; ! make -q; make -s; make -q")
    assert curl.get("out") == b"2\n"


def test_python_writes_atomically(mnt, curl, tmp_path):
    script = """
import os, tempfile
for number in range(20):
    handle, name = tempfile.mkstemp(dir=".")
    with os.fdopen(handle, "w") as file:
        file.write(str(number))
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, "state")
"""
    (tmp_path / "script.py").write_text(script)
    mnt.ok(f"python3 {tmp_path}/script.py")
    assert curl.tree() == {"state": b"19"}


def test_mv_across_file_systems(mnt, curl, tmp_path):
    wanted = make_tree(tmp_path / "in")
    mnt.ok(f"mv {tmp_path}/in t")
    assert below(curl, "t/") == wanted
    mnt.ok(f"mv t {tmp_path}/back")
    assert {path: (tmp_path / "back" / path).read_bytes() for path in wanted} == wanted
    assert curl.keys() == []


def test_xargs_in_parallel(mnt, curl):
    mnt.ok("mkdir d; seq 300 | xargs -P 16 -I N sh -c 'echo N > d/kN'")
    assert below(curl, "d/") == {f"k{number}": b"%d\n" % number for number in range(1, 301)}
    assert mnt.ok("ls d | xargs -P 16 -I N rm d/N; ls d") == ""


def test_rename_of_directories(mnt, curl):
    wanted = {f"k{number}": os.urandom(number * 300) for number in range(150)}
    for key, value in wanted.items():
        curl.put(f"a/b/{key}", value, flags=len(value))
    mnt.ok("mv a c; mv c/b c/d")
    assert below(curl, "c/d/") == wanted
    assert all(curl.flags(f"c/d/{key}") == len(value) for key, value in list(wanted.items())[:5])
    assert len(curl.keys()) == len(wanted)
    mnt.ok("mkdir e; mv -T c/d e")
    assert below(curl, "e/") == wanted
    assert "not empty" in mnt.sh("mkdir -p g/h; mv -T e g").stderr


def test_rename_of_values_that_fit_no_transaction(mnt, curl):
    value = os.urandom(500_000)
    curl("PUT", "kv/d/big?flags=9", value)
    mnt.ok("mv d/big d/large; mv d e")
    assert curl.get("e/large") == value
    assert curl.flags("e/large") == 9
    assert len(curl.keys()) == 1


def test_subprocess_output(mnt, curl):
    with open(mnt.path / "out", "wb") as out:
        subprocess.run(["seq", "3"], stdout=out, check=True)
    assert curl.get("out") == b"1\n2\n3\n"
