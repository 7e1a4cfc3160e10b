"""The recipes and transcripts of docs/virtual-trees.md, each run as it stands there, on the registry of the demo."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.acl import MASTER, guarded_agent, make, make_token
from support.agent import TOP, Agent, consul_command, free_ports
from support.curl import Curl
from support.mount import COMMAND, LIMIT, Mount
from support.sessions import acquire, destroy_session, make_session
from support.waiting import until

from consulfs.tree.virtual.naming import file_name

PAGE = (TOP / "docs/virtual-trees.md").read_text()
SECTIONS = {part.split("\n", 1)[0]: part for part in re.split(r"^##+ ", PAGE, flags=re.M)}
RECIPES = {
    title: match[1]
    for title, part in SECTIONS.items()
    for match in re.finditer(r"^```sh\n(.*?)^```$", part, re.M | re.S)
}

OPTIONS = "timeout=20,virtual=visible"


@pytest.fixture(scope="module")
def agent():
    """With the registry that `make demo` shows."""
    with Agent(node="consulfs-dev") as agent:
        subprocess.run([sys.executable, TOP / "tools/demo-registry", agent.address], check=True)
        until(lambda: Curl(agent.url)("GET", "coordinate/node/db1")[0] == 200)
        yield agent


@pytest.fixture(scope="module")
def far(agent):
    """Another datacenter, joined with the agent's."""
    with Agent({"datacenter": "dc2"}, node="far") as far:
        assert Curl(far.url)("PUT", f"agent/join/127.0.0.1:{agent.wan}?wan=1")[0] == 200
        until(lambda: Curl(agent.url)("GET", "session/list?dc=dc2")[0] == 200)
        yield Curl(far.url)


@pytest.fixture
def keys(curl):
    """The demo's."""
    curl.put("app/feature", b"on\n", flags=42)
    curl.put("locks/")
    return curl


@pytest.fixture
def mnt(agent, keys):
    with Mount(agent.address, OPTIONS) as mount:
        yield mount


@pytest.fixture
def recipe(mnt, tmp_path):
    """Write a recipe for a mount; what this gives is its command."""

    def write(title, mount=mnt):
        text = RECIPES[title].replace("/mnt/consul", str(mount.path))
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.sh"
        path.write_text(re.sub("/var/(lib/prometheus/node-exporter|backups)", str(tmp_path), text))
        return ["sh", str(path)]

    return write


@pytest.fixture
def run(recipe, tmp_path):
    """Run a recipe with words for its arguments: (exit status, what it said)"""

    def start(title, *words):
        done = subprocess.run(
            [*recipe(title), *words],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
        )
        return done.returncode, done.stdout

    return start


@contextmanager
def registered(curl, node, *checks, **services):
    """A node with services (ID=port), and with checks, each (CheckID, ServiceID, status)."""
    register(curl, Node=node, Address="10.9.9.9")
    try:
        for identity, port in services.items():
            service = {"Service": identity.rstrip("0123456789"), "ID": identity, "Port": port}
            register(curl, Node=node, Address="10.9.9.9", Service=service)
        for check in checks:
            set_check(curl, node, *check)
        yield
    finally:
        deregister(curl, node)


def set_check(curl, node, identity, service, status, output=""):
    check = {"CheckID": identity, "Name": identity, "ServiceID": service, "Status": status, "Output": output}
    register(curl, Node=node, SkipNodeUpdate=True, Check=check)


def register(curl, **body):
    status, text = curl("PUT", "catalog/register", json.dumps(body).encode())
    assert status == 200, text


def deregister(curl, node):
    assert curl("PUT", "catalog/deregister", json.dumps({"Node": node}).encode())[0] == 200


# -- the page ------------------------------------------------------------------------------------------------


def test_every_recipe_of_the_page_is_run_here():
    here = Path(__file__).read_text()
    assert len(RECIPES) == PAGE.count("```sh\n")
    assert [recipe for recipe in RECIPES if f'"{recipe}"' not in here] == []


def test_the_endpoint_that_the_architecture_shows_is_whole():
    endpoint = (TOP / "consulfs/tree/virtual/endpoints/coordinate.py").read_text()
    assert f"```python\n{endpoint}```" in (TOP / "docs/architecture.md").read_text()


def test_the_names_of_the_page_are_what_the_mount_shows():
    rows = re.findall(r"^\| (.*?) \| `(.*?)` \|", SECTIONS["Names"], re.M)
    assert len(rows) == 6
    for consul, shown in rows:
        assert file_name(*re.findall("`(.*?)`", consul)) == shown


