"""The route of `docker export`: the whole tree of a mount, its cached writes included."""

from __future__ import annotations

from layerfs.api import child
from layerfs.api.routes import Call, route
from layerfs.unixhttp.message import Answer

_TAR = (("Content-Type", "application/x-tar"),)


def export(call: Call) -> Answer:
    """Return the merged tree of a mount as a tar archive."""
    return child.output(call.root, ["export", call.row(call.names["name"]).id], _TAR)


ROUTES = (route("GET", "/containers/{name}/export", export),)
