"""The answers to `docker save` and `docker load`: archives of images, as they come and go."""

from __future__ import annotations

import json

import trio

from layerfs.api import child
from layerfs.api.routes import Call
from layerfs.errors import BadRequest
from layerfs.unixhttp.message import Response, Stream

_TAR = (("Content-Type", "application/x-tar"),)
_JSON = (("Content-Type", "application/json"),)


async def save(call: Call) -> Response | Stream:
    """Return the images that *call* names as one archive of `docker save`."""
    names = [call.names["name"]] if "name" in call.names else call.query.all("names")
    if not names:
        raise BadRequest("no images are named: give the parameter names")
    await trio.to_thread.run_sync(_check, call, names)
    return await child.output(call.root, ["save", "--", *names], _TAR)


def _check(call: Call, names: list[str]) -> None:
    """Raise `NotFound` for names that are no images'."""
    with call.of_this_thread() as own:
        for name in names:
            own.store.resolve(name)


async def load(call: Call) -> Response:
    """Load the images of the archive that comes with *call*; answer as dockerd does, a JSON object a line."""
    if call.request.upload is None:
        raise BadRequest("no archive came with the request")
    platform = call.query.get("platform")
    options = ["--platform", _platform(platform)] if platform else []
    said = await child.fed(call.root, ["load", "--quiet", *options, "-"], call.request.upload)
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
