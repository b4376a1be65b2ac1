"""The shared memory of containers that share their IPC: /dev/shm is a tmpfs of this machine, bound by both.

It lies in the bundle of the container that is "shareable", and ends with it: who has it mounted keeps it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfs.container.mountpoints import bind
from layerfs.container.namespaces import container_of
from layerfs.errors import Conflict, from_os_error
from layerfs.host import mountcalls

if TYPE_CHECKING:
    from layerfs.container.mountpoints import Point

_NAME = "shm"
_PLACE = "/dev/shm"


def set_up(bundle: Path, host_config: Mapping[str, Any], bundle_of: Callable[[str], Path]) -> list[Point]:
    """Return what to mount at /dev/shm, nothing if it is to be a tmpfs of the container's own.

    *bundle_of* returns the bundle of another container, that runs. Raises `LayerfsError`; `take_down` takes
    away what there is.
    """
    mode = host_config["IpcMode"]
    if mode == "shareable":
        place = bundle / _NAME
        try:
            place.mkdir(exist_ok=True)
            mountcalls.mount_tmpfs(os.fsencode(place), f"mode=1777,size={host_config['ShmSize']}".encode())
        except OSError as error:
            raise from_os_error(error, "make the shared memory of a container") from None
        return [bind(str(place), _PLACE)]
    if other := container_of(mode):
        place = bundle_of(other) / _NAME
        if not place.is_dir():
            raise Conflict(
                f"can't join IPC of container {other[:80]}: non-shareable IPC "
                "(hint: use IpcMode:shareable for the donor container)"
            )
        return [bind(str(place), _PLACE)]
    return []


def take_down(bundle: Path) -> None:
    """Take away the shared memory of a container that has ended; fine if there is none. Raises `OSError`."""
    place = bundle / _NAME
    if place.is_dir():
        with suppress(OSError):  # it was not mounted yet
            mountcalls.umount(os.fsencode(place), lazy=True)
        place.rmdir()
