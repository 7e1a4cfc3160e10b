"""Extended attributes: a key's flags, and what else Consul says of it."""

from __future__ import annotations

import errno
import os

from consulfs.store.ephemeral import Ephemeral
from consulfs.store.openfiles import OpenFiles
from consulfs.tree.kv import Directory, Entry, File

FLAGS = "user.consul.flags"
KEY = "user.consul.key"
EPHEMERAL = "user.consul.ephemeral"

MAX_FLAGS = (1 << 64) - 1

ABSENT = errno.ENODATA


def get(entry: Entry, name: str, ephemeral: Ephemeral) -> bytes:
    """The value of an attribute; ENODATA where there is none."""
    if isinstance(entry, Directory):
        if name == KEY:
            return entry.prefix.encode()
        raise OSError(ABSENT, "no such attribute")
    record = entry.record
    if name == KEY:
        return entry.key.encode()
    if name == FLAGS:
        return str(flags_of(entry)).encode()
    if name == EPHEMERAL:
        if record is not None and ephemeral.is_tied(record):
            return b"1"
    elif record is not None:
        numbers = {
            "user.consul.modify_index": record.modify_index,
            "user.consul.create_index": record.create_index,
            "user.consul.lock_index": record.lock_index,
            "user.consul.session": record.session,
        }
        if numbers.get(name) is not None:
            return str(numbers[name]).encode()
    raise OSError(ABSENT, "no such attribute")


def listed(entry: Entry) -> list[str]:
    """What `cp -a`, `rsync -X` and `tar --xattrs` are to copy: the flags alone, the rest is Consul's to say."""
    return [FLAGS] if isinstance(entry, File) else []


def flags_of(file: File) -> int:
    """The flags as this mount's programs see them, stored or not."""
    if file.node is not None:
        with file.node.state:
            if file.node.base is None and file.node.creation is not None:
                return file.node.creation.flags
    return file.record.flags if file.record is not None else 0


def parse_flags(text: bytes) -> int:
    """Decimal flags; EINVAL for anything else, ERANGE over 64 bits."""
    stripped = text.rstrip(b"\0\n").strip()
    if not stripped.isdigit():
        raise OSError(errno.EINVAL, "flags are a decimal number")
    if len(stripped.lstrip(b"0")) > 20 or int(stripped) > MAX_FLAGS:
        raise OSError(errno.ERANGE, "flags have 64 bits")
    return int(stripped)


def set(
    entry: Entry, name: str, value: bytes, options: int, files: OpenFiles, ephemeral: Ephemeral, opener: int
) -> None:
    """Set the flags, or tie the key to this mount; nothing else can be set.

    :param options: of setxattr(2); every file has flags, so XATTR_CREATE is EEXIST
    """
    if isinstance(entry, Directory) or name not in (FLAGS, EPHEMERAL):
        raise OSError(errno.ENOTSUP, "Consul has no place for this attribute")
    if name == EPHEMERAL:
        _set_ephemeral(entry, value, options, files, ephemeral, opener)
    else:
        _set_flags(entry, value, options, files, opener)


def remove(entry: Entry, name: str, files: OpenFiles, ephemeral: Ephemeral, opener: int) -> None:
    """Removing the flags sets them to 0; a key that is not ephemeral any more stays."""
    if isinstance(entry, Directory) or name not in (FLAGS, EPHEMERAL):
        raise OSError(ABSENT, "no such attribute")
    if name == FLAGS:
        files.set_flags(entry.key, 0, opener)
    elif not ephemeral.untie(entry.key):
        raise OSError(ABSENT, "it is not ephemeral")


def _set_flags(file: File, value: bytes, options: int, files: OpenFiles, opener: int) -> None:
    flags = parse_flags(value)
    if options & os.XATTR_CREATE:
        raise OSError(errno.EEXIST, "every file has flags")
    files.set_flags(file.key, flags, opener)


def _set_ephemeral(file: File, value: bytes, options: int, files: OpenFiles, ephemeral: Ephemeral, opener: int) -> None:
    text = value.rstrip(b"\0\n").strip()
    if text not in (b"0", b"1"):
        raise OSError(errno.EINVAL, "1: the key lives as long as this mount; 0: it stays")
    handle = files.open(file.key, os.O_RDONLY, opener)  # the key does not move or end unseen meanwhile
    try:
        files.store(handle.node)
        if options:
            tied = file.record is not None and ephemeral.is_tied(file.record)
            if tied and options & os.XATTR_CREATE:
                raise OSError(errno.EEXIST, "it is ephemeral already")
            if not tied and options & os.XATTR_REPLACE:
                raise OSError(ABSENT, "it is not ephemeral")
        if text == b"1":
            ephemeral.tie(file.key)
        else:
            ephemeral.untie(file.key)
    finally:
        files.release(handle)
