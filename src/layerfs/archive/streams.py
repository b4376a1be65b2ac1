"""Archives as streams: decompressed a piece at a time, read ahead by a thread, taken apart by a reader.

A stream is an iterator of pieces (bytes of at most `PIECE`), so that memory stays flat whatever an
archive claims to hold. Generators over generators do the work: decompress, hash, count.
"""

from __future__ import annotations

import bz2
import lzma
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import BinaryIO, Protocol, cast

import zstandard
from isal import isal_zlib

from layerfs.errors import BadRequest

PIECE = 1 << 20
_READ = 1 << 18
_WINDOW = 128 << 20
"""The most memory that a zstd stream may ask for: what zstd(1) itself accepts without being told."""

_GZIP_ERROR = cast("type[Exception]", isal_zlib.IsalError)

Read = Callable[[int], bytes]
"""Returns up to so many bytes, and none only at the end."""


class Damaged(BadRequest):
    """An archive, or what compressed it, is not what it claims to be."""

    def __init__(self, what: str) -> None:
        super().__init__(f"not a tar archive, or a damaged one: {what}")


class Hash(Protocol):
    """What hashlib's objects have in common."""

    def update(self, data: bytes, /) -> None:
        """Add *data*."""

    def hexdigest(self) -> str:
        """Return the digest of all that was added."""


def plain(read: Read) -> Iterator[bytes]:
    """Yield what *read* returns, to its end."""
    while piece := read(PIECE):
        yield piece


def hashed(pieces: Iterable[bytes], *hashes: Hash) -> Iterator[bytes]:
    """Yield *pieces*, adding each to *hashes*; both leave the interpreter's lock to others meanwhile."""
    for piece in pieces:
        for one in hashes:
            one.update(piece)
        yield piece


def decompressed(read: Read, *, more: bool = False) -> Iterator[bytes]:
    """Yield what *read* holds as it was before it was compressed, going by its first bytes.

    gzip and zstd are understood, with *more* also bzip2 and xz; everything else is plain. Raises `Damaged`.
    """
    start = b""
    while len(start) < 6 and (piece := read(6 - len(start))):
        start += piece
    rest = _Unread(start, read)
    if start.startswith(b"\x1f\x8b"):
        return _gzip(rest)
    if start.startswith(b"\x28\xb5\x2f\xfd") or (start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5):
        return _zstd(rest)  # or a skippable frame, which zstd streams may begin with
    if more and start.startswith(b"BZh"):
        return _others(rest, bz2.BZ2Decompressor)
    if more and start.startswith(b"\xfd7zXZ\x00"):
        return _others(rest, lambda: lzma.LZMADecompressor(memlimit=_WINDOW))
    return plain(rest)


class _Unread:
    """A `Read` that begins with bytes that have been looked at."""

    def __init__(self, start: bytes, read: Read) -> None:
        self._start = start
        self._read = read

    def __call__(self, size: int) -> bytes:
        if self._start:
            piece, self._start = self._start[:size], self._start[size:]
            return piece
        return self._read(size)

    read = __call__  # as zstandard calls it


def _gzip(read: Read) -> Iterator[bytes]:
    """Decompress the members of a gzip file (RFC 1952); zeros may follow the last one, nothing else may."""
    data = read(_READ)
    while data:
        member = isal_zlib.decompressobj(wbits=31)
        try:
            while True:
                piece = member.decompress(data, PIECE)
                data = member.unconsumed_tail
                if piece:
                    yield piece
                if member.eof:
                    break
                if not piece and not data and not (data := read(_READ)):
                    raise Damaged("gzip: it ends too early")
        except _GZIP_ERROR as error:
            raise Damaged(f"gzip: {error}") from None
        data = member.unused_data
        while not (data := data.lstrip(b"\0")) and (data := read(_READ)):
            pass


def _zstd(read: _Unread) -> Iterator[bytes]:
    """Decompress zstd frames (RFC 8878), one after the other.

    The library takes a frame that is cut short for the end: the archive, or its digest, tells.
    """
    frames = zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(
        cast(BinaryIO, read), read_size=_READ, read_across_frames=True
    )
    try:
        while piece := frames.read(PIECE):
            yield piece
    except zstandard.ZstdError as error:
        raise Damaged(f"zstd: {error}") from None


def _others(read: Read, make: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]) -> Iterator[bytes]:
    data = read(_READ)
    while data:
        stream = make()
        try:
            while not stream.eof:
                if stream.needs_input and not data and not (data := read(_READ)):
                    raise Damaged("it ends too early")
                piece = stream.decompress(data, PIECE)
                data = b""
                if piece:
                    yield piece
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise Damaged(str(error)) from None
        data = stream.unused_data or read(_READ)


class Ahead:
    """Iterates over pieces that a thread produces meanwhile, at most *depth* of them ahead.

    A context manager: at its end the thread has ended too, however many pieces were taken.
    What the thread raises comes out of the iteration.
    """

    def __init__(self, pieces: Iterable[bytes], depth: int = 8) -> None:
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(depth)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, args=(pieces,), name="read ahead", daemon=True)

    def _run(self, pieces: Iterable[bytes]) -> None:
        try:
            for piece in pieces:
                self._queue.put(piece)
                if self._stopped:
                    return
            self._queue.put(None)
        except BaseException as error:
            self._queue.put(error)

    def __enter__(self) -> Iterator[bytes]:
        """Start the thread; return the pieces."""
        self._thread.start()
        return self._pieces()

    def _pieces(self) -> Iterator[bytes]:
        while (piece := self._queue.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the thread and wait for it."""
        self._stopped = True
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue


class Feed:
    """Hands out a stream in the portions that are asked for."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = b""
        self._at = 0

    def exactly(self, size: int) -> bytes:
        """Return *size* bytes (a small number), or fewer at the end of the stream."""
        end = self._at + size
        if end <= len(self._piece):
            start, self._at = self._at, end
            return self._piece[start:end]
        data = bytearray()
        while len(data) < size and (part := self.some(size - len(data))):
            data += part
        return bytes(data)

    def some(self, size: int) -> memoryview:
        """Return between one and *size* bytes, none only at the end of the stream."""
        while self._at == len(self._piece):
            piece = next(self._pieces, None)
            if piece is None:
                return memoryview(b"")
            self._piece, self._at = piece, 0
        start = self._at
        self._at = min(start + size, len(self._piece))
        return memoryview(self._piece)[start : self._at]

    def skip(self, size: int) -> None:
        """Pass over *size* bytes. Raises `Damaged` where there are not so many."""
        while size:
            part = self.some(size)
            if not part:
                raise Damaged("it ends too early")
            size -= len(part)
