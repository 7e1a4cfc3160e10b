"""How many requests an operation costs, counted between the mount and Consul."""

import subprocess
import threading
import time

from support.mount import Mount
from support.proxy import fewest

STALE = 1.1


def test_echo_into_a_new_key(counted, proxy, curl):
    with proxy.counting() as count:
        counted.ok("echo x > new")
    assert count.writes == 1, count
    assert curl.get("new") == b"x\n"


def test_echo_over_an_old_key(counted, proxy, curl):
    curl.put("old", b"before", flags=3)
    time.sleep(STALE)
    with proxy.counting() as count:
        counted.ok("echo x > old")
    assert count.writes == 1, count
    assert (curl.get("old"), curl.flags("old")) == (b"x\n", 3)


def test_append(counted, proxy, curl):
    curl.put("old", b"before\n")
    with proxy.counting() as count:
        counted.ok("echo x >> old")
    assert count.writes == 1, count


def test_an_empty_key(counted, proxy, curl):
    for script in (": > a", "touch b", "python3 -c \"open('c', 'w').close()\""):
        with proxy.counting() as count:
            counted.ok(script)
        assert count.writes == 1, (script, count)
    assert curl.tree() == {"a": b"", "b": b"", "c": b""}


def test_an_emptied_key_is_empty_when_the_command_returns(counted, curl):
    for _ in range(20):
        curl.put("f", b"full")
        counted.ok(": > f")
        assert curl.get("f") == b""


def test_cat(counted, proxy, curl):
    curl.put("key", b"value")
    curl.put("dir/key", b"value")

    def cold():
        time.sleep(STALE)
        with proxy.counting() as count:
            assert counted.ok("cat key") == "value"
        return count

    def warm():
        counted.ok("cat key")
        with proxy.counting() as count:
            assert counted.ok("cat key key") == "valuevalue"
        return count

    def listed():
        time.sleep(STALE)
        counted.ok("ls dir")
        with proxy.counting() as count:
            assert counted.ok("cat dir/key") == "value"
        return count

    count = fewest(cold)
    assert (count.writes, count.reads) <= (0, 2), count
    count = fewest(warm)
    assert not count.requests, count
    count = fewest(listed)
    assert count.reads <= 1, count


def test_ls_l_of_1000_keys(counted, proxy, curl):
    for start in range(0, 1000, 50):
        operations = [{"Verb": "set", "Key": f"d/k{start + number}", "Value": "eA=="} for number in range(50)]
        assert curl.txn(*operations) is not None
    counted.ok("true")
    with proxy.counting() as count:
        assert len(counted.ok("ls -l d").splitlines()) == 1001
    # 16 transactions of 64 keys and the names of two directories; each second asks for the names anew, and may find
    # a batch of records outlived.
    assert len(count.requests) <= 18 + 3 * count.expiries, count
    assert count.writes == 0


def make_files(folder, count):
    folder.mkdir()
    for number in range(count):
        (folder / f"f{number}").write_bytes(b"content %d" % number)


def test_cp_of_100_files(counted, proxy, curl, tmp_path):
    make_files(tmp_path / "in", 100)
    counted.ok("mkdir d")
    with proxy.counting() as count:
        counted.ok(f"cp {tmp_path}/in/* d/")
    assert count.writes == 200, count.writes
    with proxy.counting() as count:
        counted.ok(f"cp {tmp_path}/in/* d/")
    assert count.writes == 100, count.writes
    assert len(curl.keys()) == 101


def test_cp_of_100_files_exclusive_at_close(proxy, curl, tmp_path):
    make_files(tmp_path / "in", 100)
    with Mount(proxy.address, "exclusive=close") as mount:
        mount.ok("mkdir d")
        with proxy.counting() as count:
            mount.ok(f"cp {tmp_path}/in/* d/")
    assert count.writes == 100, count.writes
    assert curl.get("d/f7") == b"content 7"


def test_nothing_is_written_where_nothing_changes(counted, proxy, curl):
    curl.put("f", b"text")
    with proxy.counting() as count:
        counted.ok("cat f >/dev/null; python3 -c \"open('f', 'r+').close()\"; stat f; getfattr -d f; ls -la")
    assert count.writes == 0, count


def test_a_watcher_never_sees_it_empty(mnt, agent, curl):
    curl.put("f", b"first")
    seen, stop = [], threading.Event()

    def watch():
        index = 0
        while not stop.is_set():
            url = f"{agent.url}/kv/f?raw&wait=2s&index={index}"
            done = subprocess.run(["curl", "-s", "-D", "-", url], capture_output=True, timeout=30)
            head, _, body = done.stdout.partition(b"\r\n\r\n")
            index = int(
                next(line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"x-consul-index"))
            )
            seen.append(body)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for number in range(400):
            mnt.ok(f"echo value {number} > f")
            if len(seen) > 20:
                break
    finally:
        stop.set()
        curl.put("f", b"last")
        watcher.join(30)
    assert len(seen) > 20
    assert all(value for value in seen)
