"""Images: writing and reading their rows, finding them by reference, tags and history."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from datetime import datetime
from platform import machine as machine_name
from typing import Any, NamedTuple

from layerfs.errors import BadRequest, NotFound
from layerfs.store import digests, events, layers
from layerfs.store.database import Database, Value
from layerfs.store.model import HistoryEntry, HistoryRow, Image, now, to_datetime
from layerfs.store.references import id_prefix, normalize
from layerfs.store.stacks import all_histories, canonical_json, digest, layers_in, with_ids
from layerfs.store.stacks import history as history_of

_COLUMNS = "id, step, parent, created, author, comment, architecture, os, config"
_GO_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


class ImageRow(NamedTuple):
    """An image without its history and layers: those cost a walk down its whole stack."""

    id: str
    step: str
    parent: str | None
    created: datetime
    config: dict[str, Any]
    tags: tuple[str, ...]
    digests: tuple[str, ...]


def row(db: Database, image_id: str) -> ImageRow:
    """Return the row of the image with exactly this id; raises `NotFound`."""
    query = "SELECT id, step, parent, created, config FROM images WHERE id = ?"
    found = db.execute(query, (image_id,)).fetchone()
    if found is None:
        raise NotFound(f"no such image: {image_id}")
    return _as_row(found, _tags(db, image_id), digests.of(db, image_id))


def rows(db: Database) -> list[ImageRow]:
    """Return the rows of all images, newest first."""
    with db.snapshot():
        tags: defaultdict[str, list[str]] = defaultdict(list)
        for name, image_id in db.execute("SELECT name, image FROM tags ORDER BY name"):
            tags[image_id].append(name)
        by_digest: defaultdict[str, list[str]] = defaultdict(list)
        for name, image_id in db.execute("SELECT name, image FROM digests ORDER BY name"):
            by_digest[image_id].append(name)
        query = "SELECT id, step, parent, created, config FROM images ORDER BY created DESC, id"
        return [
            _as_row(found, tuple(tags[found[0]]), tuple(by_digest[found[0]])) for found in db.execute(query)
        ]


def _as_row(found: tuple[Any, ...], tags: tuple[str, ...], by_digest: tuple[str, ...]) -> ImageRow:
    image_id, step, parent, created, config = found
    return ImageRow(image_id, step, parent, to_datetime(created), json.loads(config), tags, by_digest)


def insert(
    db: Database,
    *,
    step: str,
    history: tuple[HistoryEntry, ...],
    config: dict[str, Any],
    author: str,
    comment: str,
    parent: str | None = None,
    created: int | None = None,
    platform: tuple[str, str] | None = None,
) -> Image:
    """Write the row of a new image and return it; part of a transaction.

    *history* is that of *step*. The image's id is the SHA-256 of everything it consists of, so with the
    same time *created* (now by default) the same image is found, not made again. *platform* is architecture
    and system; by default what it was made from says them, and without a parent it is for this machine's.
    """
    created = now() if created is None else created
    architecture, system = platform or _platform(db, parent)
    columns: dict[str, Value] = {
        "architecture": architecture,
        "author": author,
        "comment": comment,
        "config": canonical_json(config),
        "created": created,
        "os": system,
        "parent": parent,
        "step": step,
    }
    image_id = digest({**columns, "config": config})
    if db.scalar("SELECT 1 FROM images WHERE id = ?", (image_id,)) is not None:
        return get(db, image_id)
    names = ", ".join(columns)
    db.execute(
        f"INSERT INTO images (id, {names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (image_id, *columns.values())
    )
    return Image(
        id=image_id,
        layers=layers_in(history),
        config=config,
        history=history,
        created=to_datetime(created),
        author=author,
        comment=comment,
        parent=parent,
        architecture=architecture,
        os=system,
        tags=(),
    )


def _platform(db: Database, parent: str | None) -> tuple[str, str]:
    """Return architecture and system of the image *parent*, or of this machine."""
    if parent is not None:
        query = "SELECT architecture, os FROM images WHERE id = ?"
        architecture, system = db.execute(query, (parent,)).fetchone()
        return architecture, system
    machine = machine_name()
    return _GO_MACHINES.get(machine, machine), "linux"


def get(db: Database, image_id: str) -> Image:
    """Return the image with exactly this id; raises `NotFound`."""
    with db.snapshot():
        row = db.execute(f"SELECT {_COLUMNS} FROM images WHERE id = ?", (image_id,)).fetchone()
        if row is None:
            raise NotFound(f"no such image: {image_id}")
        return _from_row(db, row, history_of(db, row[1]))


def every(db: Database) -> list[Image]:
    """Return all images, newest first."""
    with db.snapshot():
        rows = db.execute(f"SELECT {_COLUMNS} FROM images ORDER BY created DESC, id").fetchall()
        histories = all_histories(db) if rows else {}
        return [_from_row(db, row, histories[row[1]]) for row in rows]


def resolve(db: Database, reference: str) -> Image:
    """Return the image that *reference* means: a name, by tag or by digest, an id, or the beginning of one.

    Raises `NotFound`, or `BadRequest` for what can be no reference and for an ambiguous beginning.
    """
    with db.snapshot():
        prefix = id_prefix(reference)
        if digests.is_one(reference):
            found: object = digests.find(db, digests.parse(reference))
        elif prefix and len(prefix) == 64:
            found = db.scalar("SELECT id FROM images WHERE id = ?", (prefix,))
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


def named_by_id(image: Image | ImageRow, reference: str) -> bool:
    """Tell whether *reference*, which resolved to *image*, is (the beginning of) its id, not a tag."""
    prefix = id_prefix(reference)
    if prefix is None or not image.id.startswith(prefix):
        return False
    return len(prefix) == 64 or reference.startswith("sha256:") or normalize(reference) not in image.tags


def history(db: Database, image: Image) -> list[HistoryRow]:
    """Return the steps that made *image*, newest first, with sizes; measures what nobody measured yet."""
    with db.snapshot():
        top = db.scalar("SELECT step FROM images WHERE id = ?", (image.id,))
        if top is None:
            raise NotFound(f"no such image: {image.id}")
        steps = with_ids(db, str(top))
        made_from = _ancestors(db, image)
        ends = [made_from.get(step, ("<missing>", ())) for step, _ in steps[:-1]]
        ends.append((image.id, image.tags))
    rows = [
        HistoryRow(
            image_id,
            entry.created,
            entry.created_by,
            layers.size(db, entry.layer) if entry.layer else 0,
            entry.comment,
            tags,
        )
        for (_, entry), (image_id, tags) in zip(steps, ends, strict=True)
    ]
    return rows[::-1]


def _ancestors(db: Database, image: Image) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return id and tags of the images that *image* was made from here, by the step that each ends with."""
    found = {}
    parent: Value = image.parent
    while parent is not None:
        step, above = db.execute("SELECT step, parent FROM images WHERE id = ?", (parent,)).fetchone()
        found[step] = (str(parent), _tags(db, str(parent)))
        parent = above
    return found


