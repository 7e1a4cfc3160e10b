"""A proxy that bends what goes through it, and tells which directories a mount watches."""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from support.proxy import Proxy, Seen

Answer = tuple[int, list, bytes]


class Bending(Proxy):
    """`ask` makes another path of each request's, `answer` another answer of each.

    :ivar bytes: of all answers
    """

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.ask: Callable[[str], str] = lambda path: path
        self.answer: Callable[[str, Answer], Answer] = lambda path, answer: answer
        self.bytes = 0
        self.under_way: list[BaseHTTPRequestHandler] = []

    def forward(self, request: BaseHTTPRequestHandler, body: bytes) -> Answer:
        path, request.path = request.path, self.ask(request.path)
        with self.lock:
            self.under_way.append(request)
        try:
            found = self.answer(path, super().forward(request, body))
        finally:
            with self.lock:
                self.under_way.remove(request)
        with self.lock:
            self.bytes += len(found[2])
        return found

    def watched(self) -> Counter[str]:
        """How many queries wait for something in each prefix, of clients that are still there."""
        with self.lock:
            waiting = [each for each in self.under_way if "index=" in each.path and is_there(each.connection)]
        return Counter(prefix_of(each.path) for each in waiting)

    @contextmanager
    def counting_bytes(self):
        """Yields a list that gets the bytes of the answers that were given inside."""
        with self.lock:
            start = self.bytes
        found: list[int] = []
        yield found
        with self.lock:
            found.append(self.bytes - start)


def is_there(connection: socket.socket) -> bool:
    """Whether the other side has not hung up."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def prefix_of(path: str) -> str:
    """The prefix that a request for keys is about."""
    return unquote(urlsplit(path).path.partition("/kv/")[2])


def is_blocking(seen: Seen) -> bool:
    """Whether it waits for a change: the first query of a watch, with index=1, does not."""
    return seen.is_watch and not re.search(r"[?&]index=[01](&|$)", seen.path)


def waiting(seconds: float) -> Callable[[str], str]:
    """For `ask`: blocking queries are answered after so long, where nothing changes."""
    return lambda path: re.sub(r"([?&]wait=)\d+s", rf"\g<1>{seconds:g}s", path)


def with_index(index: int | str | None, answer: Answer) -> Answer:
    """The answer with another index of Consul's; None: with none."""
    status, headers, text = answer
    headers = [each for each in headers if each[0].lower() != "x-consul-index"]
    return status, headers if index is None else [*headers, ("X-Consul-Index", str(index))], text


def index_of(answer: Answer) -> int:
    """Consul's."""
    return next((int(value) for name, value in answer[1] if name.lower() == "x-consul-index"), 0)
