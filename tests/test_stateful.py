"""The same random operations on the mount and on a local directory: the same results, errno included."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from support.curl import Curl
from support.mount import Mount

NAMES = st.sampled_from(["a", "b", "c d", "ü%2E"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
DATA = st.binary(max_size=40)

# A file system may answer these in either way: rename(2) and rmdir(2) leave the order of the checks open.
SAME = {errno.ENOTEMPTY: errno.EEXIST}


def outcome(call, folder: Path):
    try:
        return call(folder)
    except OSError as error:
        return os.strerror(SAME.get(error.errno, error.errno))


class Comparison(RuleBasedStateMachine):
    mount: Mount
    curl: Curl

    @initialize()
    def start(self):
        self.local = Path(tempfile.mkdtemp(prefix="consulfs-local-"))
        self.curl.delete_all()
        self.folder = self.mount.path / f"run{os.urandom(6).hex()}"
        self.folder.mkdir()
        self.open: list[tuple[int, int]] = []

    def both(self, call):
        there, here = outcome(call, self.folder), outcome(call, self.local)
        assert there == here

    @rule(path=PATHS, data=DATA)
    def write(self, path, data):
        self.both(lambda folder: (folder / path).write_bytes(data))

    @rule(path=PATHS, data=DATA)
    def append(self, path, data):
        def call(folder):
            with open(folder / path, "ab") as file:
                file.write(data)

        self.both(call)

    @rule(path=PATHS, data=DATA, offset=st.integers(0, 60))
    def write_at(self, path, data, offset):
        def call(folder):
            descriptor = os.open(folder / path, os.O_RDWR)
            try:
                os.pwrite(descriptor, data, offset)
                return os.pread(descriptor, 200, 0)
            finally:
                os.close(descriptor)

        self.both(call)

    @rule(path=PATHS, size=st.integers(0, 100))
    def truncate(self, path, size):
        self.both(lambda folder: os.truncate(folder / path, size))

    @rule(path=PATHS, data=DATA)
    def create_exclusively(self, path, data):
        def call(folder):
            with open(folder / path, "xb") as file:
                file.write(data)

        self.both(call)

    @rule(path=PATHS)
    def read(self, path):
        self.both(lambda folder: (folder / path).read_bytes())

    @rule(path=PATHS)
    def stat(self, path):
        def call(folder):
            found = os.stat(folder / path)
            is_directory = (folder / path).is_dir()
            return is_directory, 0 if is_directory else found.st_size

        self.both(call)

    @rule(path=PATHS)
    def unlink(self, path):
        self.both(lambda folder: os.unlink(folder / path))

    @rule(path=PATHS)
    def mkdir(self, path):
        self.both(lambda folder: os.mkdir(folder / path))

    @rule(path=PATHS)
    def makedirs(self, path):
        self.both(lambda folder: os.makedirs(folder / path, exist_ok=True))

    @rule(path=PATHS)
    def rmdir(self, path):
        self.both(lambda folder: os.rmdir(folder / path))

    @rule(old=PATHS, new=PATHS)
    def rename(self, old, new):
        self.both(lambda folder: os.rename(folder / old, folder / new))

    @rule(path=PATHS)
    def listdir(self, path):
        self.both(lambda folder: sorted(os.listdir(folder / path)))

    @rule(path=PATHS, flags=st.sampled_from([os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_APPEND]))
    def hold(self, path, flags):
        def call(folder):
            return os.open(folder / path, flags)

        pair = [outcome(call, folder) for folder in (self.folder, self.local)]
        assert isinstance(pair[0], int) == isinstance(pair[1], int), pair
        if isinstance(pair[0], int):
            self.open.append((pair[0], pair[1]))
        else:
            assert pair[0] == pair[1]

    @precondition(lambda self: self.open)
    @rule(data=DATA, which=st.integers(0, 5), offset=st.integers(0, 30))
    def write_held(self, data, which, offset):
        there, here = self.open[which % len(self.open)]
        for descriptor in (there, here):
            os.lseek(descriptor, offset, os.SEEK_SET)
            os.write(descriptor, data)
        assert os.pread(there, 300, 0) == os.pread(here, 300, 0)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 5), size=st.integers(0, 50))
    def truncate_held(self, which, size):
        for descriptor in self.open[which % len(self.open)]:
            os.ftruncate(descriptor, size)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 5))
    def close_held(self, which):
        for descriptor in self.open.pop(which % len(self.open)):
            os.close(descriptor)

    @rule()
    def everything(self):
        self.both(content)

    def teardown(self):
        if not hasattr(self, "local"):
            return
        try:
            for pair in self.open:
                for descriptor in pair:
                    os.close(descriptor)
            self.both(content)
            prefix = self.folder.name + "/"
            stored = {key[len(prefix) :]: value for key, value in self.curl.tree().items() if not key.endswith("/")}
            local = {
                path.replace("ü%2E", "ü%2E"): value for path, value in content(self.local).items() if value is not None
            }
            assert stored == local
        finally:
            shutil.rmtree(self.local)
            shutil.rmtree(self.folder, ignore_errors=True)


def content(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its bytes; None for a directory."""
    found: dict[str, bytes | None] = {}
    for where, directories, files in os.walk(folder):
        for name in directories:
            found[os.path.relpath(os.path.join(where, name), folder)] = None
        for name in files:
            path = os.path.join(where, name)
            found[os.path.relpath(path, folder)] = Path(path).read_bytes()
    return found


@pytest.mark.timeout(600)
def test_a_mount_behaves_like_a_local_directory(mnt, curl):
    Comparison.mount, Comparison.curl = mnt, curl
    run_state_machine_as_test(
        Comparison,
        settings=settings(
            max_examples=int(os.environ.get("CONSULFS_EXAMPLES", "60")),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
