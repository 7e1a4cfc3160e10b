"""A Consul server that does not lead: one that waits for others, or that joins another as its second server."""

from __future__ import annotations

import subprocess

from support.agent import Agent, consul_command, die_with_parent
from support.curl import Curl


class Server(Agent):
    """Ready when it answers, for it commits nothing. Without `join` it has no leader, as long as it is alone.

    :param join: the LAN port of the server that leads
    """

    def __init__(self, name: str = "second", join: int | None = None) -> None:
        super().__init__()
        self.name = name
        self.role = ["-bootstrap-expect", "3"] if join is None else ["-retry-join", f"127.0.0.1:{join}"]

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                consul_command(), "agent", "-server", "-node", self.name, "-data-dir", self.folder + "/data",
                "-bind", "127.0.0.1", "-client", "127.0.0.1", "-dns-port", "-1", "-grpc-port", "-1",
                "-http-port", str(self.port), "-serf-lan-port", str(self.serf), "-serf-wan-port", str(self.wan),
                "-server-port", str(self.server), "-retry-interval", "1s", "-log-level", "warn", *self.role,
            ],
            stdin=subprocess.DEVNULL,
            stdout=open(self.folder + "/log", "ab"),
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )  # fmt: skip
        self.wait_ready()

    def commits(self) -> bool:
        return Curl(self.url)("GET", "status/leader")[0] == 200

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
