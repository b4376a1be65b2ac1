"""What a build needs until its end is held for it: steps that nobody else owns yet, or no longer.

A build is a row, with a scratch directory whose `flock` says that its process lives. Whatever ends that
process, recovery lets go of what was held for it. Steps that have got another owner by then stay.
"""

from __future__ import annotations

import os

from layerfs.errors import NotFound
from layerfs.store import layers, stacks
from layerfs.store.database import Database


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
