"""What a token is and may do. Source: https://www.consul.io/api-docs/acl/tokens"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Optional

from consulfs.consulate.api.base import Endpoint

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.models import Query


class ACL(Endpoint):
    """Access control."""

    def token_self(self, **query: Unpack[Query]) -> dict[str, Any]:
        """The token that this client uses.

        :raises ACLDisabled: the cluster runs without ACLs
        :raises Forbidden: the token is unknown
        """
        return self._read_dict("acl/token/self", **query)

    def authorize(self, requests: Sequence[tuple[str, str, str]], timeout: Optional[float] = None) -> list[bool]:
        """Whether the token may do each (resource, access, name), such as ("key", "write", "app/feature").

        Consul's own UI asks this way; the path is internal and undocumented, there since 1.5. It costs no commit.

        :raises ACLDisabled: there is nothing to ask, everything is allowed
        :raises NotFound: the server is too old
        """
        body = [{"Resource": resource, "Access": access, "Segment": name} for resource, access, name in requests]
        answer = self._write("internal/acl/authorize", body, method="POST", timeout=timeout)
        return [bool(each["Allow"]) for each in answer.as_list()]
