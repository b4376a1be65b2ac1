"""Removing images, by the rules of Docker's `DELETE /images/{name}`."""

from __future__ import annotations

from contextlib import suppress

from layerfs.errors import Conflict, NotFound
from layerfs.store import events, images, layers, stacks
from layerfs.store.database import Database
from layerfs.store.model import Image, Removal
from layerfs.store.references import normalize, repository


def remove_image(db: Database, reference: str, *, force: bool, prune: bool) -> list[Removal]:
    """Untag an image and, when nothing needs it any more, delete it; see `Store.remove_image`."""
    removals: list[Removal] = []
    doomed: list[str] = []
    with db.transaction():
        image = images.resolve(db, reference)
        by_id = images.named_by_id(image, reference)
        keep_quietly = False
        if not by_id:
            name = normalize(reference)
            users = _users(db, image)
            if not force and len(image.tags) == 1 and users:
                raise Conflict(
                    f'conflict: unable to remove repository reference "{reference}" (must force)'
                    f" - mount {users[0][0]} is using its referenced image {image.id[:12]}"
                )
            images.untag(db, name)
            removals.append(Removal(untagged=name))
            keep_quietly = True
        elif not force and len({repository(tag) for tag in image.tags}) > 1:
            raise _conflict(image, "must be forced", "image is referenced in multiple repositories")
        image = images.get(db, image.id)
        if by_id or not image.tags:
            _delete(db, image, removals, doomed, force=force, prune=prune, quiet=keep_quietly)
    layers.discard(db, *doomed)
    return removals


def remove_unneeded(db: Database, image_id: str, *, tagged: bool) -> tuple[list[Removal], list[str]]:
    """Remove an image unless something needs it or, without *tagged*, it has a name.

    Returns what went, in order, and the layers among it. Says nothing where the image stays, or is gone.
    """
    removals: list[Removal] = []
    doomed: list[str] = []
    with suppress(NotFound), db.transaction():
        image = images.get(db, image_id)
        if tagged or not image.tags:
            _delete(db, image, removals, doomed, force=False, prune=False, quiet=True)
    layers.discard(db, *doomed)
    return removals, doomed


def _delete(
    db: Database,
    image: Image,
    removals: list[Removal],
    doomed: list[str],
    *,
    force: bool,
    prune: bool,
    quiet: bool,
) -> None:
    """Delete an image; where something needs it raise `Conflict`, or leave it when *quiet*."""
    reason = _why_not(db, image, force)
    if reason:
        if quiet:
            return
        raise reason
    for name in image.tags:
        images.untag(db, name)
        removals.append(Removal(untagged=name))
    db.execute("UPDATE mounts SET parent = ? WHERE parent = ?", (image.parent, image.id))
    step = db.scalar("DELETE FROM images WHERE id = ? RETURNING step", (image.id,))
    events.record(db, "image", "delete", image.id, {"name": f"sha256:{image.id}"})
    removals.append(Removal(deleted=f"sha256:{image.id}"))
    unused = stacks.release(db, str(step))
    removals += [Removal(deleted=f"sha256:{layer_id}") for layer_id in unused]
    doomed += unused
    if prune and image.parent:
        parent = images.get(db, image.parent)
        if not parent.tags:
            _delete(db, parent, removals, doomed, force=False, prune=True, quiet=True)


def _why_not(db: Database, image: Image, force: bool) -> Conflict | None:
    if db.scalar("SELECT id FROM images WHERE parent = ?", (image.id,)) is not None:
        return _conflict(image, "cannot be forced", "image has dependent child images")
    for name, started in _users(db, image):
        if started is not None:
            return _conflict(image, "cannot be forced", f"image is being used by running mount {name}")
        if not force:
            return _conflict(image, "must be forced", f"image is being used by stopped mount {name}")
    return None


def _users(db: Database, image: Image) -> list[tuple[str, int | None]]:
    """Return name and start of the mounts made from *image*, running ones first."""
    rows = db.execute(
        "SELECT name, started FROM mounts WHERE image = ? ORDER BY started IS NULL, name", (image.id,)
    )
    return [(name, started) for name, started in rows]


def _conflict(image: Image, force: str, why: str) -> Conflict:
    return Conflict(f"conflict: unable to delete {image.id[:12]} ({force}) - {why}")
