"""/_acl: what Consul says of access control, without the secrets; and those are nowhere else in a mount either."""

import base64
import errno
import json
import os
import stat
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.acl import MASTER, guarded_agent, make, make_policy
from support.agent import consul_command
from support.curl import Curl
from support.errors import errno_of
from support.mount import COMMAND, Mount
from support.proxy import Proxy
from support.registry import text_of
from support.waiting import until

STALE = 2
"""Seconds after which a file tells of now."""

AGENTS_OWN = {
    "agent": "aaaaaaaa-1111-2222-3333-444444444444",
    "agent_master": "bbbbbbbb-1111-2222-3333-444444444444",
    "replication": "cccccccc-1111-2222-3333-444444444444",
}

PASSWORD = "s3cret-password"

KEYS_ONLY = 'key_prefix "" { policy = "write" }'

TREES = "_acl _agent _catalog _config _coordinate _event _health _intention _operator _query _session _status".split()


@pytest.fixture(scope="module")
def gossip_key():
    return subprocess.run([consul_command(), "keygen"], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def guarded(gossip_key):
    """Its agent has every kind of secret."""
    with guarded_agent(AGENTS_OWN, encrypt=gossip_key) as agent:
        yield agent


class Cluster:
    """Tokens, policies, roles and what else has a secret; `secrets` are all of them, by what they are."""

    def __init__(self, url: str, gossip_key: str) -> None:
        self.curl = curl = Curl(url, MASTER)
        self.policy = make(curl, "acl/policy", Name="Ops-1_x", Description="ü", Rules=KEYS_ONLY, Datacenters=["dc1"])
        for number in range(4):
            make_policy(curl, f'service "s{number}" {{ policy = "read" }}')
        self.role = make(curl, "acl/role", Name="role-1", Description="ä/%", Policies=[{"ID": self.policy["ID"]}])
        make(curl, "acl/role", Name="Role_2", ServiceIdentities=[{"ServiceName": "web"}])
        self.root = make(curl, "acl/token", Policies=[{"Name": "global-management"}], Description="who mounts")
        self.other = make(
            curl, "acl/token", Roles=[{"Name": "role-1"}], ServiceIdentities=[{"ServiceName": "db"}], Local=True
        )
        self.keys_only = make(curl, "acl/token", Policies=[{"ID": self.policy["ID"]}], Description="keys only")
        self.legacy = make(curl, "acl/create", Name="old", Type="client", Rules='key "" { policy = "read" }')["ID"]
        # The leader gives it an AccessorID a moment later, and changes it by that.
        until(lambda: any(each.get("Legacy") and each["AccessorID"] for each in curl.json("acl/tokens")))
        status, text = curl("POST", "query", json.dumps(self.query(self.other["SecretID"])).encode())
        assert status == 200, text
        self.queried = json.loads(text)["ID"]
        self.secrets = {
            "master": MASTER,
            **AGENTS_OWN,
            "gossip key": gossip_key,
            "legacy": self.legacy,
            "own token": self.root["SecretID"],
            "another token, and the query's": self.other["SecretID"],
            "a third token": self.keys_only["SecretID"],
            "password": PASSWORD,
        }

    @staticmethod
    def query(token: str) -> dict:
        return {"Name": "lookup", "Token": token, "Service": {"Service": "web", "OnlyPassing": True}}

    def by_itself(self, what: str, identity: str) -> dict:
        return self.curl.json(f"acl/{what}/{identity}")


@pytest.fixture(scope="module")
def cluster(guarded, gossip_key):
    return Cluster(guarded.url, gossip_key)


def written(path: Path, secret: str) -> Path:
    path.write_text(secret + "\n")
    path.chmod(0o600)
    return path


@contextmanager
def mounted(address, tmp_path, secret, *options):
    """A mount of everything, by a token in a file."""
    words = [f"token_file={written(tmp_path / 'token', secret)}", "timeout=20", *options]
    with Mount(address, ",".join(words)) as mount:
        yield mount


@pytest.fixture
def root(guarded, cluster, tmp_path):
    """A mount by who may do everything."""
    with mounted(guarded.address, tmp_path, cluster.root["SecretID"]) as mount:
        yield mount


@pytest.fixture
def unveiled(guarded, cluster, tmp_path):
    with mounted(guarded.address, tmp_path, cluster.root["SecretID"], "acl_secrets") as mount:
        yield mount


def without_secret(row):
    return {name: value for name, value in row.items() if name != "SecretID"}


def files(folder):
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


# -- the files -----------------------------------------------------------------------------------------------


def test_tokens_are_as_consul_lists_them_without_their_secrets(root, cluster):
    listed = cluster.curl.json("acl/tokens")
    wanted = {each["AccessorID"]: text_of(without_secret(each)) for each in listed}
    assert files(root.path / "_acl/tokens") == wanted
    assert len(wanted) >= 6
    own = json.loads(wanted[cluster.other["AccessorID"]])
    assert own == {**without_secret(cluster.by_itself("token", cluster.other["AccessorID"]))}


def test_the_secrets_of_a_later_consul_are_left_out_too(guarded, cluster, tmp_path):
    """Later versions list tokens with their SecretIDs; 1.8 does not."""
    whole = [cluster.by_itself("token", each["AccessorID"]) for each in cluster.curl.json("acl/tokens")]
    later = json.dumps(whole).encode()
    with Proxy(guarded.port) as proxy, mounted(proxy.address, tmp_path, cluster.root["SecretID"]) as mount:
        proxy.fault = lambda seen: (200, later) if seen.path.startswith("/v1/acl/tokens") else None
        assert files(mount.path / "_acl/tokens") == {
            each["AccessorID"]: text_of(without_secret(each)) for each in whole
        }
        assert all(each["SecretID"] for each in whole)


def test_policies_are_as_consul_gives_each_with_its_rules(root, cluster):
    wanted = {
        each["Name"]: text_of(cluster.by_itself("policy", each["ID"])) for each in cluster.curl.json("acl/policies")
    }
    assert files(root.path / "_acl/policies") == wanted
    assert json.loads(wanted["Ops-1_x"])["Rules"] == KEYS_ONLY
    assert '"ü"' in wanted["Ops-1_x"].decode()


def test_a_policy_that_changes_is_read_anew(root, cluster):
    made = make(cluster.curl, "acl/policy", Name="changing", Rules=KEYS_ONLY)
    path = root.path / "_acl/policies/changing"
    assert json.loads(path.read_text())["Rules"] == KEYS_ONLY
    changed = make(cluster.curl, f"acl/policy/{made['ID']}", Name="changing", Rules='node "x" { policy = "read" }')
    time.sleep(STALE)
    assert json.loads(path.read_text()) == changed == cluster.by_itself("policy", made["ID"])
    assert cluster.curl("DELETE", f"acl/policy/{made['ID']}")[0] == 200
    time.sleep(STALE)
    assert errno_of(path.read_text) == errno.ENOENT
    assert "changing" not in os.listdir(path.parent)


def test_roles_are_as_consul_gives_them(root, cluster):
    wanted = {each["Name"]: text_of(each) for each in cluster.curl.json("acl/roles")}
    assert files(root.path / "_acl/roles") == wanted
    assert set(wanted) == {"role-1", "Role_2"}
    assert json.loads(wanted["role-1"]) == cluster.by_itself("role", cluster.role["ID"])


def test_self_and_replication_are_as_consul_gives_them(root, cluster, guarded):
    own = Curl(guarded.url, cluster.root["SecretID"])
    assert (root.path / "_acl/self").read_bytes() == text_of(without_secret(own.json("acl/token/self")))
    assert (root.path / "_acl/replication").read_bytes() == text_of(own.json("acl/replication"))
    assert sorted(os.listdir(root.path / "_acl")) == ["policies", "replication", "roles", "self", "tokens"]


def test_a_query_is_as_consul_gives_it_without_its_token(root, cluster):
    (row,) = cluster.curl.json("query")
    assert row.pop("Token") == cluster.other["SecretID"]
    assert files(root.path / "_query") == {"lookup": text_of(row)}


def test_they_are_their_owners_alone(root, cluster):
    for folder, _, names in os.walk(root.path / "_acl"):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700, folder
        for name in names:
            found = os.stat(os.path.join(folder, name))
            assert stat.S_IMODE(found.st_mode) == 0o400, name
            assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())
            assert found.st_size == len(Path(folder, name).read_bytes())
    assert stat.S_IMODE(os.stat(root.path / "_catalog").st_mode) == 0o755


