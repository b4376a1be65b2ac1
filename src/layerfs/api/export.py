"""Routes for taking the whole tree of a mount out of the store: its cached writes first, then the tree."""

from __future__ import annotations

from layerfs.api.containers import NO_CONTENT, find_mount, forward
from layerfs.api.routes import Call, route
from layerfs.errors import BadRequest
from layerfs.unixhttp.message import Response


def flush(call: Call) -> Response:
    """Bring what was written to a mount until now from the kernel's cache into its upper."""
    mount = find_mount(call, call.query.get("name"))
    return forward(call, mount, "/layerfs/flush", name=mount.id) or NO_CONTENT


def export(call: Call) -> Response:
    """Refuse: an answer in one piece is none for a whole tree. A daemon streams it (`export_stream`)."""
    find_mount(call, call.names["name"])
    raise BadRequest("a tree comes as a stream, from a mount's socket or from 'layerfs export'")


ROUTES = (
    route("GET", "/containers/{name}/export", export),
    route("POST", "/layerfs/flush", flush),
)
