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


class _Counted:
    """Hashes and counts what passes to the sink; as much of a file as compressors need."""

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


def write(pieces: Iterable[bytes], compression: str, sink: Sink, diff_id: str | None = None) -> Written:
    """Write a layer's archive to *sink*, compressed; a *diff_id* says which algorithm its digest is of.

    The bytes depend on *pieces* together and on the compression alone, not on how they are cut or on the
    number of cores. Raises what *pieces* and *sink* raise.
    """
    algorithm = (diff_id or "sha256").partition(":")[0]
    plain = hashlib.new(algorithm)
    counted = _Counted(sink)
    with Ahead(hashed(_even(pieces), plain)) as ready:
        if compression == "none":
            for piece in ready:
                counted.write(piece)
        else:
            with _compressor(compression, counted) as out:
                for piece in ready:
                    out.write(piece)
    return Written(f"{algorithm}:{plain.hexdigest()}", f"sha256:{counted.digest.hexdigest()}", counted.size)


def _compressor(compression: str, sink: _Counted) -> BinaryIO:
    cores = len(os.sched_getaffinity(0))
    if compression == "zstd":
        compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, threads=cores)
        return cast(BinaryIO, compressor.stream_writer(cast(BinaryIO, sink), closefd=False))
    made: BinaryIO = igzip_threaded.open(  # type: ignore[no-untyped-call]
        sink, "wb", compresslevel=_GZIP_LEVEL, threads=cores, block_size=PIECE
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
