"""Sockets whose every wait can be ended from outside.

A FUSE daemon may not sit in recv() while the program that asked has been killed: the kernel waits for the daemon
and the program cannot die. So a wait is cut into slices, and `on_wait` is called after each; what it raises ends
the wait. An answer that comes within the first slice costs one poll().
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import time
from typing import Any, Callable, Optional

SLICE = 0.04
"""Seconds between two calls of `on_wait`: the reaction time to a Ctrl-C."""

OnWait = Callable[[], None]


class _Patience:
    """Mixed into a socket class: waits in slices, within the socket's own timeout."""

    on_wait: Optional[OnWait] = None

    def _wait(self, event: int) -> None:
        timeout = self.gettimeout()  # type: ignore[attr-defined]
        poll = select.poll()
        poll.register(self.fileno(), event)  # type: ignore[attr-defined]
        deadline = None if timeout is None else time.monotonic() + timeout
        while not poll.poll(SLICE * 1000):
            if self.on_wait is not None:
                self.on_wait()
            if deadline is not None and time.monotonic() >= deadline:
                raise socket.timeout("timed out")


class PatientSocket(_Patience, socket.socket):
    """A plain socket."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self._wait(select.POLLIN)
        return super().recv_into(*args, **kwargs)

    def sendall(self, data: Any, flags: int = 0) -> None:
        view = memoryview(data).cast("B")
        while view:
            self._wait(select.POLLOUT)
            view = view[super().send(view[: 1 << 16], flags) :]

    def connect_patiently(self, address: Any, timeout: Optional[float]) -> None:
        """connect(), with its wait in slices; leaves `timeout` set for what follows."""
        self.setblocking(False)
        failure = super().connect_ex(address)
        self.settimeout(timeout)
        if failure in (errno.EINPROGRESS, errno.EAGAIN):
            self._wait(select.POLLOUT)
            failure = self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            raise OSError(failure, os.strerror(failure))


class PatientTLSSocket(_Patience, ssl.SSLSocket):
    """A TLS socket; made by giving the class to SSLContext.sslsocket_class."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        if not self.pending():
            self._wait(select.POLLIN)
        return super().recv_into(*args, **kwargs)


def connect(host: str, port: int, timeout: Optional[float], on_wait: Optional[OnWait]) -> PatientSocket:
    """A TCP connection to the first of the host's addresses that takes one."""
    failure: Optional[OSError] = None
    for family, kind, proto, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = PatientSocket(family, kind, proto)
        sock.on_wait = on_wait
        try:
            sock.connect_patiently(address, timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure or OSError(errno.EHOSTUNREACH, f"no address for {host}")


def connect_unix(path: str, timeout: Optional[float], on_wait: Optional[OnWait]) -> PatientSocket:
    """A connection to a Unix domain socket."""
    sock = PatientSocket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.on_wait = on_wait
    try:
        sock.connect_patiently(path, timeout)
    except BaseException:
        sock.close()
        raise
    return sock
