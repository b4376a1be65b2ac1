"""Every route, how a request finds its own, and how it is answered: in place, or by a server's threads."""

from __future__ import annotations

import importlib
import os
import re
from typing import TYPE_CHECKING

from layerfs.api.routes import Call, Place, Route
from layerfs.errors import BadRequest, LayerfsError, NotFound, OtherStore, from_os_error
from layerfs.unixhttp.message import (
    API_VERSION,
    MIN_API_VERSION,
    Answer,
    Request,
    Stream,
    error_response,
    quoted_root,
)

if TYPE_CHECKING:
    from collections.abc import Generator

MODULES = {
    "_ping": ("system",),
    "auth": ("registries",),
    "build": ("build", "buildcache"),
    "commit": ("containers",),
    "containers": (
        "containers", "create", "running", "watching", "attaching", "execs", "copying", "export", "prune"
    ),
    "distribution": ("registries",),
    "events": ("events",),
    "exec": ("execs",),
    "images": ("images", "archives", "registries", "prune"),
    "info": ("system",),
    "layerfs": ("native", "timetravel", "past", "mounting", "running", "usage", "prune", "execs", "remotes"),
    "networks": ("networks",),
    "system": ("usage",),
    "version": ("system",),
    **dict.fromkeys(("configs", "grpc", "nodes", "plugins", "secrets", "services", "session"), ("absent",)),
    "swarm": ("absent",),
    "tasks": ("absent",),
    "volumes": ("volumes",),
}  # fmt: skip
"""What a path begins with, and the modules that have the routes of such paths, the most asked for first.

They are imported when they are needed: a command that answers itself has no time for the others.
"""
_VERSIONED = re.compile(r"/v(\d{1,4})\.(\d{1,4})(/.*)", re.ASCII)


def find(place: Place, request: Request) -> tuple[Route, Call]:
    """Return the route of *request*, and the call to give to its handler.

    Raises `BadRequest` for API versions that are not answered, `NotFound` where there is no route, for
    the method too, as dockerd does.
    """
    _check_store(place, request)
    if match := _VERSIONED.fullmatch(request.path):
        version = int(match[1]), int(match[2])
        if version < MIN_API_VERSION:
            raise BadRequest(
                "client version {}.{} is too old. Minimum supported API version is {}.{}, please upgrade "
                "your client to a newer version".format(*version, *MIN_API_VERSION)
            )
        if version > API_VERSION:
            raise BadRequest(
                "client version {}.{} is too new. Maximum supported API version is {}.{}".format(
                    *version, *API_VERSION
                )
            )
        request = request._replace(path=match[3], version=version)
    for module in MODULES.get(request.path.removeprefix("/").partition("/")[0], ()):
        for route in _routes(module):
            if route.method == request.method and (names := route.pattern.fullmatch(request.path)):
                return route, Call(place, request, names.groupdict())
    raise NotFound("page not found")


def _routes(module: str) -> tuple[Route, ...]:
    routes: tuple[Route, ...] = importlib.import_module(f"layerfs.api.{module}").ROUTES
    return routes


def load() -> None:
    """Import every route: what serves a filesystem must not look for files of its own in it later."""
    for modules in MODULES.values():
        for module in modules:
            _routes(module)


def _check_store(place: Place, request: Request) -> None:
    """Raise `OtherStore` if *request* is for another store, or from another mount namespace."""
    root, namespace = (request.headers.get(name) for name in ("layerfs-root", "layerfs-namespace"))
    if root is not None and root != quoted_root(place.root):
        raise OtherStore(f"this engine serves {place.root}")
    if namespace is not None and namespace != os.readlink("/proc/self/ns/mnt"):
        raise OtherStore("this engine is in another mount namespace")


def run(route: Route, call: Call) -> Answer:
    """Return the answer of *route* to *call*, an error as the answer that tells of it; never raises."""
    answer: Answer | None = None
    try:
        answer = _with_reserve(route, call) if route.frees else route.handler(call)
    except Exception as error:
        answer = failure(error)
    finally:
        call.close()  # a stream may go on in another thread
    return answer._replace(chunks=_closing(answer, call)) if isinstance(answer, Stream) else answer


def _with_reserve(route: Route, call: Call) -> Answer:
    from layerfs.store.reserve import with_reserve

    return with_reserve(call.root, lambda: route.handler(call))


def _closing(answer: Stream, call: Call) -> Generator[bytes, None, None]:
    """Yield the pieces of *answer*, and close the store of *call* after them."""
    try:
        yield from answer.chunks
    finally:
        answer.chunks.close()
        call.close()


def failure(error: Exception) -> Answer:
    """Return the answer that tells of *error*; one that is nobody's fault but ours goes to the log."""
    if isinstance(error, OSError):
        error = from_os_error(error, "answer the request")
    if isinstance(error, UnicodeEncodeError):  # of a query, for what is no name of a file
        error = BadRequest(
            "the request has a name that is not UTF-8, and names nothing that can be called so"
        )
    if isinstance(error, LayerfsError):
        return error_response(error.http_status, str(error))
    import logging

    logging.getLogger(__name__).error("a request failed", exc_info=error)
    return error_response(500, f"internal error: {type(error).__name__}: {error}")


def answer(place: Place, request: Request) -> Answer:
    """Answer *request* in this thread; never raises."""
    try:
        return run(*find(place, request))
    except LayerfsError as error:
        return failure(error)
