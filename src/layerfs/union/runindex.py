"""The index of a run: of sealed layers that follow each other, what is where in them, as one file.

It says of each directory that one of the layers has which names the layers give it and in which of them each
lies, just as one layer that did all of it would: with whiteouts, opaque directories, and redirects to the
layers below the run. Nothing of the layers is copied, linked or touched. A file that is not whole is none:
its checksum tells. All numbers have the lowest byte first; paths are relative, with `/` between names.

    header      see `_HEADER`; the checksum is the XXH3-64 of everything that follows it
    records     one for each directory, the root's first: see `_RECORD`, then its redirect, its names with a
                zero byte between them, and for each name a number `layer << 2 | kind`, a reference, and the
                number, from 1 on, of what a file's `overlay.layerfs.ino` says, 0 for nothing
    offsets     of the records, 8 bytes each
    places      paths with a zero byte between them
    inodes      what files have in `overlay.layerfs.ino`, with a zero byte between them
    moves       renamed directories: layer, where it was below that layer, where it is in it; each ends with
                a zero byte

The reference of a directory is the number of its record. That of a file is its place, the directory that
holds it in its layer: 0 for the same path as here, else the number of a path in *places*, from 1 on.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import xxhash

from layerfs.union.marking import TRUSTED, USER, Marking
from layerfs.union.moves import Path

_MAGIC = b"layerfs-run 1\n\0\0"
_HEADER = struct.Struct("<16sQII32sQQQQQQ")
"""Magic, checksum, number of layers, marking, digest of their ids, number of records, five offsets.

The offsets are those of the offsets, the places, the inodes, the moves, and the end.
"""
_CHECKED = 24
"""Where in the header begins what the checksum covers."""
_RECORD = struct.Struct("<IIIIIIII")
"""Number of names, length of the names, layer and place of the topmost part, those of the lowest, flags,
length of the redirect."""
_OPAQUE = 1
_MARKINGS = (TRUSTED, USER)


class NotWhole(ValueError):
    """A file is no index, or not whole."""


class OfOthers(NotWhole):
    """An index is of other layers than was thought."""


class Record(NamedTuple):
    """What an index says of one directory. Layers count from 0, the lowest of the run."""

    top: tuple[int, Path | None]
    """Layer and place of the part that has its attributes; None for the same path as in the run."""
    lowest: tuple[int, Path | None]
    """Those of its lowest part, which has its inode number."""
    opaque: bool
    redirect: bytes | None
    names: Sequence[bytes]
    values: Sequence[int]
    """For each name `layer << 2 | kind`."""
    references: Sequence[int]
    inodes: Sequence[int]


def digest(ids: Iterable[str]) -> bytes:
    """Return what an index calls the layers *ids*, bottom first."""
    return hashlib.sha256("".join(ids).encode("ascii")).digest()


class RunIndex:
    """An index that is open. What it says is read when it is asked for; any thread may ask."""

    def __init__(self, path: str | bytes | os.PathLike[str], ids: Sequence[str]) -> None:
        """Open the index at *path* of the layers *ids*, bottom first. Raises `OSError`, `NotWhole`."""
        self.path = os.fsencode(path)
        with open(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            if os.fstat(file.fileno()).st_size < _HEADER.size:
                raise NotWhole(f"{os.fsdecode(self.path)} is too short")
            self._data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        magic, checksum, self.count, marking, covered, self.records, *offsets = _HEADER.unpack_from(
            self._data
        )
        self._offsets, self._places_at, self._inodes_at, self._moves_at, end = offsets
        with memoryview(self._data) as view:
            whole = (
                magic == _MAGIC
                and end == len(view)
                and marking < len(_MARKINGS)
                and checksum == xxhash.xxh3_64_intdigest(view[_CHECKED:])
            )
        if not whole:
            raise NotWhole(f"{os.fsdecode(self.path)} is not whole")
        if self.count != len(ids) or covered != digest(ids):
            raise OfOthers(f"{os.fsdecode(self.path)} is of other layers")
        self.marking: Marking = _MARKINGS[marking]
        self._places: list[Path] | None = None
        self._inodes: list[bytes] | None = None

    def place(self, reference: int) -> Path | None:
        """Return the place that a *reference* stands for; None for the same path as in the run."""
        if reference == 0:
            return None
        if self._places is None:
            self._places = [
                _path(text) for text in self._data[self._places_at : self._inodes_at].split(b"\0")
            ]
        return self._places[reference - 1]

    def inode(self, number: int) -> bytes | None:
        """Return what a file has in `overlay.layerfs.ino`, by its *number*; None for nothing."""
        if number == 0:
            return None
        if self._inodes is None:
            self._inodes = self._data[self._inodes_at : self._moves_at].split(b"\0")
        return self._inodes[number - 1]

    def record(self, number: int) -> Record:
        """Return what the index says of the directory of that *number*; the root's is 0."""
        (at,) = struct.unpack_from("<Q", self._data, self._offsets + 8 * number)
        count, length, *parts, flags, redirect = _RECORD.unpack_from(self._data, at)
        at += _RECORD.size
        names_at = at + redirect
        values_at = names_at + length
        names = self._data[names_at:values_at].split(b"\0") if count else []
        columns = []
        for column_at in range(values_at, values_at + 12 * count, 4 * count) if count else (values_at,) * 3:
            column = array("I")
            column.frombytes(self._data[column_at : column_at + 4 * count])
            if sys.byteorder == "big":
                column.byteswap()
            columns.append(column)
        return Record(
            (parts[0], self.place(parts[1])),
            (parts[2], self.place(parts[3])),
            bool(flags & _OPAQUE),
            self._data[at:names_at] if redirect else None,
            names,
            *columns,
        )

    def moves(self) -> list[tuple[int, Path, Path]]:
        """Return the renamed directories: layer, where each was below that layer, where it is in it."""
        fields = self._data[self._moves_at :].split(b"\0")[:-1]
        return [
            (int(layer), _path(old), _path(new))
            for layer, old, new in zip(fields[::3], fields[1::3], fields[2::3], strict=True)
        ]


