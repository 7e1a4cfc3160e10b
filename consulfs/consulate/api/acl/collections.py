"""What Consul keeps of its ACL system, five collections of one shape: tokens, policies, roles, auth methods, rules.

Source: https://www.consul.io/api-docs/acl and the pages below it; measured on Consul 1.8.7.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Optional, TypedDict, Union

from consulfs.consulate.api.base import Discreet, Params, Row, Rows, segment, strip_none
from consulfs.consulate.exceptions import ClientError, Forbidden, NotFound
from consulfs.consulate.models import duration

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.models import Query

Links = Iterable[Union[str, Mapping[str, Any]]]
"""Each a name, or an object as Consul documents it, such as {"ID": ...} for a policy by its ID."""


class PolicyFields(TypedDict, total=False):
    """rules: in Consul's rule language; datacenters: valid only there, everywhere where there are none"""

    description: str
    rules: str
    datacenters: Iterable[str]


class _Grants(TypedDict, total=False):
    """What a token or a role may do.

    policies, roles: a string is a name, never an ID; {"ID": ...} is one by ID
    service_identities: a string is a service's name; else {"ServiceName": ..., "Datacenters": [...]}
    node_identities: each {"NodeName": ..., "Datacenter": ...}; since Consul 1.8.1
    templated_policies: a string is a template's name; else {"TemplateName": ..., "TemplateVariables": ...}; since 1.17
    """

    description: str
    policies: Links
    service_identities: Links
    node_identities: Iterable[Mapping[str, Any]]
    templated_policies: Links


class RoleFields(_Grants, total=False):
    """As `_Grants`; a role has no roles."""


class TokenFields(_Grants, total=False):
    """local: not replicated to other datacenters; cannot be changed later"""

    roles: Links
    local: bool


class AuthMethodFields(TypedDict, total=False):
    """config: as Consul documents it for the type

    display_name: shown instead of the name
    max_token_ttl: how long a login lasts; seconds or a duration, one minute to 24 hours
    token_locality: "local", which is Consul's default, or "global"
    """

    config: Mapping[str, Any]
    description: str
    display_name: str
    max_token_ttl: Union[str, float]
    token_locality: str


class BindingRuleFields(TypedDict, total=False):
    """bind_type: "service", "node" or "role", on later servers also "policy" and "templated-policy"

    bind_name: what a login is given, such as "web" or "web-${value.name}"
    bind_vars: the variables of a templated policy; on later servers
    selector: an expression that a login has to match; every login does where there is none
    """

    bind_type: str
    bind_name: str
    bind_vars: Mapping[str, Any]
    description: str
    selector: str


_ABSENT = ("", "ACL not found")
"""How Consul says 404: 1.8 without a word, later versions with "Requested role does not exist: ACL not found"."""


class Guarded(Discreet):
    """An endpoint of the ACL system."""

    def _find_dict(
        self, path: str, params: Optional[Params] = None, absent: Sequence[str] = _ABSENT, **query: Any
    ) -> Optional[Row]:
        """An object, or None where there is none: Consul answers 403 for an unknown token or policy, as late as 1.8.

        :raises Forbidden: there is something, or the client's own token is unknown
        """
        try:
            return super()._find_dict(path, params, absent, **query)
        except Forbidden as error:
            if self._tells_missing(error):
                return None
            raise

    @contextmanager
    def _missing_told(self) -> Iterator[None]:
        """A 403 for something that is not there becomes NotFound; one for the client's own token stays Forbidden."""
        try:
            yield
        except Forbidden as error:
            if self._tells_missing(error):
                raise NotFound(str(error), 404) from None
            raise

    def _tells_missing(self, error: Forbidden) -> bool:
        return "ACL not found" in str(error) and self._is_known()

    def _is_known(self) -> bool:
        """Whether Consul knows the client's token; without one a client is anonymous, who is known."""
        try:
            return not self._token or bool(self._read_dict("acl/token/self"))
        except Forbidden:
            return False


