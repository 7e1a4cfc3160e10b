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
import threading
import time
from typing import Any, Callable, Optional, TypeVar

SLICE = 0.04
"""Seconds between two calls of `on_wait`: the reaction time to a Ctrl-C."""

KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Seconds of silence before the other side is asked whether it is there, seconds between, and how often."""

OnWait = Callable[[], None]

T = TypeVar("T")


class _Patience:
    """Mixed into a socket class: waits in slices, within the socket's own timeout."""

    on_wait: Optional[OnWait] = None

    def _wait(self, event: int, timeout: Optional[float]) -> None:
        poll = select.poll()
        poll.register(self.fileno(), event)  # type: ignore[attr-defined]  # of the socket class
        if self.on_wait is None:  # nobody to ask: it costs nothing to wait
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise socket.timeout("timed out")
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        while not poll.poll(SLICE * 1000):
            self.on_wait()
            if deadline is not None and time.monotonic() >= deadline:
                raise socket.timeout("timed out")


class PatientSocket(_Patience, socket.socket):
    """A plain socket."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        if self.on_wait is not None:  # else Python's own wait, within the same timeout, does
            self._wait(select.POLLIN, self.gettimeout())
        return super().recv_into(*args, **kwargs)

    def sendall(self, data: Any, flags: int = 0) -> None:
        view = memoryview(data).cast("B")
        while view:
            if self.on_wait is not None:
                self._wait(select.POLLOUT, self.gettimeout())
            view = view[super().send(view[: 1 << 16], flags) :]

    def connect_patiently(self, address: Any, timeout: Optional[float]) -> None:
        """connect(), with its wait in slices; leaves `timeout` set for what follows."""
        self.setblocking(False)
        deadline = None if timeout is None else time.monotonic() + timeout
        failure = super().connect_ex(address)
        while failure == errno.EAGAIN:  # a Unix socket whose backlog is full: nothing is under way, try again
            if deadline is not None and time.monotonic() >= deadline:
                raise socket.timeout("timed out")
            pause(SLICE, self.on_wait)
            failure = super().connect_ex(address)
        self.settimeout(timeout)
        if failure == errno.EINPROGRESS:
            self._wait(select.POLLOUT, timeout)
            failure = self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            raise OSError(failure, os.strerror(failure))


class PatientTLSSocket(_Patience, ssl.SSLSocket):
    """A TLS socket; made by giving the class to SSLContext.sslsocket_class."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        return self._patiently(lambda: ssl.SSLSocket.recv_into(self, *args, **kwargs))

    def sendall(self, data: Any, flags: int = 0) -> None:
        view = memoryview(data).cast("B")
        while view:
            part = view[: 1 << 14]
            try:
                sent = self._patiently(lambda: ssl.SSLSocket.send(self, part))  # noqa: B023 - called at once
            except ssl.SSLEOFError as error:
                # As a plain socket says it, so that what the other side said before it went away is still read.
                raise BrokenPipeError(errno.EPIPE, str(error)) from error
            view = view[sent:]

    def do_handshake(self, block: bool = False) -> None:
        self._patiently(lambda: ssl.SSLSocket.do_handshake(self))

    def _patiently(self, step: Callable[[], T]) -> T:
        """Do a step that TLS may need several packets for, in either direction."""
        timeout = self.gettimeout()
        self.setblocking(False)
        try:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    self._wait(select.POLLIN, timeout)
                except ssl.SSLWantWriteError:
                    self._wait(select.POLLOUT, timeout)
        finally:
            self.settimeout(timeout)


def pause(seconds: float, on_wait: Optional[OnWait]) -> None:
    """Sleep for a slice, then ask whether to go on."""
    time.sleep(seconds)
    if on_wait is not None:
        on_wait()


def resolve(host: str, port: int, timeout: Optional[float], on_wait: Optional[OnWait]) -> list[Any]:
    """getaddrinfo(), which knows no timeout and no interruption, in a thread that may be left behind."""
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            answer.append(error)
        except ValueError as error:  # UnicodeError, of the idna codec: a label that is empty or too long
            answer.append(OSError(errno.EINVAL, f"no name of a host: {error}"))

    if host.replace(".", "").isdigit() or ":" in host:
        ask()  # an address: nobody is asked
    else:
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        deadline = None if timeout is None else time.monotonic() + timeout
        thread.join(SLICE)
        while thread.is_alive():
            if deadline is not None and time.monotonic() >= deadline:
                raise socket.timeout(f"the name {host} was not resolved in time")
            if on_wait is not None:
                on_wait()
            thread.join(SLICE)
    if isinstance(answer[0], OSError):
        raise answer[0]
    return list(answer[0])


def connect(host: str, port: int, timeout: Optional[float], on_wait: Optional[OnWait]) -> PatientSocket:
    """A TCP connection to the first of the host's addresses that takes one."""
    failure: Optional[OSError] = None
    for family, kind, proto, _, address in resolve(host, port, timeout, on_wait):
        sock = PatientSocket(family, kind, proto)
        sock.on_wait = on_wait
        try:
            sock.connect_patiently(address, timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _keep_alive(sock)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure or OSError(errno.EHOSTUNREACH, f"no address for {host}")


def _keep_alive(sock: socket.socket) -> None:
    """A blocking query sends nothing for minutes: that the other side is gone must show all the same."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


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
