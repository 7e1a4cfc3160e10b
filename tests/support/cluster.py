"""Three Consul servers that keep their data, and clients of theirs: a server dies without the agent of any mount."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack

from support.curl import Curl
from support.server import Server

MEMORY = "/dev/shm"


class Member(Server):
    """One agent of the cluster. Its end is a kill: nobody waits for it to take its leave."""

    def __init__(self, name: str, is_client: bool = False) -> None:
        # Elections as short as on servers of production size.
        super().__init__(name, is_client=is_client, config={"performance": {"raft_multiplier": 1}})
        self.place = MEMORY if os.access(MEMORY, os.W_OK) else None

    def stop(self) -> None:
        if self.process is not None:
            self.kill()


class Cluster:
    """Started on entry and ready for writes, ended on exit.

    The data is kept in memory where that can be: it outlives a killed server as well as on a disk, and costs no fsync.

    :ivar clients: agents that hold nothing themselves, for mounts and curl
    """

    def __init__(self, clients: int = 2) -> None:
        self.servers = [Member(f"server{number}") for number in range(3)]
        self.clients = [Member(f"client{number}", is_client=True) for number in range(clients)]
        for each in self.servers + self.clients:
            each.joins = [server.serf for server in self.servers]
        self.curl = Curl(self.clients[0].url)
        self.stack = ExitStack()

    def __enter__(self) -> Cluster:
        with ExitStack() as stack:
            for each in self.servers + self.clients:
                stack.enter_context(each)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def leader(self) -> Member | None:
        """The server that leads, as a client is told; None while there is none."""
        status, text = self.curl("GET", "status/leader")
        address = json.loads(text) if status == 200 else ""
        living = (each for each in self.servers if each.process.poll() is None)
        return next((each for each in living if address == f"127.0.0.1:{each.server}"), None)
