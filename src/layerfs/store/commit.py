"""Commit: an upper becomes an immutable layer and the top of a new image, in one short transaction.

Without the image it is a *checkpoint*: a step that the mount has on its stack, and nobody else yet.

What touches the file system happens before, in `prepare`: the next upper is made, and belongs to
nobody until the transaction names it. The transaction itself only writes a few rows, however much
the upper holds, so the caller can switch its mount right after it with nothing in between.

What the rows name is on the disk before they are written. They themselves get there when the log is synced.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple, NoReturn, TypeVar

from layerfs.errors import Conflict, NotFound, from_os_error
from layerfs.store import dockerfile, events, external, holds, images, layers, marks, stacks
from layerfs.store.database import Database
from layerfs.store.model import HistoryEntry, Image, Layer, Mount, now, to_datetime
from layerfs.store.references import normalize
from layerfs.union.trees import copy_attributes

_Made = TypeVar("_Made")


class Wording(NamedTuple):
    """What a step says about itself."""

    created_by: str = ""
    """Empty for what the mount's configuration has been running, or the command that commits."""
    comment: str = ""
    author: str = ""
    created: datetime | None = None
    """None for now."""


def check(reference: str | None, changes: Sequence[str]) -> None:
    """Raise `BadRequest` for a reference or Dockerfile instructions that `commit` could not take."""
    if reference:
        normalize(reference)
    dockerfile.apply({}, changes)


def prepare(db: Database, mount: Mount) -> Layer:
    """Make the next upper of *mount* and hold it for `commit` or `abandon`; raises `Conflict` and others."""
    upper = present_upper(db, mount)
    outside = external.is_outside(db, upper)
    new = layers.begin(db) if outside else layers.begin(db, "fs", "work")
    own = layers.directory(db, upper.id if outside else new)
    try:
        if outside:
            layers.hold(db, upper.id)
            external.prepare(db, upper)
        else:
            copy_attributes(upper.path, own / "fs", marks.of_layer(upper))
        layers.bring_to_disk(db, new)
    except BaseException as error:
        layers.discard(db, new)
        layers.keep(upper.id)
        if isinstance(error, OSError):
            raise from_os_error(error, f"make the next upper of {mount.name}") from None
        raise
    work = upper.work if outside else own / "work"
    return Layer(new, "importing", own / "fs", work, to_datetime(now()), None, False)


def abandon(db: Database, mount: Mount, new_upper: Layer) -> None:
    """Remove what `prepare` made for a commit that will not come.

    Where it has come after all, and Ctrl-C came right after its transaction, this only ends what was held.
    """
    if layers.exists(db, new_upper.id):
        for layer_id in (new_upper.id, mount.upper):
            if layer_id:
                layers.keep(layer_id)
        return
    layers.discard_empty(db, new_upper.id)
    with suppress(NotFound):  # the mount may have been removed
        upper = present_upper(db, mount)
        if external.is_outside(db, upper):
            external.recover(db, upper)
            layers.keep(upper.id)


def checkpoint(
    db: Database, mount: Mount, new_upper: Layer, wording: Wording, *, build: str | None, tree: int | None
) -> str:
    """Seal the upper of *mount* as the layer of a new step, and make *new_upper* its upper; return the step.

    The step is held for *build*, if any. *tree* and what is raised are as with `commit`.
    """

    def write(entry: HistoryEntry, step: str, upper: Layer) -> str:
        holds.add(db, build, step)
        events.record(db, "container", "checkpoint", mount.id, _attributes(db, mount, upper, entry.comment))
        return step

    return _seal(db, mount, new_upper, wording, tree, write)


def commit(
    db: Database,
    mount: Mount,
    new_upper: Layer,
    *,
    reference: str | None,
    comment: str,
    author: str,
    changes: Sequence[str],
    created_by: str,
    tree: int | None = None,
) -> Image:
    """Seal the upper of *mount* as the top layer of a new image, and make *new_upper* its upper.

    *tree* is a descriptor on the upper, if it is mounted. No other directory is sealed in its place.
    Raises `StoreBusy` at once when another process is writing: nothing has happened then, and the same
    call may be made again. Raises `BadRequest`, `Conflict` or `NotFound` without having changed anything.
    """
    name = normalize(reference) if reference else None
    config = dockerfile.apply(mount.config, changes)
    write = _image_writer(db, mount, name, comment, author, config)
    return _seal(db, mount, new_upper, Wording(created_by, comment, author), tree, write)


