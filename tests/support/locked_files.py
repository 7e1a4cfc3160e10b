"""A program that has files open and locks them, as a Locker tells it: one call a line, in JSON."""

import fcntl
import json
import os
import signal
import struct
import sys
from pathlib import Path

FLOCK = struct.Struct("hhqqi4x")
"""struct flock, as glibc has it on 64 bits: type, whence, start, length, process."""


class Files:
    """Numbers name descriptors, so that a descriptor's own number may be any."""

    def __init__(self, *inherited):
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
                answer = None, getattr(self, name)(*arguments)
            except OSError as error:
                answer = error.errno, None
            print(json.dumps(answer), flush=True)


Files(*sys.argv[1:]).serve()
