"""Where the data of a sparse file is: the maps of GNU tar in all four forms that are about.

GNU tar's manual, "Storing Sparse Files": the old GNU format, and the pax formats 0.0, 0.1 and 1.0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from layerfs.archive.pax import Records
from layerfs.archive.streams import Damaged

Extents = Sequence[tuple[int, int]]
_MOST = 1 << 18
"""The most parts that a map may have: it is held in memory."""
_MAXIMUM = (1 << 63) - 1


def gnu_extents(block: bytes, more: Callable[[], bytes], number: Callable[[bytes], int]) -> Extents:
    """Return the map in a header of the old GNU format, and in the blocks after it, which *more* returns."""
    extents: list[tuple[int, int]] = []
    table, extended = block[386:482], block[482]
    while True:
        for at in range(0, len(table), 24):
            if not table[at : at + 24].strip(b"\0 "):
                break
            extents.append((number(table[at : at + 12]), number(table[at + 12 : at + 24])))
        if not extended:
            return extents
        _check_count(len(extents))
        block = more()
        table, extended = block[:504], block[504]


def pax_extents(records: Records) -> Extents:
    """Return the map in pax records: repeated pairs (0.0), or a list in one record (0.1)."""
    values = records.pairs or (records.get(b"GNU.sparse.map") or b"").split(b",")
    if values == [b""]:
        return []
    numbers = [pax_size(value) for value in values]
    if len(numbers) % 2:
        raise Damaged("a sparse file has half a part in its map")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def numbers_in_data(block: Callable[[], bytes]) -> Extents:
    """Return the map that stands before the data (1.0), in decimal lines, filled up to whole blocks."""
    lines = _Lines(block)
    count = lines.number()
    _check_count(count)
    return [(lines.number(), lines.number()) for _ in range(count)]


def pax_size(text: bytes) -> int:
    """Return a decimal number that is not negative. Raises `Damaged`."""
    if not text.isdigit() or len(text) > 19 or (value := int(text)) > _MAXIMUM:
        raise Damaged(f"{text[:30]!r} is no number")
    return value


def _check_count(count: int) -> None:
    if count > _MOST:
        raise Damaged(f"a sparse file has more than {_MOST} parts")


class _Lines:
    """Numbers, a line each, in blocks that are read as they are needed."""

    def __init__(self, block: Callable[[], bytes]) -> None:
        self._block = block
        self._text = b""

    def number(self) -> int:
        """Return the number in the next line. Raises `Damaged`."""
        while b"\n" not in self._text[:64]:
            if len(self._text) > 64:
                raise Damaged("a sparse file has a map that cannot be read")
            self._text += self._block()
        line, _, self._text = self._text.partition(b"\n")
        return pax_size(line)
