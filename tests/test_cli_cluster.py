"""`consulate acl`, `register`, `deregister`, `services` and `run_once`, as processes, on a real Consul."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import stat
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from support.agent import Agent, die_with_parent
from support.command import COMMAND, LIMIT, consulate, environment, fails, ok
from support.curl import Curl
from support.proxy import Proxy
from support.waiting import until

# -- services ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own():
    """An agent that takes script checks."""
    with Agent({"enable_script_checks": True}) as agent:
        yield agent


@pytest.fixture
def proxy_of_own(own):
    with Proxy(own.port) as proxy:
        yield proxy


@pytest.fixture
def services(own):
    """What the agent has, by curl; deregistered at the end."""
    curl = Curl(own.url)

    def ask(what="services"):
        return json.loads(curl("GET", f"agent/{what}")[1])

    yield ask
    for name in ask():
        curl("PUT", f"agent/service/deregister/{name}")


def test_a_service_is_registered_as_the_options_say(own, services):
    words = ("-a", "10.0.0.1", "-p", "80", "-s", "web1", "-t", "a,b", "no-check")
    assert ok(own.address, "register", "web", *words) == b""
    found = services()["web1"]
    assert (found["Service"], found["Address"], found["Port"], found["Tags"]) == ("web", "10.0.0.1", 80, ["a", "b"])
    ok(own.address, "register", "plain")
    assert services()["plain"]["Port"] == 0
    assert services("checks") == {}


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["ttl", "10"], "ttl"),
        (["httpcheck", "10", "http://127.0.0.1:1/"], "http"),
        (["check", "1m", "/bin/true"], "script"),
    ],
)
def test_a_service_is_registered_with_a_check(own, services, words, kind):
    ok(own.address, "register", "web", "--port", "80", *words)
    (found,) = services("checks").values()
    assert (found["ServiceName"], found["Type"]) == ("web", kind)


def test_the_intervals_and_paths_of_checks_arrive(own, services, proxy_of_own):
    for words in (["ttl", "10"], ["httpcheck", "10", "http://h/"], ["check", "1m", "/bin/true"]):
        ok(proxy_of_own.address, "register", "web", "-p", "80", *words)
    bodies = b" ".join(seen.body for seen in proxy_of_own.requests).decode()
    for words in ('"TTL": "10s"', '"Interval": "10s"', "http://h/", '"Interval": "1m"', "/bin/true"):
        assert words in bodies


def test_services_are_printed_and_deregistered(own, services):
    assert json.loads(ok(own.address, "services")) == []
    ok(own.address, "register", "web", "--service-id", "web1", "--address", "h", "--tags", "x")
    text = ok(own.address, "services").decode()
    (found,) = json.loads(text)
    assert list(found) == ["web1"]
    assert text == json.dumps([found], sort_keys=True, separators=(",", ": ")) + "\n"
    text = ok(own.address, "services", "-i", "2").decode()
    assert text == json.dumps([found], sort_keys=True, indent=2, separators=(",", ": ")) + "\n"
    assert ok(own.address, "deregister", "web1") == b""
    assert services() == {}


# -- ACLs ----------------------------------------------------------------------------------------------------------

LOCKED = {"acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": "root-token"}}}


@pytest.fixture(scope="module")
def locked():
    with Agent(LOCKED) as agent:
        yield agent


def tokens(agent):
    """Name and rules of each legacy token by its ID, by curl."""
    found = json.loads(Curl(agent.url, "root-token")("GET", "acl/list")[1])
    return {each["ID"]: (each["Name"], each["Type"], each["Rules"]) for each in found}


def test_legacy_tokens_are_backed_up_and_restored(locked, tmp_path):
    root = Curl(locked.url, "root-token")
    body = {"ID": "the-secret", "Name": "app", "Type": "client", "Rules": 'key "a" { policy = "write" }'}
    assert root("PUT", "acl/create", json.dumps(body).encode())[0] == 200
    before = tokens(locked)
    path = tmp_path / "acl.json"
    environ = {"CONSUL_HTTP_TOKEN": "root-token"}
    assert ok(locked.address, "acl", "backup", "-f", path, **environ) == b""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    saved = ok(locked.address, "acl", "backup", **environ)
    assert {each["ID"] for each in json.loads(saved)} == set(before)
    assert {each["ID"] for each in json.loads(path.read_bytes())} == set(before)
    pretty = ok(locked.address, "acl", "backup", "--pretty", **environ).decode()
    assert pretty == json.dumps(json.loads(pretty), sort_keys=True, indent=2, separators=(",", ": ")) + "\n"
    root("PUT", "acl/update", json.dumps({**body, "Rules": ""}).encode())
    said = ok(locked.address, "acl", "restore", "-n", "-f", path, **environ)
    assert said == b"0 ACLs written\n"
    assert tokens(locked)["the-secret"][2] == ""
    root("PUT", "acl/destroy/the-secret")
    assert ok(locked.address, "acl", "restore", "--no-replace", input=saved, **environ) == b"1 ACLs written\n"
    assert tokens(locked) == before
    root("PUT", "acl/update", json.dumps({**body, "Rules": ""}).encode())
    assert ok(locked.address, "acl", "restore", input=saved, **environ) == b"1 ACLs written\n"
    assert tokens(locked) == before
    assert ok(locked.address, "acl", "restore", input=saved, **environ) == b"0 ACLs written\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"nothing", "the input is not JSON"),
        (b"{}", "the input is not a JSON list"),
        (b'[{"ID":"the-id","Name":"n","Type":"client"}]', "row 1 has no Rules"),
        (b'[{"ID":"","Name":"n","Type":"client","Rules":""}]', "row 1 has an empty ID"),
        (b"[5]", "row 1 is not an object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'[{"a":' * 50_000, "nested too deeply"),
        (b'[{"ID":"the-id","Name":"n","Type":"nonsense","Rules":""}]', "stopped at row 1, 0 ACLs written before it: "),
    ],
    ids=lambda value: repr(value[:30]),  # pytest puts it into a variable of the environment, which has a limit
)
def test_bad_acl_input_is_named_without_the_id(locked, text, words):
    before = tokens(locked)
    said = fails(locked.address, "acl", "restore", input=text, CONSUL_HTTP_TOKEN="root-token")
    assert words in said
    assert "the-id" not in said
    assert tokens(locked) == before


@pytest.mark.parametrize("row", ["5", "{}", '{"ID": 5}', "null"])
def test_odd_acls_of_a_server_are_one_line(own, proxy_of_own, row):
    proxy_of_own.fault = lambda seen: (200, f"[{row}]".encode()) if seen.path == "/v1/acl/list" else None
    for words in ("restore", "backup"):
        assert "/v1/acl/list: wanted " in fails(proxy_of_own.address, "acl", words, input=b"[]")


@pytest.mark.parametrize("depth", [100, 400, 900, 980, 1100, 100_000])
def test_acls_that_are_nested_deeply_are_written_or_refused(own, proxy_of_own, tmp_path, depth):
    """What can be decoded may be too deep to be written with indents."""
    text = '[{"ID": "a", "b": ' + "[" * depth + "]" * depth + "}]"
    proxy_of_own.fault = lambda seen: (200, text.encode()) if seen.path == "/v1/acl/list" else None
    path = tmp_path / "acl.json"
    done = consulate(proxy_of_own.address, "acl", "backup", "-p", "-f", path)
    if depth == 100 or done.returncode == 0:
        assert "".join(path.read_text().split()) == text.replace(" ", "")
    else:
        assert (done.returncode, done.stderr.count(b"\n"), os.listdir(tmp_path)) == (1, 1, [])
        assert b"nested too deeply" in done.stderr or b"wanted JSON" in done.stderr


def test_acls_need_a_token_and_acls(agent, locked):
    assert "403" in fails(locked.address, "acl", "backup")
    assert "401" in fails(agent.address, "acl", "backup")


# -- run_once ------------------------------------------------------------------------------------------------------


def test_run_once_runs_the_whole_command(agent, curl):
    show = "import sys; print(sys.argv[1:])"
    words = ["-x", "--interval", "-i", "a b", "--", "$HOME", "--token"]
    said = ok(agent.address, "run_once", "jobs/a", sys.executable, "-c", show, *words)
    assert said.decode() == f"{words}\n"
    said = ok(agent.address, "run_once", "jobs/a", "--", sys.executable, "-c", show, "--version")
    assert said == b"['--version']\n"
    assert ok(agent.address, "run_once", "jobs/a", "echo one; echo two") == b"one\ntwo\n"
    assert ok(agent.address, "run_once", "jobs/a", "cat", "-", input=b"\xff") == b"\xff"
    assert curl.keys() == []


def test_run_once_exits_as_the_command_does(agent, curl):
    assert consulate(agent.address, "run_once", "a", "sh", "-c", "exit 7").returncode == 7
    assert consulate(agent.address, "run_once", "a", "exit 9").returncode == 9
    assert consulate(agent.address, "run_once", "a", "sh", "-c", "kill -9 $$").returncode == 137
    assert "No such file" in fails(agent.address, "run_once", "a", "/nowhere/x", "y", status=127)
    assert "ermission" in fails(agent.address, "run_once", "a", "/etc/passwd", "y", status=126)
    assert "needs a command" in fails(agent.address, "run_once", "a")
    assert "needs a command" in fails(agent.address, "run_once", "a", "--")
    assert curl.keys() == []


@contextlib.contextmanager
def running(agent, *words):
    process = subprocess.Popen(
        [COMMAND, "run_once", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(agent.address),
        preexec_fn=die_with_parent,
    )
    try:
        assert process.stdout.readline() == b"begun\n"
        yield process
    finally:
        process.kill()
        process.wait(LIMIT)


def test_run_once_exits_2_while_another_runs(agent, curl):
    with running(agent, "jobs/b", "sh", "-c", "echo begun; exec sleep 100") as process:
        assert curl.record("jobs/b")["Session"]
        assert "Cannot obtain the required lock" in fails(agent.address, "run_once", "jobs/b", "echo", "no", status=2)
        assert ok(agent.address, "run_once", "jobs/c", "echo", "yes") == b"yes\n"
        process.terminate()
        assert process.wait(LIMIT) == 128 + signal.SIGTERM
        assert process.stderr.read() == b""
        assert curl.keys() == []
    assert ok(agent.address, "run_once", "jobs/b", "echo", "yes") == b"yes\n"


def test_what_ends_run_once_is_for_the_command(agent, curl):
    script = "trap 'echo ended; exit 5' TERM; echo begun; while :; do sleep 0.05; done"
    with running(agent, "jobs/d", "sh", "-c", script) as process:
        process.terminate()
        assert process.stdout.read() == b"ended\n"
        assert process.wait(LIMIT) == 5


def lives(pid):
    """Whether a process runs still; a zombie does not."""
    try:
        return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    "script",
    [
        "{work} & echo $! >{pids}; echo begun; wait; true",
        "sh -c 'echo begun; {work} & echo $! >{pids}; wait; true'; true",
        "setsid {work} & echo $! >{pids}; echo begun; exit 5",  # its parent is gone already
    ],
)
def test_no_child_of_the_command_outlives_the_lock(agent, curl, tmp_path, script, number):
    pids, noted, ready = tmp_path / "pids", tmp_path / "noted", tmp_path / "ready"
    work = tmp_path / "work"
    # It ends slowly, so that a lock that is given back at once is seen.
    work.write_text(f"""trap 'sleep 0.5; curl -s "{agent.url}/kv/jobs/g?raw" -o /dev/null -w "%{{http_code}}" >{noted}
