"""Layers: their rows, and their directories while they are made and when they go.

A tree belongs to the store from the transaction on that writes its row. Until then its maker holds a
`flock` on `layers/ID`. The kernel drops the lock with the process, and the fork of one that copies into the
tree keeps it. An unlocked tree without a row is rubbish only if the table `removable` names it, or if there
is nothing in it: after a power cut it may as well be one whose row was not on the disk yet (see `gc`).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from layerfs.errors import BadRequest, LayerfsError, NotFound, from_os_error
from layerfs.store.database import Database
from layerfs.store.model import Layer, LayerState, now, to_datetime
from layerfs.store.waiting import take
from layerfs.union.marking import OPAQUE, REDIRECT
from layerfs.union.trees import boot_id, list_xattrs, remove_trees, sync_path, walk

GONE = ".gone"
"""Suffix of a layer's directory from the moment it belongs to nobody until it is removed."""
LOST = ".lost"
"""Suffix of a directory that the database does not know though it has files in it: set aside for a person."""
FILLING = "filling"
"""A file in the directory of a layer that a build fills, until that is settled: without a row, it may go."""
_MOMENT = 60.0
"""Seconds to wait for what takes others a moment."""
_RECOVERY = 10.0
"""Seconds that a commit waits for a recovery that looks at its upper."""
_LONG = 3600.0
"""Seconds to wait for another process that measures, hashes or commits a layer."""

_COLUMNS = (
    "id, state, path, work, created, size, manifest_done, diff_id, sealed_in, unverified, prefix, outside,"
    " plain"
)
_AT_A_TIME = 500
_locks: dict[str, int] = {}
"""Descriptors that hold the locks of the layers that this process is making."""


def directory(db: Database, layer_id: str) -> Path:
    """Return the store's directory for a layer: its tree, its manifest, its lock."""
    return db.layers / layer_id


def get(db: Database, layer_id: str) -> Layer:
    """Return the layer with exactly this id; raises `NotFound`."""
    row = db.execute(f"SELECT {_COLUMNS} FROM layers WHERE id = ?", (layer_id,)).fetchone()
    if row is None:
        raise NotFound(f"no such layer: {layer_id}")
    return _from_row(db, row)


def exists(db: Database, layer_id: str) -> bool:
    """Tell whether the store has a row of this layer (still, or already)."""
    return db.scalar("SELECT 1 FROM layers WHERE id = ?", (layer_id,)) is not None


def get_all(db: Database, layer_ids: Sequence[str]) -> list[Layer]:
    """Return these layers, in this order; raises `NotFound`."""
    found: dict[str, Layer] = {}
    for start in range(0, len(layer_ids), _AT_A_TIME):
        some = layer_ids[start : start + _AT_A_TIME]
        query = f"SELECT {_COLUMNS} FROM layers WHERE id IN ({', '.join('?' * len(some))})"
        found.update((row[0], _from_row(db, row)) for row in db.execute(query, some))
    return [found.get(layer_id) or get(db, layer_id) for layer_id in layer_ids]


def every(db: Database) -> list[Layer]:
    """Return all layers that the store has rows of."""
    return [_from_row(db, row) for row in db.execute(f"SELECT {_COLUMNS} FROM layers ORDER BY created")]


def known_sizes(db: Database) -> dict[str, int | None]:
    """Return the bytes of each layer whose tree is in the store, None for one that nobody measured yet."""
    return dict(db.execute("SELECT id, size FROM layers WHERE path IS NULL").fetchall())


def insert(
    db: Database, layer_id: str, state: LayerState, prefix: str | None, *, size: int | None = None
) -> None:
    """Write the row of a layer whose tree is in the store, marked with *prefix*; part of a transaction."""
    db.execute(
        "INSERT INTO layers (id, state, created, size, manifest_done, prefix) VALUES (?, ?, ?, ?, ?, ?)",
        (layer_id, state, now(), size, size is not None, prefix),
    )


