"""A mount that another process serves, as a loop asks its daemon: without a thread.

It is for what the daemon answers at once, or within the time that a commit takes. A loop cannot wait for a
daemon that starts, ends or is stopped: then nothing is asked, and a thread does what `remote` does.
"""

from __future__ import annotations

import errno
import socket
import time
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import trio

from layerfs.host.rundir import is_stopped, running_pid, socket_path
from layerfs.mounting import asked
from layerfs.mounting.asked import Asked
from layerfs.mounting.exchange import PATIENCE, PING_PATIENCE, check_works, silent
from layerfs.mounting.mount import Checkpoint, Commit, Committed, NotReachedError
from layerfs.unixhttp.client import UnreadError, encoded, received, whole_answer
from layerfs.unixhttp.message import Query, Request, Response

_T = TypeVar("_T")


class Relayed:
    """A `LoopMount` that the daemon of another process serves."""

    def __init__(self, root: Path, name: str, mount_id: str) -> None:
        """Prepare to ask the daemon of the mount *mount_id*, called *name*, of the store at *root*."""
        self._root = root
        self._name = name
        self._mount_id = mount_id

    async def commit(self, wanted: Commit) -> Committed:
        """See `Mount`."""
        return await self._ask(asked.commit(self._mount_id, wanted))

    async def checkpoint(self, wanted: Checkpoint) -> str:
        """See `Mount`."""
        return await self._ask(asked.checkpoint(self._mount_id, wanted))

    async def flush(self) -> None:
        """See `Mount`."""
        await self._ask(asked.flush(self._mount_id))

    async def status(self) -> dict[str, Any]:
        """See `Mount`."""
        return await self._ask(asked.status(self._mount_id))

    async def _ask(self, wanted: Asked[_T]) -> _T:
        pid = running_pid(self._name)
        if not pid or is_stopped(pid):
            raise NotReachedError
        request = Request(wanted.method, wanted.path, Query(wanted.query), wanted.body)
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
            connection.setblocking(False)
            try:
                connection.connect(str(socket_path(self._name)))
            except OSError:  # nobody listens, or too many wait to be heard
                raise NotReachedError from None
            try:
                await _send(connection, encoded(request, {}))
                answer = await self._answer(connection, pid, f"{wanted.method} {wanted.path}")
            except OSError as error:
                raise silent(self._name, pid, error.strerror or str(error)) from error
        return wanted.answered(answer, self._name, self._root)

    async def _answer(self, connection: socket.socket, pid: int, what: str) -> Response:
        """Return the answer, once it has come whole. Raises `Conflict`, `NotReachedError` and `OSError`."""
        deadline = time.monotonic() + PATIENCE
        data = b""
        while (answer := whole_answer(data)) is None:
            with trio.move_on_after(PING_PATIENCE) as waiting:
                await trio.lowlevel.wait_readable(connection)
            if waiting.cancelled_caught:
                await trio.to_thread.run_sync(check_works, self._name, pid, what, deadline)
                continue
            try:
                piece = received(connection, begun=bool(data))
            except BlockingIOError:
                continue
            except UnreadError:
                raise NotReachedError from None
            if not piece:
                raise OSError(errno.ECONNRESET, "it ended before it had answered")
            data += piece
        return answer


async def _send(connection: socket.socket, data: bytes) -> None:
    """Send *data* to a peer that has not read anything yet. Raises `NotReachedError` where that has gone."""
    while data:
        try:
            data = data[connection.send(data) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(connection)
        except (BrokenPipeError, ConnectionResetError):
            raise NotReachedError from None
