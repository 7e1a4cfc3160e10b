"""How many requests the virtual trees cost, counted between the mount and Consul; and how old what they show may be.

An answer lives a second, and a walk of 5,000 files takes longer than that. Three things hold at once: who walks asks
once, who looks again and again sees what is new, and what nobody could ask for twice is asked for once.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from support.acl import MASTER, make_policy
from support.agent import Agent
from support.catalog import put, put_all, remove_node
from support.curl import Curl
from support.mount import Mount
from support.polling import meanwhile, polled
from support.proxy import Once, Proxy, fewest
from support.registry import text_of
from support.waiting import until

BIG, MANY, NODES, SMALL = 5000, 400, 50, 20

SERVICES = SMALL + 3
"""The small ones, the big one, the one of many, and Consul itself."""

PATIENCE = 250
"""Seconds that a walk of 5,000 may take: some 20 on two cores, with a request of the kernel for each part of a path."""

STALE = 2.0
"""Seconds after which everything is asked for again: an answer's second, and what is pinned at its end."""

SLOW_STALE = 5.0
"""The same where Consul takes two seconds for an answer, which then counts for four."""


def node(name):
    return {"Node": {"Verb": "set", "Node": {"Node": name, "Address": "192.0.2.1"}}}


def service(name, service, number, port):
    entry = {"Service": service, "ID": f"{service}-{number}", "Port": port}
    return {"Service": {"Verb": "set", "Node": name, "Service": entry}}


def check(name, service, number, status="passing"):
    entry = {
        "Node": name,
        "CheckID": f"service:{service}-{number}",
        "Name": "alive",
        "Status": status,
        "ServiceID": f"{service}-{number}",
    }
    return {"Check": {"Verb": "set", "Check": entry}}


@pytest.fixture(scope="module")
def agent():
    """5,000 instances of a service on 50 nodes, each with a check; 400 of another; and 20 services with 3 instances."""
    with Agent() as agent:
        curl = Curl(agent.url)
        put_all(curl, *(node(f"n{number}") for number in range(NODES)))
        put_all(curl, *(service(f"n{number % NODES}", "big", number, number) for number in range(BIG)))
        put_all(curl, *(check(f"n{number % NODES}", "big", number) for number in range(BIG)))
        put_all(curl, *(service(f"n{number % NODES}", "many", number, number) for number in range(MANY)))
        small = [(f"s{number}", instance) for number in range(SMALL) for instance in range(3)]
        put_all(curl, *(service(f"n{instance}", name, instance, 80) for name, instance in small))
        until(lambda: len(curl.json("catalog/services")) == SERVICES)
        yield agent


def asked(count, part):
    """The requests whose path has this part."""
    return [seen for seen in count.requests if part in seen.path]


def name_of(row):
    return f"{row['Node']}:{row['ServiceID']}"


# -- a walk ------------------------------------------------------------------------------------------------------

