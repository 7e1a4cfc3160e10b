"""A Consul server that does not lead: one that waits for others, or that joins another as its second server."""

from __future__ import annotations

from support.agent import Agent


class Server(Agent):
    """Ready when it answers, for it commits nothing. Without `join` it has no leader, as long as it is alone.

    :param join: the LAN port of the server that leads
    """

    def __init__(self, name: str = "second", join: int | None = None) -> None:
        super().__init__(node=name, keeps_data=True, servers=3)
        self.join = join

    def role(self) -> list[str]:
        if self.join is None:
            return super().role()
        return ["-server", "-data-dir", self.folder + "/data", "-retry-join", f"127.0.0.1:{self.join}",
                "-retry-interval", "1s"]  # fmt: skip
