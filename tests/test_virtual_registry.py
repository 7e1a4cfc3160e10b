"""The registry of a cluster in the virtual trees: every leaf of every tree as curl has it, whatever it is called."""

from __future__ import annotations

import json
import os
import stat

import pytest
from support.agent import Agent
from support.curl import Curl
from support.mount import Mount
from support.registry import TREES, expected, fill, flat
from support.waiting import until

ELSEWHERE = {"_acl", "_consulfs"}
"""Trees that have tests of their own."""

MOVING = {"_agent/metrics": {"Timestamp"}, "_agent/self": {"Stats", "Coord"}}
"""What changes between two answers: by leaf, the fields that may differ. The rest of metrics may, too: see `same`."""


@pytest.fixture(scope="module")
def agent():
    with Agent() as agent:
        fill(Curl(agent.url))
        yield agent


@pytest.fixture(scope="module")
def mount(agent):
    with Mount(agent.address, "timeout=20") as mount:
        yield mount


@pytest.fixture
def curl(agent):
    """The keys stay."""
    return Curl(agent.url)


def text_of(value):
    """The content of a file: plain text for scalars, else JSON."""
    scalars = value if isinstance(value, list) else [value]
    if any(isinstance(each, (dict, list)) for each in scalars):
        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return "".join(f"{each}\n" for each in scalars)


def same(path, content, value):
    """Whether a file shows what curl was told."""
    if path not in MOVING:
        return content.decode() == text_of(value)
    # The agent counts its own requests, curl's too: no two answers are equal. So the fields and their kinds are.
    found = json.loads(content)
    assert content.decode() == text_of(found)
    fixed = {name for name in value if path != "_agent/metrics" and name not in MOVING[path]}
    kinds = [{name: type(each) for name, each in answer.items()} for answer in (found, value)]
    return kinds[0] == kinds[1] and all(found[name] == value[name] for name in fixed)


def walked(root, tree):
    """(the content of each file by its path, the directories) of a tree, as the mount has it."""
    files, directories = {}, set()
    for folder, folders, names in os.walk(root / tree, onerror=fail):
        where = os.path.relpath(folder, root)
        directories.add(where)
        assert len(set(folders + names)) == len(folders + names)
        for name in names:
            files[f"{where}/{name}"] = read(root / where / name)
    return files, directories


def fail(error):
    raise error


def read(path):
    """The content of a file that is what stat(2) says."""
    with open(path, "rb") as file:
        content, opened = file.read(), os.fstat(file.fileno())
        assert file.read() == b""
    assert opened.st_size == len(content), path
    assert stat.S_IMODE(opened.st_mode) == 0o444, path
    assert stat.S_ISREG(os.stat(path).st_mode), path
    return content


def differences(mount, curl, tree):
    """What the mount and curl say otherwise of a tree."""
    leaves, directories = flat(expected(curl, tree), tree)
    files, folders = walked(mount.path, tree)
    found = [f"missing: {path}" for path in (leaves.keys() - files.keys()) | (directories - folders)]
    found += [f"not in Consul: {path}" for path in (files.keys() - leaves.keys()) | (folders - directories)]
    found += [
        f"{path}: {files[path].decode()} and not {text_of(leaves[path])}"
        for path in leaves.keys() & files.keys()
        if not same(path, files[path], leaves[path])
    ]
    return found


def agree(mount, curl, tree):
    """Until the mount says of a tree what curl says.

    Not at once: an answer stands for a second, and the agent itself writes now and then (its node's coordinate, the
    services that it brings to the catalog). curl is asked before the mount, so a mount that is behind stays behind for
    two seconds at most, and one that is wrong for ever.
    """
    seen = []

    def attempt():
        seen[:] = differences(mount, curl, tree)
        return not seen

    try:
        until(attempt)
    except AssertionError:
        raise AssertionError("\n".join(seen)[:5000]) from None


def test_the_registry_is_one(curl):
    assert len(curl.json("catalog/nodes")) == 3
    assert len(curl.json("catalog/services")) == 21, "20, and Consul itself"
    for state in ("passing", "warning", "critical"):
        assert len({each["Node"] for each in curl.json(f"health/state/{state}")}) == 3, state
    assert len({each["Node"] for each in curl.json("session/list")}) == 3


@pytest.mark.parametrize("tree", sorted(TREES))
def test_every_leaf_is_what_curl_is_told(mount, curl, tree):
    leaves, _ = flat(expected(curl, tree), tree)
    assert leaves, "an empty tree shows nothing"
    agree(mount, curl, tree)


def test_the_trees_are_all_at_the_root_beside_the_keys(mount):
    assert set(os.listdir(mount.path)) - ELSEWHERE == {"app", *TREES}


@pytest.mark.parametrize("tree", sorted(TREES))
def test_a_file_has_the_size_that_ls_shows(mount, tree):
    """By stat(2) alone, before any open: a program that asks for the size reads so many bytes."""
    if tree == "_agent":  # metrics and self move between two looks; each look is measured in `read`
        return
    for path in mount.ok(f"find {tree} -type f -printf '%s %m %p\\n'").splitlines():
        size, mode, name = path.split(" ", 2)
        assert mode == "444", name
        assert int(size) == len((mount.path / name).read_bytes()), name
