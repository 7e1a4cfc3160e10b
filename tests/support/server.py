"""An agent that does not lead: a server that waits for others, or one that joins servers, as a server or client."""

from __future__ import annotations

from collections.abc import Iterable

from support.agent import Agent


class Server(Agent):
    """Ready when it answers, for it commits nothing by itself; a client when it reaches the leader.

    Without servers to join it has no leader, as long as it is alone.

    :param joins: the LAN ports of servers
    :param is_client: it has no part in the state, and asks the servers
    """

    def __init__(
        self, name: str = "second", joins: Iterable[int] = (), is_client: bool = False, config: dict | None = None
    ) -> None:
        super().__init__(config, node=name, keeps_data=True, servers=1 if is_client else 3)
        self.joins = list(joins)
        self.is_client = is_client

    def role(self) -> list[str]:
        kind = ["-data-dir", self.folder + "/data"] if self.is_client else super().role()
        joins = [word for port in self.joins for word in ("-retry-join", f"127.0.0.1:{port}")]
        return [*kind, *joins, "-retry-interval", "1s"]
