"""Routes that make a container of an image, and give it another name."""

from __future__ import annotations

import json
import os
import secrets
from typing import TYPE_CHECKING, Any

from layerfs.api.routes import Call, route
from layerfs.container import netavark, renaming, volumes
from layerfs.container.settings import described
from layerfs.container.versions import adapted
from layerfs.errors import BadRequest, NotFound
from layerfs.unixhttp.message import Response, json_response

if TYPE_CHECKING:
    from layerfs.store.model import Image

_NO_CONTENT = Response(204)


def create(call: Call) -> Response:
    """Make a container of the image that the body names; nothing of it runs yet.

    Atomic: it is there whole, or not at all.
    """
    body = call.request.json()
    reference = body.get("Image")
    if not isinstance(reference, str) or not reference:
        raise BadRequest("no image is named: give the member Image")
    image = _image(call, reference)
    if image.os != "linux":
        raise BadRequest(f"{reference} is an image for {image.os}, not for linux")
    name = call.query.get("name").removeprefix("/") or f"container-{secrets.token_hex(4)}"
    config, settings, warnings = described(
        image.config,
        adapted(body, call.request.version),
        default_network=default_network(),
        find=call.store.mount,
    )
    row = call.store.create_mount(name, image=image, options={"container": settings}, config=config)
    try:
        volumes.claim(call.store, row.id, settings["MountPoints"])
    except BaseException:
        call.store.remove_mount(row.id, volumes=True)
        raise
    return json_response({"Id": row.id, "Warnings": warnings}, 201)


def default_network() -> str:
    """Return the network of a container that names none: the host's where no bridge can be made."""
    try:
        netavark.check_possible(names=False)
    except NotFound:
        return "host"
    return "bridge" if os.geteuid() == 0 else "host"


def _image(call: Call, reference: str) -> Image:
    try:
        image = call.store.resolve(reference)
    except NotFound:
        # The docker client pulls an image if the answer to this is 404 and says so.
        raise NotFound(f"No such image: {reference}") from None
    if platform := call.query.get("platform"):
        _check_platform(image, reference, platform)
    return image


def _check_platform(image: Image, reference: str, text: str) -> None:
    """Raise `NotFound` if *image* is not for the platform *text*: "os/arch", or an object in JSON."""
    try:
        wanted: Any = json.loads(text) if text.startswith("{") else {}
    except ValueError:
        wanted = None
    if not isinstance(wanted, dict):
        raise BadRequest(f"invalid platform {text[:100]!r}")
    if not text.startswith("{"):
        words = text.split("/")
        wanted = {"os": words[0], "architecture": words[1]} if len(words) > 1 else {"os": words[0]}
    for member, has in (("os", image.os), ("architecture", image.architecture)):
        if wanted.get(member) not in (None, "", has):
            raise NotFound(
                f"image with reference {reference} was found but its platform "
                f"({image.os}/{image.architecture}) does not match the specified platform ({text})"
            )


def rename(call: Call) -> Response:
    """Give a container another name."""
    name = call.query.get("name").removeprefix("/")
    if not name:
        raise BadRequest("Neither old nor new names may be empty")
    renaming.rename(call.root, call.row(call.names["name"]), name)
    return _NO_CONTENT


ROUTES = (
    route("POST", "/containers/create", create),
    route("POST", "/containers/{name}/rename", rename),
)
