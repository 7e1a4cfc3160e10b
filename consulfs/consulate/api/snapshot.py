"""The servers' whole state, saved and restored as a stream. Source: https://www.consul.io/api-docs/snapshot"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from typing import IO, Optional, Union

from consulfs.consulate.adapters import Response, Stream
from consulfs.consulate.api.base import Endpoint, Params
from consulfs.consulate.exceptions import BadAnswer
from consulfs.consulate.files import replacing

OWNER_ONLY = 0o600
_INFLATED_AT_ONCE = 1 << 20


class Archive:
    """A snapshot while it arrives. A context manager; holds a connection until all is read or it is closed or dropped.

    It can be read like a file and iterated over. What comes is checked on the way: whoever has reached its end without
    an exception has the whole archive.

    :raises ConnectionBroken: the connection ended before the archive did
    :raises BadAnswer: what came is no whole archive, although the answer ended as it should
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._gzip = zlib.decompressobj(wbits=31)  # 31: with gzip's header, and its trailer of checksum and length

    def read(self, size: Optional[int] = None) -> bytes:
        """Up to `size` bytes, fewer only at the end; everything where none is given."""
        piece = self._stream.read(size)
        self._check(piece)
        if size is None or size < 0 or len(piece) < size:
            self._check_end()
        return piece

    def __iter__(self) -> Iterator[bytes]:
        """The archive in pieces as they arrive."""
        for piece in self._stream:
            self._check(piece)
            yield piece
        self._check_end()

    def _check(self, data: bytes) -> None:
        try:
            while data and not self._gzip.eof:
                self._gzip.decompress(data, _INFLATED_AT_ONCE)
                data = self._gzip.unconsumed_tail
        except zlib.error as error:
            raise BadAnswer(f"GET /v1/snapshot: what came is no snapshot: {error}") from error
        if data or self._gzip.unused_data:
            raise BadAnswer("GET /v1/snapshot: something came after the snapshot's end")

    def _check_end(self) -> None:
        # Consul has promised success before it reads the state, and can only end early when that fails.
        self._gzip.flush()
        if not self._gzip.eof:
            raise BadAnswer("GET /v1/snapshot: the snapshot ended before it was whole")

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Snapshot(Endpoint):
    """The servers' whole state: keys, catalog, sessions, queries, ACLs with their secrets. It takes an operator.

    In all three calls `timeout` is for each piece, not for the whole.
    """

    def save(self, stale: bool = False, *, dc: Optional[str] = None, timeout: Optional[float] = None) -> Archive:
        """The state now, as a stream of an archive; `meta.index` says of when it is.

        :param stale: any server may answer, without a leader too
        :raises Forbidden: the token is no management token
        """
        params: Params = {"dc": dc or self._datacenter, "stale": "" if stale else None}
        return Archive(self._stream("GET", "snapshot", params, timeout=timeout))

    def save_to(
        self,
        target: Union[str, os.PathLike[str], IO[bytes]],
        stale: bool = False,
        *,
        dc: Optional[str] = None,
        timeout: Optional[float] = None,
    ) -> int:
        """As `save`, into a file; its size.

        :param target: an open binary file, or a path. There a file appears, or replaces an older one, when all of it is
            written and checked, and for its owner only, since it holds secrets; until then nothing changes there. A
            FIFO or a device is written as it is
        """
        with self.save(stale, dc=dc, timeout=timeout) as archive:
            if not isinstance(target, (str, os.PathLike)):
                return _copy(archive, target)
            with replacing(os.fspath(target), OWNER_ONLY, keeps_mode=False) as file:
                return _copy(archive, file)

    def restore(
        self,
        source: Union[str, os.PathLike[str], bytes, IO[bytes]],
        *,
        dc: Optional[str] = None,
        timeout: Optional[float] = None,
    ) -> bool:
        """Replace the servers' state by a snapshot's.

        :param source: an archive, an open binary file with one, or its path; files are sent piece by piece
        :raises ServerError: it is no snapshot
        :raises BadAnswer: what answered is not Consul, so that perhaps nothing was restored
        :raises ValueError: the file is open as text
        """
        if isinstance(source, (str, os.PathLike)):
            with open(source, "rb") as file:
                return self.restore(file, dc=dc, timeout=timeout)
        text: object = source
        if isinstance(text, io.TextIOBase):
            raise ValueError("a snapshot is read from a file that is open as binary, not as text")
        with self._stream("PUT", "snapshot", {"dc": dc or self._datacenter}, source, timeout) as answer:
            return Response(answer.status_code, answer.read(), answer.headers, answer.what).as_done()


def _copy(archive: Archive, file: IO[bytes]) -> int:
    size = 0
    for piece in archive:
        file.write(piece)
        size += len(piece)
    return size
