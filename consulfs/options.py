"""Every mount option, once: its name, type, default, environment variable and help. Pure.

`--help`, the README's table and the man page come from `OPTIONS`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, Optional, TypeVar

from consulfs.consulate.models import seconds
from consulfs.consulate.settings import is_not_false


class BadOption(ValueError):
    """An option that is unknown, or has a value that it cannot have; the message says which and why."""


@dataclass(frozen=True)
class Option:
    """One option.

    :ivar read: makes its value from text; None for a flag
    :ivar argument: what stands behind "=" in the help
    :ivar environ: the variable that gives it where -o does not
    :ivar secret: its value is shown nowhere
    """

    name: str
    help: str
    read: Optional[Callable[[str], Any]] = None
    default: Any = None
    argument: str = ""
    environ: str = ""
    secret: bool = False

    @property
    def usage(self) -> str:
        return f"{self.name}={self.argument}" if self.argument else self.name


T = TypeVar("T", int, float)


def _between(read: Callable[[str], T], least: T, most: T, words: str) -> Callable[[str], T]:
    """A quantity within its bounds.

    :param words: what is wanted, for whoever gave something else
    """

    def checked(text: str) -> T:
        try:
            value = read(text)
        except ValueError:
            raise ValueError(words) from None
        if not least <= value <= most:
            raise ValueError(words)
        return value

    return checked


def _bytes(text: str) -> int:
    factors = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    factor = factors.get(text[-1:].upper(), 1)
    return int(text[:-1] if factor > 1 else text) * factor


_seconds = _between(float, 0.1, 86400.0, "between 0.1 and 86400 seconds")
_kept_seconds = _between(float, 0.0, 3600.0, "between 0 and 3600 seconds")
_size = _between(_bytes, 1 << 20, 1 << 60, "a whole number of bytes with K, M or G, at least 1M")
_octal = _between(lambda text: int(text, 8), 0, 0o777, "an octal mask such as 077")
_number = _between(int, 0, (1 << 32) - 2, "a numeric ID")


def _truth(text: str) -> bool:
    """As Consul's own variables have it."""
    if is_not_false(text) and text.lower() not in ("1", "t", "true", "yes"):
        raise ValueError("yes or no")
    return is_not_false(text)


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(" or ".join(words))
        return text

    return read


def _path(text: str) -> str:
    """Absolute, since a daemon's working directory is /."""
    return os.path.abspath(text)


