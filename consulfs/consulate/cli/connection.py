"""The options that say which Consul, and the client that they ask for."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import Optional

from consulfs.consulate.client import Consul
from consulfs.consulate.settings import DEFAULT_PORTS, Address, BadAddress, Security, token_of

TIMEOUT = 30.0
"""Seconds for an answer."""

SCHEMES = (*DEFAULT_PORTS, "http+unix")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--api-scheme", choices=SCHEMES, help="how to talk to Consul [http]")
    parser.add_argument("--api-host", metavar="HOST", help="where Consul is, or the path of its socket [localhost]")
    parser.add_argument("--api-port", metavar="PORT", type=int, help="the port of its HTTP API [8500]")
    parser.add_argument("--datacenter", metavar="NAME", help="ask this datacenter instead of the agent's own")
    parser.add_argument("--token", help="the ACL token; others can see it here, so prefer CONSUL_HTTP_TOKEN_FILE")


def connect(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Consul:
    """The client.

    :raises ValueError: the address, a file's name or the token cannot be used
    """
    where = address(arguments.api_scheme, arguments.api_host, arguments.api_port, environ)
    security = Security.of(environ)
    for name, path in security.files():
        if not os.path.exists(path):
            raise ValueError(f"CONSUL_{name.upper()}: {path}: no such file or directory")
    adapter = security.adapter(where.scheme, TIMEOUT)
    return Consul(where.host, where.port, arguments.datacenter, token(arguments.token, environ), where.scheme, adapter)


def address(scheme: Optional[str], host: Optional[str], port: Optional[int], environ: Mapping[str, str]) -> Address:
    """Where Consul is: by the options, then by the environment.

    :raises BadAddress: that is no address
    """
    found = Address.parse(environ.get("CONSUL_RPC_ADDR") or environ.get("CONSUL_HTTP_ADDR") or "localhost", environ)
    if found.path.strip("/"):
        raise BadAddress(f"Consul's address has a path, {found.path!r}, but its API has none before it")
    host = host.removeprefix("unix://") if host else None
    if host and "@" in host and not host.startswith("/"):
        raise BadAddress("no user or password in --api-host, which everybody can read: use CONSUL_HTTP_AUTH")
    if scheme == "http+unix" or (scheme is None and host and host.startswith("/")):
        return _socket(host or (found.host if found.port is None else ""))
    if found.port is None:
        if scheme is None and host is None:
            return found
        found = Address("http", "localhost", DEFAULT_PORTS["http"])  # the options ask for TCP
    return Address(scheme or found.scheme, host or found.host, found.port if port is None else port)


def _socket(path: str) -> Address:
    if not path.startswith("/"):
        raise BadAddress("http+unix needs the absolute path of a socket as --api-host")
    return Address("http+unix", path, None)


def token(given: Optional[str], environ: Mapping[str, str]) -> Optional[str]:
    """The token of the option, of the file that the environment names, or of the environment.

    :raises ValueError: the file cannot be read
    """
    path = environ.get("CONSUL_HTTP_TOKEN_FILE")
    if given is not None or not path:
        return given or environ.get("CONSUL_HTTP_TOKEN") or None
    try:
        return token_of(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"CONSUL_HTTP_TOKEN_FILE: {path}: {getattr(error, 'strerror', 'not text')}") from error
