"""What the virtual trees show where Consul, or what stands before it, answers late, oddly or not at all."""

import errno
import json
import os
import subprocess
import time

import pytest
from support.catalog import clear_catalog, put_node, remove_node
from support.errors import errno_of
from support.mount import COMMAND, Mount
from support.waiting import until

FEW = "timeout=3"


@pytest.fixture
def registered(curl):
    """Registers what is given, and takes it away at the end."""
    yield lambda node, **more: put_node(curl, node, **more)
    clear_catalog(curl)


def check(identity, status, output=""):
    return {"CheckID": identity, "Name": identity, "Status": status, "Output": output}


@pytest.fixture
def seen(proxy, curl):
    """A mount with all that it has visible, through the proxy."""
    with Mount(proxy.address, FEW) as mount:
        yield mount


@pytest.mark.parametrize("status", [401, 404, 410])
def test_a_refusal_is_not_shown_as_nothing_critical(seen, proxy, registered, status):
    registered("n1", Check=check("disk", "critical"))
    proxy.fault = lambda request: (status, b"not here") if "/health/" in request.path else None
    for script in ("ls _health/critical", "find _health/critical -type f", "cat _health/critical/n1:disk"):
        done = seen.sh(script)
        assert done.returncode != 0, script
        assert "Input/output error" in done.stderr, script
    assert f"{status}" in seen.log_text()


@pytest.mark.parametrize("fault", ["hangs", "fails"])
def test_a_slow_or_broken_endpoint_keeps_nobody_from_the_root(seen, proxy, fault, curl):
    curl.put("key", b"1")
    asked = []

    def broken(request):
        if "/connect/intentions" not in request.path:
            return None
        asked.append(request)
        return 6 if fault == "hangs" else (500, b"out of order")

    proxy.fault = broken
    for _ in range(5):
        assert {"key", "_intention", "_health"} <= set(seen.ok("ls -l | awk '{print $NF}'").split())
    assert len(asked) == 1  # one attempt, and not each time


def test_what_was_lacking_comes_back(seen, proxy):
    proxy.fault = lambda request: (404, b"") if "/connect/intentions" in request.path else None
    assert "_intention" not in os.listdir(seen.path)
    proxy.fault = lambda request: None
    until(lambda: "_intention" in os.listdir(seen.path), 60)


def test_an_outage_makes_no_answer_last_longer(seen, proxy, registered, curl):
    """What is shown after an outage is as new as ever: the time without an answer is not the answer's."""
    registered("n1", Check=check("disk", "passing"))
    began = []

    def outage(request):
        began.append(request)
        return "drop" if len(began) < 8 else None

    proxy.fault = outage
    assert seen.ok("ls _health/critical") == ""
    assert len(began) >= 8
    proxy.fault = lambda request: None
    registered("n1", Check=check("disk", "critical"))
    time.sleep(2)
    assert seen.ok("ls _health/critical") == "n1:disk\n"


def test_those_who_wait_are_told_of_one_failure(seen, proxy):
    with proxy.counting() as count:
        proxy.fault = lambda request: (403, b"Permission denied") if "/health/state" in request.path else None
        done = seen.sh("for n in 1 2 3 4 5 6; do ls _health/critical & done; wait")
    assert done.stderr.count("Permission denied") == 6
    assert len(count.requests) <= 1 + count.expiries, count
    proxy.fault = lambda request: None
    until(lambda: seen.sh("ls _health/critical").returncode == 0)


def test_one_odd_row_does_not_take_its_directory(seen, proxy):
    rows = [
        {"Node": "good", "CheckID": "a", "Status": "passing"},
        {"CheckID": "b", "Status": "passing"},
        {"Node": None, "CheckID": "c"},
        {"Node": "half \ud800", "CheckID": "d"},
        {"Node": 7, "CheckID": ["e"]},
    ]
    proxy.fault = lambda request: (200, json.dumps(rows).encode()) if "/health/state" in request.path else None
    assert set(os.listdir(seen.path / "_health/any")) == {":b", ":c", "7:['e']", "good:a", "half ?:d"}
    assert json.loads(seen.ok("cat _health/any/7:*")) == rows[4]
    assert json.loads(seen.ok("cat _health/any/half*"))["CheckID"] == "d"


