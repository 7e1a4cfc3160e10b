"""Watches and what becomes of them: servers that restart, indexes that begin anew, answers that are none."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import time

import pytest
from support.acl import MASTER, guarded_agent, make, make_policy, make_token
from support.agent import Agent, consul_command
from support.bending import Bending, index_of, waiting, with_index
from support.cluster import Cluster
from support.curl import Curl
from support.errors import errno_of
from support.mount import Mount
from support.proxy import Cut
from support.waiting import until
from support.watching import content, fill, opened, until_vouched, until_watched, watch


@pytest.fixture
def bending(agent):
    with Bending(agent.port) as proxy:
        yield proxy


@pytest.fixture
def watching(bending, curl):
    """A mount through the proxy."""
    with Mount(bending.address) as mount:
        yield mount


def sees(path, value, names=None):
    """Until a program sees this content, and these names beside it, and then nothing else."""
    until(lambda: content(path) == value)
    if names is not None:
        until(lambda: set(os.listdir(path.parent)) == set(names))
    for _ in range(12):
        assert content(path) == value
        assert names is None or set(os.listdir(path.parent)) == set(names)
        time.sleep(0.1)


def advance(curl, index):
    """Write until Consul's index is beyond this one."""
    for number in itertools.count():
        curl.put("elsewhere", b"%d" % number)
        if curl.record("elsewhere")["ModifyIndex"] > index:
            return


# -- servers ------------------------------------------------------------------------------------------------------


def test_an_agent_restarts_with_its_data():
    with Agent(keeps_data=True) as own, Bending(own.port) as proxy, Mount(proxy.address) as mount:
        curl = Curl(own.url)
        curl.put("d/f", b"first")
        curl.put("d/gone", b"x")
        watch(mount, proxy, "d")
        with opened(mount.path / "d/f") as file:
            assert file() == b"first"
            own.kill()
            own.start()
            curl.put("d/f", b"second one")
            curl.put("d/new", b"x")
            curl.delete("d/gone")
            sees(mount.path / "d/f", b"second one", {"f", "new"})
            until(lambda: file() == b"second one")
            until_watched(proxy, "d/")
            curl.put("d/f", b"third")
            sees(mount.path / "d/f", b"third", {"f", "new"})
            until(lambda: file() == b"third")
        assert mount.ok("echo own > d/f; cat d/f") == "own\n"


def is_at(file, value):
    """Whether an open file shows this content; or it is another one by now, since the mount has seen it gone."""
    try:
        return file() == value
    except OSError as error:
        assert error.errno == errno.ESTALE
        return True


def test_an_agent_restarts_empty():
    """All indexes begin anew, below those that are known."""
    with Agent() as own, Bending(own.port) as proxy, Mount(proxy.address) as mount:
        curl = Curl(own.url)
        fill(curl, [f"other/k{number}" for number in range(500)])
        for _ in range(10):
            curl.put("d/f", b"first")
        curl.put("d/gone", b"x")
        curl.put("e/f", b"first")
        watch(mount, proxy, "d")
        watch(mount, proxy, "e")
        with opened(mount.path / "d/f") as file, opened(mount.path / "e/f") as same:
            assert (file(), same()) == (b"first", b"first")
            own.stop()
            own.start()
            curl.put("d/f", b"anew")
            curl.put("d/new", b"x")
            curl.put("e/f", b"first")
            sees(mount.path / "d/f", b"anew", {"f", "new"})
            until(lambda: is_at(file, b"anew"))
            assert sorted(os.listdir(mount.path)) == ["d", "e"]
            curl.put("d/f", b"anew and longer")
            curl.put("e/f", b"another")
            sees(mount.path / "d/f", b"anew and longer", {"f", "new"})
            until(lambda: is_at(file, b"anew and longer"))
            sees(mount.path / "e/f", b"another", {"f"})
            until(lambda: is_at(same, b"another"))
            until_vouched(proxy, mount.path / "d/f")
            assert mount.ok("echo own > d/f; cat d/f; echo more >> e/f; cat e/f") == "own\nanothermore\n"
        assert (curl.get("d/f"), curl.get("e/f")) == (b"own\n", b"anothermore\n")


