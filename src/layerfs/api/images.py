"""Routes about images: list, inspect, history, tag, remove."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from layerfs.api.config import joined_reference
from layerfs.api.filters import (
    Filters,
    boolean_filter,
    label_matches,
    parse_filters,
    reference_matches,
)
from layerfs.api.routes import Call, route
from layerfs.api.shapes import counts, history_item, image_inspect, image_summary, removal
from layerfs.errors import BadRequest
from layerfs.store import imageconfig
from layerfs.unixhttp.message import Response, json_response

if TYPE_CHECKING:
    from layerfs.store.model import Image


def list_images(call: Call) -> Response:
    """Return the images, newest first; untagged ones that others build upon only if `all` is given."""
    filters = parse_filters(call.query.get("filters"), ("before", "dangling", "label", "reference", "since"))
    images = call.store.images()
    parents = {image.parent for image in images}
    every = call.query.flag("all")
    shown = [it for it in images if it.tags or it.digests or every or it.id not in parents]
    shown = [image for image in shown if _matches(image, filters)]
    for name in filters.get("before", ()):
        limit = call.store.resolve(name).created
        shown = [image for image in shown if image.created < limit]
    for name in filters.get("since", ()):
        limit = call.store.resolve(name).created
        shown = [image for image in shown if image.created > limit]
    used = counts(mount.image for mount in call.store.mounts())
    sizes = _shared_sizes(call, images) if call.query.flag("shared-size") else {}
    answer = [
        image_summary(
            _with_wanted_names(image, filters),
            size=call.store.image_size(image),
            containers=used.get(image.id, 0) if call.request.version >= (1, 51) else -1,
            named_none=call.request.version < (1, 43),
        )
        | {"SharedSize": sizes.get(image.id, -1)}
        for image in shown
    ]
    return json_response(answer)


def _shared_sizes(call: Call, images: list[Image]) -> dict[str, int]:
    """Return for each of *images* the bytes of those of its layers that others of them have too."""
    users = Counter(layer for image in images for layer in set(image.layers))
    return {
        image.id: sum(call.store.layer_size(layer) for layer in image.layers if users[layer] > 1)
        for image in images
    }


def _matches(image: Image, filters: Filters) -> bool:
    dangling = boolean_filter(filters, "dangling")
    if dangling is not None and (image.tags if dangling else not (image.tags or image.digests)):
        return False  # one with a name by digest alone is shown for both, as by dockerd
    if filters.get("reference"):
        named = _with_wanted_names(image, filters)
        if not (named.tags or named.digests):
            return False
    return label_matches(filters, imageconfig.labels(image.config))


def _with_wanted_names(image: Image, filters: Filters) -> Image:
    """Return *image* with those of its names that a filter by reference asks for, as dockerd answers."""
    patterns = filters.get("reference")
    if not patterns:
        return image
    tags, by_digest = (
        tuple(name for name in names if any(reference_matches(pattern, name) for pattern in patterns))
        for names in (image.tags, image.digests)
    )
    return replace(image, tags=tags, digests=by_digest)


def inspect_image(call: Call) -> Response:
    """Return everything about one image."""
    image = call.store.resolve(call.names["name"])
    size = call.store.image_size(image)
    answer = image_inspect(image, call.store.layers_of(image), size=size)
    if call.request.version < (1, 44):
        answer["VirtualSize"] = size
    return json_response(answer)


def history(call: Call) -> Response:
    """Return how an image came to be, newest first."""
    rows = call.store.history(call.store.resolve(call.names["name"]))
    return json_response([history_item(row) for row in rows])


def tag(call: Call) -> Response:
    """Give an image one more tag, which another image may lose by it."""
    reference = joined_reference(call.query)
    if reference is None:
        raise BadRequest("invalid reference format: give the parameter repo")
    call.store.tag(call.store.resolve(call.names["name"]).id, reference)
    return Response(201)


def remove(call: Call) -> Response:
    """Take a tag from an image, and remove the image with its last one."""
    force, prune = call.query.flag("force"), not call.query.flag("noprune")
    records = call.store.remove_image(call.names["name"], force=force, prune=prune)
    return json_response([removal(record) for record in records])


ROUTES = (
    route("GET", "/images/json", list_images),
    route("GET", "/images/{name}/json", inspect_image),
    route("GET", "/images/{name}/history", history),
    route("POST", "/images/{name}/tag", tag),
    route("DELETE", "/images/{name}", remove),
)
