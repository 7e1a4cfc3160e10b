"""What is mounted where, beside what the kernel says by stat(2)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from consulfs.mounts import mounted_at


def test_it_is_as_the_kernel_has_it():
    for path, kind in (("/proc", "proc"), ("/sys", "sysfs")):
        found, device = mounted_at(path), os.stat(path).st_dev
        assert found is not None
        assert (found.kind, found.device) == (kind, os.major(device) << 20 | os.minor(device))


def test_where_nothing_is_mounted_there_is_nothing(tmp_path):
    folder = tmp_path / "a b\tc"
    folder.mkdir()
    assert mounted_at(str(folder)) is None
    assert mounted_at(str(tmp_path / "nowhere")) is None


SCRIPT = """
import sys
from consulfs.mounts import mounted_at
print(mounted_at(sys.argv[1]).kind)
"""


@pytest.mark.root
def test_of_several_it_is_the_last_whatever_the_name(tmp_path):
    folder = tmp_path / "a b\t\\040é"
    folder.mkdir()
    mounts = 'mount -t tmpfs none "$1" && mount -t ramfs none "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", mounts, "sh"]
    told = subprocess.run([*command, folder, sys.executable, SCRIPT], capture_output=True, check=True, timeout=60)
    assert told.stdout == b"ramfs\n"
