"""What a route is: a method, a path with names in it, and the function that answers."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.errors import BadRequest
from layerfs.unixhttp.message import Answer, Query, Request

if TYPE_CHECKING:
    from layerfs.mounting.mount import LoopMount, Mount
    from layerfs.mounting.request import MountRequest
    from layerfs.mounting.served import LiveMount
    from layerfs.store import Store
    from layerfs.store.model import Mount as Row


def launch_here(request: MountRequest) -> str:
    """Mount what *request* asks for by a fork of this process, which has no threads; return the mount's name.

    What that needs is imported only now: few commands mount.
    """
    from layerfs.api.server import start_mount

    return start_mount(request)


@dataclass(frozen=True, slots=True)
class Place:
    """Where requests are answered."""

    root: Path
    """The root of the store."""
    launch: Callable[[MountRequest], str]
    """Mounts, and returns the name of the mount: see `layerfs.mounting.launch.start`."""
    live: LiveMount | None = None
    """The mount that this process serves."""
    alone: bool = False
    """Whether this process exists for the one request: what takes long is done here, not by a child."""


def means(live: LiveMount, name: str) -> bool:
    """Return whether *name* says the mount *live* to the process that serves it; no name does, too."""
    return name.removeprefix("/") in ("", live.name, live.mount_id)


@dataclass
class Call:
    """One request on its way through its route; `store` belongs to the thread that uses it first."""

    place: Place
    request: Request
    names: Mapping[str, str] = field(default_factory=dict)
    """What the path has for the names in the route's."""

    @property
    def root(self) -> Path:
        """The root of the store."""
        return self.place.root

    @property
    def query(self) -> Query:
        """The query of the request."""
        return self.request.query

    @cached_property
    def store(self) -> Store:
        """The store, opened at first use; raises `LayerfsError` when it cannot be."""
        from layerfs.store import Store

        return Store(self.root, create=False)

    def row(self, name: str) -> Row:
        """Return the row of the mount called *name*, or `/NAME`, or whose id begins so."""
        if not name.removeprefix("/"):
            raise BadRequest("give the name of a mount")
        return self.store.mount(name.removeprefix("/"))

    def mount(self, name: str) -> Mount:
        """Return the mount that *name* names; no name is the mount that this process serves.

        That one is found without a look at the store: the loop which serves it waits for nothing.
        """
        live = self.place.live
        if live is not None and means(live, name):
            return self._served(live)
        return self.mount_of(self.row(name))

    def mount_of(self, row: Row) -> Mount:
        """Return the mount *row*."""
        from layerfs.mounting.find import mount_of

        live = self.place.live
        return self._served(live) if live and live.mount_id == row.id else mount_of(self.store, row)

    def serves(self, row: Row) -> bool:
        """Return whether this process serves the mount *row*, so that it cannot wait for its end."""
        return self.place.live is not None and self.place.live.mount_id == row.id

    @staticmethod
    def _served(live: LiveMount) -> Mount:
        from layerfs.mounting.served import Served

        return Served(live)

    def close(self) -> None:
        """Close the store if it was opened; the next use, perhaps in another thread, opens it again."""
        if "store" in self.__dict__:
            self.store.close()
            del self.store


Handler = Callable[[Call], Answer]
LoopHandler = Callable[[Call, "LoopMount"], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Route:
    """Requests with *method* whose path matches *pattern* are answered by *handler*."""

    method: str
    pattern: re.Pattern[str]
    handler: Handler
    in_loop: LoopHandler | None = None
    """Answers instead, in the loop of a server, about a mount that this loop serves or whose daemon it can
    ask: the way to a thread and back takes a tenth of a commit. It waits by `await` alone."""
    upload: bool = False
    """Whether *handler* reads the body itself, piece by piece."""
    waits: bool = False
    """Whether *handler* may wait for as long as a container runs."""
    frees: bool = False
    """Whether *handler* leads to more room: on a full disk it is called again, with what is kept for it."""


def route(
    method: str,
    path: str,
    handler: Handler,
    *,
    in_loop: LoopHandler | None = None,
    upload: bool = False,
    waits: bool = False,
    frees: bool = False,
) -> Route:
    """Return a route; `{name}` in *path* stands for one or more characters, slashes among them.

    What removes something (DELETE) leads to more room.
    """
    pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(path))
    return Route(method, re.compile(pattern), handler, in_loop, upload, waits, frees or method == "DELETE")
