"""The recipes of docs/caching.md, each run as it stands there, beside a writer that is no mount."""

import os
import re
import shutil
import signal
import subprocess
import time
from configparser import ConfigParser
from pathlib import Path

import pytest
from support.agent import TOP, die_with_parent
from support.mount import LIMIT, Mount
from support.waiting import until

PAGE = (TOP / "docs/caching.md").read_text()
SECTIONS = {part.split("\n", 1)[0]: part for part in re.split(r"^##+ ", PAGE, flags=re.M)}
RECIPES = {
    title: match[1]
    for title, part in SECTIONS.items()
    for match in re.finditer(r"^```sh\n(.*?)^```$", part, re.M | re.S)
}


@pytest.fixture
def mnt(agent, curl):
    curl.put("app/config", b"one\n")
    curl.put("app/other", b"-\n")
    with Mount(agent.address) as mount:
        yield mount


@pytest.fixture
def recipe(mnt, tmp_path):
    """Start a recipe with words for its arguments, in a group of its own; what it says goes to a file."""
    started = []

    def start(title, *words):
        script, said = tmp_path / f"{len(started)}.sh", tmp_path / f"{len(started)}.said"
        script.write_text(RECIPES[title].replace("/mnt/consul", str(mnt.path)))
        with open(said, "wb") as output:
            process = subprocess.Popen(
                ["bash", str(script), *map(str, words)],
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        started.append(process)
        return process, said

    yield start
    for process in started:
        end(process)


def end(process):
    """End a script and all that it started, so that nothing keeps the mount busy."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


def needs(command):
    return pytest.mark.skipif(not shutil.which(command), reason=f"needs {command}")


def check_reloads(curl, said):
    """A command that shows the file runs after each change: at last it shows the last, and never goes back."""
    for number in range(LIMIT):  # what is changed before the script waits is nothing that it can see
        curl.put("app/config", b"%d\n" % number)
        time.sleep(1)
        if len(said.read_text().split()) > 1:
            break
    curl.put("app/config", b"999\n")
    until(lambda: "999" in said.read_text().split())
    seen = [int(word) for word in said.read_text().split()]
    assert seen == sorted(seen)


def test_every_recipe_of_the_page_is_run_here():
    here = Path(__file__).read_text()
    assert len(RECIPES) == PAGE.count("```sh\n")
    assert [title for title in RECIPES if f'"{title}"' not in here] == []


@needs("inotifywait")
def test_reload_with_inotifywait(recipe, mnt, curl):
    title = "Reload a service when something has changed"
    check_reloads(curl, recipe(title, mnt.path / "app", "cat", mnt.path / "app/config")[1])


def test_reload_with_a_shell_alone(recipe, mnt, curl):
    title, file = "The same with a shell alone", mnt.path / "app/config"
    check_reloads(curl, recipe(title, file, "cat", file)[1])


def test_the_shell_waits_for_a_file_that_is_away(recipe, mnt, curl):
    title, file = "The same with a shell alone", mnt.path / "app/config"
    process, said = recipe(title, file, "cat", file)
    check_reloads(curl, said)
    curl.delete("app/config")
    until(lambda: not file.exists())
    time.sleep(2)
    assert process.poll() is None
    curl.put("app/config", b"1000\n")
    until(lambda: "1000" in said.read_text().split())


@needs("entr")
def test_reload_with_entr(recipe, mnt, curl):
    check_reloads(curl, recipe("The same with entr", mnt.path / "app", "cat", mnt.path / "app/config")[1])


def test_wait_until_a_key_is_there(recipe, mnt, curl):
    process, said = recipe("Wait until a key is there", mnt.path / "app/ready", LIMIT)
    time.sleep(0.5)
    assert process.poll() is None
    curl.put("app/ready")
    assert process.wait(LIMIT) == 0
    assert said.read_text() == ""


def test_wait_for_a_key_that_does_not_come(recipe, mnt):
    process, said = recipe("Wait until a key is there", mnt.path / "app/never", 1)
    assert process.wait(LIMIT) == 124
    assert said.read_text() == ""


def test_the_units_fit_together(tmp_path):
    units = dict(re.findall(r"`([a-z-]+\.(?:path|service))`:\n\n```ini\n(.*?)^```$", PAGE, re.M | re.S))
    assert sorted(units) == ["reload-web.path", "reload-web.service"]
    parsed = {}
    for name, text in units.items():
        (tmp_path / name).write_text(text)
        parsed[name] = ConfigParser(interpolation=None)
        parsed[name].read_string(text)
    assert parsed["reload-web.path"]["Path"]["Unit"] == "reload-web.service"
    if shutil.which("systemd-analyze"):
        done = subprocess.run(
            ["systemd-analyze", "verify", *(str(tmp_path / name) for name in units)],
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert [line for line in done.stderr.splitlines() if "reload-web" in line] == []
