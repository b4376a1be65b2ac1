"""Answers that a layerfs command makes, in a process of its own: long work does not slow this one down."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path

from layerfs.errors import LayerfsError
from layerfs.host.polling import readable
from layerfs.unixhttp.message import Headers, Stream, Upload

CHUNK = 1 << 18
_HEARTBEAT = 0.5
"""Seconds between two signs of life of a stream that has nothing to say."""


def output(root: Path, arguments: Sequence[str], headers: Headers) -> Stream:
    """Return what `layerfs ARGUMENTS` on the store at *root* writes, as it comes.

    Raises `LayerfsError` where the command fails before it has written anything; later, the end is missing.
    """
    process = _start(root, arguments, subprocess.DEVNULL)
    pieces = _pieces(process)
    try:
        first = next(piece for piece in pieces if piece)
    except StopIteration:
        raise LayerfsError("the command wrote nothing") from None
    return Stream(200, after(first, pieces), headers)


def read(fd: int) -> Generator[bytes, None, None]:
    """Yield what comes from the descriptor *fd* until its end; nothing now and then while nothing comes."""
    while True:
        if not readable([fd], _HEARTBEAT):
            yield b""
        elif piece := os.read(fd, CHUNK):
            yield piece
        else:
            return


def after(first: bytes, pieces: Generator[bytes, None, None]) -> Generator[bytes, None, None]:
    """Yield *first*, and *pieces* after it, which are closed with this."""
    try:
        yield first
        yield from pieces
    finally:
        pieces.close()


def _pieces(process: subprocess.Popen[bytes]) -> Generator[bytes, None, None]:
    """Yield what *process* writes, and end it. Raises `LayerfsError` if it fails."""
    assert process.stdout is not None
    with _ended(process):
        yield from read(process.stdout.fileno())
        if process.wait() != 0:
            raise LayerfsError(_complaint(process))


def fed(root: Path, arguments: Sequence[str], upload: Upload) -> str:
    """Return all that `layerfs ARGUMENTS` writes, given *upload* as its input.

    Raises `LayerfsError` if the command fails, or if *upload* does: then it is ended before it has seen all.
    """
    process = _start(root, arguments, subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    said: list[bytes] = []
    reader = threading.Thread(target=lambda stdout: said.append(stdout.read()), args=(process.stdout,))
    with _ended(process):
        reader.start()
        try:
            with suppress(BrokenPipeError):  # it has seen enough
                while piece := upload.read(CHUNK):
                    process.stdin.write(piece)
        except LayerfsError:
            process.kill()  # before it learns that its input has ended
            raise
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()
            reader.join()
        if process.wait() != 0:
            raise LayerfsError(_complaint(process))
    return b"".join(said).decode(errors="replace")


def _start(root: Path, arguments: Sequence[str], stdin: int) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "layerfs", "--root", str(root), *arguments]
    environment = {**os.environ, "LAYERFS_ENGINE": "none"}  # it is to do the work, not to ask for it
    return subprocess.Popen(
        words, bufsize=0, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )


class _ended:
    """Ends a process and closes its pipes when the block ends."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def _complaint(process: subprocess.Popen[bytes]) -> str:
    """Return the line that *process*, which has failed, complained with."""
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace")
    return said.strip().removeprefix("layerfs: ") or "the command has failed"
