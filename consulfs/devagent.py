"""A private Consul for trying things out: `consul agent -dev`, all in memory, for the life of a mount."""

from __future__ import annotations

import ctypes
import logging
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack

from consulfs.consulate import Consul, ConsulateException

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1

START_SECONDS = 30


class NoAgent(RuntimeError):
    """The agent could not be started; the message says why."""


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback address that nobody listens on now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class DevAgent:
    """The agent's process.

    :param command: the consul command
    :param port: for the HTTP API; 0 takes a free one
    """

    def __init__(self, command: str = "consul", port: int = 0) -> None:
        self._command = command
        http, self._serf, self._wan, self._server = free_ports(4)
        self.port = port or http
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it has a leader.

        :raises NoAgent: there is no such command, or it ended, or it is not ready in time
        """
        command = shutil.which(self._command)
        if command is None:
            raise NoAgent(f"no {self._command!r} command: install Consul, or say -o consul=/path/to/consul")
        self._process = subprocess.Popen(
            [
                command, "agent", "-dev", "-node", "consulfs-dev", "-bind", "127.0.0.1", "-client", "127.0.0.1",
                "-http-port", str(self.port), "-dns-port", "-1", "-grpc-port", "-1", "-log-level", "err",
                "-serf-lan-port", str(self._serf), "-serf-wan-port", str(self._wan), "-server-port", str(self._server),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )  # fmt: skip
        try:
            self._wait_for_leader()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_for_leader(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        with Consul("127.0.0.1", self.port, timeout=2) as consul:
            while time.monotonic() < deadline:
                if self._process is None or self._process.poll() is not None:
                    raise NoAgent(f"the consul agent ended at once (is port {self.port} in use?)")
                try:
                    # A leader that has not yet opened the store answers, and refuses sessions and writes.
                    if consul.status.leader() and consul.kv.read_many(["-"]) == {} and consul.session.list() == []:
                        return
                except ConsulateException:
                    pass
                time.sleep(0.05)
        raise NoAgent(f"the consul agent had no leader after {START_SECONDS} seconds")


def _die_with_parent() -> None:
    """The agent does not outlive a daemon that was killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
