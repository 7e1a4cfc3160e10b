"""SOURCE, the first word of the command: which Consul, and which prefix of its keys. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional
from urllib.parse import unquote

from consulfs.consulate.settings import Address, BadAddress

BadSource = BadAddress
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
    found = Address.parse(text, environ)
    return Source(found.scheme, found.host, found.port, _prefix(found.path))


def _prefix(path: str) -> str:
    prefix = unquote(path[1:])
    return prefix if not prefix or prefix.endswith("/") else prefix + "/"