OPTIONS = (
    Option("ro", "read-only: every change is EROFS"),
    Option("timeout", "how long an operation may wait for Consul before it fails", _seconds, 10.0, "SECONDS"),
    Option(
        "exclusive",
        "when O_EXCL is decided: at open, exactly and for one more request, or at close, with EEXIST from close",
        _one_of("open", "close"),
        "open",
        "open|close",
    ),
    Option(
        "locks",
        "flock and fcntl locks: Consul's, for all hosts; local, for this mount alone; or refused",
        _one_of("consul", "local", "off"),
        "consul",
        "consul|local|off",
    ),
    Option(
        "lock_ttl",
        "how long a lock outlives a host that died, 10s to 24h; Consul takes up to twice that",
        _between(seconds, 10.0, 86400.0, "10s to 24h"),
        15.0,
        "TIME",
    ),
    Option(
        "lock_delay",
        "how long nobody gets a lock that was lost so, 0s to 60s, for what its holder had under way",
        _between(seconds, 0.0, 60.0, "0s to 60s"),
        15.0,
        "TIME",
    ),
    Option(
        "virtual",
        "the trees _catalog, _health and so on: listed at the root of the mount, reached by name alone, or none"
        " [default: visible; hidden where a prefix is mounted]",
        _one_of("visible", "hidden", "off"),
        None,
        "visible|hidden|off",
    ),
    Option(
        "acl_secrets",
        "show the SecretIDs of tokens in _acl, the tokens of prepared queries, and in _agent/self the key or token of"
        " the provider of the mesh's certificates",
    ),
    Option("dc_write", "let the keys of other datacenters, in _dc, be written"),
    Option("cache_size", "bytes of records kept in memory", _size, 64 << 20, "BYTES"),
    Option(
        "cache",
        "for how long what was read is shown again: until a watch tells of a change, for a second, or not at all",
        _one_of("watch", "ttl", "off"),
        "watch",
        "watch|ttl|off",
    ),
    Option(
        "consistency",
        "how reads are answered: by the leader, by the leader once a majority agrees, or by any server",
        _one_of("default", "consistent", "stale"),
        "default",
        "default|consistent|stale",
    ),
    Option(
        "attr_timeout",
        "seconds for which the kernel shows names and attributes without asking [default: 1; 0 without cache=watch]",
        _kept_seconds,
        None,
        "SECONDS",
    ),
    Option(
        "notify",
        "tell of other hosts' changes by inotify [default: on; off with ro, which the kernel then knows, and without"
        " cache=watch]",
        _one_of("on", "off"),
        None,
        "on|off",
    ),
    Option("dc", "the datacenter to mount, if not the agent's own", str, None, "NAME"),
    Option("token_file", "a file with the ACL token", _path, None, "FILE", "CONSUL_HTTP_TOKEN_FILE"),
    Option(
        "token",
        "the ACL token itself; others can read it in the process list, so prefer token_file",
        str,
        None,
        "TOKEN",
        "CONSUL_HTTP_TOKEN",
        secret=True,
    ),
    Option(
        "auth", "USER:PASSWORD for HTTP; better by its variable", str, None, "AUTH", "CONSUL_HTTP_AUTH", secret=True
    ),
    Option("cacert", "a file with the certificates to trust", _path, None, "FILE", "CONSUL_CACERT"),
    Option("capath", "a folder with the certificates to trust", _path, None, "DIR", "CONSUL_CAPATH"),
    Option("client_cert", "this client's certificate", _path, None, "FILE", "CONSUL_CLIENT_CERT"),
    Option("client_key", "this client's key", _path, None, "FILE", "CONSUL_CLIENT_KEY"),
    Option(
        "tls_server_name",
        "the name that the server's certificate must bear",
        str,
        None,
        "NAME",
        "CONSUL_TLS_SERVER_NAME",
    ),
    Option("verify", "whether to check the server's certificate", _truth, True, "yes|no", "CONSUL_HTTP_SSL_VERIFY"),
    Option("allow_other", "let other users in, as far as uid, gid and umask allow"),
    Option("uid", "the owner that files show (default: who mounts)", _number, None, "UID"),
    Option("gid", "the group that files show (default: who mounts)", _number, None, "GID"),
    Option("umask", "bits taken from the modes 0666 and 0777", _octal, 0o077, "OCTAL"),
    Option("dev_agent", "start a private `consul agent -dev` for the life of the mount (--dev)"),
    Option("dev_port", "the HTTP port of that agent (default: any free one)", _number, 0, "PORT"),
    Option("consul", "the consul command for dev_agent", str, "consul", "COMMAND"),
    Option(
        "log_level", "error, warning, info or debug", _one_of("error", "warning", "info", "debug"), "warning", "LEVEL"
    ),
    Option("log_file", "where the daemon writes its log (default: syslog)", _path, None, "FILE"),
)

BY_NAME = {option.name: option for option in OPTIONS}

KERNEL = frozenset("nosuid nodev noexec noatime nodiratime dirsync sync".split())
"""Handed on to the kernel."""

IGNORED = frozenset(
    "rw suid dev exec async atime diratime relatime norelatime strictatime lazytime nolazytime defaults auto noauto"
    " user users owner group nouser nofail _netdev default_permissions allow_root quiet loud".split()
)
"""What mount(8) and fstab say, and what is true or meaningless here."""


def split(text: str) -> list[str]:
    """The options of one -o: separated by commas; a comma or a backslash in a value follows a backslash."""
    words, word, escaped = [], "", False
    for character in text:
        if escaped or character not in "\\,":
            word, escaped = word + character, False
        elif character == "\\":
            escaped = True
        else:
            words.append(word)
            word = ""
    words.append(word)
    return [each for each in words if each]


