"""Images: writing and reading their rows, finding them by reference, tags and history."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sqlite3
from collections.abc import Sequence
from typing import Any

from layerfs.errors import BadRequest, NotFound
from layerfs.store import events, layers
from layerfs.store.database import Database
from layerfs.store.model import HistoryEntry, HistoryRow, Image, now, to_datetime, to_nanoseconds
from layerfs.store.references import id_prefix, normalize

_GO_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def insert(
    db: Database,
    *,
    layer_ids: Sequence[str],
    history: Sequence[HistoryEntry],
    config: dict[str, Any],
    author: str,
    comment: str,
    parent: str | None = None,
) -> Image:
    """Write a new image's rows and return it; part of a transaction that also writes its layers' rows.

    Its id is the SHA-256 of everything it consists of, as canonical JSON.
    """
    created = now()
    machine = platform.machine()
    architecture = _GO_MACHINES.get(machine, machine)
    document = {
        "architecture": architecture,
        "author": author,
        "comment": comment,
        "config": config,
        "created": created,
        "history": [
            [to_nanoseconds(step.created), step.created_by, step.author, step.comment, step.layer]
            for step in history
        ],
        "layers": list(layer_ids),
        "os": "linux",
        "parent": parent,
    }
    image_id = hashlib.sha256(canonical_json(document).encode("ascii")).hexdigest()
    db.execute(
        "INSERT INTO images (id, parent, created, author, comment, architecture, os, config)"
        " VALUES (?, ?, ?, ?, ?, ?, 'linux', ?)",
        (image_id, parent, created, author, comment, architecture, canonical_json(config)),
    )
    insert_stack(db, "image", image_id, layer_ids, history)
    return Image(
        image_id,
        tuple(layer_ids),
        config,
        tuple(history),
        to_datetime(created),
        author,
        comment,
        parent,
        architecture,
        "linux",
        (),
    )


def canonical_json(value: object) -> str:
    """Return the one JSON text of *value*: keys sorted, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def insert_stack(
    db: Database, owner: str, owner_id: str, layer_ids: Sequence[str], history: Sequence[HistoryEntry]
) -> None:
    """Write the layers and the history of an *owner*, which is an "image" or a "mount"."""
    for position, layer in enumerate(layer_ids):
        append_layer(db, owner, owner_id, position, layer)
    for position, step in enumerate(history):
        append_step(db, owner, owner_id, position, step)


def append_layer(db: Database, owner: str, owner_id: str, position: int, layer_id: str) -> None:
    """Write one layer of the stack of an "image" or a "mount"."""
    db.execute(
        f"INSERT INTO {owner}_layers ({owner}, position, layer) VALUES (?, ?, ?)",
        (owner_id, position, layer_id),
    )


def append_step(db: Database, owner: str, owner_id: str, position: int, step: HistoryEntry) -> None:
    """Write one step of the history of an "image" or a "mount"."""
    created = to_nanoseconds(step.created)
    db.execute(
        f"INSERT INTO {owner}_history ({owner}, position, created, created_by, author, comment, layer)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (owner_id, position, created, step.created_by, step.author, step.comment, step.layer),
    )


def stack_layers(db: Database, owner: str, owner_id: str) -> tuple[str, ...]:
    """Return the layers of an "image" or a "mount", bottom first."""
    rows = db.execute(f"SELECT layer FROM {owner}_layers WHERE {owner} = ? ORDER BY position", (owner_id,))
    return tuple(layer for (layer,) in rows)


def stack_history(db: Database, owner: str, owner_id: str) -> tuple[HistoryEntry, ...]:
    """Return the history of an "image" or a "mount", oldest first."""
    rows = db.execute(
        f"SELECT created, created_by, author, comment, layer FROM {owner}_history"
        f" WHERE {owner} = ? ORDER BY position",
        (owner_id,),
    )
    return tuple(
        HistoryEntry(to_datetime(created), created_by, author, comment, layer is None, layer)
        for created, created_by, author, comment, layer in rows
    )


def get(db: Database, image_id: str) -> Image:
    """Return the image with exactly this id; raises `NotFound`."""
    with db.snapshot():
        row = db.execute("SELECT * FROM images WHERE id = ?", (image_id,)).fetchone()
        if row is None:
            raise NotFound(f"no such image: {image_id}")
        return _from_row(db, row)


