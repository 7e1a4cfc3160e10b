"""A server on a real socket that answers with the bytes it is given: what no well-behaved server would send."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from typing import Union

Answer = Union[bytes, Iterable[bytes], None]


def http(body: bytes, status: str = "200 OK", headers: Iterable[str] = (), length: int | None = None) -> bytes:
    """A well-formed answer; `length` where its Content-Length is to be a lie."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


class Faulty:
    """Answers every request with `answer`: bytes, pieces of them, None for never, or a function of the request's line.

    :param path: of a Unix domain socket instead of a port
    :param closes: whether a connection ends after its answer
    :ivar requests: the line and headers of each request that came
    """

    def __init__(self, answer: Answer | Callable[[str], Answer], closes: bool = True, path: str = "") -> None:
        self.answer = answer
        self.path = path
        self.closes = closes
        self.requests: list[str] = []
        self.connections: list[socket.socket] = []
        self.ended = threading.Event()

    @property
    def lines(self) -> list[str]:
        return [each.split("\r\n")[0] for each in self.requests]

    def __enter__(self) -> Faulty:
        self.listener = socket.socket(socket.AF_UNIX if self.path else socket.AF_INET)
        self.listener.bind(self.path or ("127.0.0.1", 0))
        self.listener.listen(256)
        self.port = 0 if self.path else self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """End every connection, as a server does that restarts or tires of idle ones."""
        for each in self.connections:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            each.close()
        self.connections.clear()

    def accept(self) -> None:
        while not self.ended.is_set():
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        try:
            with connection.makefile("rb") as reader:
                while self.serve_one(connection, reader) and not self.closes:
                    pass
            if self.closes:
                connection.shutdown(socket.SHUT_WR)  # close() with unread bytes would be a reset
                while connection.recv(1 << 16):
                    pass
                connection.close()
        except (OSError, ValueError):
            pass  # the client went away

    def serve_one(self, connection: socket.socket, reader: object) -> bool:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = reader.readline()
            if not line:
                return False
            head += line
        text = head.decode("latin-1")
        lengths = [line.split(":")[1] for line in text.split("\r\n") if line.lower().startswith("content-length:")]
        reader.read(int(lengths[0]) if lengths else 0)
        self.requests.append(text)
        answer = self.answer(text.split("\r\n")[0]) if callable(self.answer) else self.answer
        if answer is None:
            self.ended.wait()
            return False
        for piece in (answer,) if isinstance(answer, bytes) else answer:
            connection.sendall(piece)
        return True
