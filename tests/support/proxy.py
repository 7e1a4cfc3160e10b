"""An HTTP proxy between a mount and Consul that counts requests and, when told to, breaks them."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

READ_VERBS = {"get", "get-tree", "check-index", "check-session", "check-not-exists"}


class Seen:
    """One request that went through.

    :ivar landed: whether Consul has done it
    """

    def __init__(self, method: str, path: str, body: bytes) -> None:
        self.method, self.path, self.body = method, path, body
        self.landed = threading.Event()

    @property
    def verbs(self) -> list[str]:
        """What a transaction does."""
        return [each["KV"]["Verb"] for each in json.loads(self.body)] if self.path.startswith("/v1/txn") else []

    @property
    def is_write(self) -> bool:
        if self.verbs:
            return any(verb not in READ_VERBS for verb in self.verbs)
        return self.method in ("PUT", "DELETE") and self.path.startswith("/v1/kv")

    @property
    def is_watch(self) -> bool:
        return "index=" in self.path

    @property
    def is_renewal(self) -> bool:
        return self.path.startswith("/v1/session/renew/")

    @property
    def makes_session(self) -> bool:
        return self.path.startswith("/v1/session/create")

    def __repr__(self) -> str:
        return f"{self.method} {self.path} {self.body[:150]!r}"


class Once:
    """A fault for the first request that fits.

    :ivar done: whether there was one
    """

    def __init__(self, fits: Callable[[Seen], bool], fault: object) -> None:
        self.fits, self.fault, self.done = fits, fault, False
        self.lock = threading.Lock()

    def __call__(self, seen: Seen) -> object:
        with self.lock:
            if self.done or not self.fits(seen):
                return None
            self.done = True
        return self.fault


class Late:
    """A fault for requests that fit: they reach Consul so many seconds later.

    :param most: so many of them at most
    """

    def __init__(self, fits: Callable[[Seen], bool], seconds: float, most: int = 1) -> None:
        self.fits, self.seconds, self.most = fits, seconds, most
        self.late: list[Seen] = []
        self.lock = threading.Lock()

    def __call__(self, seen: Seen) -> None:
        with self.lock:
            if len(self.late) == self.most or not self.fits(seen):
                return
            self.late.append(seen)
        time.sleep(self.seconds)

    @property
    def done(self) -> bool:
        return bool(self.late)

    def land(self) -> None:
        """Until Consul has done what came late."""
        assert self.done
        for seen in self.late:
            assert seen.landed.wait(60), seen


class After:
    """A fault: the answer comes so many seconds after Consul has given it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Cut:
    """The network is gone: what is sent is swallowed. Until `heal`."""

    def __init__(self) -> None:
        self.healed = threading.Event()

    def __call__(self, seen: Seen) -> object:
        if self.healed.is_set():
            return None
        self.healed.wait(120)
        return "drop"

    def heal(self) -> None:
        self.healed.set()


class Proxy:
    """`fault`, where set, decides on each request: None lets it pass; "cut" forwards it and drops the answer;
    "drop" drops it unsent; "half" sends half of the answer, "half chunked" the same in chunks; a number of seconds
    delays it; `After` delays the answer; a (status, body) answers it."""

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.requests: list[Seen] = []
        self.fault: Callable[[Seen], object] = lambda seen: None
        self.lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                proxy.handle(self)

            do_GET = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - so named by http.server

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_: object) -> None:
                pass  # a client that went away

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        self.local = threading.local()
        self.has_ended = False

    def __enter__(self) -> Proxy:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.has_ended = True
        self.server.shutdown()
        self.server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        seen = Seen(request.command, request.path, body)
        with self.lock:
            self.requests.append(seen)
        fault = self.fault(seen)
        if isinstance(fault, (int, float)):
            time.sleep(fault)
        if fault == "drop" or self.has_ended:  # what was held back until then must not come into the next test's store
            return self.hang_up(request)
        if isinstance(fault, tuple):
            status, headers, text = fault[0], [], fault[1]
        else:
            status, headers, text = self.forward(request, body)
            seen.landed.set()
        if isinstance(fault, After):
            time.sleep(fault.seconds)
        if fault == "cut":
            return self.hang_up(request)
        request.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                request.send_header(name, value)
        if fault == "half chunked":
            request.send_header("Transfer-Encoding", "chunked")
            text = b"%x\r\n%s" % (len(text), text)
        else:
            request.send_header("Content-Length", str(len(text)))
        request.end_headers()
        if fault in ("half", "half chunked"):
            request.wfile.write(text[: len(text) // 2])
            return self.hang_up(request)
        request.wfile.write(text)
        return None

    def forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list, bytes]:
        connection = getattr(self.local, "connection", None)
        if connection is None:
            connection = self.local.connection = http.client.HTTPConnection("127.0.0.1", self.upstream)
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        connection.request(request.command, request.path, body or None, headers)
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()

    @staticmethod
    def hang_up(request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        request.connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def counting(self):
        """Yields a Count of the requests made inside."""
        with self.lock:
            start = len(self.requests)
        count, begin = Count(), time.monotonic()
        yield count
        count.seconds = time.monotonic() - begin
        time.sleep(0.15)  # a release is asynchronous
        with self.lock:
            made = self.requests[start:]
        count.requests = [seen for seen in made if not seen.is_watch]
        count.watches = [seen for seen in made if seen.is_watch]


class Count:
    """What was asked.

    :ivar watches: blocking queries, which no operation waits for
    """

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.watches: list[Seen] = []
        self.seconds = 0.0

    @property
    def expiries(self) -> int:
        """How often an answer that stands for a second may have been asked for anew while this was counted."""
        return int(self.seconds)

    @property
    def writes(self) -> int:
        return sum(seen.is_write for seen in self.requests)

    @property
    def reads(self) -> int:
        return len(self.requests) - self.writes

    def __repr__(self) -> str:
        return f"{self.writes} writes, {self.reads} reads: {self.requests}"


def fewest(attempt: Callable[[], Count], least: int = 0) -> Count:
    """The attempt with the fewest requests: on a machine that stalls, what stands for a second may run out.

    :param least: where there were no more, there is no other attempt
    """
    counts = []
    while len(counts) < 5 and not any(len(count.requests) <= least for count in counts):
        counts.append(attempt())
    return min(counts, key=lambda count: len(count.requests))