SLOW_WALK = """
import os, time
names = os.listdir("_catalog/services/many")
for name in names:
    os.stat("_catalog/services/many/" + name)
    time.sleep(0.01)
print(len(names))
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("script", "shown"),
    [
        ("ls _catalog/services/big | wc -l", BIG),
        ("ls -l _catalog/services/big | wc -l", BIG + 1),
        ("ls _health/any | wc -l", BIG + 1),  # and the agent's own
        ("ls _health/service/big | wc -l", BIG),
        ("ls _health/checks/big | wc -l", BIG),
        ("tar cf - _catalog/services/many | tar tf - | wc -l", MANY + 1),
        ("cp -r _catalog/services/many {tmp}/copy && ls {tmp}/copy | wc -l", MANY),
        ("grep -rl many- _catalog/services/many | wc -l", MANY),
        (f"{sys.executable} -c '{SLOW_WALK}'", MANY),
    ],
)
def test_a_walk_of_many_asks_twice_however_long_it_takes(proxy, curl, tmp_path, script, shown):
    def walk():
        subprocess.run(["rm", "-rf", str(tmp_path / "copy")], check=True)
        with Mount(proxy.address) as mount, proxy.counting() as count:
            assert int(mount.ok(script.format(tmp=tmp_path), limit=PATIENCE)) == shown
        return count

    count = fewest(walk, least=2)
    assert len(count.requests) <= 2, count


def test_a_listing_of_5000_is_exact(counted, curl):
    expected = {name_of(row): len(text_of(row)) for row in curl.json("catalog/service/big")}
    with os.scandir(counted.path / "_catalog/services/big") as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries}
    assert len(sizes) == BIG
    assert sizes == expected


def test_what_tar_takes_of_many_is_exact(counted, curl):
    folder = counted.path / "_catalog/services"
    done = subprocess.run(["tar", "cf", "-", "many"], cwd=folder, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        found = {Path(each.name).name: archive.extractfile(each).read() for each in archive if each.isfile()}
    assert found == {name_of(row): text_of(row) for row in curl.json("catalog/service/many")}


@pytest.mark.parametrize(
    ("tree", "most"),
    [
        # The datacenters, the nodes, the services, and each service's instances.
        ("_catalog", 3 + SERVICES),
        # Four states; the nodes and the checks of each; the services, and the checks and the health of each.
        ("_health", 4 + 1 + (NODES + 1) + 1 + 2 * SERVICES),
        # One list of the sessions is for all nodes.
        ("_session", 2),
    ],
)
def test_find_asks_once_for_each_directory(counted, proxy, curl, tree, most):
    with proxy.counting() as count:
        found = counted.ok(f"find {tree}").splitlines()
    assert len(found) == len(set(found)) > NODES
    # What leads to a directory, such as the list of the services, is asked for again each second.
    assert len(count.requests) <= most + 2 * count.expiries, count


def resident(mount):
    """Bytes of memory that the mount has."""
    samples = dict(line.rsplit(" ", 1) for line in mount.ok("cat _consulfs/metrics").splitlines() if line[0] != "#")
    return float(samples["process_resident_memory_bytes"])


def test_memory_does_not_grow_with_each_listing_and_not_while_nothing_happens(mnt):
    def listings(number):
        for _ in range(number):
            assert len(mnt.ok("ls _catalog/services/big").splitlines()) == BIG
            time.sleep(0.5)  # a listing is kept for a moment, each for its program
        return resident(mnt)

    settled, after = listings(8), listings(16)
    # An answer of 5,000 instances is some 10 MB of objects, and 10 more where they are read: what stayed would show.
    assert after - settled < 28 << 20, (settled, after)
    time.sleep(STALE)
    assert resident(mnt) < after + (4 << 20)


# -- many at once ------------------------------------------------------------------------------------------------


AT_ONCE = """
for n in $(seq 20); do
    cat _status/leader & ls _catalog/nodes & ls _session/node/n$n & ls _catalog/services/s1 &
done >/dev/null
wait
"""


def test_programs_that_ask_at_once_ask_once(counted, proxy, curl):
    """The kernel reads a directory for one after another, and a name that it knows for all at once."""
    counted.ok("cat _status/leader")
    proxy.fault = lambda seen: 2.0  # so that the last one asks before the first has its answer

    def at_once():
        time.sleep(SLOW_STALE)
        with proxy.counting() as count:
            counted.ok(AT_ONCE)
        return count

    once = ["catalog/nodes", "catalog/service/s1", "catalog/services", "session/list", "status/leader"]
    count = fewest(at_once, least=len(once))
    assert sorted(seen.path for seen in count.requests) == [f"/v1/{each}" for each in once], count


def test_many_looks_within_a_second_ask_once(counted, proxy, curl):
    def looks():
        time.sleep(STALE)
        with proxy.counting() as count:
            counted.ok("for n in $(seq 100); do cat _status/leader; done")
        return count

    def after(seconds):
        def look():
            counted.ok("cat _status/leader")
            time.sleep(seconds)
            with proxy.counting() as count:
                counted.ok("cat _status/leader")
            return count

        return look

    count = fewest(looks, least=1)
    assert len(count.requests) <= 1 + count.expiries, count
    assert len(fewest(after(0), least=0).requests) == 0
    assert len(fewest(after(STALE), least=1).requests) == 1


# -- what is new -------------------------------------------------------------------------------------------------


def test_polling_does_not_keep_an_answer_alive(counted, proxy, curl):
    path = counted.path / "_health/critical"
    leaf = counted.path / "_catalog/services/s1/n0:s1-0"
    for look, part in ((lambda: os.listdir(path), "health/state"), (leaf.read_bytes, "catalog/service/s1")):
        with proxy.counting() as count:
            for _ in range(40):
                look()
                time.sleep(0.1)
        assert 2 <= len(asked(count, part)) <= 1 + count.seconds, count


def change_port(curl, number, port):
    put_all(curl, service(f"n{number % NODES}", "big", number, port))
    until(lambda: [row["ServicePort"] for row in instance(curl, number)] == [port])


def instance(curl, number):
    return [row for row in curl.json("catalog/service/big") if row["ServiceID"] == f"big-{number}"]


@pytest.mark.parametrize("script", ["true", "ls -l _catalog/services/many", "ls _catalog/services/big"])
def test_a_polled_name_among_5000_is_renewed(mnt, curl, script):
    """However long Consul takes for them, which counts for more than two seconds where it is slow."""
    path = mnt.path / "_catalog/services/big/n7:big-7"
    mnt.ok("ls _catalog/services/big >/dev/null")
    with polled(path), meanwhile(lambda: mnt.ok(script)):
        for port in (10001, 10002):
            change_port(curl, 7, port)
            until(lambda port=port: json.loads(path.read_bytes())["ServicePort"] == port)


def test_a_polled_name_among_few_is_never_older_than_two_seconds(mnt, curl):
    path = mnt.path / "_catalog/services/s4/n0:s4-0"
    with polled(path, path.parent):
        for port in (10001, 10002, 10003):
            put_all(curl, service("n0", "s4", 0, port))
            until(lambda port=port: port in [row["ServicePort"] for row in curl.json("catalog/service/s4")])
            time.sleep(2)
            assert json.loads(path.read_bytes())["ServicePort"] == port


def test_a_name_that_another_program_walks_towards_is_new(mnt, curl):
    """Who walks may see what the listing held; who does not walk gets what is there."""
    last = sorted(os.listdir(mnt.path / "_catalog/services/big"))[-1]
    number = int(last.rpartition("-")[2])
    walk = """
