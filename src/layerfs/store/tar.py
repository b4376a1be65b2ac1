"""Tar archives become trees: plain or compressed, from files or streams.

All the formats of Python's `tarfile` are read (ustar, GNU, pax; extended attributes as pax records
`SCHILY.xattr.NAME`), with the whiteouts of the OCI image specification. An archive that names a place
outside its tree, or goes through a symbolic link, is refused, and so is one that ends before its end marker.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from layerfs.errors import BadRequest
from layerfs.store.unpack import Kind, Member, Unpacker

_XATTR = "SCHILY.xattr."
_CHUNK = 1 << 20
_HEADER_LIMIT = 16 << 20
_KINDS: dict[bytes, Kind] = {
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "link",
    tarfile.CHRTYPE: "character",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}
_EXTRA_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile)


class _End(Exception):
    """The archive's end marker."""


class _Header(tarfile.TarInfo):
    """A header that must be whole: `tarfile` alone takes a damaged one for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        """Return the header in the block *buf*; raises `_End` for the end marker, and `BadRequest`."""
        return cls._whole(super().frombuf, buf, encoding, errors)

    @classmethod
    def _frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str, **options: bool) -> _Header:
        # Python 3.13, and security updates of those before, come here instead.
        return cls._whole(partial(super()._frombuf, **options), buf, encoding, errors)  # type: ignore[misc]

    @staticmethod
    def _whole(
        parse: Callable[[bytes | bytearray, str, str], _Header],
        buf: bytes | bytearray,
        encoding: str,
        errors: str,
    ) -> _Header:
        if len(buf) == tarfile.BLOCKSIZE and not any(buf):
            raise _End
        try:
            header = parse(buf, encoding, errors)
        except tarfile.HeaderError as error:
            what = "it ends too early" if len(buf) < tarfile.BLOCKSIZE else str(error)
            raise _damaged(what) from None
        if header.type in _EXTRA_HEADERS and header.size > _HEADER_LIMIT:
            raise _damaged("a header is larger than 16 MiB")
        return header


class _Source(io.RawIOBase):
    """A stream that can be looked into, and that reports how much has been read from it."""

    def __init__(self, stream: BinaryIO, report: Callable[[int], None]) -> None:
        self._stream = stream
        self._report = report
        self._done = 0
        self.start = b""
        """The first bytes; they are still to be read."""
        while len(self.start) < 6 and (more := stream.read(6 - len(self.start))):
            self.start += more
        self._unread = self.start

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return up to *size* bytes."""
        if self._unread:
            size = len(self._unread) if size < 0 else size
            data, self._unread = self._unread[:size], self._unread[size:]
        else:
            data = self._stream.read(size)
        self._done += len(data)
        self._report(self._done)
        return data


def unpack(stream: BinaryIO, tree: Path, report: Callable[[int], None]) -> None:
    """Unpack the archive *stream* into the empty directory *tree*.

    *report* is called with the number of bytes read so far, compressed as they are. Raises `BadRequest`
    for what is no archive, is damaged, or would leave the tree, and `OSError`.
    """
    try:
        plain = _decompressed(_Source(stream, report))
        with Unpacker(tree) as unpacker:
            try:
                _unpack_members(plain, unpacker)
            except _End:
                unpacker.finish()
            else:
                raise _damaged("it ends too early")
        while plain.read(_CHUNK):  # the rest of the stream, down to the checksum of what compressed it
            pass
    except _DAMAGE as error:
        raise _damaged(str(error)) from None


def _unpack_members(plain: BinaryIO, unpacker: Unpacker) -> None:
    with tarfile.open(
        fileobj=plain, mode="r|", tarinfo=_Header, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        while header := archive.next():
            try:
                content = cast(BinaryIO, archive.fileobj)
                content.seek(header.offset_data)
                unpacker.add(_member(header), content)
            except (ValueError, OverflowError) as error:  # numbers and names that no system call takes
                raise _damaged(f"{header.name!r}: {error}") from None
            archive.members = []  # type: ignore[attr-defined]  # which would hold every header there is


def _member(header: tarfile.TarInfo) -> Member:
    kind = _KINDS.get(header.type, "file")
    return Member(
        name=_bytes(header.name),
        kind=kind,
        mode=header.mode & 0o7777,
        uid=header.uid,
        gid=header.gid,
        mtime_ns=_mtime_ns(header),
        xattrs={
            key.removeprefix(_XATTR): _bytes(value)
            for key, value in header.pax_headers.items()
            if key.startswith(_XATTR)
        },
        target=_bytes(header.linkname),
        device=os.makedev(header.devmajor, header.devminor) if kind in ("character", "block") else 0,
        size=header.size if kind == "file" else 0,
        extents=cast("Sequence[tuple[int, int]] | None", header.sparse),
    )


def _mtime_ns(header: tarfile.TarInfo) -> int:
    try:
        seconds = Decimal(header.pax_headers.get("mtime", header.mtime))  # tarfile's float loses digits
        return int(seconds * 10**9)
    except (InvalidOperation, ValueError, OverflowError):
        raise _damaged(f"{header.name!r} has no time that can be read") from None


def _decompressed(stream: _Source) -> BinaryIO:
    """Return *stream* as it was before it was compressed, going by its first bytes."""
    source, magic = cast(BinaryIO, stream), stream.start
    if magic.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=source))
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        reader = zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)
        return cast(BinaryIO, reader)
    if magic.startswith(b"BZh"):
        return cast(BinaryIO, bz2.BZ2File(source))
    if magic.startswith(b"\xfd7zXZ\x00"):
        return cast(BinaryIO, lzma.LZMAFile(source))
    return source


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _damaged(what: str) -> BadRequest:
    return BadRequest(f"not a tar archive, or a damaged one: {what}")
