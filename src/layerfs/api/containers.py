"""Routes about mounts, which Docker calls containers: list, inspect, commit, changes, stop, remove."""

from __future__ import annotations

import re
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from layerfs.api import networkshapes, shapes, volumes
from layerfs.api.config import commit_request
from layerfs.api.filters import label_matches, parse_filters
from layerfs.api.routes import Call, route
from layerfs.api.state import state_of
from layerfs.container import ending, hostfiles, rewiring
from layerfs.errors import BadRequest, Conflict, NotFound
from layerfs.host.record import directory, look, settled
from layerfs.host.signals import signal_number
from layerfs.unixhttp.message import Response, json_response

if TYPE_CHECKING:
    from layerfs.mounting.mount import Committed, LoopMount
    from layerfs.store.model import Image, Mount

_PATIENCE = 10
"""Seconds until a container that does not end is killed, if neither it nor the client says anything else."""
NOT_MODIFIED = Response(304)
NO_CONTENT = Response(204)


def list_containers(call: Call) -> Response:
    """Return the mounts, newest first: those that run, or every one if `all` is given."""
    filters = parse_filters(call.query.get("filters"), ("ancestor", "id", "label", "name", "status"))
    limit = _limit(call)
    every = call.query.flag("all") or limit > 0 or "status" in filters
    ancestors = {call.store.resolve(name).id for name in filters.get("ancestor", ())}
    images = {image.id: image for image in call.store.images()}
    shown = []
    for mount in sorted(call.store.mounts(), key=lambda mount: mount.created, reverse=True):
        image = images.get(mount.image or "")
        state = state_of(mount)
        if (
            (every or state.pid is not None)
            and ("status" not in filters or state.state in filters["status"])
            and ("ancestor" not in filters or mount.image in ancestors)
            and ("id" not in filters or any(mount.id.startswith(text) for text in filters["id"]))
            and ("name" not in filters or any(text.lstrip("/") in mount.name for text in filters["name"]))
            and label_matches(filters, shapes.labels(mount))
        ):
            shown.append(
                shapes.container_summary(mount, image) | _attached(call, mount) | _sizes(call, mount)
            )
    return json_response(shown[: limit or None])


def _limit(call: Call) -> int:
    """Return the parameter "limit", 0 for none: docker-py sends -1."""
    text = call.query.get("limit", "0")
    try:
        return max(int(text), 0)
    except ValueError:
        raise BadRequest(f"invalid limit {text[:100]!r}: must be a number") from None


def inspect_container(call: Call) -> Response:
    """Return everything about one mount."""
    mount = call.row(call.names["name"])
    upper = call.store.layer(mount.upper) if mount.upper else None
    layers = call.store.layers_of(mount)
    found = shapes.container_inspect(mount, _image_of(call, mount), layers, upper)
    found["Mounts"] = volumes.shown(call.store, mount)
    found["NetworkSettings"] = networkshapes.shown(call.store, mount)
    return json_response(found | _sizes(call, mount))


def _attached(call: Call, mount: Mount) -> dict[str, Any]:
    """Return what an item of a list says of the networks and volumes of a container."""
    if not mount.container:
        return {}
    return networkshapes.summary(call.store, mount) | {"Mounts": volumes.shown(call.store, mount)}


def _sizes(call: Call, mount: Mount) -> dict[str, int]:
    """Return the sizes of *mount*, if the call asks for them: of what was written, and of all together."""
    if not call.query.flag("size"):
        return {}
    written = call.store.layer_size(mount.upper) if mount.upper else 0
    below = sum(call.store.layer_size(layer) for layer in mount.layers)
    return {"SizeRw": written, "SizeRootFs": written + below}


def _image_of(call: Call, mount: Mount) -> Image | None:
    """Return the image that *mount* was made from, None when it has none or it is gone."""
    try:
        return call.store.resolve(shapes.digest(mount.image)) if mount.image else None
    except NotFound:
        return None


def commit(call: Call) -> Response:
    """Make an image of what was written to a mount.

    An upper outside the store is empty then, which surprises: the member "Warnings" says so.
    """
    return _committed(call.mount(call.query.get("container")).commit(commit_request(call.request)))


async def _commit_in_loop(call: Call, mount: LoopMount) -> Response:
    """Do what `commit` does, in a loop."""
    return _committed(await mount.commit(commit_request(call.request)))


def _committed(made: Committed) -> Response:
    answer: dict[str, object] = {"Id": shapes.digest(made.image)}
    if made.warnings:
        answer["Warnings"] = list(made.warnings)
    return json_response(answer, 201)


def changes(call: Call) -> Response:
    """Return what was written to a mount since its last commit; like dockerd's answer, null for nothing."""
    found = call.mount(call.names["name"]).changes()
    if call.row(call.names["name"]).container:
        found = hostfiles.without_places(found)
    return json_response([shapes.change(item) for item in found] or None)


