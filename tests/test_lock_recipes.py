"""The recipes of docs/locks.md, each run as it stands there, on two mounts."""

import json
import os
import re
import signal
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.agent import TOP, consul_command
from support.mount import Mount
from support.sessions import destroy_session, holder
from support.waiting import until

PAGE = (TOP / "docs/locks.md").read_text()
RECIPES = dict(re.findall(r"^### ([^\n]*)\n(?:(?!^###).)*?^```sh\n(.*?)^```$", PAGE, re.M | re.S))

OPTIONS = "timeout=1,lock_ttl=10s,lock_delay=2s"


@pytest.fixture
def two(agent, curl):
    with Mount(agent.address, OPTIONS) as one, Mount(agent.address, OPTIONS) as other:
        yield one, other


@pytest.fixture
def first_by_proxy(agent, curl, proxy):
    with Mount(proxy.address, OPTIONS) as one, Mount(agent.address, OPTIONS) as other:
        yield one, other


@pytest.fixture
def run(agent, curl, tmp_path):
    """Start a recipe on a mount, with words for its command; what it says is on stdout."""
    curl.put("locks/")
    started = []

    def start(recipe, mount, *words):
        text = RECIPES[recipe].replace("/mnt/consul", str(mount.path))
        path = tmp_path / f"recipe{len(started)}"
        path.write_text(text.replace("localhost:8500", agent.address))
        process = subprocess.Popen(
            ["bash", str(path), *words],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        end(process)


def end(process):
    """End a script and all that it started, so that nothing keeps its mount busy."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
    process.stdout.close()


def outcome(process):
    """(exit status, what it said)"""
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


@contextmanager
def held(mount, name):
    """The file is locked on a mount."""
    holder = subprocess.Popen(
        ["flock", name, "sh", "-c", "echo; cat"],
        cwd=mount.path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        holder.stdout.readline()
        yield
    finally:
        holder.communicate()


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def test_every_recipe_of_the_page_is_run_here():
    here = Path(__file__).read_text()
    assert len(RECIPES) == PAGE.count("```sh\n")
    assert [recipe for recipe in RECIPES if f'"{recipe}"' not in here] == []


def test_a_cron_job_runs_on_one_host_once_a_day(two, run, curl, tmp_path):
    recipe, runs = "A cron job that one host runs", tmp_path / "runs"
    job = ("sh", "-c", f"echo run >> {runs}; sleep 1")
    assert [outcome(each) for each in [run(recipe, mount, *job) for mount in two]] == [(0, "")] * 2
    assert outcome(run(recipe, two[0], *job)) == (0, "")
    assert lines(runs) == ["run"]
    assert re.fullmatch(rb"\d{4}-\d\d-\d\d\n", curl.get("locks/nightly"))


def test_a_cron_job_that_failed_is_run_again_and_so_is_yesterdays(two, run, curl, tmp_path):
    recipe, runs = "A cron job that one host runs", tmp_path / "runs"
    curl.put("locks/nightly", b"2001-01-01\n")
    assert outcome(run(recipe, two[0], "sh", "-c", f"echo failed >> {runs}; exit 3")) == (3, "")
    assert outcome(run(recipe, two[1], "sh", "-c", f"echo done >> {runs}")) == (0, "")
    assert lines(runs) == ["failed", "done"]
    assert curl.get("locks/nightly") != b"2001-01-01\n"


def service(name, log):
    """A service that says when it begins, and once when it ends, however often it is told to."""
    script = (
        f'echo up {name} >> {log}; trap exit TERM; trap "echo down {name} >> {log}" EXIT; while :; do sleep 0.1; done'
    )
    return "sh", "-c", script


def test_a_leader_that_is_cut_off_ends_its_service_before_the_next_one_begins(
    first_by_proxy, proxy, run, curl, tmp_path
):
    recipe, log = "A leader", tmp_path / "log"
    one, other = first_by_proxy
    first = run(recipe, one, *service("one", log))
    until(lambda: lines(log) == ["up one"])
    second = run(recipe, other, *service("other", log))
    assert curl.get("locks/leader").split()[0].decode() == os.uname().nodename
    proxy.fault = lambda seen: "drop"
    until(lambda: "up other" in lines(log))
    assert lines(log) == ["up one", "down one", "up other"]
    proxy.fault = lambda seen: None
    end(second)
    until(lambda: lines(log)[3:] == ["down other", "up one"])
    assert first.poll() is None


def test_a_leader_that_lost_its_session_notices_by_its_beat(two, run, curl, tmp_path):
    recipe, log = "A leader", tmp_path / "log"
    first = run(recipe, two[0], *service("one", log))
    until(lambda: lines(log) == ["up one"])
    run(recipe, two[1], *service("other", log))
    destroy_session(curl, holder(curl, "locks/leader"))
    until(lambda: "down one" in lines(log))
    until(lambda: len(lines(log)) > 2)
    assert sorted(lines(log)[:3]) in (["down one", "up one", "up one"], ["down one", "up one", "up other"])
    assert len(two[0].losses()) == 1
    end(first)


def test_a_leader_is_ended_by_its_number_and_so_is_one_that_waits_to_be(two, run, curl, tmp_path):
    recipe, log = "A leader", tmp_path / "log"
    first = run(recipe, two[0], *service("one", log))
    until(lambda: lines(log) == ["up one"])
    second, third = [run(recipe, two[1], *service(name, log)) for name in ("two", "three")]
    until(lambda: has_child(second, "flock") and has_child(third, "flock"))
    second.terminate()
    assert outcome(second)[0] == 0  # its output ends, so none that it started is left
    assert lines(log) == ["up one"]
    first.terminate()
    assert outcome(first)[0] == 0
    until(lambda: lines(log) == ["up one", "down one", "up three"])


def has_child(process, name):
    """Whether a process has a child that runs a command."""
    for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        with suppress(OSError):  # it has ended
            if Path(f"/proc/{number}/comm").read_text() == name + "\n":
                return True
    return False


def test_a_rolling_restart_is_on_one_host_at_a_time_and_stops_at_a_failure(two, run, curl, tmp_path):
    recipe, log = "A rolling restart", tmp_path / "log"
    restart = ("sh", "-c", f"echo begin >> {log}; sleep 0.3; echo end >> {log}")
    assert [outcome(each) for each in [run(recipe, mount, *restart) for mount in two * 2]] == [(0, "")] * 4
    assert lines(log) == ["begin", "end"] * 4
    assert outcome(run(recipe, two[0], "false")) == (1, "")
    name = os.uname().nodename
    assert outcome(run(recipe, two[1], *restart)) == (1, f"not begun: it failed on {name}\n")
    two[1].ok(": > locks/restart")
    assert outcome(run(recipe, two[0], *restart)) == (0, "")
    assert lines(log) == ["begin", "end"] * 5


def test_a_host_is_there_as_long_as_its_mount(two, run, curl):
    name = os.uname().nodename
    curl.put("hosts/")
    for _ in range(2):  # as cron does
        assert outcome(run("Which hosts are there", two[0])) == (0, "")
    assert two[1].ok("ls hosts") == name + "\n"
    assert two[1].ok("getfattr --only-values -n user.consul.ephemeral hosts/*") == "1"
    said = outcome(run("Which hosts are there", two[1]))  # as after a crash
    assert said[0] == 1
    assert "Device or resource busy" in said[1]
    two[0].stop()
    assert curl.keys() == ["hosts/", "locks/"]
    assert outcome(run("Which hosts are there", two[1])) == (0, "")
    two[1].kill()
    until(lambda: curl.keys() == ["hosts/", "locks/"])


def test_waiting_has_a_limit(two, run, curl):
    recipe = "Waiting no longer than a limit"
    with held(two[1], "locks/deploy"):
        assert outcome(run(recipe, two[0])) == (75, "")
    assert outcome(run(recipe, two[0])) == (0, "deployed\n")


def test_who_holds_a_lock(two, run, curl):
    recipe = "Who holds a lock"
    with held(two[1], "locks/deploy"):
        status, said = outcome(run(recipe, two[0]))
        assert status == 0
        assert json.loads(said)[0]["Name"].startswith(f"consulfs {os.uname().nodename}:{two[1].path} ")
    until(lambda: holder(curl, "locks/deploy") is None)
    status, said = outcome(run(recipe, two[1]))
    assert status == 1
    assert "No such attribute" in said


def test_consul_lock_and_flock_exclude_each_other(agent, two, run, curl, tmp_path):
    recipe, log = "Together with consul lock", tmp_path / "log"
    job = f"echo begin >> {log}; sleep 0.3; echo end >> {log}"
    consul = [consul_command(), "lock", f"-http-addr=http://{agent.address}", "jobs/backup", job]
    others = [subprocess.Popen(consul, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(3)]
    try:
        ours = [run(recipe, mount, "jobs/backup", "sh", "-c", job) for mount in two * 2]
        assert [outcome(each)[0] for each in ours + others] == [0] * 7
    finally:
        for each in others:
            each.kill()
            each.communicate()
    assert lines(log) == ["begin", "end"] * 7
