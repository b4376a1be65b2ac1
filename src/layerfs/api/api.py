"""The control API of a running mount: a request goes in, an answer comes out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from layerfs.api import archive_streams, archives, events, export, export_stream, here, table
from layerfs.api.live import LiveMount
from layerfs.api.routes import Call, Handler
from layerfs.errors import LayerfsError
from layerfs.unixhttp.message import Request, Response, Stream

_STREAMS: dict[Handler, Callable[[Call], Awaitable[Response | Stream]]] = {
    export.export: export_stream.stream,
    archives.save: archive_streams.save,
    archives.load: archive_streams.load,
}
"""Routes that are answered, or asked, with more than fits into memory."""


class App:
    """Docker's Engine API on a store and, if there is one, on the mount of this process."""

    def __init__(self, root: Path, live: LiveMount | None = None) -> None:
        """Serve the store at *root*, and *live*, which must run on the same trio loop."""
        self.root = root
        self.live = live

    def takes_upload(self, request: Request) -> bool:
        """Return whether the body of *request* is to come piece by piece, however large."""
        try:
            return table.find(self.root, request)[0].handler is archives.load
        except LayerfsError:
            return False

    async def handle(self, request: Request) -> Response | Stream:
        """Return the answer to *request*; errors are answers too, and nothing is raised but cancellation.

        What the running mount has to do itself is done here; all else goes to a thread, which opens
        the store for itself. Cancelling leaves alone what changes the store, and abandons what reads it.
        """
        try:
            route, call = table.find(self.root, request)
            if route.handler is events.past_events:
                return here.watch_events(call)
            if route.handler in _STREAMS:
                return await _STREAMS[route.handler](call)
            handler = here.HANDLERS.get(route.handler)
            if handler is not None and self.live is not None and here.is_meant(self.live, call):
                return await handler(self.live, call)
        except LayerfsError as error:
            return table.failure(error)
        except Exception as error:
            return table.failure(error)
        reads = request.method in ("GET", "HEAD")
        return await trio.to_thread.run_sync(
            table.run, route, call, abandon_on_cancel=reads, limiter=here.THREADS
        )
