"""A proxy that tells how much is under way at once, and how large answers are, and keeps answers back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

from support.proxy import Proxy
from support.waiting import until

LIMIT = 60
"""Seconds after which nothing that is waited for comes any more."""


class Gate:
    """Answers that fit are kept back, as Consul gave them, until it is opened.

    :param fits: takes the path and the body of a request
    """

    def __init__(self, fits: Callable[[str, bytes], bool]) -> None:
        self.fits = fits
        self.came, self.opened = threading.Event(), threading.Event()

    def wait(self) -> None:
        """Until there is one."""
        assert self.came.wait(LIMIT), "nothing was asked"

    def open(self) -> None:
        self.opened.set()

    def pass_through(self) -> None:
        self.came.set()
        self.opened.wait(LIMIT)


class Gauge(Proxy):
    """Blocking queries are not measured.

    :ivar most: so many requests were under way at once
    :ivar received: bytes of all answers
    :ivar pause: seconds that each answer takes
    """

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.most = self.received = self._now = 0
        self.pause = 0.0
        self._gates: list[Gate] = []

    def __exit__(self, *_: object) -> None:
        for gate in self._gates:
            gate.open()
        super().__exit__()

    def gate(self, fits: Callable[[str, bytes], bool]) -> Gate:
        """A new one, closed."""
        self._gates.append(Gate(fits))
        return self._gates[-1]

    def wait_idle(self) -> None:
        """Until nothing is under way."""
        until(lambda: not self._now)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        if "index=" in request.path:
            return super().handle(request)
        with self.lock:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            return super().handle(request)
        finally:
            with self.lock:
                self._now -= 1

    def forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list, bytes]:
        status, headers, text = super().forward(request, body)
        with self.lock:
            self.received += len(text)
        if "index=" not in request.path:
            for gate in self._gates:
                if gate.fits(request.path, body):
                    gate.pass_through()
            if self.pause:
                threading.Event().wait(self.pause)
        return status, headers, text