class _Collection(Guarded):
    """Objects with an ID, or, in the case of auth methods, a name.

    Consul replaces an object when it is updated, and forgets what it is not told. `update` here reads the object,
    changes what is given and writes the whole, so that the rest stays; None stands for "not given", an empty string
    or list empties the field. Consul has no compare-and-set for these: of two updates at the same time the later
    one wins, with all of its fields.
    """

    _one: str
    _all: str
    _fields: frozenset[str]

    def read(self, item_id: str, /, **query: Unpack[Query]) -> Optional[Row]:
        """One object, whole; None where there is none.

        :raises Forbidden: the client's token may not read ACLs
        """
        return self._find_dict(self._path(item_id), **query)

    def list(self, **query: Unpack[Query]) -> Rows:
        """All of them, in brief: Consul leaves out what is large (rules, configurations)."""
        return self._read_list(self._all, **query)

    def delete(self, item_id: str, /) -> bool:
        """Delete one; True, also where there is none: Consul does not tell.

        :raises NotFound: there is none, on later servers, which tell; or the ID is no UUID
        """
        return self._write(self._path(item_id), method="DELETE").as_bool()

    def _create(self, fields: Mapping[str, Any], named: Mapping[str, Any], secret: Optional[str] = None) -> Row:
        body = {**strip_none(named), **self._body(fields)}
        return self._write(self._one, body, secret=secret).as_dict()

    def _update(self, item_id: str, fields: Mapping[str, Any], named: Mapping[str, Any]) -> Row:
        """:raises NotFound: there is none"""
        path = self._path(item_id)
        changes = {**strip_none(named), **self._body(fields)}
        now = self._find_dict(path)
        if now is None:
            raise NotFound(f"PUT /v1/{path}: there is nothing to update", 404)
        kept = {name: value for name, value in self._kept(now, changes).items() if name not in _CONSULS_OWN}
        return self._write(path, {**kept, **changes}).as_dict()

    def _kept(self, now: Row, changes: Row) -> Row:
        """What is there now and may be sent again."""
        return now

    def _path(self, item_id: str) -> str:
        return f"{self._one}/{segment(item_id)}"

    def _body(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        for name in fields:
            if name not in self._fields:
                raise TypeError(f"{name!r} is none of the fields here: {', '.join(sorted(self._fields))}")
        return {_camel(name): _CONVERTED.get(name, _same)(value) for name, value in strip_none(fields).items()}


class Tokens(_Collection):
    """Tokens, by their AccessorID, which may be shown; their SecretID is what the holder sends, and may not."""

    _one, _all = "acl/token", "acl/tokens"
    _fields = frozenset(TokenFields.__annotations__)

    def create(
        self,
        *,
        accessor_id: Optional[str] = None,
        secret_id: Optional[str] = None,
        expiration_ttl: Union[str, float, None] = None,
        expiration_time: Optional[str] = None,
        **fields: Unpack[TokenFields],
    ) -> Row:
        """A new token, with its SecretID.

        :param accessor_id: a UUID, made by Consul where none is given; so is `secret_id`
        :param expiration_ttl: seconds or a duration, one minute to 24 hours
        :param expiration_time: the same as a point in time, such as "2030-01-01T00:00:00Z"
        """
        named = {
            "AccessorID": accessor_id,
            "SecretID": secret_id,
            "ExpirationTTL": None if expiration_ttl is None else duration(expiration_ttl),
            "ExpirationTime": expiration_time,
        }
        return self._create(fields, named, secret=secret_id)

    def read(self, item_id: str, /, *, expanded: bool = False, **query: Unpack[Query]) -> Optional[Row]:
        """One token; None where there is none. Its SecretID is there for those with acl:write only.

        :param expanded: with the whole policies and roles that it is linked with; Consul 1.8 ignores it
        """
        return self._find_dict(self._path(item_id), {"expanded": "true" if expanded else None}, **query)

    def read_self(self, **query: Unpack[Query]) -> Row:
        """The token that this client uses.

        :raises ACLDisabled: the cluster runs without ACLs
        :raises Forbidden: the token is unknown
        """
        return self._read_dict("acl/token/self", **query)

    def update(self, item_id: str, /, **fields: Unpack[TokenFields]) -> Row:
        """Change what is given; the rest stays.

        A legacy token becomes one of the new system, as Consul has it for the migration: it loses its rules, so
        that what it may do has to be given along.

        :raises NotFound: there is no such token
        :raises ValueError: a legacy token would be left with neither its rules nor anything else
        """
        return self._update(item_id, fields, {})

    def clone(self, item_id: str, /, description: Optional[str] = None) -> Row:
        """A new token with the rights and the expiration of another.

        :param description: the other's where none is given
        :raises NotFound: there is no such token
        """
        with self._missing_told():
            return self._write(f"{self._path(item_id)}/clone", strip_none({"Description": description})).as_dict()

    def list(
        self,
        *,
        policy: Optional[str] = None,
        role: Optional[str] = None,
        auth_method: Optional[str] = None,
        auth_method_ns: Optional[str] = None,
        service_name: Optional[str] = None,
        **query: Unpack[Query],
    ) -> Rows:
        """The tokens, with their SecretIDs or without, as the version of Consul has it (1.8: without).

        :param policy: only those linked with the policy of this ID, not name
        :param role: only those linked with the role of this ID, not name
        :param auth_method: only those of logins by this method
        :param auth_method_ns: that method's namespace (Consul Enterprise)
        :param service_name: only those with the identity of this service; older versions, as 1.8, ignore it
        """
        params: Params = {"policy": policy, "role": role, "authmethod": auth_method, "authmethod-ns": auth_method_ns}
        params["servicename"] = service_name
        return self._read_list(self._all, params, **query)

    def _kept(self, now: Row, changes: Row) -> Row:
        if now.get("Rules") and not any(changes.get(grant) for grant in _GRANTS):
            raise ValueError("a legacy token loses its rules by an update: give policies, roles or identities instead")
        return {name: value for name, value in now.items() if name != "Rules"}


class Policies(_Collection):
    """Policies: named sets of rules."""

    _one, _all = "acl/policy", "acl/policies"
    _fields = frozenset(PolicyFields.__annotations__)

    def create(self, name: str, **fields: Unpack[PolicyFields]) -> Row:
        """A new policy, with its ID."""
        return self._create(fields, {"Name": name})

    def read_by_name(self, name: str, **query: Unpack[Query]) -> Optional[Row]:
        """The policy of a name; None where there is none."""
        return self._find_dict(f"{self._one}/name/{segment(name)}", **query)

    def update(self, item_id: str, /, *, name: Optional[str] = None, **fields: Unpack[PolicyFields]) -> Row:
        """Change what is given, the name too; the rest stays.

        :raises NotFound: there is no such policy
        """
        return self._update(item_id, fields, {"Name": name})


class Roles(_Collection):
    """Roles: named sets of policies and identities."""

    _one, _all = "acl/role", "acl/roles"
    _fields = frozenset(RoleFields.__annotations__)

    def create(self, name: str, **fields: Unpack[RoleFields]) -> Row:
        """A new role, with its ID."""
        return self._create(fields, {"Name": name})

    def read_by_name(self, name: str, **query: Unpack[Query]) -> Optional[Row]:
        """The role of a name; None where there is none."""
        return self._find_dict(f"{self._one}/name/{segment(name)}", **query)

    def update(self, item_id: str, /, *, name: Optional[str] = None, **fields: Unpack[RoleFields]) -> Row:
        """Change what is given, the name too; the rest stays.

        :raises NotFound: there is no such role
        """
        return self._update(item_id, fields, {"Name": name})

    def list(self, *, policy: Optional[str] = None, **query: Unpack[Query]) -> Rows:
        """The roles.

        :param policy: only those linked with the policy of this ID, not name
        """
        return self._read_list(self._all, {"policy": policy}, **query)


class AuthMethods(_Collection):
    """Auth methods: by which someone who is known elsewhere gets a token. They have a name and no ID."""

    _one, _all = "acl/auth-method", "acl/auth-methods"
    _fields = frozenset(AuthMethodFields.__annotations__)

    def create(self, name: str, method_type: str, **fields: Unpack[AuthMethodFields]) -> Row:
        """A new auth method.

        :param method_type: "kubernetes", "jwt", on later servers "aws-iam"; "oidc" in Consul Enterprise
        """
        return self._create(fields, {"Name": name, "Type": method_type})

    def update(self, name: str, /, **fields: Unpack[AuthMethodFields]) -> Row:
        """Change what is given; the rest stays. The configuration is replaced as a whole.

        :raises NotFound: there is no such auth method
        """
        return self._update(name, fields, {})


class BindingRules(_Collection):
    """Binding rules: what a login by an auth method may do."""

    _one, _all = "acl/binding-rule", "acl/binding-rules"
    _fields = frozenset(BindingRuleFields.__annotations__)

    def create(self, auth_method: str, **fields: Unpack[BindingRuleFields]) -> Row:
        """A new rule, with its ID; Consul requires a `bind_type` and a `bind_name`."""
        return self._create(fields, {"AuthMethod": auth_method})

    def update(self, item_id: str, /, **fields: Unpack[BindingRuleFields]) -> Row:
        """Change what is given; the rest stays.

        :raises NotFound: there is no such rule
        """
        return self._update(item_id, fields, {})

    def list(self, *, auth_method: Optional[str] = None, **query: Unpack[Query]) -> Rows:
        """The rules.

        :param auth_method: only those of this method
        """
        return self._read_list(self._all, {"authmethod": auth_method}, **query)


class TemplatedPolicies(Guarded):
    """The policies that Consul brings with blanks in them; since Consul 1.17.

    Source: https://developer.hashicorp.com/consul/api-docs/acl/templated-policies
    """

    def list(self, *, dc: Optional[str] = None, timeout: Optional[float] = None) -> dict[str, Row]:
        """The templates by their names.

        :raises NotFound: the server is too old
        """
        answer = self._call("GET", "acl/templated-policies", {"dc": dc or self._datacenter}, timeout=timeout)
        return answer.as_dict()

    def read(self, name: str, *, dc: Optional[str] = None, timeout: Optional[float] = None) -> Optional[Row]:
        """One template, such as "builtin/service"; None where there is none.

        :raises NotFound: the server is too old
        """
        query: Query = {} if dc is None else {"dc": dc}
        if timeout is not None:
            query["timeout"] = timeout
        try:
            return self._find_dict(f"acl/templated-policy/name/{_segments(name)}", absent=(), **query)
        except ClientError as error:
            if error.status == 400 and "nvalid templated policy" in str(error):  # so since 1.17
                return None
            raise

    def preview(self, name: str, variables: Optional[Mapping[str, Any]] = None) -> Row:
        """The policy that a template makes with these variables, such as {"Name": "web"}."""
        return self._write(
            f"acl/templated-policy/preview/{_segments(name)}", dict(variables or {}), method="POST"
        ).as_dict()


_CONSULS_OWN = ("SecretID", "Hash", "CreateTime", "CreateIndex", "ModifyIndex")
_GRANTS = ("Policies", "Roles", "ServiceIdentities", "NodeIdentities", "TemplatedPolicies")
_UPPER = ("id", "ttl")


def _camel(name: str) -> str:
    return "".join(word.upper() if word in _UPPER else word.capitalize() for word in name.split("_"))


def _segments(name: str) -> str:
    return "/".join(segment(part) for part in name.split("/"))


def _same(value: Any) -> Any:
    return value


def _items(values: Any) -> list[Any]:
    if isinstance(values, (str, Mapping)):
        raise ValueError("a list is wanted here, even of one")
    return list(values)


def _by(key: str) -> Any:
    """Makes a list of links of names and objects."""
    return lambda values: [{key: each} if isinstance(each, str) else dict(each) for each in _items(values)]


_CONVERTED: Mapping[str, Any] = {
    "policies": _by("Name"),
    "roles": _by("Name"),
    "service_identities": _by("ServiceName"),
    "templated_policies": _by("TemplateName"),
    "node_identities": lambda values: [dict(each) for each in _items(values)],
    "datacenters": _items,
    "max_token_ttl": duration,
}
