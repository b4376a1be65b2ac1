"""Routes of `docker save` and `docker load`: archives of images, which come and go as streams."""

from __future__ import annotations

import json

from layerfs.api import child
from layerfs.api.progress import error_line
from layerfs.api.routes import Call, route
from layerfs.errors import BadRequest, LayerfsError
from layerfs.unixhttp.message import Answer, Response

_TAR = (("Content-Type", "application/x-tar"),)
_JSON = (("Content-Type", "application/json"),)


def save(call: Call) -> Answer:
    """Return the images that *call* names as one archive of `docker save`."""
    names = [call.names["name"]] if "name" in call.names else call.query.all("names")
    if not names:
        raise BadRequest("no images are named: give the parameter names")
    for name in names:
        call.store.resolve(name)
    return child.output(call.root, ["save", "--", *names], _TAR)


def load(call: Call) -> Answer:
    """Load the images of the archive that comes with *call*; answer as dockerd does, a JSON object a line.

    What goes wrong is the last line: docker-py raises `ImageLoadError` for that, and not for a status.
    """
    if call.request.upload is None:
        raise BadRequest("no archive came with the request: use 'layerfs load'")
    platform = call.query.get("platform")
    options = ["--platform", _platform(platform)] if platform else []
    try:
        said = child.fed(call.root, ["load", "--quiet", *options, "-"], call.request.upload)
    except LayerfsError as error:
        return Response(200, error_line(error), _JSON)
    lines = [json.dumps({"stream": line + "\n"}) + "\r\n" for line in said.splitlines()]
    return Response(200, "".join(lines).encode(), _JSON)


def _platform(text: str) -> str:
    """Return the platform that a client has written as an object of the OCI image spec."""
    try:
        fields = json.loads(text)
        parts = [fields["os"], fields["architecture"], fields.get("variant") or ""]
        return "/".join(part for part in parts if part)
    except (ValueError, TypeError, KeyError):
        raise BadRequest(f"invalid platform: {text}") from None


ROUTES = (
    route("GET", "/images/get", save),
    route("GET", "/images/{name}/get", save),
    route("POST", "/images/load", load, upload=True),
)
