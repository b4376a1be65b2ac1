"""How images, mounts and their parts look in the Docker Engine API (moby's api/swagger.yaml)."""

from __future__ import annotations

import platform
from datetime import datetime
from typing import TYPE_CHECKING, Any

from layerfs.api.state import MountState, state_of
from layerfs.api.times import ZERO_TIME, timestamp
from layerfs.container.stored import host_config, shown_points
from layerfs.store import imageconfig, references

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from layerfs.store.model import HistoryRow, Image, Layer, Mount, Removal
    from layerfs.union.changes import Change

STREAMS = ("AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce")
CHANGE_KINDS = {"C": 0, "A": 1, "D": 2}


def digest(identifier: str | None) -> str:
    """Return an image or layer id as `sha256:...`, or an empty text for None."""
    return f"sha256:{identifier}" if identifier else ""


def go_architecture(machine: str | None = None) -> str:
    """Return Go's (and OCI's) name of a machine as uname(2) names it, this machine if none is given."""
    machine = machine or platform.machine()
    names = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "loongarch64": "loong64"}
    return names.get(machine, machine)


def image_summary(image: Image, *, size: int, containers: int, named_none: bool) -> dict[str, Any]:
    """Return an item of `GET /images/json`; *named_none* gives untagged images the tag of old versions."""
    none = named_none and not image.tags
    by_digest = list(image.digests)
    return {
        "Id": digest(image.id),
        "ParentId": digest(image.parent),
        "RepoTags": ["<none>:<none>"] if none else list(image.tags),
        "RepoDigests": ["<none>@<none>"] if none and not by_digest else by_digest,
        "Created": int(image.created.timestamp()),
        "Size": size,
        "SharedSize": -1,
        "Labels": imageconfig.labels(image.config)
        if image.config.get("Labels")
        else image.config.get("Labels"),
        "Containers": containers,
    }


def image_inspect(image: Image, layers: Sequence[Layer], *, size: int) -> dict[str, Any]:
    """Return the answer of `GET /images/{name}/json`; *layers* go from bottom to top.

    OCI diff IDs exist once an image has come in or gone out; until then `RootFS` names layers by their ids.
    """
    return {
        "Id": digest(image.id),
        "RepoTags": list(image.tags),
        "RepoDigests": list(image.digests),
        "Parent": digest(image.parent),
        "Comment": image.comment,
        "Created": timestamp(image.created),
        "DockerVersion": "",
        "Author": image.author,
        "Config": image.config,
        # No more in dockerd's answers since version 1.45. But docker-compose 1.29 asks by the newest version,
        # and reads the image's volumes here, without a look whether it is there.
        "ContainerConfig": image.config,
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": size,
        "GraphDriver": {
            "Name": "layerfs",
            "Data": {"LowerDir": ":".join(str(layer.path) for layer in reversed(layers))},
        },
        "RootFS": {"Type": "layers", "Layers": [layer.diff_id or digest(layer.id) for layer in layers]},
        "Metadata": {"LastTagTime": ZERO_TIME},
    }


def history_item(row: HistoryRow) -> dict[str, Any]:
    """Return an item of `GET /images/{name}/history`."""
    return {
        "Id": row.id if row.id == "<missing>" else digest(row.id.removeprefix("sha256:")),
        "Created": int(row.created.timestamp()),
        "CreatedBy": row.created_by,
        "Tags": list(row.tags) or None,
        "Size": row.size,
        "Comment": row.comment,
    }


def removal(record: Removal) -> dict[str, str]:
    """Return an item of the answer of `DELETE /images/{name}`."""
    if record.untagged is not None:
        return {"Untagged": record.untagged}
    return {"Deleted": digest((record.deleted or "").removeprefix("sha256:"))}


def change(item: Change) -> dict[str, Any]:
    """Return an item of `GET /containers/{name}/changes`; bytes that are not UTF-8 become U+FFFD."""
    return {"Path": item.path.decode("utf-8", "replace"), "Kind": CHANGE_KINDS[item.kind]}


def container_summary(mount: Mount, image: Image | None) -> dict[str, Any]:
    """Return an item of `GET /containers/json`, with the mountpoint, which Docker has no word for."""
    state = state_of(mount)
    return {
        "Id": mount.id,
        "Names": [f"/{mount.name}"],
        "Image": image_name(mount, image),
        "ImageID": digest(mount.image),
        "Command": " ".join(command(mount)),
        "Created": int(mount.created.timestamp()),
        "Ports": [],
        "Labels": labels(mount),
        "State": state.state,
        "Status": state.status,
        "HostConfig": {
            "NetworkMode": host_config(mount.container)["NetworkMode"] if mount.container else "host"
        },
        "NetworkSettings": {"Networks": {}},
        "Mounts": shown_points(mount),
        "Mountpoint": "" if mount.container else mount.mountpoint or "",  # a container's is private
    }


