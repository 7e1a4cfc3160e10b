"""An agent that does not lead: a server that waits for others, or one that joins another, as a server or client."""

from __future__ import annotations

from support.agent import Agent


class Server(Agent):
    """Ready when it answers, for it commits nothing; a client when it reaches the leader.

    Without `join` it has no leader, as long as it is alone.

    :param join: the LAN port of the server that leads
    :param is_client: it has no part in the state, and asks the servers
    """

    def __init__(self, name: str = "second", join: int | None = None, is_client: bool = False) -> None:
        super().__init__(node=name, keeps_data=True, servers=1 if is_client else 3)
        self.join = join
        self.is_client = is_client

    def role(self) -> list[str]:
        if self.join is None:
            return super().role()
        kind = [] if self.is_client else ["-server"]
        return [*kind, "-data-dir", self.folder + "/data", "-retry-join", f"127.0.0.1:{self.join}",
                "-retry-interval", "1s"]  # fmt: skip
