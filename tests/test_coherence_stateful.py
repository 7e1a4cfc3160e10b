"""Random operations by two mounts and by curl on one store: what each mount shows was there, and it never goes back.

A mount may lag behind another host, and never behind itself: each of its looks shows a state of the key that is not
older than the last one that it showed, or made. In the end all show the newest.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from support.curl import Curl
from support.mount import Mount
from support.observer import HANGS
from support.waiting import until

NAMES = st.sampled_from(["a", "b", "c"])
SIDES = st.sampled_from([0, 1])

BEHIND = {errno.ENOENT, errno.ESTALE}
"""What an operation gives on a file that another host has deleted."""


class Store(RuleBasedStateMachine):
    mounts: tuple[Mount, Mount]
    repeats: bool  # removals by others, for inotify
    curl: Curl

    @initialize()
    def start(self):
        self.curl.delete_all()
        self.prefix = f"run{os.urandom(6).hex()}/"
        self.curl.put(f"{self.prefix}other", b"there")
        self.history: dict[str, list[bytes | None]] = {name: [None] for name in "abc"}
        self.floor = {(side, name): 0 for side in (0, 1) for name in "abc"}
        self.kept: list[tuple[int, int, str, int]] = []
        self.number = 0
        for side in (0, 1):
            until(lambda: self.path(side, "other").exists(), HANGS)  # noqa: B023 - called here

    def path(self, side: int, name: str) -> Path:
        return self.mounts[side].path / self.prefix / name

    def value(self, size: int) -> bytes:
        self.number += 1
        return (b"%05d " % self.number * 20)[: 6 + size]

    def possible(self, side: int, name: str) -> list[bytes | None]:
        """What a look of this mount may show."""
        return self.history[name][self.floor[side, name] :]

    def shows(self, side: int, name: str, found: object, of=lambda state: state) -> None:
        """A look has shown this of a key: it is a state that may be seen, and none before it is seen any more."""
        states = [of(each) for each in self.possible(side, name)]
        assert found in states, (side, name, found, states, self.history[name])
        self.floor[side, name] += states.index(found)

    def stored(self, side: int | None, name: str) -> bytes | None:
        """Somebody has changed a key: what Consul has now; who did that sees nothing older."""
        now = self.curl.get(f"{self.prefix}{name}")
        if now != self.history[name][-1]:
            self.history[name].append(now)
        if side is not None:
            self.floor[side, name] = len(self.history[name]) - 1
        return now

    # -- another host ----------------------------------------------------------------------------------------

    @rule(name=NAMES, size=st.integers(0, 60))
    def put(self, name, size):
        self.curl.put(f"{self.prefix}{name}", self.value(size))
        self.stored(None, name)

    @rule(name=NAMES)
    def drop(self, name):
        self.curl.delete(f"{self.prefix}{name}")
        self.stored(None, name)

    # -- changes by a mount ----------------------------------------------------------------------------------

    @rule(side=SIDES, name=NAMES, size=st.integers(0, 60))
    def write(self, side, name, size):
        value = self.value(size)
        self.path(side, name).write_bytes(value)
        assert self.stored(side, name) == value

    @rule(side=SIDES, name=NAMES, size=st.integers(0, 20))
    def append(self, side, name, size):
        before, data = self.history[name][-1], self.value(size)
        try:
            with open(self.path(side, name), "ab") as file:
                file.write(data)
        except OSError as error:
            assert error.errno in BEHIND
            assert before is None
            assert None in self.possible(side, name)
            return
        assert self.stored(side, name) == (before or b"") + data

    @rule(side=SIDES, name=NAMES, size=st.integers(0, 40))
    def truncate(self, side, name, size):
        before = self.history[name][-1]
        try:
            os.truncate(self.path(side, name), size)
        except OSError as error:
            assert error.errno in BEHIND
            assert None in self.possible(side, name)
            return
        assert before is not None
        assert self.stored(side, name) == before[:size].ljust(size, b"\0")

    @rule(side=SIDES, name=NAMES)
    def create(self, side, name):
        before = self.history[name][-1]
        try:
            os.close(os.open(self.path(side, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            assert any(each is not None for each in self.possible(side, name))
            return
        assert before is None
        assert self.stored(side, name) == b""

    @rule(side=SIDES, name=NAMES)
    def unlink(self, side, name):
        try:
            os.unlink(self.path(side, name))
        except OSError as error:
            assert error.errno in BEHIND
            assert None in self.possible(side, name)
            return
        self.forget_kept(name)
        assert self.stored(side, name) is None

    @rule(side=SIDES, old=NAMES, new=NAMES)
    def rename(self, side, old, new):
        if old == new:
            return
        before = self.history[old][-1]
        try:
            os.rename(self.path(side, old), self.path(side, new))
        except OSError as error:
            assert error.errno in BEHIND
            assert None in self.possible(side, old)
            return
        self.forget_kept(old)
        self.forget_kept(new)
        assert self.stored(side, old) is None
        assert self.stored(side, new) == before

    # -- looks -----------------------------------------------------------------------------------------------

    @rule(side=SIDES, name=NAMES)
    def read(self, side, name):
        self.shows(side, name, look(self.path(side, name)))

    @rule(side=SIDES, name=NAMES)
    def stat(self, side, name):
        found = size(self.path(side, name))
        if self.repeats and found is not None and set(self.possible(side, name)) == {None}:
            until(lambda: size(self.path(side, name)) is None, HANGS)  # its removal was just being repeated for inotify
            found = None
        self.shows(side, name, found, lambda state: None if state is None else len(state))

    @rule(side=SIDES)
    def listdir(self, side):
        found = set(os.listdir(self.path(side, "")))
        assert "other" in found
        for name in "abc":
            self.shows(side, name, name in found, lambda state: state is not None)

    # -- kept descriptors ------------------------------------------------------------------------------------

    # Without preconditions: what is open depends on what was seen in time, and the same choices would be other ones
    # when they are tried again.

    @rule(side=SIDES, name=NAMES)
    def keep(self, side, name):
        if len(self.kept) == 6:
            return
        try:
            descriptor = os.open(self.path(side, name), os.O_RDONLY)
        except FileNotFoundError:
            self.shows(side, name, False, lambda state: state is not None)
            return
        self.shows(side, name, True, lambda state: state is not None)
        self.kept.append((descriptor, side, name, self.floor[side, name]))

    @rule(which=st.integers(0, 5))
    def read_kept(self, which):
        if not self.kept:
            return
        which %= len(self.kept)
        descriptor, side, name, floor = self.kept[which]
        found = os.pread(descriptor, 1000, 0)
        states = self.history[name]
        if None not in states[floor:]:  # else it may be what was deleted, read on
            floor = max(floor, self.floor[side, name])
        seen = [number for number in range(floor, len(states)) if states[number] == found]
        assert seen, (side, name, found, states[floor:])
        self.kept[which] = descriptor, side, name, seen[0]
        if None not in states[floor:]:
            self.floor[side, name] = seen[0]

    @rule(which=st.integers(0, 5))
    def close_kept(self, which):
        if not self.kept:
            return
        os.close(self.kept.pop(which % len(self.kept))[0])

    def forget_kept(self, name: str | None = None) -> None:
        """A name was taken from a file, or given to another one: what is open goes its own way."""
        for each in [each for each in self.kept if name in (None, each[2])]:
            self.kept.remove(each)
            os.close(each[0])

    # -- the end ---------------------------------------------------------------------------------------------

    @rule()
    def settle(self):
        """All show the newest."""
        for side in (0, 1):
            for name, states in self.history.items():
                until(lambda: look(self.path(side, name)) == states[-1], HANGS)  # noqa: B023 - called here
                self.floor[side, name] = len(states) - 1
            newest = {name for name, states in self.history.items() if states[-1] is not None}
            until(lambda: set(os.listdir(self.path(side, ""))) == newest | {"other"}, HANGS)  # noqa: B023 - called here

    def teardown(self):
        if hasattr(self, "kept"):
            try:
                self.settle()
            finally:
                self.forget_kept()


def size(path: Path) -> int | None:
    with suppress(FileNotFoundError):
        return os.stat(path).st_size
    return None


def look(path: Path) -> bytes | None:
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return None


@pytest.mark.timeout(600)
@pytest.mark.parametrize("options", ["", "notify=off", "cache=ttl"])
def test_a_mount_never_goes_back(agent, curl, options):
    Store.repeats = not options
    options = f"timeout=20,virtual=hidden,{options}".rstrip(",")
    with Mount(agent.address, options) as one, Mount(agent.address, options) as other:
        Store.mounts, Store.curl = (one, other), curl
        run_state_machine_as_test(
            Store,
            settings=settings(
                max_examples=int(os.environ.get("CONSULFS_EXAMPLES", "60")) // 3,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            ),
        )