def container_inspect(
    mount: Mount, image: Image | None, layers: Sequence[Layer], upper: Layer | None
) -> dict[str, Any]:
    """Return the answer of `GET /containers/{name}/json`; *layers* go from bottom to top, below *upper*."""
    state = state_of(mount)
    words = command(mount)
    data = {
        "LowerDir": ":".join(str(layer.path) for layer in reversed(layers)),
        "MergedDir": mount.mountpoint or "",
    }
    if upper is not None:
        data |= {"UpperDir": str(upper.path), "WorkDir": str(upper.work or "")}
    return {
        "Id": mount.id,
        "Created": timestamp(mount.created),
        "Path": words[0] if words else "",
        "Args": words[1:],
        "State": container_state(mount, state),
        "Image": digest(mount.image),
        "Name": f"/{mount.name}",
        "RestartCount": mount.container.get("RestartCount", 0),
        "Driver": "layerfs",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": None,
        "HostConfig": host_config(mount.container)
        if mount.container
        else {"ReadonlyRootfs": mount.upper is None},
        "GraphDriver": {"Name": "layerfs", "Data": data},
        "Mounts": shown_points(mount),
        "Config": {
            **mount.config,
            "Hostname": mount.container.get("Hostname") or mount.id[:12],
            "Domainname": mount.container.get("Domainname", ""),
            **{name: mount.container.get(name, False) for name in STREAMS},
            "Image": mount.container.get("Image") or image_name(mount, image),
            "Labels": labels(mount),
        },
        "NetworkSettings": {"Networks": {}},
        "Mountpoint": mount.mountpoint or "",
        "Options": {name: value for name, value in mount.options.items() if name != "container"},
    }


def container_state(mount: Mount, state: MountState) -> dict[str, Any]:
    """Return the member "State" of an inspected container."""
    known, exited = mount.container, state.state == "exited"
    started = known.get("StartedAt") or mount.started
    return {
        "Status": state.state,
        "Running": state.pid is not None or state.state == "restarting",  # as dockerd
        "Paused": state.state == "paused",
        "Restarting": state.state == "restarting",
        "OOMKilled": known.get("OOMKilled", False),
        "Dead": state.dead,
        "Pid": state.pid or 0,
        "ExitCode": 255 if exited and started and not known.get("FinishedAt") else known.get("ExitCode", 0),
        "Error": "its daemon ended without unmounting" if state.dead else known.get("Error", ""),
        "StartedAt": timestamp(_moment(started)),
        "FinishedAt": timestamp(_moment(known.get("FinishedAt"))),
        **({"Health": known["Health"]} if known.get("Health") else {}),
    }


def _moment(given: datetime | str | None) -> datetime | None:
    return datetime.fromisoformat(given) if isinstance(given, str) else given


def image_name(mount: Mount, image: Image | None) -> str:
    """Return how a list names the image of *mount*: its first tag, else its id, else nothing.

    A container's has the name that it was made by, as long as that names the image.
    """
    if given := mount.container.get("Image"):
        return given if image is not None and _names(given, image) else digest(mount.image)
    return image.tags[0] if image is not None and image.tags else digest(mount.image)


def _names(reference: str, image: Image) -> bool:
    """Return whether *reference* means *image*: by one of its tags, or by its id."""
    prefix = references.id_prefix(reference)
    return bool(prefix and image.id.startswith(prefix)) or references.normalize(reference) in image.tags


def command(mount: Mount) -> list[str]:
    """Return the command that the configuration of *mount* gives: its entrypoint and its arguments."""
    return [*imageconfig.words(mount.config, "Entrypoint"), *imageconfig.words(mount.config, "Cmd")]


def labels(mount: Mount) -> dict[str, str]:
    """Return the labels of *mount*."""
    return imageconfig.labels(mount.config)


def counts(images: Iterable[str | None]) -> dict[str, int]:
    """Return how often each image id occurs among *images*."""
    result: dict[str, int] = {}
    for image in images:
        if image:
            result[image] = result.get(image, 0) + 1
    return result
