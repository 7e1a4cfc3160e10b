"""/_consulfs: what the mount says of itself is true, and names nothing that it holds."""

import contextlib
import errno
import json
import os
import subprocess
import time
from collections import Counter
from urllib.parse import urlsplit

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.catalog import clear_catalog, put_check, put_node
from support.errors import errno_of
from support.mount import COMMAND, Mount
from support.program import EX, UN, Programs
from support.sessions import destroy_session, give, make_session, take
from support.waiting import until

STALE = 2
"""Seconds after which a file tells of now."""

PROBES = ("_consulfs/stats", "_consulfs/metrics")

HITS, MISSES, ERRORS = "consulfs_cache_hits_total", "consulfs_cache_misses_total", "consulfs_operation_errors_total"
COUNT, REFUSED = "consulfs_request_seconds_count", "consulfs_request_errors_total"


def stats(mount):
    time.sleep(STALE)
    return json.loads((mount.path / "_consulfs/stats").read_text())


def samples(text):
    """(name, labels) -> number, of a whole and well-formed text of OpenMetrics."""
    assert text.endswith("# EOF\n")
    return {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


NO_ACLS = {"GET acl/token 401": 1}
"""The requests that fail of a mount of a Consul without ACLs, which is asked whether it has them."""


def kind(seen):
    """What a request is, without what it names: written down for those that these tests make."""
    known = {
        "/v1/agent/self": "agent/self",
        "/v1/acl/token/self": "acl/token",
        "/v1/status/leader": "status/leader",
        "/v1/catalog/services": "catalog/services",
        "/v1/catalog/nodes": "catalog/nodes",
        "/v1/health/state/any": "health/state",
        "/v1/txn": "txn",
    }
    path = urlsplit(seen.path).path
    return f"{seen.method} {'kv' if path.startswith('/v1/kv/') else known[path]}"


def options(mount):
    return (mount.path / "_consulfs/options").read_text().splitlines()


# -- version and options -------------------------------------------------------------------------------------


def test_version_is_what_the_command_says(mnt):
    said = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=True).stdout
    assert (mnt.path / "_consulfs/version").read_text() == said


def test_options_shows_the_defaults(agent, curl):
    with Mount(agent.address, "rw") as mount:
        assert options(mount) == [
            f"source=http://{agent.address}",
            "ro=no",
            "timeout=10",
            "exclusive=open",
            "locks=consul",
            "lock_ttl=15s",
            "lock_delay=15s",
            "virtual=visible",
            "acl_secrets=no",
            "dc_write=no",
            "cache_size=64M",
            "cache=watch",
            "consistency=default",
            "attr_timeout=1",
            "notify=on",
            "verify=yes",
            "allow_other=no",
            "umask=077",
            "dev_agent=no",
            "dev_port=0",
            "consul=consul",
            "log_level=warning",
            "nosuid",
            "nodev",
            "noexec",
        ]


def test_options_shows_what_was_given(agent, curl, tmp_path):
    given = (
        "ro,timeout=7.5,exclusive=close,locks=local,lock_ttl=1m,lock_delay=0s,virtual=hidden,acl_secrets,dc_write,"
        f"cache_size=3M,dc=dc1,verify=no,uid=12,gid=34,umask=027,log_level=debug,log_file={tmp_path}/log,noatime"
    )
    with Mount(agent.address, given) as mount:
        shown = options(mount)
    wanted = given.replace("1m", "60s").split(",")
    for flag in ("ro", "acl_secrets", "dc_write"):
        wanted[wanted.index(flag)] += "=yes"
    assert [each for each in wanted if each not in shown] == []
    assert [line.partition("=")[0] for line in shown if line not in wanted] == [
        "source", "cache", "consistency", "attr_timeout", "notify",
        "allow_other", "dev_agent", "dev_port", "consul", "nosuid", "nodev", "noexec",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("prefix", "given", "settled"),
    [("", "", "visible"), ("/app", "", "hidden"), ("/app", "visible", "visible"), ("", "hidden", "hidden")],
)
def test_options_shows_where_the_trees_are(agent, curl, prefix, given, settled):
    with Mount(agent.address + prefix, f"virtual={given}" if given else "rw") as mount:
        assert f"virtual={settled}" in options(mount)
        assert options(mount)[0] == f"source=http://{agent.address}" + (f"{prefix}/" if prefix else "")
        assert ("_consulfs" in os.listdir(mount.path)) == (settled == "visible")


# -- stats and metrics ---------------------------------------------------------------------------------------


