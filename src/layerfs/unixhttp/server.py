"""The HTTP/1.1 server: h11 over a Unix socket, for an `Application`.

Every limit is here: how large a header or body may be, how long a client may take, how many may
connect. What a client does wrong costs it its own connection and nobody else anything.
"""

from __future__ import annotations

import logging

import trio

from layerfs.unixhttp.connection import Connection
from layerfs.unixhttp.message import Application, Response, error_response
from layerfs.unixhttp.peer import may_connect, peer_uid
from layerfs.unixhttp.turns import Turns

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
MAX_REFUSALS = 64
"""Connections that are told at the same time why they are refused; further ones are closed at once."""
GRACE = 5.0
"""Seconds that requests being answered get to end when the server is cancelled."""


async def serve(
    listener: trio.SocketListener,
    app: Application,
    *,
    connections: int | None = None,
    anybody: bool = False,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests on *listener* with *app* until cancelled; then close the listener.

    As many as *connections* (`MAX_CONNECTIONS`) are served at a time. Root and the user of this process may
    connect, and *anybody* whom the mode of the socket lets in if that is said.

    When cancelled, idle connections and streams end at once, while a request that is being answered
    still gets its answer, within `GRACE` seconds: so the daemon may cancel its server as soon as a
    request has unmounted it.
    """
    server = _Server(app, connections or MAX_CONNECTIONS, anybody=anybody)
    async with trio.open_nursery() as nursery, listener:
        task_status.started()
        try:
            await trio.serve_listeners(server.connected, [listener], handler_nursery=nursery)
        finally:
            server.finish()


class _Server:
    """The connections of one server."""

    def __init__(self, app: Application, most: int, *, anybody: bool) -> None:
        self._app = app
        self._most = most
        self._anybody = anybody
        self._connections: set[Connection] = set()
        self._refusals = 0
        self._turns = Turns()

    async def connected(self, stream: trio.SocketStream) -> None:
        """Serve one client until it or the server has had enough; never raises but when cancelled."""
        connection = Connection(stream, self._app, self._turns)
        try:
            if not (self._anybody or may_connect(peer_uid(stream))):
                await self._refuse(
                    connection,
                    error_response(403, "permission denied: this socket serves its owner and root alone"),
                )
            elif len(self._connections) >= self._most:
                await self._refuse(connection, error_response(503, "too many connections: try again later"))
            else:
                self._connections.add(connection)
                await connection.run()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away
        except Exception:
            log.exception("a control connection failed")
        finally:
            self._connections.discard(connection)
            await trio.aclose_forcefully(stream)

    async def _refuse(self, connection: Connection, answer: Response) -> None:
        """Tell the client why it is refused, unless many are being told already."""
        if self._refusals >= MAX_REFUSALS:
            return
        self._refusals += 1
        try:
            await connection.refuse(answer)
        finally:
            self._refusals -= 1

    def finish(self) -> None:
        """Give the requests that are being answered `GRACE` seconds."""
        for connection in self._connections:
            connection.finish_within(GRACE)
