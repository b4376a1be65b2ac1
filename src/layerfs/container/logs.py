"""Reading a container's log: a line a piece of output, "TIME stdout|stderr F|P TEXT", as conmon writes it.

F stands for a full line, P for one whose newline comes later or never (Kubernetes' format, which
conmon(8) calls k8s-file).
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote_plus

_PAUSE = 0.1
"""Seconds between two looks at a log that is followed."""


class Piece(NamedTuple):
    """Something that a container wrote."""

    time: bytes
    """RFC 3339."""
    stream: bytes
    """`stdout` or `stderr`."""
    text: bytes
    """With its newline, if it has one."""


def read(
    path: Path, *, tail: int | None = None, goes_on: Callable[[], bool] | None = None
) -> Generator[Piece | None, None, None]:
    """Yield what the log at *path* has, the last *tail* pieces of it if that is given.

    With *goes_on*, waits for more for as long as it says so, and yields None now and then meanwhile. A log
    that is not there is empty.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        pieces = _Pieces(file)
        yield from pieces if tail is None else deque(pieces, tail)
        while goes_on is not None:
            last = not goes_on()  # before looking, so that nothing falls between
            yield from pieces
            if last:
                return
            yield None
            time.sleep(_PAUSE)


def details(options: Mapping[str, str], labels: Mapping[str, str], variables: Iterable[str]) -> bytes:
    """Return what stands before each line of a log in detail: the labels and variables that *options* name.

    Those are a log driver's `labels`, `labels-regex`, `env` and `env-regex`; *variables* are NAME=VALUE.
    """
    found: dict[str, str] = {}
    environment = dict(text.split("=", 1) for text in variables if "=" in text)
    for option, values in (("labels", labels), ("env", environment)):
        names, pattern = (options.get(option) or "").split(","), options.get(f"{option}-regex")
        found |= {name: value for name, value in values.items() if name in names or _matches(pattern, name)}
    return ",".join(f"{quote_plus(name)}={quote_plus(found[name])}" for name in sorted(found)).encode() + b" "


def _matches(pattern: str | None, name: str) -> bool:
    try:
        return bool(pattern and re.search(pattern, name))
    except re.error:
        return False


class _Pieces(Iterator[Piece]):
    """The pieces of a log; at its end it stops, and goes on when there is more."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._begun = b""

    def __next__(self) -> Piece:
        while line := self._file.readline():
            self._begun += line
            if line.endswith(b"\n"):
                fields, self._begun = self._begun[:-1].split(b" ", 3), b""
                if len(fields) == 4 and fields[1] in (b"stdout", b"stderr"):
                    moment, stream, kind, text = fields
                    return Piece(moment, stream, text + b"\n" if kind == b"F" else text)
        raise StopIteration