def test_stats_and_metrics_say_the_same(mnt, curl):
    curl.put("d/f", b"x")
    mnt.ok("ls -l . d; cat d/f _status/leader; cat nothing || rm _status/leader || true")
    time.sleep(STALE)
    told, text = (mnt.path / PROBES[0]).read_bytes(), (mnt.path / PROBES[1]).read_text()
    flat = {}
    for name, value in json.loads(told).items():
        for label, number in value.items() if isinstance(value, dict) else [("", value)]:
            words = label.rsplit(" ", 1) if name in (ERRORS, REFUSED) else [label] if label else []
            flat[name, tuple(sorted(words))] = number
    found = samples(text)
    assert set(flat) == set(found)
    moving = {key for key in found if key[0].startswith("process_") or key == (HITS, ("virtual",))}
    moving |= {key for key in found if key == (MISSES, ("virtual",))}
    assert {key: flat[key] for key in set(flat) - moving} == {key: found[key] for key in set(found) - moving}
    assert found["process_resident_memory_bytes", ()] > 1 << 20
    assert json.loads(told)["process_resident_memory_bytes"] > 1 << 20
    assert json.dumps(json.loads(told), indent=2) + "\n" == told.decode()


def test_requests_are_counted_by_kind(counted, proxy, curl):
    curl.put("d/f", b"x")
    counted.ok("cat d/f; echo new > d/f; ls -l d; mv d/f d/g; rm d/g; cat _status/leader; ls _catalog/services")
    counted.ok("ls -l _health/any _catalog/nodes; cat nothing || true")
    found = stats(counted)
    wanted = Counter(kind(seen) for seen in proxy.requests if not seen.is_watch)
    assert found[COUNT] == wanted
    assert len(wanted) >= 8, wanted
    assert all(found["consulfs_request_seconds_sum"][each] > 0 for each in wanted)
    assert found[REFUSED] == NO_ACLS


def test_each_request_is_in_one_bucket(counted, proxy, curl):
    counted.ok("cat _status/leader")
    time.sleep(STALE)
    families = {each.name: each for each in text_string_to_metric_families((counted.path / PROBES[1]).read_text())}
    buckets = [
        sample
        for sample in families["consulfs_request_seconds"].samples
        if sample.name.endswith("_bucket") and sample.labels["kind"] == "GET status/leader"
    ]
    assert [sample.value for sample in buckets] == sorted(sample.value for sample in buckets)
    assert (buckets[-1].labels["le"], buckets[-1].value) == ("+Inf", 1)


def test_requests_that_fail_are_counted_by_status(proxy, curl):
    with Mount(proxy.address, "timeout=1,virtual=hidden") as mount:
        start = len(proxy.requests)
        proxy.fault = lambda seen: (500, b"no") if seen.path.startswith("/v1/status/leader") else None
        assert errno_of((mount.path / "_status/leader").read_bytes) == errno.EIO
        proxy.fault = lambda seen: "half" if seen.path.startswith("/v1/status/peers") else None
        assert errno_of((mount.path / "_status/peers").read_bytes) == errno.EIO
        proxy.fault = lambda seen: None
        asked = Counter(urlsplit(seen.path).path for seen in proxy.requests[start:])
        assert stats(mount)[REFUSED] == {
            **NO_ACLS,
            "GET status/leader 500": asked["/v1/status/leader"],
            "GET status/peers none": asked["/v1/status/peers"],
        }
        assert asked["/v1/status/leader"] > 1


def test_what_is_not_there_is_no_failed_request(counted, curl):
    assert errno_of(os.stat, counted.path / "nothing") == errno.ENOENT
    assert stats(counted)[REFUSED] == NO_ACLS


def test_errors_are_counted_by_operation_and_errno(mnt, curl):
    before = stats(mnt).get(ERRORS, {})
    for _ in range(3):
        assert errno_of(os.stat, mnt.path / "nothing") == errno.ENOENT
    for _ in range(2):
        assert errno_of(os.unlink, mnt.path / "_status/leader") == errno.EROFS
    assert errno_of(os.rmdir, mnt.path / "_status") == errno.EROFS
    assert errno_of(os.getxattr, mnt.path / "_status", "user.x") == errno.ENODATA
    after = stats(mnt)[ERRORS]
    assert {label: after[label] - before.get(label, 0) for label in after if after[label] != before.get(label)} == {
        "getattr ENOENT": 3,
        "unlink EROFS": 2,
        "rmdir EROFS": 1,
        "getxattr ENODATA": 1,
    }


def test_hits_and_misses_move(mnt, curl):
    curl.put("f", b"x" * 1000)
    first = stats(mnt)
    mnt.ok("cat f")
    second = stats(mnt)
    assert second[MISSES]["keys"] > first[MISSES]["keys"]
    assert first["consulfs_cache_bytes"] == 0
    until(lambda: mnt.ok("cat f") and json.loads((mnt.path / PROBES[0]).read_text())["consulfs_cache_bytes"] >= 1000)
    hits = second[HITS]
    for _ in range(5):  # what was known may run out between two looks
        mnt.ok("cat f f f f")
    assert stats(mnt)[HITS]["keys"] > hits["keys"]
    before = stats(mnt)
    mnt.ok("ls _catalog/nodes")
    after = stats(mnt)
    assert after[MISSES]["virtual"] >= before[MISSES]["virtual"] + 1
    assert after[HITS]["virtual"] >= before[HITS]["virtual"]


