"""The command: `consulfs [SOURCE] MOUNTPOINT [-o OPTION,...]`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Optional

from consulfs import options as mount_options
from consulfs import source
from consulfs._version import __version__

EPILOG = """\
SOURCE is [http://|https://]host[:port][/prefix] or unix:///path/to/socket; without it CONSUL_HTTP_ADDR counts, else
localhost:8500. All of Consul's environment variables count.

options for -o:
"""


def parser() -> argparse.ArgumentParser:
    lines = [f"  {option.usage:<22}  {mount_options.describe(option)}" for option in mount_options.OPTIONS]
    made = argparse.ArgumentParser(
        prog="consulfs",
        usage="consulfs [SOURCE] MOUNTPOINT [-o OPTION[,...]] [-f] [-d] [--dev]",
        description="Mount a Consul cluster: its keys to read and write, the rest to read (docs/virtual-trees.md).",
        epilog=EPILOG + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("words", nargs="+", metavar="[SOURCE] MOUNTPOINT", help=argparse.SUPPRESS)
    made.add_argument("-o", dest="options", action="append", default=[], metavar="OPTION,...", help="mount options")
    made.add_argument("-f", dest="foreground", action="store_true", help="stay in the foreground")
    made.add_argument("-d", dest="debug", action="store_true", help="stay in the foreground and log everything")
    made.add_argument("--dev", action="store_true", help="start a private Consul for the life of the mount")
    made.add_argument("-V", "--version", action="version", version=f"consulfs {__version__}")
    return made


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; the exit status is 0 when the mount serves (or, in the foreground, has ended well)."""
    arguments = parser().parse_args(argv)
    if len(arguments.words) > 2:
        parser().error("one SOURCE and one MOUNTPOINT")
    words = [word for text in arguments.options for word in mount_options.split(text)]
    words += ["dev_agent"] if arguments.dev else []
    words += ["log_level=debug"] if arguments.debug else []
    foreground = arguments.foreground or arguments.debug
    try:
        options = mount_options.parse(words, os.environ)
        origin = source.parse(arguments.words[0] if len(arguments.words) == 2 else "", os.environ)
    except (mount_options.BadOption, source.BadSource) as error:
        return _fail(str(error))
    if "token" in options.given:
        print("consulfs: warning: others can read a token in the process list; use token_file=", file=sys.stderr)
    try:
        from consulfs import daemon  # after the options, so that --help works without libfuse
    except OSError as error:
        return _fail(f"{error}; install libfuse 3 (Debian: apt-get install fuse3)")
    try:
        daemon.set_up_logging(options, foreground)
    except OSError as error:
        return _fail(f"log_file: {error}")
    try:
        return daemon.run(origin, arguments.words[-1], options, foreground)
    except daemon.CannotMount as error:
        return _fail(str(error))


def _fail(message: str) -> int:
    print(f"consulfs: {message}", file=sys.stderr)
    return 1
