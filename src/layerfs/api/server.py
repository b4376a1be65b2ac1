"""The API in a server on trio: every request is answered by a thread, so that the loop never waits."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import trio
from trio import to_thread

from layerfs.api import apart, app
from layerfs.api.relay import Relay
from layerfs.api.routes import Call, LoopHandler, Place, Route, means
from layerfs.errors import LayerfsError, OtherStore
from layerfs.mounting import launch
from layerfs.mounting.mount import LoopMount, NotReachedError
from layerfs.mounting.request import MountRequest
from layerfs.mounting.served import InLoop, LiveMount
from layerfs.unixhttp import server
from layerfs.unixhttp.message import Answer, Handling, Request
from layerfs.unixhttp.peer import listen

THREADS = trio.CapacityLimiter(8)
"""Requests that are worked on at a time: clients never use up the threads that a filesystem needs."""
WAITING = trio.CapacityLimiter(1000)
"""Requests that may wait for a container."""
SMALL = 4096
"""The largest body, in bytes, of a request that is answered in the loop: more takes it too long to read."""
SERVED = trio.CapacityLimiter(64)
"""Requests for the mount of this process. They must not wait for one of `THREADS`: daemons that pass requests
on to each other would wait for each other."""


app.load()  # a daemon that serves a mount must not look for its own files in it


class App:
    """The API on a store and, if there is one, on the mount that the same trio loop serves."""

    def __init__(
        self,
        root: Path,
        live: LiveMount | None = None,
        place: Place | None = None,
        relay: Relay | None = None,
    ) -> None:
        """Serve the store at *root*, or all that *place* says.

        A loop that serves no filesystem may look for mounts itself, by *relay*.
        """
        self.place = place or Place(root, launch=apart.launch, live=live)
        self._relay = relay

    def find(self, request: Request) -> Handling:
        """Return what answers *request*, of which the head alone need be there."""
        try:
            route, call = app.find(self.place, request)
        except LayerfsError as error:
            return _Refused(app.failure(error), upload=isinstance(error, OtherStore))
        live = self._served(call)
        limiter = WAITING if route.waits else SERVED if live else THREADS
        return _Found(route, call, limiter, InLoop(live) if live else None, self._relay)

    def _served(self, call: Call) -> LiveMount | None:
        """Return the mount that this process serves, if *call* is about that."""
        live = self.place.live
        given = call.names.get("name", ""), call.query.get("container"), call.query.get("name")
        return live if live is not None and all(means(live, name) for name in given) else None


@dataclass(frozen=True, slots=True)
class _Found:
    """A request that has a route."""

    route: Route
    call: Call
    limiter: trio.CapacityLimiter
    mount: LoopMount | None
    """The mount that this loop serves, if the request is about that."""
    relay: Relay | None

    @property
    def upload(self) -> bool:
        """See `Handling`."""
        return self.route.upload

    async def answer(self, request: Request) -> Answer:
        """See `Handling`. Cancelling leaves alone what changes the store, and abandons what reads it."""
        # The route has taken the version out of the path.
        self.call.request = self.call.request._replace(body=request.body, upload=request.upload)
        if self.route.in_loop is not None and len(request.body) <= SMALL:
            with suppress(NotReachedError):
                return await self._in_loop(self.route.in_loop)
        reads = request.method in ("GET", "HEAD") and not self.route.waits
        return await to_thread.run_sync(
            app.run, self.route, self.call, abandon_on_cancel=reads, limiter=self.limiter
        )

    async def _in_loop(self, handler: LoopHandler) -> Answer:
        """Return what *handler* answers; raises `NotReachedError`, and then nothing has been done."""
        mount = self.mount
        if mount is None and self.relay is not None:
            mount = self.relay.find(self.call)
        if mount is None:
            raise NotReachedError
        try:
            return await handler(self.call, mount)
        except NotReachedError:
            raise
        except Exception as error:
            return app.failure(error)
        finally:
            self.call.close()


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


def become_mount(request: MountRequest, reply: int) -> NoReturn:
    """Be the daemon of what *request* asks for: see `launch.become`."""
    launch.become(request, serve, reply)


async def serve(live: LiveMount, root: Path, path: Path, *, task_status: trio.TaskStatus[None]) -> None:
    """Serve the API on the socket *path* for the mount *live* of the store at *root* until cancelled."""
    await server.serve(listen(path), App(root, live), task_status=task_status)
