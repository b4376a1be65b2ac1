"""Parts of a file, as a set of spans of bytes: sorted, apart from each other, and only added to.

Any thread may ask and add: each call is one step to all others.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

Span = tuple[int, int]
"""From an offset to the one after the last byte."""


class Spans:
    """A set of spans."""

    __slots__ = ("_ends", "_lock", "_starts")

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._lock = threading.Lock()
        for start, end in spans:
            self.add(start, end)

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, start: int, end: int) -> None:
        """Add the bytes from *start* to *end*, of which some may be there already."""
        if start >= end:
            return
        with self._lock:
            first = bisect_left(self._ends, start)  # the spans from it to `last` touch the new one
            last = bisect_right(self._starts, end)
            if first < last:
                start = min(start, self._starts[first])
                end = max(end, self._ends[last - 1])
            self._starts[first:last] = [start]
            self._ends[first:last] = [end]

    def missing(self, start: int, end: int) -> list[Span]:
        """Return what of the bytes from *start* to *end* is not there, in their order."""
        found: list[Span] = []
        with self._lock:
            position = bisect_right(self._ends, start)
            while start < end and position < len(self._starts):
                begins = self._starts[position]
                if begins >= end:
                    break
                if start < begins:
                    found.append((start, begins))
                start = self._ends[position]
                position += 1
        if start < end:
            found.append((start, end))
        return found

    def has_all(self, start: int, end: int) -> bool:
        """Tell whether all bytes from *start* to *end* are there."""
        return not self.missing(start, end)
