"""The other side: what Consul holds, asked with curl and never with our own code.

Transactions carry every key, odd ones too, so all is done by them.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Container
from typing import Any


class Curl:
    def __init__(self, url: str, token: str = "") -> None:
        self.url = url
        self.token = token

    def __call__(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """(status, body) of one request to /v1/<path>."""
        command = ["curl", "-s", "--path-as-is", "-X", method, "-w", "\n%{http_code}", f"{self.url}/{path}"]
        if self.token:
            command += ["-H", f"X-Consul-Token: {self.token}"]
        if body is not None:
            command += ["--data-binary", "@-"]
        done = subprocess.run(command, input=body, capture_output=True, timeout=60)
        text, _, status = done.stdout.rpartition(b"\n")
        return int(status or 0), text

    def json(self, path: str, accepted: Container[int] = (200,)) -> Any:
        """What a GET of /v1/<path> answers, with one of these statuses."""
        status, text = self("GET", path)
        assert status in accepted, text
        return json.loads(text)

    def txn(self, *operations: dict) -> list[dict] | None:
        """The KV entries of a transaction's answer, or None where it failed."""
        status, text = self("PUT", "txn", json.dumps([{"KV": each} for each in operations]).encode())
        if status != 200:
            return None
        return [each["KV"] for each in json.loads(text)["Results"] or ()]

    def record(self, key: str) -> dict | None:
        found = self.txn({"Verb": "get", "Key": key})
        return found[0] if found else None

    def get(self, key: str) -> bytes | None:
        record = self.record(key)
        return None if record is None else base64.b64decode(record["Value"] or "")

    def flags(self, key: str) -> int | None:
        record = self.record(key)
        return None if record is None else record["Flags"]

    def put(self, key: str, value: bytes = b"", flags: int = 0) -> None:
        operation = {"Verb": "set", "Key": key, "Value": base64.b64encode(value).decode(), "Flags": flags}
        assert self.txn(operation) is not None, key

    def delete(self, key: str) -> None:
        assert self.txn({"Verb": "delete", "Key": key}) is not None

    def delete_all(self) -> None:
        assert self("DELETE", "kv/?recurse")[0] == 200

    def keys(self) -> list[str]:
        status, text = self("GET", "kv/?keys")
        return json.loads(text) if status == 200 else []

    def tree(self) -> dict[str, bytes]:
        """Every key with its value."""
        status, text = self("GET", "kv/?recurse")
        if status != 200:
            return {}
        return {each["Key"]: base64.b64decode(each["Value"] or "") for each in json.loads(text)}