def test_a_lock_that_is_held_is_counted(mnt, curl):
    curl.put("f")
    assert stats(mnt)["consulfs_locks_held"] == 0
    with Programs() as programs:
        holder = programs(mnt)
        holder(EX)
        assert (stats(mnt)["consulfs_locks_held"], stats(mnt)["consulfs_open_files"]) == (1, 1)
        holder(UN)
        assert until(lambda: stats(mnt)["consulfs_locks_held"] == 0)
    assert until(lambda: stats(mnt)["consulfs_open_files"] == 0)


@pytest.fixture
def unwatched(agent, curl):
    """A mount without watches of directories."""
    with Mount(agent.address, "timeout=20,cache=ttl") as mount:
        yield mount


def test_a_watch_is_counted_while_a_program_waits_for_a_lock(unwatched, curl, contender):
    curl.put("f", b"theirs")
    take(curl, "f", contender, b"theirs", 0)
    assert stats(unwatched)["consulfs_watches"] == 0
    with Programs() as programs:
        waiter = programs(unwatched)
        waiter.begin(EX)
        assert until(lambda: stats(unwatched)["consulfs_watches"] == 1)
        assert stats(unwatched)["consulfs_locks_held"] == 0
        give(curl, "f", contender, b"theirs", 0)
        waiter.end()
        assert until(lambda: stats(unwatched)["consulfs_watches"] == 0)
        assert stats(unwatched)["consulfs_locks_held"] == 1


def test_no_label_names_anything(mnt, agent, curl):
    secret = "s3cret"
    keys = [f"{secret}", f"{secret}/%2F {secret}", f"v1/txn/{secret}", f"v1/{secret}/v1/{secret}", f"_dc/{secret}"]
    for key in keys:
        curl.put(key, secret.encode())
    put_node(curl, secret, Service={"ID": f"{secret}/id", "Service": secret})
    put_check(curl, secret, f"{secret}:c", "critical", ServiceID=f"{secret}/id")
    session = make_session(curl, Name=secret)
    try:
        mnt.sh("grep -r . . ; for tree in _agent _catalog _health _session _query _config; do grep -r . $tree; done")
        mnt.sh(f"echo x > {secret}; mkdir {secret}.d; mv {secret} {secret}.d/; cat {secret} _dc/{secret}/x")
        mnt.sh(f"setfattr -n user.{secret} -v x {secret}.d; getfattr -d {secret}.d; rm -r v1; cat _status/{secret}")
        mnt.sh(f"exec 9<>{secret}.d/{secret}; flock 9; echo {secret} > {secret}.d/other")
        seen = mnt.ok("find _health/any _catalog/services | grep -c s3cret")
        assert int(seen) >= 2
        time.sleep(STALE)
        for probe in PROBES:
            text = (mnt.path / probe).read_text()
            assert secret not in text
            assert session not in text
            assert "GET health/service" in text
    finally:
        destroy_session(curl, session)
        clear_catalog(curl)


# -- as files ------------------------------------------------------------------------------------------------


def test_they_are_files_like_others(mnt, curl, tmp_path):
    assert sorted(os.listdir(mnt.path / "_consulfs")) == ["metrics", "options", "stats", "version"]
    mnt.ok(f"cp _consulfs/* {tmp_path}/; cp -r _consulfs {tmp_path}/tree; tar cf {tmp_path}/tar _consulfs")
    for folder in (tmp_path, tmp_path / "tree"):
        assert json.loads((folder / "stats").read_text())["consulfs_watches"] == 0
        assert samples((folder / "metrics").read_text())
        assert (folder / "options").read_text() == "\n".join(options(mnt)) + "\n"
    assert mnt.ok("getfattr -d -m - _consulfs _consulfs/*") == ""
    assert mnt.ok("stat -c '%A %F' _consulfs/version _consulfs").splitlines() == [
        "-r--r--r-- regular file",
        "drwxr-xr-x directory",
    ]
    assert mnt.ok("stat -c %s _consulfs/version _consulfs/options").split() == [
        str(len((mnt.path / f"_consulfs/{name}").read_bytes())) for name in ("version", "options")
    ]
    for name in ("version", "options", "stats", "metrics"):
        assert errno_of((mnt.path / "_consulfs" / name).write_bytes, b"x") in (errno.EROFS, errno.EACCES)


def test_each_reader_has_a_snapshot(mnt, curl):
    for probe in PROBES:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(open(mnt.path / probe, "rb", buffering=0))
            size = os.fstat(first.fileno()).st_size
            half = first.read(size // 2)
            for _ in range(100):
                assert errno_of(os.stat, mnt.path / "nothing") == errno.ENOENT
            mnt.ok("ls _catalog/nodes _operator; cat _status/peers")
            time.sleep(STALE)
            second = stack.enter_context(open(mnt.path / probe, "rb", buffering=0))
            whole = second.read(1 << 20)
            rest = first.read(1 << 20)
            assert len(half + rest) == size
            assert os.pread(first.fileno(), 1 << 20, 0) == half + rest != whole
            for text in (half + rest, whole):
                assert json.loads(text) if probe.endswith("stats") else samples(text.decode())
