"""Access control: legacy ACLs, the new system, logins. Source: https://www.consul.io/api-docs/acl

The ID of a legacy ACL is the secret itself, and Consul's own legacy API has it in the path of the URL, from where it
gets into logs. Nothing here puts it there: such an ACL is found by the list, or by its ID in the token's header.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Optional

from consulfs.consulate.adapters import Request, Response
from consulfs.consulate.api.acl.collections import (
    AuthMethods,
    BindingRules,
    Guarded,
    Policies,
    Roles,
    TemplatedPolicies,
    Tokens,
)
from consulfs.consulate.api.base import Row, Rows, segment, strip_none
from consulfs.consulate.exceptions import Forbidden, Gone, NotFound, ServerError

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    from consulfs.consulate.models import Query

    class Unblocked(TypedDict, total=False):
        """What a read takes that cannot wait for a change; see `Query`."""

        consistency: str
        stale: bool
        dc: str
        timeout: float


__all__ = ["ACL", "AuthMethods", "BindingRules", "Policies", "Roles", "TemplatedPolicies", "Tokens"]

MANAGEMENT = "00000000-0000-0000-0000-000000000001"
"""The ID of the policy global-management, the same on every cluster."""

UPGRADE_LIMIT = 10.0
"""Seconds that a legacy ACL may be without an AccessorID; the servers give it one within about a second."""

_LIST, _SELF = "GET /v1/acl/list", "GET /v1/acl/token/self"

Verdicts = list[bool]


class ACL(Guarded):
    """Access control.

    Legacy ACLs (create, clone, destroy, info, list, update) were removed in Consul 1.11; what replaces them:

    :ivar tokens: who may do something
    :ivar policies: what may be done
    :ivar roles: policies and identities under one name
    :ivar auth_methods: how someone who is known elsewhere gets a token
    :ivar binding_rules: what such a token may do
    :ivar templated_policies: the policies with blanks that Consul brings
    """

    def __init__(
        self, uri: str, adapter: Request, datacenter: Optional[str] = None, token: Optional[str] = None
    ) -> None:
        super().__init__(uri, adapter, datacenter, token)
        self.tokens = Tokens(uri, adapter, datacenter, token)
        self.policies = Policies(uri, adapter, datacenter, token)
        self.roles = Roles(uri, adapter, datacenter, token)
        self.auth_methods = AuthMethods(uri, adapter, datacenter, token)
        self.binding_rules = BindingRules(uri, adapter, datacenter, token)
        self.templated_policies = TemplatedPolicies(uri, adapter, datacenter, token)

    # -- legacy ----------------------------------------------------------------------------------------------

    def create(self, name: str, acl_type: str = "client", rules: Optional[str] = None) -> str:
        """A new legacy ACL's ID, which is the secret that its holder sends as token.

        :param acl_type: "client" or "management", which may do everything
        :param rules: in the rule language of before Consul 1.4
        :raises Gone: the server is of 1.11 or later; so do the other legacy calls
        """
        return self._legacy_write("create", {"Name": name, "Type": acl_type, "Rules": rules})

    def update(self, acl_id: str, name: str, acl_type: str = "client", rules: Optional[str] = None) -> bool:
        """Replace a legacy ACL's name, type and rules. An unknown ID is created.

        :param rules: none at all where none are given, as Consul has it
        """
        _sendable(acl_id)
        body = {"ID": acl_id, "Name": name, "Type": acl_type, "Rules": rules}
        self._legacy_write("update", body, secret=acl_id)
        return True

    def list(self, **query: Unpack[Query]) -> Rows:
        """The legacy ACLs, with their IDs, which are secrets."""
        return self._read_legacy(**query).as_list(dict)

    def info(self, acl_id: str, **query: Unpack[Query]) -> Row:
        """A legacy ACL.

        As with Consul's own call, no right is needed but to know the ID. Without the right to the list, the type is
        told from its policies: a token of the new system with global-management alone passes for legacy.

        :raises NotFound: there is none, or it belongs to the new system
        :raises ServerError: without the right to the list, where the servers have given it no AccessorID yet
        """
        try:
            asked, found = _LIST, self._find_legacy(acl_id, **query)
        except Forbidden:
            asked, found = _SELF, _as_legacy(self._read_by_secret(acl_id, **query))
        if found is None:
            raise _no_such_acl(asked)
        return found

    def clone(self, acl_id: str) -> str:
        """The ID of a new legacy ACL with the name, type and rules of another.

        :raises NotFound: there is none, or it belongs to the new system
        """
        found = self._find_legacy(acl_id)
        if found is None:
            raise _no_such_acl(_LIST)
        return self.create(found["Name"], found["Type"], found["Rules"])

    def destroy(self, acl_id: str) -> bool:
        """Delete a legacy ACL, or a token of the new system by its SecretID; works on later servers too.

        :raises NotFound: there is none
        :raises Forbidden: the client's token may not
        :raises ServerError: the servers have not given it the AccessorID yet by which it is deleted
        """
        return self.tokens.delete(self._read_by_secret(acl_id).field("AccessorID"))

    def _legacy_write(self, what: str, body: Mapping[str, Any], secret: Optional[str] = None) -> str:
        if body["Type"] not in ("client", "management"):
            raise ValueError(f"the type of a legacy ACL is 'client' or 'management', not {body['Type']!r}")
        with _removed("acl.tokens and acl.policies"):
            return self._write(f"acl/{what}", strip_none(body), secret=secret).field("ID")

    def _read_legacy(self, **query: Unpack[Query]) -> Response:
        with _removed("acl.tokens and acl.policies"):
            return self._get("acl/list", **query)

    def _find_legacy(self, acl_id: str, **query: Unpack[Query]) -> Optional[Row]:
        answer = self._read_legacy(**query)
        found = next((row for row in answer.as_list(dict) if row.get("ID") == acl_id), None)
        if found is not None:
            for name in ("Name", "Type", "Rules"):
                answer.part(found, name, str)
        return found

    def _read_by_secret(self, secret: str, **query: Unpack[Query]) -> Response:
        """The token of a secret, asked for by itself: acl/token/self with the secret in the header.

        A new legacy ACL has neither AccessorID nor policies there at first: the leader brings them a little later
        (measured on 1.8.7: up to a second).
        """
        own = self._with_token(secret)
        deadline = time.monotonic() + UPGRADE_LIMIT
        try:
            answer = own._get("acl/token/self", secret, **query)
            while not answer.field("AccessorID"):
                left = deadline - time.monotonic()
                if left <= 0 or own.meta.index is None:
                    raise ServerError(f"{_SELF}: the servers have given this ACL no AccessorID yet; try again")
                later: Query = {**query, "index": own.meta.index, "wait": f"{left:.3f}s"}
                answer = own._get("acl/token/self", secret, **later)
        except Forbidden as error:
            if "ACL not found" not in str(error):
                raise
            raise _no_such_acl(_SELF) from None
        return answer

    def _get(self, path: str, secret: Optional[str] = None, **query: Unpack[Query]) -> Response:
        """A read of which every error status is raised, a 404 too."""
        return self._call("GET", path, self._options(query), timeout=self._time_for(query), secret=secret)

    def _with_token(self, token: str) -> ACL:
        """The same endpoint with another token; what it learns (`meta`) is known here too."""
        other = copy.copy(self)
        other._token = _sendable(token)
        return other

    # -- the system ------------------------------------------------------------------------------------------

    def bootstrap(self, bootstrap_secret: Optional[str] = None) -> Row:
        """The first management token of a cluster that has none.

        :param bootstrap_secret: its SecretID, a UUID; made by Consul where none is given; Consul 1.8 makes one anyway
        :raises Forbidden: the cluster has been bootstrapped
        """
        body = None if bootstrap_secret is None else {"BootstrapSecret": bootstrap_secret}
        return self._write("acl/bootstrap", body, secret=bootstrap_secret).as_dict()

    def replication(self, **query: Unpack[Unblocked]) -> Row:
        """How far the replication of tokens and policies from the primary datacenter has got."""
        return self._read_dict("acl/replication", **query)

    def translate(self, rules: str) -> str:
        """Legacy rules in the language of the new system.

        :raises Gone: the server is of 1.11 or later
        """
        with _removed("the consul command of an older version"):
            return self._write("acl/rules/translate", rules.encode(), method="POST").text

    def translate_token(self, accessor_id: str) -> str:
        """The rules of the legacy ACL of this AccessorID in the language of the new system.

        :raises Gone: the server is of 1.11 or later
        :raises NotFound: there is no such token
        """
        with self._missing_told(), _removed("the consul command of an older version"):
            return self._get(f"acl/rules/translate/{segment(accessor_id)}").text

    # -- who and what ----------------------------------------------------------------------------------------

    def token_self(self, **query: Unpack[Query]) -> Row:
        """The token that this client uses; the same as `tokens.read_self`.

        :raises ACLDisabled: the cluster runs without ACLs
        :raises Forbidden: the token is unknown
        """
        return self._read_dict("acl/token/self", **query)

    def authorize(self, requests: Sequence[tuple[str, str, str]], timeout: Optional[float] = None) -> Verdicts:
        """Whether the token may do each (resource, access, name), such as ("key", "write", "app/feature").

        Consul's own UI asks this way; the path is internal and undocumented, there since 1.5. It costs no commit.

        :raises ACLDisabled: there is nothing to ask, everything is allowed
        :raises NotFound: the server is too old
        """
        body = [{"Resource": resource, "Access": access, "Segment": name} for resource, access, name in requests]
        answer = self._write("internal/acl/authorize", body, method="POST", timeout=timeout)
        verdicts = [answer.part(each, "Allow", bool) for each in answer.as_list(dict)]
        if len(verdicts) != len(body):
            raise answer.bad(f"{len(body)} verdicts")
        return verdicts

    def login(self, auth_method: str, bearer_token: str, meta: Optional[Mapping[str, str]] = None) -> Row:
        """A new token, with its SecretID, for someone whom an auth method knows.

        :param bearer_token: what the auth method checks, such as a JWT
        :param meta: kept with the token, in its description
        :raises Forbidden: there is no such method, or no binding rule gives them anything
        :raises ServerError: the method refuses the bearer token; Consul's words say why
        """
        body = {"AuthMethod": auth_method, "BearerToken": bearer_token, "Meta": None if meta is None else dict(meta)}
        return self._write("acl/login", strip_none(body), method="POST", secret=bearer_token).as_dict()

    def logout(self, token: Optional[str] = None) -> bool:
        """Delete a token that a login has made.

        :param token: its SecretID; the client's own where none is given
        :raises Forbidden: it is unknown, or was not made by a login
        """
        own = self if token is None else self._with_token(token)
        own._write("acl/logout", method="POST", secret=token)
        return True

    def oidc_auth_url(
        self,
        auth_method: str,
        redirect_uri: str,
        *,
        client_nonce: Optional[str] = None,
        meta: Optional[Mapping[str, str]] = None,
    ) -> str:
        """Where a browser begins a login by OIDC (Consul Enterprise, since 1.8).

        :param client_nonce: has to be the same in `oidc_callback`
        :raises NotFound: the server is not Consul Enterprise
        """
        body = {"AuthMethod": auth_method, "RedirectURI": redirect_uri, "ClientNonce": client_nonce, "Meta": meta}
        return self._write("acl/oidc/auth-url", strip_none(body), method="POST").field("AuthURL")

    def oidc_callback(
        self,
        auth_method: str,
        state: str,
        code: str,
        *,
        client_nonce: Optional[str] = None,
        meta: Optional[Mapping[str, str]] = None,
    ) -> Row:
        """A new token for the state and code that the OIDC provider's redirect brought (Consul Enterprise).

        :raises NotFound: the server is not Consul Enterprise
        """
        body = {"AuthMethod": auth_method, "State": state, "Code": code, "ClientNonce": client_nonce, "Meta": meta}
        return self._write("acl/oidc/callback", strip_none(body), method="POST", secret=code).as_dict()


@contextmanager
def _removed(instead: str) -> Iterator[None]:
    """For calls that Consul 1.11 has removed: it answers 410, and 404 where it knows them no more at all."""
    try:
        yield
    except (Gone, NotFound) as error:
        if error.status not in (404, 410):  # an ID that is no UUID
            raise
        raise Gone(f"{error}; removed in Consul 1.11: use {instead}", error.status) from None


def _sendable(token: str) -> str:
    """A token that arrives as it is: a header loses white space at the ends, and an empty one is anonymous."""
    if not token or token != token.strip() or not (token.isascii() and token.isprintable()):
        raise ValueError("this ID or token is empty or has characters that no HTTP header can carry")
    return token


def _whole(answer: Response) -> Row:
    """A token with all that `_as_legacy` looks at."""
    token = answer.as_dict()
    for name in ("SecretID", "Description", "CreateTime"):
        answer.part(token, name, str)
    for name in ("CreateIndex", "ModifyIndex"):
        answer.part(token, name, int)
    policies = token.get("Policies") or []
    if not isinstance(policies, list) or not all(isinstance(each, dict) and "ID" in each for each in policies):
        raise answer.bad("a token with its policies")
    return token


def _as_legacy(answer: Response) -> Optional[Row]:
    """A token as Consul's legacy API shows it; None where it belongs to the new system."""
    token = _whole(answer)
    policies = [each["ID"] for each in token.get("Policies") or ()]
    grants = any(token.get(name) for name in ("Roles", "ServiceIdentities", "NodeIdentities"))
    # The legacy API sets no time of creation, the new one always does; measured on Consul 1.8.7.
    old = token["CreateTime"].startswith("0001-")
    if grants or policies not in ([], [MANAGEMENT]) or not (policies or old):
        return None
    return {
        "ID": token["SecretID"],
        "Name": token["Description"],
        "Type": "management" if policies else "client",
        "Rules": token.get("Rules", ""),
        "CreateIndex": token["CreateIndex"],
        "ModifyIndex": token["ModifyIndex"],
    }


def _no_such_acl(asked: str) -> NotFound:
    return NotFound(f"{asked}: there is no such ACL", 404)
