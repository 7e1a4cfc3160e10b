"""SOURCE, the first word of the command: which Consul, and which prefix of its keys. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional
from urllib.parse import unquote, urlsplit

DEFAULT_PORTS = {"http": 8500, "https": 8501}


class BadSource(ValueError):
    """SOURCE cannot be understood; the message says why."""


@dataclass(frozen=True)
class Source:
    """Where Consul's HTTP API is, and what of it is mounted.

    :ivar host: a name or address, or the path of a Unix socket
    :ivar port: None for a Unix socket
    :ivar prefix: "" or the keys' prefix, ending in "/"
    """

    scheme: str
    host: str
    port: Optional[int]
    prefix: str = ""

    def __str__(self) -> str:
        where = f"unix://{self.host}" if self.port is None else f"{self.scheme}://{self.host}:{self.port}"
        return f"{where}/{self.prefix}" if self.prefix else where


def parse(text: str, environ: Mapping[str, str]) -> Source:
    """`[http://|https://]host[:port][/prefix]`, `unix:///path/to/socket`, `/prefix`, or nothing.

    What is left out comes from CONSUL_HTTP_ADDR and CONSUL_HTTP_SSL, else it is localhost:8500. "none" is nothing:
    an fstab line must name something.

    :raises BadSource: it is none of these
    """
    if text in ("", "none"):
        return _address(environ.get("CONSUL_HTTP_ADDR") or "localhost", environ)
    if text.startswith("/"):
        base = _address(environ.get("CONSUL_HTTP_ADDR") or "localhost", environ)
        return Source(base.scheme, base.host, base.port, _prefix(text))
    return _address(text, environ)


def _address(text: str, environ: Mapping[str, str]) -> Source:
    if text.startswith("unix://"):
        path = text[len("unix://") :]
        if not path.startswith("/"):
            raise BadSource(f"{text!r}: the socket's path must be absolute, as in unix:///run/consul.sock")
        return Source("http+unix", path, None)
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "https" if _is_true(environ.get("CONSUL_HTTP_SSL", "")) else "http", text
    if scheme not in DEFAULT_PORTS:
        raise BadSource(f"{text!r}: the scheme is http, https or unix")
    if "@" in rest.partition("/")[0]:
        raise BadSource("no user or password in SOURCE, which everybody can read: use CONSUL_HTTP_AUTH")
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadSource(f"{text!r}: {error}") from error
    if not host:
        raise BadSource(f"{text!r}: no host")
    # Not parts.path: "?" and "#" are ordinary characters of a key.
    slash = rest.find("/")
    return Source(scheme, host, port or DEFAULT_PORTS[scheme], _prefix(rest[slash:]) if slash >= 0 else "")


def _prefix(path: str) -> str:
    prefix = unquote(path[1:])
    return prefix if not prefix or prefix.endswith("/") else prefix + "/"


def _is_true(text: str) -> bool:
    return text.lower() in ("1", "t", "true", "yes")