@pytest.mark.root
def test_another_user_gets_none_of_it(guarded, cluster, tmp_path):
    with mounted(guarded.address, tmp_path, cluster.root["SecretID"], "allow_other", "umask=022") as mount:
        nobody = {"user": 65534, "group": 65534, "extra_groups": []}
        accessor = cluster.other["AccessorID"]
        for script in ("ls _acl", "cat _acl/self", f"cat _acl/tokens/{accessor}", "ls _acl/policies", "cd _acl"):
            done = mount.sh(script, **nobody)
            assert done.returncode != 0, script
            assert "Permission denied" in done.stderr
            assert done.stdout == ""
        assert "consul" in mount.ok("ls _catalog/services", **nobody)
        assert "drwx------" in mount.ok("ls -l | grep _acl", **nobody)
        assert accessor in mount.ok("ls _acl/tokens")


def test_without_acls_there_is_no_such_tree(agent, curl):
    with Mount(agent.address, "timeout=20") as mount:
        done = mount.sh("ls -la")
        assert (done.returncode, done.stderr) == (0, "")
        assert "_acl" not in done.stdout
        assert "_catalog" in done.stdout
        assert errno_of(os.stat, mount.path / "_acl") == errno.ENOENT
        assert errno_of(os.listdir, mount.path / "_acl/tokens") == errno.ENOENT
        assert "_acl" not in mount.log_text()


