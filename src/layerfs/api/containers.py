"""Routes about mounts, which Docker calls containers: list, inspect, commit, changes, stop, remove.

What only a running mount's own daemon can do is passed on to it; see `here` for that side. A mount
that is not running is worked on in the store, under its run lock, so that no daemon starts meanwhile.
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Any

from layerfs.api import networks, shapes, volumes
from layerfs.api.config import CommitRequest, commit_request
from layerfs.api.filters import label_matches, parse_filters
from layerfs.api.routes import Call, route
from layerfs.api.state import not_running, state_of
from layerfs.container import ending
from layerfs.errors import BadRequest, Conflict, NotFound, StoreBusy
from layerfs.host.mounttable import detach
from layerfs.host.record import directory, look
from layerfs.host.rundir import RunLock, log_path, running_pid
from layerfs.host.signals import signal_number
from layerfs.unixhttp.message import Response, json_response

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from layerfs.store import Store
    from layerfs.store.model import Image, Mount
    from layerfs.union.changes import Change

NOT_MODIFIED = Response(304)
NO_CONTENT = Response(204)
STORE_PATIENCE = 10.0
"""Seconds to wait for another process that writes to the store."""
DAEMON_PATIENCE = 10.0
"""Seconds to wait for a daemon that is about to end, or to answer."""


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
    mount = find_mount(call, call.names["name"])
    upper = call.store.layer(mount.upper) if mount.upper else None
    layers = call.store.layers_of(mount)
    found = shapes.container_inspect(mount, _image_of(call, mount), layers, upper)
    found["Mounts"] = _mounts(call, mount)
    found["NetworkSettings"] = networks.shown(call.store, mount)
    return json_response(found | _sizes(call, mount))


def _attached(call: Call, mount: Mount) -> dict[str, Any]:
    """Return what an item of a list says of the networks and volumes of a container."""
    if not mount.container:
        return {}
    return networks.summary(call.store, mount) | {"Mounts": _mounts(call, mount)}


def _mounts(call: Call, mount: Mount) -> list[dict[str, Any]]:
    return shapes.binds(mount) + volumes.shown(call.store, mount)


def _sizes(call: Call, mount: Mount) -> dict[str, int]:
    """Return the sizes of *mount*, if the call asks for them: of what was written, and of all together."""
    if not call.query.flag("size"):
        return {}
    written = call.store.layer_size(mount.upper) if mount.upper else 0
    below = sum(call.store.layer_size(layer) for layer in mount.layers)
    return {"SizeRw": written, "SizeRootFs": written + below}


def find_mount(call: Call, name: str) -> Mount:
    """Return the mount that *name* names, with or without Docker's leading slash, or an id or its start."""
    if not name.removeprefix("/"):
        raise BadRequest("give the name of a mount")
    return call.store.mount(name.removeprefix("/"))


def _image_of(call: Call, mount: Mount) -> Image | None:
    """Return the image that *mount* was made from, None when it has none or it is gone."""
    try:
        return call.store.resolve(shapes.digest(mount.image)) if mount.image else None
    except NotFound:
        return None


def forward(call: Call, mount: Mount, path: str, **query: str) -> Response | None:
    """Let the daemon of *mount* answer the call at *path*, its query's parameters replaced by *query*.

    Returns None when no daemon runs it. One that is just starting or ending is waited for.
    """
    from layerfs.client.client import NotListeningError, exchange

    pairs = [(name, value) for name, value in call.query.pairs if name not in query]
    deadline = time.monotonic() + DAEMON_PATIENCE
    while True:
        if running_pid(mount.name) is None:
            return None
        try:
            answer = exchange(
                mount.name, call.request.method, path, [*pairs, *query.items()], call.request.body
            )
            break
        except NotListeningError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.005)
    if answer.status == 404:
        raise Conflict(f"the running mount called {mount.name} belongs to another store than {call.root}")
    return answer


def ended(mount: Mount, answer: Response) -> Response:
    """Return *answer*, that of a daemon asked to unmount; when it has, wait until it has ended too.

    So whoever comes next finds the mount's name free. The daemon itself, which may have asked on
    behalf of a client, cannot wait for its own end. Raises `Conflict` when it does not end.
    """
    deadline = time.monotonic() + DAEMON_PATIENCE
    while answer.status < 300 and (pid := running_pid(mount.name)) not in (None, os.getpid()):
        if time.monotonic() > deadline:
            raise Conflict(
                f"{mount.name} is unmounted, but its daemon (process {pid}) has not ended after "
                f"{DAEMON_PATIENCE:g} seconds: see {log_path(mount.name)}"
            )
        time.sleep(0.005)
    return answer


def check_unused(mount: Mount) -> None:
    """Raise `Conflict` for the filesystem of a container that runs: it needs it."""
    record = look(mount.id)
    if record is not None and record.alive():
        raise Conflict(
            f"{mount.name} is the filesystem of a container that runs (process {record.pid}): "
            f"'layerfs stop {mount.name}' ends the container and unmounts it"
        )


def commit(call: Call) -> Response:
    """Make an image of what was written to a mount."""
    wanted = commit_request(call.request)
    mount = find_mount(call, call.query.get("container"))
    if answer := forward(call, mount, "/commit", container=mount.id):
        return answer
    call.store.check_commit(wanted.reference, wanted.changes)
    with RunLock(mount.name):
        mount = call.store.mount(mount.id)
        if mount.started is not None:
            raise not_running(mount)  # its daemon died: what is in its upper may be incomplete
        image = _commit_at_rest(call.store, mount, wanted)
    from layerfs.store import settle

    settle.start(call.root, image.layers[-1])
    return committed(image, mount.name, call.store.outside_upper(call.store.mount(mount.id)))


