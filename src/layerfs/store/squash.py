"""Squashing: steps that nobody needs by themselves become one with the step that stands on them.

That step keeps its id and gets one layer in place of several (`union.joining`), on the step that was below
them all. No contents are copied. The table `rebased` keeps what its id is the digest of, and `squashed` where
the X
Until the one transaction that writes it all, the joined layer is a directory that recovery removes; after it,
the layers of before are.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from layerfs.errors import Conflict, NotFound, from_os_error
from layerfs.host.rundir import RunLock
from layerfs.store import layers, manifest, marks, settle
from layerfs.store.database import Database
from layerfs.union.joining import join
from layerfs.union.trees import open_directory, sync_path

_ROOM = 128


class Squashed(NamedTuple):
    """What squashing has done."""

    kept: str
    """The step that has what the others changed, too."""
    steps: tuple[str, ...]
    """Those that are no more, the lowest first."""
    freed: int
    """Bytes of regular files that were in their layers, and show nowhere any more."""


def squash(db: Database, step: str) -> Squashed:
    """Join *step* with the one that stands on it, which keeps its id; see `squash_all`."""
    above = [row[0] for row in db.execute("SELECT id FROM steps WHERE parent = ? LIMIT 2", (step,))]
    if len(above) == 1:
        return squash_all(db, [step, above[0]])
    why = "several checkpoints stand on it" if above else "no checkpoint stands on it that could take it up"
    raise Conflict(f"cannot squash {step[:12]}: {why}")


def squash_all(db: Database, steps: Sequence[str], locked: Collection[str] = ()) -> Squashed:
    """Join *steps*, each of which stands on the one before, into the last one.

    Atomic, and durable on return. It takes time in proportion to the names in their layers. The caller has
    the run locks of the mounts called *locked*. Raises `Conflict` where one of the steps is needed, and while
    a mount of them is in use; `NotFound`, `NoSpace` and others. Then nothing has changed.
    """
    _check(db, steps)
    with _at_rest(db, steps[-1], locked):
        old = _layers_of(db, steps)
        rows = [settle.settle(db, layer) for layer in old]
        new = layers.begin(db, "fs", filling=True)
        try:
            try:
                size = _fill(db, new, old)
            except OSError as error:
                raise from_os_error(error, f"squash {steps[0][:12]}") from None
            with db.transaction():
                _check(db, steps)
                if _layers_of(db, steps) != old:
                    raise Conflict(
                        f"cannot squash {steps[0][:12]}: it has just been squashed by somebody else"
                    )
                layers.insert(db, new, "sealed", rows[-1].prefix, size=size)
                layers.seal(db, new)
                unverified = any(row.unverified for row in rows)
                plain = all(row.plain for row in rows)
                update = "UPDATE layers SET unverified = ?, plain = ? WHERE id = ?"
                db.execute(update, (unverified, plain, new))
                doomed = _write(db, steps, new)
        except BaseException:
            if not layers.exists(db, new):
                layers.discard(db, new)
            raise
        (layers.directory(db, new) / layers.FILLING).unlink(missing_ok=True)
        layers.keep(new)
        layers.discard(db, *doomed)
    return Squashed(steps[-1], tuple(steps[:-1]), max(0, sum(row.size or 0 for row in rows) - size))


def in_images(db: Database) -> set[str]:
    """Return the steps that an image has in its stack."""
    query = """
        WITH RECURSIVE used (id) AS (
            SELECT step FROM images
            UNION SELECT steps.parent FROM used JOIN steps ON steps.id = used.id WHERE parent IS NOT NULL
        )
        SELECT id FROM used
    """
    return {str(step) for (step,) in db.execute(query)}


def why_not(db: Database, step: str) -> str | None:
    """Return why *step*, which no image has, cannot be squashed into the one on it; None if it can."""
    name = db.scalar("SELECT name FROM mounts WHERE step = ?", (step,))
    if name is not None:
        return f"the mount {name!s} stands on it"
    query = "SELECT name FROM checkpoints JOIN mounts ON mounts.id = mount WHERE checkpoints.step = ?"
    name = db.scalar(query, (step,))
    if name is not None:
        return f"the mount {name!s} went back from it, and may go there again"
    for table in ("build_cache", "build_steps"):
        if db.scalar(f"SELECT 1 FROM {table} WHERE step = ?", (step,)) is not None:
            return "a build may need it"
    if db.number("SELECT count(*) FROM (SELECT 1 FROM steps WHERE parent = ? LIMIT 2)", (step,)) > 1:
        return "several checkpoints stand on it"
    if db.scalar("SELECT 1 FROM steps WHERE id = ? AND parent IS NULL", (step,)) is not None:
        return "it is the lowest"
    return None


def _check(db: Database, steps: Sequence[str]) -> None:
    """Raise `Conflict` unless *steps*, a chain, can be joined."""
    image = db.execute(
        """
        WITH RECURSIVE above (id) AS (
            SELECT ?1 UNION SELECT steps.id FROM above JOIN steps ON steps.parent = above.id
        )
        SELECT images.id FROM above JOIN images ON images.step = above.id LIMIT 1
        """,
        (steps[0],),
    ).fetchone()
    if image is not None:
        raise Conflict(f"cannot squash {steps[0][:12]}: the image {image[0][:12]} has it in its stack")
    below = steps[0]
    for number, step in enumerate(steps):
        row = db.execute("SELECT parent, layer FROM steps WHERE id = ?", (step,)).fetchone()
        if row is None:
            raise NotFound(f"no such checkpoint: {step[:12]}: it was removed or squashed")
        if number and row[0] != below:
            raise Conflict(f"cannot squash {steps[0][:12]}: {step[:12]} does not stand on it any more")
        below = step
        if row[1] is None:
            raise Conflict(f"cannot squash {step[:12]}: it has no layer")
        if step != steps[-1] and (why := why_not(db, step)) is not None:
            raise Conflict(f"cannot squash {step[:12]}: {why}")


def _layers_of(db: Database, steps: Sequence[str]) -> list[str]:
    query = "SELECT layer FROM steps JOIN layers ON layers.id = layer WHERE steps.id = ? AND path IS NULL"
    found = [db.scalar(query, (step,)) for step in steps]
    if None in found:
        raise Conflict(f"cannot squash {steps[0][:12]}: a layer of it lies outside the store")
    return [str(layer) for layer in found]


@contextmanager
def _at_rest(db: Database, step: str, locked: Collection[str]) -> Iterator[None]:
    """Keep every mount that is or was on *step* or above from being mounted meanwhile; raises `Conflict`.

    The caller has the locks of those called *locked*.
    """
    query = """
        WITH RECURSIVE above (id) AS (
            SELECT ?1 UNION SELECT steps.id FROM above JOIN steps ON steps.parent = above.id
        )
        SELECT name FROM mounts WHERE step IN (SELECT id FROM above)
            OR id IN (SELECT mount FROM checkpoints WHERE step IN (SELECT id FROM above))
        ORDER BY name
    """
    with ExitStack() as stack:
        for (name,) in db.execute(query, (step,)).fetchall():
            if name not in locked:
                stack.callback(run_lock(name).release)
        yield


def run_lock(name: str) -> RunLock:
    """Return the run lock of a mount, which is not mounted meanwhile; raises `Conflict`."""
    try:
        return RunLock(name)
    except Conflict:
        raise Conflict(f"the mount {name} is in use, and reads these layers: unmount it first") from None


def _fill(db: Database, new: str, old: Sequence[str]) -> int:
    """Write the layers *old*, the lowest first, as one to the layer *new*; on the disk on return.

    Returns its size. Raises `OSError`, `Conflict`.
    """
    own = layers.directory(db, new)
    (own / layers.FILLING).touch()
    for path in (own, db.layers):
        sync_path(path)
    stack = marks.stack(db, layers.get_all(db, old))
    with stack.opened(_ROOM) as opened, open_directory(own / "fs") as target:
        join(opened, target, stack.marking)
    settle.bring_to_rest(own / "fs", own, _digests(db, old))
    return layers.measure(own / "fs")


def _digests(db: Database, old: Sequence[str]) -> dict[int, str]:
    """Return the digests of the files in layers, by inode number, as far as their manifests know them."""
    found: dict[int, str] = {}
    for layer in old:
        own = layers.directory(db, layer)
        with suppress(manifest.Damaged), open_directory(own / "fs") as root:
            for record in manifest.read(own / "manifest"):
                if record.type == "f":
                    with suppress(FileNotFoundError):
                        status = os.stat(record.path, dir_fd=root, follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            found[status.st_ino] = record.detail
    return found


def _write(db: Database, steps: Sequence[str], new: str) -> list[str]:
    """Write that *steps* are one, with the layer *new*; part of a transaction. Returns layers to discard."""
    *gone, kept = steps
    old = _layers_of(db, steps)
    parent, layer = db.execute("SELECT parent, layer FROM steps WHERE id = ?", (kept,)).fetchone()
    values = (kept, parent, layer)
    db.execute("INSERT OR IGNORE INTO rebased (step, parent, layer) VALUES (?, ?, ?)", values)
    lowest = db.scalar("SELECT parent FROM steps WHERE id = ?", (gone[0],))
    db.execute("UPDATE steps SET parent = ?, layer = ? WHERE id = ?", (lowest, new, kept))
    db.execute("DELETE FROM step_changes WHERE step = ?", (kept,))
    chain = """
        UPDATE layers SET chain_id = NULL WHERE chain_id IS NOT NULL AND id IN (
            WITH RECURSIVE above (id, layer) AS (
                SELECT id, layer FROM steps WHERE id = ?1
                UNION SELECT steps.id, steps.layer FROM above JOIN steps ON steps.parent = above.id
            )
            SELECT layer FROM above WHERE layer IS NOT NULL
        )
    """
    db.execute(chain, (kept,))
    for step in reversed(gone):
        db.execute("UPDATE squashed SET kept = ? WHERE kept = ?", (kept, step))
        db.execute("INSERT OR REPLACE INTO squashed (step, kept) VALUES (?, ?)", (step, kept))
        db.execute("DELETE FROM steps WHERE id = ?", (step,))
    return [doomed for each in old for doomed in layers.delete_unused(db, each)]