@pytest.mark.parametrize(("status", "name"), [(404, "roles"), (410, "list"), (404, "replication")])
def test_what_the_server_lacks_is_absent(guarded, cluster, tmp_path, status, name):
    with Proxy(guarded.port) as proxy:
        proxy.fault = lambda seen: (status, b"") if seen.path.startswith(f"/v1/acl/{name}") else None
        with mounted(proxy.address, tmp_path, cluster.root["SecretID"], "acl_secrets") as mount:
            done = mount.sh("ls -l _acl")
            assert (done.returncode, done.stderr) == (0, "")
            wanted = {"policies", "replication", "roles", "self", "tokens", "list"} - {name}
            assert set(os.listdir(mount.path / "_acl")) == wanted
            assert errno_of(os.stat, mount.path / "_acl" / name) == errno.ENOENT


# -- acl_secrets ---------------------------------------------------------------------------------------------


def test_acl_secrets_shows_the_tokens_whole(unveiled, cluster):
    accessors = [each["AccessorID"] for each in cluster.curl.json("acl/tokens")]
    wanted = {each: text_of(cluster.by_itself("token", each)) for each in accessors}
    assert files(unveiled.path / "_acl/tokens") == wanted
    assert json.loads(wanted[cluster.other["AccessorID"]])["SecretID"] == cluster.other["SecretID"]
    own = json.loads((unveiled.path / "_acl/self").read_text())
    assert own == cluster.by_itself("token", cluster.root["AccessorID"])
    assert stat.S_IMODE(os.stat(unveiled.path / "_acl/self").st_mode) == 0o400


def test_acl_secrets_shows_legacy_acls(unveiled, cluster):
    listed = cluster.curl.json("acl/list")
    assert files(unveiled.path / "_acl/list") == {each["ID"]: text_of(each) for each in listed}
    assert cluster.legacy in {each["ID"] for each in listed}
    assert stat.S_IMODE(os.stat(unveiled.path / "_acl/list" / cluster.legacy).st_mode) == 0o400
    assert stat.S_IMODE(os.stat(unveiled.path / "_acl/list").st_mode) == 0o700


