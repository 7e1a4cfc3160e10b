"""The `consulate` command: keys from the shell. So far `kv` with get, set, ls and rm."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Optional
from urllib.parse import urlsplit

from consulfs._version import __version__
from consulfs.consulate import Consul, ConsulateException


def parser() -> argparse.ArgumentParser:
    scheme, host, port = _address()
    made = argparse.ArgumentParser(prog="consulate", description="Consul's key/value store from the shell.")
    made.add_argument("--api-scheme", default=scheme, help="http or https [%(default)s]")
    made.add_argument("--api-host", default=host, help="where Consul answers [%(default)s]")
    made.add_argument("--api-port", default=port, type=int, help="and on which port [%(default)s]")
    made.add_argument("--datacenter", help="ask this datacenter")
    made.add_argument("--token", default=os.environ.get("CONSUL_HTTP_TOKEN"), help="better by CONSUL_HTTP_TOKEN")
    made.add_argument("--version", action="version", version=f"consulate {__version__}")
    commands = made.add_subparsers(dest="command", required=True)
    actions = commands.add_parser("kv", help="keys and values").add_subparsers(dest="action", required=True)
    for name, words, text in (
        ("get", ["key"], "print a value"),
        ("set", ["key", "value"], "set a value and keep the flags"),
        ("ls", [], "list the keys"),
        ("rm", ["key"], "delete a key"),
    ):
        action = actions.add_parser(name, help=text)
        for word in words:
            action.add_argument(word)
    return made


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; exit status 1 where Consul is not there or the key is missing."""
    arguments = parser().parse_args(argv)
    try:
        with Consul(
            arguments.api_host,
            arguments.api_port,
            arguments.datacenter,
            arguments.token,
            arguments.api_scheme,
            timeout=30,
        ) as consul:
            return _kv(consul, arguments)
    except (ConsulateException, ValueError) as error:
        print(f"consulate: {error}", file=sys.stderr)
    return 1


def _kv(consul: Consul, arguments: argparse.Namespace) -> int:
    if arguments.action == "ls":
        for key in consul.kv:
            print(key)
    elif arguments.action == "set":
        consul.kv.set(arguments.key, arguments.value)
    elif arguments.action == "rm":
        consul.kv.delete(arguments.key)
    else:
        record = consul.kv.read(arguments.key)
        if record is None:
            print(f"consulate: no such key: {arguments.key}", file=sys.stderr)
            return 1
        sys.stdout.buffer.write(record.value + b"\n")
    return 0


def _address() -> tuple[str, str, int]:
    text = os.environ.get("CONSUL_RPC_ADDR") or os.environ.get("CONSUL_HTTP_ADDR") or "localhost:8500"
    parts = urlsplit(text if "://" in text else f"http://{text}")
    return parts.scheme, parts.hostname or "localhost", parts.port or 8500


if __name__ == "__main__":
    sys.exit(main())
