"""Pruning: what nobody needs any more goes, one transaction an image or mount.

Whether something is needed is asked again inside its transaction, and mounts are held by their locks, so
nothing that is in use can go, whatever others do meanwhile; killed between two, those that are left stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

from layerfs import mounttable
from layerfs.errors import Conflict, NotFound
from layerfs.runtime import socket_path
from layerfs.store import events, external, images, layers, mounts, removal
from layerfs.store.atrest import at_rest
from layerfs.store.database import Database
from layerfs.store.model import Image, Mount, Removal
from layerfs.store.usage import stack_of


def prune_images(db: Database, *, tagged: bool, wanted: Callable[[Image], bool]) -> tuple[list[Removal], int]:
    """Remove the *wanted* images that no mount and no other image needs; see `Store.prune_images`."""
    removals: list[Removal] = []
    freed = 0
    sizes: dict[str, int] = {}
    gone = True
    while gone:  # images that only what has just gone was made from are free now
        gone = False
        for image in _free_images(db):
            if (image.tags and not tagged) or not wanted(image):
                continue
            _measure(db, image.layers, sizes)
            went, doomed = removal.remove_unneeded(db, image.id, tagged=tagged)
            gone = gone or bool(went)
            removals += went
            freed += sum(sizes.get(layer_id, 0) for layer_id in doomed)
    _record(db, "image", freed)
    return removals, freed


def _free_images(db: Database) -> list[Image]:
    known = images.every(db)
    used = {image.parent for image in known}
    used |= {image_id for (image_id,) in db.execute("SELECT image FROM mounts")}
    return [image for image in known if image.id not in used]


def prune_mounts(db: Database, *, wanted: Callable[[Mount], bool]) -> tuple[list[Mount], int]:
    """Remove the *wanted* mounts that no daemon runs; see `Store.prune_mounts`."""
    removed = []
    freed = 0
    for candidate in mounts.every(db):
        if not wanted(candidate):
            continue
        with at_rest(db, candidate.id) as mount:
            if mount is not None:
                sizes: dict[str, int] = {}
                _measure(db, stack_of(mount), sizes)
                _remove(db, mount)
                removed.append(mount)
                freed += sum(sizes[layer_id] for layer_id in sizes if not _is_there(db, layer_id))
    _record(db, "container", freed)
    return removed, freed


def forget_mounts(db: Database) -> list[str]:
    """Remove the mounts without a name whose daemon was killed; return a line for each.

    Their daemons would have done so themselves. Raises `LayerfsError`.
    """
    done = []
    for (mount_id,) in db.execute("SELECT id FROM mounts WHERE ephemeral").fetchall():
        with at_rest(db, mount_id) as mount:
            if mount is None:
                continue
            try:
                _remove(db, mount)
                done.append(f"removed {mount.name}: a mount without a name whose daemon was killed")
            except Conflict as error:
                done.append(f"cannot remove {mount.name}, whose daemon was killed: {error}")
    return done


def _remove(db: Database, mount: Mount) -> None:
    if mount.started is not None and mount.mountpoint is not None:
        mounttable.detach(mount.mountpoint, mount.name)
    socket_path(mount.name).unlink(missing_ok=True)
    mounts.remove(db, mount.id)


def _measure(db: Database, layer_ids: Iterable[str], sizes: dict[str, int]) -> None:
    """Enter in *sizes* the bytes of those layers whose trees are the store's own, the only ones that go."""
    for layer_id in layer_ids:
        with suppress(NotFound):  # removed meanwhile
            if layer_id not in sizes and not external.is_outside(db, layers.get(db, layer_id)):
                sizes[layer_id] = layers.size(db, layer_id)


def _is_there(db: Database, layer_id: str) -> bool:
    return db.scalar("SELECT 1 FROM layers WHERE id = ?", (layer_id,)) is not None


def _record(db: Database, kind: str, freed: int) -> None:
    with db.transaction():
        events.record(db, kind, "prune", "", {"reclaimed": str(freed)})
