"""The parts of a mount, each with what it stands on."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Iterable
from typing import Callable, Optional, Union

from consulfs import binding
from consulfs._version import __version__
from consulfs.consulate import Consul
from consulfs.filesystem import Datacenter, Filesystem, Kernel, KVBranch, Notices, Others, Owner, Replay, VirtualBranch
from consulfs.inotify import Glance, Watched
from consulfs.metrics import Metrics
from consulfs.options import Options, settled, shown
from consulfs.repeater import Repeater
from consulfs.source import Source
from consulfs.store.backend import Backend
from consulfs.store.cache import LIFETIME, Cache
from consulfs.store.ephemeral import Ephemeral
from consulfs.store.flagmemory import FlagMemory
from consulfs.store.inodes import Inodes
from consulfs.store.locks import Locks
from consulfs.store.moves import Moves
from consulfs.store.openfiles import OpenFiles
from consulfs.store.patience import Patience
from consulfs.store.posts import Posts
from consulfs.store.records import Records
from consulfs.store.sessionlock import SessionLock
from consulfs.store.sessions import KeptSession
from consulfs.store.times import Times
from consulfs.store.turns import Turns
from consulfs.store.watch import GUARDED_WAIT, WAIT, Waited
from consulfs.store.watches import Watches
from consulfs.tree.kv import KVTree
from consulfs.tree.virtual import DATACENTERS, ENDPOINTS, NAMES, Answers, Facts, VirtualTree

ROOT_INODE = 1
"""What the kernel calls a mount's root before it has asked for its attributes."""

_DONE = threading.Event()
_DONE.set()

Client = Callable[[Optional[str]], Consul]
"""Gives the client for a datacenter; None stands for the mount's own."""