def every(db: Database) -> list[Image]:
    """Return all images, newest first."""
    with db.snapshot():
        rows = db.execute("SELECT * FROM images ORDER BY created DESC, id").fetchall()
        return [_from_row(db, row) for row in rows]


def resolve(db: Database, reference: str) -> Image:
    """Return the image that *reference* means: a name, an id, or the beginning of one.

    Raises `NotFound`, or `BadRequest` for what can be no reference and for an ambiguous beginning.
    """
    with db.snapshot():
        prefix = id_prefix(reference)
        if prefix and len(prefix) == 64:
            found: object = db.scalar("SELECT id FROM images WHERE id = ?", (prefix,))
        elif reference.startswith("sha256:") and prefix:
            found = _by_prefix(db, prefix)
        else:
            name = normalize(reference)
            found = db.scalar("SELECT image FROM tags WHERE name = ?", (name,))
            if found is None and prefix:
                found = _by_prefix(db, prefix)
        if found is None:
            raise NotFound(f"no such image: {reference}")
        return get(db, str(found))


def named_by_id(image: Image, reference: str) -> bool:
    """Tell whether *reference*, which resolved to *image*, is (the beginning of) its id, not a tag."""
    prefix = id_prefix(reference)
    if prefix is None or not image.id.startswith(prefix):
        return False
    return len(prefix) == 64 or reference.startswith("sha256:") or normalize(reference) not in image.tags


def history(db: Database, image: Image) -> list[HistoryRow]:
    """Return the steps that made *image*, newest first, with sizes; measures what nobody measured yet."""
    with db.snapshot():
        ends: dict[int, Image] = {}
        ancestor = image
        while True:
            ends.setdefault(len(ancestor.history), ancestor)
            if ancestor.parent is None:
                break
            ancestor = get(db, ancestor.parent)
    rows = []
    for count, step in enumerate(image.history, 1):
        end = ends.get(count)
        rows.append(
            HistoryRow(
                end.id if end else "<missing>",
                step.created,
                step.created_by,
                layers.size(db, step.layer) if step.layer else 0,
                step.comment,
                end.tags if end else (),
            )
        )
    return rows[::-1]


def size(db: Database, image: Image) -> int:
    """Return the bytes of all layers of *image*."""
    return sum(layers.size(db, layer) for layer in image.layers)


def tag(db: Database, image_id: str, reference: str) -> str:
    """Give an image a name, taking it from the image that had it; return it normalized.

    Part of a transaction. Raises `BadRequest`, `NotFound`.
    """
    name = normalize(reference)
    if db.scalar("SELECT id FROM images WHERE id = ?", (image_id,)) is None:
        raise NotFound(f"no such image: {image_id}")
    db.execute("INSERT OR REPLACE INTO tags (name, image) VALUES (?, ?)", (name, image_id))
    events.record(db, "image", "tag", image_id, {"name": name})
    return name


def untag(db: Database, name: str) -> None:
    """Take a (normalized) name away; part of a transaction. Raises `NotFound`."""
    image_id = db.scalar("DELETE FROM tags WHERE name = ? RETURNING image", (name,))
    if image_id is None:
        raise NotFound(f"no such image: {name}")
    events.record(db, "image", "untag", str(image_id), {"name": name})


def _by_prefix(db: Database, prefix: str) -> str | None:
    if not re.fullmatch("[0-9a-f]+", prefix):
        return None
    found = [row[0] for row in db.execute("SELECT id FROM images WHERE id GLOB ? LIMIT 2", (prefix + "*",))]
    if len(found) > 1:
        raise BadRequest(f"several images have an id that begins with {prefix}: give more of it")
    return found[0] if found else None


def _from_row(db: Database, row: sqlite3.Row) -> Image:
    image_id, parent, created, author, comment, architecture, system, config = row
    tags = db.execute("SELECT name FROM tags WHERE image = ? ORDER BY name", (image_id,))
    return Image(
        image_id,
        stack_layers(db, "image", image_id),
        json.loads(config),
        stack_history(db, "image", image_id),
        to_datetime(created),
        author,
        comment,
        parent,
        architecture,
        system,
        tuple(name for (name,) in tags),
    )
