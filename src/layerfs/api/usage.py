"""Routes about what the store's bytes are for: `system/df`, and what Docker has no word for."""

from __future__ import annotations

from typing import Any

from layerfs.api import buildcache, volumes
from layerfs.api.routes import Call, route
from layerfs.api.shapes import container_summary, digest, image_summary
from layerfs.api.state import state_of
from layerfs.errors import BadRequest
from layerfs.store.model import Image, Mount
from layerfs.store.usage import Usage, stack_of
from layerfs.unixhttp.message import Response, json_response

_TYPES = frozenset({"container", "image", "volume", "build-cache"})


def disk_usage(call: Call) -> Response:
    """Return images and mounts with their sizes; a layer that several share is counted once in the sum.

    The parameter "type" picks some of the parts.
    """
    wanted = set(call.query.all("type")) or _TYPES
    if unknown := wanted - _TYPES:
        raise BadRequest(
            f"unknown object type {min(unknown)[:100]!r}: use one of {', '.join(sorted(_TYPES))}"
        )
    usage = call.store.usage()
    answer: dict[str, Any] = {}
    if "image" in wanted:
        layers = {layer for image in usage.images for layer in image.layers}
        answer["LayersSize"] = usage.owned_size(layers)
        answer["Images"] = [_image(usage, image) for image in usage.images]
    if "container" in wanted:
        images = {image.id: image for image in usage.images}
        answer["Containers"] = [
            _container(usage, mount, images.get(mount.image or "")) for mount in usage.mounts
        ]
    if "volume" in wanted:
        answer["Volumes"] = volumes.usage(call.store)
    if "build-cache" in wanted:
        answer["BuildCache"] = [
            buildcache.record(used) for used in (*usage.cache, *buildcache.mounts(call.root))
        ]
    return json_response(answer)


def _image(usage: Usage, image: Image) -> dict[str, Any]:
    summary = image_summary(
        image, size=usage.size(image.layers), containers=usage.mounts_of(image), named_none=False
    )
    return summary | {"SharedSize": usage.shared_size(image)}


def _container(usage: Usage, mount: Mount, image: Image | None) -> dict[str, Any]:
    written = usage.size([mount.upper] if mount.upper else [])
    sizes = {"SizeRw": written, "SizeRootFs": written + usage.size(mount.layers)}
    return container_summary(mount, image) | sizes


def detailed_usage(call: Call) -> Response:
    """Return the same and every layer with its users, and what pruning would free; sizes in bytes."""
    usage = call.store.usage()
    images = {image.id: image for image in usage.images}
    stopped = [mount.id for mount in usage.mounts if state_of(mount).pid is None]
    running = [mount for mount in usage.mounts if mount.id not in stopped]
    caches = buildcache.mounts(call.root)
    answer = {
        "Images": [_image(usage, image) for image in usage.images],
        "Containers": [_container(usage, mount, images.get(mount.image or "")) for mount in usage.mounts],
        "Layers": [
            {
                "Id": digest(layer_id),
                "State": used.layer.state,
                "Path": str(used.layer.path),
                "Created": int(used.layer.created.timestamp()),
                "Size": used.size,
                "Images": used.images,
                "Containers": used.mounts,
            }
            for layer_id, used in usage.layers.items()
        ],
        "BuildCache": [buildcache.record(used) for used in (*usage.cache, *caches)],
        "Summary": {
            "Images": {
                "Active": sum(usage.mounts_of(image) > 0 for image in usage.images),
                "Size": usage.owned_size({layer for image in usage.images for layer in image.layers}),
                "Reclaimable": usage.freed(images=True),
            },
            "Containers": {
                "Active": len(running),
                "Size": usage.owned_size(mount.upper for mount in usage.mounts if mount.upper),
                "Reclaimable": usage.freed(images=False, mounts=stopped),
            },
            "Layers": {
                "Active": len({layer for mount in running for layer in stack_of(mount)}),
                "Size": usage.owned_size(usage.layers),
                "Reclaimable": usage.freed(images=True, mounts=stopped),
            },
            "BuildCache": {
                "Active": sum(used.in_use for used in (*usage.cache, *caches)),
                "Size": usage.cache_size() + sum(used.size for used in caches),
                "Reclaimable": usage.cache_size(reclaimable=True)
                + sum(used.size for used in caches if not used.in_use),
            },
        },
    }
    return json_response(answer)


ROUTES = (
    route("GET", "/system/df", disk_usage),
    route("GET", "/layerfs/df", detailed_usage),
)