import os, time
names = os.listdir("_catalog/services/big")
print("listed", flush=True)
for name in names:
    os.stat("_catalog/services/big/" + name)
    time.sleep(0.004)
"""
    walker = subprocess.Popen([sys.executable, "-c", walk], cwd=mnt.path, stdout=subprocess.PIPE)
    try:
        assert walker.stdout.readline() == b"listed\n"
        change_port(curl, number, 10005)
        until(lambda: json.loads(mnt.ok(f"cat _catalog/services/big/{last}"))["ServicePort"] == 10005)
        assert walker.poll() is None
    finally:
        walker.kill()
        walker.wait()
        walker.stdout.close()


def test_a_directory_that_is_polled_goes_with_what_it_stands_for(mnt, curl):
    put_all(curl, service("n1", "passing-by", 0, 80))
    path = mnt.path / "_catalog/services/passing-by"
    until(path.is_dir)
    with polled(path):
        time.sleep(1)
        remove_node(curl, "n1", ServiceID="passing-by-0")
        until(lambda: "passing-by" not in curl.json("catalog/services"))
        time.sleep(2)
        assert not path.exists()


# -- what the server has -----------------------------------------------------------------------------------------

PROBES = ("/v1/acl/token/self", "/v1/coordinate/nodes", "/v1/connect/intentions")


def probes(count):
    return sorted(seen.path.split("?")[0] for seen in count.requests if not seen.path.startswith(("/v1/kv", "/v1/txn")))


def test_a_listing_of_the_root_asks_once_what_the_server_has(proxy, curl):
    with Mount(proxy.address, "timeout=20") as mount:
        with proxy.counting() as count:
            assert "_catalog" in mount.ok("ls").split()
        assert probes(count) == sorted(PROBES)
        time.sleep(STALE)
        with proxy.counting() as count:
            assert "_catalog" in mount.ok("ls; ls -l").split()
        assert set(probes(count)) <= {PROBES[0]}  # what is lacking, as ACLs are, is looked for again after ten seconds


def test_a_listing_of_keys_alone_asks_nothing_else(proxy, curl):
    curl.put("app/key", b"x")
    for source, options in (
        (f"{proxy.address}/app", "timeout=20"),
        (proxy.address, "timeout=20,virtual=hidden"),
        (proxy.address, "timeout=20,virtual=off"),
    ):
        with Mount(source, options) as mount, proxy.counting() as count:
            mount.ok("ls -l; find . >/dev/null")
        assert probes(count) == []
        assert count.requests


def test_what_a_token_may_not_see_is_asked_for_once_too(guarded, admin):
    """It is there, and its listing is refused; a listing of the root does not ask each time whether it is."""
    with Proxy(guarded.port) as proxy, Mount(proxy.address, "timeout=20") as mount:
        assert "_intention" in mount.sh("ls").stdout.split()
        time.sleep(STALE)
        with proxy.counting() as count:
            assert "_intention" in mount.sh("ls").stdout.split()
        assert probes(count) == []


# -- what a row does not hold ------------------------------------------------------------------------------------


@pytest.fixture
def manager(guarded, admin, tmp_path):
    """A mount that may see everything, and the proxy that it talks through."""
    path = tmp_path / "token"
    path.write_text(MASTER)
    path.chmod(0o600)
    with Proxy(guarded.port) as proxy, Mount(proxy.address, f"timeout=20,token_file={path}") as mount:
        yield proxy, mount


def test_a_policy_is_read_again_when_it_has_changed(guarded, admin, manager):
    proxy, mount = manager
    made = [make_policy(admin, f'key "k{number}" {{ policy = "read" }}')["ID"] for number in range(5)]
    names = {each["ID"]: each["Name"] for each in admin.json("acl/policies")}
    with proxy.counting() as count:
        mount.ok("ls -l _acl/policies")
    assert len(asked(count, "/v1/acl/policy/")) == len(names), count
    time.sleep(STALE)
    with proxy.counting() as count:
        mount.ok("ls -l _acl/policies; grep -r key _acl/policies")
    assert asked(count, "/v1/acl/policy/") == []
    rules = 'key "other" { policy = "write" }'
    body = {"ID": made[2], "Name": names[made[2]], "Rules": rules}
    put(admin, f"acl/policy/{made[2]}", body)
    until(lambda: admin.json(f"acl/policy/{made[2]}")["Rules"] == rules)
    time.sleep(2)
    with proxy.counting() as count:
        mount.ok("ls -l _acl/policies")
        assert json.loads(mount.ok(f"cat _acl/policies/{names[made[2]]}"))["Rules"] == rules
    assert [seen.path.split("?")[0] for seen in asked(count, "/v1/acl/policy/")] == [f"/v1/acl/policy/{made[2]}"]
    for each in made:
        assert admin("DELETE", f"acl/policy/{each}")[0] == 200


def test_programs_that_read_a_policy_at_once_ask_once(guarded, admin, manager):
    proxy, mount = manager
    made = make_policy(admin, 'key "k" { policy = "read" }')["ID"]
    name = admin.json(f"acl/policy/{made}")["Name"]
    mount.ok(f"cat _acl/policies/{name}")  # a name that the kernel knows is looked up by all at once
    put(admin, f"acl/policy/{made}", {"ID": made, "Name": name})
    time.sleep(STALE)
    proxy.fault = lambda seen: 2.0  # so that the last one looks before the first has its answer
    with proxy.counting() as count:
        mount.ok(f"for n in $(seq 20); do cat _acl/policies/{name} & done; wait")
    assert len(asked(count, "/v1/acl/policy/")) == 1, count
    assert admin("DELETE", f"acl/policy/{made}")[0] == 200


# -- errors ------------------------------------------------------------------------------------------------------


def test_a_request_that_fails_once_is_made_again(counted, proxy, curl):
    proxy.fault = fault = Once(lambda seen: "catalog/service/s3" in seen.path, (500, b"rpc error: not now"))
    assert counted.ok("ls _catalog/services/s3").split() == ["n0:s3-0", "n1:s3-1", "n2:s3-2"]
    assert fault.done


def test_an_error_is_kept_for_a_second_and_no_longer(proxy, curl):
    scripts = ("cat _status/leader", "ls _catalog/nodes", "ls _catalog/services", "ls _coordinate/nodes")
    with Mount(proxy.address, "timeout=4") as mount:
        proxy.fault = lambda seen: (500, b"rpc error: not now") if "/v1/kv" not in seen.path else None
        told = mount.sh("; ".join(f"{script} &" for script in scripts).replace(" &;", " &") + " wait").stderr
        assert [line.rpartition(": ")[2] for line in told.splitlines()] == len(scripts) * ["Input/output error"]
        proxy.fault = lambda seen: None
        time.sleep(1)
        assert mount.ok("cat _status/leader").strip() == curl.json("status/leader")
        assert set(mount.ok("ls _catalog/nodes").split()) == {each["Node"] for each in curl.json("catalog/nodes")}
        assert set(mount.ok("ls _catalog/services").split()) == set(curl.json("catalog/services"))
        assert mount.ok("ls _coordinate/nodes").split() == [each["Node"] for each in curl.json("coordinate/nodes")]
