"""The trees that are measured: the same names and contents in Consul, in the floor and on a tmpfs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from consulfs.consulate import Consul
from consulfs.consulate.api.txn import operation

ROOT = "tree"
"""All of a tree is below this directory: at the root of a mount the virtual trees are, too."""

BATCH = 64
"""Operations that a server of any version takes in one transaction."""


@dataclass(frozen=True)
class Tree:
    """So many directories with so many files each, of so many bytes."""

    directories: int
    files: int
    size: int = 100

    def __len__(self) -> int:
        return self.directories * self.files

    def folders(self) -> Iterator[str]:
        return (f"{ROOT}/d{number:04}" for number in range(self.directories))

    def paths(self) -> Iterator[str]:
        return (f"{folder}/k{number:04}" for folder in self.folders() for number in range(self.files))

    @property
    def first(self) -> str:
        return next(self.paths())

    @property
    def content(self) -> bytes:
        return b"x" * self.size

    def fill(self, port: int) -> None:
        """Write it to a Consul."""
        paths, content = list(self.paths()), self.content
        with Consul("127.0.0.1", port, timeout=60) as consul:
            for start in range(0, len(paths), BATCH):
                consul.txn.execute([operation("set", path, content) for path in paths[start : start + BATCH]])

    def write(self, folder: Path) -> None:
        """Write it to a directory."""
        for name in self.folders():
            (folder / name).mkdir(parents=True)
        for path in self.paths():
            (folder / path).write_bytes(self.content)
