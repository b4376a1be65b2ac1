"""Layers on their way out: put together, hashed, compressed on all cores, hashed again, in one pass."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol, cast

import zstandard
from isal import igzip_threaded

from layerfs.archive.streams import PIECE, Ahead, hashed
from layerfs.oci import media

Compression = Literal["none", "gzip", "zstd"]
SUFFIXES: dict[str, str] = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}
"""What a compression adds to a layer's media type."""

_GZIP_LEVEL = 2
_ZSTD_LEVEL = 3


class Sink(Protocol):
    """Where a blob goes."""

    def write(self, data: bytes, /) -> object:
        """Take *data*, all of it."""


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a layer."""

    diff_id: str
    digest: str
    size: int
    read: int
    """Bytes of the archive before it was compressed."""


class _Counted:
    """Counts what passes to the sink, and hashes it; as much of a file as compressors need."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._sink.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: the sink's owner knows when it is complete."""

    def close(self) -> None:
        """Do nothing."""


def write(
    pieces: Iterable[bytes],
    compression: str,
    sink: Sink | None,
    diff_id: str | None = None,
    *,
    threads: int | None = None,
) -> Written:
    """Write a layer's archive to *sink*, compressed; a *diff_id* says which algorithm its digest is of.

    The bytes depend on *pieces* together and on the compression alone, not on how they are cut or on the
    number of *threads*, by default one a core. Without a *sink*, only the diff ID is found out. Raises what
    *pieces* and *sink* raise.
    """
    algorithm = (diff_id or "sha256").partition(":")[0]
    plain = hashlib.new(algorithm)
    size = 0
    counted = None
    with Ahead(hashed(_even(pieces), plain)) as ready:
        if sink is None or (compression == "none" and algorithm == "sha256"):  # one digest is the other
            for piece in ready:
                size += len(piece)
                if sink is not None:
                    sink.write(piece)
        else:
            counted = _Counted(sink)
            if compression == "none":
                for piece in ready:
                    size += counted.write(piece)
            else:
                with _compressor(compression, counted, threads or len(os.sched_getaffinity(0))) as out:
                    for piece in ready:
                        size += len(piece)
                        out.write(piece)
    found = f"{algorithm}:{plain.hexdigest()}"
    if counted is None:
        return Written(found, found, size, size)
    return Written(found, f"sha256:{counted.digest.hexdigest()}", counted.size, size)


def _compressor(compression: str, sink: _Counted, threads: int) -> BinaryIO:
    if compression == "zstd":
        compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, threads=threads)
        return cast(BinaryIO, compressor.stream_writer(cast(BinaryIO, sink), closefd=False))
    made: BinaryIO = igzip_threaded.open(  # type: ignore[no-untyped-call]
        sink, "wb", compresslevel=_GZIP_LEVEL, threads=threads, block_size=PIECE
    )
    return made


def _even(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what is in *pieces* in pieces of `PIECE` bytes."""
    gathered = bytearray()
    for piece in pieces:
        gathered += piece
        while len(gathered) >= PIECE:
            yield bytes(memoryview(gathered)[:PIECE])
            del gathered[:PIECE]
    if gathered:
        yield bytes(gathered)


def media_type(compression: str) -> str:
    """Return the media type of a layer that is compressed so."""
    return media.OCI_LAYER + SUFFIXES[compression]
