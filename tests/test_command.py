"""The command: sources, options, readiness, clear failures, clean ends, and mount(8)."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.agent import Agent, consul_command, free_ports
from support.curl import Curl
from support.mount import COMMAND, Mount
from support.waiting import until

TOP = Path(__file__).resolve().parents[1]


def run(*arguments, env=None, **kwargs):
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(env or {})},
        **kwargs,
    )


def daemon_of(folder):
    """The pid of the daemon that serves a mount point."""
    found = subprocess.run(["pgrep", "-f", f"consulfs.* {folder}( |$)"], capture_output=True, text=True).stdout.split()
    return int(found[0]) if found else None


def wait_gone(folder, limit=20):
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if daemon_of(folder) is None and not os.path.ismount(folder):
            return
        time.sleep(0.05)
    raise AssertionError(f"still there: {daemon_of(folder)} {os.path.ismount(folder)}")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    if os.path.ismount(path):
        subprocess.run(["fusermount3", "-uz", path])
    wait_gone(path)


ENDS = {
    "umount": lambda path: subprocess.run(["umount", path], check=True),
    "fusermount3": lambda path: subprocess.run(["fusermount3", "-u", path], check=True),
    "SIGTERM": lambda path: os.kill(daemon_of(path), signal.SIGTERM),
    "SIGINT": lambda path: os.kill(daemon_of(path), signal.SIGINT),
}


@pytest.mark.parametrize("end", [pytest.param("umount", marks=pytest.mark.root), "fusermount3", "SIGTERM", "SIGINT"])
def test_a_daemon_serves_when_the_command_returns_and_ends_cleanly(agent, curl, folder, end):
    curl.put("f", b"text")
    done = run(agent.address, folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (folder / "f").read_bytes() == b"text"
    (folder / "g").write_bytes(b"new")
    ENDS[end](folder)
    wait_gone(folder)
    assert curl.get("g") == b"new"
    assert list(folder.iterdir()) == []


def test_the_caller_gets_no_pipe_held_open(agent, folder):
    # A command substitution waits until every holder of its pipe has closed it.
    done = subprocess.run(
        ["bash", "-c", f'x=$({COMMAND} {agent.address} {folder} 2>&1); echo "<$x>"'],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "<>\n"


def test_environment_variables(agent, curl, folder):
    curl.put("f", b"text")
    assert run(folder, env={"CONSUL_HTTP_ADDR": agent.address}).returncode == 0
    assert (folder / "f").read_bytes() == b"text"


def test_the_environment_names_a_prefix_alone(agent, curl, folder):
    curl.put("a/f", b"text")
    assert run("/a", folder, env={"CONSUL_HTTP_ADDR": f"http://{agent.address}"}).returncode == 0
    assert (folder / "f").read_bytes() == b"text"


def one_line(done):
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("consulfs: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_failures_are_one_clear_line(agent, folder, tmp_path):
    (tmp_path / "file").write_text("")
    assert "no Consul at http://127.0.0.1:1" in one_line(run("127.0.0.1:1", folder, "-o", "timeout=1"))
    assert "No such file" in one_line(run(agent.address, tmp_path / "nothing"))
    assert "not a directory" in one_line(run(agent.address, tmp_path / "file"))
    assert "unknown option 'bogus'" in one_line(run(agent.address, folder, "-o", "bogus=1"))
    assert "timeout=x" in one_line(run(agent.address, folder, "-o", "timeout=x"))
    assert "scheme" in one_line(run("ftp://host", folder))
    assert "token_file" in one_line(run(agent.address, folder, "-o", f"token_file={tmp_path}/none"))
    assert "foreground" not in one_line(run("127.0.0.1:1", folder, "-f", "-o", "timeout=1"))
    assert not os.path.ismount(folder)


def test_a_dead_mount_is_told(agent, folder):
    assert run(agent.address, folder).returncode == 0
    os.kill(daemon_of(folder), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while daemon_of(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        assert f"fusermount3 -uz {folder}" in one_line(run(agent.address, folder))
    finally:
        subprocess.run(["fusermount3", "-uz", folder], check=True)


def test_a_token_on_the_command_line_is_warned_of(agent, folder):
    done = run(agent.address, folder, "-o", "token=s3kr3t")
    assert done.returncode == 0
    assert "warning" in done.stderr
    assert "token_file" in done.stderr
    assert "s3kr3t" not in Path("/proc/mounts").read_text() + done.stderr


def test_version_and_help():
    assert run("-V").stdout.startswith("consulfs ")
    shown = run("--help").stdout
    from consulfs.options import OPTIONS

    assert all(option.usage in shown for option in OPTIONS)


def test_the_readme_has_the_table_of_options():
    from consulfs.options import markdown_table

    assert markdown_table() in (TOP / "README.md").read_text()


def test_read_only(agent, curl, folder):
    curl.put("f", b"text")
    assert run(agent.address, folder, "-o", "ro").returncode == 0
    assert (folder / "f").read_bytes() == b"text"
    for script in ("echo x > f", "echo x > g", "rm f", "mkdir d", "mv f g", "setfattr -n user.consul.flags -v 1 f"):
        done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True)
        assert "Read-only file system" in done.stderr, script
    assert curl.tree() == {"f": b"text"}


def test_owner_and_modes(agent, curl, folder):
    curl.put("d/f")
    assert run(agent.address, folder, "-o", "uid=12,gid=34,umask=027").returncode == 0
    found = os.stat(folder / "d/f")
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (12, 34, 0o640)
    assert os.stat(folder / "d").st_mode & 0o777 == 0o750


def test_dev_brings_its_own_consul(folder, tmp_path):
    (port,) = free_ports(1)
    done = run("--dev", folder, "-o", f"consul={consul_command()},dev_port={port}")
    assert (done.returncode, done.stdout) == (0, f"Consul runs at http://127.0.0.1:{port}\n")
    (folder / "f").write_bytes(b"text")
    curl = Curl(f"http://127.0.0.1:{port}/v1")
    assert curl.get("f") == b"text"
    subprocess.run(["fusermount3", "-u", folder], check=True)
    wait_gone(folder)
    assert curl("GET", "status/leader")[0] == 0
    assert "no 'nothing' command" in one_line(run("--dev", folder, "-o", "consul=nothing"))


def test_a_unix_socket(curl, folder, tmp_path):
    socket = tmp_path / "consul.sock"
    with Agent({"addresses": {"http": f"unix://{socket}"}}, reached_by=str(socket)):
        assert run(f"unix://{socket}", folder).returncode == 0
        (folder / "f").write_bytes(b"text")
        shown = subprocess.run(
            ["curl", "-s", "--unix-socket", socket, "http://x/v1/kv/f?raw"], capture_output=True, timeout=30
        )
        assert shown.stdout == b"text"
        subprocess.run(["fusermount3", "-u", folder], check=True)
        wait_gone(folder)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A CA, a server's and a client's certificate, made by `consul tls`."""
    folder = tmp_path_factory.mktemp("tls")
    for words in (["ca", "create"], ["cert", "create", "-server"], ["cert", "create", "-client"]):
        subprocess.run([consul_command(), "tls", *words], cwd=folder, check=True, capture_output=True)
    return folder


