"""Pausing a container: all its processes stand still, until somebody lets them go on.

The kernel knows whether they do; nothing else is noted. A commit freezes for a moment, too: it lets go on
only what it has frozen itself.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.errors import Conflict, LayerfsError
from layerfs.host import freezer
from layerfs.host.record import settled
from layerfs.store import Store

if TYPE_CHECKING:
    from layerfs.store.model import Mount

_PATIENCE = 10.0
"""Seconds that processes may take until they stand still: one may wait for a disk."""


def pause(root: Path, mount: Mount) -> None:
    """Let all processes of the container *mount* stand still. Raises `LayerfsError`; then they go on."""
    switch = _freezer(mount)
    try:
        if switch.stands_still():
            raise Conflict(f"Container {mount.name} is already paused")
        deadline = time.monotonic() + _PATIENCE
        while not _frozen(switch):
            if time.monotonic() > deadline:
                switch.thaw()
                raise Conflict(f"{mount.name} did not stand still within {_PATIENCE:g} seconds: try again")
            time.sleep(0.005)
    except OSError as error:
        raise LayerfsError(f"cannot pause {mount.name}: {error.strerror}") from None
    with Store(root) as store:
        store.update_container(mount.id, "pause")


def _frozen(switch: freezer.Freezer) -> bool:
    switch.freeze()  # again: version 1 forgets about processes that were being forked
    return switch.stands_still()


def unpause(root: Path, mount: Mount) -> None:
    """Let the processes of the container *mount* go on. Raises `LayerfsError`."""
    switch = _freezer(mount)
    try:
        if not switch.stands_still():
            raise Conflict(f"Container {mount.name} is not paused")
        switch.thaw()
    except OSError as error:
        raise LayerfsError(f"cannot unpause {mount.name}: {error.strerror}") from None
    with Store(root) as store:
        store.update_container(mount.id, "unpause")


def _freezer(mount: Mount) -> freezer.Freezer:
    record = settled(mount.id)
    if record is None or not record.alive():
        raise Conflict(f"container {mount.name} is not running")
    found = freezer.find(record.pid, mount.id)
    if found is None:
        raise Conflict(f"cannot pause {mount.name}: it has no cgroup of its own that can be frozen")
    return found