def test_an_agent_restarts_empty_and_is_ahead_at_once():
    """Nobody sees the index go back: it is higher than before when the mount asks next."""
    with Agent() as own, Bending(own.port) as proxy, Mount(proxy.address) as mount:
        curl = Curl(own.url)
        advance(curl, 100)
        curl.put("d/f", b"first")
        fill(curl, [f"d/k{number}" for number in range(20)])
        watch(mount, proxy, "d")
        with opened(mount.path / "d/f") as file:
            assert file() == b"first"
            before = curl.record("d/k19")["ModifyIndex"]
            proxy.fault = lambda seen: (500, b"No cluster leader") if seen.is_watch else None
            own.kill()
            own.start()
            curl.put("d/f", b"anew")
            assert curl.record("d/f")["ModifyIndex"] < before
            advance(curl, before)
            curl.put("d/k0")
            proxy.fault = lambda seen: None
            sees(mount.path / "d/f", b"anew", {"f", "k0"})
            until(lambda: is_at(file, b"anew"))
            until_vouched(proxy, mount.path / "d/f")


def test_a_leader_changes():
    with Cluster(clients=1) as cluster:
        client = cluster.clients[0]
        with Bending(client.port) as proxy, Mount(proxy.address) as mount:
            curl = cluster.curl
            curl.put("d/f", b"0")
            watch(mount, proxy, "d")
            with opened(mount.path / "d/f") as file:
                for number in range(1, 4):
                    if number == 2:
                        leader = until(cluster.leader)
                        leader.kill()
                    value = b"value %d" % number
                    until(lambda value=value: curl("PUT", "kv/d/f", value)[0] == 200)
                    sees(mount.path / "d/f", value, {"f"})
                    until(lambda value=value: file() == value)
                assert mount.ok("echo own > d/f; cat d/f") == "own\n"
                leader.start()
            curl.put("d/f", b"last")
            sees(mount.path / "d/f", b"last", {"f"})


@pytest.mark.parametrize("writes_at_once", [False, True], ids=["alone", "and a write"])
def test_an_older_snapshot_is_restored(tmp_path, writes_at_once):
    with Agent(keeps_data=True) as own, Bending(own.port) as proxy, Mount(proxy.address) as mount:
        curl = Curl(own.url)
        snapshot = [consul_command(), "snapshot", "-", f"-http-addr={own.address}", str(tmp_path / "snapshot")]
        fill(curl, ["d/f", "d/same", "d/gone", "big/f"], b"old")
        fill(curl, [f"big/s/k{number}" for number in range(3)])
        snapshot[2] = "save"
        subprocess.run(snapshot, check=True, capture_output=True, timeout=60)
        fill(curl, ["d/f", "d/new", "big/f", "big/new"], b"newer")
        curl.delete("d/gone")
        watch(mount, proxy, "d")
        watch(mount, proxy, "big")
        with opened(mount.path / "d/f") as file, opened(mount.path / "big/f") as beside:
            assert (file(), beside()) == (b"newer", b"newer")
            if writes_at_once:  # by the time that the mount asks, the index of each directory is higher than before
                proxy.fault = lambda seen: (500, b"") if seen.is_watch else None
            newest = curl.record("d/f")["ModifyIndex"]
            snapshot[2] = "restore"
            subprocess.run(snapshot, check=True, capture_output=True, timeout=60)
            expected = {"f", "same", "gone"}
            if writes_at_once:
                advance(curl, newest)
                fill(curl, ["d/late", "big/late"])
                expected.add("late")
                time.sleep(1)
                proxy.fault = lambda seen: None
            sees(mount.path / "d/f", b"old", expected)
            until(lambda: file() == b"old")
            sees(mount.path / "big/f", b"old")
            until(lambda: beside() == b"old")
            assert "new" not in os.listdir(mount.path / "big")
            fill(curl, ["d/f", "big/f"], b"after")
            sees(mount.path / "d/f", b"after", expected)
            sees(mount.path / "big/f", b"after")
            until(lambda: (file(), beside()) == (b"after", b"after"))
            until_vouched(proxy, mount.path / "big/f")


