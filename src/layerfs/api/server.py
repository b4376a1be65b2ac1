"""The API in a server on trio: every request is answered by a thread, so that the loop never waits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trio
from trio import to_thread

from layerfs.api import apart, app
from layerfs.api.routes import Call, Place, Route
from layerfs.errors import LayerfsError, OtherStore
from layerfs.mounting import launch
from layerfs.mounting.request import MountRequest
from layerfs.mounting.served import LiveMount
from layerfs.unixhttp import server
from layerfs.unixhttp.message import Answer, Handling, Request
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
        self.place = place or Place(root, launch=apart.launch, live=live)

    def find(self, request: Request) -> Handling:
        """Return what answers *request*, of which the head alone need be there."""
        try:
            route, call = app.find(self.place, request)
        except LayerfsError as error:
            return _Refused(app.failure(error), upload=isinstance(error, OtherStore))
        return _Found(route, call, self._limiter(route, call))

    def _limiter(self, route: Route, call: Call) -> trio.CapacityLimiter:
        if route.waits:
            return WAITING
        live = self.place.live
        given = call.names.get("name") or call.query.get("container") or call.query.get("name")
        about_us = live and (given.removeprefix("/") in (live.name, live.mount_id) if given else True)
        return SERVED if about_us else THREADS


@dataclass(frozen=True, slots=True)
class _Found:
    """A request that has a route."""

    route: Route
    call: Call
    limiter: trio.CapacityLimiter

    @property
    def upload(self) -> bool:
        """See `Handling`."""
        return self.route.upload

    async def answer(self, request: Request) -> Answer:
        """See `Handling`. Cancelling leaves alone what changes the store, and abandons what reads it."""
        # The route has taken the version out of the path.
        self.call.request = self.call.request._replace(body=request.body, upload=request.upload)
        reads = request.method in ("GET", "HEAD") and not self.route.waits
        return await to_thread.run_sync(
            app.run, self.route, self.call, abandon_on_cancel=reads, limiter=self.limiter
        )


@dataclass(frozen=True, slots=True)
class _Refused:
    """A request that has no route, and the answer that says so."""

    refusal: Answer
    upload: bool = False
    """True leaves the body alone: for another store it is read by who sends it."""

    async def answer(self, request: Request) -> Answer:
        """See `Handling`."""
        return self.refusal


def start_mount(request: MountRequest) -> str:
    """Mount what *request* asks for, by a daemon that serves the API on the socket of the mount."""
    return launch.start(request, serve)


async def serve(live: LiveMount, root: Path, path: Path, *, task_status: trio.TaskStatus[None]) -> None:
    """Serve the API on the socket *path* for the mount *live* of the store at *root* until cancelled."""
    await server.serve(listen(path), App(root, live), task_status=task_status)
