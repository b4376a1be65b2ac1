"""Times of a layer's files, none later than a given one: what SOURCE_DATE_EPOCH makes of them."""

from __future__ import annotations

import os

from layerfs.errors import from_os_error
from layerfs.store import layers
from layerfs.store.database import Database
from layerfs.union.trees import boot_id, walk


def clamp(db: Database, layer_id: str, latest: int) -> None:
    """Give all in a sealed layer that was modified after *latest* (nanoseconds) that time of modification.

    For a layer that a build has made for an image with that time, which no other image has: its manifest is
    made anew. Idempotent. Not atomic: killed, it leaves some files as they were. Raises `LayerfsError`.
    """
    try:
        with layers.lock(layers.directory(db, layer_id)):
            layer = layers.get(db, layer_id)
            fd = os.open(layer.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                late = [(path, it.st_atime_ns) for path, it in walk(fd) if it.st_mtime_ns > latest]
                if late and layer.manifest_done:
                    _unsettle(db, layer_id)
                for path, accessed in late:
                    os.utime(path, ns=(accessed, latest), dir_fd=fd, follow_symlinks=False)
            finally:
                os.close(fd)
    except OSError as error:
        raise from_os_error(error, f"set the times in layer {layer_id[:12]}") from None


def _unsettle(db: Database, layer_id: str) -> None:
    """Note that the manifest of a layer says nothing any more, before that is so."""
    with db.transaction():
        update = "UPDATE layers SET manifest_done = 0, sealed_in = ? WHERE id = ?"
        db.execute(update, (boot_id(), layer_id))
    db.sync()
