"""Uppers that people bring along (`--upper DIR --work DIR`).

Such an upper is an active layer whose row has a path. On a commit its tree moves into the store and a
fresh, empty one takes its place: the two directories are exchanged in one system call inside the
transaction, so both must be on the store's filesystem. Before that, `layers/ID/exchange` notes the
fresh tree's inode number; after a crash it tells whether the exchange took place.
"""

from __future__ import annotations

import os
from pathlib import Path

from layerfs.errors import BadRequest, Conflict, from_os_error
from layerfs.store import layers
from layerfs.store.database import Database
from layerfs.store.model import Layer, now
from layerfs.store.system import copy_attributes, exchange, remove_trees


def check_upper(db: Database, upper: Path, work: Path | None, *, writable: bool) -> None:
    """Raise the `LayerfsError` for directories that cannot serve as an upper and its work directory.

    One that is not to be written to needs no work directory.
    """
    _check_directory(upper.absolute(), "upper", writable=writable)
    if writable:
        _check_work(upper.absolute(), work and work.absolute())
    _check_unused(db, upper, work)


def _check_directory(path: Path, what: str, *, writable: bool) -> None:
    if not path.is_dir():
        raise BadRequest(f"the {what} directory {path} is not a directory")
    if not os.access(path, os.R_OK | os.X_OK | (os.W_OK if writable else 0)):
        verb = "write to" if writable else "read"
        raise from_os_error(PermissionError(13, "Permission denied", str(path)), f"{verb} the {what}")


def _check_work(upper: Path, work: Path | None) -> None:
    if work is None:
        raise BadRequest(f"the upper {upper} has no work directory: give one, or mount read-only")
    _check_directory(work, "work", writable=True)
    if upper.stat().st_dev != work.stat().st_dev:
        raise BadRequest(f"the work directory {work} is not on the filesystem of the upper {upper}")
    real_upper, real_work = upper.resolve(), work.resolve()
    if real_upper.is_relative_to(real_work) or real_work.is_relative_to(real_upper):
        raise BadRequest(f"the upper {upper} and the work directory {work} must lie side by side")


def _check_unused(db: Database, upper: Path, work: Path | None) -> None:
    upper = upper.absolute()
    for path in (upper, work.absolute()) if work else (upper,):
        name = db.scalar(
            "SELECT name FROM mounts JOIN layers ON upper = layers.id WHERE ?1 IN (path, work)",
            (os.fsencode(path),),
        )
        if name is not None:
            raise Conflict(f"{path} is in use by the mount {name!s}: remove it first (layerfs rm {name!s})")
    if db.scalar("SELECT id FROM layers WHERE path = ?", (os.fsencode(upper),)) is not None:
        raise Conflict(f"{upper} is in use as a layer below another mount or image: use another upper")


def insert_upper(db: Database, layer_id: str, upper: Path, work: Path | None) -> None:
    """Write the row of an upper outside the store; part of a transaction. Raises `Conflict`."""
    _check_unused(db, upper, work)
    db.execute(
        "INSERT INTO layers (id, state, path, work, created) VALUES (?, 'active', ?, ?, ?)",
        (layer_id, os.fsencode(upper.absolute()), os.fsencode(work.absolute()) if work else None, now()),
    )


def set_work(db: Database, upper: Layer, work: Path | None) -> None:
    """Note the work directory (None: as it is) of an upper to write to; raises as `check_upper`."""
    work = work.absolute() if work else upper.work
    _check_directory(upper.path, "upper", writable=True)
    _check_work(upper.path, work)
    with db.transaction():
        db.execute("UPDATE layers SET work = ? WHERE id = ?", (os.fsencode(str(work)), upper.id))


def is_outside(db: Database, upper: Layer) -> bool:
    """Tell whether the tree of an active layer is not the store's own."""
    return upper.path != layers.directory(db, upper.id) / "fs"


def prepare(db: Database, upper: Layer) -> None:
    """Make the fresh tree that will take the place of an upper outside the store.

    Raises `Conflict` where the two cannot be exchanged.
    """
    if upper.path.stat().st_dev != db.layers.stat().st_dev:
        raise Conflict(
            f"cannot commit {upper.path}: it is not on the filesystem of the store {db.root};"
            " use an upper that is, or mount without --upper"
        )
    own = layers.directory(db, upper.id)
    recover(db, upper)
    (own / "fs").mkdir(mode=0o755)
    copy_attributes(upper.path, own / "fs")
    note = own / "exchange.tmp"
    note.write_text(f"{(own / 'fs').stat().st_ino}\n")
    note.rename(own / "exchange")


def seal(db: Database, upper: Layer, new_id: str) -> None:
    """Write what a commit makes of an upper outside and of the one that follows it there."""
    db.execute("UPDATE layers SET state = 'sealed', path = NULL, work = NULL WHERE id = ?", (upper.id,))
    db.execute(
        "INSERT INTO layers (id, state, path, work, created) VALUES (?, 'active', ?, ?, ?)",
        (new_id, os.fsencode(upper.path), os.fsencode(upper.work or b""), now()),
    )


def swap(db: Database, upper: Layer) -> None:
    """Exchange an upper's tree and the fresh one; raises `LayerfsError`. Done twice, it undoes itself."""
    try:
        exchange(upper.path, layers.directory(db, upper.id) / "fs")
    except OSError as error:
        raise from_os_error(error, f"move {upper.path} into the store") from None


def finish(db: Database, upper: Layer) -> None:
    """Forget what was noted for the exchange: the commit is done."""
    (layers.directory(db, upper.id) / "exchange").unlink(missing_ok=True)
    layers.keep(upper.id)


def recover(db: Database, layer: Layer) -> str | None:
    """Undo a commit that was cut short before its transaction ended; the caller holds the layer's lock.

    Returns a line that says what was done, if anything. Raises `OSError` or `LayerfsError`.
    """
    own = layers.directory(db, layer.id)
    note = own / "exchange"
    done = None
    if layer.state == "active" and (own / "fs").exists():
        if note.exists() and (own / "fs").stat().st_ino != int(note.read_text()):
            exchange(layer.path, own / "fs")
            done = f"gave {layer.path} its tree back: its commit was cut short"
        remove_trees(own / "fs")
    note.unlink(missing_ok=True)
    return done
