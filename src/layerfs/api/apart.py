"""Answering a call in another process: `python -m layerfs.api.apart`.

The daemon of a mount must not use files of its own mount: a process that it starts closes them, and closing
may wait for the daemon, which waits for that process. Nor could it be killed while it waits for itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import BinaryIO

from layerfs.api import child
from layerfs.api.routes import Call, Place
from layerfs.errors import LayerfsError
from layerfs.unixhttp.message import Answer, Query, Request, Response, Stream

_PATIENCE = 30.0
"""Seconds that the process may take to end in order."""


def answer(call: Call) -> Answer:
    """Have *call* answered by another process, which gets its body piece by piece. Raises `LayerfsError`."""
    request = call.request
    head = {
        "root": str(call.root),
        "method": request.method,
        "path": request.path,
        "query": request.query.pairs,
        "version": request.version,
        "upload": request.upload is not None,
    }
    with ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "layerfs.api.apart"],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "LAYERFS_ENGINE": "none"},
            )
        )
        stack.callback(_end, process)
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it has seen enough
            _write(process.stdin.fileno(), json.dumps(head).encode() + b"\n")
            while request.upload is not None and (piece := request.upload.read(child.CHUNK)):
                _write(process.stdin.fileno(), piece)
        process.stdin.close()
        pieces = _pieces(process.stdout.fileno(), stack.pop_all())
        next(pieces)
    try:
        start = b""
        while b"\n" not in start:
            more = next(pieces, None)
            if more is None:
                raise LayerfsError("the process that was to answer has ended without a word")
            start += more
        line, _, start = start.partition(b"\n")
        told = json.loads(line)
        headers = tuple((name, value) for name, value in told["headers"])
        if told["streams"]:
            return Stream(told["status"], child.after(start, pieces), headers)
        return Response(told["status"], start + b"".join(pieces), headers)
    except BaseException:
        pieces.close()
        raise


def _pieces(fd: int, stack: ExitStack) -> Generator[bytes, None, None]:
    with stack:
        yield b""  # the caller takes this one: from here on, closing the generator ends the process
        yield from child.read(fd)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Have *process* end, which it does in order when nobody reads what it writes: it may have mounted."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class _Input:
    """The body of a request, from a pipe; an `Upload`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int, /) -> bytes:
        """Return up to *size* bytes, nothing at the end."""
        return self._file.read(size) or b""


def main() -> int:
    """Answer the request that standard input begins with; the rest of it is the body."""
    from layerfs.api import app
    from layerfs.api.server import start_mount

    source = os.fdopen(0, "rb", buffering=0)
    line = b""
    while not line.endswith(b"\n") and (byte := source.read(1)):
        line += byte
    head = json.loads(line)
    request = Request(
        head["method"],
        head["path"],
        Query([(name, value) for name, value in head["query"]]),
        version=(head["version"][0], head["version"][1]),
        upload=_Input(source) if head["upload"] else None,
    )
    given = app.answer(Place(Path(head["root"]), start_mount, alone=True), request)
    streams = isinstance(given, Stream)
    headers = [list(pair) for pair in given.headers]
    status = given.status if isinstance(given, (Response, Stream)) else 500
    _write(1, json.dumps({"status": status, "headers": headers, "streams": streams}).encode() + b"\n")
    if isinstance(given, Stream):
        with closing(given.chunks), suppress(BrokenPipeError):
            for piece in given.chunks:
                _write(1, piece)
    elif isinstance(given, Response):
        _write(1, given.body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
