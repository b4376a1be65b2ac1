"""Notes of what programs did and what was promised to them, in a file that no power cut reaches.

A note is written before each call and after it has returned. The calls of all programs stand in one order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Arguments = dict[str, Any]


class Call(NamedTuple):
    """One call of one program: what it was asked to do."""

    program: str
    serial: int
    name: str
    arguments: Arguments


class Note(NamedTuple):
    """One line: a call begins, or ends with errno *error* (0: it worked) and *result*."""

    call: Call
    ended: bool
    error: int
    result: Any


class Notebook:
    """The pen of one *program*; each has a descriptor of its own on the file at *path*."""

    def __init__(self, path: Path, program: str) -> None:
        self.program = program
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._serial = 0

    def begins(self, name: str, arguments: Arguments) -> None:
        """Note a call that is about to be made."""
        self._serial += 1
        self._write("begin", name, arguments)

    def worked(self, result: Any = None) -> None:
        """Note that the call has returned."""
        self._write("ok", result)

    def failed(self, error: OSError) -> None:
        """Note that the call has failed."""
        self._write("error", error.errno)

    def _write(self, *words: Any) -> None:
        os.write(self._fd, json.dumps([self.program, self._serial, *words]).encode() + b"\n")


def read(path: Path) -> Iterator[Note]:
    """Yield all notes in the order in which they were written."""
    calls: dict[tuple[str, int], Call] = {}
    for line in path.read_text().splitlines():
        program, serial, what, *rest = json.loads(line)
        if what == "begin":
            call = calls[program, serial] = Call(program, serial, *rest)
            yield Note(call, False, 0, None)
        else:
            error, result = (rest[0], None) if what == "error" else (0, rest[0])
            yield Note(calls[program, serial], True, error, result)
