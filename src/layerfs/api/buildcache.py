"""The build cache as Docker's API shows it, and `POST /build/prune`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from layerfs.api.filters import Filters, boolean_filter, label_matches, parse_filters
from layerfs.api.routes import Call, route
from layerfs.api.times import parse_until, timestamp
from layerfs.build import cachemounts
from layerfs.errors import BadRequest
from layerfs.store.buildcache import CacheEntry
from layerfs.store.cacheusage import CacheUsage
from layerfs.store.model import to_datetime, to_nanoseconds
from layerfs.unixhttp.message import Query, Response, json_response

_FILTERS = (
    "description", "id", "inuse", "label", "label!", "parent", "private", "shared", "type", "unused-for",
    "until",
)  # fmt: skip


def record(used: CacheUsage) -> dict[str, Any]:
    """Return an entry as `system/df` shows it."""
    entry = used.entry
    return {
        "ID": entry.key,
        "Parent": used.parents[0] if used.parents else "",
        "Parents": list(used.parents),
        "Type": entry.kind,
        "Description": entry.description,
        "InUse": used.in_use,
        "Shared": used.shared,
        "Size": used.size,
        "CreatedAt": timestamp(entry.created),
        "LastUsedAt": timestamp(entry.used) if entry.uses else None,
        "UsageCount": entry.uses,
    }


def prune(call: Call) -> Response:
    """Remove entries of the build cache that no build needs: with `all` those too whose layers an image has.

    With `keep-storage` (`max-used-space` in newer clients) those used last stay, up to that many bytes.
    """
    filters = parse_filters(call.query.get("filters"), _FILTERS)
    wanted = _Wanted(filters)
    removed, freed = call.store.build_cache.prune(
        everything=call.query.flag("all"),
        keep=_bytes_to_keep(call.query),
        wanted=wanted,
        beside=[(used, partial(cachemounts.remove, mount)) for used, mount in _mounts(call.root)],
    )
    return json_response({"CachesDeleted": removed or None, "SpaceReclaimed": freed})


def mounts(root: Path) -> list[CacheUsage]:
    """Return the caches of `RUN --mount=type=cache`, as entries. Raises `OSError`."""
    return [used for used, _ in _mounts(root)]


def _mounts(root: Path) -> Iterator[tuple[CacheUsage, cachemounts.CacheMount]]:
    for mount in cachemounts.every(root):
        created, last = to_datetime(mount.created), to_datetime(mount.used)
        described = f"cached mount {mount.identifier}"
        entry = CacheEntry(mount.path.name, "", "exec.cachemount", described, created, last, 1)
        yield CacheUsage(entry, (), (), mount.size(), mount.in_use, False, mount.used), mount


def _bytes_to_keep(query: Query) -> int:
    for name in ("max-used-space", "keep-storage", "reserved-space"):
        if text := query.get(name):
            if not text.isascii() or not text.isdigit() or len(text) > 18:
                raise BadRequest(f"invalid value for {name!r}: {text[:100]!r} is not a number of bytes")
            if int(text):
                return int(text)
    return 0


class _Wanted:
    """Tells which entries a client wants removed."""

    def __init__(self, filters: Filters) -> None:
        """Take the *filters* of a request; raises `BadRequest`."""
        times = [*filters.get("until", ()), *filters.get("unused-for", ())]
        if len(times) > 1:
            raise BadRequest("invalid filter 'until': give it once, and not with 'unused-for'")
        self._until = to_nanoseconds(parse_until(times[0])) if times else None
        for name in ("id", "parent", "type", "description"):
            if len(filters.get(name, ())) > 1:
                raise BadRequest(f"invalid filter {name!r}: give it once")
        self._filters = filters
        self._flags = {name: boolean_filter(filters, name) for name in ("inuse", "shared", "private")}

    def __call__(self, used: CacheUsage) -> bool:
        """Tell whether an entry is wanted."""
        entry = used.entry
        if self._until is not None and used.used >= self._until:
            return False
        texts = {"type": (entry.kind,), "description": (entry.description,), "parent": used.parents}
        if any(not self._filters[name] <= set(have) for name, have in texts.items() if name in self._filters):
            return False
        if any(part not in entry.key for part in self._filters.get("id", ())):
            return False
        flags = {"inuse": used.in_use, "shared": used.shared, "private": not used.shared}
        if any(self._flags[name] not in (None, flag) for name, flag in flags.items()):
            return False
        return label_matches(self._filters, {})  # an entry has no labels


ROUTES = (route("POST", "/build/prune", prune, frees=True),)
