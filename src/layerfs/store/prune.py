"""Pruning: what nobody needs any more goes, some hundred images or one mount to a transaction.

Whether something is needed is asked again inside its transaction, and mounts are held by their locks, so
nothing that is in use can go, whatever others do meanwhile; killed between two, those that are left stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress

from layerfs.errors import Conflict, NotFound
from layerfs.host import mounttable
from layerfs.host.rundir import running, socket_path
from layerfs.store import events, external, images, layers, mounts, removal
from layerfs.store.atrest import at_rest
from layerfs.store.database import Database
from layerfs.store.images import ImageRow
from layerfs.store.model import Mount, Removal
from layerfs.store.usage import stack_of

_AT_A_TIME = 500
"""Images that go in one transaction: some 30 ms in which no commit can have its turn."""


def prune_images(
    db: Database, *, tagged: bool, wanted: Callable[[ImageRow], bool]
) -> tuple[list[Removal], int]:
    """Remove the *wanted* images that no mount and no other image needs; see `Store.prune_images`.

    The images that can go are chosen in one pass over the graph of what was made from what, and removed a
    bounded number to a transaction, so that a commit never waits long for its turn.
    """
    removals: list[Removal] = []
    freed = 0
    chosen, sizes = _choose(db, tagged, wanted), layers.known_sizes(db)
    for start in range(0, len(chosen), _AT_A_TIME):
        with db.transaction():
            went, doomed = removal.remove_unneeded(db, chosen[start : start + _AT_A_TIME], tagged=tagged)
        freed += sum(layers.size_of_rowless(db, layer_id, sizes) for layer_id in doomed)
        layers.discard(db, *doomed)
        removals += went
    _record(db, "image", freed)
    return removals, freed


def _choose(db: Database, tagged: bool, wanted: Callable[[ImageRow], bool]) -> list[str]:
    """Return the images that can go, each after all that were made from it."""
    with db.snapshot():
        known = {image.id: image for image in images.rows(db)}
        used = {image_id for (image_id,) in db.execute("SELECT image FROM mounts")}
    children = Counter(image.parent for image in known.values())
    free = [image for image in known.values() if not children[image.id]]
    chosen = []
    while free:
        image = free.pop()
        if image.id in used or (image.tags and not tagged) or not wanted(image):
            continue
        chosen.append(image.id)
        if image.parent is not None:
            children[image.parent] -= 1
            if not children[image.parent]:
                free.append(known[image.parent])
    return chosen


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
                freed += sum(sizes[layer_id] for layer_id in sizes if not layers.exists(db, layer_id))
    _record(db, "container", freed)
    return removed, freed


def forget_mounts(db: Database) -> list[str]:
    """Remove the mounts without a name whose daemon was killed, and those of builds; return a line for each.

    Their daemons, or the builds, would have done so themselves. Raises `LayerfsError`.
    """
    done = []
    query = (
        "SELECT id FROM mounts WHERE ephemeral OR (build NOT NULL AND build NOT IN (SELECT id FROM builds))"
    )
    for (mount_id,) in db.execute(query).fetchall():
        with at_rest(db, mount_id) as mount:
            if mount is None:
                continue
            try:
                _remove(db, mount)
                what = (
                    "a mount without a name whose daemon"
                    if mount.build is None
                    else "a mount of a build that"
                )
                done.append(f"removed {mount.name}: {what} was killed")
            except Conflict as error:
                done.append(f"cannot remove {mount.name}, whose daemon was killed: {error}")
    return done


def _remove(db: Database, mount: Mount) -> None:
    if mount.started is not None and mount.mountpoint is not None:
        mounttable.detach(mount.mountpoint, running(mount.name)[1])
    socket_path(mount.name).unlink(missing_ok=True)
    mounts.remove(db, mount.id)


def _measure(db: Database, layer_ids: Iterable[str], sizes: dict[str, int]) -> None:
    """Enter in *sizes* the bytes of those layers whose trees are the store's own, the only ones that go."""
    for layer_id in layer_ids:
        with suppress(NotFound):  # removed meanwhile
            if layer_id not in sizes and not external.is_outside(db, layers.get(db, layer_id)):
                sizes[layer_id] = layers.size(db, layer_id)


def _record(db: Database, kind: str, freed: int) -> None:
    with db.transaction():
        events.record(db, kind, "prune", "", {"reclaimed": str(freed)})
