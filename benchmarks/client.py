"""What a call of the client costs, beside what stands beneath it: one table, medians of several rounds.

    python benchmarks/client.py [HOST:PORT]

Reads one small key again and again, from a Consul on loopback. The rounds of the rows take turns, so that a busy
machine slows all of them alike; compare the ratios, not the times.
"""

from __future__ import annotations

import http.client
import statistics
import sys
import time
from typing import Callable

import requests
import urllib3

from consulfs import consulate

CALLS = 300
ROUNDS = 9


def main() -> None:
    host, _, port = (sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8500").partition(":")
    url = f"http://{host}:{port}/v1/kv/benchmark"
    requests.put(url, data=b"value", timeout=10)
    raw = http.client.HTTPConnection(host, int(port))
    pool = urllib3.HTTPConnectionPool(host, int(port))
    session = requests.Session()
    consul = consulate.Consul(host, int(port), timeout=10)

    def plain() -> None:
        raw.request("GET", "/v1/kv/benchmark")
        raw.getresponse().read()

    rows: dict[str, Callable[[], object]] = {
        "http.client": plain,
        "urllib3's pool": lambda: pool.urlopen("GET", "/v1/kv/benchmark", retries=False),
        "consulfs.consulate, kv.read": lambda: consul.kv.read("benchmark"),
        "requests.Session": lambda: session.get(url).content,
    }
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(ROUNDS):
        for name, call in rows.items():
            begin = time.perf_counter()
            for _ in range(CALLS):
                call()
            times[name].append((time.perf_counter() - begin) / CALLS)
    floor = statistics.median(times["urllib3's pool"])
    print(f"| one GET of a small key, median of {ROUNDS} rounds of {CALLS} | us | pool = 1 |\n|---|---|---|")
    for name, measured in times.items():
        median = statistics.median(measured)
        print(f"| {name} | {median * 1e6:.0f} | {median / floor:.2f} |")
    consul.kv.delete("benchmark")


if __name__ == "__main__":
    main()