def rehearse(db: Database, mount: Mount, new_upper: Layer) -> None:
    """Do what `commit` does in the database, and undo it: SQLite has read and compiled what that needs then.

    For an upper in the store. Raises as `commit`.
    """
    write_image = _image_writer(db, mount, "rehearsal:latest", "", "", mount.config)

    def write(entry: HistoryEntry, step: str, upper: Layer) -> NoReturn:
        write_image(entry, step, upper)
        raise _RehearsedError

    with suppress(_RehearsedError):
        _seal(db, mount, new_upper, Wording(), None, write)


class _RehearsedError(Exception):
    """Ends a transaction that is not to count."""


def _image_writer(
    db: Database, mount: Mount, name: str | None, comment: str, author: str, config: dict[str, Any]
) -> Callable[[HistoryEntry, str, Layer], Image]:
    """Return what writes, given a new step, the image of it, the image's tag and an event."""

    def write(entry: HistoryEntry, step: str, upper: Layer) -> Image:
        query = "SELECT parent FROM mounts WHERE id = ?"
        image = images.insert(
            db,
            step=step,
            history=stacks.history(db, step),
            config=config,
            author=author,
            comment=comment,
            parent=db.execute(query, (mount.id,)).fetchone()[0],
        )
        db.execute("UPDATE mounts SET parent = ? WHERE id = ?", (image.id, mount.id))
        attributes = _attributes(db, mount, upper, comment) | {"imageID": f"sha256:{image.id}"}
        if name:
            attributes["imageRef"] = name
        events.record(db, "container", "commit", mount.id, attributes)
        return replace(image, tags=(images.tag(db, image.id, name),)) if name else image

    return write


def _seal(
    db: Database,
    mount: Mount,
    new_upper: Layer,
    wording: Wording,
    tree: int | None,
    write: Callable[[HistoryEntry, str, Layer], _Made],
) -> _Made:
    """Seal the upper of *mount* as the layer of a new step, and make *new_upper* its upper.

    *write* is called in the transaction with the step, its id and the upper; what it returns is returned.
    """
    if layers.held(new_upper.id) is None:
        raise Conflict(f"cannot commit {mount.name}: its next upper was not prepared here")
    swapped = None
    try:
        with db.transaction(wait=False):
            upper = present_upper(db, mount)
            query = "SELECT step, options FROM mounts WHERE id = ?"
            below, options = db.execute(query, (mount.id,)).fetchone()
            container = json.loads(options).get("container")
            ran = " ".join(mount.config.get("Cmd") or ()) if container else ""  # as docker's history says it
            made_by = wording.created_by or ran or f"layerfs commit {mount.name}"
            created = wording.created or to_datetime(now())
            entry = HistoryEntry(created, made_by, wording.author, wording.comment, False, upper.id)
            step = stacks.add(db, below, entry)
            if external.is_outside(db, upper):
                external.seal(db, upper, new_upper.id)
            else:
                layers.seal(db, upper.id)
                layers.insert(db, new_upper.id, "active", upper.prefix)
            update = "UPDATE mounts SET upper = ?, step = ? WHERE id = ?"
            db.execute(update, (new_upper.id, step, mount.id))
            made = write(entry, step, upper)
            if external.is_outside(db, upper):
                external.swap(db, upper, tree)
                swapped = upper
    except BaseException:
        if swapped and not layers.exists(db, new_upper.id):  # Ctrl-C may have come after the transaction
            external.swap_back(db, swapped)
        raise
    layers.keep(new_upper.id)
    if swapped:
        layers.keep(swapped.id)
    return made


def _attributes(db: Database, mount: Mount, upper: Layer, comment: str) -> dict[str, str]:
    """Return what an event says of a commit."""
    attributes = {"name": mount.name, "comment": comment}
    if external.is_outside(db, upper):
        attributes[external.COMMITTED] = str(upper.path)
    return attributes


def present_upper(db: Database, mount: Mount) -> Layer:
    """Return the present upper of *mount*, which must be what the caller knows it to be."""
    row = db.execute("SELECT upper FROM mounts WHERE id = ?", (mount.id,)).fetchone()
    if row is None:
        raise NotFound(f"no such mount: {mount.name}")
    if row[0] is None or mount.options.get("ro"):
        raise Conflict(f"cannot commit {mount.name}: it is mounted read-only")
    if row[0] != mount.upper:
        raise Conflict(f"cannot commit {mount.name}: it has been committed since; look at it again")
    return layers.get(db, row[0])
