"""Configuration entries. Source: https://www.consul.io/api-docs/config"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Optional

from consulfs.consulate.api.base import Endpoint, Row, Rows, segment

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from consulfs.consulate.models import Filtered, Query


class Config(Endpoint):
    """Configuration entries, such as the defaults of a service or of all proxies."""

    def apply(self, entry: Mapping[str, Any], cas: Optional[int] = None) -> bool:
        """Create or replace an entry; False where `cas` did not fit.

        :param entry: Kind, Name and what Consul documents for the kind
        :param cas: only where this is the entry's ModifyIndex; 0 only where there is no such entry
        :raises ValueError: the entry has no Kind
        :raises ClientError: Consul does not know the kind, or not one of its fields
        """
        if not entry.get("Kind"):
            raise ValueError('a configuration entry needs its "Kind"')
        return self._write("config", dict(entry), {"cas": cas}).as_bool()

    def get(self, kind: str, name: str, **query: Unpack[Query]) -> Optional[Row]:
        """The entry, or None where there is none.

        :param name: "global" for proxy-defaults
        """
        return self._find_dict(f"config/{segment(kind)}/{segment(name)}", absent=("Config entry not found",), **query)

    def list(self, kind: str, **query: Unpack[Filtered]) -> Rows:
        """All entries of a kind. Consul filters them since 1.16; an older one gives them all."""
        return self._read_list(f"config/{segment(kind)}", **query)

    def delete(self, kind: str, name: str, cas: Optional[int] = None) -> bool:
        """Delete an entry; there need not be one. False where `cas` did not fit.

        :param cas: only where this is the entry's ModifyIndex. Consul before 1.11 knows no such thing and would delete
            in any case (measured on 1.8.7), so it is looked at first; there the two are not one step
        """
        if cas is not None:
            entry = self.get(kind, name)
            if entry is None or entry.get("ModifyIndex") != cas:
                return False
        answer = self._write(f"config/{segment(kind)}/{segment(name)}", None, {"cas": cas}, "DELETE")
        return answer.body is not False
