"""Images that come from elsewhere or go there: their rows, which have a digest that others know them by.

A layer's `diff_id` is the digest of its tar archive, its `chain_id` that of all the archives up to it. A
layer is shared by images with the same archives below it, or, where `alone` says that its tree is what
its archive says whatever lies below, by all images that have the archive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from layerfs.store import digests, events, images, layers, marks, stacks
from layerfs.store.database import Database
from layerfs.store.model import HistoryEntry, Image, to_nanoseconds
from layerfs.store.stacks import canonical_json
from layerfs.union.marking import of_this_process


@dataclass(frozen=True, slots=True)
class NewLayer:
    """A layer that has been unpacked, and has no row yet."""

    id: str
    diff_id: str
    chain_id: str
    size: int
    alone: bool


@dataclass(frozen=True, slots=True)
class NewImage:
    """An image that came in; its history does not name its layers yet."""

    document: bytes
    diff_ids: tuple[str, ...]
    history: tuple[HistoryEntry, ...]
    config: dict[str, Any]
    created: int
    author: str
    architecture: str
    os: str
    tags: tuple[str, ...]
    digests: tuple[str, ...] = ()
    """Names by digest: see `layerfs.store.digests`."""


class Vanished(Exception):
    """A layer that was to be shared has been removed meanwhile."""


def find_image(db: Database, document: bytes) -> Image | None:
    """Return the image with this configuration document; None where the store has none."""
    digest = hashlib.sha256(document).hexdigest()
    found = db.scalar("SELECT id FROM images WHERE digest = ?1 OR id = ?1 LIMIT 1", (digest,))
    return images.get(db, str(found)) if found is not None else None


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """Return what identifies each layer together with all below it (OCI image specification, "ChainID")."""
    chain: list[str] = []
    for digest in diff_ids:
        both = f"{chain[-1]} {digest}" if chain else ""
        chain.append(f"sha256:{hashlib.sha256(both.encode()).hexdigest()}" if both else digest)
    return chain


def shared_layers(db: Database, diff_ids: Sequence[str]) -> dict[str, str]:
    """Return the layers that the store has of a stack of archives, by chain ID, marked as others are here."""
    found = {}
    prefix = marks.name_of(of_this_process())
    for diff_id, chain_id in zip(diff_ids, chain_ids(diff_ids), strict=True):
        layer = db.scalar(
            "SELECT id FROM layers WHERE (chain_id = ?1 OR (diff_id = ?2 AND alone))"
            " AND ifnull(prefix, ?3) = ?3 ORDER BY chain_id = ?1 DESC, created LIMIT 1",
            (chain_id, diff_id, prefix),
        )
        if layer is not None:
            found[chain_id] = str(layer)
    return found


def insert(db: Database, new: NewImage, made: Sequence[NewLayer]) -> tuple[Image, list[str]]:
    """Write the rows of an image and of the layers *made* for it; part of a transaction.

    Returns the image, and which of the layers have been taken into use: another process may have
    been first. Raises `Vanished`.
    """
    if (image := find_image(db, new.document)) is not None:
        _name(db, image, new)
        return images.get(db, image.id), []
    chain = chain_ids(new.diff_ids)
    present = shared_layers(db, new.diff_ids)
    used = [layer for layer in made if layer.chain_id in chain and layer.chain_id not in present]
    for layer in used:
        layers.insert(db, layer.id, "sealed", marks.name_of(of_this_process()), size=layer.size)
        note_diff_id(db, layer.id, layer.diff_id, layer.chain_id, alone=layer.alone)
        present[layer.chain_id] = layer.id
    if any(chain_id not in present for chain_id in chain):
        raise Vanished
    stack = iter(chain)
    history = [
        entry if entry.empty_layer else replace(entry, layer=present[next(stack)]) for entry in new.history
    ]
    platform = (new.architecture, new.os)
    step = stacks.add_all(db, history)
    digest = _insert(db, new.document, step, new.created, new.author, platform, new.config)
    events.record(db, "image", "load", digest, {"name": new.tags[0] if new.tags else f"sha256:{digest}"})
    _name(db, images.get(db, digest), new)
    return images.get(db, digest), [layer.id for layer in used]


class Built(NamedTuple):
    """An image that was built here, and is known by its document from the beginning."""

    image: Image
    """All about it but its id."""
    step: str
    document: bytes


def insert_built(db: Database, new: Built, references: Sequence[str]) -> Image:
    """Write the row of an image that was built, unless it is there, give it names, and return it.

    Raises `NotFound` where its step has gone, and `BadRequest`.
    """
    image = new.image
    with db.transaction():
        stacks.check(db, new.step)
        if (there := find_image(db, new.document)) is not None:
            image_id = there.id
        else:
            created = to_nanoseconds(image.created)
            platform = (image.architecture, image.os)
            image_id = _insert(
                db, new.document, new.step, created, image.author, platform, image.config, image.comment
            )
        name = references[0] if references else f"sha256:{image_id}"
        events.record(db, "image", "build", image_id, {"name": name})
        for reference in references:
            images.tag(db, image_id, reference)
        return images.get(db, image_id)


def _insert(
    db: Database,
    document: bytes,
    step: str,
    created: int,
    author: str,
    platform: tuple[str, str],
    config: dict[str, Any],
    comment: str = "",
) -> str:
    """Write the row of an image that has the digest of its document for its id; return that."""
    digest = hashlib.sha256(document).hexdigest()
    values = (digest, step, created, author, comment, *platform, canonical_json(config), digest, document)
    db.execute(
        "INSERT INTO images (id, step, created, author, comment, architecture, os, config, digest, document)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        values,
    )
    return digest


def _name(db: Database, image: Image, new: NewImage) -> None:
    for tag in new.tags:
        images.tag(db, image.id, tag)
    for name in new.digests:
        digests.note(db, image.id, name)


def note_diff_id(db: Database, layer_id: str, diff_id: str, chain_id: str, *, alone: bool) -> None:
    """Write down the digest of a layer's tar archive; part of a transaction."""
    db.execute(
        "UPDATE layers SET diff_id = ?, chain_id = ?, alone = ? WHERE id = ?",
        (diff_id, chain_id, alone, layer_id),
    )


def document(db: Database, image: Image) -> bytes | None:
    """Return the configuration that an image came with or went out with; None where it did neither."""
    found = db.scalar("SELECT document FROM images WHERE id = ?", (image.id,))
    return found if isinstance(found, bytes) else None


def note_document(db: Database, image: Image, data: bytes) -> None:
    """Write down the configuration with which an image goes out; part of a transaction."""
    digest = hashlib.sha256(data).hexdigest()
    db.execute("UPDATE images SET document = ?, digest = ? WHERE id = ?", (data, digest, image.id))
