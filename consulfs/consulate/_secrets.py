"""What a server says, without the secrets that it may repeat. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from json import dumps
from urllib.parse import quote

_TELLING = 6
"""So many characters of a secret, and more, are not to be seen at the end of words that were cut off."""


def without(text: str, secrets: Iterable[str]) -> str:
    """A server's words without the secrets that they may repeat, as they are, quoted or cut off at the end."""
    for secret in sorted(secrets, key=len, reverse=True):
        for form in (secret, quote(secret, safe=""), dumps(secret)[1:-1], escape(secret)):
            text = text.replace(form, "<secret>")
        bare = text.rstrip("'\"")
        for size in range(min(len(secret), len(bare)), _TELLING - 1, -1):
            if bare.endswith(secret[:size]):
                text = bare[:-size] + "<secret>" + text[len(bare) :]
                break
    return text