def test_acl_secrets_shows_the_tokens_of_queries(unveiled, cluster):
    (row,) = cluster.curl.json("query")
    assert files(unveiled.path / "_query") == {"lookup": text_of(row)}
    assert row["Token"] == cluster.other["SecretID"]


def test_legacy_acls_are_not_there_otherwise(root, cluster):
    for path in ("_acl/list", f"_acl/list/{cluster.legacy}"):
        assert errno_of(os.stat, root.path / path) == errno.ENOENT
    assert cluster.legacy not in root.log_text()


# -- no secret anywhere --------------------------------------------------------------------------------------


def forms(secret):
    """A secret as it is, and as headers, URLs and JSON have it."""
    return {secret, base64.b64encode(secret.encode()).decode(), secret.replace("/", "%2F").replace("=", "%3D")}


def found_in(text, secrets):
    lower = text.lower()
    return [what for what, secret in secrets.items() if any(form.lower() in lower for form in forms(secret))]


def look_everywhere(mount, secrets, patterns):
    """What of it stands in a file or a name of the mount, in its log, or in what the system tells of it."""
    patterns.write_text("".join(f"{form}\n" for secret in secrets.values() for form in forms(secret)))
    everything = f"{' '.join(TREES)} _consulfs _dc ."
    done = mount.sh(f"grep -raiFf {patterns} {everything}")
    shown = {
        "contents": done.stdout + done.stderr,
        "names": mount.sh(f"find {everything}; getfattr -d k").stdout,
        "options": (mount.path / "_consulfs/options").read_text(),
        "mounts": Path("/proc/mounts").read_text() + subprocess.run("mount", capture_output=True, text=True).stdout,
        "what it has said": mount.log_text(),
    }
    assert "_status/leader" in shown["names"]
    assert "_consulfs/stats" in shown["names"]
    return {where: found for where, text in shown.items() if (found := found_in(text, secrets))}


def provoke(mount, proxy, token):
    """Have everything go wrong that can, so that the log has something to say."""
    mount.sh(
        "echo x > _acl/self; rm -rf _acl _query; mkdir _acl/tokens/x; mv _acl/self k; touch _acl/list; cat nothing"
    )
    mount.sh(f"cat {token}; cat _acl/list/{token}; setfattr -n user.consul.flags -v {token} k; mkdir {token}/x/y")
    echoes = [
        token.encode(),
        b'{"X-Consul-Token": "' + token.encode(),
        b"<html>" + token.encode() * 3,
        json.dumps(token).encode()[:-1],
        b"x" * 190 + token.encode(),  # 200 bytes of an answer are quoted, and 500 of an error
        b"x" * 490 + token.encode(),
        b"rpc error: Permission denied: token " + token.encode(),
    ]
    left = [(status, echo) for status in (200, 301, 400, 403, 404, 409, 413, 429, 500, 502) for echo in echoes]
    proxy.fault = lambda seen: left.pop() if left else None
    until(lambda: mount.sh("cat k _acl/self _status/* _agent/self; ls . _* _acl/* _catalog/* _health/*") and not left)
    for fault in ("half", "half chunked", "drop", "cut"):
        proxy.fault = lambda seen, fault=fault: fault
        time.sleep(STALE)
        mount.sh("cat k; ls . _acl/tokens _acl/policies _query; echo x > k; cat _acl/self")
    proxy.fault = lambda seen: None


HOW = {
    "in argv": ("token={token},auth=user:{password}", ()),
    "in a file": ("token_file={file}", ("CONSUL_HTTP_AUTH=user:{password}",)),
    "in the environment": ("ro", ("CONSUL_HTTP_TOKEN={token}", "CONSUL_HTTP_AUTH=user:{password}")),
    "in a file of the environment": ("auth=user:{password}", ("CONSUL_HTTP_TOKEN_FILE={file}",)),
}


@contextmanager
def logging(address, cluster, tmp_path, how, more):
    """A mount that logs all it can into a file, by secrets that are given to it in one of these ways."""
    token = cluster.root["SecretID"]
    given = {"token": token, "password": PASSWORD, "file": written(tmp_path / "token", token)}
    words, variables = HOW[how]
    options = f"{words},{more},log_level=debug,log_file={tmp_path}/log".format(**given)
    with Mount(address, options, ("env", *(each.format(**given) for each in variables), COMMAND)) as mount:
        yield mount


