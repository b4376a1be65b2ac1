"""Giving a mount another name: that of a container which runs is one that others find it by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.container import aliases, netavark
from layerfs.container.networks import has_names, wanted_networks
from layerfs.errors import BadRequest, Conflict, from_os_error
from layerfs.host import rundir
from layerfs.host.record import locked
from layerfs.store import Store

if TYPE_CHECKING:
    from layerfs.store.model import Mount


def rename(root: Path, mount: Mount, name: str) -> None:
    """Let *mount* go by *name*, in the store, among what runs, and in the networks that it is in.

    Waits for a start of it that is going on: that has looked the old name up. Raises `BadRequest`, `NotFound`
    and `Conflict`; then it has the old name. Raises `LayerfsError` when only its networks do not know the new
    one.
    """
    rundir.check_name(name)
    with locked(mount.id), Store(root) as store:
        before = store.mount(mount.id).name  # another rename may have come first
        if name == before:
            raise BadRequest("Renaming a container with the same name as its current name")
        if rundir.running_pid(name) is not None:
            raise Conflict(f"the name {name} is in use: choose another one")
        store.rename_mount(mount.id, name)
        try:
            rundir.rename(before, name)
        except Conflict:  # a mount of another store has just been given it
            store.rename_mount(mount.id, before)
            raise
        for endpoint in store.networks.endpoints(mount=mount.id):
            _rename_in(store, store.mount(mount.id), endpoint.network)


def _rename_in(store: Store, mount: Mount, network_id: str) -> None:
    """Have the container *mount*, which has its new name, found by that in a network."""
    given = {network.id: settings for network, settings in wanted_networks(store, mount.container)}
    names = aliases.of(mount, given.get(network_id, {}))
    store.networks.set_names(mount.id, network_id, names)
    if has_names(store.networks.find(network_id)):
        try:
            netavark.set_names(network_id, mount.id, mount.name, names)
        except OSError as error:
            raise from_os_error(error, f"rename {mount.name} in its networks") from None
