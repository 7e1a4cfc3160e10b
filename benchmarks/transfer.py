"""What backup and restore of many keys cost, beside `consul kv export` and the load itself: seconds and peak memory.

    python benchmarks/transfer.py [KEYS]

Two own Consuls in memory on loopback; each command is a process of its own, whose peak memory the kernel tells.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from consulfs import consulate
from consulfs.consulate.api.txn import operation
from consulfs.devagent import DevAgent

KEYS = 100_000
VALUE = b"x" * 100
BATCH = 64

CONSUL = os.environ.get("CONSUL", "consul")
CONSULATE = str(Path(sys.executable).with_name("consulate"))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else KEYS
    full, empty = DevAgent(CONSUL), DevAgent(CONSUL)
    try:
        full.start()
        empty.start()
        with tempfile.TemporaryDirectory() as folder:
            measure(count, full.port, empty.port, Path(folder))
    finally:
        full.stop()
        empty.stop()


def measure(count: int, full: int, empty: int, folder: Path) -> None:
    """Print the table, and insist that both stores are the same in the end."""
    backup = str(folder / "backup.json")
    print(f"| {count:,} keys of {len(VALUE)} bytes | seconds | peak memory, MB |\n|---|---|---|")
    begin = time.perf_counter()
    fill(count, full)
    print(f"| written by transactions of {BATCH}, nothing read | {time.perf_counter() - begin:.1f} | |")
    show("consul kv export", export(full), folder / "export.json")
    show("consulate kv backup", consulate_kv(full, "backup", "-f", backup))
    show("consulate kv restore, into an empty store", consulate_kv(empty, "restore", "-f", backup))
    show("consulate kv restore, once more", consulate_kv(empty, "restore", "-f", backup))
    show("consulate kv restore -p, once more", consulate_kv(empty, "restore", "-p", "-f", backup))
    subprocess.run(export(empty), stdout=(folder / "copy.json").open("wb"), check=True)
    if (folder / "copy.json").read_bytes() != (folder / "export.json").read_bytes():
        sys.exit("the copy is another than the original")


def fill(count: int, port: int) -> None:
    with consulate.Consul("127.0.0.1", port) as consul:
        for start in range(0, count, BATCH):
            keys = range(start, min(start + BATCH, count))
            consul.txn.execute([operation("set", f"folder{key // 100}/key{key}", VALUE, key) for key in keys])


def export(port: int) -> Sequence[str]:
    return [CONSUL, "kv", "export", f"-http-addr=127.0.0.1:{port}"]


def consulate_kv(port: int, *words: str) -> Sequence[str]:
    return [CONSULATE, "--api-host", "127.0.0.1", "--api-port", str(port), "kv", *words]


def show(name: str, command: Sequence[str], output: Path = Path(os.devnull)) -> None:
    """Run a command and print its row."""
    with output.open("wb") as file:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=file)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{name} failed")
    print(
        f"| `{name.partition(',')[0]}`{''.join(name.partition(',')[1:])} | {seconds:.1f} | {used.ru_maxrss // 1024} |"
    )


if __name__ == "__main__":
    main()