def external(db: Database, path: Path) -> Layer:
    """Return the layer for a plain directory outside the store, writing its row when it is new.

    Raises `NotFound`, `BadRequest` or `Forbidden` when *path* is no directory that can be read.
    """
    path = path.absolute()
    try:
        with os.scandir(path):
            pass
    except NotADirectoryError:
        raise BadRequest(f"layer {path} is not a directory") from None
    except OSError as error:
        raise from_os_error(error, "read the layer") from None
    known = "SELECT id FROM layers WHERE path = ?"
    found = db.scalar(known, (os.fsencode(path),))
    if found is None:
        new = begin(db)
        try:
            with db.transaction():
                found = db.scalar(known, (os.fsencode(path),))  # another process may have been first
                if found is None:
                    db.execute(
                        "INSERT INTO layers (id, state, path, created) VALUES (?, 'external', ?, ?)",
                        (new, os.fsencode(path), now()),
                    )
        except BaseException:
            discard(db, new)
            raise
        if found is None:
            keep(new)
        else:
            discard(db, new)
    return get(db, str(found or new))


def begin(db: Database, *parts: str, filling: bool = False) -> str:
    """Make the directory of a new layer, with *parts* in it, and hold its lock; return its id.

    `keep` or `discard` ends what this begins. A layer that is *filling* is written to before it has a row:
    should that be cut short, what is there is removed. Raises `LayerfsError`.
    """
    layer_id = os.urandom(32).hex()
    path = directory(db, layer_id)
    with making(db):
        if filling:
            db.execute("INSERT INTO removable (layer) VALUES (?)", (layer_id,))
        try:
            path.mkdir(mode=0o700)
            _locks[layer_id] = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(_locks[layer_id], fcntl.LOCK_EX | fcntl.LOCK_NB)
            for part in parts:
                (path / part).mkdir(mode=0o755)
        except OSError as error:
            with suppress(OSError, LayerfsError):
                discard(db, layer_id)
            raise from_os_error(error, f"make a layer in {db.layers}") from None
    if filling:
        db.sync()  # or a power cut leaves half an import that nobody knows to be one
    return layer_id


def bring_to_disk(db: Database, layer_id: str) -> None:
    """Bring the directories of a layer that was begun to the disk, not what is in its tree. Raises `OSError`.

    A row that names the layer may be on the disk the moment after it was written, long before directories.
    """
    own = directory(db, layer_id)
    for path in (*own.iterdir(), own, db.layers):
        sync_path(path)


def seal(db: Database, layer_id: str) -> None:
    """Write that an upper is an immutable layer from now on; part of a transaction."""
    db.execute(
        "UPDATE layers SET state = 'sealed', path = NULL, work = NULL, sealed_in = ? WHERE id = ?",
        (boot_id(), layer_id),
    )


