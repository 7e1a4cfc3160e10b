"""Where it is measured: a Consul with a tree in it, mounts of it, and what stands beside them. All of it ends here."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Callable, Optional, Union

from counting import Tally, counting
from trees import Tree

from consulfs.devagent import DevAgent
from consulfs.mounts import mounted_at

COMMAND = str(Path(sys.executable).with_name("consulfs"))

FLOOR = str(Path(__file__).with_name("floor.py"))

LIMIT, LONGEST = 60, 1800
"""Seconds after which a mount that has not come, or not gone, hangs; and a command."""

PR_SET_PDEATHSIG = 1

MOST = 512 << 10
"""Bytes of a value: Consul takes no more."""

_libc = ctypes.CDLL(None)

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("CONSUL_")}

Call = Callable[[], object]

Words = list[Union[str, Path]]
"""A command."""


class Failed(RuntimeError):
    """Something could not be measured; the message says why."""


def ends_with_us() -> None:
    """Called in a new process: it is told to end when this one has ended, however that was."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Raw:
    """Consul asked directly: http.client on one connection that is kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, target: str) -> tuple[Any, int]:
        """The decoded answer and its index."""
        self._connection.request("GET", f"/v1/kv/{target}")
        answer = self._connection.getresponse()
        return json.loads(answer.read()), int(answer.headers["X-Consul-Index"])

    def put(self, key: str, content: bytes) -> None:
        self._put(f"kv/{key}", content)

    def transact(self, body: bytes) -> None:
        self._put("txn", body)

    def _put(self, target: str, body: bytes) -> None:
        self._connection.request("PUT", f"/v1/{target}", body)
        self._connection.getresponse().read()

    def names(self, folder: str) -> list[str]:
        found: list[str] = self.get(f"{folder}/?keys&separator=/")[0]
        return found

    def recurse(self, folder: str) -> list[bytes]:
        """The contents of all below a folder, as a program can use them."""
        return [b64decode(each["Value"] or "") for each in self.get(f"{folder}/?recurse")[0]]


class Mount:
    """A mount whose process is a child of this one."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self.path = path
        self.process = process

    def stats(self) -> dict[str, Any]:
        """What a mount of consulfs counts."""
        found: dict[str, Any] = json.loads((self.path / "_consulfs/stats").read_bytes())
        return found

    def memory(self, field: str) -> int:
        """Bytes, of a field of /proc/PID/status."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

    def cpu(self) -> float:
        """Seconds of processor time that the daemon and its children have had."""
        return sum(cpu(family(self.process.pid)))


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [pid] + [each for path in threads for child in path.read_text().split() for each in family(int(child))]


def cpu(pids: Iterable[int]) -> tuple[float, float]:
    """Seconds of processor time that processes have had, by themselves and inside the kernel; see proc(5)."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    user, system = (sum(int(each[at]) for each in fields) / os.sysconf("SC_CLK_TCK") for at in (11, 12))
    return user, system