def test_tls_both_ways(certificates, curl, folder):
    (port,) = free_ports(1)
    config = {
        "ports": {"https": port},
        "ca_file": f"{certificates}/consul-agent-ca.pem",
        "cert_file": f"{certificates}/dc1-server-consul-0.pem",
        "key_file": f"{certificates}/dc1-server-consul-0-key.pem",
        "verify_incoming": True,
    }
    ca, pem, key = (
        f"{certificates}/{name}"
        for name in ("consul-agent-ca.pem", "dc1-client-consul-0.pem", "dc1-client-consul-0-key.pem")
    )
    with Agent(config) as own:
        Curl(own.url).put("f", b"text")
        source = f"https://127.0.0.1:{port}"
        one_line(run(source, folder, "-o", "timeout=2"))  # an unknown CA
        one_line(run(source, folder, "-o", f"timeout=2,cacert={ca}"))  # no client certificate
        client = f"cacert={ca},client_cert={pem},client_key={key}"
        one_line(run(source, folder, "-o", f"timeout=2,{client},tls_server_name=other.name"))
        assert run(source, folder, "-o", f"{client},tls_server_name=server.dc1.consul").returncode == 0
        assert (folder / "f").read_bytes() == b"text"
        (folder / "f").write_bytes(os.urandom(200_000))
        subprocess.run(["fusermount3", "-u", folder], check=True)
        wait_gone(folder)
        variables = {
            "CONSUL_HTTP_ADDR": f"127.0.0.1:{port}",
            "CONSUL_HTTP_SSL": "true",
            "CONSUL_CACERT": ca,
            "CONSUL_CLIENT_CERT": pem,
            "CONSUL_CLIENT_KEY": key,
            "CONSUL_TLS_SERVER_NAME": "server.dc1.consul",
        }
        assert run(folder, env=variables).returncode == 0
        assert len((folder / "f").read_bytes()) == 200_000
        subprocess.run(["fusermount3", "-u", folder], check=True)
        wait_gone(folder)


def in_namespace(script, agent, tmp_path):
    """Run a script in a mount namespace of its own, where mount(8) finds the command under /usr/local/bin."""
    links = tmp_path / "bin"
    links.mkdir()
    (links / "consulfs").symlink_to(COMMAND)
    (tmp_path / "mnt").mkdir()
    head = f"set -e; mount --bind {links} /usr/local/bin; cd {tmp_path}; A={agent.address}\n"
    return subprocess.run(
        ["unshare", "-m", "--propagation", "private", "bash", "-c", head + script],
        capture_output=True, text=True, timeout=100, env={**os.environ, "CONSUL_HTTP_ADDR": agent.address},
    )  # fmt: skip


