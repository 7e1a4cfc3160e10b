"""A new endpoint is one new file: a copy of the package with two of them, mounted."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import sys
import time
from pathlib import Path

import pytest
from support.catalog import put_check, put_node, remove_node
from support.curl import Curl
from support.errors import errno_of
from support.mount import Mount
from support.proxy import Proxy, fewest
from support.registry import text_of
from support.waiting import until

TOP = Path(__file__).parent.parent

FORMS = '''
"""Each form that a part can have, in each that can hold it."""

from consulfs.tree.virtual.asks import checks_of_service, instances, services
from consulfs.tree.virtual.parts import Endpoint, Folder, Groups, Leaf, Rows, by, column


def _checks_there(consul, left, service, node):
    return [row for row in checks_of_service(consul, left, service) if row["Node"] == node]


def _first_check(consul, left, service):
    return checks_of_service(consul, left, service)[:1]


def _ours(consul, left):
    return [name for name in services(consul, left) if name.startswith("forms")]


_INSTANCES = Rows(instances, by("Node", "ServiceID"))

ENDPOINT = Endpoint(
    "_forms",
    lambda facts: Folder(
        {
            "leaf": Leaf(_ours),
            "lacking": Leaf(lambda consul, left: consul.agent.host(timeout=left), optional=True),
            "rows": Rows(lambda consul, left: consul.catalog.service("forms-a", timeout=left), by("ServiceID")),
            "of rows": Groups(_ours, _INSTANCES),
            "of leaf": Groups(_ours, Leaf(instances)),
            "of groups": Groups(_ours, Groups(instances, Leaf(_checks_there), column("Node"))),
            "of folder": Groups(
                _ours,
                Folder(
                    {
                        "instances": _INSTANCES,
                        "all": Leaf(instances),
                        "checks": Rows(checks_of_service, by("CheckID"), optional=True),
                        "first": Leaf(_first_check, optional=True),
                    }
                ),
            ),
        }
    ),
)
'''

SERVICES = ("forms-a", "forms-b")

LACKED = ("/v1/agent/host", "/v1/health/checks/forms-b")
"""What the server does not know, it says: the second for one group alone."""


def endpoint_of_the_architecture(name):
    [text] = re.findall("```python\n(.*?)```", (TOP / "docs/architecture.md").read_text(), re.DOTALL)
    assert text.count('"_coordinate"') == 1
    return text.replace('"_coordinate"', f'"{name}"')


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(TOP / "consulfs", folder / "consulfs")
    endpoints = folder / "consulfs/tree/virtual/endpoints"
    (endpoints / "forms.py").write_text(FORMS)
    (endpoints / "distances.py").write_text(endpoint_of_the_architecture("_distances"))
    # `python -m` looks first where it is started, and that is where the package is that it stands in for.
    return ("env", f"--chdir={folder}", f"PYTHONPATH={folder}", sys.executable, "-m", "consulfs")


@pytest.fixture(scope="module")
def services(agent):
    curl = Curl(agent.url)
    for node in ("forms-1", "forms-2"):
        for service in SERVICES:
            put_node(curl, node, Service={"Service": service, "ID": f"{service}/{node}"})
            put_check(curl, node, f"alive/{service}/{node}", "passing", ServiceID=f"{service}/{node}")
    until(lambda: set(SERVICES) <= curl.json("catalog/services").keys())
    yield
    for node in ("forms-1", "forms-2"):
        remove_node(curl, node)


@pytest.fixture(scope="module")
def lacking(agent):
    with Proxy(agent.port) as proxy:
        proxy.fault = lambda seen: (404, b"") if seen.path.split("?")[0] in LACKED else None
        yield proxy


@pytest.fixture(scope="module")
def extended(command, lacking, services):
    with Mount(lacking.address, "timeout=20", command) as mount:
        yield mount


def test_a_new_file_is_a_new_tree_and_its_name_is_taken(extended, curl):
    curl.put("_forms/key", b"text")
    curl.put("_distances", b"text")
    assert {"_forms", "_distances", "_catalog", "%5Fforms", "%5Fdistances"} <= set(os.listdir(extended.path))
    assert (extended.path / "%5Fforms/key").read_bytes() == b"text"
    assert errno_of(os.mkdir, extended.path / "_forms/new") == errno.EROFS


def test_the_endpoint_that_the_architecture_shows_works(extended, curl):
    rows = {row["Node"]: row for row in curl.json("coordinate/nodes")}
    folder = extended.path / "_distances/nodes"
    assert set(os.listdir(folder)) == rows.keys()


def expected(curl):
    """The content of each file below `_forms`."""
    found = {"leaf": text_of([*SERVICES])}
    for name in SERVICES:
        rows, checks = curl.json(f"catalog/service/{name}"), curl.json(f"health/checks/{name}")
        assert len(rows) == len(checks) == 2
        for row in rows:
            file = row["ServiceID"].replace("/", "%2F")
            found[f"of rows/{name}/{row['Node']}:{file}"] = text_of(row)
            found[f"of folder/{name}/instances/{row['Node']}:{file}"] = text_of(row)
            if name == "forms-a":
                found[f"rows/{file}"] = text_of(row)
        found[f"of leaf/{name}"] = found[f"of folder/{name}/all"] = text_of(rows)
        if name == "forms-a":
            for row in checks:
                found[f"of groups/{name}/{row['Node']}"] = text_of([row])
                found[f"of folder/{name}/checks/{row['CheckID'].replace('/', '%2F')}"] = text_of(row)
            found[f"of folder/{name}/first"] = text_of(checks[:1])
    return found


def entries(folder):
    """Every entry below a directory, as the directories themselves tell of it: nothing is looked at."""
    with os.scandir(folder) as found:
        for entry in list(found):
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from entries(entry.path)


def test_each_form_shows_what_consul_says(extended, curl):
    root = extended.path / "_forms"
    files = {os.path.relpath(entry.path, root): Path(entry.path) for entry in entries(root) if entry.is_file()}
    # In a group of groups there is no optional part: what Consul refuses is refused there.
    refused = {f"of groups/forms-b/{node}" for node in ("forms-1", "forms-2")}
    wanted = expected(curl)
    assert files.keys() == wanted.keys() | refused
    assert {path: files[path].read_bytes() for path in wanted} == wanted


def test_a_directory_tells_of_its_entries_what_stat_tells(extended):
    kinds = {True: set(), False: set()}
    for entry in entries(extended.path / "_forms"):
        listed = (entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False), entry.inode())
        try:
            found = os.stat(entry.path)
        except OSError:
            assert "of groups/forms-b/" in entry.path
            continue
        assert listed == (stat.S_ISDIR(found.st_mode), stat.S_ISREG(found.st_mode), found.st_ino), entry.path
        kinds[listed[0]].add(os.path.relpath(entry.path, extended.path / "_forms").split("/")[0])
    assert {"of rows", "of leaf", "of groups", "of folder"} <= kinds[True] & kinds[False]


def test_what_the_server_lacks_for_one_group_is_not_there_in_that_one_alone(extended, lacking):
    assert "lacking" not in os.listdir(extended.path / "_forms")
    of = extended.path / "_forms/of folder"
    whole, part = {"instances", "all", "checks", "first"}, {"instances", "all"}
    assert [set(os.listdir(of / name)) for name in SERVICES] == [whole, part]
    for name in whole - part:
        for call in (os.stat, os.listdir, lambda path: open(path).close()):
            assert errno_of(call, of / "forms-b" / name) == errno.ENOENT

    def again():
        everything()
        time.sleep(2)
        with lacking.counting() as count:
            everything()
        count.requests = [seen for seen in count.requests if seen.path.startswith(("/v1/health/checks", "/v1/agent"))]
        return count

    def everything():
        assert [set(os.listdir(of / name)) for name in SERVICES] == [whole, part]
        assert "lacking" not in os.listdir(extended.path / "_forms")

    assert fewest(again).requests == []
