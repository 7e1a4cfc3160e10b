"""What every endpoint shares: building the URI, the token's header, errors from statuses, the answer's metadata."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Optional, Union
from urllib.parse import quote, urlencode

from consulfs.consulate.adapters import Request, Response
from consulfs.consulate.exceptions import BY_STATUS, ClientError, ServerError
from consulfs.consulate.models import DEFAULT_WAIT, Meta, duration, seconds

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.models import Query

CONSISTENCY: dict[str, dict[str, str]] = {"default": {}, "consistent": {"consistent": ""}, "stale": {"stale": ""}}

Params = dict[str, Union[str, int, None]]


class Endpoint:
    """A part of Consul's HTTP API.

    :param uri: what every URI begins with, such as http://localhost:8500/v1
    :param adapter: carries the requests
    :param datacenter: asked instead of the agent's own
    :param token: sent as a header, never in a URI
    """

    def __init__(
        self, uri: str, adapter: Request, datacenter: Optional[str] = None, token: Optional[str] = None
    ) -> None:
        self._uri = uri
        self._adapter = adapter
        self._datacenter = datacenter
        self._token = token
        self._answers = threading.local()

    @property
    def meta(self) -> Meta:
        """What Consul said about the last answer that this thread had from this endpoint."""
        return getattr(self._answers, "meta", Meta())

    def _read(self, path: str, params: Optional[Params] = None, **query: Unpack[Query]) -> Response:
        """GET, with the options that every read takes; 404 is returned, other errors are raised."""
        options: Params = {"dc": query.get("dc") or self._datacenter}
        options.update(consistency_of(query.get("consistency")))
        timeout = query.get("timeout")
        if query.get("index") is not None:
            options["index"] = query.get("index")
            wait = query.get("wait")
            options["wait"] = None if wait is None else duration(wait)
            held = DEFAULT_WAIT if wait is None else seconds(wait)
            # Consul adds up to wait/16 to spread the load: api-docs/features/blocking.
            limit = self._adapter.timeout if timeout is None else timeout
            timeout = None if limit is None else held * 17 / 16 + limit
        return self._call("GET", path, {**(params or {}), **options}, timeout=timeout, missing_ok=True)

    def _write(
        self,
        path: str,
        data: Any = None,
        params: Optional[Params] = None,
        method: str = "PUT",
        timeout: Optional[float] = None,
    ) -> Response:
        """PUT, POST or DELETE; every error status is raised. `data` that is not bytes is sent as JSON."""
        body = data if data is None or isinstance(data, bytes) else json.dumps(data).encode()
        options: Params = {"dc": self._datacenter, **(params or {})}
        return self._call(method, path, options, body, timeout)

    def _call(
        self,
        method: str,
        path: str,
        params: Params,
        body: Optional[bytes] = None,
        timeout: Optional[float] = None,
        missing_ok: bool = False,
        conflict_ok: bool = False,
    ) -> Response:
        pairs = [(name, value) for name, value in params.items() if value is not None]
        uri = f"{self._uri}/{path}" + (f"?{urlencode(pairs)}" if pairs else "")
        headers = {"X-Consul-Token": self._token} if self._token else {}
        answer = self._adapter.request(method, uri, body, headers, timeout)
        self._answers.meta = answer.meta
        expected = {404: missing_ok, 409: conflict_ok}.get(answer.status_code, False)
        if not answer.ok and not expected:
            raise_for(answer, f"{method} /v1/{path}")
        return answer


def consistency_of(mode: Optional[str]) -> Params:
    """The parameters of a consistency mode; raises ValueError for one that there is not."""
    if mode not in (None, *CONSISTENCY):
        raise ValueError(f"consistency is one of {', '.join(CONSISTENCY)}, not {mode!r}")
    return dict(CONSISTENCY[mode or "default"])


def segment(name: str) -> str:
    """A name as one segment of a URI's path."""
    return quote(name, safe="")


def strip_none(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request's body without what was not given."""
    return {name: value for name, value in body.items() if value is not None}


def raise_for(answer: Response, what: str) -> None:
    """Raise the exception that fits an answer's status."""
    words = answer.text.strip()[:500] or "no explanation"
    message = f"{what}: {answer.status_code} {words}"
    if answer.status_code >= 500:
        # Consul 1.8 answers 500 with these words where the token is unknown or lacks the right.
        if "ACL not found" in words or "Permission denied" in words:
            raise BY_STATUS[403](message, 403)
        raise ServerError(message, answer.status_code)
    raise BY_STATUS.get(answer.status_code, ClientError)(message, answer.status_code)