class Stage:
    """All that a row needs, made when it asks for it; ended on exit, in the order of making."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._store = ExitStack()
        self._tree: Optional[Tree] = None
        self._agent: Optional[DevAgent] = None

    def __enter__(self) -> Stage:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="consulfs-bench-"))
        self.folder = Path(folder).resolve()  # as the kernel names its mounts
        self.memory = self._stack.enter_context(_tmpfs(self.folder))
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack, self._store:
            pass

    # -- Consul ----------------------------------------------------------------------------------------------

    def store(self, tree: Tree) -> int:
        """The port of a Consul that holds a tree; rows that follow each other with the same tree share it."""
        if self._agent is None or tree != self._tree:
            self._store.close()
            agent = DevAgent(os.environ.get("CONSUL", "consul"))
            agent.start()
            self._store.callback(self._forget, agent)
            tree.fill(agent.port)
            self._agent, self._tree = agent, tree
        port: int = self._agent.port
        return port

    def _forget(self, agent: DevAgent) -> None:
        self._agent = None
        agent.stop()

    def raw(self, tree: Tree) -> Raw:
        return Raw(self.store(tree))

    # -- mounts ----------------------------------------------------------------------------------------------

    @contextmanager
    def consulfs(self, tree: Tree, options: str = "", port: Optional[int] = None) -> Iterator[Mount]:
        """A fresh mount of a Consul with a tree."""
        source = f"127.0.0.1:{port or self.store(tree)}"
        with self.point() as point:
            words = [COMMAND, source, str(point), "-f", *(["-o", options] if options else [])]
            with _mounted(words, point) as mount:
                yield mount

    @contextmanager
    def counted(self, tree: Tree, options: str = "") -> Iterator[tuple[Mount, Tally]]:
        """A fresh mount whose requests are counted."""
        with counting(self.store(tree)) as (port, tally), self.consulfs(tree, options, port) as mount:
            yield mount, tally

    @contextmanager
    def floor(self, tree: Tree) -> Iterator[Mount]:
        """A fresh mount of the floor with a tree."""
        with self.point() as point:
            numbers = map(str, (tree.directories, tree.files, tree.size))
            with _mounted([sys.executable, FLOOR, str(point), *numbers], point) as mount:
                yield mount

    @contextmanager
    def local(self, tree: Tree) -> Iterator[Path]:
        """A folder of a tmpfs with a tree."""
        folder = Path(tempfile.mkdtemp(dir=self.memory))
        try:
            tree.write(folder)
            yield folder
        finally:
            shutil.rmtree(folder)

    @contextmanager
    def point(self) -> Iterator[Path]:
        """An empty directory to mount at; what is still mounted there in the end goes."""
        path = Path(tempfile.mkdtemp(prefix="mnt-", dir=self.folder))
        try:
            yield path
        finally:
            while mounted_at(str(path)):
                subprocess.run(["fusermount3", "-uz", str(path)], check=True)
            path.rmdir()

    @contextmanager
    def sites(self, tree: Tree, options: str = "") -> Iterator[dict[str, Path]]:
        """The same tree three times: in consulfs, in the floor, on a tmpfs."""
        with self.consulfs(tree, options) as mount, self.floor(tree) as floor, self.local(tree) as local:
            yield {"consulfs": mount.path, "floor": floor.path, "tmpfs": local}

    @property
    def output(self) -> Path:
        """A file on the tmpfs, for what a command writes."""
        return self.memory / "output"


@contextmanager
def _tmpfs(folder: Path) -> Iterator[Path]:
    """A folder on a tmpfs: an own one for root, else in /dev/shm."""
    own = folder / "tmpfs"
    own.mkdir()
    if os.getuid() == 0:
        subprocess.run(["mount", "-t", "tmpfs", "consulfs-bench", str(own)], check=True)
        try:
            yield own
        finally:
            subprocess.run(["umount", "-l", str(own)], check=True)
    else:
        with tempfile.TemporaryDirectory(prefix="consulfs-bench-", dir="/dev/shm") as path:
            yield Path(path)


@contextmanager
def _mounted(words: list[str], point: Path) -> Iterator[Mount]:
    """What a command mounts, which stays in the foreground."""
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, env=ENVIRONMENT, preexec_fn=ends_with_us)
    try:
        wait_for(lambda: mounted_at(str(point)) or process.poll() is not None, f"{words[0]} has not mounted")
        if process.poll() is not None:
            raise Failed(f"{' '.join(words)} ended with status {process.returncode}")
        yield Mount(point, process)
    finally:
        process.terminate()
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], object], complaint: str, seconds: float = LIMIT) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(complaint)
        time.sleep(0.002)


# -- clocks --------------------------------------------------------------------------------------------------


def seconds_of(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def read_file(path: str) -> bytes:
    """A file of the trees, whole."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, MOST)
    finally:
        os.close(file)


def each_of(call: Call, count: int) -> float:
    """Seconds of one call among many, which are made in a row."""

    def all_of_them() -> None:
        for _ in range(count):
            call()

    return seconds_of(all_of_them) / count


def take_turns(rounds: int, works: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """The median of what each work measures; they take turns, so that a busy machine slows all of them alike."""
    measured: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            measured[name].append(work())
    return {name: statistics.median(each) for name, each in measured.items()}


def run(words: Words, output: Path) -> None:
    """A command, with its output in a file that it must not take for /dev/null (tar would read nothing)."""
    with output.open("wb") as file:
        process = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            timeout=LONGEST,
        )
    if process.returncode:
        raise Failed(f"{words[0]}: {process.stderr.decode(errors='replace')[-300:]}")
