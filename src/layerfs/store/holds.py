"""What a build needs until its end is held for it: steps that nobody else owns yet, or no longer.

A build is a row, with a scratch directory whose `flock` says that its process lives. Whatever ends that
process, recovery lets go of what was held for it. Steps that have got another owner by then stay.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from layerfs.errors import NotFound
from layerfs.store import layers, scratch, stacks
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
        with db.transaction():
            db.execute("INSERT INTO builds (id, created) VALUES (?, ?)", (build.id, now()))
        try:
            yield build
        finally:
            end(db, build.id)


def add(db: Database, build: str | None, step: str) -> None:
    """Hold *step* for a build, if it is for one; part of a transaction.

    Raises `NotFound` for a build that has ended.
    """
    if build is None:
        return
    if db.scalar("SELECT 1 FROM builds WHERE id = ?", (build,)) is None:
        raise NotFound(f"no such build: {build}: it has ended")
    db.execute("INSERT OR IGNORE INTO build_steps (build, step) VALUES (?, ?)", (build, step))


def end(db: Database, build: str) -> None:
    """Let go of all that is held for a build, and forget it. May be repeated. Raises `LayerfsError`."""
    doomed: list[str] = []
    with db.transaction():
        held = db.execute("DELETE FROM build_steps WHERE build = ? RETURNING step", (build,)).fetchall()
        db.execute("DELETE FROM builds WHERE id = ?", (build,))
        for (step,) in held:
            doomed += stacks.release_if_there(db, str(step))
    layers.discard(db, *doomed)


def dead(db: Database) -> list[str]:
    """Return the builds whose process has ended without a word; cheap where there are none."""
    found = []
    for (build,) in db.execute("SELECT id FROM builds").fetchall():
        try:
            with layers.lock(db.root / "tmp" / os.path.basename(build), wait=False) as free:
                found += [str(build)] if free else []
        except (FileNotFoundError, NotADirectoryError):
            found.append(str(build))
    return found


def recover(db: Database) -> list[str]:
    """Let go of what was held for builds whose process was killed; return a line for each."""
    done = []
    for build in dead(db):
        end(db, build)
        done.append(f"let go of what the build {build} held: its process was killed")
    return done
