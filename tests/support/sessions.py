"""Sessions and locks as the other side sees and has them."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterable

from support.curl import Curl
from support.mount import Mount


def sessions(curl: Curl, mount: Mount | None = None) -> list[dict]:
    """All there are, or those of a mount."""
    listed = curl.json("session/list?consistent")
    return listed if mount is None else of_mount(listed, mount)


def of_mount(listed: list[dict], mount: Mount) -> list[dict]:
    return [each for each in listed if str(mount.path) in each["Name"]]


def make_session(curl: Curl, **more: str) -> str:
    """A session of another host; without a lock-delay, which would outlive the test."""
    status, text = curl("PUT", "session/create", json.dumps({"LockDelay": "0s", **more}).encode())
    assert status == 200, text
    return json.loads(text)["ID"]


def destroy_session(curl: Curl, session: str) -> None:
    assert curl("PUT", f"session/destroy/{session}")[0] == 200


def holder(curl: Curl, key: str) -> str | None:
    """The ID of the session that holds a key; None where there is none, or no such key."""
    return (curl.record(key) or {}).get("Session")


def acquire(curl: Curl, key: str, session: str, value: bytes | None = None, flags: int = 0) -> bool:
    """Take a key's lock if it is free. Its value is the session's ID then, as with `consul lock`, or this one."""
    return _lock(curl, f"kv/{key}?acquire={session}&flags={flags}", session.encode() if value is None else value)


def take(curl: Curl, key: str, session: str, value: bytes, flags: int) -> None:
    """Take a lock that is free, and leave the key as it is."""
    assert acquire(curl, key, session, value, flags)


def give(curl: Curl, key: str, session: str, value: bytes, flags: int) -> None:
    """Give a lock back, and the key this value."""
    assert _lock(curl, f"kv/{key}?release={session}&flags={flags}", value)


def _lock(curl: Curl, path: str, value: bytes) -> bool:
    status, text = curl("PUT", path, value)
    assert status == 200, text
    return bool(json.loads(text))


def stored(curl: Curl, key: str) -> tuple[bytes, int, str | None]:
    """(value, flags, the session that holds it)."""
    record = curl.record(key)
    return base64.b64decode(record["Value"] or ""), record["Flags"], record.get("Session")


def unmount(curl: Curl, mounts: Iterable[Mount]) -> None:
    """End mounts; none leaves a session."""
    for mount in mounts:
        mount.stop()
        assert sessions(curl, mount) == []


class Sessions:
    """Looks all the time how many sessions each mount has.

    :ivar most: those of the mount that had the most
    """

    def __init__(self, curl: Curl, mounts: list[Mount]) -> None:
        self.curl = curl
        self.mounts = mounts
        self.most = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.look)

    def __enter__(self) -> Sessions:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def look(self) -> None:
        while not self.ended.wait(0.1):
            status, text = self.curl("GET", "session/list")
            listed = json.loads(text) if status == 200 else []  # else without a leader
            self.most = max(self.most, *(len(of_mount(listed, mount)) for mount in self.mounts))
