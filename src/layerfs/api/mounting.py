"""The route that mounts, for the command line where an engine runs: its mounts begin sooner."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from layerfs.api.routes import Call, route
from layerfs.errors import BadRequest
from layerfs.mounting.request import MountRequest
from layerfs.unixhttp.message import Response, json_response

_KINDS: dict[str, tuple[type, ...]] = {
    "mountpoint": (str,),
    "lowers": (list,),
    "read_only": (bool,),
    "options": (dict,),
}
"""The types of members; others are texts, or null."""


def mount(call: Call) -> Response:
    """Mount what the body, members of `MountRequest`, asks for; return the name once the mount answers."""
    return json_response({"Name": call.place.launch(_request(call))}, 201)


def _request(call: Call) -> MountRequest:
    body: dict[str, Any] = call.request.json()
    known = {field.name for field in fields(MountRequest)} - {"root", "foreground", "recover"}
    for name, value in body.items():
        if name not in known:
            raise BadRequest(f"unknown member {name[:100]!r}: use {', '.join(sorted(known))}")
        if not isinstance(value, _KINDS.get(name, (str, type(None)))):
            raise BadRequest(f"invalid member {name}: it has the wrong type")
    if not all(isinstance(path, str) for path in body.get("lowers", ())):
        raise BadRequest("invalid member lowers: it must be a list of paths")
    if not all(isinstance(value, str | bool) for value in body.get("options", {}).values()):
        raise BadRequest("invalid member options: its values must be texts or booleans")
    if not isinstance(body.get("mountpoint"), str):
        raise BadRequest("give the member mountpoint: the directory to mount on")
    for path in (body["mountpoint"], *body.get("lowers", ()), body.get("upper"), body.get("work")):
        if path is not None and not path.startswith("/"):
            raise BadRequest(f"invalid path {path[:100]!r}: it must be absolute")
    return MountRequest(**{**body, "lowers": tuple(body.get("lowers", ())), "root": call.root})


ROUTES = (route("POST", "/layerfs/mounts", mount, waits=True),)
