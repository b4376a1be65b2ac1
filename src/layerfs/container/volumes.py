"""A container's volumes: made, mounted where their options ask for that, filled from the image, and let go.

What is to be mounted in a container is a list of mount points, JSON objects with the members of Docker's
`MountPoint` (Type, Name, Source, Destination, RW) and, below "Spec", what else was asked for (NoCopy,
Subpath, Labels, DriverOpts, Anonymous): see `mountpoints`. Here those of the type `volume` get a "Source".
"""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfs.container import files
from layerfs.container.rootfs import open_inside
from layerfs.errors import BadRequest, Conflict, LayerfsError, NotFound, from_os_error
from layerfs.host.mountcalls import umount
from layerfs.store import Store
from layerfs.store.volumes import is_mounted

if TYPE_CHECKING:
    from layerfs.store.model import Mount, Volume

Point = Mapping[str, Any]
_PATIENCE = 60.0
"""Seconds that mount(8) may take: a server may not answer."""


def claim(store: Store, mount_id: str, points: Sequence[Point]) -> list[dict[str, Any]]:
    """Make the volumes among *points* that are not there, and note that a container has them.

    Returns the points with the names of the volumes that had none. May be repeated: a volume without a name
    stays the same one for as long as the container is there. For when a container is made, and when it
    starts. Raises `LayerfsError`.
    """
    mine = {use.destination: use.volume for use in store.volumes.uses(mount=mount_id)}
    claimed = []
    for point in points:
        if point["Type"] != "volume":
            claimed.append(dict(point))
            continue
        spec = point.get("Spec") or {}
        destination = point["Destination"]
        anonymous = bool(spec.get("Anonymous")) or not point.get("Name")
        name = str(point.get("Name") or mine.get(destination) or "")
        volume = store.volumes.create(
            name, labels=spec.get("Labels"), options=spec.get("DriverOpts"), anonymous=anonymous
        )
        store.volumes.claim(mount_id, destination, volume.name)
        claimed.append({**point, "Name": volume.name, "Driver": "local"})
    return claimed


def set_up(root: Path, mount: Mount, tree: Path, points: Sequence[Point]) -> list[dict[str, Any]]:
    """Have the volumes of a container that starts ready, and return *points* with their paths as "Source".

    An empty volume gets what the image, mounted at *tree*, has at its destination, unless "NoCopy" is set.
    Raises `LayerfsError`; then, and at the container's end, `take_down` lets the volumes go.
    """
    if not any(point["Type"] == "volume" for point in points):
        return [dict(point) for point in points]
    ready = []
    with Store(root) as store:
        for point in claim(store, mount.id, points):
            if point["Type"] == "volume":
                source = _set_up(store, mount, tree, point)
                point = {**point, "Source": source}
            ready.append(point)
    return ready


def _set_up(store: Store, mount: Mount, tree: Path, point: Point) -> str:
    volume = store.volumes.find(point["Name"])
    destination, spec = point["Destination"], point.get("Spec") or {}
    with store.volumes.held(volume):
        shared = store.volumes.is_up(volume.name)
        store.volumes.set_up(
            mount.id,
            destination,
            **{"read/write": str(bool(point.get("RW", True))).lower(), "propagation": ""},
        )
        if volume.options and not is_mounted(volume):
            _mount(volume)
        (use,) = [it for it in store.volumes.uses(mount=mount.id) if it.destination == destination]
        if not use.filled:
            _adopt(store.root, mount, destination, volume)
        if not use.filled and not spec.get("NoCopy"):
            _fill(volume, tree, destination, in_place=shared or bool(volume.options))
        if not use.filled:
            store.volumes.set_filled(mount.id, destination)
    return _subpath(volume, spec.get("Subpath") or "")


def _adopt(root: Path, mount: Mount, destination: str, volume: Volume) -> None:
    """Take over what an earlier layerfs kept with the container, by numbers, for the volumes of its image."""
    paths = [os.path.normpath(path) for path in sorted(mount.config.get("Volumes") or ())]
    if destination in paths:
        kept = files.directory(root, mount.id) / "volumes" / str(paths.index(destination))
        with suppress(OSError):  # not there; or there is something in the new one already
            kept.rename(volume.path)


def _fill(volume: Volume, tree: Path, destination: str, *, in_place: bool) -> None:
    """Give a volume the image's content if it is empty: at once, unless others have it mounted already."""
    with suppress(FileNotFoundError), os.scandir(volume.path) as entries:
        if next(entries, None) is not None:
            return
    files.fill(volume.path, tree, destination, in_place=in_place)


def _subpath(volume: Volume, subpath: str) -> str:
    if not subpath:
        return str(volume.path)
    try:
        fd = open_inside(volume.path, subpath, os.O_PATH)
    except OSError as error:
        text = (error.strerror or "").lower()
        raise BadRequest(f"cannot access path {subpath[:200]} in the volume {volume.name}: {text}") from None
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _mount(volume: Volume) -> None:
    """Mount what the options of *volume* name; as dockerd, without the help of mount.nfs and its like."""
    options = _resolved(volume.options.get("o", ""))
    device, kind = volume.options["device"], volume.options["type"]
    words = ["mount", "-i", "-t", kind, *(["-o", options] if options else []), "--", device, str(volume.path)]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
        said = done.stderr.strip().partition("\n")[0].removeprefix("mount: ")
        if done.returncode == 0:
            return
    except subprocess.TimeoutExpired:
        said = f"mount did not end within {_PATIENCE:g} seconds"
    said = re.sub(r"password=[^,\s]*", "password=********", said)
    raise LayerfsError(
        f"error while mounting volume '{volume.path}': failed to mount local volume: "
        f"mount {device}:{volume.path}: {said}"
    )


def _resolved(options: str) -> str:
    """Return mount options with the address in place of the name in `addr=`: the kernel knows no names."""
    found = re.search(r"(?:^|,)addr=([^,]+)", options)
    if found is None:
        return options
    try:
        address = socket.getaddrinfo(found[1], None, proto=socket.IPPROTO_TCP)[0][4][0]
    except OSError as error:
        raise LayerfsError(
            f"error resolving passed in network volume address: {found[1][:80]}: {error.strerror}"
        ) from None
    return options.replace(f"addr={found[1]}", f"addr={address}")


def take_down(root: Path, mount_id: str) -> None:
    """Let go of the volumes of a container that has ended; what is mounted for nobody is unmounted.

    May be repeated. Raises `LayerfsError`.
    """
    with Store(root) as store:
        for name in store.volumes.set_down(mount_id):
            with suppress(NotFound):  # removed meanwhile
                volume = store.volumes.find(name)
                with store.volumes.held(volume):
                    if volume.options and not store.volumes.is_up(name):
                        _unmount(volume)


def _unmount(volume: Volume) -> None:
    while is_mounted(volume):
        try:
            umount(os.fsencode(volume.path), lazy=False)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Conflict(f"{volume.path} is in use: unmount it yourself, later") from None
            raise from_os_error(error, f"unmount the volume {volume.name}") from None
