"""Names that images have in registries by the digest of their manifest: `debian@sha256:...`.

A pull and a push note them. One goes with the last tag of its repository, and with its image.
"""

from __future__ import annotations

import re

from layerfs.errors import BadRequest, NotFound
from layerfs.store.database import Database
from layerfs.store.references import normalize, repository

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


def is_one(reference: str) -> bool:
    """Return whether *reference* is to be such a name."""
    return "@" in reference


def parse(reference: str) -> str:
    """Return *reference* as `repository@digest`; a tag in it says nothing. Raises `BadRequest`."""
    name, _, digest = reference.partition("@")
    if not _DIGEST.fullmatch(digest):
        raise BadRequest(f"invalid reference format: {reference[:200]!r}: {digest[:100]!r} is no digest")
    return f"{repository(normalize(name))}@{digest}"


def note(db: Database, image_id: str, name: str) -> None:
    """Give an image a name, which another one loses; part of a transaction. Raises `NotFound`."""
    if db.scalar("SELECT id FROM images WHERE id = ?", (image_id,)) is None:
        raise NotFound(f"no such image: {image_id}")
    db.execute("INSERT OR REPLACE INTO digests (name, image) VALUES (?, ?)", (name, image_id))


def find(db: Database, name: str) -> str | None:
    """Return the id of the image with this name, None where there is none."""
    found = db.scalar("SELECT image FROM digests WHERE name = ?", (name,))
    return str(found) if found is not None else None


def of(db: Database, image_id: str) -> tuple[str, ...]:
    """Return the names of an image."""
    rows = db.execute("SELECT name FROM digests WHERE image = ? ORDER BY name", (image_id,))
    return tuple(name for (name,) in rows)


def drop(db: Database, image_id: str, wanted: str | None = None) -> list[str]:
    """Take from an image its names in the repository *wanted*, or all; return them. Part of a transaction."""
    names = [name for name in of(db, image_id) if wanted is None or name.partition("@")[0] == wanted]
    for name in names:
        db.execute("DELETE FROM digests WHERE name = ?", (name,))
    return names