WALKER = """
import os, select, sys
names = iter(sorted(os.listdir("_health/any")))
print("listed", flush=True)
told = 0
while told < 80:  # ticks after it was told to go on: what others have asked for is old by then
    os.stat("_health/any/" + next(names))
    ready = select.select([sys.stdin], [], [], 0.03)[0]
    told += bool(ready)
    if ready and told > 1:
        select.select([], [], [], 0.03)
print(os.stat("_health/any/z:c999").st_size)
"""


def test_the_listing_of_one_program_is_not_shown_to_another(seen, registered):
    registered("z", Checks=[check(f"c{number:03}", "passing", "old") for number in range(1000)])
    walker = ["python3", "-c", WALKER]
    with subprocess.Popen(walker, cwd=seen.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "listed\n"
        path = seen.path / "_health/any/z:c999"
        registered("z", Check=check("c999", "passing", "new and longer"))
        until(lambda: "new and longer" in path.read_text())
        new = path.stat()
        other.stdin.close()
        assert int(other.stdout.readline()) < new.st_size  # it goes by its listing
        now = path.stat()
        assert (now.st_size, now.st_ino, now.st_mtime_ns) == (new.st_size, new.st_ino, new.st_mtime_ns)


def test_what_failed_last_is_the_newest_file(seen, registered):
    registered("n1", Checks=[check("old", "critical"), check("back", "critical"), check("new", "passing")])
    critical = seen.path / "_health/critical"
    until(lambda: len(os.listdir(critical)) == 2)
    start = (critical / "n1:old").stat().st_mtime
    registered("n1", Check=check("back", "passing"))
    until(lambda: os.listdir(critical) == ["n1:old"])
    registered("n1", Check=check("back", "critical"))
    until(lambda: len(os.listdir(critical)) == 2)
    registered("n1", Check=check("new", "critical"))
    until(lambda: len(os.listdir(critical)) == 3)
    assert seen.ok("ls -t _health/critical").split() == ["n1:new", "n1:back", "n1:old"]
    assert (critical / "n1:old").stat().st_mtime == start


def test_the_mount_tells_of_itself_as_of_now(seen):
    def unlinked():
        counted = json.loads(seen.ok("cat _consulfs/stats")).get("consulfs_operation_errors_total", {})
        return counted.get("unlink EROFS", 0)

    for number in range(4):
        assert unlinked() == number
        assert errno_of(lambda: os.unlink(seen.path / "_catalog/datacenters")) == errno.EROFS
    assert seen.ok("cp _consulfs/stats _consulfs/metrics /dev/shm && rm /dev/shm/stats /dev/shm/metrics") == ""


def test_another_datacenter_goes_on_without_the_list_of_all(seen, proxy):
    proxy.fault = lambda request: (200, b'["dc1", "dc2"]') if "/catalog/datacenters" in request.path else None
    assert os.listdir(seen.path / "_dc") == ["dc2"]
    assert errno_of(lambda: os.listdir(seen.path / "_dc/dc2")) == errno.EHOSTDOWN  # "No path to datacenter"
    known = {"broken": (500, b"out of order"), "elsewhere": (200, b'{"key": []}')}

    def only_keys(request):
        if "/catalog/datacenters" in request.path:
            return known["broken"]
        return (200, b'["far"]') if "/v1/kv/?" in request.path and "dc=dc2" in request.path else None

    proxy.fault = only_keys
    time.sleep(2)
    assert [each for each in os.listdir(seen.path / "_dc/dc2") if not each.startswith("_")] == ["far"]


def test_a_mount_is_not_hidden_by_another(agent, curl):
    with Mount(agent.address) as mount:
        command = [*mount.command, mount.source, str(mount.path), "-f"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode != 0
        assert f"a consulfs is mounted there already; end it with: fusermount3 -u {mount.path}" in done.stderr
        mount.ok("ls _status")


@pytest.mark.root
def test_a_listing_of_many_in_a_container_is_nobodys(agent, registered, curl):
    """Programs of another PID namespace cannot be told apart: none is shown what another has listed."""
    registered("n", Checks=[check(f"c{number:03}", "passing") for number in range(150)])
    # --kill-child: the mount ends with unshare(1).
    with Mount(agent.address, FEW, ("unshare", "-p", "-f", "--kill-child", COMMAND)) as mount:
        names = sorted(os.listdir(mount.path / "_health/any"))
        remove_node(curl, "n", CheckID="c149")
        for name in names[:100]:
            (mount.path / "_health/any" / name).stat()
            time.sleep(0.02)
        assert not (mount.path / "_health/any/n:c149").exists()