class Assembly:
    """Makes one mount's parts.

    :param backend: of the mount's own datacenter, introduced
    :param watching: makes a client with connections of its own, for blocking queries
    :param repeater: what others did is repeated by it; None where it is not to
    """

    def __init__(
        self,
        source: Source,
        mountpoint: str,
        client: Client,
        backend: Backend,
        patience: Patience,
        options: Options,
        metrics: Metrics,
        watching: Callable[[], Consul],
        repeater: Optional[Repeater],
    ) -> None:
        self._source = source
        self._mountpoint = mountpoint
        self._client = client
        self._backend = backend
        self._patience = patience
        self._options = options
        self._metrics = metrics
        self._watching = watching
        self._replay: Optional[Replay] = None
        self._mode = options["virtual"] or ("hidden" if source.prefix else "visible")
        self._settled = settled(options)
        self._repeater = repeater
        self._notices = Notices(binding.invalidate)
        self._watches: list[Watches] = []
        self._caches: dict[str, Union[Cache, Answers]] = {}
        self._files: list[OpenFiles] = []
        self._posts: list[Posts] = []
        uid = os.getuid() if options["uid"] is None else options["uid"]
        gid = os.getgid() if options["gid"] is None else options["gid"]
        self._owner = Owner(uid, gid, options["umask"])

    def filesystem(self) -> Filesystem:
        home = self._datacenter(self._backend, self._options["dc"] or self._backend.datacenter)
        self._count()
        return Filesystem(
            home,
            self._visit,
            self._patience,
            self._metrics,
            self._options["locks"],
            self._settled["attr_timeout"],
            self._replay,
            binding.caller,
            self._end,
        )

    def _end(self) -> None:
        """End what runs beside the operations, those that tell before those who are told."""
        for watches in self._watches:
            watches.end()
        self._notices.end()

    def _visit(self, name: str) -> Datacenter:
        """The branches of another datacenter."""
        backend = Backend(self._client(name), self._patience, self._options["consistency"])
        backend.as_known(self._backend)
        return self._datacenter(backend, name, space=name)

    def _datacenter(self, backend: Backend, name: Optional[str], space: str = "") -> Datacenter:
        """
        :param space: "" for the mount's own, else the name: what tells the other datacenters apart
        """
        read_only = self._options["ro"] or bool(space and not self._options["dc_write"])
        virtual = None if self._mode == "off" else self._virtual(backend, name, space)
        reserved = NAMES if virtual else frozenset()
        keys = self._keys(backend, reserved, read_only, space)
        return Datacenter(keys, virtual, reserved, self._mode == "visible", read_only)

    def _virtual(self, backend: Backend, name: Optional[str], space: str) -> VirtualBranch:
        about: dict[str, Callable[[], object]] = {
            "version": lambda: f"consulfs {__version__}",
            "options": lambda: [f"source={self._source}", *shown(self._options, virtual=self._mode, **self._settled)],
            "stats": self._metrics.summary,
            "metrics": self._metrics.text,
        }
        facts = Facts(name, self._options["acl_secrets"], about)
        answers = self._caches[f"virtual {space}".rstrip()] = Answers(backend, self._patience)
        endpoints = tuple(each for each in ENDPOINTS if not (space and each.local))
        tree = VirtualTree(endpoints, facts, answers, binding.caller)
        base = _base_of(space)
        return VirtualBranch(
            tree,
            Times(),
            Inodes(f"{space}\0virtual"),
            self._owner,
            binding.caller,
            lambda path: self._expire(base + path),
        )

    def _expire(self, path: str) -> threading.Event:
        """Have the kernel forget a path's attributes, if it keeps any."""
        return self._notices.expire(path) if self._settled["attr_timeout"] else _DONE

    def _keys(self, backend: Backend, reserved: frozenset[str], read_only: bool, space: str) -> KVBranch:
        patience, options = self._patience, self._options
        times, inodes, flags = Times(), Inodes(space), FlagMemory()
        lifetime = 0.0 if options["cache"] == "off" else LIFETIME
        cache = self._caches[f"keys {space}".rstrip()] = Cache(
            options["cache_size"], lifetime, options["consistency"] == "stale"
        )
        turns = Turns(patience)
        records = Records(backend, cache, times, binding.caller)
        files = OpenFiles(backend, records, patience, turns, times, inodes, flags)
        host, ttl = socket.gethostname(), options["lock_ttl"]
        name = f"consulfs {host}:{self._mountpoint} {secrets.token_hex(4)}"
        abroad = options["dc"] is not None and options["dc"] != backend.datacenter
        for_locks = KeptSession(backend, patience, f"{name} locks", "release", ttl, options["lock_delay"], abroad)
        # No lock-delay: others have no work of theirs to wait for, and a host that is back makes such a key at once.
        for_keys = KeptSession(backend, patience, f"{name} ephemeral", "delete", ttl, 0, abroad)
        lock = SessionLock(backend, records, patience)
        posts = Posts(files, records, patience, lock, for_locks, for_keys)
        locks = Locks(files, records, patience, posts, binding.MAX_WAITERS)
        ephemeral = Ephemeral(backend, files, patience, posts, lock, for_keys, for_locks)
        moves = Moves(backend, records, files, patience, times, inodes, flags)
        tree = KVTree(self._source.prefix, reserved, backend, records, files, moves, times)
        self._files.append(files)
        self._posts.append(posts)
        at_close = options["exclusive"] == "close"
        # A session belongs to a node of its datacenter, and this mount's agent is none of another.
        has_sessions = not space
        kernel = Kernel(self._settled["attr_timeout"])
        others = Others(tree, files, kernel, self._notices, _base_of(space))
        files.listen(on_merged=others.refresh)
        keys = KVBranch(
            tree,
            files,
            locks,
            ephemeral,
            times,
            inodes,
            patience,
            self._owner,
            kernel,
            binding.caller,
            others.expire,
            others.forget_gone,
            read_only,
            at_close,
            has_sessions and options["locks"] != "off",
            has_sessions,
        )
        if not space and options["cache"] == "watch":
            if self._repeater is not None:
                self._replay = others.replay = Replay(keys.look, self._repeater)
            waited_for, root = self._waits(inodes), self._source.prefix
            wait = GUARDED_WAIT if backend.acl_enabled else WAIT
            watches = Watches(self._watching, cache, turns, options["consistency"], waited_for, wait)
            watches.listen(times.heed)
            watches.listen(others)
            records.use = self._use_of(watches)

            def on_directory(parent: str, prefix: str) -> None:
                # Who waits for its parent may wait for it next, and the kernel need not ask for its name then.
                if waited_for(parent, ()) is not None:
                    watches.use(prefix)

            others.on_directory = on_directory
            if self._repeater is not None:
                records.glance = Glance(
                    self._settled["attr_timeout"],
                    lambda: root not in watches,
                    lambda: waited_for(root, ()) is not None,
                    lambda: watches.use(root),
                )
            self._watches.append(watches)
        return keys

    def _use_of(self, watches: Watches) -> Callable[[str], None]:
        """What a program looks at is used; what the helper looks at, which repeats what others did, is not."""
        replay = self._replay
        if replay is None:
            return watches.use

        def use(prefix: str) -> None:
            if not (replay.is_under_way and binding.caller() == replay.pid):
                watches.use(prefix)

        return use

    def _waits(self, inodes: Inodes) -> Waited:
        """Tells of directories whether programs wait for them by inotify, and for which of their files."""
        if self._repeater is None:
            return lambda prefix, names: None
        watched, root = Watched(self._mountpoint), self._source.prefix

        def waited_for(prefix: str, names: Iterable[str]) -> Optional[set[str]]:
            found = watched.inodes()
            if not found:
                return None
            files = {name for name in names if inodes.number(prefix + name) in found}
            own = {inodes.number(prefix)} | ({ROOT_INODE} if prefix == root else set())
            return None if found.isdisjoint(own) and not files else files

        return waited_for

    def _count(self) -> None:
        """Have the metrics ask for what is counted by the parts themselves."""
        metrics, caches = self._metrics, self._caches
        metrics.counter(
            "consulfs_cache_hits",
            "Looks that asked nothing of Consul.",
            lambda: {name: cache.hits for name, cache in list(caches.items())},
        )
        metrics.counter(
            "consulfs_cache_misses",
            "Looks at what was not known, or not any more.",
            lambda: {name: cache.misses for name, cache in list(caches.items())},
        )
        metrics.gauge(
            "consulfs_cache_bytes",
            "Size of the records in memory.",
            lambda: sum(cache.size for cache in list(caches.values()) if isinstance(cache, Cache)),
        )
        metrics.gauge(
            "consulfs_locks_held",
            "Keys whose lock in Consul this mount has.",
            lambda: sum(posts.held for posts in list(self._posts)),
        )
        metrics.gauge(
            "consulfs_open_files", "Open files that are keys.", lambda: sum(len(files) for files in list(self._files))
        )


def _base_of(space: str) -> str:
    """The path of a datacenter's root, as what stands before all of its paths.

    :param space: as in `Assembly._datacenter`
    """
    return f"/{DATACENTERS}/{space}" if space else ""