class IndexWriter:
    """Puts an index together, record by record."""

    def __init__(self, ids: Sequence[str], marking: Marking) -> None:
        """Begin that of the layers *ids*, bottom first, whose trees are marked with *marking*."""
        self._ids = ids
        self._marking = marking
        self._data = bytearray(_HEADER.size)
        self._offsets = array("Q")
        self._places: dict[Path, int] = {}
        self._inodes: dict[bytes, int] = {}

    def reference(self, place: Path, here: Path) -> int:
        """Return the reference of a *place* for a directory that is *here* in the run."""
        return 0 if place == here else self._places.setdefault(place, len(self._places) + 1)

    def inode(self, text: bytes | None) -> int:
        """Return the number of what a file has in `overlay.layerfs.ino`; what cannot be true is none."""
        if not text or b"\0" in text:
            return 0
        return self._inodes.setdefault(text, len(self._inodes) + 1)

    def add(
        self,
        top: tuple[int, int],
        lowest: tuple[int, int],
        redirect: bytes | None,
        entries: Sequence[tuple[bytes, int, int, int]],
        *,
        opaque: bool,
    ) -> None:
        """Add the next record.

        *top* and *lowest* are layer and reference, each of *entries* a name and its numbers.
        """
        self._offsets.append(len(self._data))
        names = b"\0".join(entry[0] for entry in entries)
        flags = _OPAQUE if opaque else 0
        size = len(redirect or b"")
        self._data += _RECORD.pack(len(entries), len(names), *top, *lowest, flags, size)
        self._data += (redirect or b"") + names
        self._data += _little(array("I", (value for _, value, _, _ in entries)))
        self._data += _little(array("I", (reference for _, _, reference, _ in entries)))
        self._data += _little(array("I", (inode for _, _, _, inode in entries)))

    def finish(self, moves: Iterable[tuple[int, Path, Path]]) -> bytes:
        """Return the whole file."""
        offsets_at = len(self._data)
        self._data += _little(self._offsets)
        places_at = len(self._data)
        self._data += b"\0".join(b"/".join(place) for place in self._places)
        inodes_at = len(self._data)
        self._data += b"\0".join(self._inodes)
        moves_at = len(self._data)
        for layer, old, new in moves:
            self._data += b"%d\0%s\0%s\0" % (layer, b"/".join(old), b"/".join(new))
        header = [
            _MAGIC,
            0,
            len(self._ids),
            _MARKINGS.index(self._marking),
            digest(self._ids),
            len(self._offsets),
            offsets_at,
            places_at,
            inodes_at,
            moves_at,
            len(self._data),
        ]
        _HEADER.pack_into(self._data, 0, *header)
        header[1] = xxhash.xxh3_64_intdigest(memoryview(self._data)[_CHECKED:])
        _HEADER.pack_into(self._data, 0, *header)
        return bytes(self._data)


def _path(text: bytes) -> Path:
    return tuple(text.split(b"/")) if text else ()


def _little(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
