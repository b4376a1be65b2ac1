"""Removing images, by the rules of Docker's `DELETE /images/{name}`."""

from __future__ import annotations

from collections.abc import Sequence

from layerfs.errors import Conflict
from layerfs.store import digests, events, images, layers, stacks
from layerfs.store.database import Database
from layerfs.store.images import ImageRow
from layerfs.store.model import Removal
from layerfs.store.references import normalize, repository


def remove_image(db: Database, reference: str, *, force: bool, prune: bool) -> list[Removal]:
    """Untag an image and, when nothing needs it any more, delete it; see `Store.remove_image`."""
    removals: list[Removal] = []
    doomed: list[str] = []
    with db.transaction():
        image = images.row(db, images.resolve(db, reference).id)
        by_id = images.named_by_id(image, reference)
        keep_quietly = False
        if not by_id:
            by_digest = digests.is_one(reference)
            name = digests.parse(reference) if by_digest else normalize(reference)
            users = _users(db, image)
            if not force and _is_in_one_place(image) and users:
                raise Conflict(
                    f'conflict: unable to remove repository reference "{reference}" (must force)'
                    f" - mount {users[0][0]} is using its referenced image {image.id[:12]}"
                )
            removals += _untag(db, image, name)
            keep_quietly = True
        elif not force and len(_repositories(image)) > 1:
            raise _conflict(image, "must be forced", "image is referenced in multiple repositories")
        image = images.row(db, image.id)
        if by_id or not (image.tags or image.digests):
            reason = _why_not(db, image, force)
            if reason is None:
                _delete(db, image, removals, doomed)
                if prune:
                    _delete_parents(db, image.parent, removals, doomed)
            elif not keep_quietly:
                raise reason
    layers.discard(db, *doomed)
    return removals


def remove_unneeded(
    db: Database, image_ids: Sequence[str], *, tagged: bool
) -> tuple[list[Removal], list[str]]:
    """Delete those of the images that nothing needs and, without *tagged*, that have no tag.

    Part of a transaction. Images made from others must come before those. Each is looked at again here, so
    one that has gone, or is needed since it was chosen, is passed over. Returns what went, in order, and the
    layers among it: the caller calls `layers.discard` for these once the transaction has ended.
    """
    removals: list[Removal] = []
    doomed: list[str] = []
    for image_id in image_ids:
        if db.scalar("SELECT 1 FROM images WHERE id = ?", (image_id,)) is None:
            continue
        image = images.row(db, image_id)
        if (tagged or not image.tags) and _why_not(db, image, force=False) is None:
            _delete(db, image, removals, doomed)
    return removals, doomed


def _delete_parents(db: Database, parent: str | None, removals: list[Removal], doomed: list[str]) -> None:
    """Delete the image *parent* and those that it was made from, up to one that is named or needed."""
    while parent is not None:
        image = images.row(db, parent)
        if image.tags or image.digests or _why_not(db, image, force=False) is not None:
            return
        _delete(db, image, removals, doomed)
        parent = image.parent


def _delete(db: Database, image: ImageRow, removals: list[Removal], doomed: list[str]) -> None:
    """Delete an image that nothing needs, with its names and the steps and layers that were its alone."""
    for name in image.tags:
        images.untag(db, name)
        removals.append(Removal(untagged=name))
    removals += [Removal(untagged=name) for name in digests.drop(db, image.id)]
    db.execute("UPDATE mounts SET parent = ? WHERE parent = ?", (image.parent, image.id))
    db.execute("DELETE FROM images WHERE id = ?", (image.id,))
    events.record(db, "image", "delete", image.id, {"name": f"sha256:{image.id}"})
    removals.append(Removal(deleted=f"sha256:{image.id}"))
    unused = stacks.release(db, image.step)
    removals += [Removal(deleted=f"sha256:{layer_id}") for layer_id in unused]
    doomed += unused


def _untag(db: Database, image: ImageRow, name: str) -> list[Removal]:
    """Take a name from an image; with the last tag of a repository, the names by digest in it go too."""
    if digests.is_one(name):
        db.execute("DELETE FROM digests WHERE name = ?", (name,))
        events.record(db, "image", "untag", image.id, {"name": name})
        return [Removal(untagged=name)]
    images.untag(db, name)
    home = repository(name)
    others = any(tag != name and repository(tag) == home for tag in image.tags)
    gone = [] if others else digests.drop(db, image.id, home)
    return [Removal(untagged=each) for each in (name, *gone)]


def _repositories(image: ImageRow) -> set[str]:
    return {repository(tag) for tag in image.tags} | {name.partition("@")[0] for name in image.digests}


def _is_in_one_place(image: ImageRow) -> bool:
    """Return whether all names of an image are in one repository, and one of them at most is a tag."""
    return len(image.tags) <= 1 and len(_repositories(image)) == 1


def _why_not(db: Database, image: ImageRow, force: bool) -> Conflict | None:
    if db.scalar("SELECT id FROM images WHERE parent = ?", (image.id,)) is not None:
        return _conflict(image, "cannot be forced", "image has dependent child images")
    for name, started in _users(db, image):
        if started is not None:
            return _conflict(image, "cannot be forced", f"image is being used by running mount {name}")
        if not force:
            return _conflict(image, "must be forced", f"image is being used by stopped mount {name}")
    return None


def _users(db: Database, image: ImageRow) -> list[tuple[str, int | None]]:
    """Return name and start of the mounts made from *image*, running ones first."""
    rows = db.execute(
        "SELECT name, started FROM mounts WHERE image = ? ORDER BY started IS NULL, name", (image.id,)
    )
    return [(name, started) for name, started in rows]


def _conflict(image: ImageRow, force: str, why: str) -> Conflict:
    return Conflict(f"conflict: unable to delete {image.id[:12]} ({force}) - {why}")