@dataclass(frozen=True)
class Options:
    """What was asked for, with defaults filled in.

    :ivar values: by option name
    :ivar kernel: options for the kernel
    :ivar given: the names that stood in -o
    """

    values: Mapping[str, Any] = field(repr=False)  # a token may be among them
    kernel: tuple[str, ...]
    given: frozenset[str]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def parse(words: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Options from the words of -o, then from the environment, then the defaults.

    :raises BadOption: unknown, or with a value that it cannot have, or contradicting another
    """
    values: dict[str, Any] = {}
    kernel = ["nosuid", "nodev", "noexec"]
    before: Optional[Option] = None
    for word in words:
        name, separator, text = word.partition("=")
        option, behind = BY_NAME.get(name), before
        before = option
        if option is not None:
            values[name] = _value(option, separator, text)
        elif word in KERNEL:
            kernel.append(word)
        elif word not in IGNORED and not name.startswith(("x-", "comment", "X-")):
            if behind is not None and behind.secret:  # it may be the rest of a password, which no log is to have
                raise BadOption(f"what stands behind {behind.name}=... is no option; a comma in a value is written \\,")
            raise BadOption(f"unknown option {name!r}; see consulfs --help")
    given = frozenset(values)
    for option in OPTIONS:
        if option.name not in values:
            text = environ.get(option.environ, "") if option.environ else ""
            values[option.name] = _value(option, "=", text) if text else _default(option)
    options = Options(values, tuple(dict.fromkeys(kernel)), given)
    settled(options)
    return options


def settled(options: Options) -> dict[str, Any]:
    """What is made of the options whose default depends on others.

    :raises BadOption: they contradict each other
    """
    watches = options["cache"] == "watch"
    notify = options["notify"] or ("on" if watches and not options["ro"] else "off")
    if notify == "on" and not watches:
        raise BadOption(f"notify=on needs cache=watch, not cache={options['cache']}")
    timeout = options["attr_timeout"]
    if timeout is None:
        timeout = 1.0 if watches else 0.0
    return {"notify": notify, "attr_timeout": timeout}


def _default(option: Option) -> Any:
    return False if option.read is None else option.default


def _value(option: Option, separator: str, text: str) -> Any:
    if option.read is None:
        if separator:
            raise BadOption(f"{option.name} takes no value")
        return True
    if not text:
        raise BadOption(f"{option.name} needs a value: {option.usage}")
    try:
        return option.read(text)
    except ValueError as error:
        raise BadOption(f"{option.name}={'...' if option.secret else text}: {error}") from error


def describe(option: Option) -> str:
    """One option's help, with its default and its variable."""
    default = _default(option)
    notes = []
    if option.read is not None and default is not None:
        notes.append(f"default {_text(option, default)}")
    if option.environ:
        notes.append(option.environ)
    return option.help + (f" [{', '.join(notes)}]" if notes else "")


def shown(options: Options, **settled: Any) -> list[str]:
    """The options as they count, NAME=VALUE each, without those that have no value, and without a secret's value.

    :param settled: what was made of an option whose default depends on others
    """
    lines = []
    for option in OPTIONS:
        value = settled.get(option.name, options[option.name])
        if value is not None:
            lines.append(f"{option.name}={'(not shown)' if option.secret else _text(option, value)}")
    return [*lines, *options.kernel]


def _text(option: Option, value: Any) -> str:
    if option.name == "umask":
        return f"{value:03o}"
    if option.name == "cache_size":
        return f"{value >> 20}M" if value % (1 << 20) == 0 else str(value)
    if option.argument == "TIME":
        return f"{value:g}s"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def markdown_table() -> str:
    """The README's table."""
    rows = ["| option | meaning |", "|---|---|"]
    rows += [
        "| `{}` | {} |".format(option.usage.replace("|", "\\|"), describe(option).replace("|", "\\|"))
        for option in OPTIONS
    ]
    return "\n".join(rows)