def stop(call: Call) -> Response:
    """End a container's process, or unmount a mount, or take away what its dead daemon left.

    The process gets the signal that its image names, or SIGTERM, and SIGKILL after `t` seconds. With
    `force`, a mount is unmounted even while it is in use.
    """
    row = call.row(call.names["name"])
    if not row.container or (call.serves(row) and look(row.id) is None):
        return NO_CONTENT if call.mount_of(row).unmount(force=call.query.flag("force")) else NOT_MODIFIED
    was_restarting = row.container.get("Restarting")
    call.store.update_container(row.id, None, Stopped=True, Restarting=False)
    if not directory(row.id).exists():
        return NO_CONTENT if was_restarting else NOT_MODIFIED
    ending.end(row, *how_to_end(call, row))
    clear_away(call, row)
    with suppress(NotFound):  # it may have been removed at its end
        call.store.update_container(row.id, "stop")
    return NO_CONTENT


def clear_away(call: Call, row: Mount) -> None:
    """Clear away after the container *row*, whose process has ended."""
    if call.serves(row):
        # Its supervisor does the rest: this process cannot wait for its own end.
        with suppress(Conflict):
            call.mount_of(row).unmount(force=True)
    else:
        from layerfs.container import lifecycle  # which a list of containers can do without

        lifecycle.finish(call.root, row.id)


def how_to_end(call: Call, mount: Mount) -> tuple[int, float | None]:
    """Return how the process of a container is to be stopped: the signal, and the patience in seconds."""
    own = mount.config.get("StopTimeout")
    text = call.query.get("t") or str(_PATIENCE if own is None else own)
    if not re.fullmatch(r"-?\d{1,9}", text, re.ASCII):
        raise BadRequest(f"invalid time {text[:100]!r}: must be a number of seconds")
    given = call.query.get("signal")
    number = signal_number(given) if given else _stop_signal(mount)
    return number, float(text) if int(text) >= 0 else None


def _stop_signal(mount: Mount) -> int:
    """Return the signal that the configuration of *mount* names, SIGTERM if it names none, or none at all."""
    try:
        return signal_number(mount.config.get("StopSignal") or "TERM")
    except (BadRequest, AttributeError):  # in a store that an earlier layerfs wrote
        return signal_number("TERM")


def kill(call: Call) -> Response:
    """Send a signal to the process of a container, and wait for its end if that is SIGKILL."""
    mount = call.row(call.names["name"])
    number = signal_number(call.query.get("signal") or "KILL")
    if mount.container and number in (signal.SIGKILL, _stop_signal(mount)):
        call.store.update_container(mount.id, None, Stopped=True, Restarting=False)
    if not ending.send(mount, number):
        raise Conflict(f"{mount.name} is not running" if mount.container else f"{mount.name} is no container")
    if number == signal.SIGKILL:
        ending.end(mount)  # as dockerd: whoever looks after the answer finds that it has ended
        clear_away(call, mount)
    return NO_CONTENT


def remove(call: Call) -> Response:
    """Remove a mount and its upper layer; with `force`, end the container in it and unmount it first.

    With `v`, the container's volumes that nobody named go too. With `link`, the name is "CONTAINER/ALIAS"
    and nothing but that link of the container goes.
    """
    if call.query.flag("link"):
        return _remove_link(call)
    row = call.row(call.names["name"])
    if not call.query.flag("force"):
        _check_has_ended(row)
    if row.container and directory(row.id).exists():
        if call.serves(row):
            call.store.update_container(row.id, "kill", Removing={"Volumes": call.query.flag("v")})
        ending.end(row)
        clear_away(call, row)
        try:
            row = call.store.mount(row.id)
        except NotFound:
            return NO_CONTENT  # it was to be removed at its end
        if call.serves(row):
            return NO_CONTENT  # who clears away removes it
    if not call.query.flag("force"):
        _check_has_ended(row)  # it may be one that ended just now, and that its policy starts again
    call.mount_of(row).remove(force=call.query.flag("force"), volumes=call.query.flag("v"))
    return NO_CONTENT


def _check_has_ended(row: Mount) -> None:
    """Raise `Conflict` for a container that runs, or that its restart policy is about to start again."""
    record = settled(row.id) if row.container else None
    runs = record is not None and record.alive()
    if not runs and not row.container.get("Restarting"):
        return
    state = "running" if runs else "restarting"
    why = (
        "container is paused and must be unpaused first"
        if runs and state_of(row).state == "paused"
        else f"container is {state}: stop the container before removing or force remove"
    )
    raise Conflict(f'cannot remove container "{row.name}": {why}')


def _remove_link(call: Call) -> Response:
    """Remove the link that the path names, "CONTAINER/ALIAS", from the container that has it."""
    parent, _, alias = call.names["name"].removeprefix("/").rpartition("/")
    if not parent:
        raise BadRequest("Conflict, cannot remove the default link name of the container")
    rewiring.remove_link(call.root, call.row(parent), alias)
    return NO_CONTENT


ROUTES = (
    route("GET", "/containers/json", list_containers),
    route("GET", "/containers/{name}/json", inspect_container),
    route("POST", "/commit", commit, in_loop=_commit_in_loop),
    route("GET", "/containers/{name}/changes", changes),
    route("POST", "/containers/{name}/stop", stop, frees=True),
    route("POST", "/containers/{name}/kill", kill, frees=True),
    route("DELETE", "/containers/{name}", remove),
)
