"""Answers that tell how far some work is, a JSON object a line, as a client reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from layerfs.errors import LayerfsError

if TYPE_CHECKING:
    from layerfs.unixhttp.message import Stream


def lines(answer: Stream) -> Iterator[dict[str, Any]]:
    """Yield what *answer* says. Raises `LayerfsError` for a line that tells of one."""
    rest = b""
    with closing(answer.chunks) as pieces:
        for piece in pieces:
            *whole, rest = (rest + piece).split(b"\n")
            yield from map(_read, whole)
    if rest.strip():
        yield _read(rest)


def _read(line: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(line)
    if "error" in fields:
        raise LayerfsError(str(fields["error"]))
    return fields
