"""The rooms and their order: imports run one way."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "consulfs"

FLOORS = {
    "consulate": 0,
    "errors": 1,
    "inotify": 2,
    "metrics": 1,
    "mounts": 1,
    "names": 1,
    "options": 1,
    "processes": 1,
    "repeater": 2,
    "source": 1,
    "threads": 1,
    "workers": 1,
    "store": 2,
    "tree": 3,
    "filesystem": 4,
    "binding": 5,
    "devagent": 5,
    "assembly": 6,
    "daemon": 7,
    "cli": 8,
    "__main__": 9,
}


def imports_of(path):
    """The rooms of the package that a file imports from, those for type checking alone included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("consulfs"):
            parts = node.module.split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            yield from names


def room(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def test_imports_run_downwards():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        here = room(path)
        if here in ("__init__", "_version"):
            continue
        for there in imports_of(path):
            if there not in ("_version", "__version__", here) and FLOORS[there] >= FLOORS[here]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {there}")
    assert wrong == []


def test_only_the_binding_knows_fuse():
    users = [path.name for path in PACKAGE.rglob("*.py") if "mfusepy" in path.read_text().split('"""', 2)[-1]]
    assert users == ["binding.py"]


def test_every_module_says_what_it_is():
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