def _commit_at_rest(store: Store, mount: Mount, wanted: CommitRequest) -> Image:
    """Commit *mount*, which no daemon runs; another process that writes to the store is waited for."""
    upper = store.prepare_upper(mount)
    deadline = time.monotonic() + STORE_PATIENCE
    try:
        while True:
            try:
                return store.commit(
                    mount,
                    upper,
                    reference=wanted.reference,
                    comment=wanted.comment,
                    author=wanted.author,
                    changes=wanted.changes,
                )
            except StoreBusy:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
    except BaseException:
        store.abandon_upper(mount, upper)
        raise


def committed(image: Image, name: str, outside: Path | None) -> Response:
    """Return the answer to a commit of the mount called *name* that made *image*.

    An upper *outside* the store is empty then, which surprises: the member "Warnings" says so.
    """
    answer: dict[str, object] = {"Id": shapes.digest(image.id)}
    if outside is not None:
        answer["Warnings"] = [
            f"{outside} is empty now: what was written to it is in the image {image.id[:12]}. "
            f"The mount {name} still shows it; a new mount of {outside} does not"
        ]
    return json_response(answer, 201)


def changes(call: Call) -> Response:
    """Return what was written to a mount since its last commit."""
    mount = find_mount(call, call.names["name"])
    if answer := forward(call, mount, f"/containers/{mount.id}/changes"):
        return answer
    from layerfs.union.changes import changes as compare

    if mount.upper is None:
        return changed(())
    return changed(compare(call.store.stack_of(mount, upper=True)))


def changed(items: Iterable[Change]) -> Response:
    """Return the answer to a request for changes; like dockerd's, it is null where there are none."""
    return json_response([shapes.change(item) for item in items] or None)


def stop(call: Call) -> Response:
    """End a container's process, or unmount a mount, or take away what its dead daemon left.

    The process gets the signal that its image names, or SIGTERM, and SIGKILL after `t` seconds. With
    `force`, a mount is unmounted even while it is in use.
    """
    mount = find_mount(call, call.names["name"])
    if _is_container(mount):
        return _stop_container(call, mount)
    if answer := forward(call, mount, f"/containers/{mount.id}/stop"):
        return ended(mount, answer)
    with RunLock(mount.name) as lock:
        mount = call.store.mount(mount.id)
        if mount.started is None:
            return NOT_MODIFIED
        clear_away(call, mount, lock)
    return NO_CONTENT


def _is_container(mount: Mount) -> bool:
    """Return whether *mount* is a container that this process can clear away after, not being its daemon."""
    return bool(mount.container) and running_pid(mount.name) != os.getpid()


def _stop_container(call: Call, mount: Mount) -> Response:
    if not directory(mount.id).exists():
        return NOT_MODIFIED
    ending.end(mount, *how_to_end(call, mount))
    ending.clear_away(call.root, mount.id)
    return NO_CONTENT


def how_to_end(call: Call, mount: Mount) -> tuple[int, float | None]:
    """Return how the process of a container is to be stopped: the signal, and the patience in seconds."""
    text = call.query.get("t", "10")
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
    """Send a signal to the process of a container."""
    mount = find_mount(call, call.names["name"])
    if not ending.send(mount, signal_number(call.query.get("signal") or "KILL")):
        raise Conflict(f"{mount.name} is not running" if mount.container else f"{mount.name} is no container")
    return NO_CONTENT


def clear_away(call: Call, mount: Mount, lock: RunLock) -> None:
    """Do what the dead daemon of *mount* did not: unmount it, note that, and remove it if it is ephemeral.

    *lock* is the mount's.
    """
    if mount.mountpoint is not None:
        detach(mount.mountpoint, lock.device)
    if mount.ephemeral:
        call.store.remove_mount(mount.id)
        lock.forget()
    else:
        call.store.set_unmounted(mount.id)


def remove(call: Call) -> Response:
    """Remove a mount and its upper layer; with `force`, unmount it first."""
    mount = find_mount(call, call.names["name"])
    if _is_container(mount) and directory(mount.id).exists():
        _end_container(call, mount)
        try:
            mount = call.store.mount(mount.id)
        except NotFound:
            return NO_CONTENT  # it was to be removed at its end
    if answer := forward(call, mount, f"/containers/{mount.id}"):
        return ended(mount, answer)
    with RunLock(mount.name) as lock:
        mount = call.store.mount(mount.id)
        if mount.started is not None and mount.mountpoint is not None:
            detach(mount.mountpoint, lock.device)  # its daemon is dead
        call.store.remove_mount(mount.id, volumes=call.query.flag("v"))
        lock.forget()
    return NO_CONTENT


def _end_container(call: Call, mount: Mount) -> None:
    """End the process of a container that is to be removed, if that is forced, and clear away after it."""
    record = look(mount.id)
    if record is not None and record.alive() and not call.query.flag("force"):
        raise Conflict(f"cannot remove {mount.name}: it is running; stop it first, or force its removal")
    ending.end(mount)
    ending.clear_away(call.root, mount.id)


ROUTES = (
    route("GET", "/containers/json", list_containers),
    route("GET", "/containers/{name}/json", inspect_container),
    route("POST", "/commit", commit),
    route("GET", "/containers/{name}/changes", changes),
    route("POST", "/containers/{name}/stop", stop),
    route("POST", "/containers/{name}/kill", kill),
    route("DELETE", "/containers/{name}", remove),
)
