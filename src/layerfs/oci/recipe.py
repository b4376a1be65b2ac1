"""Recipes: what a layer's tar archive was made of, so that it can be made again, byte by byte.

A layer that came in is kept as a tree. Its tar archive, whose digest others know it by, is more than the
tree: an order, a format, padding. That is kept beside the tree, as a zstd stream of records:

    'R' LENGTH BYTES                     these bytes
    'F' LENGTH PATH COUNT (OFFSET LENGTH)...     these parts of this file of the tree

with numbers of 8 bytes, the lowest first.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import zstandard

from layerfs.errors import LayerfsError

NAME = "recipe"
"""The file's name in a layer's directory."""

_RAW, _FILE = b"R", b"F"
_NUMBER = struct.Struct("<Q")
_GATHER = 1 << 16
_PIECE = 1 << 20


class Writer:
    """Writes the recipe *file*; a context manager."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("xb")
        self._out = zstandard.ZstdCompressor(level=3).stream_writer(self._file, closefd=True)
        self._raw = bytearray()

    def __enter__(self) -> Writer:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file, which is only good if nothing was raised."""
        try:
            if kind is None:
                self._flush()
        finally:
            self._out.close()  # type: ignore[no-untyped-call]

    def raw(self, data: bytes) -> None:
        """Note bytes of the archive."""
        self._raw += data
        if len(self._raw) >= _GATHER:
            self._flush()

    def file(self, path: bytes, extents: Sequence[tuple[int, int]]) -> None:
        """Note that these parts of the file at *path* follow (offset and length)."""
        self._flush()
        numbers = [number for extent in extents for number in extent]
        self._out.write(
            b"".join(
                (
                    _FILE,
                    _NUMBER.pack(len(path)),
                    path,
                    _NUMBER.pack(len(extents)),
                    *map(_NUMBER.pack, numbers),
                )
            )
        )

    def _flush(self) -> None:
        if self._raw:
            self._out.write(b"".join((_RAW, _NUMBER.pack(len(self._raw)), self._raw)))
            self._raw.clear()


def replay(file: Path, tree: Path) -> Iterator[bytes]:
    """Yield the archive that the recipe *file* and *tree* make, in pieces.

    Raises `OSError`, and `LayerfsError` where the recipe or the tree is not as it was.
    """
    root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with file.open("rb") as packed:
            stream = zstandard.ZstdDecompressor().stream_reader(packed)
            exactly = _exact(stream.read, file)
            while kind := stream.read(1):
                if kind == _RAW:
                    yield exactly(_number(exactly))
                elif kind == _FILE:
                    path = exactly(_number(exactly))
                    extents = [(_number(exactly), _number(exactly)) for _ in range(_number(exactly))]
                    yield from _parts(root, path, extents)
                else:
                    raise _damaged(file)
    except zstandard.ZstdError:
        raise _damaged(file) from None
    finally:
        os.close(root)


def _parts(root: int, path: bytes, extents: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root)
    try:
        for offset, length in extents:
            end = offset + length
            while offset < end:
                data = os.pread(fd, min(end - offset, _PIECE), offset)
                if not data:
                    raise LayerfsError(
                        f"{os.fsdecode(path)!r} of a layer is shorter than it was: see 'layerfs verify'"
                    )
                offset += len(data)
                yield data
    finally:
        os.close(fd)


def _exact(read: Callable[[int], bytes], file: Path) -> Callable[[int], bytes]:
    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = read(size - len(data))
            if not part:
                raise _damaged(file)
            data += part
        return data

    return exactly


def _number(exactly: Callable[[int], bytes]) -> int:
    number: int = _NUMBER.unpack(exactly(_NUMBER.size))[0]
    return number


def _damaged(file: Path) -> LayerfsError:
    return LayerfsError(f"{file} is damaged")
