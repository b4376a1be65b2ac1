"""The answer to `GET /containers/{name}/export`: the merged tree of a mount, as it is read."""

from __future__ import annotations

import trio

from layerfs.api import child
from layerfs.api.containers import find_mount
from layerfs.api.routes import Call
from layerfs.unixhttp.message import Response, Stream

_HEADERS = (("Content-Type", "application/x-tar"),)


async def stream(call: Call) -> Response | Stream:
    """Return the merged tree of a mount as a tar archive."""
    mount_id = await trio.to_thread.run_sync(_mount_id, call)
    return await child.output(call.root, ["export", mount_id], _HEADERS)


def _mount_id(call: Call) -> str:
    with call.of_this_thread() as own:
        return find_mount(own, own.names["name"]).id