def secrets_of(cluster):
    return {**cluster.secrets, "authorization": f"user:{PASSWORD}"}


@pytest.mark.parametrize("how", HOW)
def test_no_secret_is_anywhere(guarded, cluster, tmp_path, how):
    cluster.curl.put("k", b"value")
    secrets = secrets_of(cluster)
    with logging(guarded.address, cluster, tmp_path, how, "timeout=20") as mount:
        mount.sh("cat nothing; echo x > _acl/self; echo new > k; rm -rf _acl; cat _acl/list/x; ls _acl/tokens/x")
        assert look_everywhere(mount, secrets, tmp_path / "patterns") == {}
        options = (mount.path / "_consulfs/options").read_text()
        argv = Path(f"/proc/{mount.process.pid}/cmdline").read_text()
        said = mount.log_text()
    log = (tmp_path / "log").read_text()
    assert found_in(log + said, secrets) == []
    assert "DEBUG" in log
    assert "auth=(not shown)" in options
    assert "token=(not shown)" in options or "token_file=" in options
    # Who writes a secret into the command line has it there for all to read, and is told so of a token.
    assert found_in(argv, secrets) == (
        ["own token", "password", "authorization"]
        if how == "in argv"
        else ["password", "authorization"]
        if "auth=" in HOW[how][0]
        else []
    )
    assert ("others can read a token in the process list" in said) == (how == "in argv")


def test_no_secret_is_told_when_everything_goes_wrong(guarded, cluster, tmp_path):
    token, secrets = cluster.root["SecretID"], secrets_of(cluster)
    cluster.curl.put("k", b"value")
    with Proxy(guarded.port) as proxy, logging(proxy.address, cluster, tmp_path, "in a file", "timeout=0.5") as mount:
        provoke(mount, proxy, token)
        until(lambda: errno_of((mount.path / "_status/leader").read_bytes) == 0)
        assert look_everywhere(mount, secrets, tmp_path / "patterns") == {}
        proxy.server.shutdown()
        proxy.server.server_close()
        mount.sh("cat k _acl/self; ls . _acl/tokens _query; echo x > k")
        log = (tmp_path / "log").read_text() + mount.log_text()
    assert found_in(log, secrets) == []
    assert token[:12] not in log
    assert log.count("<secret>") > 20  # what was provoked did tell it


# -- rights --------------------------------------------------------------------------------------------------

ASKED = {
    "_acl/tokens": "acl/tokens",
    "_acl/policies": "acl/policies",
    "_acl/roles": "acl/roles",
    "_acl/replication": "acl/replication",
    "_acl/self": "acl/token/self",
    "_agent/self": "agent/self",
    "_agent/metrics": "agent/metrics",
    "_agent/checks": "agent/checks",
    "_agent/services": "agent/services",
    "_agent/members": "agent/members",
    "_catalog/datacenters": "catalog/datacenters",
    "_catalog/nodes": "catalog/nodes",
    "_catalog/services": "catalog/services",
    "_config/service-defaults": "config/service-defaults",
    "_config/proxy-defaults": "config/proxy-defaults",
    "_coordinate/nodes": "coordinate/nodes",
    "_event/list": "event/list",
    "_health/any": "health/state/any",
    "_health/critical": "health/state/critical",
    "_health/checks": "catalog/services",
    "_health/service": "catalog/services",
    "_health/node": "catalog/nodes",
    "_intention": "connect/intentions",
    "_operator/raft": "operator/raft/configuration",
    "_query": "query",
    "_session/list": "session/list",
    "_session/node": "catalog/nodes",
    "_status/leader": "status/leader",
    "_status/peers": "status/peers",
}
"""What each directory and file is asked for."""


def read(path):
    return os.listdir(path) if path.is_dir() else path.read_text()


