"""What others did, brought to this mount's programs: to those that have files open, to the kernel, and by inotify."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Callable, Optional

from consulfs import threads
from consulfs.consulate import Record
from consulfs.filesystem.kernel import Kernel
from consulfs.filesystem.notices import Notices, wait_for
from consulfs.filesystem.replay import Replay
from consulfs.repeater import Deed
from consulfs.store.levels import MARKER, News
from consulfs.store.node import Node
from consulfs.store.openfiles import OpenFiles
from consulfs.tree.kv import KVTree

ATTEMPTS = 8
"""Times that the kernel is made to forget a file which programs go on asking for meanwhile."""

UNASKED_SECONDS = 0.1
"""After so long a file of another size is shown to those who do not ask for its size: by a memory map."""

LOCK_SECONDS, LOCKED_SECONDS = 2.0, 60.0
"""For so long a program that took a lock waits until the kernel has forgotten what may be old of other files, and of
the locked one: longer than a READ of it takes, for whose end the kernel waits."""

FORGOTTEN_SECONDS = 1.0
"""After so long inotify tells of a change, and a listing of what is gone, though the kernel still has what was before:
some program's READ is stuck."""

REPEATED = "inotify"
"""What is repeated, all in one order: a topic by itself, since those of files and directories begin with a slash."""


