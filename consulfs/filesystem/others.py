"""What others did, brought to this mount's programs: to those that have files open, to the kernel, and by inotify."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Optional

from consulfs.consulate import Record
from consulfs.filesystem.kernel import Kernel
from consulfs.filesystem.notices import Notices
from consulfs.filesystem.replay import Replay
from consulfs.repeater import Deed
from consulfs.store.levels import MARKER, News
from consulfs.store.node import Node
from consulfs.store.openfiles import OpenFiles
from consulfs.tree.kv import KVTree

LOCK_SECONDS = 2.0
"""For so long a program that took a lock waits until the kernel has forgotten what may be old."""


class Others:
    """The listener of the watches.

    :ivar replay: has inotify tell; None where it is not to
    """

    def __init__(
        self,
        tree: KVTree,
        files: OpenFiles,
        kernel: Kernel,
        notices: Notices,
    ) -> None:
        self._tree = tree
        self._files = files
        self._kernel = kernel
        self._notices = notices
        self.replay: Optional[Replay] = None

    def __call__(self, news: News, records: Mapping[str, Record]) -> None:
        """Called by the thread of a watch."""
        changed = self._files.heed(news, records)
        if news or changed:
            self._notices.post(lambda: self._announce(news, changed))

    def expire(self, nodes: list[Node]) -> None:
        """What the kernel holds of files that are open may be old: a lock was taken. Returns when it is forgotten."""
        # Not ended by a signal: its program has the lock by now.
        self._notices.post(lambda: self._forget_open(nodes)).wait(LOCK_SECONDS)

    def refresh(self, node: Node) -> None:
        """A store has brought another content than its program wrote: others had changed the file, too."""
        self._notices.post(lambda: self._forget_open([node]))

    # -- on the thread of the notices ------------------------------------------------------------------------

    def _announce(self, news: News, changed: Iterable[Node]) -> None:
        self._forget_open(changed)
        directory = self._tree.path_of_directory(news.prefix)
        for name in news.changed:
            self._forget(news.prefix + name)
        if news.made or news.gone:
            self._tree.renamed_by_others(news.prefix)
            self._notices.invalidate(directory)
        # What is gone is not forgotten, but by the replay: of a name without attributes the kernel asks for these, is
        # told ENOENT, and so says `echo > key`, which would create it (open(2) checks the rights first; measured).
        if self.replay is not None:
            self._repeat(self.replay, news)

    def _forget(self, key: str) -> None:
        self._kernel.forget(key)
        for path in self._tree.paths_of(key):
            self._notices.invalidate(path)

    def _forget_open(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            self._forget(node.key)
            with node.state:
                node.show()
            self._forget(node.key)  # what was read in between was shown as it had been told before

    def _repeat(self, replay: Replay, news: News) -> None:
        for names, file, directory in (
            (news.gone, Deed.UNLINK, Deed.RMDIR),
            (news.made, Deed.CREATE, Deed.MKDIR),
            (news.changed, Deed.MODIFY, Deed.MODIFY),
        ):
            for name in sorted(names - {MARKER}):
                is_directory = name.endswith("/")
                there = self._tree.shows(news.prefix, name)
                if there is (names is news.gone):
                    continue  # it came back, or went again: there is news of that to come
                replay.repeat(directory if is_directory else file, self._tree.path_in(news.prefix, name))
