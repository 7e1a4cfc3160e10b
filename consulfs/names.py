"""Keys to names and back: a bijection between what Consul stores and what a directory can show. Pure.

A key's components between "/" are names. A component that a file system cannot hold, or that would read as one of
the forms below, is written differently:

    %empty            the empty component, as in "a//b" or "/lead"
    %2E  %2E%2E       "." and ".."
    %00               a NUL, anywhere in a name
    NAME%value        the value of a key that has keys below it as well, beside its directory NAME
    HEAD%long<hash>   a component of more than 255 bytes
    %5F...            at the root: a component equal to the name of a virtual tree, such as "_catalog"
    %25               a "%" that would otherwise begin one of these forms; every other "%" is itself

So "100%" and "a%20b" map to themselves, and "%2E" as a real component is written "%252E".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Union

NAME_MAX = 255
"""Bytes that a name may have: NAME_MAX of Linux's file systems, and FUSE's limit for one."""

VALUE = "%value"

SHORTENED = "%long"
"""In the name of a component that only a listing can tell."""

_WHOLE = {"": "%empty", ".": "%2E", "..": "%2E%2E"}
_WHOLE_BACK = {name: component for component, name in _WHOLE.items()}

# A form's tail behind "%" and any number of "25": with none it is the form, with some it is the literal text.
_LITERAL_WHOLE = re.compile(r"%((?:25)*)(empty|2E|2E%2E)")
_LITERAL_NUL = re.compile(r"%((?:25)*)00")
_LITERAL_END = re.compile(r"(?<=.)%((?:25)*)(value|long[0-9a-f]{32})\Z", re.DOTALL)
_LITERAL_LONG = re.compile(r"(?<=.)%((?:25)*)(long[0-9a-f]{32})\Z", re.DOTALL)
_SHORTENED = re.compile(r"(?<=.)%long[0-9a-f]{32}\Z", re.DOTALL)
_HEAD_BYTES = NAME_MAX - len(SHORTENED) - 32 - len(VALUE)


@dataclass(frozen=True)
class Shortened:
    """The name of a component that only a listing can tell: one whose `encode` gives this name."""

    name: str


Component = Union[str, Shortened]


class UnmappableName(ValueError):
    """No key has this name: it is another way to write one that has a name already."""


class NotUTF8(UnmappableName):
    """No key has this name: Consul's JSON carries nothing but UTF-8."""


def encode(component: str, value: bool = False, reserved: Collection[str] = ()) -> str:
    """The name that shows a component.

    :param value: whether it shows the value of a key that is a directory as well
    :param reserved: component names that are taken here, each beginning with "_"
    """
    suffix = VALUE if value else ""
    name = _escape(component, value, reserved)
    if len(name.encode()) + len(suffix) > NAME_MAX:
        name = _shorten(component)
    return name + suffix


def decode(name: str, reserved: Collection[str] = ()) -> tuple[Component, bool]:
    """The component that a name shows, and whether the name is that of a directory's own value.

    :raises NotUTF8: it holds surrogates
    :raises UnmappableName: it is no component's own name
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise NotUTF8(name) from error
    value = name.endswith(VALUE) and name != VALUE
    body = name[: -len(VALUE)] if value else name
    if _SHORTENED.search(body):
        return Shortened(body), value
    component = _unescape(body, value, reserved)
    if encode(component, value, reserved) != name:
        raise UnmappableName(name)
    return component, value


def _escape(component: str, value: bool, reserved: Collection[str]) -> str:
    if component in _WHOLE:
        return _WHOLE[component]
    if component in reserved:
        return "%5F" + component[1:]
    if "%" in component:
        component = _deepen(component, value, reserved)
    return component.replace("\0", "%00")


def _unescape(name: str, value: bool, reserved: Collection[str]) -> str:
    if name in _WHOLE_BACK:
        return _WHOLE_BACK[name]
    if "%" not in name:
        return name
    if name.startswith("%5F") and "_" + name[3:] in reserved:
        return "_" + name[3:]
    return _raise(name, value, reserved)


def _deepen(text: str, value: bool, reserved: Collection[str]) -> str:
    """Put a "25" behind each "%" that would otherwise begin a form."""
    if _LITERAL_WHOLE.fullmatch(text) or _literal_virtual(text, reserved):
        return "%25" + text[1:]
    text = _LITERAL_NUL.sub(r"%25\g<1>00", text)
    return _end(value).sub(r"%25\1\2", text)


def _raise(text: str, value: bool, reserved: Collection[str]) -> str:
    """The inverse of `_deepen`, which also turns "%00" into NUL."""
    if text.startswith("%25") and (_LITERAL_WHOLE.fullmatch(text) or _literal_virtual(text, reserved)):
        return "%" + text[3:]
    text = _LITERAL_NUL.sub(lambda form: f"%{form[1][2:]}00" if form[1] else "\0", text)
    return _end(value).sub(lambda form: f"%{form[1][2:]}{form[2]}", text)


def _end(value: bool) -> re.Pattern[str]:
    """The endings to keep apart: before "%value" no ending can be taken for another "%value"."""
    return _LITERAL_LONG if value else _LITERAL_END


def _literal_virtual(text: str, reserved: Collection[str]) -> bool:
    form = re.fullmatch(r"%(?:25)*5F(.*)", text, re.DOTALL)
    return form is not None and "_" + form[1] in reserved


def _shorten(component: str) -> str:
    digest = hashlib.blake2b(component.encode(), digest_size=16).hexdigest()
    head = _escape(component, False, ()).encode()[:_HEAD_BYTES].decode("utf-8", "ignore")
    return f"{head}{SHORTENED}{digest}"
