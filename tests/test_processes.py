"""What /proc says of real processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from consulfs.processes import Heed, has_open, is_to_end


@pytest.fixture
def stopped():
    """A process that catches SIGINT and SIGUSR1 and is stopped, so that its signals stay pending."""
    script = """
import signal, time
for number in (signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda *_: None)
print("ready", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    while "T (stopped)" not in open(f"/proc/{process.pid}/status").read():
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize(
    ("number", "ends", "kills", "ends_a_lock"),
    [
        (None, False, False, False),
        (signal.SIGCHLD, False, False, False),
        (signal.SIGWINCH, False, False, False),
        (signal.SIGUSR1, False, False, True),
        (signal.SIGINT, True, False, True),
        (signal.SIGTERM, True, True, True),
        (signal.SIGALRM, True, True, True),
    ],
)
def test_which_signals_end_an_operation(stopped, number, ends, kills, ends_a_lock):
    if number:
        stopped.send_signal(number)
    assert is_to_end(stopped.pid) is ends
    assert is_to_end(stopped.pid, Heed.FATAL) is kills
    assert is_to_end(stopped.pid, Heed.CAUGHT) is ends_a_lock


def test_what_cannot_be_seen_is_taken_for_its_end():
    assert is_to_end(0) is True


def test_open_descriptors(tmp_path):
    path = tmp_path / "f"
    reader = os.open(path, os.O_RDONLY | os.O_CREAT)
    inode = os.stat(path).st_ino
    assert has_open(os.getpid(), inode, "f", os.O_RDONLY) is True
    assert has_open(os.getpid(), inode, "f", os.O_WRONLY) is False
    assert has_open(os.getpid(), inode + 1, "f", os.O_RDONLY) is False
    os.close(reader)
    assert has_open(os.getpid(), inode, "f", os.O_RDONLY) is False
    assert has_open(0, inode, "f", os.O_RDONLY) is None
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert has_open(ended.pid, inode, "f", os.O_RDONLY) is False