def test_an_older_snapshot_is_restored_where_nothing_is_watched(tmp_path):
    """An open file goes back with the cluster: a majority of the servers says so."""
    with Agent(keeps_data=True) as own, Mount(own.address, "cache=ttl,virtual=hidden,timeout=20") as mount:
        curl = Curl(own.url)
        snapshot = [consul_command(), "snapshot", "save", f"-http-addr={own.address}", str(tmp_path / "snapshot")]
        curl.put("d/f", b"old")
        subprocess.run(snapshot, check=True, capture_output=True, timeout=60)
        curl.put("d/f", b"newer")
        with opened(mount.path / "d/f") as file:
            assert file() == b"newer"
            snapshot[2] = "restore"
            subprocess.run(snapshot, check=True, capture_output=True, timeout=60)
            until(lambda: file() == b"old")
            sees(mount.path / "d/f", b"old", {"f"})
            curl.put("d/f", b"after")
            until(lambda: file() == b"after")


# -- the network --------------------------------------------------------------------------------------------------

PAGE = b"<html><body>Welcome</body></html>"


@pytest.mark.parametrize(
    "fault",
    [
        "cut", "drop", "half", "half chunked", (500, b"No cluster leader"), (500, b""), (429, b"slow down"), (503, b""),
        (403, b"Permission denied"), (200, PAGE), (404, PAGE), (200, b""), (200, b"[7]"), (200, b"{}"),
    ],
    ids=str,
)  # fmt: skip
def test_a_query_is_answered_wrong(bending, watching, curl, fault):
    """Meanwhile the directory is as any other; and nobody is asked all the time."""
    fill(curl, ["d/f", "d/g"], b"first")
    watch(watching, bending, "d")
    with opened(watching.path / "d/f") as file:
        assert file() == b"first"
        bending.fault = lambda seen: fault if seen.is_watch else None
        with bending.counting() as count:
            curl.put("d/f", b"second value")
            sees(watching.path / "d/f", b"second value", {"f", "g"})
            until(lambda: file() == b"second value")
            curl.delete("d/g")
            sees(watching.path / "d/f", b"second value", {"f"})
        # Pauses of 0.1 s at first, and twice as long after each failure; the root is watched, too.
        assert len(count.watches) <= 2 * (8 + count.seconds / 5), count.watches
        bending.fault = lambda seen: None
        # What may not be listed is not tried again before it is used.
        until(lambda: content(watching.path / "d/f") and "d/" in bending.watched())
        curl.put("d/f", b"third")
        sees(watching.path / "d/f", b"third", {"f"})
        until(lambda: file() == b"third")
        until_vouched(bending, watching.path / "d/f")


@pytest.mark.parametrize("index", [None, 0, 1, -5, "none"])
def test_an_answer_bears_no_index(bending, watching, curl, index):
    fill(curl, ["d/f", "d/g"], b"first")
    bending.answer = lambda path, answer: with_index(index, answer)
    assert (watching.path / "d/f").read_bytes() == b"first"
    with bending.counting() as count:
        for number in range(4):
            curl.put("d/f", b"value %d" % number)
            sees(watching.path / "d/f", b"value %d" % number, {"f", "g"})
    assert len(count.watches) <= 2 * (10 + 2 * count.seconds), len(count.watches)
    bending.answer = lambda path, answer: answer
    until_watched(bending, "d/", "")
    curl.put("d/f", b"last")
    sees(watching.path / "d/f", b"last", {"f", "g"})
    until_vouched(bending, watching.path / "d/f")


