"""Going back with a container whose process does not live on: killed before, and begun anew if wanted.

The memory of the process is not part of a checkpoint. What can save and restore that (CRIU) would take the
place of the two steps around the switch here: `ending.end` and `lifecycle.start`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.container import ending, lifecycle
from layerfs.container.stored import host_config
from layerfs.errors import Conflict, LayerfsError
from layerfs.host.record import Record
from layerfs.mounting.find import mount_of
from layerfs.store import Store

if TYPE_CHECKING:
    from layerfs.container.lifecycle import Launch
    from layerfs.mounting.mount import Rollback, WentBack
    from layerfs.store.model import Mount


def go_back(root: Path, mount: Mount, wanted: Rollback) -> WentBack:
    """Kill the process of the container *mount*, if it runs, and have its tree go back; it stays stopped.

    What is wrong with the request is said before anything ends. Raises `LayerfsError`: then its process
    runs as before, or the error says that it was killed, and the tree is as it was.
    """
    if not mount.container:
        raise Conflict(f"{mount.name} is a mount, not a container: there is no process to end")
    if host_config(mount.container)["AutoRemove"]:
        raise Conflict(
            f"{mount.name} is removed when its process ends (--rm): it can only go back as it runs"
        )
    with Store(root) as store:
        store.check_rollback(mount)
        step = store.resolve_checkpoint(mount, wanted.reference)
        store.layers_at(mount, step)
        # Its policy would start it again before it has gone back.
        store.update_container(mount.id, None, Stopped=True, Restarting=False)
    try:
        ending.end(mount)
        lifecycle.finish(root, mount.id)
        with Store(root) as store:
            now = store.mount(mount.id)
            return mount_of(store, now).rollback(replace(wanted, reference=step, pause=None))
    except LayerfsError as error:
        raise _told(error, f"{mount.name} was killed, but has not gone back") from error


def start_anew(root: Path, mount: Mount, launch: Launch, before: Callable[[Record], None], step: str) -> None:
    """Start the container *mount*, which has gone back to *step*; see `lifecycle.start`."""
    try:
        lifecycle.start(root, mount, launch, before)
    except LayerfsError as error:
        raise _told(error, f"{mount.name} has gone back to {step[:12]}, but does not start") from error


def _told(error: LayerfsError, what: str) -> LayerfsError:
    """Return an error of the same kind that says first how far it has come."""
    told = LayerfsError(f"{what}: {error}")
    with suppress(TypeError):  # one that is made of more than a text
        told = type(error)(f"{what}: {error}")
    return told
