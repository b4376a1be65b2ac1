"""Every route, how a request finds its own, and how one that needs no running mount is answered.

Nothing here needs an event loop: the daemon answers in a thread, the command line in place.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from layerfs.api import (
    archives,
    containers,
    events,
    export,
    images,
    native,
    networks,
    prune,
    system,
    usage,
    volumes,
)
from layerfs.api.routes import Call, Route
from layerfs.errors import BadRequest, LayerfsError, NotFound, from_os_error
from layerfs.unixhttp.message import (
    API_VERSION,
    MIN_API_VERSION,
    Request,
    Response,
    error_response,
)

ROUTES = (
    *system.ROUTES,
    *usage.ROUTES,
    *prune.ROUTES,
    *archives.ROUTES,
    *images.ROUTES,
    *containers.ROUTES,
    *export.ROUTES,
    *events.ROUTES,
    *native.ROUTES,
    *networks.ROUTES,
    *volumes.ROUTES,
)
_VERSIONED = re.compile(r"/v(\d{1,4})\.(\d{1,4})(/.*)", re.ASCII)


def find(root: Path, request: Request) -> tuple[Route, Call]:
    """Return the route of *request*, and the call to give to its handler.

    Raises `BadRequest` for API versions that are not answered, `NotFound` where there is no route, for
    the method too, as dockerd does.
    """
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
        request = replace(request, path=match[3], version=version)
    for route in ROUTES:
        if route.method == request.method and (names := route.pattern.fullmatch(request.path)):
            return route, Call(root, request, names.groupdict())
    raise NotFound("page not found")


def run(route: Route, call: Call) -> Response:
    """Return the answer of *route* to *call*, an error as the answer that tells of it."""
    try:
        return route.handler(call)
    except Exception as error:
        return failure(error)
    finally:
        call.close()


def failure(error: Exception) -> Response:
    """Return the answer that tells of *error*; one that is nobody's fault but ours goes to the log."""
    if isinstance(error, OSError):
        error = from_os_error(error, "answer the request")
    if isinstance(error, LayerfsError):
        return error_response(error.http_status, str(error))
    import logging

    logging.getLogger(__name__).error("a request failed", exc_info=error)
    return error_response(500, f"internal error: {type(error).__name__}: {error}")


def answer(root: Path, request: Request) -> Response:
    """Answer *request* about the store at *root* from a process that serves no mount; never raises."""
    try:
        return run(*find(root, request))
    except LayerfsError as error:
        return failure(error)
