"""`consulate acl`: backup and restore of legacy ACL tokens, whose IDs are secrets."""

from __future__ import annotations

import argparse
import json
from typing import Any

from consulfs.consulate.cli import terminal
from consulfs.consulate.client import Consul
from consulfs.consulate.exceptions import BadAnswer, ConsulateException

FIELDS = ("ID", "Name", "Type", "Rules")


def add_commands(commands: Any) -> None:
    group = commands.add_parser("acl", help="legacy ACL tokens").add_subparsers(
        title="commands", dest="action", required=True
    )

    backup = group.add_parser("backup", help="write all tokens to stdout or a file")
    backup.add_argument("-f", "--file", nargs="?", help="write this file instead of stdout; only its owner may read it")
    backup.add_argument("-p", "--pretty", action="store_true", help="write it for people to read")
    backup.set_defaults(run=_backup)

    restore = group.add_parser("restore", help="read tokens from stdin or a file and write them")
    restore.add_argument("-f", "--file", nargs="?", help="read this file instead of stdin")
    restore.add_argument("-n", "--no-replace", action="store_true", help="leave tokens alone that exist")
    restore.set_defaults(run=_restore)


def _backup(consul: Consul, arguments: argparse.Namespace) -> int:
    found = _listed(consul)
    layout: dict[str, Any] = {"indent": 2, "separators": (",", ": ")} if arguments.pretty else {}
    with terminal.output(arguments.file, terminal.SECRET) as out:
        out.write(json.dumps(found, sort_keys=True, **layout).encode() + b"\n")
    return 0


def _restore(consul: Consul, arguments: argparse.Namespace) -> int:
    with terminal.source(arguments.file) as file:
        rows = checked(file.read())
    known = {each["ID"]: each for each in _listed(consul)}
    written = 0
    for number, row in enumerate(rows, 1):
        there = known.get(row["ID"])
        # What is as it should be is left alone: Consul refuses to write the master token by this API (1.8.7).
        if there and (arguments.no_replace or all(there.get(name) == row[name] for name in FIELDS)):
            continue
        try:
            consul.acl.update(row["ID"], row["Name"], row["Type"], row["Rules"])
        except (ConsulateException, ValueError) as error:
            words = f"stopped at row {number}, {written} ACLs written before it: {error}"
            raise ConsulateException(words) from error
        written += 1
    terminal.line(b"%d ACLs written" % written)
    return 0


def _listed(consul: Consul) -> list[dict[str, Any]]:
    found = consul.acl.list()
    if not all(isinstance(each, dict) and isinstance(each.get("ID"), str) for each in found):
        raise BadAnswer("GET /v1/acl/list: wanted ACLs, each with an ID")
    return found


def checked(data: bytes) -> list[dict[str, str]]:
    """The rows of a backup.

    :raises ValueError: one is wrong; the message names it by its number, for its ID is a secret
    """
    try:
        rows = json.loads(data)
    except ValueError:
        raise ValueError("the input is not JSON") from None
    except RecursionError:
        raise ValueError("the input is nested too deeply") from None
    if not isinstance(rows, list):
        raise ValueError("the input is not a JSON list")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is not an object")
        for name in FIELDS:
            if not isinstance(row.get(name), str):
                raise ValueError(f"row {number} has no {name}, or one that is not text")
        if not row["ID"]:
            raise ValueError(f"row {number} has an empty ID")
    return rows