FORMS = {
    "plain": "mount -t fuse consulfs mnt",
    "plain with options": "mount -t fuse consulfs mnt -o rw,timeout=5,_netdev,noatime",
    "source": "mount -t fuse consulfs#$A mnt",
    "source with a prefix": "mount -t fuse consulfs#http://$A/d mnt",
    "empty source": "mount -t fuse consulfs# mnt",
    "type": "mount -t fuse.consulfs $A mnt -o umask=022",
    "type without a source": "mount -t fuse.consulfs none mnt",
    "fstab": "echo $A $PWD/mnt fuse.consulfs _netdev,nofail,noauto,user,x-systemd.automount,timeout=5 0 0 > fstab;"
    " mount -T fstab mnt",
    "fstab of the old form": "echo consulfs#$A $PWD/mnt fuse defaults 0 0 > fstab; mount -T fstab mnt",
}


@pytest.mark.root
@pytest.mark.parametrize("form", FORMS)
def test_mount_8(agent, curl, tmp_path, form):
    curl.put("d/f", b"text")
    curl.put("f", b"text")
    done = in_namespace(
        FORMS[form] + "; cat mnt/f; grep -c $PWD/mnt.fuse.consulfs /proc/mounts; umount mnt", agent, tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "text1\n"), done.stderr
    wait_gone(tmp_path / "mnt")


@pytest.mark.root
def test_mount_8_says_what_is_wrong(agent, tmp_path):
    done = in_namespace("mount -t fuse.consulfs 127.0.0.1:1 mnt -o timeout=1", agent, tmp_path)
    assert done.returncode != 0
    assert "no Consul at http://127.0.0.1:1" in done.stderr


def test_nothing_is_left_when_a_daemon_ends(agent, curl):
    with Mount(agent.address) as mount:
        mount.ok("echo x > f; cat f")
    assert mount.process.returncode == 0
    assert curl("GET", "session/list")[1].strip() == b"[]"
    assert str(mount.path) not in Path("/proc/mounts").read_text()


def test_the_demo(folder, tmp_path):
    (port,) = free_ports(1)
    environment = {**os.environ, "PATH": f"{Path(consul_command()).parent}:{os.environ['PATH']}"}

    def demo(action, place=folder):
        words = [str(TOP / "tools/demo"), action, str(Path(COMMAND).parents[1]), str(place), str(port)]
        return subprocess.run(words, capture_output=True, text=True, timeout=100, env=environment)

    try:
        shown = demo("start")
        assert shown.returncode == 0, shown.stderr
        assert "Try:" in shown.stdout
        ending = f"make demo-stop MNT={folder} DEMO_PORT={port}"
        assert f"\n{ending} ends it" in shown.stdout
        assert demo("start").stdout == f"already mounted at {folder}; {ending} ends it\n"
        check_the_demo(folder, port)
        wrong = demo("stop", tmp_path / "elsewhere")
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert wrong.stderr == f"a demo on port {port} still runs, mounted at {folder}: {ending}\n"
        assert (folder / "app/feature").read_text() == "on\n"
    finally:
        ended = demo("stop")
    assert (ended.returncode, ended.stdout) == (0, "the demo has ended\n"), ended.stderr
    assert Curl(f"http://127.0.0.1:{port}/v1")("GET", "status/leader")[0] == 0
    assert subprocess.run(["pgrep", "-f", f"dev_port={port}"], capture_output=True).stdout == b""
    assert not folder.exists()
    folder.mkdir()


def check_the_demo(folder, port):
    curl = Curl(f"http://127.0.0.1:{port}/v1")
    assert (curl.get("app/feature"), curl.flags("app/feature")) == (b"on\n", 42)
    assert {"web", "db"} <= set(curl.json("catalog/services"))
    assert os.listdir(folder / "_health/critical") == ["web2:web:http"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_test_run_leaves_nothing(tmp_path, number, workers):
    seen = tmp_path / "seen"  # not printed: what a worker prints is shown when its test has ended
    (tmp_path / "test_it.py").write_text(
        "import os, time\n"
        "def test_it(mnt, curl):\n"
        "    open(mnt.path / 'f', 'w').close()\n"
        f"    open('{seen}.new', 'w').write(f'{{mnt.process.pid}} {{mnt.path}}')\n"
        f"    os.rename('{seen}.new', '{seen}')\n"
        "    time.sleep(100)\n"
    )
    (tmp_path / "conftest.py").symlink_to(TOP / "tests/conftest.py")
    (tmp_path / "support").symlink_to(TOP / "tests/support")
    options = ["-n", str(workers), "-p", "no:cacheprovider", "--rootdir", tmp_path]
    inner = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(TOP / "tests"), "TMPDIR": str(tmp_path)},
    )
    until(seen.exists)
    pid, path = seen.read_text().split()
    agents = subprocess.run(["pgrep", "-f", f"consul agent.*{tmp_path}"], capture_output=True, text=True).stdout.split()
    assert len(agents) == 1
    inner.send_signal(number)
    inner.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{each}").exists() for each in (pid, *agents)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{agents[0]}").exists()
    assert path not in Path("/proc/mounts").read_text()
    if workers or number != signal.SIGKILL:
        assert [each.name for each in tmp_path.iterdir() if each.name.startswith("consulfs-")] == []


def test_python_m_consulfs():
    shown = subprocess.run([sys.executable, "-m", "consulfs", "-V"], capture_output=True, text=True, timeout=60)
    assert shown.stdout.startswith("consulfs ")
