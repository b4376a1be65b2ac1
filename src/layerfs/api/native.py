"""Routes under `/layerfs/`: what Docker has no word for.

`name` says which mount is meant; a mount's own socket takes it to be that mount.
"""

from __future__ import annotations

from layerfs.api.config import checkpoint_request
from layerfs.api.containers import NO_CONTENT
from layerfs.api.routes import Call, route
from layerfs.api.shapes import digest
from layerfs.container.ending import check_unused
from layerfs.errors import BadRequest
from layerfs.mounting.resting import not_running
from layerfs.unixhttp.message import Response, json_response


def status(call: Call) -> Response:
    """Return figures about the daemon that runs a mount."""
    return json_response(call.mount(call.query.get("name")).status())


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


def checkpoint(call: Call) -> Response:
    """Seal what was written to a mount as the layer of a new step, without an image; return the step."""
    wanted = checkpoint_request(call.request)
    return json_response({"Step": call.mount(call.query.get("name")).checkpoint(wanted)}, 201)


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
    route("GET", "/layerfs/status", status),
    route("POST", "/layerfs/unmount", unmount),
    route("POST", "/layerfs/flush", flush),
    route("POST", "/layerfs/checkpoint", checkpoint),
    route("GET", "/layerfs/verify", verify),
    route("GET", "/layerfs/fsck", fsck),
    route("POST", "/layerfs/fsck", fsck),
    route("POST", "/layerfs/verify", accept),
)
