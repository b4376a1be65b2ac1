"""The answer to `GET /containers/{name}/export`: the merged tree of a mount, as it is read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator

import trio

from layerfs.control.containers import find_mount
from layerfs.control.message import Response, Stream, error_response
from layerfs.control.routes import Call
from layerfs.errors import LayerfsError

_CHUNK = 1 << 18
_HEADERS = (("Content-Type", "application/x-tar"),)


async def stream(call: Call) -> Response | Stream:
    """Return the merged tree of a mount as a tar archive.

    A process of its own makes it, so that the mount that this one serves is not slowed down.
    """
    mount_id = await trio.to_thread.run_sync(_mount_id, call)
    words = [sys.executable, "-m", "layerfs", "--root", str(call.root), "export", mount_id]
    process = await trio.lowlevel.open_process(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        first = await process.stdout.receive_some(_CHUNK)
        if not first:
            return error_response(500, await _failure(process))
    except BaseException:
        await _end(process)
        raise
    return Stream(200, _pieces(process, bytes(first)), _HEADERS)


def _mount_id(call: Call) -> str:
    own = Call(call.root, call.request, call.names)
    try:
        return find_mount(own, own.names["name"]).id
    finally:
        own.close()


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
    return said.decode(errors="replace").strip().removeprefix("layerfs: ") or "the export has failed"


async def _end(process: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        process.kill()
        await process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                await pipe.aclose()
