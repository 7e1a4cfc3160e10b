"""The 64-bit flags of a key: an extended attribute that survives every way of changing the value."""

import errno
import os

import pytest

FLAGS = "user.consul.flags"

WAYS = {
    "overwrite": "echo new > f",
    "append": "echo new >> f",
    "empty": ": > f",
    "truncate": "truncate -s 2 f",
    "dd": "printf X | dd of=f bs=1 seek=1 conv=notrunc status=none",
    "cp": "cp /etc/hostname f",
    "tee": "echo new | tee f >/dev/null",
    "sed -i": "sed -i s/o/0/ f",
    "sort -o": "sort -r -o f f",
    "vim": "vim -u NONE -es -c 'set backupskip= writebackup backupcopy=no' -c '1s/o/0/' -c wq f",
    "rsync": "rsync /etc/hostname f",
    "rename over": "echo new > g; mv g f",
    "touch": "touch f",
    "python": "python3 -c \"f = open('f', 'r+'); f.write('x'); f.close()\"",
}


@pytest.mark.parametrize("way", WAYS)
def test_flags_survive(mnt, curl, way):
    curl.put("f", b"1 old\n2 old\n", flags=42)
    mnt.ok(WAYS[way])
    assert curl.flags("f") == 42
    if way != "touch":
        assert curl.get("f") != b"1 old\n2 old\n"


def test_getfattr_and_setfattr(mnt, curl):
    curl.put("f", b"value", flags=7)
    assert 'user.consul.flags="7"' in mnt.ok("getfattr -d f")
    mnt.ok(f"setfattr -n {FLAGS} -v 18446744073709551615 f")
    assert (curl.get("f"), curl.flags("f")) == (b"value", 2**64 - 1)
    mnt.ok(f"setfattr -x {FLAGS} f")
    assert (curl.get("f"), curl.flags("f")) == (b"value", 0)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", errno.EINVAL),
        (b"x", errno.EINVAL),
        (b"-1", errno.EINVAL),
        (b"1.5", errno.EINVAL),
        (b"0x10", errno.EINVAL),
        ("\u0661".encode(), errno.EINVAL),
        (b"18446744073709551616", errno.ERANGE),
        (b"9" * 5000, errno.ERANGE),
    ],
)
def test_wrong_flags(mnt, curl, text, code):
    curl.put("f", b"value", flags=7)
    with pytest.raises(OSError) as caught:
        os.setxattr(mnt.path / "f", FLAGS, text)
    assert caught.value.errno == code
    assert (curl.get("f"), curl.flags("f")) == (b"value", 7)


def test_the_other_attributes(mnt, curl):
    curl.put("d/f", b"value")
    record = curl.record("d/f")
    for name, field in (("modify_index", "ModifyIndex"), ("create_index", "CreateIndex"), ("lock_index", "LockIndex")):
        assert os.getxattr(mnt.path / "d/f", f"user.consul.{name}") == str(record[field]).encode()
    assert os.getxattr(mnt.path / "d/f", "user.consul.key") == b"d/f"
    assert os.listxattr(mnt.path / "d/f") == [FLAGS]
    assert os.listxattr(mnt.path / "d") == []
    with pytest.raises(OSError) as caught:
        os.getxattr(mnt.path / "d/f", "user.consul.session")
    assert caught.value.errno == errno.ENODATA


def test_what_cannot_be_set(mnt, curl):
    curl.put("f")
    for name, value, flags, code in (
        ("user.other", b"x", 0, errno.ENOTSUP),
        ("user.consul.key", b"x", 0, errno.ENOTSUP),
        (FLAGS, b"1", os.XATTR_CREATE, errno.EEXIST),
    ):
        with pytest.raises(OSError) as caught:
            os.setxattr(mnt.path / "f", name, value, flags)
        assert caught.value.errno == code
    os.setxattr(mnt.path / "f", FLAGS, b"1", os.XATTR_REPLACE)
    assert curl.flags("f") == 1


@pytest.mark.parametrize(
    "copy",
    [
        "cp -a s/. d/",
        "rsync -aX s/ d/",
        "(cd s; tar c --xattrs --xattrs-include='user.*' .) | (cd d; tar x --xattrs --xattrs-include='user.*')",
    ],
)
def test_copies_between_directories_keep_flags(mnt, curl, copy):
    curl.put("s/one", b"1", flags=11)
    curl.put("s/two", b"2", flags=0)
    mnt.ok(f"mkdir d; {copy}")
    assert (curl.get("d/one"), curl.flags("d/one")) == (b"1", 11)
    assert (curl.get("d/two"), curl.flags("d/two")) == (b"2", 0)


def test_a_rename_takes_chosen_flags_along(mnt, curl):
    curl.put("a", b"1", flags=11)
    curl.put("b", b"2", flags=22)
    mnt.ok("mv a b")
    assert (curl.get("b"), curl.flags("b")) == (b"1", 11)


def test_flags_of_an_unsaved_file_go_with_its_value(mnt, curl):
    with open(mnt.path / "f", "w") as file:
        file.write("text")
        os.setxattr(file.name, FLAGS, b"5")
        assert os.getxattr(file.name, FLAGS) == b"5"
    assert (curl.get("f"), curl.flags("f")) == (b"text", 5)
