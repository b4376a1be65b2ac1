"""What the API answers about the past of mounts, as values, and the requests that ask for it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypeVar

_A = TypeVar("_A")
Kind = Literal["A", "C", "D", "R"]
"""Added, changed, deleted; and, of one path alone, renamed."""


@dataclass(frozen=True, slots=True)
class WentBack:
    """Where a mount has gone back to."""

    step: str
    kept: str | None
    """The checkpoint of what was given up; None where nothing was, or it was discarded."""


@dataclass(frozen=True, slots=True)
class Touched:
    """What a checkpoint did to a path."""

    kind: Kind
    path: str
    """What it was called then."""
    source: str | None
    """What it was called before, of one that was renamed."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A checkpoint, or a layer of the image below."""

    id: str
    parent: str | None
    created: datetime
    """Aware, UTC."""
    comment: str
    tags: tuple[str, ...]
    """The names of the images that end with it."""
    size: int
    """Bytes of the regular files in its layer."""
    added: int
    changed: int
    deleted: int
    touched: Touched | None
    """None unless a path was asked for."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of any type in a tree that was."""

    name: str
    type: Literal["file", "directory", "link", "character", "block", "fifo", "socket"]
    mode: int
    """Permissions alone."""
    uid: int
    gid: int
    size: int
    modified: int
    """Nanoseconds since the epoch."""
    target: str | None
    """Of a symbolic link."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A path that differs between two trees."""

    kind: Kind
    path: str
    type: str


@dataclass(frozen=True, slots=True)
class Restored:
    """What bringing files back has done."""

    step: str
    """The checkpoint that was made before: to go back there undoes it."""
    changed: int
    """Paths that were written or removed."""


@dataclass(frozen=True, slots=True)
class Thinned:
    """What thinning out has done."""

    squashed: tuple[str, ...]
    removed: tuple[str, ...]
    in_use: tuple[str, ...]
    """What stays for now, as other mounts that have it are in use."""
    freed: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Ask(Generic[_A]):
    """A request, and what its answer means."""

    method: str
    path: str
    meaning: Callable[[Any], _A]
    query: Mapping[str, Any] = field(default_factory=dict)
    """Texts, or None for what is left out."""
    members: Mapping[str, Any] | None = None
    """Of the JSON body."""

    @property
    def body(self) -> bytes:
        """The body."""
        return b"" if self.members is None else json.dumps(self.members).encode()


def mount(
    mountpoint: str | os.PathLike[str], image: str | None, name: str | None, *, read_only: bool
) -> Ask[str]:
    """Mount *image*, or a mount as it was left; the answer is the mount's name."""
    members = {
        "mountpoint": os.path.abspath(mountpoint),
        "image": image,
        "name": name,
        "read_only": read_only,
    }
    return Ask("POST", "/layerfs/mounts", lambda told: str(told["Name"]), members=members)


def unmount(name: str, *, force: bool) -> Ask[None]:
    """Unmount a mount."""
    query = {"name": name, "force": "1" if force else None}
    return Ask("POST", "/layerfs/unmount", lambda told: None, query)


def remove(name: str, *, force: bool) -> Ask[None]:
    """Remove a mount and what was written to it."""
    return Ask("DELETE", f"/containers/{name}", lambda told: None, {"force": "1" if force else None})


def checkpoint(name: str, message: str, *, pause: bool | None) -> Ask[str]:
    """Make a checkpoint; the answer is its id."""
    members = {"Comment": message, "Pause": pause}
    return Ask("POST", "/layerfs/checkpoint", lambda told: str(told["Step"]), {"name": name}, members)


def rollback(name: str, ref: str, *, discard: bool, pause: bool | None) -> Ask[WentBack]:
    """Go back."""

    def meaning(told: Any) -> WentBack:
        return WentBack(told["Step"], told["Kept"])

    members = {"Ref": ref, "Discard": discard, "Pause": pause}
    return Ask("POST", "/layerfs/rollback", meaning, {"name": name}, members)


def fork(name: str, new: str, mountpoint: str | os.PathLike[str], count: int | None) -> Ask[list[str]]:
    """Make forks; the answer are their names."""

    def meaning(told: Any) -> list[str]:
        return [made["Name"] for made in told["Mounts"]]

    members = {"Name": new, "Mountpoint": os.path.abspath(mountpoint), "Count": count}
    return Ask("POST", "/layerfs/fork", meaning, {"name": name}, members)


def restore(name: str, ref: str, paths: Sequence[str]) -> Ask[Restored]:
    """Bring files back."""

    def meaning(told: Any) -> Restored:
        return Restored(told["Step"], told["Changed"])

    return Ask("POST", "/layerfs/restore", meaning, {"name": name}, {"Ref": ref, "Paths": list(paths)})


def squash(ref: str) -> Ask[str]:
    """Squash a checkpoint; the answer is the one that has its changes."""
    return Ask("POST", "/layerfs/squash", lambda told: str(told["Step"]), members={"Ref": ref})


def keep(name: str, every: str | None, last: int | None, daily: int | None) -> Ask[Thinned]:
    """Thin out the past of a mount."""

    def meaning(told: Any) -> Thinned:
        return Thinned(tuple(told["Squashed"]), tuple(told["Removed"]), tuple(told["InUse"]), told["Freed"])

    members = {"Every": every, "Last": last, "Daily": daily}
    return Ask("POST", "/layerfs/keep", meaning, {"name": name}, members)


def log(ref: str, path: str | None, most: int | None) -> Ask[list[LogEntry]]:
    """Return what led to *ref*."""

    def meaning(told: Any) -> list[LogEntry]:
        return [_log_entry(entry) for entry in told]

    query = {"ref": ref, "path": path, "n": None if most is None else str(most)}
    return Ask("GET", "/layerfs/log", meaning, query)


def _log_entry(entry: Any) -> LogEntry:
    touched = entry.get("Touched")
    return LogEntry(
        id=entry["Id"],
        parent=entry["Parent"],
        created=datetime.fromisoformat(entry["Created"][:26]).replace(tzinfo=UTC),
        comment=entry["Comment"],
        tags=tuple(entry["Tags"]),
        size=entry["Size"],
        added=entry["Added"],
        changed=entry["Changed"],
        deleted=entry["Deleted"],
        touched=None if touched is None else Touched(touched["Kind"], touched["Path"], touched["From"]),
    )


def ls(ref: str, path: str) -> Ask[list[FileEntry]]:
    """Return what was in a directory."""

    def meaning(told: Any) -> list[FileEntry]:
        return [
            FileEntry(
                each["Name"],
                each["Type"],
                each["Mode"],
                each["Uid"],
                each["Gid"],
                each["Size"],
                each["Modified"],
                each["Target"],
            )
            for each in told["Entries"]
        ]

    return Ask("GET", "/layerfs/ls", meaning, {"ref": ref, "path": path})


def read(ref: str, path: str) -> Ask[bytes]:
    """Return what a file held. Its answer is no JSON."""
    return Ask("GET", "/layerfs/cat", lambda told: bytes(told), {"ref": ref, "path": path})


def diff(a: str, b: str, path: str | None) -> Ask[list[Difference]]:
    """Return what differs between two trees."""

    def meaning(told: Any) -> list[Difference]:
        return [Difference(each["Kind"], each["Path"], each["Type"]) for each in told]

    return Ask("GET", "/layerfs/diff", meaning, {"a": a, "b": b, "path": path})
