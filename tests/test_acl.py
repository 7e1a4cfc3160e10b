"""A Consul with ACLs: what the token may not do fails at once, and is seen by the shell."""

import errno
import json
import os

import pytest
from support.acl import make_policy, make_token
from support.mount import Mount

RULES = """
key_prefix "open/" { policy = "write" }
key_prefix "read/" { policy = "read" }
key_prefix "mixed/" { policy = "read" }
key_prefix "mixed/secret" { policy = "deny" }
key "deep/down/here" { policy = "write" }
"""


@pytest.fixture
def token_file(admin, tmp_path):
    path = tmp_path / "token"
    path.write_text(make_token(admin, RULES) + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def limited(guarded, admin, token_file):
    for key in ("open/f", "read/f", "mixed/f", "mixed/secret", "closed/f", "deep/down/here"):
        admin.put(key, b"text", flags=2)
    with Mount(guarded.address, f"token_file={token_file}") as mount:
        yield mount


def test_what_is_allowed_works(limited, admin):
    limited.ok("cat open/f read/f; echo new > open/f; echo x > open/g; mkdir open/d; mv open/g open/d/; rm -r open/d")
    assert (admin.get("open/f"), admin.flags("open/f")) == (b"new\n", 2)


@pytest.mark.parametrize(
    "script",
    [
        "echo x > read/f",
        "echo x >> read/f",
        "echo x > read/new",
        "echo x > mixed/f",
        ": > read/f",
        "rm -f read/f",
        "mv read/f read/g",
        "mv read/f open/h",
        "mkdir read/d",
        "truncate -s 0 read/f",
        "setfattr -n user.consul.flags -v 9 read/f",
        "cat mixed/secret",
        "echo x > mixed/secret",
        "ls -l mixed/secret",
    ],
)
def test_what_is_not_allowed_is_refused(limited, admin, script):
    before = {key: admin.record(key) for key in list(admin.keys())}
    done = limited.sh(script)
    assert done.returncode != 0
    assert "Permission denied" in done.stderr
    assert {key: admin.record(key) for key in list(admin.keys())} == before


def test_hidden_keys_are_not_listed_and_the_rest_is(limited):
    assert sorted(os.listdir(limited.path / "mixed")) == ["f"]
    assert limited.ok("ls -l mixed | wc -l").strip() == "2"
    assert "closed" not in os.listdir(limited.path)


def test_a_key_below_hidden_prefixes_is_reached_by_name(limited, admin):
    assert limited.ok("cat deep/down/here") == "text"
    limited.ok("echo new > deep/down/here")
    assert admin.get("deep/down/here") == b"new\n"


def test_a_transaction_that_leaves_hidden_keys_out(guarded, admin, token_file):
    # A listing that was read with more rights than the batch of gets behind it: match the results by key.
    from consulfs.consulate import Consul

    for number in range(5):
        admin.put(f"mixed/k{number}", b"%d" % number)
    consul = Consul("127.0.0.1", guarded.port, token=token_file.read_text().strip(), timeout=10)
    found = consul.kv.read_many(["mixed/k0", "mixed/secret", "mixed/k4", "mixed/none"])
    assert {key: record.value for key, record in found.items()} == {"mixed/k0": b"0", "mixed/k4": b"4"}


def test_without_a_right_to_list(limited):
    with pytest.raises(OSError) as caught:
        os.stat(limited.path / "closed/f")
    assert caught.value.errno in (errno.EACCES, errno.ENOENT)


def test_an_unknown_token(guarded, admin, tmp_path):
    mount = Mount(guarded.address, "token=99999999-2222-3333-4444-555555555555")
    with pytest.raises(RuntimeError, match="does not know this token"):
        mount.__enter__()


def test_the_token_is_shown_nowhere(guarded, admin, token_file):
    secret = token_file.read_text().strip()
    with Mount(guarded.address, f"token_file={token_file},log_level=debug") as mount:
        mount.ok("cat nothing 2>/dev/null; echo x > read/y 2>/dev/null; echo x > open/y; ls")
        shown = open("/proc/mounts").read() + mount.log_text()
        shown += open(f"/proc/{mount.process.pid}/cmdline").read()
        assert secret not in shown


def test_requests_are_counted_with_acls_too(guarded, admin, token_file):
    from support.proxy import Proxy

    for number in range(200):
        admin.put(f"open/d/k{number}", b"text")
    with Proxy(guarded.port) as proxy, Mount(proxy.address, f"token_file={token_file}") as mount:
        with proxy.counting() as count:
            assert len(mount.ok("ls -l open/d").splitlines()) == 201
        assert len(count.requests) <= 16 + 4 * count.expiries, count
        with proxy.counting() as count:
            mount.ok("cd open/d; echo x > k1; echo x > k2")
        assert count.writes == 2, count


def test_nobody_in_particular_may_mount_what_anonymous_may_read(guarded, admin):
    rules = 'key_prefix "open/" { policy = "read" }'
    anonymous = "00000000-0000-0000-0000-000000000002"
    body = {"AccessorID": anonymous, "Policies": [make_policy(admin, rules)]}
    assert admin("PUT", f"acl/token/{anonymous}", json.dumps(body).encode())[0] == 200
    admin.put("open/f", b"text")
    try:
        with Mount(guarded.address) as mount:
            assert mount.ok("cat open/f") == "text"
            assert "Permission denied" in mount.sh("echo x > open/f").stderr
    finally:
        admin("PUT", f"acl/token/{anonymous}", json.dumps({"AccessorID": anonymous, "Policies": []}).encode())


def test_a_token_file_of_two_lines(guarded, tmp_path):
    path = tmp_path / "token"
    path.write_text("s3cret-one\ns3cret-two\n")
    mount = Mount(guarded.address, f"token_file={path}")
    with pytest.raises(RuntimeError, match="one line") as caught:
        mount.__enter__()
    assert "s3cret" not in str(caught.value)


def test_where_authorize_is_missing(guarded, admin, token_file):
    """An older server without the internal endpoint: a compare-and-set that cannot match tells the rights."""
    from support.proxy import Proxy

    admin.put("read/f", b"text")
    admin.put("open/f", b"text")
    with Proxy(guarded.port) as proxy:
        proxy.fault = lambda seen: (404, b"no such endpoint") if "internal/acl" in seen.path else None
        with Mount(proxy.address, f"token_file={token_file}") as mount:
            assert "Permission denied" in mount.sh("echo x > read/f").stderr
            mount.ok("echo x > open/f")
    assert (admin.get("read/f"), admin.get("open/f")) == (b"text", b"x\n")
