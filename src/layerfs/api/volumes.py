"""Routes about volumes: list, inspect, create, remove, prune."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from layerfs.api.filters import boolean_filter, label_matches, parse_filters
from layerfs.api.networks import like
from layerfs.api.routes import Call, route
from layerfs.api.times import timestamp
from layerfs.container.members import Members, one_line
from layerfs.container.stored import shown_points
from layerfs.errors import BadRequest, LayerfsError, NotFound
from layerfs.store.volumes import check_options
from layerfs.unixhttp.message import Response, error_response, json_response

if TYPE_CHECKING:
    from layerfs.store import Store
    from layerfs.store.model import Mount, Volume

_NO_SWARM = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this '
)


def list_volumes(call: Call) -> Response:
    """Return the volumes, by name."""
    filters = parse_filters(call.query.get("filters"), ("dangling", "driver", "label", "name"))
    dangling = boolean_filter(filters, "dangling")
    used = {use.volume for use in call.store.volumes.uses()}
    found = [
        volume
        for volume in call.store.volumes.every()
        if (dangling is None or dangling is (volume.name not in used))
        and ("driver" not in filters or "local" in filters["driver"])
        and ("name" not in filters or any(like(text, volume.name) for text in filters["name"]))
        and label_matches(filters, volume.labels)
    ]
    return json_response({"Volumes": [_shape(volume) for volume in found], "Warnings": None})


def inspect_volume(call: Call) -> Response:
    """Return everything about one volume."""
    return json_response(_shape(call.store.volumes.find(call.names["name"])))


def create_volume(call: Call) -> Response:
    """Make a volume, or return the one of that name that is there."""
    body = Members(call.request.json())
    with one_line():
        name, driver = body.text("Name"), body.text("Driver")
        options, labels = body.pairs("DriverOpts") or {}, body.pairs("Labels") or {}
        cluster = body.member("ClusterVolumeSpec")
    if cluster is not None:
        return error_response(503, f"{_NO_SWARM}node to swarm and try again.")
    if driver not in ("", "local", "default"):
        raise NotFound(
            f"create {name[:80]}: error looking up volume plugin {driver[:80]}: "
            f'plugin "{driver[:80]}" not found'
        )
    try:
        check_options(options)
    except LayerfsError as error:
        raise BadRequest(f"create {name[:80]}: {error}") from None
    return json_response(_shape(call.store.volumes.create(name, labels=labels, options=options)), 201)


def update_volume(call: Call) -> Response:
    """Refuse what only volumes of a cluster know, in dockerd's words."""
    text = "volume update only valid for cluster volumes, but swarm is unavailable"
    return error_response(503, text)


def remove_volume(call: Call) -> Response:
    """Remove a volume that no container has, with its data; with `force`, one that is gone already too."""
    name = call.names["name"]
    try:
        call.store.volumes.remove(name)
    except NotFound:
        if not call.query.flag("force"):
            raise
    return Response(204)


def prune_volumes(call: Call) -> Response:
    """Remove the volumes that no container has: those without a name, with the filter `all` every one."""
    filters = parse_filters(call.query.get("filters"), ("all", "label", "label!"))
    every = boolean_filter(filters, "all") is True or call.request.version < (1, 42)
    gone, freed = call.store.volumes.prune(
        lambda volume: (every or volume.anonymous) and label_matches(filters, volume.labels)
    )
    return json_response({"VolumesDeleted": [volume.name for volume in gone], "SpaceReclaimed": freed})


def _shape(volume: Volume) -> dict[str, Any]:
    return {
        "CreatedAt": timestamp(volume.created)[:19] + "Z",
        "Driver": "local",
        "Labels": volume.labels or None,
        "Mountpoint": str(volume.path),
        "Name": volume.name,
        "Options": volume.options or None,
        "Scope": "local",
    }


def usage(store: Store) -> list[dict[str, Any]]:
    """Return the member `Volumes` of the answer about the disk's use: each with its size and its users."""
    users = Counter(use.volume for use in store.volumes.uses())
    return [
        _shape(volume) | {"UsageData": {"RefCount": users[volume.name], "Size": store.volumes.size(volume)}}
        for volume in store.volumes.every()
    ]


def shown(store: Store, mount: Mount) -> list[dict[str, Any]]:
    """Return the member `Mounts` of a container, with the directories of its volumes."""
    names = {use.destination: use.volume for use in store.volumes.uses(mount=mount.id)}
    shown = []
    for point in shown_points(mount):
        if point["Type"] == "volume" and (name := names.get(point["Destination"])):
            point |= {"Name": name, "Source": str(store.volumes.find(name).path)}
        shown.append(point)
    return shown


ROUTES = (
    route("GET", "/volumes", list_volumes),
    route("POST", "/volumes/create", create_volume),
    route("POST", "/volumes/prune", prune_volumes, frees=True),
    route("GET", "/volumes/{name}", inspect_volume),
    route("PUT", "/volumes/{name}", update_volume),
    route("DELETE", "/volumes/{name}", remove_volume),
)
