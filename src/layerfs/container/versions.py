"""What a request to create a container means in an older version of the API (moby's container routes)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from layerfs.errors import BadRequest

Version = tuple[int, int]


def adapted(body: object, version: Version) -> object:
    """Return *body* as a client of today would write what one of *version*, such as (1, 24), means by it.

    Members that came later are ignored, or refused where the client counts on them. What has not the type
    that it should have is left to `settings.described`. Raises `BadRequest`.
    """
    if not isinstance(body, dict) or version >= (1, 45):
        return body
    body = copy.copy(body)
    host = _object(body, "HostConfig")
    if version < (1, 44):
        _before_1_44(body, host)
    if version < (1, 43):
        host.pop("Annotations", None)
    if version < (1, 42):
        host.pop("ConsoleSize", None)
    if version < (1, 40) and not host.get("IpcMode"):
        host["IpcMode"] = "shareable"
    for mount in _mounts(host):
        _mount(mount, version)
    return body


def _before_1_44(body: dict[str, Any], host: dict[str, Any]) -> None:
    if check := _object(body, "Healthcheck"):
        check.pop("StartInterval", None)
    networking = body.get("NetworkingConfig")
    endpoints = networking.get("EndpointsConfig") if isinstance(networking, dict) else None
    if isinstance(endpoints, dict) and len(endpoints) > 1:
        names = ", ".join(sorted(map(str, endpoints)))
        raise BadRequest(f"Container cannot be created with multiple network endpoints: {names[:200]}")


def _mounts(host: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the mounts in *host*, copies that take the place of the client's."""
    if isinstance(host.get("Mounts"), list):
        host["Mounts"] = [copy.copy(mount) for mount in host["Mounts"]]
        yield from (mount for mount in host["Mounts"] if isinstance(mount, dict))


def _mount(mount: dict[str, Any], version: Version) -> None:
    bind, volume = _object(mount, "BindOptions"), _object(mount, "VolumeOptions")
    kind = mount.get("Type")
    if volume.get("Subpath"):
        raise BadRequest("VolumeOptions.Subpath needs API v1.45 or newer")
    if version < (1, 44) and bind.get("ReadOnlyForceRecursive"):
        raise BadRequest("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
    if version < (1, 44) and kind == "bind" and mount.get("ReadOnly") is True:
        mount["BindOptions"] = {**bind, "ReadOnlyNonRecursive": True}
        bind = mount["BindOptions"]
    if version < (1, 42):
        bind.pop("CreateMountpoint", None)
        for member, owner in (("VolumeOptions", "volume"), ("TmpfsOptions", "tmpfs")):
            if kind != owner:
                mount.pop(member, None)
    if version < (1, 40):
        bind.pop("NonRecursive", None)


def _object(parent: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the object *name* in *parent*, a copy that takes its place; an empty one if it is missing."""
    value = parent.get(name)
    if value is not None and not isinstance(value, dict):
        return {}
    found = dict(value or {})
    if value is not None or name == "HostConfig":
        parent[name] = found
    return found