def hold(db: Database, layer_id: str) -> None:
    """Take the lock of a layer that has its row already, until `keep`; raises `Conflict`, `OSError`.

    Recovery, which any command may begin, has it for a moment: that is waited for.
    """
    fd = os.open(directory(db, layer_id), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        take(fd, fcntl.LOCK_EX, f"commits or recovers the layer {layer_id[:12]}", _RECOVERY)
    except BaseException:
        os.close(fd)
        raise
    _locks[layer_id] = fd


def held(layer_id: str) -> int | None:
    """Return the descriptor with which this process holds the lock of a layer it is making."""
    return _locks.get(layer_id)


def keep(layer_id: str) -> None:
    """Give up the lock of a layer whose row has been written."""
    fd = _locks.pop(layer_id, None)
    if fd is not None:
        os.close(fd)


def discard(db: Database, *layer_ids: str) -> None:
    """Remove the directories of layers that no row names (any more); raises `LayerfsError`.

    That the rows are gone is on the disk first: a power cut must not bring them back without their trees.
    """
    if layer_ids:
        db.sync()
    gone = []
    for layer_id in layer_ids:
        path = directory(db, layer_id)
        gone.append(path.with_name(path.name + GONE))
        with suppress(FileNotFoundError):  # another process may be cleaning up as well
            path.rename(gone[-1])
    try:
        for start in range(0, len(gone), 500):  # as many as fit a command line
            remove_trees(*gone[start : start + 500])
    finally:
        for layer_id in layer_ids:
            keep(layer_id)


def discard_empty(db: Database, layer_id: str) -> None:
    """Remove the directories of a layer that was begun, that no row ever named and nobody has written to.

    Raises `LayerfsError`.
    """
    own = directory(db, layer_id)
    try:
        for place in ("fs", "work/work", "work", ""):
            with suppress(FileNotFoundError):
                (own / place).rmdir()
    except OSError:
        discard(db, layer_id)
    else:
        keep(layer_id)


def delete_unused(db: Database, layer_id: str) -> list[str]:
    """Delete a layer's row unless a stack or a mount uses it; return its id in a list if it went.

    Part of a transaction, after which the caller calls `discard` for what is returned.
    """
    deleted = db.scalar(
        "DELETE FROM layers WHERE id = ?1"
        " AND NOT EXISTS (SELECT 1 FROM steps WHERE layer = ?1)"
        " AND NOT EXISTS (SELECT 1 FROM mounts WHERE upper = ?1) RETURNING id",
        (layer_id,),
    )
    return [str(deleted)] if deleted is not None else []


@contextmanager
def making(db: Database, *, alone: bool = False) -> Iterator[None]:
    """Keep those who look for rubbish (*alone*) and those who begin a layer apart, for a moment."""
    fd = os.open(db.root / "layerfs.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        take(fd, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, "looks for what crashes left behind", _MOMENT)
        yield
    finally:
        os.close(fd)


@contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a layer's directory; without *wait*, yield False when another has it.

    Raises `Conflict` when another has it for more than an hour, or is stopped.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if wait:
            take(fd, fcntl.LOCK_EX, f"works on layer {path.name[:12]}", _LONG)
        else:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
        yield True
    finally:
        os.close(fd)


def measure(tree: Path) -> int:
    """Return the bytes of the regular files in *tree*, hard links counted once; raises `OSError`."""
    return _measure(tree)[0]


def _measure(tree: Path) -> tuple[int, bool]:
    """Return what `measure` does, and whether no directory of it is opaque or was renamed."""
    total = 0
    plain = True
    linked: set[tuple[int, int]] = set()
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path, status in walk(fd):
            if stat.S_ISDIR(status.st_mode):
                plain = plain and not _has_marks(b"/proc/self/fd/%d/%s" % (fd, path))
            if not stat.S_ISREG(status.st_mode):
                continue
            if status.st_nlink > 1:
                inode = (status.st_dev, status.st_ino)
                if inode in linked:
                    continue
                linked.add(inode)
            total += status.st_size
    finally:
        os.close(fd)
    return total, plain


def _has_marks(directory: bytes) -> bool:
    names = map(os.fsencode, list_xattrs(directory))
    return any(name.endswith((OPAQUE, REDIRECT)) for name in names)


def size(db: Database, layer_id: str) -> int:
    """Return the size of a layer in bytes, measuring it (or waiting for who does) when it is unknown.

    The size of an upper is measured each time, that of another layer once.
    Raises `NotFound` or another `LayerfsError`.
    """
    from layerfs.store import external  # which is made of layers

    try:
        while True:
            layer = get(db, layer_id)
            if layer.size is not None:
                return layer.size
            if layer.state == "active":
                return measure(layer.path)
            external.complete(db, [layer])
            with lock(directory(db, layer_id), wait=False) as locked:
                if locked:
                    layer = get(db, layer_id)
                    return measure_once(db, layer) if layer.size is None else layer.size
            time.sleep(0.02)
    except OSError as error:
        raise from_os_error(error, f"measure layer {layer_id[:12]}") from None


def measure_once(db: Database, layer: Layer) -> int:
    """Measure a layer and write its size down; the caller holds the layer's lock."""
    total, plain = _measure(layer.path)
    with db.transaction():
        db.execute("UPDATE layers SET size = ?, plain = ? WHERE id = ?", (total, plain, layer.id))
    return total


def size_of_rowless(db: Database, layer_id: str, sizes: Mapping[str, int | None]) -> int:
    """Return the bytes of a layer whose row has just gone and whose tree is still there.

    *sizes* has the layers in the store; a directory outside counts in no sum.
    """
    size = sizes.get(layer_id, 0)
    try:
        return measure(directory(db, layer_id) / "fs") if size is None else size
    except OSError:
        return 0  # another process was quicker to remove it


def _from_row(db: Database, row: sqlite3.Row) -> Layer:
    (
        layer_id,
        state,
        path,
        work,
        created,
        size,
        manifest_done,
        diff_id,
        sealed_in,
        unverified,
        prefix,
        outside,
        plain,
    ) = row
    own = directory(db, layer_id)
    if path is not None:
        tree, workdir = Path(os.fsdecode(path)), Path(os.fsdecode(work)) if work else None
    else:
        tree, workdir = own / "fs", own / "work" if state == "active" else None
    doubtful = bool(unverified) or (state == "sealed" and not manifest_done and sealed_in != boot_id())
    return Layer(
        layer_id,
        state,
        tree,
        workdir,
        to_datetime(created),
        size,
        bool(manifest_done),
        diff_id,
        doubtful,
        prefix,
        bool(outside),
        bool(plain),
    )
