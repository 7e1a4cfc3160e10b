"""`consulate kv`: keys and values."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from consulfs.consulate import transfer
from consulfs.consulate.cli import terminal
from consulfs.consulate.client import Consul
from consulfs.consulate.exceptions import ConsulateException


def add_commands(commands: Any) -> None:
    group = commands.add_parser("kv", help="keys and values").add_subparsers(
        title="commands", dest="action", required=True
    )

    backup = group.add_parser("backup", help="write a backup to stdout or a file")
    backup.add_argument("key", nargs="?", default="", type=terminal.key, help="only this key and what is below it")
    backup.add_argument("-b", "--base64", action="store_true", help="write the values as base64")
    backup.add_argument("-f", "--file", nargs="?", help="write this file instead of stdout, all of it or nothing")
    backup.add_argument("--allow-empty", action="store_true", help="write an empty list where there is no key")
    backup.add_argument("-p", "--pretty", action="store_true", help="write it for people to read")
    backup.set_defaults(run=_backup)

    restore = group.add_parser("restore", help="read a backup from stdin or a file and write its keys")
    restore.add_argument("key", nargs="?", default="", type=terminal.key, help="write them below this key")
    restore.add_argument("-b", "--base64", action="store_true", help="the values are base64")
    restore.add_argument("-f", "--file", nargs="?", help="read this file instead of stdin")
    restore.add_argument("-n", "--no-replace", action="store_true", help="leave keys alone that exist")
    restore.add_argument(
        "-p", "--prune", action="store_true", help="then delete the keys that the backup does not have"
    )
    restore.set_defaults(run=_restore)

    names = group.add_parser("ls", help="list the keys")
    names.add_argument("key", nargs="?", default="", type=terminal.key, help="only those that begin with this")
    names.add_argument("-l", "--long", action="store_true", help="with the length of each value in bytes")
    names.set_defaults(run=_ls)

    folder = group.add_parser("mkdir", help="make a folder: a key with a slash at its end and no value")
    folder.add_argument("path", type=terminal.key)
    folder.set_defaults(run=_mkdir)

    get = group.add_parser("get", help="print a value")
    get.add_argument("key", type=terminal.key)
    get.add_argument("-r", "--recurse", action="store_true", help="print all keys that begin with it, and their values")
    get.add_argument(
        "-t", "--trim", metavar="LEVELS", type=_levels, default=0, help="levels to leave out of printed keys"
    )
    get.set_defaults(run=_get)

    put = group.add_parser("set", help="set a value and keep the flags")
    put.add_argument("key", type=terminal.key)
    put.add_argument("value")
    put.set_defaults(run=_set)

    for name, text in (("rm", "delete a key"), ("del", "the old name of rm")):
        remove = group.add_parser(name, help=text)
        remove.add_argument("key", type=terminal.key)
        remove.add_argument("-r", "--recurse", action="store_true", help="delete all keys that begin with it")
        remove.set_defaults(run=_rm)


def _levels(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of levels")
    return int(text)


def _backup(consul: Consul, arguments: argparse.Namespace) -> int:
    base = arguments.key.strip("/")
    on_screen = arguments.file is None and sys.stdout.isatty()
    with terminal.output(arguments.file) as out, terminal.bar("backup", hidden=on_screen) as progress:
        options = (arguments.base64, arguments.pretty, progress.update, arguments.allow_empty)
        try:
            transfer.backup(consul, out, base, *options)
        except transfer.NothingFound as error:
            raise ConsulateException(f"{error}, or none that you may read: no backup (see --allow-empty)") from error
    return 0


def _restore(consul: Consul, arguments: argparse.Namespace) -> int:
    options: dict[str, Any] = {
        "base": arguments.key.strip("/"),
        "as_base64": arguments.base64,
        "replace": not arguments.no_replace,
        "prune": arguments.prune,
        "on_prune": lambda key: terminal.line_beside_bar(b"Pruning ", key.encode()),
    }
    with terminal.source(arguments.file) as file:
        size = terminal.size_of(file)
        if size is None:
            with terminal.bar("restore") as progress:
                counts = transfer.restore(consul, file, on_row=progress.update, **options)
        else:
            with terminal.bar("restore", size, "B") as progress:
                counts = transfer.restore(consul, terminal.Measured(file, progress), **options)
    if sys.stderr.isatty():
        terminal.note(str(counts))
    return 0


def _ls(consul: Consul, arguments: argparse.Namespace) -> int:
    prefix = arguments.key.lstrip("/")
    if arguments.long:
        for record in consul.kv.stream(prefix):
            terminal.line(b"%14d " % len(record.value), record.key.encode())
    else:
        for name in consul.kv.names(prefix):
            terminal.line(name.encode())
    return 0


def _mkdir(consul: Consul, arguments: argparse.Namespace) -> int:
    consul.kv.set(arguments.path if arguments.path.endswith("/") else arguments.path + "/", None)
    return 0


def _get(consul: Consul, arguments: argparse.Namespace) -> int:
    name = arguments.key.lstrip("/")
    if arguments.recurse:
        for record in consul.kv.stream(name):
            terminal.line(trimmed(record.key, arguments.trim).encode(), b"\t", record.value)
        return 0
    found = consul.kv.read(name)
    if found is None:
        terminal.note(f"no such key: {name}")
        return 1
    terminal.line(found.value)
    return 0


def trimmed(key: str, levels: int) -> str:
    """A key without its first levels; the last one always stays."""
    parts: Sequence[str] = key.split("/")
    return "/".join(parts[min(levels, len(parts) - 1) :]) if levels > 0 else key


def _set(consul: Consul, arguments: argparse.Namespace) -> int:
    consul.kv.set(arguments.key, os.fsencode(arguments.value))
    return 0


def _rm(consul: Consul, arguments: argparse.Namespace) -> int:
    if not arguments.key:
        raise ValueError("an empty key; to delete all keys: consulate kv rm -r /")
    consul.kv.delete(arguments.key, arguments.recurse)
    return 0
