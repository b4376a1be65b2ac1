"""Image configurations: reading those of others, writing our own.

OCI image specification 1.1, config.md. A configuration that came in is kept as it is, byte by byte,
since its digest is the image's identity.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from layerfs.errors import BadRequest
from layerfs.oci import media
from layerfs.store import imageconfig
from layerfs.store.model import HistoryEntry, Image
from layerfs.store.stacks import canonical_json

_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))")
_MOST_STEPS = 10_000
"""Steps of a history, and layers: every list of images reads them. Docker's have 127 layers at most."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration that has been checked."""

    data: bytes
    fields: dict[str, Any]
    diff_ids: tuple[str, ...]
    history: tuple[HistoryEntry, ...]
    """One step for each layer, and those without; made up where there is none. It names no layers."""
    created: datetime
    author: str

    @classmethod
    def parse(cls, data: bytes) -> Config:
        """Return the configuration in *data*. Raises `BadRequest`."""
        fields = media.parse(data, "the configuration")
        root = media.mapping(fields.get("rootfs"), "rootfs in the configuration")
        if root.get("type") != "layers":
            raise BadRequest("the configuration has no rootfs of type 'layers'")
        diff_ids = tuple(
            media.check_digest(digest, "a diff ID of the configuration")
            for digest in media.sequence(root.get("diff_ids"), "diff_ids in the configuration")
        )
        imageconfig.check(media.mapping(fields.get("config"), "config in the configuration"))
        created = _time(fields.get("created")) or EPOCH
        history = media.sequence(fields.get("history"), "history in the configuration")
        if max(len(history), len(diff_ids)) > _MOST_STEPS:
            raise BadRequest(f"the configuration has more than {_MOST_STEPS} steps or layers: it is no image")
        steps = [_step(media.mapping(step, "a history entry")) for step in history]
        made = sum(not step.empty_layer for step in steps)
        if made > len(diff_ids):
            raise BadRequest(f"the configuration's history makes {made} layers, and it has {len(diff_ids)}")
        steps += [HistoryEntry(created, "", "", "", False, None)] * (len(diff_ids) - made)
        if not steps:
            steps = [HistoryEntry(created, "", "", "", True, None)]
        author = media.text(fields.get("author") or "", "the author")
        return cls(data, fields, diff_ids, tuple(steps), created, author)

    def check_layers(self, count: int) -> None:
        """Raise `BadRequest` unless *count* layers, as the manifest has, are what it speaks of."""
        if count != len(self.diff_ids):
            raise BadRequest(
                f"the manifest has {count} layers, and the configuration diff IDs for {len(self.diff_ids)}"
            )

    def text(self, key: str, default: str) -> str:
        """Return the string called *key*; raises `BadRequest` when it is something else."""
        return media.text(self.fields.get(key) or default, f"{key} in the configuration")


def _step(fields: dict[str, Any]) -> HistoryEntry:
    created_by, author, comment = (
        media.text(fields.get(key) or "", f"{key} in the history")
        for key in ("created_by", "author", "comment")
    )
    created = _time(fields.get("created")) or EPOCH
    return HistoryEntry(created, created_by, author, comment, bool(fields.get("empty_layer")), None)


def _time(value: object) -> datetime | None:
    """Return a time of RFC 3339, to the microsecond. Raises `BadRequest`."""
    if value is None:
        return None
    found = _TIME.fullmatch(media.text(value, "a time"))
    try:
        if found is None:
            raise ValueError
        moment = datetime.fromisoformat(f"{found[1]}T{found[2]}+00:00")
        moment += timedelta(microseconds=int((found[3] or "").ljust(6, "0")[:6]))
        if found[4]:
            away = timedelta(hours=int(found[5]), minutes=int(found[6]))
            moment -= away if found[4] == "+" else -away
    except (ValueError, OverflowError):
        raise BadRequest(f"{value!r} is no time: it is not as RFC 3339 has it") from None
    return max(moment, EPOCH)  # Go writes the year 1 for "unknown"


def build(image: Image, diff_ids: Sequence[str], inherited: dict[str, Any]) -> bytes:
    """Return the configuration of an image that was made here.

    *inherited* are fields of the image it was made from that say more about the platform.
    """
    fields: dict[str, Any] = {
        **inherited,
        "architecture": image.architecture,
        "config": image.config,
        "created": _format(image.created),
        "history": [_entry(entry) for entry in image.history],
        "os": image.os,
        "rootfs": {"diff_ids": list(diff_ids), "type": "layers"},
    }
    if image.author:
        fields["author"] = image.author
    return canonical_json(fields).encode("ascii")


def _entry(entry: HistoryEntry) -> dict[str, Any]:
    fields: dict[str, Any] = {"created": _format(entry.created)}
    for key in ("created_by", "author", "comment"):
        if value := getattr(entry, key):
            fields[key] = value
    if entry.empty_layer:
        fields["empty_layer"] = True
    return fields


def _format(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
