"""Prepared queries. The token that one is run with is left out unless it is asked for."""

from typing import Any

from consulfs.consulate import Consul
from consulfs.tree.virtual.asks import without
from consulfs.tree.virtual.naming import file_name
from consulfs.tree.virtual.parts import Endpoint, Facts, Rows


def _queries(consul: Consul, left: float) -> Any:
    return consul.query.list(timeout=left)


def _tree(facts: Facts) -> Rows:
    ask = _queries if facts.secrets else without(("Token",), _queries)
    return Rows(ask, lambda row: file_name(row.get("Name") or row["ID"]))


ENDPOINT = Endpoint("_query", _tree)
