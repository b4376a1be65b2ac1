"""The API in a server on trio: every request is answered by a thread, so that the loop never waits."""

from __future__ import annotations

from pathlib import Path

import trio
from trio import from_thread, to_thread

from layerfs.api import app
from layerfs.api.routes import Call, Place, Route
from layerfs.errors import LayerfsError
from layerfs.mounting import launch
from layerfs.mounting.request import MountRequest
from layerfs.mounting.served import LiveMount
from layerfs.unixhttp import server
from layerfs.unixhttp.message import Answer, Request
from layerfs.unixhttp.peer import listen

THREADS = trio.CapacityLimiter(8)
"""Requests that are worked on at a time: clients never use up the threads that a filesystem needs."""
WAITING = trio.CapacityLimiter(1000)
"""Requests that may wait for a container."""
SERVED = trio.CapacityLimiter(64)
"""Requests for the mount of this process. They must not wait for one of `THREADS`: daemons that pass requests
on to each other would wait for each other."""


app.load()  # a daemon that serves a mount must not look for its own files in it


class App:
    """The API on a store and, if there is one, on the mount that the same trio loop serves."""

    def __init__(self, root: Path, live: LiveMount | None = None, place: Place | None = None) -> None:
        """Serve the store at *root*, or all that *place* says."""
        self.place = place or Place(root, launch=start_mount, live=live)

    def takes_upload(self, request: Request) -> bool:
        """Return whether the body of *request* is to come piece by piece, however large."""
        try:
            return app.find(self.place, request)[0].upload
        except LayerfsError:
            return False

    async def handle(self, request: Request) -> Answer:
        """Return the answer to *request*; errors are answers too, and nothing is raised but cancellation.

        Cancelling leaves alone what changes the store, and abandons what reads it.
        """
        try:
            route, call = app.find(self.place, request)
        except LayerfsError as error:
            return app.failure(error)
        reads = request.method in ("GET", "HEAD") and not route.waits
        limiter = self._limiter(route, call)
        return await to_thread.run_sync(app.run, route, call, abandon_on_cancel=reads, limiter=limiter)

    def _limiter(self, route: Route, call: Call) -> trio.CapacityLimiter:
        if route.waits:
            return WAITING
        live = self.place.live
        given = call.names.get("name") or call.query.get("container") or call.query.get("name")
        about_us = live and (given.removeprefix("/") in (live.name, live.mount_id) if given else True)
        return SERVED if about_us else THREADS


def client_is_gone() -> bool:
    """Return whether nobody waits for the answer that the calling thread of a server is to give."""
    try:
        from_thread.check_cancelled()
    except trio.Cancelled:
        return True
    except RuntimeError:  # no thread of a server
        return False
    return False


def start_mount(request: MountRequest) -> str:
    """Mount what *request* asks for, by a daemon that serves the API on the socket of the mount."""
    return launch.start(request, serve)


async def serve(live: LiveMount, root: Path, path: Path, *, task_status: trio.TaskStatus[None]) -> None:
    """Serve the API on the socket *path* for the mount *live* of the store at *root* until cancelled."""
    await server.serve(listen(path), App(root, live), task_status=task_status)