class Others:
    """The listener of the watches.

    :param base: the path of the tree's root on the mount, as what stands before all others
    :ivar on_directory: told of a directory that others have made, and of the one that it stands in
    :ivar replay: has inotify tell; None where it is not to
    """

    def __init__(
        self,
        tree: KVTree,
        files: OpenFiles,
        kernel: Kernel,
        notices: Notices,
        base: str = "",
    ) -> None:
        self._tree = tree
        self._files = files
        self._kernel = kernel
        self._notices = notices
        self._base = base
        self.replay: Optional[Replay] = None
        self.on_directory: Callable[[str, str], None] = lambda parent, prefix: None
        self._lock = threading.Lock()  # owns _unasked
        self._unasked: list[Node] = []

    def __call__(self, news: News, records: Mapping[str, Record]) -> None:
        """Called by the thread of a watch."""
        changed = self._files.heed(news, records)
        if not (news or changed):
            return
        forgotten = [self._post(node.key, partial(self._let_go, node)) for node in changed]
        # An open file that is not among them shows what it was changed to already; were the kernel to forget it now, it
        # would drop the size that a program is just being told (see `_let_go`).
        names = news.changed - {node.key[len(news.prefix) :] for node in self._files.below(news.prefix)}
        if names or news.made or news.gone:
            forgotten.append(self._post(news.prefix, lambda: self._announce(news, names)))
        # What is gone is forgotten by the replay, or when a listing is to leave it out, and not here: of a name without
        # attributes the kernel asks for these, and has to be sent back (see `KVBranch._looks_again`).
        replay = self.replay
        if replay is not None and news:
            self._notices.post(REPEATED, lambda: self._repeat(replay, news, forgotten))

    def expire(self, nodes: list[Node], locked: Node) -> None:
        """What the kernel holds of files that are open may be old: a lock was taken. Returns when it is forgotten.

        :param nodes: with the one that was locked
        """
        # Not ended by a signal: its program has the lock by now.
        forgotten = {node: self._post(node.key, partial(self._forget_open, node)) for node in nodes}
        if not wait_for(forgotten.values(), LOCK_SECONDS) and locked in forgotten:
            forgotten[locked].wait(LOCKED_SECONDS)

    def refresh(self, node: Node) -> None:
        """A store has brought another content than its program wrote: others had changed the file, too."""
        self._post(node.key, partial(self._forget_open, node))

    def forget_gone(self, keys: Iterable[str]) -> None:
        """A listing is about to show that these are gone: the kernel is not to show afterwards what they were. Returns
        when it has forgotten that; not if it waits for a READ that nobody answers.

        Not where removals are repeated for inotify, which takes the names themselves from the kernel in milliseconds:
        a name that it has dropped before the helper would have to look up anew, and be told that it is there.
        """
        if self.replay is not None:
            return
        wait_for([self._post(key, partial(self._forget, key)) for key in keys], FORGOTTEN_SECONDS)

    def _post(self, key: str, notice: Callable[[], object]) -> threading.Event:
        """Have something done about a file or directory."""
        return self._notices.post(f"{self._base}/{key}", notice)

    # -- on the threads of the notices -----------------------------------------------------------------------

    def _announce(self, news: News, changed: Iterable[str]) -> None:
        """
        :param changed: the names of those that are not open
        """
        for name in changed:
            self._forget(news.prefix + name)
        if news.made or news.gone:
            self._tree.renamed_by_others(news.prefix)
            self._notices.invalidate(self._base + self._tree.path_of_directory(news.prefix))

    def _forget(self, key: str) -> None:
        begin = time.monotonic()
        for path in self._tree.paths_of(key):
            self._notices.invalidate(self._base + path)
        self._kernel.forget(key, begin)

    def _let_go(self, node: Node) -> None:
        """Have the kernel forget an open file, and ask for its size before it reads the content as it is now.

        What it is told of a file while it is made to forget it, it drops: it would go on with the size that it had. So
        that is the size of what is held, and nobody may have been told it when the file is let go.
        """
        for attempt in range(ATTEMPTS + 1):
            with node.state:
                node.asked = False
                if attempt == ATTEMPTS:
                    node.let_go()
            self._forget(node.key)
            with node.state:
                if not node.asked:
                    node.let_go()
                    break
        with node.state:
            is_unasked = node.shown is not None
        if is_unasked:
            with self._lock:
                self._unasked.append(node)
                is_first = len(self._unasked) == 1
            if is_first and threads.begin("unasked", self._show_unasked) is None:
                self._show_unasked()

    def _show_unasked(self) -> None:
        """Whoever reads a file by read(2) has asked for its size by then; a memory map never does."""
        time.sleep(UNASKED_SECONDS)
        with self._lock:
            nodes, self._unasked = self._unasked, []
        for node in nodes:
            with node.state:
                is_unasked = node.shown is not None and not node.held
                if is_unasked:
                    node.show()
            if is_unasked:
                self._post(node.key, partial(self._forget, node.key))

    def _forget_open(self, node: Node) -> None:
        self._forget(node.key)
        with node.state:
            node.bare()
        self._forget(node.key)  # what was read in between was shown as it had been told before

    def _repeat(self, replay: Replay, news: News, forgotten: Iterable[threading.Event]) -> None:
        """
        :param forgotten: who is told of a change is to read what it was changed to
        """
        wait_for(forgotten, FORGOTTEN_SECONDS)
        for deed, name, beside in self._deeds(news):
            path, key = self._tree.path_in(news.prefix, name, beside), news.prefix + name
            if deed is Deed.UNLINK:
                tell, lose = partial(self._kernel.tell, key, None, path), partial(self._kernel.loses, key)
                replay.remove(path, news.sizes.get(name, 0), tell, lose)
            else:
                replay.repeat(deed, path)
            if deed is Deed.MKDIR:
                self.on_directory(news.prefix, key)

    def _deeds(self, news: News) -> list[tuple[Deed, str, bool]]:
        """What to repeat, and of which name, in its order: first what goes, then what comes, then what was changed.

        A file that stands beside a directory of its name has another one there, so either changes with the other. What
        came back meanwhile, or went again, is left out: there is news of that to come.
        """
        gone, made, changed = [], [], []
        names = (news.gone | news.made | news.changed) - {MARKER}
        for component in sorted({name[:-1] if name.endswith("/") else name for name in names}):
            both = (component, f"{component}/")
            there = [self._is_there(news, name) for name in both]
            was_there = [
                name in news.gone or (is_there and name not in news.made) for name, is_there in zip(both, there)
            ]
            now, before = _shown(*there), _shown(*was_there)
            for ending, beside in sorted(before - now):
                gone.append((Deed.RMDIR if ending else Deed.UNLINK, component + ending, beside))
            for ending, beside in sorted(now - before):
                made.append((Deed.MKDIR if ending else Deed.CREATE, component + ending, beside))
            for ending, beside in sorted(now & before):
                if component + ending in news.changed:
                    changed.append((Deed.MODIFY, component + ending, beside))
        return gone + made + changed

    def _is_there(self, news: News, name: str) -> bool:
        shown = self._tree.shows(news.prefix, name) if name != MARKER else False
        return shown if shown is not None else name in news.made | news.changed


def _shown(file: bool, directory: bool) -> set[tuple[str, bool]]:
    """As what a directory shows a component: the ending of its name in a level, and whether that of a directory stands
    beside it."""
    found = {("/", False)} if directory else set()
    return found | {("", directory)} if file else found
