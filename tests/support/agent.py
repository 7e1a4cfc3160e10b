"""A real Consul agent with its own ports: in memory, or with a folder that outlives a restart."""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from support.waiting import until

TOP = Path(__file__).resolve().parents[2]


def consul_command() -> str:
    """The consul binary that `make test` has found or fetched."""
    own = TOP / ".consul/usr/bin/consul"
    found = os.environ.get("CONSUL") or shutil.which("consul") or (str(own) if own.exists() else None)
    if not found:
        raise RuntimeError("no consul command: run tools/get-consul")
    return found


class Ports:
    """Ports that no other process of a test run, nor of another run, is given: of a block that is this process's own.

    A port that was found free and let go could be taken before its agent starts, or where "nobody listens" is tested:
    by a socket that asked for any port, or by another worker. So these are below the range from which the kernel
    takes ports for such sockets, and the block is held, as long as the process lives, by an abstract name that only
    one can bind.
    """

    FIRST, SIZE = 10_000, 200

    def __init__(self) -> None:
        ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        last = max(ephemeral, self.FIRST + 50 * self.SIZE)
        for start in range(self.FIRST, last - self.SIZE + 1, self.SIZE):
            self.name = socket.socket(socket.AF_UNIX)
            try:
                self.name.bind(f"\0consulfs-test-ports-{start}")
            except OSError:
                self.name.close()
            else:
                self.block = itertools.cycle(range(start, start + self.SIZE))
                return
        raise RuntimeError("every block of ports is taken")

    def next(self) -> int:
        """One that nobody has. None comes again before all others have had their turn."""
        for port in itertools.islice(self.block, self.SIZE):
            if self.is_free(port):
                return port
        raise RuntimeError("every port of the block is taken")

    @staticmethod
    def is_free(port: int) -> bool:
        with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            try:
                stream.bind(("", port))
                datagrams.bind(("", port))
            except OSError:
                return False
        return True


@functools.cache
def own_ports() -> Ports:
    return Ports()


def free_ports(count: int) -> list[int]:
    return [own_ports().next() for _ in range(count)]


def die_with_parent() -> None:
    """For a process that is not to outlive a test run, not even one that is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Agent:
    """Started on entry, ended on exit, its folder removed.

    :param node: its name
    :param servers: so many are to elect a leader; more than one never do as long as this one is alone
    :ivar place: the folder for its folder, where that is not to be the usual one
    """

    def __init__(
        self,
        config: dict | None = None,
        keeps_data: bool = False,
        reached_by: str = "",
        node: str = "test",
        servers: int = 1,
    ) -> None:
        self.servers = servers
        self.config = config or {}
        self.reached_by = reached_by
        self.node = node
        self.keeps_data = keeps_data
        http, self.serf, self.wan, self.server = free_ports(4)
        self.port = http
        self.process: subprocess.Popen | None = None
        self.place: str | None = None
        self.folder = ""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}/v1"

    def __enter__(self) -> Agent:
        self.folder = tempfile.mkdtemp(prefix="consulfs-agent-", dir=self.place)
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def role(self) -> list[str]:
        """What it is, as words of the command."""
        if not self.keeps_data:
            return ["-dev"]
        return ["-server", "-bootstrap-expect", str(self.servers), "-data-dir", self.folder + "/data"]

    def start(self) -> None:
        config = Path(self.folder, "config.json")
        config.write_text(json.dumps(self.config))
        self.process = subprocess.Popen(
            [
                consul_command(), "agent", *self.role(),
                "-node", self.node, "-bind", "127.0.0.1", "-client", "127.0.0.1", "-dns-port", "-1",
                "-http-port", str(self.port), "-grpc-port", "-1", "-log-level", "warn",
                "-serf-lan-port", str(self.serf), "-serf-wan-port", str(self.wan), "-server-port", str(self.server),
                "-config-file", str(config),
            ],
            stdin=subprocess.DEVNULL,
            stdout=open(Path(self.folder, "log"), "ab"),
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )  # fmt: skip
        self.wait_ready()

    def wait_ready(self) -> None:
        """Until a write commits, and the node is in the catalog.

        A leader that has not opened its store yet answers some requests.
        """
        deadline = time.monotonic() + 60
        while not (self.commits() if self.servers == 1 else self.answers()):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(Path(self.folder, "log").read_text()[-2000:])
            time.sleep(0.1)

    def answers(self) -> bool:
        return subprocess.run(["curl", "-sf", f"{self.url}/agent/self"], capture_output=True).returncode == 0

    def commits(self) -> bool:
        # In one transaction: a server without a leader holds a write back, and may apply it when we have given it up.
        steps = [{"KV": {"Verb": verb, "Key": "-ready-"}} for verb in ("set", "delete")]
        # A session needs its node, which an agent enters a moment after its start.
        steps.append({"Node": {"Verb": "get", "Node": {"Node": self.node}}})
        token = self.config.get("acl", {}).get("tokens", {}).get("master", "")
        command = ["curl", "-sf", "-m", "2", "-X", "PUT", "-H", f"X-Consul-Token: {token}", "-d", json.dumps(steps)]
        if self.reached_by:
            command += ["--unix-socket", self.reached_by]
        return subprocess.run([*command, f"{self.url}/txn"], capture_output=True).returncode == 0

    def stop(self) -> None:
        if self.process is None:
            return
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def kill(self) -> None:
        """As a host dies."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Connections are taken and nothing is answered: a hanging Consul."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.process.pid}/task")
        until(lambda: all(self.is_stopped(task) for task in tasks.iterdir()), 10)

    @staticmethod
    def is_stopped(task: Path) -> bool:
        try:
            return (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"
        except OSError:
            return True  # it has ended

    def resume(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
