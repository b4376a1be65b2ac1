"""A first request to a new server, by itself, so that the first of a client finds everything in memory.

A forked process gets a copy of each page of memory when it first writes to it, and Python writes to all that
it looks at. For the first request that takes 3 ms, as long as a commit. SQLite, too, takes twice as long for
a statement that it has not seen. So a commit is rehearsed. All that is put off for a moment: a container that
ends at once shall not pay for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio

_MOMENT = 0.15
"""Seconds from the mounting to the request."""
_PATIENCE = 5.0
_REQUEST = b"GET /layerfs/status HTTP/1.1\r\nHost: layerfs\r\nConnection: close\r\n\r\n"


async def warm_up(socket: Path, rehearse: Callable[[], None]) -> None:
    """Ask the server on *socket*, which this loop runs, for its status after a moment, and *rehearse*.

    Never raises, unless *rehearse* does.
    """
    await trio.sleep(_MOMENT)
    with suppress(OSError, trio.BrokenResourceError), trio.move_on_after(_PATIENCE):
        async with await trio.open_unix_socket(socket) as stream:
            await stream.send_all(_REQUEST)
            while await stream.receive_some():
                pass
    rehearse()
