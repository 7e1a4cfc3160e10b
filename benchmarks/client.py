"""What a call of the client costs, beside what stands beneath it: one table, medians of several rounds.

    python benchmarks/client.py [HOST:PORT]

Asks a Consul on loopback for one small key again and again: an own one in memory, or the one that is named. The
rounds of the rows take turns, so that a busy machine slows all of them alike; compare the ratios, not the times.
"""

from __future__ import annotations

import http.client
import os
import statistics
import sys
import time
from typing import Callable

import requests
import urllib3

from consulfs import consulate
from consulfs.devagent import DevAgent

CALLS = 200
ROUNDS = 15
PATH = "/v1/kv/benchmark"

Rows = dict[str, Callable[[], object]]


def main() -> None:
    if len(sys.argv) > 1:
        host, _, port = sys.argv[1].partition(":")
        measure(host, int(port or 8500))
        return
    agent = DevAgent(os.environ.get("CONSUL", "consul"))
    agent.start()
    try:
        measure("127.0.0.1", agent.port)
    finally:
        agent.stop()


def measure(host: str, port: int) -> None:
    """Print the table."""
    requests.put(f"http://{host}:{port}{PATH}", data=b"value", timeout=10)
    with consulate.Consul(host, port, timeout=10) as consul:
        rows = rows_of(host, port, consul)
        times: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(ROUNDS):
            for name, call in rows.items():
                begin = time.perf_counter()
                for _ in range(CALLS):
                    call()
                times[name].append((time.perf_counter() - begin) / CALLS)
        consul.kv.delete("benchmark")
    floor = statistics.median(times["urllib3's pool, a GET"])
    print(f"| median of {ROUNDS} rounds of {CALLS} calls | us | urllib3's pool = 1 |\n|---|---|---|")
    for name, measured in times.items():
        median = statistics.median(measured)
        print(f"| {name} | {median * 1e6:.0f} | {median / floor:.2f} |")


def rows_of(host: str, port: int, consul: consulate.Consul) -> Rows:
    """Each row's call."""
    raw = http.client.HTTPConnection(host, port)
    pool = urllib3.HTTPConnectionPool(host, port)
    session = requests.Session()

    def plain() -> None:
        raw.request("GET", PATH)
        raw.getresponse().read()

    def get_and_put() -> None:
        pool.urlopen("GET", PATH, retries=False)
        pool.urlopen("PUT", PATH, body=b"value", retries=False)

    return {
        "http.client, a GET": plain,
        "urllib3's pool, a GET": lambda: pool.urlopen("GET", PATH, retries=False),
        "requests.Session, a GET": lambda: session.get(f"http://{host}:{port}{PATH}").content,
        "`consul.kv.get`": lambda: consul.kv.get("benchmark"),
        "`consul.kv.get_record`": lambda: consul.kv.get_record("benchmark"),
        "urllib3's pool, a GET and a PUT": get_and_put,
        "`consul.kv.set`, a GET and a compare-and-set": lambda: consul.kv.set("benchmark", "value"),
    }


if __name__ == "__main__":
    main()
