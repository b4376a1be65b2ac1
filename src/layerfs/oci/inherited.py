"""What an image says of its platform because the image says so that it was made from."""

from __future__ import annotations

import json
from typing import Any

from layerfs.store import elsewhere, images
from layerfs.store.database import Database
from layerfs.store.model import Image

_FIELDS = ("variant", "os.version", "os.features")


def inherited(db: Database, image: Image, step: str) -> dict[str, Any]:
    """Return the fields for the configuration of *image*, which ends with *step*."""
    parent = image.parent if image.parent is not None else images.nearest(db, step, of=image.id)
    while parent is not None:
        origin = images.get(db, parent)
        if (document := elsewhere.document(db, origin)) is not None:
            fields = json.loads(document)
            return {key: fields[key] for key in _FIELDS if key in fields}
        parent = origin.parent
    return {}
