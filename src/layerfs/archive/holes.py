"""Which parts of a piece of data are zeros, so that they need not be written."""

from __future__ import annotations

from collections.abc import Iterator

_BLOCK = 4096
_ZEROS = bytes(_BLOCK)


def parts_with_data(piece: bytes | memoryview, offset: int) -> Iterator[tuple[int, int]]:
    """Yield start and end, in *piece*, of what is not blocks of zeros.

    *offset* is where the piece stands in its file: blocks are 4 KiB, counted from the file's beginning,
    and the piece may begin and end within one.
    """
    data = bytes(piece)
    end = len(data)
    start = min(-offset % _BLOCK, end)
    if data[:start].strip(b"\0"):
        start = 0
    last = max(end - (offset + end) % _BLOCK, start)
    if not data[last:].strip(b"\0"):
        end = last
    while start < end:
        hole = data.find(_ZEROS, start, end)
        hole += -(hole + offset) % _BLOCK if hole >= 0 else 0
        if hole < 0 or hole + _BLOCK > end:
            yield start, end
            return
        after = hole
        while data[after : after + _BLOCK] == _ZEROS:
            after += _BLOCK
        if after == hole:  # the zeros were not those of a whole block
            after = hole + _BLOCK
            yield start, after
        elif hole > start:
            yield start, hole
        start = after
