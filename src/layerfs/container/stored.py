"""What the store keeps of a container, read again: light, since every list of containers needs it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerfs.container.mountpoints import Point
    from layerfs.store.model import Mount


def host_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the complete `HostConfig` in a container's *settings*, also in those of an older layerfs."""
    found: dict[str, Any] | None = settings.get("HostConfig")
    if found is None:
        from layerfs.container import hostconfig
        from layerfs.container.members import Members

        members = {
            "Binds": [":".join(bind) for bind in settings.get("Binds", ())] or None,
            "AutoRemove": settings.get("AutoRemove", False),
        }
        found, _ = hostconfig.taken(Members(members, "HostConfig"), settings.get("NetworkMode", "host"))
    return found


def points_of(mount: Mount) -> list[Point]:
    """Return what is mounted in the container *mount*, also in one that an older layerfs made."""
    known: list[Point] | None = mount.container.get("MountPoints")
    if known is None:
        from layerfs.container import mountpoints

        volumes = sorted(mount.config.get("Volumes") or ())
        found = mountpoints.points(host_config(mount.container), volumes, lambda name: ())
        known = [
            {**point, "Name": _name(mount, point["Destination"])} if point["Type"] == "volume" else point
            for point in found
        ]
    return known


def _name(mount: Mount, destination: str) -> str:
    """Return the name of a volume that got none from an older layerfs: the same one each time."""
    return hashlib.sha256(os.fsencode(f"{mount.id}:{destination}")).hexdigest()


def shown_points(mount: Mount) -> list[dict[str, Any]]:
    """Return the mount points of *mount*, if it is a container, as inspect shows them."""
    points = points_of(mount) if mount.container else []
    return [{name: value for name, value in point.items() if name != "Spec"} for point in points]
