"""Where Consul is and how to reach it: addresses, Consul's environment variables, the adapter that they ask for.

Source: https://www.consul.io/commands#environment-variables
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Callable, Optional
from urllib.parse import urlsplit

from consulfs.consulate.adapters import OnRequest, Request, UnixSocketRequest, Verify

DEFAULT_PORTS = {"http": 8500, "https": 8501}


class BadAddress(ValueError):
    """An address that cannot be understood; the message says why."""


@dataclass(frozen=True)
class Address:
    """Where Consul's HTTP API is.

    :ivar scheme: "http", "https" or "http+unix"
    :ivar host: a name or address, or the path of a Unix socket
    :ivar port: None for a Unix socket
    :ivar path: what stands behind it, from the first "/" on
    """

    scheme: str
    host: str
    port: Optional[int]
    path: str = ""

    @classmethod
    def parse(cls, text: str, environ: Mapping[str, str]) -> Address:
        """`[http://|https://]host[:port][/path]` or `unix:///path/to/socket`; CONSUL_HTTP_SSL counts without a scheme.

        :raises BadAddress: it is neither
        """
        if text.startswith("unix://"):
            path = text[len("unix://") :]
            if not path.startswith("/"):
                raise BadAddress(f"{text!r}: the socket's path must be absolute, as in unix:///run/consul.sock")
            return cls("http+unix", path, None)
        scheme, separator, rest = text.partition("://")
        if not separator:
            scheme, rest = "https" if is_true(environ.get("CONSUL_HTTP_SSL", "")) else "http", text
        if "@" in rest.partition("/")[0]:
            raise BadAddress("no user or password in an address, which everybody can read: use CONSUL_HTTP_AUTH")
        if scheme not in DEFAULT_PORTS:
            raise BadAddress(f"{text!r}: the scheme is http, https or unix")
        try:
            parts = urlsplit(f"{scheme}://{rest}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise BadAddress(f"{text!r}: {error}") from error
        if not host:
            raise BadAddress(f"{text!r}: no host")
        # Not parts.path: "?" and "#" are ordinary characters of a key.
        slash = rest.find("/")
        return cls(scheme, host, port or DEFAULT_PORTS[scheme], rest[slash:] if slash >= 0 else "")


@dataclass(frozen=True)
class Security:
    """How a connection is secured, and what HTTP itself is told of the user; the ACL token is not of it."""

    cacert: Optional[str] = None
    capath: Optional[str] = None
    client_cert: Optional[str] = None
    client_key: Optional[str] = None
    server_name: Optional[str] = None
    verify: bool = True
    auth: Optional[str] = field(default=None, repr=False)

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Security:
        """What Consul's environment variables ask for."""
        return cls(
            cacert=environ.get("CONSUL_CACERT") or None,
            capath=environ.get("CONSUL_CAPATH") or None,
            client_cert=environ.get("CONSUL_CLIENT_CERT") or None,
            client_key=environ.get("CONSUL_CLIENT_KEY") or None,
            server_name=environ.get("CONSUL_TLS_SERVER_NAME") or None,
            verify=is_not_false(environ.get("CONSUL_HTTP_SSL_VERIFY", "")),
            auth=environ.get("CONSUL_HTTP_AUTH") or None,
        )

    def files(self) -> Iterator[tuple[str, str]]:
        """(name, path) of each file or folder that must be there."""
        for name in ("cacert", "capath", "client_cert", "client_key"):
            path = getattr(self, name)
            if path:
                yield name, path

    def adapter(
        self,
        scheme: str,
        timeout: Optional[float],
        on_wait: Optional[Callable[[], None]] = None,
        on_request: Optional[OnRequest] = None,
    ) -> Request:
        """The adapter for connections like this."""
        verify: Verify = self.cacert or self.capath or True
        headers = {}
        if self.auth:
            headers["Authorization"] = "Basic " + base64.b64encode(self.auth.encode()).decode()
        kind = UnixSocketRequest if scheme == "http+unix" else Request
        return kind(
            timeout=timeout,
            verify=verify if self.verify else False,
            cert=(self.client_cert, self.client_key) if self.client_cert and self.client_key else self.client_cert,
            server_hostname=self.server_name,
            headers=headers,
            on_wait=on_wait,
            on_request=on_request,
        )


def token_of(path: str) -> Optional[str]:
    """The token that a file holds.

    :raises OSError, UnicodeDecodeError: it cannot be read
    """
    with open(path, encoding="utf-8") as file:
        return file.read().strip() or None


def is_true(text: str) -> bool:
    return text.lower() in ("1", "t", "true", "yes")


def is_not_false(text: str) -> bool:
    return text.lower() not in ("0", "f", "false", "no")
