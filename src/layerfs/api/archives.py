"""Routes of `docker save` and `docker load`: images as archives, which come and go as streams."""

from __future__ import annotations

from layerfs.api.routes import Call, route
from layerfs.errors import BadRequest
from layerfs.unixhttp.message import Response


def save(call: Call) -> Response:
    """Refuse: an answer in one piece is none for an archive. A daemon streams it (`archive_streams`)."""
    raise BadRequest("an archive comes as a stream, from a mount's socket or from 'layerfs save'")


def load(call: Call) -> Response:
    """Refuse, likewise."""
    raise BadRequest("an archive goes as a stream, to a mount's socket or to 'layerfs load'")


ROUTES = (
    route("GET", "/images/get", save),
    route("GET", "/images/{name}/get", save),
    route("POST", "/images/load", load),
)