exit' TERM HUP
touch {ready}
while :; do sleep 0.05; done""")
    text = script.format(work=f"sh {work}", pids=pids)
    if "exit 5" in text:
        text = f"({text}); while :; do sleep 0.05; done"
    with running(agent, "jobs/g", text) as process:
        until(lambda: ready.exists() and pids.exists() and pids.read_text().strip())
        assert lives(pids.read_text())
        process.send_signal(number)
        assert process.wait(LIMIT) in (0, 128 + number)
        assert not lives(pids.read_text())
        assert noted.read_text() == "200"
    assert curl.keys() == []


def test_a_command_that_ends_by_itself_may_leave_something_behind(agent, curl, tmp_path):
    pids = tmp_path / "pids"
    assert ok(agent.address, "run_once", "jobs/h", f"sleep 100 >/dev/null 2>&1 & echo $! >{pids}") == b""
    assert lives(pids.read_text())
    os.kill(int(pids.read_text()), signal.SIGKILL)


def test_what_was_ignored_stays_ignored(agent, curl):
    script = "kill -HUP $PPID; kill -HUP $$; echo still here"
    command = ["nohup", COMMAND, "run_once", "jobs/i", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, env=environment(agent.address), timeout=LIMIT)
    assert (done.returncode, done.stdout) == (0, b"still here\n")


def test_the_terminal_is_the_commands(agent, curl):
    """It reads from it and Ctrl-C reaches it."""
    script = "trap 'echo caught; exit 4' INT; read line; echo got $line; while :; do sleep 0.05; done"
    main, child = pty.openpty()

    def take_terminal():
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [COMMAND, "run_once", "jobs/j", "sh", "-c", script],
        stdin=child, stdout=child, stderr=child, env=environment(agent.address), preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(child)
    said = b""
    with open(main, "r+b", buffering=0) as terminal:
        terminal.write(b"hello\n")
        while b"got hello" not in said:
            said += terminal.read(1000)
        terminal.write(b"\x03")
        with contextlib.suppress(OSError):
            while piece := terminal.read(1000):
                said += piece
    assert process.wait(LIMIT) == 4
    assert b"caught" in said


def test_a_lock_has_a_name(agent, curl):
    for name in ("", "/"):
        assert "needs the name of a lock" in fails(agent.address, "run_once", name, "echo", "no")
    assert curl.keys() == []


def test_run_once_does_not_run_again_within_the_interval(agent, curl):
    assert ok(agent.address, "run_once", "-i", "100", "jobs/e", "echo", "ran") == b"ran\n"
    assert curl.keys() == ["jobs/e_last_run"]
    assert abs(int(curl.get("jobs/e_last_run")) - time.time()) < 100
    said = ok(agent.address, "run_once", "--interval", "100", "jobs/e", "echo", "ran")
    assert said == b"Last run happened fewer than 100 seconds ago. Exiting\n"
    assert ok(agent.address, "run_once", "jobs/e", "echo", "ran") == b"ran\n"
    curl.put("jobs/e_last_run", b"%d" % (time.time() - 101))
    assert ok(agent.address, "run_once", "-i", "100", "jobs/e", "echo", "ran") == b"ran\n"
    assert int(curl.get("jobs/e_last_run")) > time.time() - 100
    assert ok(agent.address, "run_once", "-i", "5m", "jobs/e", "echo", "ran") == said.replace(b"100", b"300")
    curl.put("jobs/e_last_run", b"yesterday")
    assert "jobs/e_last_run holds no time" in fails(agent.address, "run_once", "-i", "1", "jobs/e", "echo", "no")
    assert "not a duration" in fails(agent.address, "run_once", "-i", "soon", "jobs/e", "echo", "no")
    assert curl.keys() == ["jobs/e_last_run"]


def test_a_lock_that_was_lost_is_told_and_the_commands_status_counts(agent, curl):
    find = f"""curl -s {agent.url}/kv/jobs/f | sed -n 's/.*"Session": "\\([^"]*\\)".*/\\1/p'"""
    script = f"echo begun; curl -s -X PUT {agent.url}/session/destroy/$({find}); exit 3"
    with running(agent, "jobs/f", "sh", "-c", script) as process:
        assert process.wait(LIMIT) == 3
        assert b"lost" in process.stderr.read()
