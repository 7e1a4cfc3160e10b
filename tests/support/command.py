"""The command `consulate` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("consulate"))

LIMIT = 100


def environment(address: str = "", **more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("CONSUL_")}
    return {**own, **({"CONSUL_HTTP_ADDR": address} if address else {}), **more}


def consulate(address: str, *words: object, input: bytes = b"", **more: str) -> subprocess.CompletedProcess:
    """Run it; the output is bytes."""
    command = [COMMAND, *(word if isinstance(word, bytes) else str(word) for word in words)]
    return subprocess.run(command, input=input, capture_output=True, timeout=LIMIT, env=environment(address, **more))


def ok(address: str, *words: object, input: bytes = b"", **more: str) -> bytes:
    """The same, and it must exit 0 and say nothing on stderr."""
    done = consulate(address, *words, input=input, **more)
    assert (done.returncode, done.stderr) == (0, b""), done
    return done.stdout


def fails(address: str, *words: object, input: bytes = b"", status: int = 1, **more: str) -> str:
    """The one line on stderr of a command that must fail."""
    done = consulate(address, *words, input=input, **more)
    text = done.stderr.decode()
    assert done.returncode == status, done
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return text