def test_the_page_has_the_series_of_the_metrics(mnt):
    named = set(re.findall(r"consulfs_\w+", SECTIONS["This mount"]))
    there = set(re.findall(r"^consulfs_\w+", mnt.ok("ls >/dev/null; ls x 2>/dev/null; cat _consulfs/metrics"), re.M))
    assert {name for name in there if not name.endswith(("_bucket", "_count", "_sum"))} <= named
    assert {name for name in named if not any(each.startswith(name) for each in there)} == set()


def plain(text):
    """Without what differs each time."""
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", text)
    text = re.sub(r'"(Name": "consulfs|Hash": ").*"', r'"\1..."', text)
    text = re.sub(r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d", "TIME", text)
    text = re.sub(r"^([-d][-rwx]{9}) +\d+ \S+ +\S+ +\d+", r"\1", text, flags=re.M)
    return re.sub(r"\d+", "N", text)


def said(mount, command):
    done = mount.sh(command)
    return re.sub(r"^bash: line \d+: ", "bash: ", done.stdout + done.stderr, flags=re.M)


def replay(section, mount):
    """Each command of a section's transcripts says what stands there."""
    background = []
    try:
        for block in re.findall(r"^```console\n(.*?)^```$", SECTIONS[section], re.M | re.S):
            for command, wanted in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M):
                if command.endswith(" &"):
                    words = ["bash", "-c", "exec " + command[:-2]]
                    background.append(subprocess.Popen(words, cwd=mount.path, start_new_session=True))
                else:
                    compare(mount, command, wanted)
    finally:
        for each in background:
            each.kill()
            each.wait()


def compare(mount, command, wanted):
    seen = []

    def same():
        seen[:] = [said(mount, command)]
        return plain(seen[0]).rstrip("\n") == plain(wanted).rstrip("\n")

    try:
        until(same, 15)
    except AssertionError:
        raise AssertionError(f"{command}\n{seen[0]}\nand not\n{wanted}") from None


IS_THE_PAGES_CONSUL = " v1.8." in subprocess.run([consul_command(), "version"], capture_output=True, text=True).stdout

transcript = pytest.mark.skipif(not IS_THE_PAGES_CONSUL, reason="the page shows the fields of Consul 1.8")

PLAIN_SECTIONS = "_agent _catalog _health _status _event _coordinate _query _operator _config _intention".split()


@transcript
@pytest.mark.parametrize("section", ["The trees, one by one", *PLAIN_SECTIONS])
def test_the_transcripts_are_true(mnt, section):
    replay(section, mnt)


STEP = re.compile(r"^```console\n(?P<shown>(?s:.*?))^```$|(?P<done>(?:^    .*\n)+)", re.M)
"""A transcript, or commands that say nothing."""


@transcript
@pytest.mark.parametrize("section", ["_session", "_acl", "_dc"])
def test_who_pastes_a_section_sees_what_it_shows(section, tmp_path):
    with Agent(node="consulfs-dev") as agent:
        Curl(agent.url).put("locks/")
        Curl(agent.url).put("app/feature", b"on\n")
        subprocess.run([sys.executable, TOP / "tools/demo-registry", agent.address], check=True)
        with Mount(agent.address, OPTIONS) as mount:
            wanted, seen = paste(section, mount, agent, tmp_path)
            assert seen == wanted
            assert [each.name for each in tmp_path.iterdir()] == []


def paste(section, mount, agent, folder):
    """What each command of a section is to show, and what it shows, where one shell gets them all at once."""
    steps = []
    for step in STEP.finditer(SECTIONS[section]):
        if step["done"]:
            steps.append((textwrap.dedent(step["done"]), ""))
        else:
            steps += re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", step["shown"], re.M)
    mark = "\n-- the next --\n"
    text = "".join(f"printf '{mark}'\n{command}\n" for command, _ in steps).replace("/mnt/consul", str(mount.path))
    ports = list(dict.fromkeys(["8511", *re.findall(r"\b85[12]\d\b", text)]))
    real = dict(zip(ports, [agent.port, *free_ports(len(ports) - 1)]))
    text = re.sub(r"\b85[12]\d\b", lambda match: str(real[match[0]]), text)
    said = run_in_bash(text, mount, folder).replace("Success! Data written to: app/feature\n", "")
    said = re.sub(r"^bash: line \d+: ", "bash: ", said, flags=re.M).split(mark)[1:]
    said = [re.sub("^Successfully joined.*\n", "", each) for each in said]
    return [(command, plain(shown).strip()) for command, shown in steps], [
        (command, plain(shown).strip()) for (command, _), shown in zip(steps, said)
    ]


