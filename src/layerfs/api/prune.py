"""Routes that remove what nobody needs: `POST /images/prune`, `POST /containers/prune`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import partial

from layerfs.api.containers import clear_away
from layerfs.api.filters import Filters, boolean_filter, label_matches, parse_filters
from layerfs.api.routes import Call, route
from layerfs.api.shapes import labels, removal
from layerfs.api.state import state_of
from layerfs.api.times import parse_until
from layerfs.errors import BadRequest
from layerfs.host.record import look
from layerfs.store import imageconfig
from layerfs.unixhttp.message import Response, json_response

_COMMON = ("label", "label!", "until")


def prune_images(call: Call) -> Response:
    """Remove the images that no mount and no other image needs: untagged ones unless `dangling` is false."""
    filters = parse_filters(call.query.get("filters"), (*_COMMON, "dangling"))
    matches = partial(_matches, filters, _until(filters))
    records, freed = call.store.prune_images(
        tagged=boolean_filter(filters, "dangling") is False,
        wanted=lambda image: matches(image.created, imageconfig.labels(image.config)),
    )
    deleted = [removal(record) for record in records]
    return json_response({"ImagesDeleted": deleted or None, "SpaceReclaimed": freed})


def prune_containers(call: Call) -> Response:
    """Remove the mounts that no daemon runs and no process lives in, and what was written to them."""
    filters = parse_filters(call.query.get("filters"), _COMMON)
    matches = partial(_matches, filters, _until(filters))
    _clear_away(call)
    removed, freed = call.store.prune_mounts(
        wanted=lambda mount: matches(mount.created, labels(mount)) and state_of(mount).pid is None
    )
    deleted = [mount.id for mount in removed]
    return json_response({"ContainersDeleted": deleted or None, "SpaceReclaimed": freed})


def _clear_away(call: Call) -> None:
    """Do what nobody has done yet after containers whose process has ended."""
    for mount in call.store.mounts():
        record = look(mount.id) if mount.container else None
        if record is not None and not record.alive():
            clear_away(call, mount)


def recover(call: Call) -> Response:
    """Remove what killed processes left behind, builds among them; return a line for each thing."""
    from layerfs.build import workplace

    return json_response([*workplace.recover(), *call.store.recover()])


def _until(filters: Filters) -> datetime | None:
    if "until" not in filters:
        return None
    if len(filters["until"]) != 1:
        raise BadRequest("invalid filter 'until': give it once")
    return parse_until(*filters["until"])


def _matches(filters: Filters, until: datetime | None, created: datetime, given: Mapping[str, str]) -> bool:
    return (until is None or created < until) and label_matches(filters, given)


ROUTES = (
    route("POST", "/images/prune", prune_images, frees=True),
    route("POST", "/containers/prune", prune_containers, frees=True),
    route("POST", "/layerfs/recover", recover),
)
