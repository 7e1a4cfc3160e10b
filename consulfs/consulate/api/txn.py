"""Transactions: several operations that are applied together or not at all.

Source: https://www.consul.io/api-docs/txn, and measured on Consul 1.8.7: at most 64 operations (128 on later
servers) and a body of 512 KiB; a `get` of a missing key fails the whole; keys that the token may not read are left
out of the results without a word.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Optional

from consulfs.consulate.adapters import Response
from consulfs.consulate.api.base import Endpoint, Params, check_options, consistency_of, says_no_session
from consulfs.consulate.exceptions import BY_STATUS, StaleIndex, TransactionFailed, UnknownSession

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.models import Query

Operation = dict[str, Any]

# What Consul 1.8 says of a check or compare-and-set that met another state (agent/consul/state/txn.go).
_STALE = ("index is stale", "doesn't exist", " exists", "failed index check", "failed session check", "lock is")

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')  # a key's name in those words, which may say anything


def operation(
    verb: str,
    key: str,
    value: Optional[bytes] = None,
    flags: Optional[int] = None,
    index: Optional[int] = None,
    session: Optional[str] = None,
) -> Operation:
    """One KV operation.

    :param verb: set, cas, lock, unlock, get, get-tree, check-index, check-session, check-not-exists, delete,
        delete-tree or delete-cas
    :param index: the ModifyIndex that cas, check-index and delete-cas expect; 0 expects no key
    """
    body: Operation = {"Verb": verb, "Key": key}
    if value is not None:
        body["Value"] = base64.b64encode(value).decode("ascii")
    for name, given in (("Flags", flags), ("Index", index), ("Session", session)):
        if given is not None:
            body[name] = given
    return {"KV": body}


def encode(operations: Sequence[Operation]) -> bytes:
    """The body of a transaction; its length is what the server's limit counts."""
    return json.dumps(operations, separators=(",", ":"), ensure_ascii=False).encode()


class Txn(Endpoint):
    """Run transactions."""

    def execute(
        self, operations: Sequence[Operation], body: Optional[bytes] = None, **query: Unpack[Query]
    ) -> list[dict[str, Any]]:
        """Apply all of the operations or none.

        :param body: `encode(operations)`, where the caller has made it already
        :return: the KV entries of the answer, in order; not one an operation (deletes give none)
        :raises StaleIndex: a check or a compare-and-set met another state
        :raises TransactionFailed: an operation was refused for another reason
        :raises Forbidden: the token has no right to one of the operations
        :raises TooLarge: too many operations, or too many bytes
        """
        answer = self._send(encode(operations) if body is None else body, query)
        try:
            entries = [result["KV"] for result in answer.as_dict()["Results"] or ()]
        except (KeyError, TypeError):
            raise answer.bad("the results of a transaction") from None
        if not all(isinstance(entry, dict) and isinstance(entry.get("Key"), str) for entry in entries):
            raise answer.bad("the results of a transaction")
        return entries

    def apply(self, operations: Sequence[Operation], **query: Unpack[Query]) -> list[dict[str, Any]]:
        """Apply all of the operations or none, those of the catalog among them.

        An operation is a dict of one item, as Consul documents it: "KV" (see `operation`), "Node", "Service" or
        "Check", such as {"Node": {"Verb": "set", "Node": {"Node": "db1", "Address": "10.0.0.1"}}}.

        :return: the rows of the answer, each a dict of one item under the same name; none for deletes
        :raises: what `execute` raises
        """
        answer = self._send(encode(operations), query)
        try:
            rows = list(answer.as_dict()["Results"] or ())
        except (KeyError, TypeError):
            raise answer.bad("the results of a transaction") from None
        if not all(isinstance(row, dict) for row in rows):
            raise answer.bad("the results of a transaction")
        return rows

    def _send(self, body: bytes, query: Query) -> Response:
        if query.get("index") is not None:
            raise ValueError("a transaction cannot wait: Consul has no blocking query for an odd key")
        check_options(query)
        params: Params = {"dc": query.get("dc") or self._datacenter}
        params.update(consistency_of(query.get("consistency"), query.get("stale", False)))
        answer = self._call("PUT", "txn", params, body, query.get("timeout"), accepted=(409,))
        if answer.status_code == 409:
            _raise_failed(answer)
        return answer


def _raise_failed(answer: Response) -> NoReturn:
    try:
        errors = [(error["OpIndex"], error["What"]) for error in answer.as_dict()["Errors"]]
    except (KeyError, TypeError):
        raise answer.bad("the errors of a transaction") from None
    if not errors or not all(isinstance(index, int) and isinstance(what, str) for index, what in errors):
        raise answer.bad("the errors of a transaction")
    words = "; ".join(what for _, what in errors)
    if any("ermission denied" in _QUOTED.sub("", what) for _, what in errors):
        raise BY_STATUS[403](f"PUT /v1/txn: {words}", 403)
    if any(says_no_session(_QUOTED.sub("", what)) for _, what in errors):
        raise UnknownSession(f"PUT /v1/txn: {words}", 409)
    stale = all(any(phrase in _QUOTED.sub("", what) for phrase in _STALE) for _, what in errors)
    raise (StaleIndex if stale else TransactionFailed)(f"PUT /v1/txn: {words}", 409, errors)