def run_in_bash(text, mount, folder):
    folders = [str(Path(command).parent) for command in (consul_command(), COMMAND)]
    environment = {**os.environ, "PATH": ":".join([os.environ["PATH"], *folders]), "TMPDIR": str(folder)}
    words = {"stdin": -1, "stdout": -1, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    with subprocess.Popen(["bash"], cwd=mount.path, start_new_session=True, **words) as shell:
        killer = threading.Timer(LIMIT, os.killpg, (shell.pid, signal.SIGKILL))
        killer.start()
        try:
            shell.stdin.write(text + f"kill -KILL -- -{shell.pid}\n")
            shell.stdin.close()
            return shell.stdout.read()
        finally:
            killer.cancel()
            for left in folder.glob("*/mnt"):
                subprocess.run(["fusermount3", "-uz", str(left)], capture_output=True)
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)


def test_what_the_mount_says_of_itself_is_on_the_page(mnt):
    assert "$ cat _consulfs/version\n" + mnt.ok("cat _consulfs/version") in PAGE
    page = re.search(r"^\$ head -n 8 _consulfs/options\n(.*?)^\$", PAGE, re.M | re.S)[1]
    assert [line.split("=")[0] for line in mnt.ok("head -n 8 _consulfs/options").splitlines()] == [
        line.split("=")[0] for line in page.splitlines()
    ]


# -- the recipes ---------------------------------------------------------------------------------------------


def test_which_services_are_down(curl, run):
    with registered(curl, "n", ("disk", "", "critical", "full")):
        status, text = run("Which services are down")
    assert (status, sorted(text.splitlines())) == (0, ["n: the node: disk: full", "web2: web: web:http: timed out"])


def test_which_services_are_down_without_jq(curl, run):
    trap = '\n  "ServiceName": "trap"'
    with registered(curl, "n", ("disk", "", "critical"), ("a", "down1", "critical", trap), down1=1):
        assert run("Which services are down, without jq") == (0, "down\nweb\n")


def test_nothing_is_down(curl, run):
    set_check(curl, "web2", "web:http", "web-2", "passing")
    try:
        assert run("Which services are down") == (0, "")
        assert run("Which services are down, without jq") == (0, "")
    finally:
        set_check(curl, "web2", "web:http", "web-2", "critical", "timed out")


def test_the_upstreams_of_a_load_balancer(curl, run, tmp_path):
    title, file = "The upstreams of a load balancer", tmp_path / "upstreams"
    words = (title, "lb", str(file))
    with registered(curl, "n", ("a", "lb1", "passing"), ("b", "lb2", "critical"), lb1=81, lb2=82, lb3=83):
        assert run(*words) == (0, "")
        assert file.read_text() == "server 10.9.9.9:81;\nserver 10.9.9.9:83;\n"
        assert run(*words) == (1, "")
        address = {"Service": "lb", "ID": "lb2", "Port": 82, "Address": "10.1.1.1"}
        register(curl, Node="n", SkipNodeUpdate=True, Service=address)
        set_check(curl, "n", "b", "lb2", "passing")
        all_three = "server 10.1.1.1:82;\nserver 10.9.9.9:81;\nserver 10.9.9.9:83;\n"
        until(lambda: run(*words)[0] < 2 and file.read_text() == all_three)
        set_check(curl, "n", "node", "", "critical")  # the node itself: all of it is down
        until(lambda: run(*words) == (2, f"no instance of lb passes: {file} stays\n"))
        left = file.read_text()  # one look may be at files of two moments, so not all three need be
        assert left
    status, text = run(words[0], "none", str(file))
    assert status == 2
    assert "No such file" in text
    assert file.read_text() == left


def test_wait_until_a_service_is_healthy(curl, recipe, run):
    title = "Wait until a service is healthy"
    assert run(title, "slow", "1", "1") == (1, "slow is not healthy\n")
    with registered(curl, "n", ("a", "slow1", "passing"), ("b", "slow2", "warning"), slow1=81, slow2=82):
        until(lambda: run(title, "slow", "1", "1") == (0, ""))
        assert run(title, "slow", "2", "1") == (1, "slow is not healthy\n")
        with subprocess.Popen([*recipe(title), "slow", "2", "60"], stdout=subprocess.PIPE) as waits:
            set_check(curl, "n", "b", "slow2", "passing")
            assert waits.wait(LIMIT) == 0


