"""Routes under `/layerfs/`: what Docker has no word for.

`name` says which mount is meant; a mount's own socket takes it to be that mount.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerfs.api.config import checkpoint_request
from layerfs.api.containers import NO_CONTENT
from layerfs.api.routes import Call, route
from layerfs.api.shapes import digest
from layerfs.container.ending import check_unused
from layerfs.errors import BadRequest
from layerfs.mounting.resting import not_running
from layerfs.unixhttp.message import Response, json_response

if TYPE_CHECKING:
    from layerfs.mounting.mount import LoopMount


def status(call: Call) -> Response:
    """Return figures about the daemon that runs a mount."""
    return json_response(call.mount(call.query.get("name")).status())


async def _status_in_loop(call: Call, mount: LoopMount) -> Response:
    """Do what `status` does, in a loop."""
    return json_response(await mount.status())


def unmount(call: Call) -> Response:
    """Unmount a mount, or take away what its dead daemon left; with `force`, even while it is in use.

    With `discard`, what was written need not be kept: the mount is about to be removed.
    """
    mount = call.mount(call.query.get("name"))
    check_unused(mount.mount_id, mount.name)
    if not mount.unmount(force=call.query.flag("force"), discard=call.query.flag("discard")):
        raise not_running(call.store.mount(mount.mount_id))
    return NO_CONTENT


def flush(call: Call) -> Response:
    """Bring what was written to a mount until now from the kernel's cache into its upper."""
    call.mount(call.query.get("name")).flush()
    return NO_CONTENT


async def _flush_in_loop(call: Call, mount: LoopMount) -> Response:
    """Do what `flush` does, in a loop."""
    await mount.flush()
    return NO_CONTENT


def checkpoint(call: Call) -> Response:
    """Seal what was written to a mount as the layer of a new step, without an image; return the step."""
    return _step(call.mount(call.query.get("name")).checkpoint(checkpoint_request(call.request)))


async def _checkpoint_in_loop(call: Call, mount: LoopMount) -> Response:
    """Do what `checkpoint` does, in a loop."""
    return _step(await mount.checkpoint(checkpoint_request(call.request)))


def _step(made: str) -> Response:
    return json_response({"Step": made}, 201)


def verify(call: Call) -> Response:
    """Compare an image's layers with their manifests; return every file that differs.

    A layer that may not be whole since the machine stopped is in the answer without a path.
    """
    reference = _reference(call)
    answer = [
        {
            "Layer": digest(found.layer),
            "Path": found.path.decode("utf-8", "backslashreplace"),
            "What": found.what,
        }
        for found in call.store.verify(reference)
    ]
    return json_response(answer)


def fsck(call: Call) -> Response:
    """Hold the store against itself; a POST repairs what can be. Return every problem, repaired or not."""
    problems = call.store.check(repair=call.request.method == "POST", contents=call.query.flag("contents"))
    return json_response(
        [
            {
                "Subject": problem.subject,
                "What": problem.what,
                "Remedy": problem.remedy,
                "Repaired": problem.repaired,
            }
            for problem in problems
        ]
    )


def accept(call: Call) -> Response:
    """Take an image's layers that may not be whole for whole, as they are now."""
    call.store.accept(_reference(call))
    return NO_CONTENT


def _reference(call: Call) -> str:
    reference = call.query.get("ref")
    if not reference:
        raise BadRequest("give the parameter ref: the image to verify")
    return reference


ROUTES = (
    route("GET", "/layerfs/status", status, in_loop=_status_in_loop),
    route("POST", "/layerfs/unmount", unmount),
    route("POST", "/layerfs/flush", flush, in_loop=_flush_in_loop),
    route("POST", "/layerfs/checkpoint", checkpoint, in_loop=_checkpoint_in_loop),
    route("GET", "/layerfs/verify", verify),
    route("GET", "/layerfs/fsck", fsck),
    route("POST", "/layerfs/fsck", fsck),
    route("POST", "/layerfs/verify", accept),
)