def check_rights(mount, asker, forbidden):
    """What Consul refuses (403) is EACCES where it is read, what it filters is empty, and no look from above fails."""
    done = mount.sh("ls -la; ls -l _*; find . -maxdepth 1; stat _*/* >&2; ls -l _consulfs")
    assert done.stderr.count("cannot") == 0, done.stderr
    assert done.returncode == 0
    refused = set()
    for path, endpoint in ASKED.items():
        status, text = asker("GET", endpoint)
        code = errno_of(read, mount.path / path)
        assert code == {200: 0, 403: errno.EACCES}[status], (path, text)
        refused |= {path} if code else set()
        if status == 200 and json.loads(text) in ([], {}, None):
            assert read(mount.path / path) in ([], ""), path
    assert refused == forbidden
    for path in refused:
        done = mount.sh(f"cat {path} || ls {path}")
        assert "Permission denied" in done.stderr or "Is a directory" in done.stderr
    told = mount.ok("cat _consulfs/version _status/leader; ls _catalog/services _health/any")
    assert "consulfs" in told


UNREADABLE = {"_acl/tokens", "_acl/policies", "_acl/roles", "_agent/self", "_agent/metrics", "_operator/raft"}


def test_with_a_right_to_keys_alone_the_keys_work_and_each_tree_says_for_itself(guarded, cluster, tmp_path):
    cluster.curl.put("app/key", b"value")
    with mounted(guarded.address, tmp_path, cluster.keys_only["SecretID"]) as mount:
        check_rights(mount, Curl(guarded.url, cluster.keys_only["SecretID"]), UNREADABLE)
        assert mount.ok("cat app/key; echo new > app/other; ls app; rm app/other") == "valuekey\nother\n"
        own = json.loads((mount.path / "_acl/self").read_text())
        assert own["AccessorID"] == cluster.keys_only["AccessorID"]
        done = mount.sh("grep -r value .")
        assert "./app/key:value" in done.stdout
        assert {line.split(": ")[1] for line in done.stderr.splitlines()} == {f"./{each}" for each in UNREADABLE}
        # A few of them may have been read by the time that others are refused: the log has the refused ones alone.
        assert found_in(mount.log_text(), cluster.secrets) == []
        assert "403" in mount.log_text()


def test_an_anonymous_mount(guarded, cluster):
    cluster.curl.put("app/key", b"value")
    with Mount(guarded.address, "timeout=20") as mount:
        check_rights(mount, Curl(guarded.url), {*UNREADABLE, "_acl/self"})
        assert "app" not in os.listdir(mount.path)
        assert errno_of((mount.path / "app/key").read_text) in (errno.EACCES, errno.ENOENT)
        assert errno_of((mount.path / "new").write_text, "x") == errno.EACCES


def test_a_token_that_is_revoked_while_it_is_mounted(guarded, cluster, tmp_path):
    token = make(cluster.curl, "acl/token", Policies=[{"Name": "global-management"}])
    secret, accessor = token["SecretID"], token["AccessorID"]
    cluster.curl.put("app/key", b"value")
    with mounted(guarded.address, tmp_path, secret, "log_level=debug") as mount:
        read_before = mount.ok("cat app/key _acl/self; ls _acl/tokens _catalog/nodes")
        assert accessor in read_before
        assert cluster.curl("DELETE", f"acl/token/{accessor}")[0] == 200
        # Told by the next answer of each directory's watch, ten seconds later at most.
        until(lambda: errno_of(read, mount.path / "app/key") == errno.EACCES)
        for path in ("app/key", "_acl/self", "_acl/tokens", "_acl/policies/Ops-1_x", "_catalog/nodes", "_agent/self"):
            assert errno_of(read, mount.path / path) == errno.EACCES, path
        assert errno_of((mount.path / "app/key").write_text, "x") == errno.EACCES
        until(lambda: errno_of(os.listdir, mount.path / "app") == errno.EACCES)
        assert "consulfs" in mount.ok("cat _consulfs/version _status/leader")
        log = mount.log_text()
        assert "Permission denied" in log
        assert "ACL not found" in log
        assert found_in(log, {"own": secret, **cluster.secrets}) == []
        assert secret[:12] not in log
