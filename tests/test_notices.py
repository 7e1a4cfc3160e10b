"""Notices to the kernel: what is about one file waits for nothing else. Without a kernel; `test_one_slow_operation.py`
has one."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading

import pytest

from consulfs.filesystem.notices import MOST, Notices, wait_for


@pytest.fixture
def notices():
    made = Notices(lambda path: None)
    yield made
    made.end()


def test_one_that_is_stuck_delays_none_but_its_own_topics(notices):
    end = threading.Event()
    stuck = [notices.post(f"{number}", lambda: end.wait(60)) for number in range(MOST - 1)]
    behind = notices.post("0", lambda: None)
    assert wait_for([notices.post("free", lambda: None) for _ in range(100)], 60)
    assert not wait_for([*stuck, behind], 0)
    end.set()
    assert wait_for([*stuck, behind], 60)


def test_those_about_one_thing_are_given_in_their_order_and_one_at_a_time(notices):
    given: list[int] = []
    busy = threading.Lock()

    def notice(number):
        assert busy.acquire(blocking=False)
        given.append(number)
        busy.release()

    assert wait_for([notices.post("a", lambda number=number: notice(number)) for number in range(200)], 60)
    assert given == list(range(200))


def test_one_that_fails_is_done_and_keeps_no_other_from_it(notices):
    assert wait_for([notices.post("a", lambda: 1 / 0), notices.post("a", lambda: None)], 60)


def test_the_end_waits_for_what_is_under_way_and_gives_nothing_more():
    notices, begun, end, given = Notices(lambda path: None), threading.Event(), threading.Event(), []
    notices.post("a", lambda: (begun.set(), end.wait(60), given.append("under way")))
    later = notices.post("a", lambda: given.append("later"))
    assert begun.wait(60)
    threading.Timer(0.05, end.set).start()
    notices.end()
    assert given == ["under way"]
    assert later.is_set()
    assert notices.post("b", lambda: given.append("after")).is_set()
    assert given == ["under way"]


WITHOUT_THREADS = """
import resource, sys
from consulfs.filesystem.notices import Notices, wait_for
with open("/proc/self/statm") as sizes:
    size = int(sizes.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 20), resource.RLIM_INFINITY))  # too little for a thread's stack
notices, given = Notices(lambda path: None), []
first = notices.post("a", lambda: given.append("first"))
assert not given and not first.is_set()
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
second = notices.post("b", lambda: given.append("second"))
assert wait_for([first, second], 60), given
assert given == ["first", "second"], given
"""


def test_where_the_system_allows_no_thread_the_next_notice_gives_those_before_it():
    assert resource.getrlimit(resource.RLIMIT_AS)[1] == resource.RLIM_INFINITY
    subprocess.run([sys.executable, "-c", WITHOUT_THREADS], check=True, timeout=100)