def test_an_index_goes_back_again_and_again(bending, watching, curl):
    """Two servers behind one address, of which one began anew."""
    fill(curl, ["d/f", "d/g"], b"first")
    numbers = itertools.count()
    bending.ask = waiting(0.05)
    bending.answer = lambda path, answer: with_index(
        index_of(answer) - 5 * (next(numbers) % 2) if "index=" in path else index_of(answer), answer
    )
    assert (watching.path / "d/f").read_bytes() == b"first"
    with bending.counting() as count:
        for number in range(4):
            curl.put("d/f", b"value %d" % number)
            sees(watching.path / "d/f", b"value %d" % number, {"f", "g"})
    assert len(count.watches) <= 2 * (15 + 4 * count.seconds), len(count.watches)


def test_a_query_is_answered_at_once_again_and_again(bending, watching, curl):
    """As by a cache in between, or a server that does not know blocking queries."""
    fill(curl, ["d/f", "d/g"], b"first")
    bending.ask = lambda path: path.replace("index=", "ignored=")
    assert (watching.path / "d/f").read_bytes() == b"first"
    time.sleep(2)
    with bending.counting() as count:
        for number in range(3):
            curl.put("d/f", b"value %d" % number)
            sees(watching.path / "d/f", b"value %d" % number, {"f", "g"})
    assert len(count.watches) <= 2 * (12 + 3 * count.seconds), len(count.watches)


def test_the_network_swallows_everything_for_some_seconds(bending, curl):
    with Mount(bending.address, "timeout=2,virtual=hidden") as mount:
        fill(curl, ["d/f", "d/g"], b"first")
        watch(mount, bending, "d")
        with opened(mount.path / "d/f") as file:
            assert file() == b"first"
            cut = Cut()
            bending.fault = cut
            curl.put("d/f", b"told still")  # by the query that was let through before
            sees(mount.path / "d/f", b"told still")
            curl.put("d/f", b"not told")
            curl.delete("d/g")
            time.sleep(2.5)
            assert content(mount.path / "d/f") == b"told still"  # for as long as a query may take
            assert errno_of(os.stat, mount.path / "d/h") in (errno.ENOENT, errno.ETIMEDOUT)
            cut.heal()
            bending.fault = lambda seen: None
            sees(mount.path / "d/f", b"not told", {"f"})
            until(lambda: file() == b"not told")


def test_a_connection_dies_silently(bending, watching, curl):
    """It is trusted for as long as its query may take, and no longer."""
    fill(curl, ["d/f", "d/g"], b"first")
    watch(watching, bending, "d")
    with opened(watching.path / "d/f") as file:
        assert file() == b"first"
        cut = Cut()
        bending.fault = lambda seen: cut(seen) if seen.is_watch else None
        curl.put("d/f", b"told still")
        sees(watching.path / "d/f", b"told still")
        bending.fault = lambda seen: None  # for other connections
        curl.put("d/f", b"not told")
        curl.delete("d/g")
        sees(watching.path / "d/f", b"not told", {"f"})
        until(lambda: file() == b"not told")
        until_vouched(bending, watching.path / "d/f")
        cut.heal()


# -- rights -------------------------------------------------------------------------------------------------------

MAY_LIST = 'key_prefix "d/" { policy = "read" }'
MAY_LIST_BELOW = 'key_prefix "d/" { policy = "list" }'


@pytest.fixture
def list_guarded():
    """An agent that lets nobody list without the right to list."""
    with guarded_agent() as agent:
        agent.config["acl"]["enable_key_list_policy"] = True
        agent.stop()
        agent.start()
        yield agent


def test_a_directory_that_may_not_be_listed(list_guarded, tmp_path):
    admin = Curl(list_guarded.url, MASTER)
    fill(admin, ["d/f", "d/secret"], b"first")
    token = tmp_path / "token"
    token.write_text(make_token(admin, MAY_LIST_BELOW))
    with Bending(list_guarded.port) as proxy, Mount(proxy.address, f"virtual=hidden,token_file={token}") as mount:
        path = mount.path / "d/f"
        assert content(path) == b"first"
        time.sleep(1)
        with proxy.counting() as count:
            for _ in range(300):
                assert content(path) == b"first"
            time.sleep(1)
        assert len(count.watches) <= 4 + count.seconds / 2, count.watches
        admin.put("d/f", b"second")
        sees(path, b"second")
        assert errno_of(os.listdir, mount.path) == errno.EACCES
        assert "Traceback" not in mount.log_text()


