"""TTL checks of the agent's own, which fail and pass as they are told."""

from __future__ import annotations

from support.catalog import put
from support.curl import Curl


def make_ttl_check(curl: Curl, check: str) -> None:
    """One that passes until it is told to fail: it never runs out while a test lasts."""
    put(curl, "agent/check/register", {"ID": check, "Name": check, "TTL": "1h", "Status": "passing"})


def remove_check(curl: Curl, check: str) -> None:
    put(curl, f"agent/check/deregister/{check}")


def turn_check(curl: Curl, check: str, state: str) -> None:
    """Have a TTL check "pass" or "fail"."""
    put(curl, f"agent/check/{state}/{check}")


def are_critical(curl: Curl) -> set[str]:
    """The IDs of the checks that are critical, as the leader has it."""
    return {each["CheckID"] for each in curl.json("health/state/critical?consistent")}