def test_who_has_a_lock(mnt, keys, run):
    title = "Who has a lock"
    keys.put("locks/deploy")
    status, text = run(title)
    assert status == 1
    assert "No such attribute" in text
    with subprocess.Popen(
        ["flock", "locks/deploy", "sh", "-c", "echo; cat"], cwd=mnt.path, stdin=-1, stdout=-1
    ) as flock:
        flock.stdout.readline()
        status, text = until(lambda: (found := run(title))[0] == 0 and found)
    assert re.fullmatch(rf"consulfs \S+:{mnt.path} \w+ locks, at consulfs-dev\n", text)


def test_what_may_my_token_do(guarded, admin, recipe):
    name = f"p{os.urandom(4).hex()}"
    make(admin, "acl/policy", Name=name, Rules='key_prefix "" { policy = "read" }')
    make(admin, "acl/role", Name=f"r-{name}", Policies=[{"Name": name}])
    for what, wanted in (
        ({"Policies": [{"Name": name}]}, f"{name}\n"),
        ({"Roles": [{"Name": f"r-{name}"}]}, f"role r-{name}\n"),
        ({}, ""),
    ):
        token = make(admin, "acl/token", **what)["SecretID"]
        with Mount(guarded.address, f"{OPTIONS},token={token}") as mount:
            done = subprocess.run(recipe("What may my token do", mount), capture_output=True, text=True)
            assert (done.returncode, done.stdout, done.stderr) == (0, wanted, "")


def test_what_was_the_last_event(curl, run):
    for name in ("z-first", "a-second"):
        assert curl("PUT", f"event/fire/{name}")[0] == 200
        until(lambda name=name: run("What was the last event") == (0, f"{name}\n"))


