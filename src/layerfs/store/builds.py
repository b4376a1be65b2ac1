"""A build that goes on: what holds the steps it needs, and has them settled at its end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from layerfs.store import holds, layers, scratch, settle
from layerfs.store.database import Database
from layerfs.store.model import now


@dataclass(frozen=True, slots=True)
class Build:
    """A build that goes on."""

    id: str
    """To be given to the `Store` of every thread that works for the build."""
    path: Path
    """A directory for the build alone, which goes with it."""


@contextmanager
def building(db: Database) -> Iterator[Build]:
    """Begin a build, and let go of what was held for it when the block ends, however it ends.

    Should this process be killed, `gc.recover` does so. Raises `LayerfsError`.
    """
    with scratch.scratch(db) as own:
        build = Build(own.path.name, own.path)
        # It hears of all that cannot be written from here on: the system tells each open file once.
        watch = os.open(db.layers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with db.transaction():
                db.execute("INSERT INTO builds (id, created) VALUES (?, ?)", (build.id, now()))
            try:
                yield build
            finally:
                sealed = _unsettled(db, build.id)
                holds.end(db, build.id)
                if kept := [layer for layer in sealed if layers.exists(db, layer)]:
                    settle.start(db.root, *kept, watch=watch)
        finally:
            os.close(watch)


def _unsettled(db: Database, build: str) -> list[str]:
    """Return the layers of the steps that are held for a build, as far as nobody has settled them."""
    query = (
        "SELECT layer FROM build_steps JOIN steps ON steps.id = step JOIN layers ON layers.id = layer"
        " WHERE build = ? AND state = 'sealed' AND NOT manifest_done ORDER BY layers.created"
    )
    return [str(layer) for (layer,) in db.execute(query, (build,))]