def test_the_rights_change(guarded, admin, tmp_path):
    """Nothing wakes a query then: what a watch has told stands until it is renewed."""
    fill(admin, ["d/f", "d/g", "d/s/h"], b"first")
    rules, none = make_policy(admin, MAY_LIST), 'key_prefix "d/s/" { policy = "read" }'
    token = tmp_path / "token"
    token.write_text(make(admin, "acl/token", Policies=[rules])["SecretID"])

    def allow(words):
        make(admin, f"acl/policy/{rules['ID']}", ID=rules["ID"], Name=f"p{os.urandom(4).hex()}", Rules=words)

    with Bending(guarded.port) as proxy, Mount(proxy.address, f"virtual=hidden,token_file={token}") as mount:
        proxy.ask = waiting(2)
        path = mount.path / "d/f"
        watch(mount, proxy, "d")
        assert content(path) == b"first"
        allow(none)
        until(lambda: errno_of(path.read_bytes) in (errno.EACCES, errno.ENOENT))
        until(lambda: "f" not in os.listdir(mount.path / "d"))
        time.sleep(1.5)
        assert errno_of(path.read_bytes) in (errno.EACCES, errno.ENOENT)
        allow(MAY_LIST)
        sees(path, b"first", {"f", "g", "s"})
        allow('key "d/f" { policy = "read" }')
        sees(path, b"first", {"f"})
        admin.put("d/f", b"second")
        sees(path, b"second", {"f"})


# -- servers that lag behind ----------------------------------------------------------------------------------------


def answered_as_now(curl, path):
    """Gives what makes an answer of a proxy that of a server which has not gone on since."""
    _, body = curl("GET", path)
    index = max(entry["ModifyIndex"] for entry in json.loads(body))

    return lambda answer: with_index((*answer[:2], body), index)


def test_answers_from_before_what_is_known_bring_nothing_back(bending, watching, curl):
    """Of a leader that was just elected, say: a majority tells that indexes have not begun anew."""
    curl.put("d/f", b"second")
    curl.put("d/g", b"x")
    watch(watching, bending, "d")
    path, asked = watching.path / "d/f", []
    lag = answered_as_now(curl, "kv/d/?recurse")
    with opened(path) as file:
        curl.put("d/f", b"the third")
        until(lambda: content(path) == file() == b"the third")

        def answer(path, answer):
            if "/kv/d/" in path and "recurse" in path:
                asked.append(path)
                if "consistent" not in path and len(asked) < 9:
                    return lag(answer)
            return answer

        bending.answer = answer
        curl.put("d/g", b"y")  # who waits is answered, as of before
        while len(asked) < 9:
            assert content(path) == file() == b"the third", asked
            time.sleep(0.01)
            curl.put("d/g", os.urandom(4))
        curl.put("d/f", b"the fourth")
        until(lambda: content(path) == file() == b"the fourth")


def test_an_answer_of_a_server_that_lags_behind_is_not_shown_for_long(bending, curl):
    """Where that is allowed: no watch vouches for it, for the next change is none of it."""
    fill(curl, [f"d/k{number:03}" for number in range(400)], b"first")
    fill(curl, ["d/sub/x"])
    with Mount(bending.address, "consistency=stale") as mount:
        os.stat(mount.path / "d/k000")
        until_watched(bending, "d/")
        time.sleep(1)  # until what was read ahead is old
        (_, before), used = curl("GET", "kv/d/k399"), []
        curl.put("d/k399", b"second")
        time.sleep(1.5)  # until the watch was told

        def answer(path, answer):
            if "kv/d/k399" in path and not used:
                used.append(path)
                return *answer[:2], before
            return answer

        bending.answer = answer
        assert (mount.path / "d/k399").read_bytes() == b"first"
        assert used
        until(lambda: content(mount.path / "d/k399") == b"second")
