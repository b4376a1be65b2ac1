"""Answers that a layerfs command makes, a process of its own beside the mount that this one serves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path

import trio

from layerfs.errors import LayerfsError
from layerfs.unixhttp.message import Headers, Response, Stream, error_response

_CHUNK = 1 << 18


async def output(root: Path, arguments: list[str], headers: Headers) -> Response | Stream:
    """Return what `layerfs ARGUMENTS` on the store at *root* writes, as it comes.

    Where the command fails before it has written anything the answer is an error; later, its end is missing.
    """
    process = await _started(root, arguments, subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        first = await process.stdout.receive_some(_CHUNK)
        if not first:
            return error_response(500, await _failure(process))
    except BaseException:
        await _end(process)
        raise
    return Stream(200, _pieces(process, bytes(first)), headers)


async def fed(root: Path, arguments: list[str], data: AsyncGenerator[bytes, None]) -> str:
    """Return all that `layerfs ARGUMENTS` writes, given *data* as its input.

    Raises `LayerfsError` if the command fails, or if *data* does: then it is ended before it has seen all.
    """
    process = await _started(root, arguments, subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    said = bytearray()
    failures: list[LayerfsError] = []
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_feed, process, data, failures)
            while part := await process.stdout.receive_some(_CHUNK):
                said += part
            nursery.cancel_scope.cancel()  # it wants no more
        if failures:
            raise failures[0]
        if await process.wait() != 0:
            raise LayerfsError(await _failure(process))
    finally:
        await _end(process)
    return said.decode(errors="replace")


async def _feed(
    process: trio.Process, data: AsyncGenerator[bytes, None], failures: list[LayerfsError]
) -> None:
    assert process.stdin is not None
    async with aclosing(data):
        try:
            with suppress(trio.BrokenResourceError):  # it has seen enough
                async for piece in data:
                    await process.stdin.send_all(piece)
        except LayerfsError as error:
            failures.append(error)
            process.kill()
    await process.stdin.aclose()


async def _started(root: Path, arguments: list[str], stdin: int) -> trio.Process:
    words = [sys.executable, "-m", "layerfs", "--root", str(root), *arguments]
    return await trio.lowlevel.open_process(
        words, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


async def _pieces(process: trio.Process, piece: bytes) -> AsyncGenerator[bytes, None]:
    assert process.stdout is not None
    try:
        while piece:
            yield piece
            piece = bytes(await process.stdout.receive_some(_CHUNK))
        if await process.wait() != 0:
            raise LayerfsError(await _failure(process))
    finally:
        await _end(process)


async def _failure(process: trio.Process) -> str:
    """Return the line that *process*, which has failed, complained with."""
    assert process.stderr is not None
    said = bytearray()
    while part := await process.stderr.receive_some(_CHUNK):
        said += part
    await process.wait()
    return said.decode(errors="replace").strip().removeprefix("layerfs: ") or "the command has failed"


async def _end(process: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        process.kill()
        await process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                await pipe.aclose()
