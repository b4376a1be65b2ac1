"""Lines that show how checkpoints stand on each other, as `git log --graph` draws them.

Every checkpoint has one line with a star. Lines before it close the branches that end in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Line(NamedTuple):
    """One line: what is drawn, and which checkpoint belongs to it, if any."""

    text: str
    entry: int | None


def draw(entries: Sequence[tuple[str, str | None]]) -> list[Line]:
    """Return the lines for *entries*, each an id and that of the one below; those above come first."""
    columns: list[str | None] = []
    lines: list[Line] = []
    for number, (entry, parent) in enumerate(entries):
        if entry not in columns:
            columns.append(entry)
        own = columns.index(entry)
        for other in [index for index, wanted in enumerate(columns) if wanted == entry and index > own][::-1]:
            text = "".join(_joining(index, own, other) for index in range(len(columns)))
            lines.append(Line(text.rstrip(), None))
            del columns[other]
        lines.append(Line("".join("* " if index == own else "| " for index in range(len(columns))), number))
        columns[own] = parent
        if parent is None:
            del columns[own]
    return lines


def _joining(index: int, own: int, other: int) -> str:
    """Return what is drawn in a column where *other* ends in *own*."""
    if index == own:
        return "|/" if other == own + 1 else "|_"
    if own < index < other:
        return "|/" if index == other - 1 else "|_"
    if index == other:
        return "  "
    return "| " if index < own else " /"
