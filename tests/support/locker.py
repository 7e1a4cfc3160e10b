"""Processes that lock files: each a child that does what it is told, one call at a time."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

FLOCK = struct.Struct("hhqqi4x")
"""struct flock, as glibc has it on 64 bits: type, whence, start, length, process."""

LIMIT = 60

OFD_GETLK, OFD_SETLK = 36, 37


class Locker:
    """A child process with numbered descriptors. A call that fails raises the child's OSError.

    :param inherited: a descriptor of this process that it has as its number 1
    """

    def __init__(self, inherited: int | None = None) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-S", "-E", __file__, *([] if inherited is None else [str(inherited)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            pass_fds=[] if inherited is None else [inherited],
        )
        self.pid = self.child.pid

    def __enter__(self) -> Locker:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()
        self.child.stdin.close()
        self.child.stdout.close()

    def __call__(self, name: str, *arguments: object) -> object:
        self.begin(name, *arguments)
        return self.end()

    def begin(self, name: str, *arguments: object) -> None:
        """Have a call made, and do not wait for its end."""
        self.child.stdin.write(json.dumps([name, *arguments], default=str) + "\n")

    def end(self) -> object:
        """What the call has answered."""
        assert self.has_ended(LIMIT), f"it hangs: {self.waits_in}"
        line = self.child.stdout.readline()
        assert line, f"the child has ended: {self.child.wait(LIMIT)}"
        answer = json.loads(line)
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        return answer["answer"]

    def has_ended(self, seconds: float = 0) -> bool:
        return bool(select.select([self.child.stdout], [], [], seconds)[0])

    @property
    def waits_in(self) -> str:
        """Where in the kernel it waits."""
        return Path(f"/proc/{self.pid}/wchan").read_text()

    def begin_wait(self, name: str, *arguments: object) -> None:
        """Begin a call that is to wait for an answer of the mount."""
        self.begin(name, *arguments)
        deadline = time.monotonic() + LIMIT
        while self.waits_in != "request_wait_answer":
            assert time.monotonic() < deadline, self.waits_in
            time.sleep(0.005)
        assert not self.has_ended(0.1)

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.child.send_signal(number)
        self.child.wait(LIMIT)


class Files:
    """What runs in the child. Numbers name descriptors, so that a descriptor's own number may be any."""

    def __init__(self, *inherited: str) -> None:
        self.open_files = dict(zip("1", map(int, inherited)))

    def open(self, name, path, flags=os.O_RDWR):
        self.open_files[str(name)] = os.open(path, flags)

    def dup(self, name, new):
        self.open_files[str(new)] = os.dup(self.open_files[str(name)])

    def close(self, name):
        os.close(self.open_files.pop(str(name)))

    def flock(self, name, how):
        fcntl.flock(self.open_files[str(name)], how)

    def lockf(self, name, how, length=0, start=0):
        fcntl.lockf(self.open_files[str(name)], how, length, start)

    def fcntl(self, name, command, kind, start=0, length=0):
        """(type, start, length, process) as the call has left them."""
        asked = FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
        kind, _, start, length, pid = FLOCK.unpack(fcntl.fcntl(self.open_files[str(name)], command, asked))
        return [kind, start, length, pid]

    def pread(self, name, size=1 << 20, offset=0):
        return os.pread(self.open_files[str(name)], size, offset).decode()

    def pwrite(self, name, text, offset=0):
        return os.pwrite(self.open_files[str(name)], text.encode(), offset)

    def truncate(self, name, size=0):
        os.ftruncate(self.open_files[str(name)], size)

    def fsync(self, name):
        os.fsync(self.open_files[str(name)])

    def read_file(self, path):
        return Path(path).read_text()

    def alarm(self, seconds, raising=True):
        """SIGALRM after some time, to a handler that raises, or to one that does nothing."""

        def handler(number, frame):
            if raising:
                raise InterruptedError(4, "the handler")

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def serve(self):
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            try:
                answer = {"answer": getattr(self, name)(*arguments)}
            except OSError as error:
                answer = {"errno": error.errno}
            print(json.dumps(answer), flush=True)


def errno_of(call, *arguments):
    """What a call fails with; 0 where it does not."""
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return 0


if __name__ == "__main__":
    Files(*sys.argv[1:]).serve()
