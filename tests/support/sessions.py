"""The sessions of mounts, as others see them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable

from support.curl import Curl
from support.mount import Mount


def unmount(curl: Curl, mounts: Iterable[Mount]) -> None:
    """End mounts; none leaves a session."""
    for mount in mounts:
        mount.stop()
        assert not [each for each in curl.json("session/list") if str(mount.path) in each["Name"]]


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
            names = [each["Name"] for each in json.loads(text)] if status == 200 else []  # else without a leader
            self.most = max(self.most, *(sum(str(mount.path) in name for name in names) for mount in self.mounts))