def test_what_was_the_last_event_where_none_was(recipe):
    with Agent() as agent, Mount(agent.address, OPTIONS) as mount:
        done = subprocess.run(recipe("What was the last event", mount), capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_registry_of_the_demo_can_be_registered_with_a_token():
    with guarded_agent() as agent:
        command = [sys.executable, TOP / "tools/demo-registry", agent.address]
        environment = {**os.environ, "CONSUL_HTTP_TOKEN": MASTER}
        assert subprocess.run(command, capture_output=True).returncode == 1
        subprocess.run(command, env=environment, check=True)
        assert {"web", "db"} <= set(Curl(agent.url, MASTER).json("catalog/services"))


def test_follow_a_check(mnt, curl, recipe):
    command = [*recipe("Follow a check"), str(mnt.path / "_health/checks/web/web2:web:http")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as shown:
        try:
            assert next_check(shown) == ("critical", "timed out")
            set_check(curl, "web2", "web:http", "web-2", "passing", "200 OK")
            assert next_check(shown) == ("passing", "200 OK")
        finally:
            set_check(curl, "web2", "web:http", "web-2", "critical", "timed out")
            os.killpg(shown.pid, signal.SIGTERM)


def next_check(process):
    """The status and output of the next check that a process prints."""
    text = ""
    while not text.endswith("\n}\n"):
        text += process.stdout.readline()
    check = json.loads(text)
    return check["Status"], check["Output"]


def test_what_differs_between_two_datacenters(mnt, keys, far, run):
    far.put("app/feature", b"on\n")
    far.put("app/there", b"x\n")
    keys.put("app/both", b"1\n")
    far.put("app/both", b"2\n")
    status, text = run("What differs between two datacenters")
    assert status == 1
    assert "< 1\n---\n> 2\n" in text
    assert f"Only in {mnt.path}/_dc/dc2/app: there\n" in text
    assert "feature" not in text
    far.delete("app/there")
    keys.put("app/both", b"2\n")
    until(lambda: run("What differs between two datacenters") == (0, ""))


def test_an_alert_when_consul_fails_a_mount(agent, keys, proxy, recipe, tmp_path):
    with Mount(proxy.address, f"{OPTIONS},timeout=1") as mount:
        command = [*recipe("An alert when Consul fails this mount", mount), str(tmp_path / "state")]

        def run():
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
            return done.returncode, done.stdout

        mount.sh("cat nothing")
        assert run() == (0, "")
        proxy.fault = lambda seen: (500, b"no") if "/kv/" in seen.path else None
        assert mount.sh("cat app/feature").returncode != 0
        status, text = until(lambda: (found := run())[0] and found)
        assert status == 1
        assert re.search(r'^consulfs_operation_errors_total\{errno="\w+",operation="getattr"\} 1\.0$', text, re.M)
        until(lambda: run() == (0, ""))
        mount.stop()
        assert run() == (2, "")
        mount.start()
        assert mount.sh("cat app/feature").returncode != 0  # the first error of this mount, as it was that of the other
        status, again = until(lambda: (found := run())[0] and found)
        assert (status, again) == (1, text)


def test_metrics_for_prometheus(run, tmp_path):
    assert run("Metrics for Prometheus") == (0, "")
    lines = (tmp_path / "consulfs.prom").read_text().splitlines()
    assert "# TYPE consulfs_request_seconds histogram" in lines
    assert any(line.startswith('consulfs_request_seconds_count{kind="') for line in lines)
    assert not any("process_" in line for line in lines)


def test_the_rights_of_the_page_are_enough(guarded, admin, recipe, tmp_path):
    token = make_token(admin, re.search(r"^```hcl\n(.*?)^```$", PAGE, re.M | re.S)[1])
    register(admin, Node="n", Address="10.9.9.9", Service={"Service": "s"})
    session = make_session(admin, Name="somebody")
    admin.put("locks/deploy")
    assert acquire(admin, "locks/deploy", session)
    with Mount(guarded.address, f"{OPTIONS},token={token}") as mount:
        backup = subprocess.run(recipe("A backup of the catalog", mount), capture_output=True, text=True)
        assert (backup.returncode, backup.stderr) == (0, "")
        holder = subprocess.run(recipe("Who has a lock", mount), capture_output=True, text=True)
        assert holder.stdout == "somebody, at test\n"
    destroy_session(admin, session)
    deregister(admin, "n")
    with tarfile.open(tmp_path / "consul-catalog.tar.gz") as archive:
        assert {"_catalog/nodes/n", "_operator/raft"} <= set(archive.getnames())


def test_what_complains_where_acls_may_not_be_read(guarded, admin, tmp_path):
    token = make_token(admin, re.search(r"^```hcl\n(.*?)^```$", PAGE, re.M | re.S)[1])
    directories, files = {"_acl/tokens", "_acl/policies", "_acl/roles"}, {"_agent/self", "_agent/metrics"}
    with Mount(guarded.address, f"{OPTIONS},token={token}") as mount:
        for command, refused in (
            ("find .", directories),
            ("grep -r nothing .", directories | files),
            (f"rsync -a . {tmp_path}/copy", directories | files),
            (f"tar cf {tmp_path}/all.tar .", directories),
        ):
            done = mount.sh(command)
            assert done.returncode != 0
            denied = [line for line in done.stderr.splitlines() if "Permission denied" in line]
            assert {re.search(r"_(acl|agent)/\w+", line)[0] for line in denied} == refused, command
    with tarfile.open(tmp_path / "all.tar") as archive:
        assert {archive.getmember(f"./{name}").size for name in files} == {0}


def test_the_trees_are_there_where_the_keys_may_not_be_listed():
    rights = {"enabled": True, "default_policy": "deny", "enable_key_list_policy": True, "tokens": {"master": MASTER}}
    with Agent({"acl": rights}) as agent:
        token = make_token(Curl(agent.url, MASTER), 'node_prefix "" { policy = "read" }')
        with Mount(agent.address, f"{OPTIONS},token={token}") as mount:
            assert mount.sh("ls").stderr == "ls: reading directory '.': Permission denied\n"
            assert mount.ok("ls _catalog/nodes _health/passing") == (
                "_catalog/nodes:\ntest\n\n_health/passing:\ntest:serfHealth\n"
            )


def test_a_backup_of_the_catalog(curl, run, tmp_path):
    assert run("A backup of the catalog") == (0, "")
    with tarfile.open(tmp_path / "consul-catalog.tar.gz") as archive:
        saved = {name: archive.extractfile(name) for name in archive.getnames() if archive.getmember(name).isfile()}
        nodes = {file_name(each["Node"]): each for each in curl.json("catalog/nodes")}
        checks = {file_name(each["Node"], each["CheckID"]): each for each in curl.json("health/state/any")}
        for folder, wanted in (("_catalog/nodes", nodes), ("_health/any", checks)):
            found = {name.split("/")[-1]: json.load(file) for name, file in saved.items() if name.startswith(folder)}
            assert found == wanted
        assert {"_query/nearest-web", "_intention/*:db", "_config/service-defaults/web"} <= set(saved)
