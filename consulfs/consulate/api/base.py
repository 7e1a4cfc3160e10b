"""What every endpoint shares: building the URI, the token's header, errors from statuses, the answer's metadata."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Container, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Callable, NoReturn, Optional, TypeVar, Union
from urllib.parse import quote, urlencode

from consulfs.consulate._secrets import without
from consulfs.consulate.adapters import Request, Response, Stream
from consulfs.consulate.exceptions import (
    BY_STATUS,
    ClientError,
    NoLeader,
    NotFound,
    Redirected,
    RequestError,
    ServerError,
    UnknownDatacenter,
    UnknownSession,
)
from consulfs.consulate.models import DEFAULT_WAIT, Meta, duration, seconds

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.models import NodeQuery

_DENIED = ("ACL not found", "Permission denied", "denied by ACLs", "denied due to ACLs")  # the last two: the keyring

# How Consul 1.8 refuses an ID that is no UUID, and so is nothing's ID: with 500, or 400 for intentions.
_NO_UUID = re.compile(r"index error: (UUID must|Invalid UUID|Input \(without hyphens)|invalid UUID$")

_OPTIONS = frozenset(("consistency", "dc", "filter", "hash", "index", "near", "node_meta", "stale", "timeout", "wait"))

CONSISTENCY: dict[str, dict[str, str]] = {"default": {}, "consistent": {"consistent": ""}, "stale": {"stale": ""}}

T = TypeVar("T")

Params = dict[str, Union[str, int, Sequence[str], None]]
Row = dict[str, Any]
Rows = list[Row]  # named here, since `list` is a method of several endpoints


class Endpoint:
    """A part of Consul's HTTP API.

    :param uri: what every URI begins with, such as http://localhost:8500/v1
    :param adapter: carries the requests
    :param datacenter: asked instead of the agent's own
    :param token: sent as a header, never in a URI
    :raises ValueError: the token cannot be sent
    """

    _discreet = False

    def __init__(
        self, uri: str, adapter: Request, datacenter: Optional[str] = None, token: Optional[str] = None
    ) -> None:
        if token is not None and not (isinstance(token, str) and token.isascii() and token.isprintable()):
            raise ValueError("the token is no string, or has characters that no HTTP header can carry")
        self._uri = uri
        self._adapter = adapter
        self._datacenter = datacenter
        self._token = token
        self._answers = threading.local()

    @property
    def meta(self) -> Meta:
        """What Consul said about the last answer that this thread had from this endpoint."""
        return getattr(self._answers, "meta", Meta())

    # -- reads -----------------------------------------------------------------------------------------------

    def _read(
        self, path: str, params: Optional[Params] = None, accepted: Container[int] = (), **query: Unpack[NodeQuery]
    ) -> Response:
        """GET, with the options that reads take; every error status is raised that is not accepted."""
        options = self._options(query)
        return self._call("GET", path, {**(params or {}), **options}, timeout=self._time_for(query), accepted=accepted)

    def _search(
        self, path: str, params: Optional[Params] = None, absent: Sequence[str] = (), **query: Unpack[NodeQuery]
    ) -> Optional[Response]:
        """As `_read`; None where Consul says that there is no such thing.

        :param absent: as in `is_absent`
        """
        try:
            answer = self._read(path, params, accepted=(404,), **query)
        except NotFound:  # an ID that is none at all, see `raise_for`
            return None
        return None if is_absent(answer, absent) else answer

    def _read_list(
        self, path: str, params: Optional[Params] = None, of: type = dict, **query: Unpack[NodeQuery]
    ) -> list[Any]:
        """A list, [] where there is nothing; `of` as in `Response.as_list`."""
        return self._read(path, params, **query).as_list(of)

    def _read_dict(
        self, path: str, params: Optional[Params] = None, of: type = object, **query: Unpack[NodeQuery]
    ) -> Row:
        """An object, {} where it is null; `of` as in `Response.as_dict`."""
        return self._read(path, params, **query).as_dict(of)

    def _find_dict(
        self, path: str, params: Optional[Params] = None, absent: Sequence[str] = (), **query: Unpack[NodeQuery]
    ) -> Optional[Row]:
        """An object, or None where Consul answers with null, or says that there is none; see `_search`."""
        answer = self._search(path, params, absent, **query)
        return None if answer is None else answer.as_dict() or None

    # -- writes ----------------------------------------------------------------------------------------------

    def _write(
        self,
        path: str,
        data: Any = None,
        params: Optional[Params] = None,
        method: str = "PUT",
        timeout: Optional[float] = None,
        secret: Optional[str] = None,
    ) -> Response:
        """PUT, POST or DELETE; every error status is raised. `data` that is not bytes is sent as JSON."""
        body = data if data is None or isinstance(data, bytes) else json.dumps(data).encode()
        options: Params = {"dc": self._datacenter, **(params or {})}
        return self._call(method, path, options, body, timeout, secret=secret)

    def _done(self, path: str, data: Any = None, params: Optional[Params] = None, method: str = "PUT") -> bool:
        """As `_write`, where the status says it all: True, or an exception."""
        return self._write(path, data, params, method).as_done()

    # -- both ------------------------------------------------------------------------------------------------

    def _call(
        self,
        method: str,
        path: str,
        params: Params,
        body: Optional[bytes] = None,
        timeout: Optional[float] = None,
        accepted: Container[int] = (),
        secret: Optional[str] = None,
    ) -> Response:
        """One request.

        :param accepted: error statuses that are answers here (a service's health is told by 429 and 503)
        :param secret: a part of the path that no message may show (the ID of a legacy ACL token is the token)
        """
        secrets = self._secrets(secret)
        what = without(f"{method} /v1/{path}", secrets)
        # By the adapter's method of that name, so that an adapter of one's own may override it.
        ask = getattr(self._adapter, method.lower())
        arguments: dict[str, Any] = {}
        if timeout is not None:
            arguments["timeout"] = timeout
        if body is not None:
            arguments["data"] = body
        if self._token:
            arguments["headers"] = {"X-Consul-Token": self._token}
        answer: Response = _named(what, secrets, lambda: ask(self._uri_of(path, params), **arguments))
        answer.what, answer.secrets, answer.discreet = what, secrets, self._discreet
        self._answers.meta = answer.meta
        if not (answer.ok or answer.status_code in accepted):
            raise_for(answer)
        return answer

    def _stream(
        self,
        method: str,
        path: str,
        params: Params,
        data: Union[bytes, IO[bytes], None] = None,
        timeout: Optional[float] = None,
        accepted: Container[int] = (),
    ) -> Stream:
        """As `_call`, with bodies that are sent and read piece by piece."""
        what = f"{method} /v1/{path}"
        headers = {"X-Consul-Token": self._token} if self._token else None
        uri = self._uri_of(path, params)
        ask = self._adapter.stream
        stream = _named(what, self._secrets(), lambda: ask(method, uri, data, headers, timeout))
        stream.what = what
        self._answers.meta = Meta.of(stream.headers)
        if not (200 <= stream.status_code < 300 or stream.status_code in accepted):
            with stream:
                raise_for(self._start_of(stream))
        return stream

    def _start_of(self, stream: Stream) -> Response:
        """The first bytes of a stream as an answer, to be told why it is none."""
        answer = Response(stream.status_code, stream.read(4096), stream.headers, stream.what)
        answer.secrets, answer.discreet = self._secrets(), self._discreet
        return answer

    def _secrets(self, *more: Optional[str]) -> tuple[str, ...]:
        """What no message may show."""
        # An adapter of one's own may know none.
        return tuple(each for each in (self._token, *more, *getattr(self._adapter, "secrets", ())) if each)

    def _uri_of(self, path: str, params: Params) -> str:
        pairs = [(name, value) for name, value in params.items() if value is not None]
        return f"{self._uri}/{path}" + (f"?{urlencode(pairs, doseq=True)}" if pairs else "")

    def _options(self, query: Mapping[str, Any]) -> Params:
        """The parameters of a read's options."""
        check_options(query)
        options: Params = {"dc": query.get("dc") or self._datacenter}
        options.update(consistency_of(query.get("consistency"), query.get("stale", False)))
        options["filter"] = query.get("filter")
        options["near"] = query.get("near")
        if query.get("node_meta"):
            options["node-meta"] = [f"{name}:{value}" for name, value in query["node_meta"].items()]
        if _waits(query):
            options.update(index=query.get("index"), hash=query.get("hash"))
            wait = query.get("wait")
            options["wait"] = None if wait is None else duration(wait)
        return options

    def _time_for(self, query: Mapping[str, Any]) -> Optional[float]:
        """Seconds that the answer may take: a blocking query is held by Consul before that."""
        timeout = query.get("timeout")
        if not _waits(query):
            return timeout
        limit = getattr(self._adapter, "timeout", None) if timeout is None else timeout
        wait = query.get("wait")
        held = DEFAULT_WAIT if wait is None else seconds(wait)
        # Consul adds up to wait/16 to spread the load: api-docs/features/blocking.
        return None if limit is None else held * 17 / 16 + limit


def _waits(query: Mapping[str, Any]) -> bool:
    """Whether it is a blocking query."""
    return query.get("index") is not None or query.get("hash") is not None


def check_options(query: Mapping[str, Any]) -> None:
    """:raises TypeError: there is no such option: left out without a word, `consistancy` would read stale data"""
    if not query.keys() <= _OPTIONS:
        raise TypeError(f"reads have no option {', '.join(sorted(query.keys() - _OPTIONS))}")


def consistency_of(mode: Optional[str], stale: bool = False) -> Params:
    """The parameters of a consistency mode; raises ValueError for one that there is not."""
    if mode not in (None, *CONSISTENCY) or (stale and mode not in (None, "stale")):
        said = f"{mode!r} with stale=True" if stale else repr(mode)
        raise ValueError(f"consistency is one of {', '.join(CONSISTENCY)}, not {said}")
    return dict(CONSISTENCY["stale" if stale else mode or "default"])


def segment(name: str) -> str:
    """A name as one segment of a URI's path.

    :raises ValueError: it is empty, or "." or "..", which would be another path
    """
    if name in ("", ".", ".."):
        raise ValueError(f"{name!r} cannot be a name or an ID in Consul's HTTP API")
    return quote(name, safe="")


def strip_none(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request's body without what was not given."""
    return {name: value for name, value in body.items() if value is not None}


def _named(what: str, secrets: Sequence[str], ask: Callable[[], T]) -> T:
    """What a request gives; its failures say what was asked, and nothing that is secret."""
    try:
        return ask()
    except RequestError as error:
        failure = type(error)(f"{what}: {without(str(error), secrets)}")
        failure.__cause__ = None if _tells(error.__cause__, secrets) else error.__cause__
    raise failure


def _tells(error: Optional[BaseException], secrets: Sequence[str]) -> bool:
    """Whether an exception or what it comes from shows a secret: a server's odd first line is quoted, say."""
    if error is None:
        return False
    shown = f"{error} {error!r}"
    return without(shown, secrets) != shown or _tells(error.__cause__ or error.__context__, secrets)


def raise_for(answer: Response) -> NoReturn:
    """Raise the exception that fits an answer's status."""
    status, words = answer.status_code, answer.text.strip()
    message = f"{answer.what}: {status} {without(words, answer.secrets)[:500] or 'no explanation'}"
    if 300 <= status < 400:
        target = without(answer.headers.get("Location", "nowhere"), answer.secrets)
        raise Redirected(f"{answer.what}: {status} to {target}, not followed", status)
    if status == 404 and _is_page(answer):
        raise answer.bad("an answer of Consul's")
    if status >= 500:
        # Consul 1.8 answers 500 with these words where the token is unknown or lacks the right.
        if any(each in words for each in _DENIED):
            raise BY_STATUS[403](message, 403)
        if says_no_session(words):
            raise UnknownSession(message, status)
        if "No path to datacenter" in words:
            raise UnknownDatacenter(message, status)
        if _NO_UUID.search(words):
            raise NotFound(message, status)
        raise (NoLeader if "No cluster leader" in words else ServerError)(message, status)
    if status == 400 and _NO_UUID.search(words):
        raise NotFound(message, status)
    raise BY_STATUS.get(status, ClientError)(message, status)


def is_absent(answer: Response, absent: Sequence[str]) -> bool:
    """Whether an answer is Consul's 404 for a thing that is not there; any other 404 is raised.

    A wrong port or a proxy answers 404 too, and so does a Consul that has not got the endpoint.

    :param absent: what of Consul's words tells this 404; "" stands for a 404 without a word
    """
    if answer.status_code != 404:
        return False
    words = answer.text.strip()
    if _is_page(answer) or not any(each in words if each else not words for each in absent):
        raise_for(answer)
    return True


def _is_page(answer: Response) -> bool:
    """Whether it is a web server's page: Consul's own 404 is plain text, JSON or nothing."""
    return "html" in answer.headers.get("Content-Type", "") or answer.content.lstrip()[:1] == b"<"


def says_no_session(words: str) -> bool:
    """Whether Consul's words are that there is no such session; an ID that is none at all is one that is not there."""
    return "invalid session" in words or "failed session lookup" in words


class Discreet(Endpoint):
    """An endpoint whose answers hold secrets: no message quotes one that is not what it should be."""

    _discreet = True
