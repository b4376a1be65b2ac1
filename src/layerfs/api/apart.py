"""Answering a call in another process: `python -m layerfs.api.apart`.

What takes long does not slow this process down, which has other requests, or a filesystem, to serve.
The daemon of a mount must not use files of its own mount: a process that it starts closes them, and closing
may wait for the daemon, which waits for that process. Nor could it be killed while it waits for itself.
"""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from layerfs.api.routes import Call, Place, launch_here
from layerfs.errors import BadRequest, LayerfsError
from layerfs.host.interpreter import command
from layerfs.host.polling import readable
from layerfs.unixhttp.message import Answer, Query, Request, Response, Stream, Upload, to_error

if TYPE_CHECKING:
    from layerfs.mounting.request import MountRequest

CHUNK = 1 << 18
_SIZE = struct.Struct("!I")
_HEARTBEAT = 0.5
"""Seconds between two signs of life of a stream that has nothing to say."""
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
        "body": request.body.decode("latin-1"),
        "upload": request.upload is not None,
    }
    with ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(
                command("layerfs.api.apart"),
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "LAYERFS_ENGINE": "none"},
            )
        )
        stack.callback(_end, process)
        assert process.stdin is not None
        assert process.stdout is not None
        start = _send(process.stdin.fileno(), process.stdout.fileno(), _encoded(head, request.upload))
        process.stdin.close()
        pieces = _pieces(process, stack.pop_all())
        next(pieces)
    try:
        while b"\n" not in start:
            more = next(pieces, None)
            if more is None:
                raise LayerfsError("the process that was to answer has ended without a word")
            start += more
        line, _, start = start.partition(b"\n")
        told = json.loads(line)
        headers = tuple((name, value) for name, value in told["headers"])
        if told["streams"]:
            return Stream(told["status"], _after(start, pieces), headers)
        return Response(told["status"], start + b"".join(pieces), headers)
    except BaseException:
        pieces.close()
        raise


def _encoded(head: Mapping[str, Any], upload: Upload | None) -> Iterator[bytes]:
    """Yield a request as `main` reads it."""
    yield json.dumps(head).encode() + b"\n"
    while upload is not None and (piece := upload.read(CHUNK)):
        yield _SIZE.pack(len(piece)) + piece
    yield _SIZE.pack(0)


def _send(stdin: int, stdout: int, pieces: Iterable[bytes]) -> bytes:
    """Send *pieces* to a process until it takes no more; return what it has said meanwhile.

    It may say more than a pipe holds before it has read all, and would wait for us while we wait for it.
    """
    said = bytearray()
    os.set_blocking(stdin, False)
    poll = select.poll()
    poll.register(stdin, select.POLLOUT)
    poll.register(stdout, select.POLLIN)
    with suppress(BrokenPipeError):
        for piece in pieces:
            view = memoryview(piece)
            while view:
                for fd, _ in poll.poll():
                    if fd == stdin:
                        view = view[os.write(stdin, view) :]
                    elif data := os.read(stdout, CHUNK):
                        said += data
                    else:
                        poll.unregister(stdout)
    return bytes(said)


def _pieces(process: subprocess.Popen[bytes], stack: ExitStack) -> Generator[bytes, None, None]:
    """Yield what *process* still says. Raises `LayerfsError` where it does not end in order."""
    assert process.stdout is not None
    with stack:
        yield b""  # the caller takes this one: from here on, closing the generator ends the process
        yield from _read(process.stdout.fileno())
        if _end(process) != 0:
            raise LayerfsError(
                f"the process that was to answer has ended too early ({_fate(process)}): try again"
            )


def _fate(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def launch(request: MountRequest) -> str:
    """Mount what *request* asks for, by another process; see `layerfs.mounting.launch.start`.

    A process that has threads cannot fork the daemon itself: the child might wait for a lock of one of them.
    """
    own = ("root", "foreground", "recover")
    members = {name: value for name, value in asdict(request).items() if name not in own}
    asked = Request("POST", "/layerfs/mounts", body=json.dumps(members).encode())
    answered = answer(Call(Place(request.root, launch), asked))
    assert isinstance(answered, Response)
    if answered.status >= 400:
        raise to_error(answered)
    return str(json.loads(answered.body)["Name"])


def _read(fd: int) -> Generator[bytes, None, None]:
    """Yield what comes from the descriptor *fd* until its end; nothing now and then while nothing comes."""
    while True:
        if not readable([fd], _HEARTBEAT):
            yield b""
        elif piece := os.read(fd, CHUNK):
            yield piece
        else:
            return


def _after(first: bytes, pieces: Generator[bytes, None, None]) -> Generator[bytes, None, None]:
    """Yield *first*, and *pieces* after it, which are closed with this."""
    try:
        yield first
        yield from pieces
    finally:
        pieces.close()


def _end(process: subprocess.Popen[bytes]) -> int:
    """Have *process* end, which it does in order when nobody reads what it writes: it may have mounted.

    Returns its exit code. May be repeated.
    """
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    try:
        return process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class _Input:
    """The body of a request, from a pipe, each piece after its size; an `Upload`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = 0
        self._ended = False

    def read(self, size: int, /) -> bytes:
        """Return up to *size* bytes, nothing at the end. Raises `BadRequest` where the end does not come."""
        if not self._left and not self._ended:
            (self._left,) = _SIZE.unpack(self._exactly(_SIZE.size))
            self._ended = self._left == 0
        data = self._some(min(size, self._left)) if self._left else b""
        self._left -= len(data)
        return data

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self._some(size - len(data))
        return data

    def _some(self, size: int) -> bytes:
        data = self._file.read(size)
        if not data:
            raise BadRequest("the request ended before its body did")
        return data


def main() -> int:
    """Answer the request that standard input begins with; the rest of it is the body."""
    from layerfs.api import app

    source = os.fdopen(0, "rb", buffering=0)
    line = b""
    while not line.endswith(b"\n") and (byte := source.read(1)):
        line += byte
    head = json.loads(line)
    request = Request(
        head["method"],
        head["path"],
        Query([(name, value) for name, value in head["query"]]),
        head["body"].encode("latin-1"),
        version=(head["version"][0], head["version"][1]),
        upload=_Input(source) if head["upload"] else None,
    )
    given = app.answer(Place(Path(head["root"]), launch_here, alone=True), request)
    streams = isinstance(given, Stream)
    headers = [list(pair) for pair in given.headers]
    status = given.status if isinstance(given, (Response, Stream)) else 500
    told = json.dumps({"status": status, "headers": headers, "streams": streams}).encode() + b"\n"
    try:
        if isinstance(given, Stream):
            with closing(given.chunks):
                _write(1, told)
                for piece in given.chunks:
                    _write(1, piece)
        else:
            _write(1, told + (given.body if isinstance(given, Response) else b""))
    except BrokenPipeError:
        pass  # nobody wants the answer any more
    except LayerfsError as error:
        print(f"layerfs: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
