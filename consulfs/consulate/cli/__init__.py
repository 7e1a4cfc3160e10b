"""The command `consulate`: arguments, the connection, and what a failure looks like. One module a group of commands."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Optional

import urllib3

from consulfs._version import __version__
from consulfs.consulate import ConsulateException
from consulfs.consulate.cli import acl, connection, kv, run_once, services, terminal

COMMANDS = (acl, kv, services, run_once)

INTERRUPTED = 128 + signal.SIGINT
BROKEN_PIPE = 128 + signal.SIGPIPE


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="consulate",
        description="Consul from the shell: keys, services, legacy ACLs, locks.",
        epilog="The address comes from CONSUL_RPC_ADDR or CONSUL_HTTP_ADDR where the options do not give it;"
        " Consul's other CONSUL_HTTP_* and TLS variables count as well.",
    )
    connection.add_options(made)
    made.add_argument("--version", action="version", version=f"consulate {__version__}")
    commands = made.add_subparsers(title="commands", dest="command", required=True)
    for group in COMMANDS:
        group.add_commands(commands)
    return made


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; the exit status."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # it was closed: words go nowhere, and not to what else has its number
    arguments = parser().parse_args(argv)
    warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)  # CONSUL_HTTP_SSL_VERIFY=false says so
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, _end)
    try:
        status = _run(arguments)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        status = BROKEN_PIPE
    except RecursionError:
        terminal.note("the input, or an answer, is nested too deeply")
        status = 1
    except (ConsulateException, ValueError, OSError) as error:
        terminal.note(" ".join(str(error).split()))
        status = 1
    if status in (1, BROKEN_PIPE):
        _drop_output()
    return status


def _run(arguments: argparse.Namespace) -> int:
    if sys.stdin is None or sys.stdout is None:
        raise ValueError("stdin and stdout must be open")
    with connection.connect(arguments, os.environ) as consul:
        status: int = arguments.run(consul, arguments)
    sys.stdout.flush()
    return status


def _drop_output() -> None:
    """What could not be written must not be tried again when the interpreter ends."""
    try:
        sys.stdout.flush()
    except (OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _end(number: int, _frame: object) -> None:
    """Unwind, so that no half file and no lock is left."""
    raise SystemExit(128 + number)
