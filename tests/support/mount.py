"""A real mount by the real command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support.agent import die_with_parent

COMMAND = str(Path(sys.executable).with_name("consulfs"))

LIMIT = 60
"""Seconds after which a command of a test has hung."""


SOON_LOST = "timeout=2,lock_ttl=10s,lock_delay=1s,virtual=hidden"
"""Options by which an answer is soon taken for lost, and so is a lock."""


class Mount:
    """Mounted on entry; on exit unmounted, whatever became of it, and its folder removed.

    :param place: a folder that is there already, and stays
    """

    def __init__(
        self,
        source: str,
        options: str = "timeout=20,virtual=hidden",
        command: tuple[str, ...] = (COMMAND,),
        place: Path | None = None,
    ) -> None:
        self.place = place
        self.source = source
        self.options = options
        self.command = command
        self.path = Path()
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Mount:
        self.path = self.place or Path(tempfile.mkdtemp(prefix="consulfs-mnt-"))
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self.place is not None:
            return
        for _attempt in range(50):
            try:
                self.path.rmdir()
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"{self.path} is still mounted or not empty")

    def start(self) -> None:
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [*self.command, self.source, str(self.path), "-f", "-o", self.options],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            preexec_fn=die_with_parent,
            env={name: value for name, value in os.environ.items() if not name.startswith("CONSUL_")},
        )
        deadline = time.monotonic() + LIMIT
        while not os.path.ismount(self.path):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self.log_text())
            time.sleep(0.02)

    def stop(self) -> None:
        """A clean unmount; a forced one where that fails."""
        if self.process is None:
            return
        if (
            self.process.poll() is None
            and subprocess.run(["fusermount3", "-u", str(self.path)], capture_output=True).returncode
        ):
            subprocess.run(["fusermount3", "-uz", str(self.path)], capture_output=True)
        self.wait_end()
        if os.path.ismount(self.path) or self.is_dead():
            subprocess.run(["fusermount3", "-uz", str(self.path)], capture_output=True)

    def wait_end(self) -> int:
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        return status

    def is_dead(self) -> bool:
        try:
            os.stat(self.path)
            return False
        except OSError:
            return True

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(30)

    def log_text(self) -> str:
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace")

    def losses(self) -> list[str]:
        """What it has said of locks and ephemeral files that it lost."""
        return [line for line in self.log_text().splitlines() if "was lost" in line]

    def sh(self, script: str, limit: float = LIMIT, **kwargs: object) -> subprocess.CompletedProcess:
        """Run a script by bash in the mount; its output as text.

        :param limit: seconds after which it has hung
        """
        return subprocess.run(
            ["bash", "-c", script], cwd=self.path, capture_output=True, text=True, timeout=limit, **kwargs
        )

    def ok(self, script: str, **kwargs: object) -> str:
        """The same, and it must exit 0."""
        done = self.sh(script, **kwargs)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}\n{self.log_text()[-3000:]}"
        return done.stdout
