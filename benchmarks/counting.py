"""An HTTP proxy before a Consul that counts what goes through: for runs whose time is not measured."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

READ_VERBS = {"get", "get-tree", "check-index", "check-session", "check-not-exists"}

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass(frozen=True)
class Requests:
    """How many there were.

    :ivar waits: blocking queries, which wait at Consul for a change; with the index 1 one waits for nothing, and is a
        read
    """

    reads: int = 0
    writes: int = 0
    waits: int = 0

    def __sub__(self, before: Requests) -> Requests:
        return Requests(self.reads - before.reads, self.writes - before.writes, self.waits - before.waits)


class Tally:
    """Counts by kind."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, kind: str) -> None:
        with self._lock:
            self._counts[kind] += 1

    def now(self) -> Requests:
        with self._lock:
            return Requests(**self._counts)

    def settled(self) -> Requests:
        """The counts when what the kernel tells a mount late, such as the end of a descriptor, has had its time."""
        time.sleep(0.5)
        return self.now()


def kind_of(method: str, target: str, body: bytes) -> str:
    """Which of the counts of `Requests` a request belongs to."""
    parts = urlsplit(target)
    asked = parse_qs(parts.query, keep_blank_values=True)
    if "hash" in asked or int(asked.get("index", ["0"])[0]) > 1:
        return "waits"
    if parts.path == "/v1/txn":
        verbs = {each["KV"]["Verb"] for each in json.loads(body)}
        return "reads" if verbs <= READ_VERBS else "writes"
    return "writes" if method != "GET" and parts.path.startswith("/v1/kv/") else "reads"


@contextmanager
def counting(port: int) -> Iterator[tuple[int, Tally]]:
    """A proxy before the Consul at a port: its own port, and what it counts."""
    tally = Tally()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # head and body in one packet

        def setup(self) -> None:
            super().setup()
            self.consul = http.client.HTTPConnection("127.0.0.1", port)

        def finish(self) -> None:
            self.consul.close()
            try:
                super().finish()
            except (OSError, http.client.HTTPException):  # who asked is gone
                pass

        def handle(self) -> None:
            try:
                super().handle()
            except (OSError, http.client.HTTPException):
                pass

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            tally.add(kind_of(self.command, self.path, body))
            self.consul.request(self.command, self.path, body or None, dict(self.headers))
            answer = self.consul.getresponse()
            content = answer.read()
            self.send_response(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = forward  # noqa: N815  # the names are the base's

        def log_message(self, *_: object) -> None:
            """Nothing: a line a request says no more than the counts."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False  # a blocking query would be waited for
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1], tally
        finally:
            server.shutdown()
            thread.join()
