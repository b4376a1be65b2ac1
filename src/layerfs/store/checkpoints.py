"""The past of a mount: the steps it has been at, and going back to one of them.

A mount stands on a step, and has been at those below it. What it stood on before it went back is kept for it
as well (table `checkpoints`), with all below: until the mount is removed, it can go there again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from layerfs.errors import BadRequest, Conflict, NotFound, from_os_error
from layerfs.store import commit, events, external, images, layers, marks, revisions, stacks
from layerfs.store.commit import Wording
from layerfs.store.database import Database
from layerfs.store.model import HistoryEntry, Layer, Mount, now, to_datetime
from layerfs.store.references import id_prefix
from layerfs.union.trees import open_directory


class WentBack(NamedTuple):
    """What going back has made of the upper that was there before."""

    kept: str | None
    """The step that it is now, None where it was discarded."""
    discarded: str | None
    """The layer that has no row any more, and whose tree is to be removed (`layers.discard`)."""


def resolve(db: Database, mount: Mount, reference: str) -> str:
    """Return the step in the past of *mount* that *reference* means: "" is the last checkpoint.

    That is an id or its beginning, an image by name or id, or one of these, the mount's name, or nothing,
    with `~N` or `@{WHEN}`: see `revisions`. Raises `NotFound`, and `BadRequest` if it is ambiguous.
    """
    name, suffixes = revisions.split(reference)
    with db.snapshot():
        step = _named(db, mount, name)
        owner = mount.id if name in ("", mount.name) else None
        return revisions.follow(db, revisions.Revision(step, owner), suffixes, reference)


def _named(db: Database, mount: Mount, name: str) -> str:
    present = db.scalar("SELECT step FROM mounts WHERE id = ?", (mount.id,))
    if present is None:
        raise NotFound(f"no such mount: {mount.name}")
    if name in ("", mount.name):
        return str(present)
    wanted = id_prefix(name)
    known = "SELECT id FROM steps WHERE id GLOB ? LIMIT 100"
    candidates = [str(step) for (step,) in db.execute(known, (f"{wanted}*",))] if wanted else []
    found = [step for step in candidates if _is_past(db, mount.id, step)]
    if len(found) > 1:
        raise BadRequest(
            f"several checkpoints of {mount.name} have an id that begins with {name}: give more of it"
        )
    if found:
        return found[0]
    try:
        image = images.resolve(db, name)
    except (NotFound, BadRequest):
        if wanted and (gone := revisions.squashed(db, wanted)):
            raise gone from None
        raise NotFound(
            f"{mount.name} has no checkpoint {name}: it was never there, or that was removed"
        ) from None
    step = str(db.scalar("SELECT step FROM images WHERE id = ?", (image.id,)))
    if not _is_past(db, mount.id, step):
        raise NotFound(f"the image {name} is no checkpoint of {mount.name}: it was never there")
    return step


def _is_past(db: Database, mount_id: str, step: str) -> bool:
    """Tell whether a mount has been at *step*; recent ones are found first."""
    query = """
        WITH RECURSIVE past (id) AS (
            SELECT step FROM mounts WHERE id = ?1
            UNION SELECT step FROM checkpoints WHERE mount = ?1
            UNION SELECT steps.parent FROM past JOIN steps ON steps.id = past.id
            WHERE steps.parent IS NOT NULL
        )
        SELECT 1 FROM past WHERE id = ?2 LIMIT 1
    """
    return db.scalar(query, (mount_id, step)) is not None


def layers_at(db: Database, mount: Mount, step: str) -> Sequence[str]:
    """Return the layers of the stack that *step* stands for, bottom first; quick for a recent one of *mount*.

    Raises `NotFound`, and `Conflict` for a step that has no layers.
    """
    stacks.check(db, step)
    query = """
        WITH RECURSIVE chain (id, parent, layer) AS (
            SELECT id, parent, layer FROM steps WHERE id = ?1
            UNION ALL
            SELECT steps.id, steps.parent, steps.layer FROM chain JOIN steps ON steps.id = chain.parent
            WHERE chain.id != ?2
        )
        SELECT id, layer FROM chain
    """
    present = db.scalar("SELECT step FROM mounts WHERE id = ?", (mount.id,))
    above = db.execute(query, (present, step)).fetchall()
    if above and above[-1][0] == step:
        count = sum(layer is not None for _, layer in above[:-1])
        found: Sequence[str] = mount.layers[: len(mount.layers) - count]
    else:
        found = stacks.layer_ids(db, step)[::-1]
    if not found:
        raise Conflict(f"cannot go back to {step[:12]}: it has no layers")
    return found


def check(db: Database, mount: Mount) -> None:
    """Raise `Conflict` where *mount* cannot go back: it has no upper, or one outside the store."""
    if mount.upper is None or mount.options.get("ro"):
        raise Conflict(f"{mount.name} is read-only: there is nothing to go back from")
    if external.is_outside(db, layers.get(db, mount.upper)):
        path = layers.get(db, mount.upper).path
        raise Conflict(
            f"cannot go back with {mount.name}: what is written to it lies outside the store, in {path}"
        )


def rollback(
    db: Database, mount: Mount, new_upper: Layer, step: str, wording: Wording, *, keep: bool
) -> WentBack:
    """Have *mount* stand on *step*, with *new_upper*; see `Store.rollback`."""
    if layers.held(new_upper.id) is None:
        raise Conflict(f"cannot go back with {mount.name}: its next upper was not prepared here")
    with db.transaction(wait=False):
        upper = commit.present_upper(db, mount)
        check(db, mount)
        stacks.check(db, step)
        tip: str | None = str(db.scalar("SELECT step FROM mounts WHERE id = ?", (mount.id,)))
        layers.insert(db, new_upper.id, "active", upper.prefix)
        parent = _image_at(db, mount, tip, step)
        db.execute(
            "UPDATE mounts SET upper = ?, step = ?, parent = ? WHERE id = ?",
            (new_upper.id, step, parent, mount.id),
        )
        kept = discarded = None
        if keep:
            made_by = wording.created_by or f"layerfs rollback {mount.name}"
            created = wording.created or to_datetime(now())
            comment = wording.comment or f"given up for {step[:12]}"
            entry = HistoryEntry(created, made_by, wording.author, comment, False, upper.id)
            layers.seal(db, upper.id)
            tip = kept = stacks.add(db, tip, entry)
        else:
            (discarded,) = layers.delete_unused(db, upper.id)
        if tip != step:
            add = "INSERT OR IGNORE INTO checkpoints (mount, step, created) VALUES (?, ?, ?)"
            db.execute(add, (mount.id, tip, now()))
        attributes = {"name": mount.name, "step": step} | ({"kept": kept} if kept else {})
        events.record(db, "container", "rollback", mount.id, attributes)
    layers.keep(new_upper.id)
    return WentBack(kept, discarded)


_NEAR = 256
"""Steps that are looked at to find out whether there is an image among them."""


def _image_at(db: Database, mount: Mount, tip: str | None, step: str) -> str | None:
    """Return what `images.nearest` does for *step*; quick for one not far below *tip*, the present."""
    query = """
        WITH RECURSIVE chain (id, parent, depth) AS (
            SELECT id, parent, 0 FROM steps WHERE id = ?1
            UNION ALL
            SELECT steps.id, steps.parent, depth + 1 FROM chain JOIN steps ON steps.id = chain.parent
            WHERE chain.id != ?2 AND depth < ?3
        )
        SELECT id = ?2, EXISTS (SELECT 1 FROM images WHERE step = chain.id) FROM chain ORDER BY depth
    """
    above = db.execute(query, (tip, step, _NEAR)).fetchall()
    if above and above[-1][0] and not any(is_image for _, is_image in above[:-1]):
        parent = db.scalar("SELECT parent FROM mounts WHERE id = ?", (mount.id,))
        return str(parent) if parent is not None else images.nearest(db, step)
    return images.nearest(db, step)


def has_changes(db: Database, mount: Mount) -> bool:
    """Tell whether anything was written to the upper of *mount*. Raises `LayerfsError`."""
    from layerfs.union.generation import is_as_below

    if mount.upper is None:
        return False
    upper, below = (layers.get(db, layer) for layer in (mount.upper, mount.layers[-1]))
    try:
        with open_directory(upper.path) as one, open_directory(below.path) as other:
            return not is_as_below(one, other, marks.of_layer(upper))
    except OSError as error:
        raise from_os_error(error, f"look at what was written to {mount.name}") from None


def match_root(db: Database, upper: Layer, layer_id: str) -> None:
    """Give the root of *upper* what that of the layer has; on the disk on return. Raises `LayerfsError`."""
    from layerfs.union.view import copy_attributes

    below = layers.get(db, layer_id)
    try:
        with open_directory(upper.path) as one, open_directory(below.path) as other:
            copy_attributes(other, one, marks.of_layer(below))
            os.fsync(one)
    except OSError as error:
        raise from_os_error(error, f"make {upper.path}") from None


def layers_of_pasts(db: Database) -> dict[str, set[str]]:
    """Return the layers of what each mount has stood on before it went back, by the mount's id."""
    query = """
        WITH RECURSIVE past (mount, id) AS (
            SELECT mount, step FROM checkpoints
            UNION SELECT past.mount, steps.parent FROM past JOIN steps ON steps.id = past.id
            WHERE steps.parent IS NOT NULL
        )
        SELECT past.mount, steps.layer FROM past JOIN steps ON steps.id = past.id
        WHERE steps.layer IS NOT NULL
    """
    found: dict[str, set[str]] = {}
    for mount, layer in db.execute(query):
        found.setdefault(str(mount), set()).add(str(layer))
    return found


def forget(db: Database, mount_id: str) -> list[str]:
    """Keep nothing for a mount any more; part of a transaction. Returns steps that may be needed no more."""
    rows = db.execute("DELETE FROM checkpoints WHERE mount = ? RETURNING step", (mount_id,)).fetchall()
    return [str(step) for (step,) in rows]