def nearest(db: Database, step: str, *, of: str = "") -> str | None:
    """Return the newest image, but *of*, that ends with *step*, or with the next step below that has one."""
    query = """
        WITH RECURSIVE chain (id, parent) AS (
            SELECT id, parent FROM steps WHERE id = ?1
            UNION ALL
            SELECT steps.id, steps.parent FROM chain JOIN steps ON steps.id = chain.parent
        )
        SELECT id FROM images WHERE id != ?2 AND step = (  -- rows come from the top
            SELECT id FROM chain
            WHERE EXISTS (SELECT 1 FROM images WHERE step = chain.id AND images.id != ?2) LIMIT 1
        )
        ORDER BY created DESC LIMIT 1
    """
    found = db.scalar(query, (step, of))
    return str(found) if found is not None else None


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


def _tags(db: Database, image_id: str) -> tuple[str, ...]:
    rows = db.execute("SELECT name FROM tags WHERE image = ? ORDER BY name", (image_id,))
    return tuple(name for (name,) in rows)


def _from_row(db: Database, row: tuple[Any, ...], past: tuple[HistoryEntry, ...]) -> Image:
    image_id, _, parent, created, author, comment, architecture, system, config = row
    return Image(
        id=image_id,
        layers=layers_in(past),
        config=json.loads(config),
        history=past,
        created=to_datetime(created),
        author=author,
        comment=comment,
        parent=parent,
        architecture=architecture,
        os=system,
        tags=_tags(db, image_id),
        digests=digests.of(db, image_id),
    )
